//! From an address to a connected, and if need be verified, byte stream.
//!
//! The only place that opens connections to endpoints. Failures say whether the endpoint refused, did not answer in
//! time, or proved to be somebody else; nothing of a request has been sent then.

use std::{
    io,
    net::{IpAddr, SocketAddr},
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
    accept::{
        circles,
        socket::{self, OverTcp},
    },
    failure::{Failure, Reason},
    host::{self, ConnectOptions},
    identity::Identity,
    resilience::limits::Held,
    settings::{Limits, Listeners, Timeouts},
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
    /// Never dialled.
    pub own: OwnPorts,
}

/// Our own ports but those for the mesh: nothing that we carry ends there, whatever name or address leads to them.
///
/// An operator's port asks who connects; through us everybody would be us.
#[derive(Clone, Debug, Default)]
pub struct OwnPorts {
    listeners: Vec<SocketAddr>,
    /// Address of this workload, if we were told.
    address: Option<IpAddr>,
    /// Connections are redirected to us, so that ours might be.
    transparent: bool,
}

impl OwnPorts {
    pub fn of(listeners: &Listeners) -> Self {
        let locals = listeners.local.iter().map(|local| local.listen);
        let transparent = listeners.transparent.iter();
        let intercepted = transparent.clone().flat_map(|one| one.outbound.iter().chain(&one.inbound)).copied();
        let others = listeners.outbound.iter().chain(&listeners.admin).chain(&listeners.ready).chain(&listeners.dns);
        Self {
            listeners: locals.chain(intercepted).chain(others.copied()).collect(),
            address: transparent.clone().find_map(|one| one.address),
            transparent: listeners.transparent.is_some(),
        }
    }

    /// Whether dialling an address would lead to one of them.
    pub fn has(&self, address: SocketAddr) -> bool {
        let target = address.ip().to_canonical();
        // Linux takes a connection to the unspecified address as one to loopback.
        let here = target.is_loopback() || target.is_unspecified() || Some(target) == self.address;
        self.listeners.iter().any(|own| {
            let listens = own.ip().to_canonical();
            let same = listens == target
                || here && (listens.is_unspecified() || target.is_unspecified() && listens.is_loopback());
            own.port() == address.port() && same
        })
    }
}

/// What a worker lends to everything it carries.
#[derive(Clone, Copy)]
pub struct Carrier<'a> {
    pub worker: usize,
    pub direction: Direction,
    pub dialer: &'a Arc<Dialer>,
    pub telemetry: &'a Arc<WorkerTelemetry>,
    /// Where the connection that is carried came from; `None`: it does not matter.
    pub source: Option<&'a SocketAddr>,
}

/// A connection to an endpoint.
#[derive(Debug)]
pub enum Upstream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl<'a> Carrier<'a> {
    /// The same for what came from this address.
    #[must_use]
    pub fn for_client(self, source: &'a SocketAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Connects, and for mesh transport proves and verifies identities.
    ///
    /// # Errors
    /// `UpstreamConnectRefused`, `UpstreamConnectTimeout`, `UpstreamTlsFailed`, `UpstreamIdentityMismatch`,
    /// `Overloaded` without a descriptor for it, or `NotReady` while we have no identity ourselves. Never falls back to plaintext.
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
    /// `UpstreamConnectRefused` or `UpstreamConnectTimeout`; `Loop` for a port of our own; `Overloaded` when we have no descriptor or memory
    /// for it.
    pub async fn connect(&self, address: SocketAddr, connect_timeout: Duration) -> Result<TcpStream, Failure> {
        if self.own.has(address) {
            return Err(Reason::Loop.into());
        }
        let options = ConnectOptions { source: None, mark: self.mark };
        let connecting = async {
            if self.own.transparent {
                host::connect_within(address, options, |begin| circles::note(address, begin)).await
            } else {
                host::connect(address, options).await
            }
        };
        match tokio::time::timeout(connect_timeout, connecting).await {
            Ok(Ok(tcp)) => {
                // A socket that takes no options is already broken; the first write will say so.
                let _ = socket::prepare(&tcp, self.timeouts.tcp_user);
                Ok(tcp)
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Failure::new(Reason::UpstreamConnectTimeout).because(error))
            }
            // Our own shortage: the endpoint is not to blame, and not put aside for it.
            Ok(Err(error)) if host::is_shortage(&error) => Err(Failure::new(Reason::Overloaded).because(error)),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn m05_no_way_leads_to_our_own_ports() {
        // Whoever may send requests through the sidecar would be its operator.
        let own = OwnPorts {
            listeners: ["127.0.0.1:15000", "0.0.0.0:15021", "[::]:15001"].map(|one| one.parse().unwrap()).into(),
            address: Some("10.0.0.7".parse().unwrap()),
            transparent: true,
        };
        for (address, expected) in [
            ("127.0.0.1:15000", true),
            ("[::ffff:127.0.0.1]:15000", true),
            ("0.0.0.0:15000", true),
            ("[::]:15000", true),
            ("127.0.0.1:15021", true),
            ("127.9.9.9:15021", true),
            ("10.0.0.7:15021", true),
            ("10.0.0.7:15001", true),
            ("[::1]:15001", true),
            ("10.0.0.7:15000", false),
            ("10.0.0.8:15000", false),
            // Another workload's port of that number is not ours.
            ("10.0.0.8:15021", false),
            ("127.0.0.1:8080", false),
            ("169.254.169.254:80", false),
        ] {
            assert_eq!(own.has(address.parse().unwrap()), expected, "{address}");
        }
    }
}
