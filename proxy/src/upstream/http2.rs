//! HTTP/2 to an endpoint: many requests at once on one connection of our own codec.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::Response;
use parking_lot::Mutex;

use super::dial::{Hold, Upstream};
use crate::{
    failure::{Failure, Reason, Sent},
    host::{self, Instant},
    http::{
        Body, BodyError,
        http2::{
            Abuse, Ended, Lost, Rules,
            client::{self, Connection, Outgoing, Pings, Unanswered},
            fault::Code,
        },
        interim::Interim,
    },
    settings::{Limits, Timeouts},
};

/// One connection, shared by its streams.
#[derive(Debug)]
pub struct Http2 {
    connection: Connection,
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

/// Starts HTTP/2 on a fresh connection. That it breaks is told to its first request.
pub fn open(
    io: Upstream,
    limits: &Limits,
    timeouts: &Timeouts,
    max_age: Duration,
    max_streams: u32,
    hold: Hold,
    abused: impl Fn(Abuse) + Send + Sync + 'static,
) -> Arc<Http2> {
    let pings = Pings { interval: timeouts.ping_interval, timeout: timeouts.ping_timeout };
    let born = host::now();
    Arc::new(Http2 {
        connection: client::open(io, Rules::new(limits, 0), pings, abused),
        active: AtomicU32::new(0),
        born,
        max_age,
        max_streams,
        started: AtomicU32::new(0),
        quiet: Mutex::new((0, born)),
        _hold: hold,
    })
}

impl Http2 {
    /// Whether new streams may start here; an old connection finishes what it has and is then dropped.
    pub fn is_open(&self, now: Instant) -> bool {
        self.connection.is_open() && now.saturating_duration_since(self.born) < self.max_age
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
        // Only the owning worker starts streams, so a look and an add do not race; a stream too many would only be refused.
        if self.active() >= self.max_streams.min(self.connection.most_streams()) {
            return None;
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        self.started.fetch_add(1, Ordering::Relaxed);
        Some(Stream { connection: Arc::clone(self) })
    }
}

impl Stream {
    /// Whether the connection takes no new streams, so that another try needs another connection.
    pub fn is_retired(&self) -> bool {
        !self.connection.connection.is_open()
    }

    /// Sends one request and waits for the response head. Dropping the future resets the stream.
    ///
    /// # Errors
    /// `sent: Nothing` when it never left, or when the peer said that it did not look at it (RFC 9113 §8.7: REFUSED_STREAM, or a
    /// stream above the last one of GOAWAY).
    pub fn send(
        &self,
        request: &Outgoing<'_>,
        body: Body,
        interim: Option<Interim>,
    ) -> impl Future<Output = Result<Box<Response<Body>>, Failure>> + Send + use<> {
        // Serialised before the future exists, so that it does not hold the request.
        let answering = self.connection.connection.send(request, body, interim);
        let connection = Arc::clone(&self.connection);
        async move {
            let Some(answering) = answering else {
                let ended = connection.connection.ended().unwrap_or(Ended::Closed);
                return Err(Failure::new(Reason::UpstreamReset).sent(Sent::Nothing).because(ended));
            };
            answering.await.map_err(|Unanswered { lost, untouched, upload_failed }| {
                let (reason, sent) = match &lost {
                    _ if upload_failed.is_some() => (Reason::DownstreamBody, Sent::Maybe),
                    Lost::Reset(Code::REFUSED_STREAM) | Lost::NotSeen => (Reason::UpstreamRefusedStream, Sent::Nothing),
                    Lost::Offence(_) | Lost::Connection(Ended::Offence(_) | Ended::Hpack(_) | Ended::Flood { .. }) => {
                        (Reason::UpstreamProtocol, Sent::Maybe)
                    }
                    _ => (Reason::UpstreamReset, Sent::Maybe),
                };
                let failure = Failure::new(reason).sent(if untouched { Sent::Nothing } else { sent });
                if upload_failed == Some(true) { failure.because(BodyError::TooSlow) } else { failure.because(lost) }
            })
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::convert::Infallible;

    use http::{HeaderMap, Method, Request, uri::Authority};
    use http_body_util::BodyExt as _;
    use hyper::{body::Incoming, server::conn::http2 as server, service::service_fn};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;
    use crate::{
        http::http2::RequestLine,
        settings::TelemetrySettings,
        telemetry::{Direction, LabelSet, Telemetry},
    };

    #[tokio::test]
    async fn requests_that_meet_a_goodbye_provably_left_nothing_behind() {
        // Each connection ends once after its share of requests; what was on its way then would fail at the user, POSTs too.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&seen);
        tokio::spawn(async move {
            let (io, _) = listener.accept().await.unwrap();
            let service = service_fn(move |_: Request<Incoming>| {
                count.fetch_add(1, Ordering::Relaxed);
                async { Ok::<_, Infallible>(Response::new(Body::empty())) }
            });
            let connection = server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service);
            tokio::pin!(connection);
            // The first look serves what has come so far; then it says goodbye while requests are on their way.
            tokio::select! {
                biased;
                _ = &mut connection => return,
                () = tokio::task::yield_now() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
        let telemetry = Telemetry::new(&TelemetrySettings::default(), LabelSet::default(), 1);
        let hold = (None, telemetry.worker(0).upstream_opened(Direction::Outbound));
        let io = Upstream::Plain(TcpStream::connect(address).await.unwrap());
        let (limits, timeouts) = (Limits::default(), Timeouts::default());
        let connection = open(io, &limits, &timeouts, Duration::from_secs(60), 1000, hold, |_| {});
        let (mut answered, mut refused) = (0, 0);
        while refused == 0 {
            let streams: Vec<_> = (0..32).filter_map(|_| connection.stream()).collect();
            let sends: Vec<_> =
                streams.iter().map(|stream| tokio::spawn(send(stream, &Method::POST, Body::empty()))).collect();
            for send in sends {
                match send.await.unwrap() {
                    Ok(_) => answered += 1,
                    Err(failure) => {
                        refused += 1;
                        assert_eq!(failure.sent, Sent::Nothing, "{failure}");
                    }
                }
            }
        }
        assert!(!connection.is_open(host::now()), "new requests would still be sent there");
        assert_eq!(answered, seen.load(Ordering::Relaxed), "an answer was lost, or a refused request was processed");
    }

    fn send(
        stream: &Stream,
        method: &Method,
        body: Body,
    ) -> impl Future<Output = Result<Box<Response<Body>>, Failure>> + Send + use<> {
        let line = RequestLine { method, authority: &Authority::from_static("a.test"), path: "/" };
        stream.send(&Outgoing { line, headers: &HeaderMap::new(), own: &[] }, body, None)
    }

    async fn connected(address: std::net::SocketAddr, limits: &Limits) -> Arc<Http2> {
        let telemetry = Telemetry::new(&TelemetrySettings::default(), LabelSet::default(), 1);
        let hold = (None, telemetry.worker(0).upstream_opened(Direction::Outbound));
        let io = TcpStream::connect(address).await.unwrap();
        io.set_nodelay(true).unwrap();
        let io = Upstream::Plain(io);
        open(io, limits, &Timeouts::default(), Duration::from_secs(60), 1000, hold, |_| {})
    }

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream];
        frame.extend_from_slice(payload);
        frame
    }

    /// A server that answers the first request with `first` and then sends `flood` for as long as anybody reads it; how
    /// many frames of it were written.
    async fn hostile(listener: TcpListener, first: Vec<u8>, flood: Vec<u8>) -> usize {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        let settings = frame(4, 0, 0, &[]);
        io.write_all(&settings).await.unwrap();
        // The preface, and then a HEADERS frame somewhere: type 1 with END_STREAM and END_HEADERS on stream 1.
        while !seen.windows(6).any(|window| window == [1, 5, 0, 0, 0, 1]) {
            assert_ne!(io.read_buf(&mut seen).await.unwrap(), 0, "no request came");
        }
        io.write_all(&first).await.unwrap();
        let (mut reader, mut writer) = io.into_split();
        // Its answers are read, so that only the budget can end this.
        tokio::spawn(async move { while matches!(reader.read(&mut [0; 4096]).await, Ok(count) if count > 0) {} });
        let mut written = 0;
        while writer.write_all(&flood).await.is_ok() {
            written += 1;
            tokio::task::yield_now().await;
        }
        written
    }

    #[tokio::test]
    async fn servers_that_only_keep_us_busy_are_left() {
        // One hostile or broken endpoint would take a worker of every sidecar that calls it.
        let headers = frame(1, 4, 1, &[0x88]);
        let floods = [
            ("PING", Vec::new(), frame(6, 0, 0, &[7; 8])),
            ("SETTINGS", Vec::new(), frame(4, 0, 0, &[])),
            ("WINDOW_UPDATE", Vec::new(), frame(8, 0, 1, &[0, 0, 0, 1])),
            ("unknown", Vec::new(), frame(0xf0, 0, 0, &[1, 2, 3])),
            ("empty DATA", headers.clone(), frame(0, 0, 1, &[])),
            ("PING in an answer", headers, frame(6, 0, 0, &[7; 8])),
        ];
        let limits = Limits { http2_control_frames: 50, ..Limits::default() };
        for (name, first, flood) in floods {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let is_answered = !first.is_empty();
            let server = tokio::spawn(hostile(listener, first, flood));
            let connection = connected(address, &limits).await;
            let stream = connection.stream().unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(20), async {
                match send(&stream, &Method::GET, Body::empty()).await {
                    Ok(response) => {
                        assert!(is_answered, "{name}");
                        response.into_body().collect().await.map(drop).unwrap_err().to_string()
                    }
                    Err(failure) => {
                        assert_eq!(failure.reason, Reason::UpstreamProtocol, "{name}: {}", failure);
                        failure.to_string()
                    }
                }
            });
            assert!(ended.await.is_ok(), "{name}: still listening to it");
            let written = tokio::time::timeout(Duration::from_secs(20), server).await.unwrap().unwrap();
            assert!(written >= 50, "{name}: {written} frames are within the limit");
            assert!(!connection.is_open(host::now()), "{name}: the next request would go there too");
        }
    }

    #[tokio::test]
    async fn a_long_answer_and_many_short_ones_are_no_flood() {
        // The budget must never end what is ordinary: uploads cause a window update for every few KiB.
        const BYTES: usize = 4 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (io, _) = listener.accept().await.unwrap();
            io.set_nodelay(true).unwrap();
            let service = service_fn(|request: Request<Incoming>| async {
                let body = request.into_body().collect().await?.to_bytes();
                Ok::<_, hyper::Error>(Response::new(http_body_util::Full::new(body)))
            });
            let _ = server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await;
        });
        let limits = Limits { http2_control_frames: 20, ..Limits::default() };
        let connection = connected(address, &limits).await;
        for size in std::iter::repeat_n(1, 200).chain([BYTES]) {
            let stream = connection.stream().unwrap();
            let body = Body::full(vec![b'x'; size]);
            let response = send(&stream, &Method::POST, body).await.unwrap_or_else(|failure| panic!("{}", failure));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), size);
        }
    }
}
