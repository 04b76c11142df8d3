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
