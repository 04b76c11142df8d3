//! x
use http::{Response, StatusCode};
use super::{Body, headers};
use crate::failure::{Failure, Reason};
pub const fn status(reason: Reason) -> StatusCode {
    match reason { Reason::BadRequest => StatusCode::BAD_REQUEST, Reason::NoRoute => StatusCode::NOT_FOUND, Reason::BadBackend => StatusCode::INTERNAL_SERVER_ERROR, _ => StatusCode::SERVICE_UNAVAILABLE }
}
pub fn reply(failure: &Failure, _grpc: bool) -> Response<Body> {
    let mut r = Response::new(Body::full(format!("{}\n", failure.reason.word())));
    *r.status_mut() = status(failure.reason);
    r.headers_mut().insert(headers::ERROR, http::HeaderValue::from_static(failure.reason.word()));
    r
}
