//! One downstream connection, from its first request to its end. hyper's server types are known here and nowhere else.
//!
//! Called by the journeys with a stream whose version is known. HTTP/1 is served by our own codec (`http1/server.rs`), HTTP/2 by
//! hyper, to which this file adds what it does not have: the time for the preface, age, number of requests, and the graceful
//! end of all these. Both end a connection in the same way:
//!
//! ```text
//! silent --first byte--> head --request--> in flight --last response ends--> between requests --first byte--> head ..
//!   | first_byte           | head           |  (age, request count, drain: graceful)        | idle: graceful
//!   v                      v                v                                               v
//! closed                408, closed       closed after the last response                   closed
//! ```

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::http2,
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    Body,
    body::{Observer, TrailerLimit},
    frames::FrameBudget,
    http1::{Broken, Fault, chunked::ChunkLimits, head::HeadLimits, server},
    watched::{Look, Watched},
};
use crate::{
    detect::Detected,
    drain::DrainWatch,
    host::{self, Instant, Stream},
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
    http1: server::Rules,
    http2: http2::Builder<Tasks>,
    trailers: TrailerLimit,
    requests: u64,
    control_frames: u32,
    first_byte: Duration,
    head: Duration,
    idle: Duration,
    age: Duration,
}

impl ServeSettings {
    /// `mesh_peer`: connections from other sidecars, which bundle many clients and may open more streams.
    pub fn new(settings: &Settings, mesh_peer: bool) -> Self {
        Self::from_parts(&settings.limits, &settings.timeouts, mesh_peer)
    }

    fn from_parts(limits: &Limits, timeouts: &Timeouts, mesh_peer: bool) -> Self {
        let http1 = server::Rules {
            head: http1_head(limits),
            chunks: http1_chunks(limits),
            requests: limits.requests_per_connection,
            first_byte: timeouts.first_byte,
            head_time: timeouts.head,
            idle: timeouts.idle,
            age: timeouts.connection_age,
        };
        let mut http2 = http2::Builder::new(Tasks);
        http2
            .timer(TokioTimer::new())
            .adaptive_window(false)
            .initial_stream_window_size(limits.http2_stream_window_bytes.min(MAX_WINDOW_BYTES))
            .initial_connection_window_size(limits.http2_connection_window_bytes.min(MAX_WINDOW_BYTES))
            .max_concurrent_streams(if mesh_peer { limits.mesh_streams } else { limits.http2_streams })
            .max_header_list_size(limits.http2_header_list_bytes)
            .max_pending_accept_reset_streams(limits.http2_pending_resets)
            .max_local_error_reset_streams(limits.http2_local_resets)
            .max_send_buf_size(limits.connection_buffer_bytes)
            .enable_connect_protocol();
        Self {
            http1,
            http2,
            trailers: TrailerLimit::new(limits),
            requests: limits.requests_per_connection,
            control_frames: limits.http2_control_frames,
            first_byte: timeouts.first_byte,
            head: timeouts.head,
            idle: timeouts.idle,
            age: timeouts.connection_age,
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
    Http2(#[from] hyper::Error),
}

impl ServeError {
    /// The rule that a request broke which no handler has seen; it was answered.
    pub const fn refused(&self) -> Option<Fault> {
        match self {
            Self::Http1(Broken::Fault(fault)) => Some(*fault),
            Self::Http1(_) | Self::Http2(_) => None,
        }
    }
}

/// RFC 9113 §6.9.1.
const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Serves one connection to its end, or until it has become another protocol (then the upgrade has the stream).
///
/// The handler's future is dropped when the connection breaks, the client resets the stream or, on HTTP/1, ends its side: a request
/// nobody waits for is not carried on. Dropping this future closes the connection at once. When `drain` fires, requests in flight are
/// still answered. `upgrade::take` finds the way out of HTTP in the request's extensions.
///
/// # Errors
/// When the connection breaks or the client breaks HTTP. Running into a limit of time is a regular end.
pub async fn serve<S, H, F>(
    io: S,
    version: Version,
    settings: &ServeSettings,
    drain: DrainWatch,
    handler: H,
) -> Result<(), ServeError>
where
    S: Stream + 'static,
    H: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    match version {
        Version::Http1 => Ok(server::serve(io, &settings.http1, drain, handler).await?),
        // Boxed: what hyper needs for HTTP/2 would be part of every connection's future.
        Version::Http2 => Ok(Box::pin(serve_http2(io, settings, drain, handler)).await?),
    }
}

async fn serve_http2<S, H, F>(
    io: S,
    settings: &ServeSettings,
    drain: DrainWatch,
    handler: H,
) -> Result<(), hyper::Error>
where
    S: Stream + 'static,
    H: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let activity = Arc::new(Activity::new(settings.requests));
    let frames = FrameBudget::new(settings.control_frames);
    let io = TokioIo::new(Watched::new(io, Arrivals { activity: Arc::clone(&activity), frames }));
    let service = {
        let activity = Arc::clone(&activity);
        let trailers = settings.trailers;
        let handler = Arc::new(handler);
        service_fn(move |request: Request<Incoming>| {
            let in_flight = activity.begin();
            let request = request.map(|body| Body::incoming(body).with_trailer_limit(trailers));
            let handler = Arc::clone(&handler);
            async move {
                // Called in here: a future that is handed in would be stored twice.
                let response = handler(request).await;
                Ok::<_, Infallible>(response.map(|body| body.observed(in_flight)))
            }
        })
    };
    let connection = pin!(settings.http2.serve_connection(io, service));
    match drive(connection, &activity, settings, drain).await {
        End::Over(result) => result,
        End::HeadTimeout => Ok(()),
    }
}

enum End {
    Over(Result<(), hyper::Error>),
    HeadTimeout,
}

/// Polls the connection and looks after its times. Timers move as seldom as possible: a busy connection never touches one.
async fn drive<C: Connection>(
    mut connection: Pin<&mut C>,
    activity: &Activity,
    settings: &ServeSettings,
    mut drain: DrainWatch,
) -> End {
    let oldest = activity.start + settings.age.mul_f64(0.9 + host::random_unit() / 5.0);
    let mut closing = false;
    let mut drained = pin!(drain.fired());
    let mut timer_at = activity.next(settings, oldest, closing).at;
    let mut timer = pin!(host::sleep(timer_at.saturating_duration_since(activity.start)));
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                // Clients may hang up on our goodbye before we have closed ourselves.
                let parted = closing && activity.in_flight.load(Relaxed) == 0;
                return Poll::Ready(End::Over(if parted { Ok(()) } else { result }));
            }
            if !closing
                && (activity.requests.load(Relaxed) >= activity.most_requests || drained.as_mut().poll(cx).is_ready())
            {
                closing = true;
                connection.as_mut().graceful_shutdown();
                continue;
            }
            let next = activity.next(settings, oldest, closing);
            if next.at < timer_at {
                timer_at = next.at;
                timer.set(host::sleep(timer_at.saturating_duration_since(host::now())));
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = host::now();
            if next.at <= now {
                match next.then {
                    Then::Close => return Poll::Ready(End::HeadTimeout),
                    Then::CloseGracefully => {
                        closing = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    Then::Nothing => (),
                }
            }
            // HTTP/2 streams end in tasks of their own, which do not wake us: look again after the idle time at the latest.
            let next = activity.next(settings, oldest, closing).at;
            timer_at = next.min(now + settings.idle).max(now + SHORTEST_LOOK);
            timer.set(host::sleep(timer_at.saturating_duration_since(now)));
        }
    })
    .await
}

/// Between two looks at a connection, whatever the settings.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);

/// What is due next.
struct Due {
    at: Instant,
    then: Then,
}

enum Then {
    Close,
    CloseGracefully,
    Nothing,
}

/// What a connection is doing; written where it happens, read by [`drive`].
struct Activity {
    start: Instant,
    in_flight: AtomicUsize,
    requests: AtomicU64,
    /// After these the connection ends; differs by a tenth between connections, so that they do not all come back at once.
    most_requests: u64,
    /// Bytes read; only as far as it matters.
    read: AtomicU64,
    /// Microseconds after `start`, plus one, when the first byte of the preface came; 0: not yet, or it is whole.
    head_since: AtomicU64,
    /// Microseconds after `start` when the last request ended.
    idle_since: AtomicU64,
}

/// RFC 9113 §3.4.
const HTTP2_PREFACE_BYTES: u64 = 24;

impl Activity {
    fn new(requests: u64) -> Self {
        Self {
            most_requests: requests.saturating_sub(host::random_below(requests / 10 + 1)).max(1),
            start: host::now(),
            in_flight: 0.into(),
            requests: 0.into(),
            read: 0.into(),
            head_since: 0.into(),
            idle_since: 0.into(),
        }
    }

    fn elapsed_micros(&self) -> u64 {
        u64::try_from(host::now().saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }

    /// Some bytes came. Only the preface matters: what follows are frames of all kinds, and streams have no time for their head.
    fn read(&self, bytes: usize) {
        let before = self.read.load(Relaxed);
        if before < HTTP2_PREFACE_BYTES {
            let after = before + bytes as u64;
            let whole = after >= HTTP2_PREFACE_BYTES;
            if whole {
                self.head_since.store(0, Relaxed);
                self.idle_since.store(self.elapsed_micros(), Relaxed);
            } else if before == 0 {
                self.head_since.store(self.elapsed_micros() + 1, Relaxed);
            }
            self.read.store(after, Relaxed);
        }
    }

    /// A stream has opened.
    fn begin(self: &Arc<Self>) -> InFlight {
        self.head_since.store(0, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        InFlight { activity: Arc::clone(self) }
    }

    fn next(&self, settings: &ServeSettings, oldest: Instant, closing: bool) -> Due {
        let after = |micros: u64, limit: Duration| self.start + Duration::from_micros(micros) + limit;
        let head_since = self.head_since.load(Relaxed);
        if self.read.load(Relaxed) == 0 {
            return Due { at: self.start + settings.first_byte, then: Then::Close };
        }
        if head_since > 0 {
            return Due { at: after(head_since - 1, settings.head), then: Then::Close };
        }
        let idle = Due { at: after(self.idle_since.load(Relaxed), settings.idle), then: Then::CloseGracefully };
        match (closing, self.in_flight.load(Relaxed)) {
            (true, _) => Due { at: self.start + FAR, then: Then::Nothing },
            (false, 0) if idle.at <= oldest => idle,
            (false, _) => Due { at: oldest, then: Then::CloseGracefully },
        }
    }
}

/// Further away than any connection lives.
const FAR: Duration = Duration::from_secs(86_400 * 365);

/// One request, from its head to the end of its response.
struct InFlight {
    activity: Arc<Activity>,
}

impl Observer for InFlight {}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.activity.idle_since.store(self.activity.elapsed_micros(), Relaxed);
        self.activity.in_flight.fetch_sub(1, Relaxed);
    }
}

/// hyper's connection, whatever its service.
trait Connection: Future<Output = Result<(), hyper::Error>> {
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, V> Connection for http2::Connection<I, V, Tasks>
where
    V: HttpService<Incoming, ResBody = Body>,
    V::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    V::Future: Send + 'static,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        Self::graceful_shutdown(self);
    }
}

/// Runs HTTP/2 streams as tasks of this worker.
#[derive(Clone, Copy, Debug)]
struct Tasks;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        host::spawn(future);
    }
}

/// Notes reads and counts frames.
struct Arrivals {
    activity: Arc<Activity>,
    frames: FrameBudget,
}

impl Look for Arrivals {
    fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.activity.read(bytes.len());
        let elapsed = || Duration::from_micros(self.activity.elapsed_micros());
        self.frames.received(bytes, elapsed).map_err(io::Error::other)
    }

    fn sent(&mut self, bytes: usize) {
        self.frames.sent(bytes);
    }
}

#[cfg(test)]
mod tests;
