//! Clients that keep asking: HTTP/1.1 with keep-alive and HTTP/2, reads, writes and streamed answers.
//!
//! No client hides anything: a request is sent once, and every end but a whole answer is noted.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, runtime::Handle, task::JoinSet};

use super::{
    application::LINES,
    ledger::{Kind, Ledger, Outcome},
};

/// Longest wait for a whole answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// An address as one host sees it.
#[derive(Clone, Debug)]
pub struct Door {
    pub address: SocketAddr,
    /// Runtime of the host whose sockets are used; `None`: our own.
    pub host: Option<Handle>,
}

impl Door {
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let socket = match &self.host {
            None => TcpStream::connect(self.address).await?,
            Some(host) => host.spawn(TcpStream::connect(self.address)).await??,
        };
        socket.set_nodelay(true)?;
        Ok(socket)
    }
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Front {
    pub door: Door,
    pub authority: String,
}

/// The body of a POST: long enough for several frames, and different for each id.
pub fn body(id: &str) -> Bytes {
    Bytes::from(id.repeat(300))
}

/// Load until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// `http1` clients with a connection each, and `http2` clients on one shared connection; each asks again `pause`
    /// after an answer.
    pub fn start(ledger: &Arc<Ledger>, front: &Front, http1: usize, http2: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        let shared = Arc::new(tokio::sync::Mutex::new(None));
        for number in 0..http1 + http2 {
            let client = Client {
                ledger: Arc::clone(ledger),
                front: front.clone(),
                sender: None,
                shared: (number >= http1).then(|| Arc::clone(&shared)),
            };
            clients.spawn(client.run(Arc::clone(&stop), pause, number));
        }
        Self { stop, clients }
    }

    /// Sends nothing more and waits for what is under way.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

type Shared = Arc<tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>>;

struct Client {
    ledger: Arc<Ledger>,
    front: Front,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
    shared: Option<Shared>,
}

impl Client {
    async fn run(mut self, stop: Arc<AtomicBool>, pause: Duration, number: usize) {
        // Of ten requests seven read, two write and one streams; clients begin at different places.
        for turn in number.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let kind = match turn % 10 {
                3 | 7 => Kind::Post,
                5 => Kind::Stream,
                _ => Kind::Get,
            };
            let (id, began) = (self.ledger.id(), Instant::now());
            let outcome = tokio::time::timeout(DEADLINE, self.ask(&id, kind)).await.unwrap_or_else(|_| {
                self.sender = None;
                Outcome::Silent
            });
            if !matches!(outcome, Outcome::Answered(_) | Outcome::Refused(..)) {
                self.sender = None;
            }
            self.ledger.note(id, kind, outcome, began);
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask(&mut self, id: &str, kind: Kind) -> Outcome {
        let (method, path, content) = match kind {
            Kind::Get => (Method::GET, format!("/r/{id}"), Bytes::new()),
            Kind::Post => (Method::POST, format!("/r/{id}"), body(id)),
            Kind::Stream => (Method::GET, format!("/s/{id}"), Bytes::new()),
        };
        let request = Request::builder().method(method).header("x-request-mark", id);
        let content = Full::new(content);
        let sent = match &self.shared {
            Some(shared) => {
                let mut shared = shared.lock().await;
                if shared.as_ref().is_none_or(http2::SendRequest::is_closed) {
                    *shared = self.connect_http2().await;
                }
                let Some(mut sender) = shared.clone() else { return Outcome::NotSent };
                drop(shared);
                let uri = format!("http://{}{path}", self.front.authority);
                sender.send_request(request.uri(uri).body(content).unwrap()).await
            }
            None => {
                let ready = match self.sender.as_mut() {
                    Some(sender) => sender.ready().await.is_ok(),
                    None => false,
                };
                if !ready {
                    self.sender = self.connect_http1().await;
                }
                let Some(sender) = self.sender.as_mut() else { return Outcome::NotSent };
                let request = request.uri(path).header(header::HOST, &self.front.authority);
                sender.send_request(request.body(content).unwrap()).await
            }
        };
        match sent {
            Ok(response) => read(response, id, kind).await,
            Err(error) => Outcome::Broken(format!("{error:?}")),
        }
    }

    async fn connect_http1(&self) -> Option<http1::SendRequest<Full<Bytes>>> {
        let socket = self.front.door.connect().await.ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.ok()?;
        tokio::spawn(connection);
        Some(sender)
    }

    async fn connect_http2(&self) -> Option<http2::SendRequest<Full<Bytes>>> {
        let socket = self.front.door.connect().await.ok()?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.ok()?;
        tokio::spawn(connection);
        Some(sender)
    }
}

async fn read(response: Response<Incoming>, id: &str, kind: Kind) -> Outcome {
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => return Outcome::Truncated(format!("{error:?}")),
    };
    if !head.status.is_success() {
        let word = head.headers.get("x-outrigger-error").and_then(|word| word.to_str().ok()).unwrap_or("-");
        return Outcome::Refused(head.status.as_u16(), format!("{word} {}", body.trim()));
    }
    let before = match kind {
        Kind::Get | Kind::Post => format!("{id} "),
        Kind::Stream => format!("{}{id} end ", format!("{id}\n").repeat(LINES)),
    };
    match body.strip_prefix(&before) {
        Some(name) if !name.contains(' ') => Outcome::Answered(name.to_owned()),
        _ => Outcome::Wrong(body.chars().take(200).collect()),
    }
}
