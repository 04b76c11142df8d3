//! Requests in, responses out.
//!
//! `serve` reads them with the codecs in `http1` and `http2`. `normalize` gives each request one meaning, `headers` edits the fields that
//! concern a hop, `body` and `replay` carry the content, `interim` carries what comes before a response, `upgrade` leaves HTTP, `grpc`
//! reads gRPC's fields, and `reply` writes every response that does not come from an endpoint.

pub mod body;
pub mod grpc;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod interim;
pub mod normalize;
pub mod replay;
pub mod reply;
pub mod serve;
pub mod upgrade;

pub use body::{Body, BodyError};
