//! One service of the shop: front end, reviews or ratings, as a small HTTP server of its own process.
//!
//! Answers JSON about itself and about the service it calls, so that a visitor can see which versions took part and
//! whether a fallback answered. Speaks HTTP/1.1 and HTTP/2 without TLS; knows nothing of the mesh. With
//! `--control-stdin` it takes orders on standard input (`fail 10`: answer 503 to 10 % of the requests) and leaves when
//! that is closed, which ties its life to that of the demo.

use std::{
    io::BufRead,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{Notify, Semaphore, watch},
};

use super::http_client::{Answer, Client, Target};

/// Connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// Idle connections kept to the service that is called.
const MAX_IDLE_CALLS: usize = 256;
/// Longest wait for the service that is called.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Longest wait for requests in flight when told to stop.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// What a service was started with.
#[derive(Args, Clone, Debug)]
pub struct ShopArgs {
    /// Which service of the shop.
    #[arg(long)]
    pub name: Role,
    #[arg(long, default_value = "v1")]
    pub version: String,
    /// Where to listen.
    #[arg(long)]
    pub listen: SocketAddr,
    /// The service to call for each request, for example http://reviews:9080 (path as given).
    #[arg(long, value_parser = Target::parse)]
    pub call: Option<Target>,
    /// Percent of the requests that are answered with 503.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub fail_percent: u32,
    /// Take orders on standard input; leave when it is closed.
    #[arg(long)]
    pub control_stdin: bool,
}

/// The services of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Frontend,
    Reviews,
    Ratings,
}

impl Role {
    /// Name as Kubernetes objects and command lines write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Reviews => "reviews",
            Self::Ratings => "ratings",
        }
    }
}

struct Shop {
    role: Role,
    version: String,
    call: Option<Client>,
    fail_percent: AtomicU32,
}

/// Serves until SIGTERM or SIGINT, or until standard input closes when that is watched.
pub fn run(args: ShopArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("shop-service cannot start its runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop-service: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: ShopArgs) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on {} (hint: is the port taken?): {error}", args.listen))?;
    let shop = Arc::new(Shop::new(args.name, args.version, args.call, args.fail_percent));
    let orphaned = Arc::new(Notify::new());
    if args.control_stdin {
        let (shop, orphaned) = (Arc::clone(&shop), Arc::clone(&orphaned));
        std::thread::spawn(move || obey(&shop, &orphaned));
    }
    println!("{} {} listens on {}", shop.role.name(), shop.version, listener.local_addr()?);
    let stop = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
            () = orphaned.notified() => {}
        }
    };
    serve_until(listener, shop, stop).await;
    Ok(())
}

/// Serves until `stop`, then lets requests under way finish, for a while.
async fn serve_until(listener: TcpListener, shop: Arc<Shop>, stop: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stopped, stopping) = watch::channel(false);
    tokio::pin!(stop);
    loop {
        let accept = async {
            // Never closed, so there is always a slot to wait for.
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((listener.accept().await, slot))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            () = &mut stop => None,
        };
        match accepted {
            None => break,
            // Out of descriptors or a connection that was gone at once: neither is a reason to leave.
            Some((Err(_), _)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Some((Ok((socket, _)), slot)) => {
                let (shop, stopping) = (Arc::clone(&shop), stopping.clone());
                tokio::spawn(async move {
                    serve_connection(shop, socket, stopping).await;
                    drop(slot);
                });
            }
        }
    }
    drop(listener);
    let _ = stopped.send(true);
    let _ = tokio::time::timeout(STOP_GRACE, slots.acquire_many(MAX_CONNECTIONS as u32)).await;
}

/// Follows orders line by line until the other end closes.
fn obey(shop: &Shop, orphaned: &Notify) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match line.split_once(' ').map(|(order, value)| (order, value.trim().parse::<u32>())) {
            Some(("fail", Ok(percent))) if percent <= 100 => {
                shop.fail_percent.store(percent, Ordering::Relaxed);
                println!("fails {percent} % of the requests from now on");
            }
            _ => eprintln!("unknown order \"{line}\" (known: fail PERCENT)"),
        }
    }
    orphaned.notify_one();
}

async fn serve_connection(shop: Arc<Shop>, socket: TcpStream, mut stopping: watch::Receiver<bool>) {
    let _ = socket.set_nodelay(true);
    let speaks_http2 = starts_with_http2(&socket).await;
    let service = service_fn(move |request: Request<Incoming>| {
        let shop = Arc::clone(&shop);
        async move { Ok::<_, std::convert::Infallible>(shop.answer(request.uri().path()).await) }
    });
    let io = TokioIo::new(socket);
    if speaks_http2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .serve_connection(io, service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = stopping.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    } else {
        let connection =
            hyper::server::conn::http1::Builder::new().timer(TokioTimer::new()).serve_connection(io, service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = stopping.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}

/// Looks at the first bytes without taking them. HTTP/1.1 when they do not come within a second or so.
async fn starts_with_http2(socket: &TcpStream) -> bool {
    // "PRI" is enough: no registered HTTP/1 method begins so.
    const PREFACE: &[u8] = b"PRI";
    let mut seen = [0_u8; PREFACE.len()];
    for _ in 0..200 {
        let Ok(length) = socket.peek(&mut seen).await else { return false };
        match seen.get(..length) {
            Some([]) | None => return false,
            Some(bytes) if bytes == PREFACE => return true,
            Some(bytes) if PREFACE.starts_with(bytes) => tokio::time::sleep(Duration::from_millis(5)).await,
            Some(_) => return false,
        }
    }
    false
}

impl Shop {
    fn new(role: Role, version: String, call: Option<Target>, fail_percent: u32) -> Self {
        let call = call.map(|target| Client::new(target, MAX_IDLE_CALLS, CALL_TIMEOUT));
        Self { role, version, call, fail_percent: AtomicU32::new(fail_percent) }
    }

    async fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        if path == "/healthz" {
            return reply(StatusCode::OK, &json!({"ok": true}));
        }
        let percent = self.fail_percent.load(Ordering::Relaxed);
        if percent > 0 && fastrand::u32(0..100) < percent {
            return reply(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"error": "unwell, try again", "service": self.role.name()}),
            );
        }
        let called = match &self.call {
            None => None,
            Some(client) => match client.get("/").await {
                Ok(Answer { status, body }) if status.is_success() => match serde_json::from_slice::<Value>(&body) {
                    Ok(value) => Some(value),
                    Err(_) => return self.complain("answered something that is not JSON", client),
                },
                Ok(Answer { status, .. }) => return self.complain(&format!("answered {}", status.as_u16()), client),
                Err(error) => return self.complain(&format!("did not answer: {error}"), client),
            },
        };
        reply(StatusCode::OK, &self.body(called))
    }

    fn body(&self, called: Option<Value>) -> Value {
        let mut body = json!({"service": self.role.name(), "version": self.version});
        match (self.role, called) {
            (Role::Ratings, _) => body["stars"] = json!([5, 4]),
            (Role::Reviews, Some(ratings)) => body["ratings"] = ratings,
            (Role::Frontend, Some(reviews)) => body["reviews"] = reviews,
            (_, None) => {}
        }
        body
    }

    fn complain(&self, what: &str, client: &Client) -> Response<Full<Bytes>> {
        let error = format!("{} {what}", client.target());
        reply(StatusCode::BAD_GATEWAY, &json!({"error": error, "service": self.role.name()}))
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::demo::traffic::{Recorder, Tally, Traffic};

    fn shop(role: Role, fail_percent: u32) -> Shop {
        Shop::new(role, "v1".to_owned(), None, fail_percent)
    }

    /// Serves on a free port until the test is over.
    async fn start(role: Role, version: &str, call: Option<SocketAddr>) -> (SocketAddr, Arc<Shop>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shop = Arc::new(Shop::new(role, version.to_owned(), call.map(Target::from), 0));
        tokio::spawn(serve_until(listener, Arc::clone(&shop), std::future::pending()));
        (address, shop)
    }

    #[tokio::test]
    async fn the_shop_answers_as_traffic_expects() {
        // Front end, reviews and ratings must agree with the reader of their answers, or every request counts as failed.
        let (ratings, flaky) = start(Role::Ratings, "v1", None).await;
        let (reviews, _) = start(Role::Reviews, "v2", Some(ratings)).await;
        let (front, _) = start(Role::Frontend, "v1", Some(reviews)).await;
        let recorder = Arc::new(Recorder::default());
        let traffic = Traffic::start(&front.into(), 2000, &recorder);
        let until = async |wanted: fn(&Tally) -> bool| {
            while !wanted(&recorder.total()) {
                tokio::task::yield_now().await;
            }
        };
        until(|tally| tally.requests >= 100).await;
        let tally = recorder.total();
        assert_eq!((tally.ok, tally.by_v2, tally.failed), (tally.requests, tally.requests, 0));
        flaky.fail_percent.store(100, Ordering::Relaxed);
        until(|tally| tally.failed >= 10).await;
        traffic.stop().await;
        let total = recorder.total();
        assert_eq!(total.requests, total.ok + total.failed);
        assert!(recorder.failure_notes()[0].contains("answered 502"), "{:?}", recorder.failure_notes());
    }

    #[tokio::test]
    async fn a_service_fails_as_often_as_told() {
        // The retry act would prove nothing if a flaky service never failed.
        assert_eq!(shop(Role::Ratings, 0).answer("/").await.status(), StatusCode::OK);
        assert_eq!(shop(Role::Ratings, 100).answer("/").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(shop(Role::Ratings, 100).answer("/healthz").await.status(), StatusCode::OK);
    }

    #[test]
    fn an_answer_carries_what_the_called_service_said() {
        // The demo reads the version and the fallback out of the front end's answer.
        let ratings = shop(Role::Ratings, 0).body(None);
        let reviews = shop(Role::Reviews, 0).body(Some(ratings));
        let page = shop(Role::Frontend, 0).body(Some(reviews));
        assert_eq!(page["reviews"]["version"], "v1");
        assert_eq!(page["reviews"]["ratings"]["service"], "ratings");
    }

    #[tokio::test]
    async fn http2_is_recognised_even_when_it_comes_in_pieces() {
        // A gRPC-like client or a sidecar that speaks HTTP/2 to the application would be misread as HTTP/1.
        use tokio::io::AsyncWriteExt;
        for (pieces, expected) in [
            (vec![&b"P"[..], b"RI * HTTP/2.0\r\n"], true),
            (vec![&b"POST / HTTP/1.1\r\n"[..]], false),
            (vec![&b"GET / HTTP/1.1\r\n"[..]], false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            client.set_nodelay(true).unwrap();
            let look = tokio::spawn(async move { starts_with_http2(&server).await });
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert_eq!(look.await.unwrap(), expected);
        }
    }
}
