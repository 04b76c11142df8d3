//! The accept loop.
//!
//! One runs per worker and listening address. It bounds connections over the whole process, waits while there is no room for more,
//! survives running out of descriptors and memory, and never ends before it is told to. It knows nothing of what is served.

use std::{future::Future, io, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Accepted, ConnectionLimit, ConnectionSlot, original_dst::unmapped, socket};
use crate::host;

/// Accepts until `stop` is cancelled, one task per connection.
///
/// A connection over the limit is closed at once, so that its caller learns of it instead of waiting in the queue. While the process is
/// short of memory or descriptors ([`ConnectionLimit::has_room`]) it is not accepted at all: closing it would take what is missing.
/// The served tasks outlive the loop; the listener itself is closed when this returns.
pub async fn run<F, Fut>(
    listener: TcpListener,
    limit: Arc<ConnectionLimit>,
    tcp_user: Duration,
    stop: CancellationToken,
    serve: F,
) where
    F: Fn(Accepted, ConnectionSlot) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut failures = 0;
    loop {
        while !limit.has_room() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = host::sleep(NO_ROOM) => {}
            }
        }
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (io, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => match pause_after(&error, failures, host::random_unit()) {
                None => {
                    debug!(%error, "connection ended before it was accepted");
                    continue;
                }
                Some(pause) => {
                    failures = failures.saturating_add(1);
                    warn!(%error, ?pause, open = limit.open(), "cannot accept connections (hint: raise the limit of open files)");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = host::sleep(pause) => continue,
                    }
                }
            },
        };
        failures = 0;
        let Some(slot) = limit.take() else {
            debug!(%peer, open = limit.open(), "connection refused: too many are open");
            continue;
        };
        let local = match socket::prepare(&io, tcp_user).and_then(|()| io.local_addr()) {
            Ok(local) => local,
            Err(error) => {
                debug!(%peer, %error, "connection ended before it was served");
                continue;
            }
        };
        // A socket for both families gives IPv4 addresses as part of IPv6; people search logs for what they dialled.
        host::spawn(serve(Accepted { io, peer: unmapped(peer), local: unmapped(local) }, slot));
    }
}

/// Between two looks whether there is room again.
const NO_ROOM: Duration = Duration::from_millis(20);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long to leave the listener alone after an error; `None`: only that connection is lost, go on.
///
/// Without the pause a process without descriptors spins: the connection stays in the queue and the next call
/// fails the same way. Doubles per failure in a row, up to half a second; half of it is chance, so that workers
/// do not retry together. Errors that nobody foresaw are treated the same: a listener must not end.
fn pause_after(error: &io::Error, failures: u32, chance: f64) -> Option<Duration> {
    // accept(2): errors already pending on the new connection are reported here, and are to be treated like EAGAIN.
    if matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
    ) {
        return None;
    }
    let pause = SHORTEST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    Some(pause.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::io::Errno;
    use tokio::{io::AsyncReadExt, net::TcpStream, sync::mpsc};

    use super::*;

    #[test]
    fn errors_pause_briefly_and_lost_connections_do_not() {
        // Out of descriptors the proxy would burn a core, or stop accepting for ever.
        for errno in [Errno::CONNABORTED, Errno::INTR, Errno::HOSTUNREACH] {
            assert_eq!(pause_after(&errno.into(), 3, 0.5), None, "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::INVAL] {
            let error = io::Error::from(errno);
            let mut last = Duration::ZERO;
            for failures in [0, 1, 4, 10, u32::MAX] {
                let pause = pause_after(&error, failures, 1.0).unwrap();
                assert!(pause >= last && pause <= LONGEST_PAUSE, "{errno} {failures}");
                assert!(pause_after(&error, failures, 0.0).unwrap() >= pause / 2);
                last = pause;
            }
        }
    }

    #[tokio::test]
    async fn without_room_connections_wait_and_are_served_later() {
        // A proxy that is short of memory would take in more until it is killed, or stay deaf after that.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = ConnectionLimit::new(10);
        limit.set_room(0);
        let stop = CancellationToken::new();
        let (sender, mut served) = mpsc::channel(4);
        let task =
            tokio::spawn(run(listener, Arc::clone(&limit), Duration::ZERO, stop.clone(), move |accepted, slot| {
                let sender = sender.clone();
                async move { sender.send((accepted, slot)).await.unwrap() }
            }));
        let _first = TcpStream::connect(address).await.unwrap();
        assert!(tokio::time::timeout(NO_ROOM * 3, served.recv()).await.is_err());
        limit.set_room(1);
        let (_accepted, slot) = served.recv().await.unwrap();
        assert!(!limit.has_room());
        drop(slot);
        assert!(limit.has_room());
        limit.set_room(0);
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn connections_over_the_limit_are_closed_and_later_ones_served() {
        // One flood would make the proxy refuse connections for ever, or serve more than the limit.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = ConnectionLimit::new(1);
        let stop = CancellationToken::new();
        let (sender, mut served) = mpsc::channel(4);
        let task = tokio::spawn(run(
            listener,
            Arc::clone(&limit),
            Duration::from_secs(10),
            stop.clone(),
            move |accepted: Accepted, slot| {
                let sender = sender.clone();
                async move { sender.send((accepted, slot)).await.unwrap() }
            },
        ));
        let first = TcpStream::connect(address).await.unwrap();
        let (accepted, slot) = served.recv().await.unwrap();
        assert_eq!((accepted.peer, accepted.local), (first.local_addr().unwrap(), address));

        let mut second = TcpStream::connect(address).await.unwrap();
        assert!(matches!(second.read(&mut [0]).await, Ok(0) | Err(_)));
        assert_eq!((limit.open(), limit.refused()), (1, 1));

        drop((accepted, slot));
        let _third = TcpStream::connect(address).await.unwrap();
        served.recv().await.unwrap();

        stop.cancel();
        task.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
