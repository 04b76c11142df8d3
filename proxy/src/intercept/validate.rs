//! Proves that interception works: a connection to nowhere must land in our own listener.
//!
//! Run by `intercept check --connect` before the application starts, so that no workload runs outside the mesh
//! unnoticed. It must not run as the proxy's user, whose connections are let through.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::host::{self, ConnectOptions};

/// Addresses that are reserved for documentation (RFC 5737, RFC 3849): nothing answers there.
pub const NOWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 20001),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 20001),
];

/// What one attempt showed.
#[derive(Debug, PartialEq, Eq)]
pub enum Proof {
    /// It came to us, and the kernel told where it had been going.
    Intercepted,
    /// This machine has no route of that family, so nothing can leave it either.
    NoRoute,
    /// It went somewhere else, or nowhere.
    Escaped(String),
}

/// Connects to `target` and looks whether the connection arrives at `port` of this machine.
///
/// # Errors
/// When the port cannot be listened on; with `AddrInUse` the proxy is probably running already.
pub async fn prove(port: u16, target: SocketAddr, limit: Duration) -> io::Result<Proof> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let listener = host::listen(SocketAddr::new(any, port), false)?;
    let secret = host::random_u128().to_be_bytes();
    tokio::select! {
        proof = attempt(target, secret) => Ok(proof),
        never = answer(&listener, target, secret) => never,
        () = host::sleep(limit) => Ok(Proof::Escaped(format!("nothing arrived within {limit:?}"))),
    }
}

/// Gives the secret to every connection that was going to `target`; returns only when the listener breaks.
async fn answer(listener: &TcpListener, target: SocketAddr, secret: [u8; 16]) -> io::Result<Proof> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        if original_destination(&stream) == Some(target) {
            // If the other end is gone, its own side of the attempt says so.
            let _ = stream.write_all(&secret).await;
        }
    }
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = match stream.local_addr().ok()? {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    address.ok()?.as_socket()
}

async fn attempt(target: SocketAddr, secret: [u8; 16]) -> Proof {
    let mut stream = match host::connect(target, ConnectOptions::default()).await {
        Ok(stream) => stream,
        // The second is what the kernel says when no interface has an address of the family.
        Err(error) if matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable) => {
            return Proof::NoRoute;
        }
        Err(error) => return Proof::Escaped(format!("connecting failed: {error}")),
    };
    let mut received = [0; 16];
    match stream.read_exact(&mut received).await {
        Ok(_) if received == secret => Proof::Intercepted,
        Ok(_) => Proof::Escaped("something else answered".to_owned()),
        Err(error) => Proof::Escaped(format!("the connection ended: {error}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_goes_elsewhere_is_no_proof() {
        // A check that passes without interception would let workloads run outside the mesh.
        let elsewhere = host::listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let target = elsewhere.local_addr().unwrap();
        let other = host::spawn(async move {
            let (mut stream, _) = elsewhere.accept().await.unwrap();
            stream.write_all(&[7; 16]).await.unwrap();
        });
        let proof = prove(0, target, Duration::from_secs(30)).await.unwrap();
        assert_eq!(proof, Proof::Escaped("something else answered".to_owned()));
        other.await.unwrap();
    }
}
