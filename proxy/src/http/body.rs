//! Streamed bodies: one type for all, observed, paced and bounded.
//!
//! Every request and response carries a [`Body`]. Whoever needs to know how a body went (telemetry, in-flight counts, ejection) adds
//! an [`Observer`] and is told exactly once how it ended, also when the body is dropped half-way. Nothing is buffered.

use std::{
    error::Error as StdError,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use smallvec::SmallVec;

use super::{headers, http2};
use crate::{
    host::{self, Instant},
    settings::{Limits, Timeouts},
};

/// A message body, read frame by frame.
pub struct Body {
    content: Content,
    observers: SmallVec<[Box<dyn Observer>; 1]>,
    pace: Option<Box<Pacing>>,
    end: Option<Box<Ending>>,
    trailers: Option<TrailerLimit>,
    /// Observers have been told the end.
    ended: bool,
}

enum Content {
    Empty,
    Full(Bytes),
    Http2(http2::Incoming),
    Boxed(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError> + Send>>),
}

/// Sees a body pass. Runs inside the poll of the body: it must be quick.
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
///
/// Counts only the time in which we wait for its sender: a slow receiver never makes a body too slow. Not for streams that may
/// be silent (gRPC, events); the caller decides.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// In every such time of waiting ... Zero: no limit.
    pub grace: Duration,
    /// ... this much must come for every second of it.
    pub min_bytes_per_second: u64,
}

impl Pace {
    /// From the settings.
    pub const fn new(timeouts: &Timeouts) -> Self {
        Self { grace: timeouts.body_grace, min_bytes_per_second: timeouts.body_min_bytes_per_second }
    }
}

/// Greatest trailer section.
#[derive(Clone, Copy, Debug)]
pub struct TrailerLimit {
    /// Names and values together.
    pub bytes: usize,
    pub fields: usize,
}

impl TrailerLimit {
    /// From the settings.
    pub const fn new(limits: &Limits) -> Self {
        Self { bytes: limits.trailer_bytes, fields: limits.trailer_fields }
    }
}

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("body was given up before its end")]
    Cancelled,
    /// A stream of HTTP/2 ended before its end.
    #[error(transparent)]
    Http2(http2::Lost),
    #[error("body came too slowly")]
    TooSlow,
    #[error("time for the request was over before its body")]
    TooLate,
    #[error("trailers are too large")]
    TrailersTooLarge,
    #[error(transparent)]
    Other(#[from] Box<dyn StdError + Send + Sync>),
}

impl BodyError {
    /// Whether the sender went away (reset, abort, end in the middle) rather than break a rule.
    pub fn is_peer_gone(&self) -> bool {
        match self {
            Self::Http2(lost) => lost.is_peer_gone(),
            Self::Other(error) => is_gone(Some(&**error)),
            Self::Cancelled | Self::TooSlow | Self::TooLate | Self::TrailersTooLarge => false,
        }
    }
}

/// Whether an I/O error lies beneath.
fn is_gone(mut error: Option<&(dyn StdError + 'static)>) -> bool {
    while let Some(current) = error {
        if current.is::<std::io::Error>() {
            return true;
        }
        error = current.source();
    }
    false
}

impl From<std::convert::Infallible> for BodyError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Content::Empty.into()
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Content::Full(bytes).into() }
    }

    /// What comes on a stream of HTTP/2.
    pub fn http2(body: http2::Incoming) -> Self {
        Content::Http2(body).into()
    }

    /// Any other body.
    pub fn boxed<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        Content::Boxed(Box::pin(body.map_err(Into::into))).into()
    }

    /// Adds an observer; several see everything, in the order they were added.
    #[must_use]
    pub fn observed<O: Observer>(mut self, observer: O) -> Self {
        self.observe(observer);
        self
    }

    /// [`Body::observed`] in place.
    pub fn observe<O: Observer>(&mut self, observer: O) {
        self.observers.push(Box::new(observer));
    }

    /// Ends the body with [`BodyError::TooSlow`] when it falls below the pace.
    #[must_use]
    pub fn with_idle_limit(mut self, pace: Pace) -> Self {
        self.pace = (!pace.grace.is_zero()).then(|| Box::new(Pacing::new(pace)));
        self
    }

    /// Ends the body with [`BodyError::TooLate`] at this moment. A timer runs only while the body is waited for.
    pub fn set_deadline(&mut self, at: Instant) {
        self.end = Some(Box::new(Ending { at, timer: None }));
    }

    /// Whether all of it is here already.
    pub const fn is_whole(&self) -> bool {
        matches!(self.content, Content::Empty | Content::Full(_))
    }

    /// Ends the body with [`BodyError::TrailersTooLarge`] when trailers exceed the limit.
    #[must_use]
    pub fn with_trailer_limit(mut self, limit: TrailerLimit) -> Self {
        self.trailers = Some(limit);
        self
    }

    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.content {
            Content::Empty => Poll::Ready(None),
            Content::Full(bytes) => {
                let bytes = mem::take(bytes);
                self.content = Content::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Content::Http2(body) => body.poll_frame(cx),
            Content::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_content(cx);
        let Some(pacing) = &mut self.pace else {
            return polled;
        };
        match &polled {
            Poll::Pending if pacing.poll_too_slow(cx).is_ready() => Poll::Ready(Some(Err(BodyError::TooSlow))),
            Poll::Pending => Poll::Pending,
            Poll::Ready(frame) => {
                let bytes = match frame {
                    Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                    _ => 0,
                };
                if pacing.came(bytes) { polled } else { Poll::Ready(Some(Err(BodyError::TooSlow))) }
            }
        }
    }

    fn poll_in_time(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_paced(cx);
        let Some(end) = &mut self.end else {
            return polled;
        };
        let too_late = match &polled {
            Poll::Pending => end.poll(cx).is_ready(),
            // A body that never lets us wait must end as well.
            Poll::Ready(Some(Ok(_))) => host::now() >= end.at,
            Poll::Ready(_) => false,
        };
        if too_late { Poll::Ready(Some(Err(BodyError::TooLate))) } else { polled }
    }

    fn check_trailers(&self, trailers: &mut HeaderMap) -> Result<(), BodyError> {
        if let Some(limit) = self.trailers {
            let bytes: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
            if trailers.len() > limit.fields || bytes > limit.bytes {
                return Err(BodyError::TrailersTooLarge);
            }
        }
        remove_forbidden(trailers);
        Ok(())
    }

    fn tell_end(&mut self, result: Result<(), &BodyError>) {
        if !mem::replace(&mut self.ended, true) {
            for observer in &mut self.observers {
                observer.end(result);
            }
        }
    }
}

/// Removes fields that must not come as trailers.
fn remove_forbidden(trailers: &mut HeaderMap) {
    let forbidden: SmallVec<[HeaderName; 4]> =
        trailers.keys().filter(|name| !headers::may_trail(name)).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

impl From<Content> for Body {
    fn from(content: Content) -> Self {
        Self { content, observers: SmallVec::new(), pace: None, end: None, trailers: None, ended: false }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = match ready!(this.poll_in_time(cx)) {
            Some(Ok(frame)) => match frame.into_trailers() {
                Ok(mut trailers) => match this.check_trailers(&mut trailers) {
                    Ok(()) => Some(Ok(Frame::trailers(trailers))),
                    Err(error) => Some(Err(error)),
                },
                Err(frame) => Some(Ok(frame)),
            },
            other => other,
        };
        match &polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.observers.iter_mut().for_each(|observer| observer.data(data.len()));
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.observers.iter_mut().for_each(|observer| observer.trailers(trailers));
                }
                // With a known length nobody asks again after the last byte.
                if this.is_end_stream() {
                    this.tell_end(Ok(()));
                }
            }
            Some(Err(error)) => {
                this.tell_end(Err(error));
                // Nothing may follow an error, and what lies beneath should go now.
                this.content = Content::Empty;
            }
            None => this.tell_end(Ok(())),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Full(_) => false,
            Content::Http2(body) => body.is_over(),
            Content::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Http2(body) => body.size_hint(),
            Content::Boxed(body) => body.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A body that never had content ends well without being asked for it.
        if self.is_end_stream() {
            self.tell_end(Ok(()));
        } else {
            self.tell_end(Err(&BodyError::Cancelled));
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("size", &self.size_hint()).field("end", &self.is_end_stream()).finish()
    }
}

/// When a body must be over.
struct Ending {
    at: Instant,
    timer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Ending {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = || self.at.saturating_duration_since(host::now());
        self.timer.get_or_insert_with(|| Box::pin(host::sleep(left()))).as_mut().poll(cx)
    }
}

/// Measures the pace in windows of `grace` waiting time.
struct Pacing {
    pace: Pace,
    waited: Duration,
    bytes: u64,
    waiting: Option<Waiting>,
}

struct Waiting {
    since: Instant,
    timer: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Pacing {
    const fn new(pace: Pace) -> Self {
        Self { pace, waited: Duration::ZERO, bytes: 0, waiting: None }
    }

    /// Called while nothing comes; ready when the window is over and too little came.
    fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let left = self.pace.grace.saturating_sub(self.waited);
            let waiting =
                self.waiting.get_or_insert_with(|| Waiting { since: host::now(), timer: Box::pin(host::sleep(left)) });
            ready!(waiting.timer.as_mut().poll(cx));
            if !self.came(0) {
                return Poll::Ready(());
            }
        }
    }

    /// Something came after waiting; false when it is too little.
    fn came(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if let Some(waiting) = self.waiting.take() {
            self.waited += host::now().saturating_duration_since(waiting.since);
        }
        if self.waited < self.pace.grace {
            return true;
        }
        let due = self.waited.as_millis().saturating_mul(u128::from(self.pace.min_bytes_per_second)) / 1000;
        let enough = u128::from(self.bytes) >= due;
        self.waited = Duration::ZERO;
        self.bytes = 0;
        enough
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::mpsc;

    use super::*;

    /// A body whose frames come from a test.
    pub(crate) struct Fed(pub(crate) mpsc::Receiver<Result<Frame<Bytes>, BodyError>>);

    impl http_body::Body for Fed {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            self.0.poll_recv(cx)
        }
    }

    /// A body and the hand that feeds it.
    pub(crate) fn fed() -> (mpsc::Sender<Result<Frame<Bytes>, BodyError>>, Body) {
        let (sender, receiver) = mpsc::channel(16);
        (sender, Body::boxed(Fed(receiver)))
    }

    pub(crate) fn data(text: &'static str) -> Result<Frame<Bytes>, BodyError> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    #[derive(Clone, Default)]
    pub(crate) struct Notes(pub(crate) Arc<Mutex<Vec<String>>>);

    impl Observer for Notes {
        fn data(&mut self, bytes: usize) {
            self.0.lock().push(format!("data {bytes}"));
        }

        fn trailers(&mut self, trailers: &HeaderMap) {
            self.0.lock().push(format!("trailers {}", trailers.len()));
        }

        fn end(&mut self, result: Result<(), &BodyError>) {
            self.0.lock().push(result.map_or_else(|error| error.to_string(), |()| "end".into()));
        }
    }

    impl Notes {
        pub(crate) fn take(&self) -> Vec<String> {
            mem::take(&mut *self.0.lock())
        }
    }

    #[tokio::test]
    async fn the_end_is_told_once_and_truly() {
        // A request would be recorded twice or never, and its place in a limit kept for ever or freed twice.
        let notes = Notes::default();
        let other = Notes::default();

        drop(Body::empty().observed(notes.clone()));
        assert_eq!(notes.take(), ["end"]);

        let body = Body::full("abc").observed(notes.clone()).observed(other.clone());
        assert_eq!(body.size_hint().exact(), Some(3));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert_eq!(
            (notes.take(), other.take()),
            (vec!["data 3".into(), "end".into()], vec!["data 3".into(), "end".into()])
        );

        // With a known length nobody asks for the end.
        let mut body = Body::full("abc").observed(notes.clone());
        body.frame().await.unwrap().unwrap();
        assert_eq!(notes.take(), ["data 3", "end"]);
        drop(body);
        assert!(notes.take().is_empty());

        drop(Body::full("abc").observed(notes.clone()));
        assert_eq!(notes.take(), ["body was given up before its end"]);

        let (feed, body) = fed();
        let mut body = body.observed(notes.clone());
        feed.send(data("ab")).await.unwrap();
        feed.send(Err(BodyError::Other("broken".into()))).await.unwrap();
        body.frame().await.unwrap().unwrap();
        body.frame().await.unwrap().unwrap_err();
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!(notes.take(), ["data 2", "broken"]);
        assert!(feed.is_closed());

        let (feed, body) = fed();
        let mut body = body.observed(notes.clone());
        feed.send(data("ab")).await.unwrap();
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert_eq!(notes.take(), ["data 2", "body was given up before its end"]);
    }

    #[tokio::test]
    async fn trailers_are_bounded_and_cleaned() {
        // Fields that frame or authenticate a message could be smuggled behind the checks of its head.
        let limit = TrailerLimit { bytes: 100, fields: 2 };
        let collected = async |names: &[&'static str], value: &str| {
            let mut trailers = HeaderMap::new();
            for name in names {
                trailers.append(*name, value.parse().unwrap());
            }
            let (feed, body) = fed();
            let notes = Notes::default();
            feed.send(Ok(Frame::trailers(trailers))).await.unwrap();
            drop(feed);
            (body.with_trailer_limit(limit).observed(notes.clone()).collect().await, notes.take())
        };
        let (body, notes) = collected(&["grpc-status", "content-length"], "0").await;
        let trailers = body.unwrap().trailers().unwrap().clone();
        assert_eq!(trailers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["grpc-status"]);
        assert_eq!(notes, ["trailers 1", "end"]);
        for (names, value) in [(["a", "b", "c"].as_slice(), ""), (&["a"], &*"x".repeat(100))] {
            let (body, notes) = collected(names, value).await;
            assert!(matches!(body, Err(BodyError::TrailersTooLarge)));
            assert_eq!(notes, ["trailers are too large"]);
        }
    }

    const PACE: Pace = Pace { grace: Duration::from_secs(10), min_bytes_per_second: 500 };

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_ended() {
        // A few hundred clients sending a byte a second would hold all places.
        let (feed, body) = fed();
        let mut body = body.with_idle_limit(PACE);
        let start = host::now();
        let feeding = tokio::spawn(async move {
            while feed.send(data("x")).await.is_ok() {
                host::sleep(Duration::from_secs(1)).await;
            }
        });
        let error = loop {
            match body.frame().await.unwrap() {
                Ok(_) => (),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, BodyError::TooSlow));
        assert_eq!(host::now() - start, PACE.grace);
        feeding.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_body_and_enough_data_does_not() {
        // A large upload over a modest line would be cut.
        let (feed, body) = fed();
        let mut body = body.with_idle_limit(PACE);
        let start = host::now();
        tokio::spawn(async move {
            for _ in 0..20 {
                host::sleep(Duration::from_secs(2)).await;
                feed.send(Ok(Frame::data(vec![0; 1500].into()))).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        for _ in 0..20 {
            body.frame().await.unwrap().unwrap();
        }
        assert!(matches!(body.frame().await.unwrap(), Err(BodyError::TooSlow)));
        assert_eq!(host::now() - start, Duration::from_secs(40) + PACE.grace);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_receiver_is_not_the_senders_fault() {
        // A slow endpoint would make clients look slow, and their uploads fail.
        let (feed, body) = fed();
        let mut body = body.with_idle_limit(PACE);
        for _ in 0..3 {
            feed.send(data("x")).await.unwrap();
            host::sleep(PACE.grace * 10).await;
            body.frame().await.unwrap().unwrap();
        }
    }
}
