//! One downstream connection, from its first request to its end.
//!
//! Called by the journeys with a stream whose version is known; `http1/server.rs` or `http2/server.rs` serves it. Both end a
//! connection in the same way:
//!
//! ```text
//! silent --first byte--> head --request--> in flight --last response ends--> between requests --first byte--> head ..
//!   | first_byte           | head           |  (age, request count, drain: graceful)        | idle: graceful
//!   v                      v                v                                               v
//! closed                408, closed       closed after the last response                   closed
//! ```
//!
//! On HTTP/2, "head" is the preface of the connection, nothing is answered then, and closing is GOAWAY (RFC 9113 §6.8).

use std::future::Future;

use http::{Request, Response};

use super::{
    Body, Downstream,
    http1::{self, Broken, Fault, chunked::ChunkLimits, head::HeadLimits},
    http2::{
        self, Abuse, Ended, Patience,
        server::{Lifetime, Refused},
    },
};
use crate::{
    detect::Detected,
    drain::DrainWatch,
    host::Stream,
    settings::{Limits, Settings, Timeouts},
};

/// What the connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

impl Version {
    /// The version that the first bytes were; `None` when they were not HTTP.
    pub const fn of(detected: &Detected) -> Option<Self> {
        match detected {
            Detected::Http1 => Some(Self::Http1),
            Detected::Http2 => Some(Self::Http2),
            Detected::Tls(_) | Detected::Opaque => None,
        }
    }
}

/// Prepared once from the settings; shared by connections. How fast bodies must come is not in here: whether that may be asked
/// depends on the request (`Body::with_idle_limit`).
pub struct ServeSettings {
    http1: http1::server::Rules,
    http2: http2::Rules,
    life: Lifetime,
}

impl ServeSettings {
    /// `mesh_peer`: connections from other sidecars, which bundle many clients and may open more streams.
    pub fn new(settings: &Settings, mesh_peer: bool) -> Self {
        Self::from_parts(&settings.limits, &settings.timeouts, mesh_peer)
    }

    fn from_parts(limits: &Limits, timeouts: &Timeouts, mesh_peer: bool) -> Self {
        let streams = if mesh_peer { limits.mesh_streams } else { limits.http2_streams };
        Self {
            http1: http1::server::Rules {
                head: http1_head(limits),
                chunks: http1_chunks(limits),
                requests: limits.requests_per_connection,
                first_byte: timeouts.first_byte,
                head_time: timeouts.head,
                idle: timeouts.idle,
                write_stall: timeouts.write_stall,
                age: timeouts.connection_age,
            },
            http2: http2::Rules::new(limits, streams),
            life: Lifetime {
                requests: limits.requests_per_connection,
                first_byte: timeouts.first_byte,
                head: timeouts.head,
                idle: timeouts.idle,
                age: timeouts.connection_age,
                stall: Patience { silent: timeouts.write_stall, alive: timeouts.stream_stall },
            },
        }
    }
}

/// The bounds of an HTTP/1 head, for both ends of a connection.
pub const fn http1_head(limits: &Limits) -> HeadLimits {
    HeadLimits { bytes: limits.http1_head_bytes, fields: limits.header_fields, target_bytes: limits.uri_bytes }
}

/// The bounds of chunked content, for both ends of a connection.
pub const fn http1_chunks(limits: &Limits) -> ChunkLimits {
    ChunkLimits {
        extension_bytes: limits.chunk_extension_bytes,
        trailers: HeadLimits { bytes: limits.trailer_bytes, fields: limits.trailer_fields, target_bytes: 0 },
    }
}

/// Why a connection broke.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Http1(#[from] Broken),
    #[error(transparent)]
    Http2(#[from] Ended),
}

/// Serves one connection to its end, or until it has become another protocol (then the upgrade has the stream).
///
/// The handler's future is dropped when the connection breaks, the client resets the stream or, on HTTP/1, ends its side: a request
/// nobody waits for is not carried on. Dropping this future closes the connection at once. When `drain` fires, requests in flight are
/// still answered. `upgrade::take` finds the way out of HTTP in the request's extensions. `refused` is told of each request that broke
/// a rule before any handler could see it; it was answered, or its stream reset. `abused` is told of what keeps an HTTP/2 connection busy
/// without getting anything done.
///
/// # Errors
/// When the connection breaks or the client breaks HTTP. Running into a limit of time is a regular end.
pub async fn serve<S, H, F>(
    io: S,
    version: Version,
    settings: &ServeSettings,
    drain: DrainWatch,
    handler: H,
    refused: impl Fn(Fault),
    abused: impl Fn(Abuse),
) -> Result<(), ServeError>
where
    S: Stream + 'static,
    H: Fn(Request<Body>, Downstream) -> F + Send + Sync + 'static,
    F: Future<Output: Into<Box<Response<Body>>>> + Send + 'static,
{
    match version {
        Version::Http1 => {
            let served = http1::server::serve(io, &settings.http1, drain, handler).await;
            if let Err(Broken::Fault(fault)) = &served {
                refused(*fault);
            }
            Ok(served?)
        }
        Version::Http2 => {
            let refused = |why| {
                refused(match why {
                    Refused::Malformed(_) => Fault::Malformed,
                    Refused::Answered(fault) => fault,
                });
            };
            let rules = settings.http2.clone();
            // Boxed: what HTTP/2 needs would be part of every connection's future.
            Ok(Box::pin(http2::server::serve(io, rules, settings.life, drain, handler, refused, abused)).await?)
        }
    }
}

#[cfg(test)]
mod tests;
