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

    /// Whether there is a limit at all.
    pub fn is_bounded(&self) -> bool {
        self.limit.load(Relaxed) != usize::MAX
    }

    /// Whether so much is held that whoever can do with less should.
    pub fn is_short(&self) -> bool {
        self.is_bounded() && self.held() > self.plenty()
    }

    /// Up to here memory is not short.
    fn plenty(&self) -> usize {
        self.limit.load(Relaxed) / 4 * 3
    }

    /// Held by all buffers.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    fn take(&self, bytes: usize, limit: usize) -> bool {
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
    /// Nothing yet, of this account.
    pub const fn of(account: &'static Growth) -> Self {
        Self { account, bytes: 0 }
    }

    /// Has at least so many bytes from now on; false: it cannot, and has what it had.
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        self.grow(bytes, self.account.limit.load(Relaxed))
    }

    /// The same for what is only good to have: never makes the account short.
    pub fn grow_in_plenty_to(&mut self, bytes: usize) -> bool {
        self.grow(bytes, self.account.plenty())
    }

    fn grow(&mut self, bytes: usize, limit: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            if !self.account.take(more, limit) {
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
        self.shrink_to(0);
    }

    /// Gives back what is beyond so many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less > 0 {
            self.account.held.fetch_sub(less, Relaxed);
            self.bytes = bytes;
        }
    }

    pub const fn account(&self) -> &'static Growth {
        self.account
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
                                one.shrink_to(before.max(25));
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
        assert!(ACCOUNT.is_bounded() && ACCOUNT.is_short());
        assert!(!Grown::of(&ACCOUNT).grow_in_plenty_to(1));
        drop(grown);
        assert_eq!(ACCOUNT.held(), 0, "what is not given back is lost for the life of the process");
        ACCOUNT.set_limit(0);
        assert!(!Growth::unbounded().is_bounded() && !Growth::unbounded().is_short());
        assert!(Grown::of(&ACCOUNT).grow_to(0) && !Grown::of(&ACCOUNT).grow_to(1));
    }
}
