//! A connection arrives: the socket, who called, and where it was going.
//!
//! `listener` accepts and bounds, `socket` sets the options every connection gets, `original_dst` asks the kernel
//! where a redirected connection wanted to go. Nothing here reads a byte of the connection.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;

pub mod circles;
pub mod listener;
pub mod original_dst;
pub mod socket;

/// One accepted connection.
#[derive(Debug)]
pub struct Accepted {
    pub io: TcpStream,
    /// The caller's address.
    pub peer: SocketAddr,
    /// Our address; under redirection not the one the caller dialled.
    pub local: SocketAddr,
}

/// Downstream connections of the whole process, counted exactly.
#[derive(Debug)]
pub struct ConnectionLimit {
    limit: usize,
    /// As many as the process has room for now; past it nothing more is accepted.
    room: std::sync::atomic::AtomicUsize,
    open: std::sync::atomic::AtomicUsize,
    refused: std::sync::atomic::AtomicU64,
}

/// The place one connection takes; dropping it frees the place.
#[derive(Debug)]
pub struct ConnectionSlot(Arc<ConnectionLimit>);

impl ConnectionLimit {
    /// At most `limit` at once; zero refuses all.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, room: usize::MAX.into(), open: 0.into(), refused: 0.into() })
    }

    /// Takes a place; `None` when all are taken, which is counted.
    pub fn take(self: &Arc<Self>) -> Option<ConnectionSlot> {
        use std::sync::atomic::Ordering::Relaxed;
        // A single read-modify-write decides, so that workers racing for the last place cannot both get it.
        if self.open.fetch_update(Relaxed, Relaxed, |open| (open < self.limit).then_some(open + 1)).is_ok() {
            Some(ConnectionSlot(Arc::clone(self)))
        } else {
            self.refused.fetch_add(1, Relaxed);
            None
        }
    }

    /// The limit itself.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Lets listeners wait while so many are open or more; zero: in any case. Those that are open stay.
    pub fn set_room(&self, room: usize) {
        self.room.store(room, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether another one should be accepted.
    pub fn has_room(&self) -> bool {
        self.open() < self.room.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Open now.
    pub fn open(&self) -> usize {
        self.open.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Refused since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_exact_over_threads() {
        // Under a flood the proxy would open more connections than it has memory or descriptors for.
        let limit = ConnectionLimit::new(100);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let limit = Arc::clone(&limit);
                std::thread::spawn(move || (0..50).filter_map(|_| limit.take()).collect::<Vec<_>>())
            })
            .collect();
        let slots: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!((slots.len(), limit.open(), limit.refused()), (100, 100, 300));
        drop(slots);
        assert_eq!(limit.open(), 0);
        assert!(limit.take().is_some());
    }
}
