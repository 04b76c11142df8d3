//! The application beside every sidecar: a process of its own, so that it can be killed and stopped.
//!
//! It is the test binary started again with [`SETTINGS`] in its environment. Every request is written to the ledger before
//! it is answered. SIGTERM ends it as well-behaved services end: no new connections, what is under way is finished.
//!
//! | path | answer |
//! |---|---|
//! | `/r/ID` | `ID NAME`, after reading the whole body, which must repeat the id |
//! | `/s/ID` | twenty lines `ID`, 5 ms apart, then `ID end NAME` |
//! | `/ws` | WebSocket that returns every message with the name before it |
//! | `/faults.Chat/Talk` | gRPC, both ways: the same |

use std::{
    convert::Infallible, env, fs, future::Future, io::Write as _, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};
use tonic::{Streaming, server::StreamingService};
use tonic_prost::ProstCodec;

/// `NAME LISTEN LEDGER DELAY_MS` of the application to be; absent: this is no application.
pub const SETTINGS: &str = "OUTRIGGER_FAULTS_APPLICATION";
/// Lines of a streamed answer, and the time between two.
pub const LINES: usize = 20;
pub const BETWEEN_LINES: Duration = Duration::from_millis(5);
/// The gRPC method.
pub const TALK: &str = "/faults.Chat/Talk";

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

struct Application {
    name: String,
    ledger: PathBuf,
    delay: Duration,
}

/// Runs the application, when the environment says that this process is one.
pub fn run_if_asked() {
    let Ok(settings) = env::var(SETTINGS) else { return };
    let words: Vec<&str> = settings.split_whitespace().collect();
    let [name, listen, ledger, delay] = words[..] else { panic!("{SETTINGS}={settings}") };
    let listen: SocketAddr = listen.parse().unwrap();
    let application = Arc::new(Application {
        name: name.to_owned(),
        ledger: ledger.into(),
        delay: Duration::from_millis(delay.parse().unwrap()),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(application, listen));
}

async fn serve(application: Arc<Application>, listen: SocketAddr) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let listener = TcpListener::bind(listen).await.unwrap();
    let (drain, draining) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            _ = terminate.recv() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        tokio::spawn(serve_connection(socket, Arc::clone(&application), draining.clone()));
    }
    drop(listener);
    drop(draining);
    let _ = drain.send(true);
    drain.closed().await;
}

async fn serve_connection(socket: TcpStream, application: Arc<Application>, mut draining: watch::Receiver<bool>) {
    let _ = socket.set_nodelay(true);
    let mut first = [0_u8; 3];
    let speaks_http2 = matches!(socket.peek(&mut first).await, Ok(3) if &first == b"PRI");
    let service = service_fn(move |request| {
        let application = Arc::clone(&application);
        async move { Ok::<_, Infallible>(application.answer(request).await) }
    });
    let io = TokioIo::new(socket);
    if speaks_http2 {
        let connection =
            http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = draining.wait_for(|drain| *drain) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    } else {
        let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(io, service).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = draining.wait_for(|drain| *drain) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}

impl Application {
    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/ws" {
            return self.talk_websocket(&mut request);
        }
        if path == TALK {
            let response = tonic::server::Grpc::new(ProstCodec::<String, String>::default())
                .streaming(Talk(self.name.clone()), request)
                .await;
            return response.map(|body| body.map_err(std::io::Error::other).boxed_unsync());
        }
        let (method, attempt) = (request.method().clone(), attempt(&request));
        let marked = request.headers().get("x-request-mark").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let Some((kind, id)) = path.strip_prefix('/').and_then(|rest| rest.split_once('/')) else {
            return plain(StatusCode::NOT_FOUND, String::new());
        };
        let Ok(body) = request.into_body().collect().await else {
            return plain(StatusCode::BAD_REQUEST, "the body broke off".to_owned());
        };
        let body = body.to_bytes();
        // What arrives must be of one request: path, header and body all carry its id.
        let mixed_up = marked.as_deref() != Some(id) || method == Method::POST && body != super::load::body(id);
        let note = if mixed_up { "MIXED" } else { method.as_str() };
        self.record(id, note, &attempt);
        tokio::time::sleep(self.delay).await;
        match kind {
            "r" => plain(StatusCode::OK, format!("{id} {}", self.name)),
            "s" => self.stream(id),
            _ => plain(StatusCode::NOT_FOUND, String::new()),
        }
    }

    /// One line in one write: lines of several processes do not mix.
    fn record(&self, id: &str, method: &str, attempt: &str) {
        let line = format!("{id} {method} {} {attempt}\n", self.name);
        let mut file = fs::OpenOptions::new().append(true).open(&self.ledger).unwrap();
        assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
    }

    fn stream(&self, id: &str) -> Response<Body> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (id, name) = (id.to_owned(), self.name.clone());
        tokio::spawn(async move {
            for _ in 0..LINES {
                let _ = sender.send(format!("{id}\n")).await;
                tokio::time::sleep(BETWEEN_LINES).await;
            }
            let _ = sender.send(format!("{id} end {name}")).await;
        });
        let frames = ReceiverStream::new(receiver).map(|text| Ok(Frame::data(Bytes::from(text))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    fn talk_websocket(&self, request: &mut Request<Incoming>) -> Response<Body> {
        let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
            return plain(StatusCode::BAD_REQUEST, "no key".to_owned());
        };
        let accept = derive_accept_key(key.as_bytes());
        let (upgrade, name) = (hyper::upgrade::on(request), self.name.clone());
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = message
                    && socket.send(Message::text(format!("{name} {text}"))).await.is_err()
                {
                    return;
                }
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_ACCEPT, accept)
            .body(empty())
            .unwrap()
    }
}

/// Which try this is, as the mesh says.
fn attempt(request: &Request<Incoming>) -> String {
    let header = request.headers().get("x-envoy-attempt-count").and_then(|count| count.to_str().ok());
    header.unwrap_or("-").to_owned()
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

struct Talk(String);

type Said = Pin<Box<dyn futures_util::Stream<Item = Result<String, tonic::Status>> + Send>>;

impl StreamingService<String> for Talk {
    type Response = String;
    type ResponseStream = Said;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Said>, tonic::Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Streaming<String>>) -> Self::Future {
        let name = self.0.clone();
        Box::pin(async move {
            let said = request.into_inner().map(move |heard| heard.map(|text| format!("{name} {text}")));
            Ok(tonic::Response::new(Box::pin(said) as Said))
        })
    }
}
