//! Keeps a request body for another try.
//!
//! Used by `resilience/call.rs`, one per request. The first try streams: what passes is kept beside, up to a limit. A later try gets
//! what was kept and then the rest of the original. Past the limit, or where the process has no memory for more, the body streams on, but
//! can no longer be repeated.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;

use super::{Body, BodyError};
use crate::resilience::growth::Grown;

/// A request body that may be sent more than once.
pub struct Replay {
    /// `None`: empty, and so repeatable without keeping anything.
    original: Option<Arc<Mutex<Original>>>,
}

impl Replay {
    /// Keeps at most `limit_bytes` of the body.
    pub fn new(body: Body, limit_bytes: usize) -> Self {
        if body.is_end_stream() {
            return Self { original: None };
        }
        let size = body.size_hint();
        // Known to be too large: not worth copying the first bytes of.
        let limit_bytes = if size.lower() > limit_bytes as u64 { 0 } else { limit_bytes };
        let original = Original {
            body,
            size,
            limit_bytes,
            kept: BytesMut::new(),
            grown: Grown::default(),
            read: 0,
            trailers: None,
            state: State::Fresh,
            current: 0,
        };
        Self { original: Some(Arc::new(Mutex::new(original))) }
    }

    /// The body for the next try; `None` when it can no longer be repeated.
    ///
    /// The body of the try before ends with [`BodyError::Cancelled`] if something still reads it.
    pub fn body(&mut self) -> Option<Body> {
        let Some(shared) = &self.original else {
            return Some(Body::empty());
        };
        let mut original = shared.lock();
        if !original.is_replayable() {
            return None;
        }
        original.current += 1;
        let kept = Bytes::copy_from_slice(&original.kept);
        let attempt = Attempt {
            number: original.current,
            kept,
            sent: 0,
            trailers_sent: false,
            size: original.size,
            original: Arc::clone(shared),
        };
        drop(original);
        Some(Body::boxed(attempt))
    }

    /// Whether another try can have the body.
    pub fn is_replayable(&self) -> bool {
        self.original.as_ref().is_none_or(|original| original.lock().is_replayable())
    }

    /// Whether nothing has been read from the original yet: no try can have sent anything of it.
    pub fn untouched(&self) -> bool {
        self.original.as_ref().is_none_or(|original| original.lock().state == State::Fresh)
    }
}

struct Original {
    body: Body,
    /// Of the whole body.
    size: SizeHint,
    limit_bytes: usize,
    /// Everything read so far, unless `state` is `Lost`. Copied together: slices would keep whole read buffers alive.
    kept: BytesMut,
    /// What that has beyond [`FREE_BYTES`].
    grown: Grown,
    read: u64,
    trailers: Option<HeaderMap>,
    state: State,
    /// Number of the try that may read.
    current: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing read yet.
    Fresh,
    Kept,
    /// Read to the end, and all of it kept.
    Complete,
    /// More than the limit was read, or reading failed.
    Lost,
}

impl Original {
    fn is_replayable(&self) -> bool {
        self.state != State::Lost
    }

    fn lose(&mut self) {
        self.state = State::Lost;
        self.kept = BytesMut::new();
        self.grown.shrink();
    }

    /// The next frame of the original, kept beside.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.state == State::Complete {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None if self.state != State::Lost => self.state = State::Complete,
            None => (),
            Some(Err(_)) => self.lose(),
            Some(Ok(frame)) => {
                if self.state == State::Fresh {
                    self.state = State::Kept;
                }
                if let Some(data) = frame.data_ref() {
                    self.read += data.len() as u64;
                    if self.state == State::Kept {
                        let together = self.kept.len() + data.len();
                        if together > self.limit_bytes || !self.grown.grow_to(together.saturating_sub(FREE_BYTES)) {
                            self.lose();
                        } else {
                            self.kept.extend_from_slice(data);
                        }
                    }
                } else if self.state == State::Kept {
                    self.trailers = frame.trailers_ref().cloned();
                }
                if self.state == State::Kept && self.body.is_end_stream() {
                    self.state = State::Complete;
                }
            }
        }
        Poll::Ready(frame)
    }
}

/// So much of a body is kept without asking for memory.
const FREE_BYTES: usize = 4 * 1024;

/// The body of one try.
struct Attempt {
    original: Arc<Mutex<Original>>,
    number: u64,
    /// What was kept when the try began; taken when it has been sent.
    kept: Bytes,
    /// Bytes given out so far.
    sent: u64,
    trailers_sent: bool,
    size: SizeHint,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut original = this.original.lock();
        if original.current != this.number {
            return Poll::Ready(Some(Err(BodyError::Cancelled)));
        }
        if !this.kept.is_empty() {
            this.sent += this.kept.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.kept)))));
        }
        // Trailers that an earlier try has read from the original.
        if !this.trailers_sent
            && let Some(trailers) = original.trailers.clone()
        {
            this.trailers_sent = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(original.poll_next(cx));
        if let Some(Ok(frame)) = &frame {
            this.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
            this.trailers_sent |= frame.is_trailers();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let original = self.original.lock();
        original.current == self.number
            && self.kept.is_empty()
            && (self.trailers_sent || original.trailers.is_none())
            && (original.state == State::Complete || original.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        if let Some(upper) = self.size.upper() {
            hint.set_upper(upper.saturating_sub(self.sent));
        }
        hint.set_lower(self.size.lower().saturating_sub(self.sent));
        hint
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::BodyExt;

    use super::{
        super::body::tests::{Notes, data, fed},
        *,
    };

    async fn next(body: &mut Body) -> String {
        String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_first_try_streams_and_the_second_repeats_and_goes_on() {
        // A retried upload would arrive with a hole, twice, or only after all of it has been read.
        let (feed, body) = fed();
        let notes = Notes::default();
        let mut replay = Replay::new(body.observed(notes.clone()), 100);
        assert!(replay.untouched());
        let mut first = replay.body().unwrap();
        feed.send(data("one ")).await.unwrap();
        assert_eq!(next(&mut first).await, "one ");
        feed.send(data("two ")).await.unwrap();
        assert_eq!(next(&mut first).await, "two ");
        assert!(!replay.untouched() && replay.is_replayable());

        let mut second = replay.body().unwrap();
        assert!(matches!(first.frame().await, Some(Err(BodyError::Cancelled))));
        drop(first);
        assert_eq!(next(&mut second).await, "one two ");
        feed.send(data("three")).await.unwrap();
        assert_eq!(next(&mut second).await, "three");
        let mut trailers = HeaderMap::new();
        trailers.insert("x", "y".parse().unwrap());
        feed.send(Ok(Frame::trailers(trailers))).await.unwrap();
        drop(feed);
        assert_eq!(second.frame().await.unwrap().unwrap().into_trailers().unwrap()["x"], "y");
        assert!(second.frame().await.is_none());

        let third = replay.body().unwrap().collect().await.unwrap();
        assert_eq!(third.trailers().unwrap()["x"], "y");
        assert_eq!(third.to_bytes(), "one two three");
        // Telemetry counts what the client sent, not what was repeated.
        assert_eq!(notes.take(), ["data 4", "data 4", "data 5", "trailers 1", "end"]);
    }

    #[tokio::test]
    async fn past_the_limit_it_streams_on_but_cannot_be_repeated() {
        // Large uploads would fail, fill the memory, or be repeated without their beginning.
        let (feed, body) = fed();
        let mut replay = Replay::new(body, 6);
        let mut first = replay.body().unwrap();
        for (part, replayable) in [("abc", true), ("def", true), ("g", false), ("h", false)] {
            feed.send(data(part)).await.unwrap();
            assert_eq!(next(&mut first).await, part);
            assert_eq!(replay.is_replayable(), replayable, "{part}");
        }
        assert!(replay.body().is_none());
        drop(feed);
        assert!(first.frame().await.is_none());
        assert!(replay.body().is_none());
    }

    #[tokio::test]
    async fn nothing_read_means_any_size_can_be_repeated() {
        // A refused connection would fail a large upload that had not even begun.
        let mut replay = Replay::new(Body::full("x".repeat(100)), 10);
        let first = replay.body().unwrap();
        assert_eq!(first.size_hint().exact(), Some(100));
        drop(first);
        assert!(replay.untouched() && replay.is_replayable());
        let mut second = replay.body().unwrap();
        assert_eq!(next(&mut second).await.len(), 100);
        assert!(second.is_end_stream());
        assert!(replay.body().is_none());
    }

    #[tokio::test]
    async fn an_empty_body_is_always_repeatable() {
        // No GET would ever be retried.
        let mut replay = Replay::new(Body::empty(), 0);
        for _ in 0..3 {
            assert!(replay.body().unwrap().is_end_stream());
            assert!(replay.untouched() && replay.is_replayable());
        }
    }

    #[tokio::test]
    async fn a_known_length_stays_known_in_every_try() {
        // Endpoints that want a content-length would refuse the retry.
        let mut replay = Replay::new(Body::full("hello"), 10);
        let mut first = replay.body().unwrap();
        assert_eq!(first.size_hint().exact(), Some(5));
        assert_eq!(next(&mut first).await, "hello");
        assert_eq!((first.size_hint().exact(), first.is_end_stream()), (Some(0), true));
        let second = replay.body().unwrap();
        assert_eq!((second.size_hint().exact(), second.is_end_stream()), (Some(5), false));
        assert_eq!(second.collect().await.unwrap().to_bytes(), "hello");
    }

    #[tokio::test]
    async fn a_broken_body_is_not_repeated() {
        // Half a request would be sent again as if it were whole.
        let (feed, body) = fed();
        let mut replay = Replay::new(body, 100);
        let mut first = replay.body().unwrap();
        feed.send(data("half")).await.unwrap();
        feed.send(Err(BodyError::Other("gone".into()))).await.unwrap();
        assert_eq!(next(&mut first).await, "half");
        assert!(first.frame().await.unwrap().is_err());
        assert!(!replay.is_replayable());
        assert!(replay.body().is_none());
    }
}
