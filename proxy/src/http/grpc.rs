//! gRPC's fields.
use std::time::Duration;

use http::{HeaderMap, StatusCode};

pub fn is_grpc(_headers: &HeaderMap) -> bool {
    unimplemented!()
}
pub fn timeout(_headers: &HeaderMap) -> Option<Duration> {
    unimplemented!()
}
pub fn status(_headers: &HeaderMap) -> Option<u32> {
    unimplemented!()
}
pub fn http_to_grpc(_status: StatusCode) -> u32 {
    unimplemented!()
}
