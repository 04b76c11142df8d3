//! Connections in: accept, TLS, limits, who is calling, then HTTP/2 to the gRPC services.
//!
//! One accept loop for discovery and one for the admin side. Before a request reaches a service, the gate has said who the
//! caller is: no message is parsed for anybody unknown. Handshakes have a time and a number limit, connections have a number
//! limit and an age (with jitter, so that a fleet of proxies does not come back all at once).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, codegen::Service as _, service::Routes};

use crate::{authority::Identity, settings::Limits};

/// The far side of a connection; in the extensions of every request on it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// `None` when the client sent no certificate.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// Cancelled when the connection is asked to go: long streams end then, so that the client comes back on a new one.
    pub closing: CancellationToken,
}

/// What a verified client certificate says.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    /// `None` when it has not exactly one URI name of the mesh's form.
    pub identity: Option<Identity>,
    /// End of its validity, seconds since 1970.
    pub not_after_unix: i64,
}

/// Says who may pass, before a body is read; may add what it found out to the request's extensions.
pub type Gate = Arc<dyn Fn(&mut http::request::Parts, &Peer) -> Result<(), Status> + Send + Sync>;

/// Largest HTTP/2 header list, in bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Wait after an accept error that will not go away by itself (no file descriptors).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Longest time that a connection is left after it was asked to go.
const GOODBYE: Duration = Duration::from_secs(10);

/// One listening socket and what is behind it.
pub struct Listener {
    pub socket: TcpListener,
    pub tls: Arc<ServerConfig>,
    pub routes: Routes,
    pub gate: Gate,
    pub limits: Limits,
}

impl Listener {
    /// Accepts until `stop`, then asks every connection to go; each connection is a task of `tasks`.
    pub async fn serve(self, stop: CancellationToken, tasks: TaskTracker) {
        let acceptor = TlsAcceptor::from(self.tls);
        let connections = Arc::new(Semaphore::new(self.limits.connections));
        let handshakes = Arc::new(Semaphore::new(self.limits.handshakes));
        loop {
            let accept = async {
                // Taken first: above the limit, connections wait in the kernel's queue.
                let place = Arc::clone(&connections).acquire_owned().await.ok()?;
                let handshake = Arc::clone(&handshakes).acquire_owned().await.ok()?;
                Some((place, handshake, self.socket.accept().await))
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accept => accepted,
            };
            let (place, handshake, stream, address) = match accepted {
                Some((place, handshake, Ok((stream, address)))) => (place, handshake, stream, address),
                Some((_, _, Err(error))) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
                None => return,
            };
            let connection = Connection {
                acceptor: acceptor.clone(),
                routes: self.routes.clone(),
                gate: Arc::clone(&self.gate),
                limits: self.limits.clone(),
                address,
                stop: stop.clone(),
            };
            tasks.spawn(async move {
                let _place = place;
                connection.serve(stream, handshake).await;
            });
        }
    }
}

struct Connection {
    acceptor: TlsAcceptor,
    routes: Routes,
    gate: Gate,
    limits: Limits,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream, handshake: tokio::sync::OwnedSemaphorePermit) {
        let address = self.address;
        // Small frames both ways; waiting to fill packets would only add time.
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(self.limits.handshake_timeout, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "handshake failed"),
            Err(_) => return tracing::debug!(%address, "handshake took too long"),
        };
        drop(handshake);
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(b"h2".as_slice()) {
            return tracing::debug!(%address, "client does not speak h2");
        }
        let certificate = session.peer_certificates().and_then(|chain| chain.first()).and_then(|leaf| read(leaf));
        let closing = self.stop.child_token();
        let peer = Peer { address, certificate: certificate.map(Arc::new), closing: closing.clone() };
        let (routes, gate) = (self.routes, self.gate);
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (mut routes, gate, peer) = (routes.clone(), Arc::clone(&gate), peer.clone());
            async move {
                let (mut parts, body) = request.into_parts();
                if let Err(status) = gate(&mut parts, &peer) {
                    return Ok::<_, std::convert::Infallible>(status.into_http::<Body>());
                }
                parts.extensions.insert(peer);
                routes.call(http::Request::from_parts(parts, Body::new(body))).await
            }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(self.limits.keepalive_interval)
            .keep_alive_timeout(self.limits.keepalive_timeout)
            .max_concurrent_streams(self.limits.streams_per_connection)
            .max_header_list_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let age = self.limits.connection_age.mul_f64(0.9 + 0.2 * fastrand::f64());
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(()))
            }
            () = tokio::time::sleep(age) => {
                // First no new streams, then the end of the long ones: the client's next stream is on a new connection.
                connection.as_mut().graceful_shutdown();
                closing.cancel();
                tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            tracing::debug!(%address, %error, "connection ended");
        }
    }
}

/// Identity and end of a certificate that the handshake has verified.
fn read(leaf: &[u8]) -> Option<PeerCertificate> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    // SPIFFE X509-SVID §2: exactly one URI name.
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let identity = match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    };
    Some(PeerCertificate { identity, not_after_unix: certificate.validity().not_after.timestamp() })
}
