//! How much may be in flight to one backend, exact for the whole process.
//!
//! Istio's connectionPool: a count of 0 in the policy means no limit. Asked by the attempt loop and the pool before each
//! connection, wait, request, retry and fallback. All workers share one [`Limits`] per backend; nothing waits here, a
//! limit that is reached refuses at once.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// The limits themselves; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitPolicy {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
}

/// The counters of one backend.
#[derive(Debug, Default)]
pub struct Limits {
    pub connections: AtomicU32,
    pub pending: AtomicU32,
    pub requests: AtomicU32,
    pub retries: AtomicU32,
    pub fallbacks: AtomicU32,
}

/// Which counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Connection,
    Pending,
    Request,
    Retry,
    /// Limited by `FallbackPolicy::max_concurrent`, not by [`LimitPolicy`].
    Fallback,
}

/// One unit in flight; given back when dropped.
#[must_use = "dropping it gives the unit back"]
#[derive(Debug)]
pub struct Held {
    limits: Arc<Limits>,
    slot: Slot,
}

impl LimitPolicy {
    /// The limit of one counter; 0: none.
    pub const fn maximum(&self, slot: Slot) -> u32 {
        match slot {
            Slot::Connection => self.max_connections,
            Slot::Pending => self.max_pending_requests,
            Slot::Request => self.max_requests,
            Slot::Retry => self.max_retries,
            Slot::Fallback => 0,
        }
    }
}

impl Limits {
    /// Takes one unit, or `None` when `maximum` (0: none) is reached.
    pub fn acquire(self: &Arc<Self>, slot: Slot, maximum: u32) -> Option<Held> {
        // Compare and swap, not add and look: adding first would let a refused caller be seen by, and refuse, another.
        // Relaxed is enough: the counter guards only itself, no other memory is read because of it.
        let take = |held: u32| if maximum == 0 || held < maximum { held.checked_add(1) } else { None };
        self.counter(slot).fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Held { limits: Arc::clone(self), slot })
    }

    /// Units in flight right now; for metrics and the admin page.
    pub fn held(&self, slot: Slot) -> u32 {
        self.counter(slot).load(Ordering::Relaxed)
    }

    const fn counter(&self, slot: Slot) -> &AtomicU32 {
        match slot {
            Slot::Connection => &self.connections,
            Slot::Pending => &self.pending,
            Slot::Request => &self.requests,
            Slot::Retry => &self.retries,
            Slot::Fallback => &self.fallbacks,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.limits.counter(self.slot).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    const SLOTS: [Slot; 5] = [Slot::Connection, Slot::Pending, Slot::Request, Slot::Retry, Slot::Fallback];

    #[test]
    fn each_slot_is_counted_apart_and_given_back() {
        // A unit that was not given back would shrink the limit for ever.
        let limits = Arc::new(Limits::default());
        for slot in SLOTS {
            let first = limits.acquire(slot, 2).unwrap();
            let second = limits.acquire(slot, 2).unwrap();
            assert!(limits.acquire(slot, 2).is_none(), "{slot:?}");
            assert_eq!(SLOTS.map(|other| limits.held(other)), SLOTS.map(|other| if other == slot { 2 } else { 0 }));
            drop(first);
            assert!(limits.acquire(slot, 2).is_some(), "{slot:?}");
            drop(second);
            assert_eq!(limits.held(slot), 0, "{slot:?}");
        }
    }

    #[test]
    fn zero_means_no_limit_and_a_lowered_limit_holds_at_once() {
        // Istio's zero; reading it as "none allowed" would stop all traffic.
        let limits = Arc::new(Limits::default());
        let held: Vec<_> = (0..1000).map(|_| limits.acquire(Slot::Request, 0).unwrap()).collect();
        assert_eq!(limits.held(Slot::Request), 1000);
        assert!(limits.acquire(Slot::Request, 10).is_none());
        drop(held);
        assert!(limits.acquire(Slot::Request, 10).is_some());
        let policy = LimitPolicy { max_connections: 1, max_pending_requests: 2, max_requests: 3, max_retries: 4 };
        assert_eq!(SLOTS.map(|slot| policy.maximum(slot)), [1, 2, 3, 4, 0]);
    }

    #[test]
    fn many_threads_never_exceed_the_maximum() {
        // Workers share the counters; a limit of 3 that lets 4 through in a race is not a limit.
        const MAXIMUM: u32 = 3;
        const THREADS: usize = 8;
        let limits = Arc::new(Limits::default());
        // What really is in flight, counted apart from the code under test.
        let inside = AtomicU32::new(0);
        let barrier = Barrier::new(THREADS);
        let (entered, refused): (u32, u32) = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        let (mut entered, mut refused) = (0, 0);
                        for turn in 0..5_000 {
                            let Some(held) = limits.acquire(Slot::Retry, MAXIMUM) else {
                                refused += 1;
                                continue;
                            };
                            entered += 1;
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < MAXIMUM);
                            if turn % 16 == 0 {
                                thread::yield_now();
                            }
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(held);
                        }
                        (entered, refused)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
        });
        assert_eq!(entered + refused, 8 * 5_000);
        assert_eq!(limits.held(Slot::Retry), 0);
        assert_eq!((0..5).filter_map(|_| limits.acquire(Slot::Retry, MAXIMUM).map(std::mem::forget)).count(), 3);
    }
}
