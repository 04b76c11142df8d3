//! The options every connection gets, accepted or dialled.
//!
//! Called by `accept/listener.rs`; `upstream` uses it for the connections it opens. The inbound journey refuses with
//! [`refuse`].

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::{detect::Rewound, host::Stream};

/// A silent peer is asked after this time without data, and this often.
///
/// 60 s, then every 10 s, three times: a host that vanished is noticed after 90 s, well before NAT tables (which
/// usually forget after 5 minutes or more) would drop a connection that is only quiet.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// What the kernel holds of data that it has not sent yet. More would hide from us for minutes whether the other side reads at all, and is
/// memory that the other side decides about; the sent part has its own bound, the receive window.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 128 * 1024;

/// Sets no-delay, keep-alive, `TCP_USER_TIMEOUT` and the bound of unsent data.
///
/// `tcp_user` bounds how long sent data may stay unacknowledged; Linux counts the time a peer keeps its window
/// closed as well. Zero leaves the system's own (about 15 minutes).
///
/// # Errors
/// The operating system's; the usual one is that the peer has already gone.
pub fn prepare(io: &TcpStream, tcp_user: Duration) -> io::Result<()> {
    let socket = SockRef::from(io);
    // We write whole messages; waiting for more would only add the peer's delayed-ack time.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout((!tcp_user.is_zero()).then_some(tcp_user))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    #[cfg(not(target_os = "linux"))]
    let _ = tcp_user;
    Ok(())
}

/// Closes a connection so that the other side sees a reset, not an orderly end without an answer.
///
/// Whatever is still to be sent is lost. That bytes were left unread would do the same by itself, but looking at a
/// connection has read them.
pub fn refuse(io: TcpStream) {
    reset_on_close(&io);
}

/// Makes the coming end of a connection a reset.
pub fn reset_on_close(io: &TcpStream) {
    // Zero: closing sends RST at once. When it cannot be set, the peer has gone already.
    let _ = SockRef::from(io).set_linger(Some(Duration::ZERO));
}

/// How many bytes of what was written the far side's system ever acknowledged, on a connection that both its end and a reset have
/// finished; `None`: it is not finished like that, or the kernel does not say.
///
/// Exact then: what it acknowledged last came with its end, and the reset says that what came later met no socket. What it
/// acknowledged is the most that it can have read.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "no safe crate reads TCP_INFO with the fields of the last ten years")]
pub fn acknowledged(io: &TcpStream) -> Option<u64> {
    use std::os::fd::AsRawFd as _;
    // `struct tcp_info` of linux/tcp.h: 8 bytes, 24 words of 4, then words of 8, of which the third is tcpi_bytes_acked (Linux 4.1).
    const PLACE: usize = (8 + 24 * 4) / 8 + 2;
    let mut info = [0_u64; 32];
    let mut bytes = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: the descriptor is open for as long as `io` is borrowed; the kernel writes at most `bytes` bytes into `info`, for which
    // every bit pattern is a value, and stores how many it wrote.
    let result = unsafe {
        libc::getsockopt(io.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut bytes)
    };
    let filled = usize::try_from(bytes).ok()? / 8;
    // The first byte is the state; 7 is TCP_CLOSE (include/net/tcp_states.h).
    let finished = info.first().is_some_and(|word| word.to_ne_bytes().first() == Some(&7));
    // The opening of the connection counts as one byte.
    (result == 0 && filled > PLACE && finished).then(|| info.get(PLACE).copied().unwrap_or_default().saturating_sub(1))
}

/// How many bytes of what was written the far side's system ever acknowledged; here the kernel does not say.
#[cfg(not(target_os = "linux"))]
pub fn acknowledged(_io: &TcpStream) -> Option<u64> {
    None
}

/// A stream that may have a TCP connection beneath.
pub trait OverTcp {
    /// That connection; `None` for a stream inside another one, which has none of its own.
    fn tcp(&self) -> Option<&TcpStream>;

    /// That connection while it is all there is: the stream's next bytes are the socket's. `None` where TLS, or bytes that
    /// were read ahead, come between.
    fn bare(&self) -> Option<&TcpStream> {
        None
    }
}

impl OverTcp for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn bare(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl<S: OverTcp> OverTcp for Box<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        (**self).tcp()
    }

    fn bare(&self) -> Option<&TcpStream> {
        (**self).bare()
    }
}

impl<S: OverTcp + ?Sized> OverTcp for &mut S {
    fn tcp(&self) -> Option<&TcpStream> {
        (**self).tcp()
    }

    fn bare(&self) -> Option<&TcpStream> {
        (**self).bare()
    }
}

impl<S: OverTcp> OverTcp for Rewound<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.get_ref().tcp()
    }

    fn bare(&self) -> Option<&TcpStream> {
        if self.is_rewound() { None } else { self.get_ref().bare() }
    }
}

impl<S: OverTcp> OverTcp for tokio_rustls::server::TlsStream<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.get_ref().0.tcp()
    }
}

impl OverTcp for Box<dyn Stream> {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    #[tokio::test]
    async fn options_reach_the_socket() {
        // Dead peers would hold connections for hours, and small answers wait for delayed acks.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&io, Duration::from_secs(7)).unwrap();
        let socket = SockRef::from(&io);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
    }

    #[tokio::test]
    async fn a_refusal_is_a_reset() {
        // A client without a certificate would take the end of the connection for an empty answer.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        refuse(listener.accept().await.unwrap().0);
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
