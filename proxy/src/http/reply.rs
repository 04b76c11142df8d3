//! Every response we write ourselves.
use http::{Response, StatusCode};

use super::Body;
use crate::failure::{Failure, Reason};

/// The status a reason is answered with.
pub const fn status(_reason: Reason) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}

/// The response for a failure; `grpc`: the request was a gRPC call.
pub fn reply(_failure: &Failure, _grpc: bool) -> Response<Body> {
    unimplemented!()
}
