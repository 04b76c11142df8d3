//! The floor: the least that a forwarder on hyper and rustls can do, without a single feature.
//!
//! Every chain is compared with it. No routing, no limits, no metrics, no header rules, no timeouts: what it costs is what system
//! calls, TLS records and the HTTP library cost. What it speaks on each side is told on the command line: HTTP/1.1 with a pool,
//! HTTP/2 on one connection, or bytes; in plaintext or with mutual TLS.

use std::{cell::RefCell, convert::Infallible, path::Path, rc::Rc};

use anyhow::{Context as _, Result};
use http::{Request, Response, StatusCode, Uri, Version, header::HOST, uri::Scheme};
use http_body_util::{Either, Empty};
use hyper::{
    body::{Bytes, Incoming},
    client, server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    certificates,
    chain::{Link, Protocol},
};

/// Bytes read at once where they are only passed on.
const COPY_BYTES: usize = 64 * 1024;
/// HTTP/2 windows: small ones would make the floor wait where others do not.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

type Reply = Response<Either<Incoming, Empty<Bytes>>>;

/// Both kinds of stream.
trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Forwards until it is killed.
///
/// # Errors
/// When it cannot listen or read its certificates.
pub fn run(taken: Link, sent: Link, certificates: &Path) -> Result<()> {
    let acceptor = if taken.tls {
        Some(TlsAcceptor::from(certificates::server(certificates, taken.protocol.alpn())?))
    } else {
        None
    };
    let connector = if sent.tls {
        Some(TlsConnector::from(certificates::client(certificates, sent.protocol.alpn())?))
    } else {
        None
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let address = taken.address;
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let upstream = Rc::new(Upstream {
            link: sent,
            connector,
            http1: RefCell::default(),
            http2: tokio::sync::Mutex::default(),
        });
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let upstream = Rc::clone(&upstream);
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                // A connection that breaks is the load generator's to notice.
                match acceptor {
                    Some(acceptor) => {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        serve(stream, taken.protocol, upstream).await;
                    }
                    None => serve(stream, taken.protocol, upstream).await,
                }
            });
        }
    })
}

async fn serve(stream: impl Io + 'static, protocol: Protocol, upstream: Rc<Upstream>) {
    let mut stream = stream;
    if protocol == Protocol::Tcp {
        let _ = upstream.relay(&mut stream).await;
        return;
    }
    let service = service_fn(move |request| {
        let upstream = Rc::clone(&upstream);
        async move { Ok::<_, Infallible>(upstream.forward(request).await) }
    });
    let stream = TokioIo::new(stream);
    if protocol == Protocol::Http2 {
        let _ = server::conn::http2::Builder::new(Local)
            .max_concurrent_streams(1024)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .serve_connection(stream, service)
            .await;
    } else {
        let _ = server::conn::http1::Builder::new().serve_connection(stream, service).await;
    }
}

/// Spawns on the one thread there is.
#[derive(Clone)]
pub struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

struct Upstream {
    link: Link,
    connector: Option<TlsConnector>,
    /// Given back as soon as a response head is here; used again once ready.
    http1: RefCell<Vec<client::conn::http1::SendRequest<Incoming>>>,
    http2: tokio::sync::Mutex<Option<client::conn::http2::SendRequest<Incoming>>>,
}

impl Upstream {
    async fn forward(&self, request: Request<Incoming>) -> Reply {
        let answered = if self.link.protocol == Protocol::Http2 {
            self.over_http2(request).await
        } else {
            self.over_http1(request).await
        };
        match answered {
            Ok(response) => response.map(Either::Left),
            Err(_) => {
                let mut reply = Response::new(Either::Right(Empty::new()));
                *reply.status_mut() = StatusCode::BAD_GATEWAY;
                reply
            }
        }
    }

    async fn dial(&self) -> Result<Box<dyn Io>> {
        let stream = TcpStream::connect(self.link.address).await?;
        stream.set_nodelay(true)?;
        match &self.connector {
            None => Ok(Box::new(stream)),
            Some(connector) => {
                let name = ServerName::try_from(certificates::SERVER_NAME)?;
                Ok(Box::new(connector.connect(name, stream).await?))
            }
        }
    }

    async fn relay(&self, downstream: &mut impl Io) -> Result<()> {
        let mut upstream = self.dial().await?;
        copy_bidirectional_with_sizes(downstream, &mut upstream, COPY_BYTES, COPY_BYTES).await?;
        Ok(())
    }

    async fn over_http1(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>> {
        if let Some(authority) = request.uri().authority() {
            let host = http::HeaderValue::from_str(authority.as_str())?;
            request.headers_mut().insert(HOST, host);
        }
        if let Some(path) = request.uri().path_and_query() {
            *request.uri_mut() = Uri::from(path.clone());
        }
        *request.version_mut() = Version::HTTP_11;
        let pooled = {
            let mut pool = self.http1.borrow_mut();
            pool.retain(|sender| !sender.is_closed());
            let place = pool.iter().rposition(client::conn::http1::SendRequest::is_ready);
            place.map(|place| pool.swap_remove(place))
        };
        let mut sender = match pooled {
            Some(sender) => sender,
            None => {
                let stream = TokioIo::new(self.dial().await?);
                let (sender, connection) = client::conn::http1::handshake(stream).await?;
                tokio::task::spawn_local(connection);
                sender
            }
        };
        let mut response = sender.send_request(request).await?;
        self.http1.borrow_mut().push(sender);
        *response.version_mut() = Version::HTTP_11;
        Ok(response)
    }

    async fn over_http2(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>> {
        if request.uri().authority().is_none() {
            let host = request.headers_mut().remove(HOST).context("no Host")?;
            let mut uri = std::mem::take(request.uri_mut()).into_parts();
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(http::uri::Authority::try_from(host.as_bytes())?);
            *request.uri_mut() = Uri::from_parts(uri)?;
        }
        *request.version_mut() = Version::HTTP_2;
        let mut sender = self.http2_sender().await?;
        let mut response = sender.send_request(request).await?;
        *response.version_mut() = Version::HTTP_11;
        Ok(response)
    }

    async fn http2_sender(&self) -> Result<client::conn::http2::SendRequest<Incoming>> {
        let mut shared = self.http2.lock().await;
        if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TokioIo::new(self.dial().await?);
        let (sender, connection) = client::conn::http2::Builder::new(Local)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_reset_streams(1024)
            .handshake(stream)
            .await?;
        tokio::task::spawn_local(connection);
        *shared = Some(sender.clone());
        Ok(sender)
    }
}
