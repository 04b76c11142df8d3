//! Where a redirected connection wanted to go.
//!
//! Called by the journeys for connections of the transparent listeners. Asks the kernel (`SO_ORIGINAL_DST`, which REDIRECT and
//! DNAT rules leave behind). Refuses connections that were made to our own port on purpose: they would loop.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::circles;

/// The connection was not redirected: somebody dialled the proxy's own port.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("connection was made to the proxy's own port (hint: dial the service; redirect rules bring it here)")]
pub struct NotRedirected;

/// We made the connection ourselves: redirect rules do not let the sidecar pass.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "our own connection to {dialled} was redirected to us (hint: --proxy-uid or --mark of the redirect rules are not this sidecar's)"
)]
pub struct Circle {
    pub dialled: SocketAddr,
}

/// The address the caller dialled, with IPv4-mapped addresses written as IPv4.
///
/// # Errors
/// [`NotRedirected`] inside the error when the kernel knows no other destination than our own address; see
/// [`is_not_redirected`]; [`Circle`] when we are the caller. Anything else is the operating system's.
pub fn original_dst(io: &TcpStream) -> io::Result<SocketAddr> {
    let local = io.local_addr()?;
    let socket = SockRef::from(io);
    let answer = if unmapped(local).is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let dialled = match answer {
        Ok(address) => address.as_socket(),
        // No entry in the connection table, or no table at all: nothing redirected this connection.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) || is_no_option(&error) => None,
        Err(error) => return Err(error),
    };
    let dialled = redirected(dialled, local)?;
    if circles::is_ours(io.peer_addr()?, dialled) {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, Circle { dialled }));
    }
    Ok(dialled)
}

/// Whether [`original_dst`] failed because the connection was made to our own port.
pub fn is_not_redirected(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<NotRedirected>())
}

fn is_no_option(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOPROTOOPT.raw_os_error())
}

fn redirected(dialled: Option<SocketAddr>, local: SocketAddr) -> io::Result<SocketAddr> {
    match dialled.map(unmapped) {
        Some(dialled) if dialled != unmapped(local) => Ok(dialled),
        _ => Err(io::Error::new(io::ErrorKind::ConnectionRefused, NotRedirected)),
    }
}

/// `::ffff:a.b.c.d` as `a.b.c.d`; scope and flow of IPv6 addresses are dropped, no rule speaks of them.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_another_address_counts_as_redirected() {
        // A connection to the proxy's own port would be forwarded to the proxy's own port, for ever.
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (dialled, local, expected) in [
            (Some("10.0.0.1:80"), "10.0.0.9:15001", Some("10.0.0.1:80")),
            (Some("10.0.0.9:80"), "10.0.0.9:15006", Some("10.0.0.9:80")),
            (Some("10.0.0.9:15001"), "10.0.0.9:15001", None),
            (Some("10.0.0.9:15001"), "[::ffff:10.0.0.9]:15001", None),
            (Some("[::ffff:10.0.0.1]:80"), "[::ffff:10.0.0.9]:15001", Some("10.0.0.1:80")),
            (Some("[fd00::1]:80"), "[fd00::9]:15001", Some("[fd00::1]:80")),
            (None, "10.0.0.9:15001", None),
        ] {
            let answer = redirected(dialled.map(at), at(local));
            assert_eq!(answer.as_ref().ok().copied(), expected.map(at), "{dialled:?} {local}");
            assert!(answer.err().is_none_or(|error| is_not_redirected(&error)));
        }
    }

    #[tokio::test]
    async fn a_plain_connection_is_not_redirected() {
        // Direct connections to the capture port must be refused, whatever the kernel's connection table says.
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else { continue };
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (io, _) = listener.accept().await.unwrap();
            let error = original_dst(&io).unwrap_err();
            assert!(is_not_redirected(&error), "{address}: {error}");
        }
    }
}
