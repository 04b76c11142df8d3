//! Content that is still arriving on its connection.
//!
//! Whoever reads the body reads the connection; nothing is read ahead of the reader, so a slow reader slows the sender.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{
    chunked::{ChunkLimits, Chunked, Step},
    fault::Broken,
    framing::Framing,
    wire::Wire,
};
use crate::{
    host::Stream,
    http::{Body, BodyError},
};

/// What of a message's content has not been read yet.
#[derive(Debug)]
pub(super) enum Content {
    Over,
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

impl Content {
    pub const fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Over,
            Framing::Length(bytes) => Self::Length(bytes),
            Framing::Chunked => Self::Chunked(Chunked::start()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// All of it, when it has come already.
    pub fn take_whole(&mut self, received: &mut bytes::BytesMut) -> Option<Bytes> {
        let Self::Length(bytes) = self else { return None };
        let bytes = usize::try_from(*bytes).ok().filter(|bytes| *bytes <= received.len())?;
        *self = Self::Over;
        Some(received.split_to(bytes).freeze())
    }

    /// The next piece, read from the connection if need be.
    pub fn poll_frame<S: Stream>(
        &mut self,
        wire: &mut Wire<S>,
        limits: &ChunkLimits,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            match self {
                Self::Over => return Poll::Ready(None),
                Self::Length(left) if !wire.received.is_empty() => {
                    let take = wire.received.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= take as u64;
                    if *left == 0 {
                        *self = Self::Over;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(wire.received.split_to(take).freeze()))));
                }
                Self::UntilClose if !wire.received.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(wire.received.split().freeze()))));
                }
                Self::Chunked(chunked) => match chunked.step(&mut wire.received, limits) {
                    Ok(Step::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(Step::Trailers(trailers)) => {
                        *self = Self::Over;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    Ok(Step::Over) => {
                        *self = Self::Over;
                        continue;
                    }
                    Ok(Step::Starved) => {}
                    Err(fault) => return Poll::Ready(Some(Err(fault.into()))),
                },
                Self::Length(_) | Self::UntilClose => {}
            }
            match ready!(wire.poll_fill(cx)) {
                Ok(0) if matches!(self, Self::UntilClose) => *self = Self::Over,
                Ok(0) => return Poll::Ready(Some(Err(Broken::incomplete()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

/// A connection whose message is being read by somebody else than who serves it.
pub(super) trait Source: Send + Sync {
    /// The next piece of the content of message `number`; an error once the connection is past it.
    fn poll_frame(&self, number: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;

    /// Nobody reads message `number` any further.
    fn let_go(&self, number: u64);
}

/// The body of a message that is still arriving.
pub(super) struct Incoming {
    source: Arc<dyn Source>,
    number: u64,
    /// As far as it was announced.
    left: Option<u64>,
    over: bool,
}

impl Incoming {
    pub fn body(source: Arc<dyn Source>, number: u64, framing: Framing) -> Body {
        let left = match framing {
            Framing::Empty => Some(0),
            Framing::Length(bytes) => Some(bytes),
            Framing::Chunked | Framing::UntilClose => None,
        };
        Body::boxed(Self { source, number, left, over: false })
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let polled = ready!(self.source.poll_frame(self.number, cx));
        match &polled {
            Some(Ok(frame)) => {
                if let (Some(data), Some(left)) = (frame.data_ref(), self.left) {
                    self.left = Some(left.saturating_sub(data.len() as u64));
                    self.over = self.left == Some(0);
                }
                // Nothing comes behind trailers.
                self.over |= frame.is_trailers();
            }
            Some(Err(_)) | None => self.over = true,
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.over {
            self.source.let_go(self.number);
        }
    }
}

impl From<Broken> for BodyError {
    fn from(broken: Broken) -> Self {
        Self::Other(Box::new(broken))
    }
}
