//! Requests in, responses out.
//!
//! `serve` reads them with the codecs in `http1` and `http2`. `normalize` gives each request one meaning, `headers` edits the fields that
//! concern a hop, `seen` says which of them there are, `body` and `replay` carry the content, `downstream` is what a handler knows of the asking side, `interim` carries what comes before a response, `upgrade` leaves HTTP, `grpc`
//! reads gRPC's fields, and `reply` writes every response that does not come from an endpoint.

pub mod body;
pub mod downstream;
pub mod grpc;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod interim;
pub mod normalize;
pub mod replay;
pub mod reply;
pub mod seen;
pub mod serve;
pub mod upgrade;

pub use body::{Body, BodyError};
pub use downstream::Downstream;
