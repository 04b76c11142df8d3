//! Memory that connections hold beyond their first buffers, bounded for the whole process.
//!
//! A connection begins with buffers of a few KiB and grows them while it moves much, or while a head does not end. What all of them may have
//! together is set by `sidecar/watch_overload.rs` from the memory there is; past it everything goes on in small pieces, and only what
//! needs one large buffer (a large head) is refused. Looking at the memory of the process alone would be too late: a thousand connections
//! grow in less time than lies between two looks.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// An account of bytes.
#[derive(Debug)]
pub struct Growth {
    held: AtomicUsize,
    limit: AtomicUsize,
}

/// The account of this process: memory is a property of the process, and whoever buffers is far from whoever measures.
pub static GROWTH: Growth = Growth::unbounded();

/// What one buffer has of an account; given back when dropped.
#[derive(Debug)]
pub struct Grown {
    account: &'static Growth,
    bytes: usize,
}

impl Growth {
    pub const fn unbounded() -> Self {
        Self { held: AtomicUsize::new(0), limit: AtomicUsize::new(usize::MAX) }
    }

    /// Bounds what is held from now on; what is held already stays.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Relaxed);
    }

    /// Held by all buffers.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let limit = self.limit.load(Relaxed);
        let taken =
            self.held.fetch_update(Relaxed, Relaxed, |held| held.checked_add(bytes).filter(|held| *held <= limit));
        taken.is_ok()
    }
}

impl Default for Grown {
    /// Nothing yet, of the process's account.
    fn default() -> Self {
        Self::of(&GROWTH)
    }
}

impl Grown {
    const fn of(account: &'static Growth) -> Self {
        Self { account, bytes: 0 }
    }

    /// Has at least so many bytes from now on; false: it cannot, and has what it had.
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            if !self.account.take(more) {
                return false;
            }
            self.bytes = bytes;
        }
        true
    }

    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives everything back.
    pub fn shrink(&mut self) {
        if self.bytes > 0 {
            self.account.held.fetch_sub(self.bytes, Relaxed);
            self.bytes = 0;
        }
    }
}

impl Drop for Grown {
    fn drop(&mut self) {
        self.shrink();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_buffers_together_stay_below_the_limit() {
        // Ten thousand connections would each take a large buffer in the same moment, and the process be killed.
        static ACCOUNT: Growth = Growth::unbounded();
        ACCOUNT.set_limit(1000);
        let grown = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut all: Vec<Grown> = (0..100).map(|_| Grown::of(&ACCOUNT)).collect();
                        for one in &mut all {
                            for bytes in [10, 5, 30, 30] {
                                let before = one.bytes();
                                let grew = one.grow_to(bytes);
                                assert_eq!(one.bytes(), if grew { before.max(bytes) } else { before });
                                assert!(ACCOUNT.held() <= 1000);
                            }
                        }
                        all
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect::<Vec<_>>()
        });
        assert_eq!(ACCOUNT.held(), grown.iter().map(Grown::bytes).sum::<usize>());
        assert!(ACCOUNT.held() > 970, "it is used as far as it goes: {}", ACCOUNT.held());
        drop(grown);
        assert_eq!(ACCOUNT.held(), 0, "what is not given back is lost for the life of the process");
        ACCOUNT.set_limit(0);
        assert!(Grown::of(&ACCOUNT).grow_to(0) && !Grown::of(&ACCOUNT).grow_to(1));
    }
}
