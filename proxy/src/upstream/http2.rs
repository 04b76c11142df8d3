//! HTTP/2 to an endpoint: many requests at once on one connection. The one file with hyper's HTTP/2 client types.

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;

use super::{
    dial::{Hold, Upstream},
    http1::Unanswered,
};
use crate::{
    failure::{Failure, Reason, Sent},
    host::{self, Instant},
    http::body::Body,
    settings::{Limits, Timeouts},
};

/// One connection, shared by its streams.
#[derive(Debug)]
pub struct Http2 {
    sender: http2::SendRequest<Body>,
    active: AtomicU32,
    born: Instant,
    max_age: Duration,
    max_streams: u32,
    /// Streams so far; wraps.
    started: AtomicU32,
    /// What the sweeper saw: how many had been started, and since when that has not changed.
    quiet: Mutex<(u32, Instant)>,
    _hold: Hold,
}

/// One request's place on a connection; freed when dropped.
#[derive(Debug)]
pub struct Stream {
    connection: Arc<Http2>,
}

/// Starts HTTP/2 on a fresh connection.
///
/// # Errors
/// When the connection breaks at once; nothing has been sent.
pub async fn open(
    io: Upstream,
    limits: &Limits,
    timeouts: &Timeouts,
    max_age: Duration,
    max_streams: u32,
    hold: Hold,
) -> Result<Arc<Http2>, Failure> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.http2_stream_window_bytes)
        .initial_connection_window_size(limits.http2_connection_window_bytes)
        .max_frame_size(64 * 1024)
        .max_header_list_size(limits.http2_header_list_bytes)
        .max_send_buf_size(limits.connection_buffer_bytes)
        .max_local_error_reset_streams(limits.http2_local_resets)
        .max_pending_accept_reset_streams(limits.http2_pending_resets)
        .keep_alive_interval(timeouts.ping_interval)
        .keep_alive_timeout(timeouts.ping_timeout);
    let (sender, connection) = builder
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| Failure::new(Reason::UpstreamReset).because(error))?;
    host::spawn(async move {
        // Its errors surface in the streams that were under way.
        let _ = connection.await;
    });
    let born = host::now();
    Ok(Arc::new(Http2 {
        sender,
        active: AtomicU32::new(0),
        born,
        max_age,
        max_streams,
        started: AtomicU32::new(0),
        quiet: Mutex::new((0, born)),
        _hold: hold,
    }))
}

impl Http2 {
    /// Whether new streams may start here; an old connection finishes what it has and is then dropped.
    pub fn is_open(&self, now: Instant) -> bool {
        !self.sender.is_closed() && now.saturating_duration_since(self.born) < self.max_age
    }

    /// Streams under way.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Whether no stream was under way for `limit`, as far as the sweeper's looks tell; only the sweeper asks.
    pub fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        let started = self.started.load(Ordering::Relaxed);
        let mut quiet = self.quiet.lock();
        if self.active() > 0 || quiet.0 != started {
            *quiet = (started, now);
        }
        now.saturating_duration_since(quiet.1) >= limit
    }

    /// Takes a place for one request, unless the connection is full.
    pub fn stream(self: &Arc<Self>) -> Option<Stream> {
        // Only the owning worker starts streams, so a look and an add do not race; a stream too many would only wait.
        if self.active() >= self.max_streams {
            return None;
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        self.started.fetch_add(1, Ordering::Relaxed);
        Some(Stream { connection: Arc::clone(self) })
    }
}

impl Stream {
    /// Sends one request and waits for the response head. Dropping the future resets the stream.
    ///
    /// # Errors
    /// [`Unanswered`]: with the request inside when it never left; `sent: Nothing` as well when the peer said that
    /// it did not look at it (RFC 9113 §8.7: REFUSED_STREAM, or a stream above the last one of GOAWAY).
    pub fn send(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> + Send + use<> {
        // Handed over before the future exists, so that it does not hold the request.
        let answered = self.connection.sender.clone().try_send_request(request);
        async move {
            answered.await.map_err(|mut error| {
                let request = error.take_message();
                let error = error.into_error();
                let (reason, sent) = match h2_cause(&error) {
                    _ if request.is_some() => (Reason::UpstreamReset, Sent::Nothing),
                    Some(h2) if h2.reason() == Some(h2::Reason::REFUSED_STREAM) && h2.is_remote() => {
                        (Reason::UpstreamRefusedStream, Sent::Nothing)
                    }
                    Some(h2) if h2.is_go_away() && h2.is_remote() => (Reason::UpstreamRefusedStream, Sent::Nothing),
                    Some(h2) if h2.is_library() => (Reason::UpstreamProtocol, Sent::Maybe),
                    _ => (Reason::UpstreamReset, Sent::Maybe),
                };
                Unanswered { failure: Failure::new(reason).sent(sent).because(error), request }
            })
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.active.fetch_sub(1, Ordering::Relaxed);
    }
}

fn h2_cause(error: &hyper::Error) -> Option<&h2::Error> {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            return Some(h2);
        }
        cause = inner.source();
    }
    None
}
