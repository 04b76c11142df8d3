//! A small HTTP/1.1 client that reuses connections: what the shop's services, the traffic and the observer call with.
//!
//! A request is sent again only when a reused connection turned out to be closed before any part of an answer came;
//! all requests here are GET. Not for large bodies: an answer over [`MAX_BODY_BYTES`] is an error.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// Longest answer that is read. Metrics of a sidecar are the largest thing we ask for.
const MAX_BODY_BYTES: usize = 8 << 20;
/// Below the idle limit of a sidecar, so that a connection is rarely found closed.
const IDLE: Duration = Duration::from_secs(60);

/// Where to: host (name or address) and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    authority: String,
}

impl Target {
    /// Reads `http://host:port`; a trailing slash is fine, anything else behind the port is not.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not an address to call (write for example http://127.0.0.1:9080)");
        let rest = text.strip_prefix("http://").ok_or_else(bad)?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || host.contains(['/', '@']) || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        Ok(Self { authority: authority.to_owned() })
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { authority: address.to_string() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Http(hyper::Error),
    #[error("broken body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

struct Idle {
    sender: SendRequest<Empty<Bytes>>,
    since: Instant,
}

/// Calls one target.
pub struct Client {
    target: Target,
    max_idle: usize,
    timeout: Duration,
    idle: Mutex<Vec<Idle>>,
}

impl Client {
    /// Keeps at most `max_idle` connections for reuse; `timeout` is for the whole request.
    pub fn new(target: impl Into<Target>, max_idle: usize, timeout: Duration) -> Self {
        Self { target: target.into(), max_idle, timeout, idle: Mutex::new(Vec::new()) }
    }

    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// One GET. Dropping the future closes the connection it used.
    pub async fn get(&self, path: &str) -> Result<Answer, ClientError> {
        tokio::time::timeout(self.timeout, self.get_within(path))
            .await
            .unwrap_or(Err(ClientError::Timeout(self.timeout)))
    }

    async fn get_within(&self, path: &str) -> Result<Answer, ClientError> {
        while let Some(mut sender) = self.take_idle() {
            if sender.ready().await.is_err() {
                continue;
            }
            match self.send(&mut sender, path).await {
                Ok(answer) => {
                    self.keep(sender);
                    return Ok(answer);
                }
                // The other side closed an idle connection just when we used it (RFC 9112 §9.3.1: a client may
                // repeat an idempotent request then).
                Err(ClientError::Http(error)) if error.is_canceled() || error.is_incomplete_message() => {}
                Err(error) => return Err(error),
            }
        }
        let mut sender = self.connect().await?;
        let answer = self.send(&mut sender, path).await?;
        self.keep(sender);
        Ok(answer)
    }

    fn take_idle(&self) -> Option<SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.lock();
        while let Some(Idle { sender, since }) = idle.pop() {
            if !sender.is_closed() && since.elapsed() < IDLE {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: SendRequest<Empty<Bytes>>) {
        let mut idle = self.idle.lock();
        if !sender.is_closed() && idle.len() < self.max_idle {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, ClientError> {
        let socket = TcpStream::connect(&self.target.authority).await.map_err(ClientError::Connect)?;
        let _ = socket.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(ClientError::Http)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn send(&self, sender: &mut SendRequest<Empty<Bytes>>, path: &str) -> Result<Answer, ClientError> {
        let request = Request::get(path)
            .header(header::HOST, &self.target.authority)
            .header(header::ACCEPT, "application/json, text/plain")
            .body(Empty::new())
            .expect("a path and a host that were checked make a request");
        let (head, body) = sender.send_request(request).await.map_err(ClientError::Http)?.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(ClientError::Body)?.to_bytes();
        Ok(Answer { status: head.status, body })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn a_target_is_host_and_port() {
        // A service started with a wrong address must say so at once instead of failing each request.
        for good in ["http://reviews:9080", "http://127.0.0.1:1/", "http://[::1]:80"] {
            assert!(Target::parse(good).is_ok(), "{good}");
        }
        for bad in ["reviews:9080", "http://reviews", "http://:80", "http://a/b:80", "https://a:1", "http://a:99999"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_reused_and_replaced_when_it_was_closed() {
        // Steady traffic would otherwise open a connection for each request, or fail when a sidecar closed one.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(listener.local_addr().unwrap(), 1, Duration::from_secs(5));
        let server = tokio::spawn(async move {
            let mut served = Vec::new();
            for requests in [2, 1] {
                let (mut socket, _) = listener.accept().await.unwrap();
                for _ in 0..requests {
                    let mut seen = Vec::new();
                    while !seen.ends_with(b"\r\n\r\n") {
                        seen.push(socket.read_u8().await.unwrap());
                    }
                    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
                served.push(requests);
            }
            served
        });
        for _ in 0..3 {
            assert_eq!(client.get("/").await.unwrap().body, "ok");
        }
        assert_eq!(server.await.unwrap(), [2, 1]);
    }
}
