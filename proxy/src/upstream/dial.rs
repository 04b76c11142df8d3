//! From an address to a connected, and if need be verified, byte stream.
//!
//! The only place that opens connections to endpoints. Failures say whether the endpoint refused, did not answer in
//! time, or proved to be somebody else; nothing of a request has been sent then.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::HeaderValue;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::{
    accept::socket::{self, OverTcp},
    failure::{Failure, Reason},
    host::{self, ConnectOptions},
    identity::Identity,
    resilience::limits::Held,
    settings::{Limits, Timeouts},
    telemetry::{ActiveUpstream, Direction, Security, WorkerTelemetry},
    tls::{self, Alpn, Expected, Offer},
};

/// How bytes travel to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    Plain,
    /// Mutual TLS. `multiplex`: the far side is one of us, so HTTP/1 may travel as HTTP/2.
    Mesh {
        expected: Expected,
        multiplex: bool,
    },
}

impl Transport {
    pub const fn security(&self) -> Security {
        match self {
            Self::Plain => Security::None,
            Self::Mesh { .. } => Security::MutualTls,
        }
    }
}

/// What a connection occupies while it is open: a place among the backend's connections, and a count in the metrics.
pub type Hold = (Option<Held>, ActiveUpstream);

/// Everything that opening a connection needs besides the address.
#[derive(Debug)]
pub struct Dialer {
    pub identity: Arc<Identity>,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// `SO_MARK` for our own connections; `None`: none.
    pub mark: Option<u32>,
    /// How we introduce our workload to other sidecars.
    pub introduction: HeaderValue,
}

/// What a worker lends to everything it carries.
#[derive(Clone, Copy)]
pub struct Carrier<'a> {
    pub worker: usize,
    pub direction: Direction,
    pub dialer: &'a Arc<Dialer>,
    pub telemetry: &'a Arc<WorkerTelemetry>,
}

/// A connection to an endpoint.
#[derive(Debug)]
pub enum Upstream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Carrier<'_> {
    /// Connects, and for mesh transport proves and verifies identities.
    ///
    /// # Errors
    /// `UpstreamConnectRefused`, `UpstreamConnectTimeout`, `UpstreamTlsFailed`, `UpstreamIdentityMismatch`,
    /// or `NotReady` while we have no identity ourselves. Never falls back to plaintext.
    pub async fn dial(
        &self,
        address: SocketAddr,
        transport: &Transport,
        offer: Offer,
        connect_timeout: Duration,
    ) -> Result<(Upstream, Option<Alpn>), Failure> {
        let tcp = self.dialer.connect(address, connect_timeout).await?;
        let Transport::Mesh { expected, .. } = transport else {
            // Inbound dials the application beside us; that is no connection between workloads.
            if self.direction == Direction::Outbound {
                self.telemetry.connection_secured(self.direction, Security::None);
            }
            return Ok((Upstream::Plain(tcp), None));
        };
        let configs = self.dialer.identity.current().ok_or(Reason::NotReady)?;
        match tls::client::connect(tcp, &configs, offer, expected, self.dialer.timeouts.handshake).await {
            Ok((stream, alpn)) => {
                self.telemetry.connection_secured(self.direction, Security::MutualTls);
                Ok((Upstream::Tls(Box::new(stream)), alpn))
            }
            Err(error) => {
                self.telemetry.handshake_failed(self.direction, error.handshake());
                Err(Failure::new(error.reason()).because(error))
            }
        }
    }
}

impl Dialer {
    /// A plain TCP connection with our socket options.
    ///
    /// # Errors
    /// `UpstreamConnectRefused` or `UpstreamConnectTimeout`.
    pub async fn connect(&self, address: SocketAddr, connect_timeout: Duration) -> Result<TcpStream, Failure> {
        let options = ConnectOptions { source: None, mark: self.mark };
        match tokio::time::timeout(connect_timeout, host::connect(address, options)).await {
            Ok(Ok(tcp)) => {
                // A socket that takes no options is already broken; the first write will say so.
                let _ = socket::prepare(&tcp, self.timeouts.tcp_user);
                Ok(tcp)
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Failure::new(Reason::UpstreamConnectTimeout).because(error))
            }
            Ok(Err(error)) => Err(Failure::new(Reason::UpstreamConnectRefused).because(error)),
            Err(_) => Err(Failure::new(Reason::UpstreamConnectTimeout)),
        }
    }
}

impl Upstream {
    /// The TCP connection beneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl OverTcp for Upstream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(Self::tcp(self))
    }

    fn bare(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(_) => None,
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
