//! Which share of the traffic may be retries. Pure.
//!
//! In every window: retries <= percent of requests + floor per second. One per backend, exact for the process.

use std::time::Duration;

use crate::host::Instant;

/// The rule. Defaults: 20 %, 10 per second, 10 s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudgetPolicy {
    pub percent: f64,
    pub min_retries_per_second: u32,
    pub window: Duration,
}

/// The account.
#[derive(Debug)]
pub struct RetryBudget {}

impl RetryBudget {
    pub fn new(_policy: RetryBudgetPolicy, _now: Instant) -> Self {
        Self {}
    }

    /// Follows a changed policy without forgetting what was spent.
    pub fn set_policy(&mut self, _policy: RetryBudgetPolicy, _now: Instant) {}

    /// Notes a first try.
    pub fn deposit(&mut self, _now: Instant) {}

    /// Takes one retry out, if there is one.
    pub fn withdraw(&mut self, _now: Instant) -> bool {
        false
    }
}
