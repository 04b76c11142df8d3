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
        // Multiplied before divided: 20 percent of 5 is exactly 1. `max` turns NaN into 0.
        let share = (self.percent.clamp(0.0, 100.0) * first_tries as f64 / 100.0).max(0.0);
        share + f64::from(self.min_retries_per_second) * self.window().as_secs_f64()
    }

    fn window(&self) -> Duration {
        self.window.max(Duration::from_millis(10))
    }
}

fn bucket_width(policy: RetryBudgetPolicy) -> Duration {
    policy.window() / BUCKETS as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host;

    fn policy(percent: f64, min_retries_per_second: u32, window_seconds: u64) -> RetryBudgetPolicy {
        RetryBudgetPolicy { percent, min_retries_per_second, window: Duration::from_secs(window_seconds) }
    }

    fn withdrawn(budget: &mut RetryBudget, now: Instant) -> u32 {
        let mut count = 0;
        while budget.withdraw(now) {
            count += 1;
        }
        count
    }

    #[test]
    fn a_share_of_the_traffic_and_the_floor() {
        // Too much and retries finish off a backend that is struggling; too little and the first error is shown.
        let now = host::now();
        for (percent, floor, requests, expected) in [
            (20.0, 0, 100, 20),
            (20.0, 0, 4, 0),
            (20.0, 0, 5, 1),
            (0.0, 2, 1000, 20),
            (20.0, 10, 0, 100),
            (20.0, 10, 50, 110),
            (100.0, 0, 7, 7),
            (-5.0, 0, 100, 0),
            (900.0, 0, 100, 100),
            (f64::NAN, 1, 100, 10),
        ] {
            let mut budget = RetryBudget::new(policy(percent, floor, 10), now);
            for _ in 0..requests {
                budget.deposit(now);
            }
            assert_eq!(withdrawn(&mut budget, now), expected, "{percent} % of {requests} and {floor}/s");
        }
    }

    #[test]
    fn quiet_hours_save_nothing_up() {
        // A budget saved overnight would be a retry storm in the morning.
        let start = host::now();
        let mut budget = RetryBudget::new(policy(20.0, 1, 10), start);
        for _ in 0..10_000 {
            budget.deposit(start);
        }
        let later = start + Duration::from_secs(3600);
        assert_eq!(withdrawn(&mut budget, later), 10);
        assert_eq!(withdrawn(&mut budget, later + Duration::from_secs(9)), 0);
        assert_eq!(withdrawn(&mut budget, later + Duration::from_secs(12)), 10);
    }

    #[test]
    fn a_changed_policy_keeps_what_was_spent() {
        // Otherwise each configuration change would hand out a fresh budget.
        let now = host::now();
        let mut budget = RetryBudget::new(policy(0.0, 10, 10), now);
        assert_eq!(withdrawn(&mut budget, now), 100);
        budget.set_policy(policy(0.0, 11, 10), now);
        assert_eq!(withdrawn(&mut budget, now), 10);
        budget.set_policy(policy(0.0, 11, 20), now + Duration::from_secs(1));
        assert_eq!(withdrawn(&mut budget, now + Duration::from_secs(1)), 110);
        budget.set_policy(policy(0.0, 11, 5), now + Duration::from_secs(2));
        assert_eq!(withdrawn(&mut budget, now + Duration::from_secs(2)), 0);
        budget.set_policy(policy(0.0, 1, 0), now + Duration::from_secs(3));
        assert_eq!(
            withdrawn(&mut budget, now + Duration::from_secs(3)),
            0,
            "a window of zero allows nothing, and does not crash"
        );
    }

    proptest! {
        #[test]
        fn no_window_ending_at_a_retry_exceeds_the_budget(
            percent in 0_u32..=100, floor in 0_u32..4, window_seconds in 1_u64..20,
            events in proptest::collection::vec((0_u64..3000, 0_u8..4), 1..400),
        ) {
            // P1, against a record of every event. And the other way: what the budget can hold is granted.
            let policy = policy(f64::from(percent), floor, window_seconds);
            let mut now = host::now();
            let mut budget = RetryBudget::new(policy, now);
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for (pause_millis, kind) in events {
                // Half of the events come in bursts.
                now += Duration::from_millis(pause_millis.saturating_sub(1500));
                if kind < 2 {
                    budget.deposit(now);
                    requests.push(now);
                    continue;
                }
                let since = |events: &[Instant], span: Duration| {
                    events.iter().filter(|&&event| now.duration_since(event) < span).count() as f64
                };
                let allowed = |requests: f64| f64::from(percent) * requests / 100.0 + f64::from(floor) * policy.window.as_secs_f64();
                let granted = budget.withdraw(now);
                if granted {
                    retries.push(now);
                    prop_assert!(since(&retries, policy.window) <= allowed(since(&requests, policy.window)));
                } else {
                    let sure = since(&requests, policy.window * 9 / 10);
                    let spent = since(&retries, policy.window * 11 / 10);
                    prop_assert!(spent + 1.0 > allowed(sure), "refused with {spent} spent of {}", allowed(sure));
                }
            }
        }
    }
}
