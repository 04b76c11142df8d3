//! Which share of the traffic may be retries. Pure.
//!
//! Asked by the attempt loop: a deposit for each first try, a withdrawal for each retry. One per backend, exact for the
//! process (the caller holds the lock). The promise, at every withdrawal, over the window that ends there:
//!
//! ```text
//! retries <= percent / 100 * first tries + min_retries_per_second * window
//! ```
//!
//! Nothing older than the window counts, so quiet hours save nothing up. To keep the promise with a ring of buckets, both
//! ends lean to the safe side: first tries are summed over at most one window, retries over at least one (a tenth more).
//! Meaning of the fields: Istio's `retryBudget`, Gateway API's `retryConstraint` (GEP-3388).

use std::time::Duration;

use super::rolling::{Filled, Rolling};
use crate::host::Instant;

/// The rule. Defaults: 20 %, 10 per second, 10 s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudgetPolicy {
    /// Retries per hundred first tries, 0 to 100; beyond counts as the nearer end.
    pub percent: f64,
    /// Allowed whatever the traffic; may be spent at once: the window's worth of it. Zero: none.
    pub min_retries_per_second: u32,
    /// Less than 10 ms counts as 10 ms.
    pub window: Duration,
}

impl Default for RetryBudgetPolicy {
    fn default() -> Self {
        Self { percent: 20.0, min_retries_per_second: 10, window: Duration::from_secs(10) }
    }
}

/// Buckets per window.
const BUCKETS: usize = 10;

/// The account.
#[derive(Debug)]
pub struct RetryBudget {
    policy: RetryBudgetPolicy,
    /// One bucket more than the window has, see the header.
    ring: Rolling<Counts, { BUCKETS + 1 }>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    first_tries: u32,
    retries: u32,
}

impl RetryBudget {
    pub fn new(policy: RetryBudgetPolicy, now: Instant) -> Self {
        Self { policy, ring: Rolling::new(bucket_width(policy), now) }
    }

    /// Follows a changed policy without forgetting what was spent.
    pub fn set_policy(&mut self, policy: RetryBudgetPolicy, now: Instant) {
        // Again to the safe side: first tries as if they had come early, retries as if they had come late.
        self.ring.with_width(bucket_width(policy), now, |ring, Filled { from, to, counts }| {
            if let Some(bucket) = ring.containing(from) {
                bucket.first_tries = bucket.first_tries.saturating_add(counts.first_tries);
            }
            if let Some(bucket) = ring.containing(to) {
                bucket.retries = bucket.retries.saturating_add(counts.retries);
            }
        });
        self.policy = policy;
    }

    /// Notes a first try.
    pub fn deposit(&mut self, now: Instant) {
        let bucket = self.ring.current(now);
        bucket.first_tries = bucket.first_tries.saturating_add(1);
    }

    /// Takes one retry out, if there is one.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let first_tries: u64 = self.ring.newest(now, BUCKETS).map(|bucket| u64::from(bucket.first_tries)).sum();
        let retries: u64 = self.ring.newest(now, BUCKETS + 1).map(|bucket| u64::from(bucket.retries)).sum();
        let granted = (retries + 1) as f64 <= self.policy.allowance(first_tries);
        if granted {
            let bucket = self.ring.current(now);
            bucket.retries = bucket.retries.saturating_add(1);
        }
        granted
    }
}

impl RetryBudgetPolicy {
    /// Retries that one window with so many first tries may hold.
    fn allowance(&self, first_tries: u64) -> f64 {
        // `max` before `min`, so that NaN becomes 0.
        let percent = self.percent.max(0.0).min(100.0);
        // Multiplied before divided: 20 percent of 5 is exactly 1.
        percent * first_tries as f64 / 100.0 + f64::from(self.min_retries_per_second) * self.window().as_secs_f64()
    }

    fn window(&self) -> Duration {
        self.window.max(Duration::from_millis(10))
    }
}

fn bucket_width(policy: RetryBudgetPolicy) -> Duration {
    policy.window() / BUCKETS as u32
}
