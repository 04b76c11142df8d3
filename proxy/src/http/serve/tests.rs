//! Connections over in-memory pipes, with hyper's client or raw bytes at the other end, in virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    task::JoinHandle,
};

use super::*;
use crate::{
    drain::{DrainTrigger, drain},
    host::{self, Instant},
    http::{
        body::tests::{data, fed},
        reply,
        seen::Seen,
        upgrade,
    },
    relay::{Counts, RelayLimits},
};

const SECOND: Duration = Duration::from_secs(1);

struct Server {
    task: JoinHandle<Result<(), ServeError>>,
    drain: DrainTrigger,
    start: Instant,
}

impl Server {
    /// Waits for the end of the connection; how long it lasted.
    async fn lasted(self) -> Duration {
        self.task.await.unwrap().unwrap();
        host::now() - self.start
    }
}

fn served<H, F>(version: Version, limits: Limits, timeouts: Timeouts, handler: H) -> (DuplexStream, Server)
where
    H: Fn(Request<Body>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (near, far) = duplex(64 * 1024);
    let (trigger, watch) = drain();
    let settings = ServeSettings::from_parts(&limits, &timeouts, false);
    let task = tokio::spawn(async move {
        serve(far, version, &settings, watch, move |request, _| handler(request), |_| {}, |_| {}).await
    });
    (near, Server { task, drain: trigger, start: host::now() })
}

fn plain<H, F>(version: Version, handler: H) -> (DuplexStream, Server)
where
    H: Fn(Request<Body>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    served(version, Limits::default(), Timeouts::default(), handler)
}

/// Answers with the request's own body, trailers included.
async fn echo(request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut response = Response::new(body);
    response.headers_mut().insert("x-path", parts.uri.path().parse().unwrap());
    response.headers_mut().insert("x-fields", parts.headers.len().into());
    response
}

async fn http1(io: DuplexStream) -> conn::http1::SendRequest<Body> {
    let (sender, connection) = conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

async fn http2(io: DuplexStream) -> conn::http2::SendRequest<Body> {
    let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<Body> {
    Request::builder().uri(path).header("host", "a.test").body(Body::empty()).unwrap()
}

/// Reads until the server closes.
async fn rest(io: &mut DuplexStream) -> String {
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(start_paused = true)]
async fn both_versions_carry_bodies_and_trailers() {
    // gRPC would lose its status, streams would wait for their end.
    let with_trailers = async || {
        let (feed, body) = fed();
        feed.send(data("hello ")).await.unwrap();
        feed.send(data("world")).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        feed.send(Ok(Frame::trailers(trailers))).await.unwrap();
        body
    };
    let check = async |response: Response<Incoming>| {
        assert_eq!((response.status(), &response.headers()["x-path"]), (StatusCode::OK, &"/x".parse().unwrap()));
        let body = response.into_body().collect().await.unwrap();
        let trailers = body.trailers().is_some_and(|trailers| trailers["grpc-status"] == "0");
        assert_eq!(body.to_bytes(), "hello world");
        trailers
    };

    let (io, _server) = plain(Version::Http1, echo);
    let mut sender = http1(io).await;
    for _ in 0..3 {
        let request = Request::post("/x").header("host", "a").header("te", "trailers").header("trailer", "grpc-status");
        let response = sender.send_request(request.body(with_trailers().await).unwrap()).await.unwrap();
        assert!(check(response).await);
        sender.ready().await.unwrap();
    }

    let (io, _server) = plain(Version::Http2, echo);
    let mut sender = http2(io).await;
    for _ in 0..3 {
        let request = Request::post("http://a/x").body(with_trailers().await).unwrap();
        assert!(check(sender.send_request(request).await.unwrap()).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed() {
    // Silent connections would pile up until the limit is reached.
    for version in [Version::Http1, Version::Http2] {
        let (mut io, server) = plain(version, echo);
        assert_eq!(server.lasted().await, Timeouts::default().first_byte, "{version:?}");
        let said = rest(&mut io).await;
        assert!(!said.starts_with("HTTP/1.1"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickling_head_is_ended_in_time_and_told_so() {
    // Slowloris: a byte now and then would keep a connection for ever.
    let (mut io, server) = plain(Version::Http1, echo);
    host::sleep(SECOND * 5).await;
    for byte in b"GET / HTTP/1.1\r\nhost: a\r\nx: yyyyyyyyyyyyyyyyyyyyyyyy" {
        if io.write_u8(*byte).await.is_err() {
            break;
        }
        host::sleep(SECOND).await;
    }
    // The client notices with its next byte.
    assert_eq!(server.lasted().await, SECOND * 6 + Timeouts::default().head);
    assert_eq!(rest(&mut io).await.as_bytes(), reply::HEAD_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn the_head_timer_fires_on_time() {
    // The same, seen from the clock.
    let (mut io, server) = plain(Version::Http1, echo);
    host::sleep(SECOND * 5).await;
    io.write_all(b"GET / HT").await.unwrap();
    assert_eq!(server.lasted().await, SECOND * 5 + Timeouts::default().head);
    assert_eq!(rest(&mut io).await.as_bytes(), reply::HEAD_TIMEOUT);

    // In a later head there is no 408: an answer might still be on its way.
    let (mut io, server) = plain(Version::Http1, echo);
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    host::sleep(SECOND * 100).await;
    io.write_all(b"GET / HT").await.unwrap();
    assert_eq!(server.lasted().await, SECOND * 100 + Timeouts::default().head);
    let said = rest(&mut io).await;
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && !said.contains("408"), "{said}");

    // Half an HTTP/2 preface.
    let (mut io, server) = plain(Version::Http2, echo);
    io.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    assert_eq!(server.lasted().await, Timeouts::default().head);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_end_gracefully_and_busy_ones_stay() {
    // Idle connections would hold memory for ever, or slow answers be cut.
    let idle = Timeouts::default().idle;
    let slow = move |_| async move {
        host::sleep(idle * 2).await;
        Response::new(Body::full("late"))
    };
    let (io, server) = plain(Version::Http1, slow);
    let mut sender = http1(io).await;
    let response = sender.send_request(get("/")).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
    assert_eq!(server.lasted().await, idle * 3);
    assert!(sender.ready().await.is_err());

    let (io, server) = plain(Version::Http2, slow);
    let mut sender = http2(io).await;
    let response = sender.send_request(get("http://a/")).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
    let lasted = server.lasted().await;
    assert!(lasted >= idle * 3 && lasted <= idle * 4, "{lasted:?}");
    host::sleep(SECOND).await;
    assert!(sender.is_closed());
}

#[tokio::test(start_paused = true)]
async fn draining_answers_what_is_in_flight_and_takes_no_more() {
    // Every deployment would fail requests.
    for version in [Version::Http1, Version::Http2] {
        let (started, mut starts) = mpsc::channel(1);
        let (io, server) = plain(version, move |_| {
            let started = started.clone();
            async move {
                started.send(()).await.unwrap();
                host::sleep(SECOND * 20).await;
                Response::new(Body::full("done"))
            }
        });
        let answer = tokio::spawn(async move {
            match version {
                Version::Http1 => {
                    let mut sender = http1(io).await;
                    let response = sender.send_request(get("/")).await.unwrap();
                    assert_eq!(response.headers()["connection"], "close");
                    response.into_body().collect().await.unwrap().to_bytes()
                }
                Version::Http2 => {
                    let mut sender = http2(io).await;
                    let response = sender.send_request(get("http://a/")).await.unwrap();
                    response.into_body().collect().await.unwrap().to_bytes()
                }
            }
        });
        starts.recv().await.unwrap();
        server.drain.fire();
        assert_eq!(answer.await.unwrap(), "done");
        assert_eq!(server.lasted().await, SECOND * 20, "{version:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn draining_ends_idle_connections_at_once() {
    // A shutdown would wait for the idle timeout of every connection.
    let (io, server) = plain(Version::Http1, echo);
    let mut sender = http1(io).await;
    sender.send_request(get("/")).await.unwrap().into_body().collect().await.unwrap();
    server.drain.fire();
    assert_eq!(server.lasted().await, Duration::ZERO);

    let (io, server) = plain(Version::Http2, echo);
    let mut sender = http2(io).await;
    sender.send_request(get("http://a/")).await.unwrap().into_body().collect().await.unwrap();
    server.drain.fire();
    assert!(server.lasted().await <= SECOND);
}

#[tokio::test(start_paused = true)]
async fn requests_and_age_are_bounded() {
    // Long-lived connections would never spread over new endpoints, and keep what they have grown to.
    let limits = Limits { requests_per_connection: 3, ..Limits::default() };
    let (io, server) = served(Version::Http1, limits, Timeouts::default(), echo);
    let mut sender = http1(io).await;
    for last in [false, false, true] {
        let response = sender.send_request(get("/")).await.unwrap();
        assert_eq!(response.headers().contains_key("connection"), last);
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(server.lasted().await, Duration::ZERO);

    let timeouts = Timeouts { connection_age: SECOND * 100, ..Timeouts::default() };
    let (io, server) = served(Version::Http2, Limits::default(), timeouts, echo);
    let mut sender = http2(io).await;
    tokio::spawn(async move {
        while sender.ready().await.is_ok() {
            let _ = sender.send_request(get("http://a/")).await;
            host::sleep(SECOND).await;
        }
    });
    let lasted = server.lasted().await;
    assert!(lasted >= SECOND * 90 && lasted <= SECOND * 111, "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn heads_past_the_limits_are_refused() {
    // One request could take all the memory.
    let limits = || Limits { http1_head_bytes: 4096, http2_header_list_bytes: 4096, ..Limits::default() };
    for head in [
        format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(5000)),
        format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(100)),
    ] {
        let (mut io, server) = served(Version::Http1, limits(), Timeouts::default(), echo);
        io.write_all(head.as_bytes()).await.unwrap();
        let said = rest(&mut io).await;
        assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
        assert!(server.task.await.unwrap().is_err());
    }
    let (io, _server) = served(Version::Http2, limits(), Timeouts::default(), echo);
    let mut sender = http2(io).await;
    let mut large = get("http://a/");
    large.headers_mut().insert("x", "y".repeat(5000).parse().unwrap());
    // Either side may be the one that refuses: the client knows our limit.
    assert!(sender.send_request(large).await.is_ok_and(|response| response.status() == 431) || !sender.is_closed());
    assert_eq!(sender.send_request(get("http://a/")).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_waiting_cancels_the_request() {
    // Work nobody waits for would go on, with its retries, and hold its place in the limits.
    let (ended, mut ends) = mpsc::channel::<()>(1);
    let (started, mut starts) = mpsc::channel(1);
    let (mut io, server) = plain(Version::Http1, move |_| {
        let (ended, started) = (ended.clone(), started.clone());
        async move {
            started.send(()).await.unwrap();
            let _held_until_dropped = ended;
            std::future::pending().await
        }
    });
    io.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    starts.recv().await.unwrap();
    drop(io);
    // The handler itself holds one sender; the channel ends when both it and the request are gone.
    assert!(ends.recv().await.is_none());
    assert!(server.task.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_resets_its_stream_cancels_the_request() {
    // Work nobody waits for would go on, and hold its place in the limits.
    struct Told(mpsc::Sender<()>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.try_send(());
        }
    }
    let (ended, mut ends) = mpsc::channel(1);
    let (started, mut starts) = mpsc::channel(1);
    let (io, _server) = plain(Version::Http2, move |_| {
        let told = Told(ended.clone());
        let started = started.clone();
        async move {
            let _told = told;
            started.send(()).await.unwrap();
            std::future::pending().await
        }
    });
    let client = tokio::spawn(async move { drop(http2(io).await.send_request(get("http://a/")).await) });
    starts.recv().await.unwrap();
    client.abort();
    tokio::time::timeout(SECOND, ends.recv()).await.unwrap().unwrap();
}

const RELAY: RelayLimits =
    RelayLimits { buffer_bytes: 64 * 1024, idle: Duration::from_secs(300), half_close: Duration::from_secs(300) };

/// Agrees to every upgrade and joins it to an echoing stream.
async fn tunnel(request: Request<Body>) -> Response<Body> {
    let (mut request, _) = request.into_parts();
    let wanted = upgrade::wants_upgrade(&request, Seen::of(&request.headers)).unwrap();
    let downstream = upgrade::take(&mut request);
    tokio::spawn(async move {
        let (near, far) = duplex(1024);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(far);
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let counts = Counts::default();
        upgrade::join(downstream, near, RELAY, &counts).await.unwrap();
        assert_eq!((counts.a_to_b.into_inner(), counts.b_to_a.into_inner()), (5, 5));
    });
    let mut response = Response::new(Body::empty());
    if let upgrade::Upgrade::Http1 { protocol } = wanted {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", "upgrade".parse().unwrap());
        response.headers_mut().insert("upgrade", protocol.parse().unwrap());
    }
    response
}

async fn say_hello(response: Response<Incoming>) {
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    io.shutdown().await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "hello");
}

#[tokio::test(start_paused = true)]
async fn upgrades_and_tunnels_become_streams() {
    // WebSockets and HTTPS through the forward proxy would not work.
    let (io, server) = plain(Version::Http1, tunnel);
    let mut request = get("/chat");
    request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    let response = http1(io).await.send_request(request).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["upgrade"]),
        (StatusCode::SWITCHING_PROTOCOLS, &"websocket".parse().unwrap())
    );
    say_hello(response).await;
    server.lasted().await;

    let (io, server) = plain(Version::Http1, tunnel);
    let request = Request::builder().method(Method::CONNECT).uri("a.test:443").header("host", "a.test:443");
    let response = http1(io).await.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    say_hello(response).await;
    server.lasted().await;

    let (io, _server) = plain(Version::Http2, tunnel);
    let mut sender = http2(io).await;
    let request = Request::builder().method(Method::CONNECT).uri("a.test:443").body(Body::empty()).unwrap();
    say_hello(sender.send_request(request).await.unwrap()).await;
    let mut request = Request::builder().method(Method::CONNECT).uri("http://a.test/chat").body(Body::empty()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    say_hello(sender.send_request(request).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn large_bodies_flow_both_ways() {
    // Uploads and downloads beyond one window would stand still.
    let bytes = Bytes::from(vec![7; 3 << 20]);
    let (io, _server) = plain(Version::Http2, echo);
    let mut sender = http2(io).await;
    let request = Request::post("http://a/x").body(Body::full(bytes.clone())).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert!(response.into_body().collect().await.unwrap().to_bytes() == bytes);
    let (io, _server) = plain(Version::Http1, echo);
    let mut sender = http1(io).await;
    let request = Request::post("/x").header("host", "a").body(Body::full(bytes.clone())).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert!(response.into_body().collect().await.unwrap().to_bytes() == bytes);
}
