//! A connection to the control plane: TCP, TLS, HTTP/2, ready for generated gRPC clients.
//!
//! Used by `stream` and by `identity::client`. Who the server must be is decided in `identity::trust`; when to try
//! again is the caller's. A dead peer is noticed within 20 s.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use tokio_rustls::TlsConnector;

use crate::host::{self, ConnectOptions, Stream};

/// Bytes of one message from the control plane; it splits larger sets.
pub const MESSAGE_BYTES: usize = 4 << 20;
/// Silence after which a ping is sent, and the wait for its answer: together 20 s until a dead peer is noticed.
const PING: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const HEADER_LIST_BYTES: u32 = 16 * 1024;

/// Why the control plane was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("control plane address {0:?} is not host:port")]
    Address(String),
    #[error("cannot resolve control plane address {address:?}: {source}")]
    Resolve { address: String, source: io::Error },
    #[error("cannot connect to control plane {address:?}: {source} (hint: is it running, and is the address right?)")]
    Connect { address: String, source: io::Error },
    #[error(
        "TLS with control plane {address:?} failed: {source} (hint: are token or root file of this control plane?)"
    )]
    Tls { address: String, source: io::Error },
    #[error("HTTP/2 with control plane failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("control plane {0:?} took too long to answer")]
    Timeout(String),
}

/// An open connection; clones share it.
#[derive(Clone, Debug)]
pub struct Channel {
    sender: SendRequest<tonic::body::Body>,
}

/// Connects to "host:port", within `timeout`.
///
/// # Errors
/// See [`ConnectError`]. Dropping the future abandons the attempt.
pub async fn connect(
    address: &str,
    config: Arc<rustls::ClientConfig>,
    mark: Option<u32>,
    timeout: Duration,
) -> Result<Channel, ConnectError> {
    tokio::select! {
        biased;
        channel = connect_unbounded(address, config, mark) => channel,
        () = host::sleep(timeout) => Err(ConnectError::Timeout(address.to_owned())),
    }
}

async fn connect_unbounded(
    address: &str,
    config: Arc<rustls::ClientConfig>,
    mark: Option<u32>,
) -> Result<Channel, ConnectError> {
    let name = server_name(address).map_err(|_| ConnectError::Address(address.to_owned()))?;
    let resolved = host::resolve(address).await;
    let resolved = resolved.map_err(|source| ConnectError::Resolve { address: address.to_owned(), source })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in resolved {
        match host::connect(candidate, ConnectOptions { source: None, mark }).await {
            Ok(tcp) => {
                let tls = TlsConnector::from(config).connect(name, tcp).await;
                let tls = tls.map_err(|source| ConnectError::Tls { address: address.to_owned(), source })?;
                return handshake(tls).await;
            }
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Connect { address: address.to_owned(), source: last })
}

fn server_name(address: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
    ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// HTTP/2 over any stream.
///
/// # Errors
/// [`ConnectError::Http`].
pub async fn handshake<S: Stream + 'static>(io: S) -> Result<Channel, ConnectError> {
    let (sender, connection) = Builder::new(Tasks)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .handshake(TokioIo::new(io))
        .await?;
    host::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "control plane connection ended");
        }
    });
    Ok(Channel { sender })
}

impl tonic::codegen::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}

/// hyper's background work, through the host seam.
#[derive(Clone, Copy, Debug)]
struct Tasks;

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        host::spawn(future);
    }
}
