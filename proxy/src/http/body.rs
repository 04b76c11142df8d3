//! Streamed bodies.
use std::{pin::Pin, task::{Context, Poll}, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::settings::Timeouts;

/// A message body.
pub struct Body {
    _kind: (),
}

/// Sees a body pass.
pub trait Observer: Send + 'static {
    /// Some content passed.
    fn data(&mut self, bytes: usize) {
        let _ = bytes;
    }

    /// Trailers passed.
    fn trailers(&mut self, trailers: &HeaderMap) {
        let _ = trailers;
    }

    /// The body is over; called exactly once. `Err(Cancelled)`: dropped before its end.
    fn end(&mut self, result: Result<(), &BodyError>) {
        let _ = result;
    }
}

/// How fast a body must come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub grace: Duration,
    pub min_bytes_per_second: u64,
}

impl Pace {
    /// From the settings.
    pub fn new(timeouts: &Timeouts) -> Self {
        Self { grace: timeouts.body_grace, min_bytes_per_second: timeouts.body_min_bytes_per_second }
    }
}

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("body was given up before its end")]
    Cancelled,
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    #[error("body came too slowly")]
    TooSlow,
    #[error("trailers are too large")]
    TrailersTooLarge,
    #[error(transparent)]
    Other(#[from] Box<dyn std::error::Error + Send + Sync>),
}

impl From<std::convert::Infallible> for BodyError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl Body {
    pub fn empty() -> Self {
        unimplemented!()
    }
    pub fn full(_bytes: impl Into<Bytes>) -> Self {
        unimplemented!()
    }
    pub fn incoming(_body: hyper::body::Incoming) -> Self {
        unimplemented!()
    }
    pub fn boxed<B>(_body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        unimplemented!()
    }
    #[must_use]
    pub fn observed<O: Observer>(self, _observer: O) -> Self {
        unimplemented!()
    }
    #[must_use]
    pub fn with_idle_limit(self, _pace: Pace) -> Self {
        unimplemented!()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        unimplemented!()
    }
}
