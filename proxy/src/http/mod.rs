//! Requests in, responses out.
//!
//! `serve` reads them: HTTP/1 with the codec in `http1`, HTTP/2 with hyper (the one file that knows hyper's server). `normalize` gives each request
//! one meaning, `headers`
//! edits the fields that concern a hop, `body` and `replay` carry the content, `upgrade` leaves HTTP, `grpc` reads
//! gRPC's fields, and `reply` writes every response that does not come from an endpoint.

pub mod body;
pub mod frames;
pub mod grpc;
pub mod headers;
pub mod http1;
pub mod normalize;
pub mod replay;
pub mod reply;
pub mod serve;
pub mod upgrade;
pub mod watched;

pub use body::{Body, BodyError};
