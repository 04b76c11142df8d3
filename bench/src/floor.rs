//! The floor: the least that a forwarder on hyper and rustls can do, without a single feature.
//!
//! Every chain is compared with it. No routing, no limits, no metrics, no header rules, no timeouts: what it costs is what system
//! calls, TLS records and the HTTP library cost. First hop: HTTP/1.1 in, one HTTP/2 connection over mutual TLS out. Second
//! hop: HTTP/2 over mutual TLS in, pooled HTTP/1.1 out. One hop: HTTP/1.1 in, pooled HTTP/1.1 out.

use std::{cell::RefCell, convert::Infallible, net::SocketAddr, path::Path, rc::Rc, sync::Arc};

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
    net::{TcpListener, TcpStream},
    task::LocalSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certificates;

/// Which forwarder of a chain this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// HTTP/1.1 to HTTP/1.1, plaintext.
    Only,
    /// HTTP/1.1 to HTTP/2 over mutual TLS.
    First,
    /// HTTP/2 over mutual TLS to HTTP/1.1.
    Second,
}

type Reply = Response<Either<Incoming, Empty<Bytes>>>;

/// Forwards until it is killed.
///
/// # Errors
/// When it cannot listen or read its certificates.
pub fn run(listen: SocketAddr, to: SocketAddr, place: Place, certificates: &Path) -> Result<()> {
    let tls = match place {
        Place::Only => None,
        _ => Some((certificates::server(certificates)?, certificates::client(certificates)?)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        let upstream = Rc::new(Upstream {
            to,
            tls: tls.as_ref().filter(|_| place == Place::First).map(|(_, client)| Arc::clone(client).into()),
            http1: RefCell::default(),
            http2: tokio::sync::Mutex::default(),
        });
        let acceptor = tls.filter(|_| place == Place::Second).map(|(server, _)| TlsAcceptor::from(server));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let upstream = Rc::clone(&upstream);
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(move |request| {
                    let upstream = Rc::clone(&upstream);
                    async move { Ok::<_, Infallible>(upstream.forward(request).await) }
                });
                // A connection that breaks is the load generator's to notice.
                match acceptor {
                    Some(acceptor) => {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        let _ = server::conn::http2::Builder::new(Local)
                            .max_concurrent_streams(1024)
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    }
                    None => {
                        let _ =
                            server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            });
        }
    })
}

/// Spawns on the one thread there is.
#[derive(Clone)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

struct Upstream {
    to: SocketAddr,
    tls: Option<TlsConnector>,
    /// Given back as soon as a response head is here; used again once ready.
    http1: RefCell<Vec<client::conn::http1::SendRequest<Incoming>>>,
    http2: tokio::sync::Mutex<Option<client::conn::http2::SendRequest<Incoming>>>,
}

impl Upstream {
    async fn forward(&self, request: Request<Incoming>) -> Reply {
        let answered = if self.tls.is_some() { self.over_http2(request).await } else { self.over_http1(request).await };
        match answered {
            Ok(response) => response.map(Either::Left),
            Err(_) => {
                let mut reply = Response::new(Either::Right(Empty::new()));
                *reply.status_mut() = StatusCode::BAD_GATEWAY;
                reply
            }
        }
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
                let stream = TcpStream::connect(self.to).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
                tokio::task::spawn_local(connection);
                sender
            }
        };
        let response = sender.send_request(request).await?;
        self.http1.borrow_mut().push(sender);
        Ok(response)
    }

    async fn over_http2(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>> {
        let host = request.headers_mut().remove(HOST).context("no Host")?;
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(http::uri::Authority::try_from(host.as_bytes())?);
        *request.uri_mut() = Uri::from_parts(uri)?;
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
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        let connector = self.tls.as_ref().context("no TLS")?;
        let stream = connector.connect(ServerName::try_from(certificates::SERVER_NAME)?, stream).await?;
        let (sender, connection) = client::conn::http2::Builder::new(Local).handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        *shared = Some(sender.clone());
        Ok(sender)
    }
}
