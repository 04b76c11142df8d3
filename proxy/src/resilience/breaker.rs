//! Closed, open, half-open: one breaker per route rule and backend. Pure.
//!
//! ```text
//!            failures or slow calls reach their share of a full enough window
//!   ┌────────┐ ────────────────────────────────────────────────────► ┌──────┐
//!   │ closed │                                                       │ open │ admits nothing
//!   └────────┘ ◄──────────────┐              ┌─────────────────────► └──────┘
//!                             │              │ a probe fails, is        │
//!         `half_open_successes`              │ cancelled or is lost     │ its time is over and
//!         probes succeed      │  ┌───────────┐                          │ somebody asks
//!                             └──│ half-open │ ◄────────────────────────┘
//!                                └───────────┘ admits `half_open_requests` probes at once
//! ```
//!
//! Asked and told by the attempt loop for each try; the caller holds the lock, so probes are exact for the process. Each
//! change of state begins a new epoch, and outcomes of permits from an earlier one are ignored: what was sent before the
//! trip says nothing about the backend after it. Each failed probe doubles the time open, up to `max_open`; closing
//! resets it. Words and defaults follow Hystrix and resilience4j. This is not ejection, which is per endpoint.

use std::{sync::Arc, time::Duration};

use super::{fallback::FallbackPolicy, rolling::Rolling};
use crate::host::Instant;

/// The rule, all defaults filled in.
#[derive(Clone, Debug)]
pub struct BreakerPolicy {
    /// "namespace/name" of the CircuitBreaker.
    pub name: Arc<str>,
    /// Default 10 s.
    pub window: Duration,
    /// Default 20.
    pub minimum_requests: u32,
    /// Percent, default 50. Never trips without a single failure.
    pub failure_percent: f64,
    /// Default 5 s.
    pub open: Duration,
    /// Default 60 s.
    pub max_open: Duration,
    /// Default 1; zero counts as 1.
    pub half_open_requests: u32,
    /// Default 3; zero counts as 1.
    pub half_open_successes: u32,
    /// `None`: latency does not matter. A probe slower than this counts as failed.
    pub slow_call: Option<Duration>,
    /// Percent, default 100. Never trips without a single slow call.
    pub slow_percent: f64,
    pub fallback: Option<Arc<FallbackPolicy>>,
}

impl BreakerPolicy {
    /// The defaults under a name.
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            window: Duration::from_secs(10),
            minimum_requests: 20,
            failure_percent: 50.0,
            open: Duration::from_secs(5),
            max_open: Duration::from_secs(60),
            half_open_requests: 1,
            half_open_successes: 3,
            slow_call: None,
            slow_percent: 100.0,
            fallback: None,
        }
    }

    /// Time open after `failed_probes` failed probes in a row; `random` in `[0, 1)` makes it 0.9 to 1.1 times as long,
    /// so that many proxies do not probe together.
    fn time_open(&self, failed_probes: u32, random: f64) -> Duration {
        let doubled = self.open.saturating_mul(1_u32.checked_shl(failed_probes).unwrap_or(u32::MAX));
        let time = doubled.min(self.max_open.max(self.open));
        let jitter = 0.9 + 0.2 * random.clamp(0.0, 1.0);
        Duration::try_from_secs_f64(time.as_secs_f64() * jitter).unwrap_or(time)
    }
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

impl State {
    /// The stable word for metrics, logs and the demo's report.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Leave to send one try; must be given back through [`Breaker::report`] or [`Breaker::cancel`].
#[must_use = "give it back with Breaker::report or Breaker::cancel"]
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    /// Which era of the breaker gave it; late answers from an earlier era do not count.
    pub epoch: u64,
    pub probe: bool,
}

/// A change of state, for metrics, logs and watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    pub from: State,
    pub to: State,
}

/// What came of a try, as the breaker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Result {
    Success,
    Failure,
}

/// Stands for a time open that the clock cannot hold.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Buckets per window.
const BUCKETS: usize = 10;

/// One breaker.
#[derive(Debug)]
pub struct Breaker {
    policy: Arc<BreakerPolicy>,
    phase: Phase,
    /// Number of changes of state so far.
    epoch: u64,
    /// Filled while closed.
    window: Rolling<Counts, BUCKETS>,
    /// Failed probes since it was last closed.
    failed_probes: u32,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        /// Probes without an outcome yet.
        under_way: u32,
        successes: u32,
        /// When the newest probe was let out.
        last_probe: Instant,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    calls: u32,
    failures: u32,
    slow: u32,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(policy: Arc<BreakerPolicy>, now: Instant) -> Self {
        let window = Rolling::new(policy.window / BUCKETS as u32, now);
        Self { policy, phase: Phase::Closed, epoch: 0, window, failed_probes: 0 }
    }

    /// Follows a changed policy; the state stays, and so do what was counted and the time an open breaker still stays open.
    pub fn set_policy(&mut self, policy: Arc<BreakerPolicy>) {
        self.policy = policy;
    }

    /// The rule in force.
    pub fn policy(&self) -> &Arc<BreakerPolicy> {
        &self.policy
    }

    /// The state as of the last call (an open breaker whose time is over reads as half-open only once a permit is asked).
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Time until an open breaker lets a probe through, for display; zero: the next request is one. `None`: not open.
    pub fn opens_again_in(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Open { until } => Some(until.saturating_duration_since(now)),
            Phase::Closed | Phase::HalfOpen { .. } => None,
        }
    }

    /// Asks for leave; `None` while open, or while half-open with all probes out.
    ///
    /// When probes have been out for `max_open` without an outcome, they count as lost: the breaker opens again, because
    /// a backend that takes requests and never answers must not hold it half-open for ever.
    pub fn permit(&mut self, now: Instant) -> (Option<Permit>, Option<Transition>) {
        let allowed = self.policy.half_open_requests.max(1);
        match self.phase {
            Phase::Closed => (Some(Permit { epoch: self.epoch, probe: false }), None),
            Phase::Open { until } if now < until => (None, None),
            Phase::Open { .. } => {
                let half_open = Phase::HalfOpen { under_way: 1, successes: 0, last_probe: now };
                let transition = self.enter(half_open);
                (Some(Permit { epoch: self.epoch, probe: true }), transition)
            }
            Phase::HalfOpen { under_way, successes, .. } if under_way < allowed => {
                self.phase = Phase::HalfOpen { under_way: under_way + 1, successes, last_probe: now };
                (Some(Permit { epoch: self.epoch, probe: true }), None)
            }
            Phase::HalfOpen { last_probe, .. } => {
                let lost = now.saturating_duration_since(last_probe) >= self.policy.max_open.max(self.policy.open);
                // The middle of the jitter: who is refused here has brought no randomness.
                (None, if lost { self.reopen(now, 0.5) } else { None })
            }
        }
    }

    /// Gives the outcome of a permitted try; `random` in `[0, 1)` spreads the time open.
    pub fn report(
        &mut self,
        permit: Permit,
        result: Result,
        took: Duration,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        if permit.epoch != self.epoch {
            return None;
        }
        let failed = result == Result::Failure;
        let slow = self.policy.slow_call.is_some_and(|limit| took > limit);
        match self.phase {
            Phase::Closed => {
                let one = Counts { calls: 1, failures: u32::from(failed), slow: u32::from(slow) };
                self.follow_window(now);
                self.window.current(now).add(one);
                if self.is_over_threshold(now) { self.open(now, random) } else { None }
            }
            Phase::HalfOpen { .. } if failed || slow => self.reopen(now, random),
            Phase::HalfOpen { under_way, successes, last_probe } => {
                let successes = successes + 1;
                if successes >= self.policy.half_open_successes {
                    return self.close(now);
                }
                self.phase = Phase::HalfOpen { under_way: under_way.saturating_sub(1), successes, last_probe };
                None
            }
            // No permit carries the epoch of an open breaker.
            Phase::Open { .. } => None,
        }
    }

    /// A permitted try that was dropped: a probe that never answered goes back to open, for no longer than before, since
    /// nothing is known of the backend.
    pub fn cancel(&mut self, permit: Permit, now: Instant, random: f64) -> Option<Transition> {
        let half_open = matches!(self.phase, Phase::HalfOpen { .. });
        if permit.epoch == self.epoch && half_open { self.open(now, random) } else { None }
    }

    /// When the policy's window has another length than before, puts what was counted where it began in the new one.
    fn follow_window(&mut self, now: Instant) {
        self.window.with_width(self.policy.window / BUCKETS as u32, now, |window, filled| {
            if let Some(counts) = window.containing(filled.from) {
                counts.add(filled.counts);
            }
        });
    }

    fn is_over_threshold(&mut self, now: Instant) -> bool {
        let mut sum = Counts::default();
        for counts in self.window.newest(now, BUCKETS) {
            sum.add(counts);
        }
        let reaches = |part: u32, percent: f64| part > 0 && f64::from(part) * 100.0 >= percent * f64::from(sum.calls);
        sum.calls >= self.policy.minimum_requests
            && (reaches(sum.failures, self.policy.failure_percent) || reaches(sum.slow, self.policy.slow_percent))
    }

    /// From half-open, after a failed probe.
    fn reopen(&mut self, now: Instant, random: f64) -> Option<Transition> {
        self.failed_probes = self.failed_probes.saturating_add(1);
        self.open(now, random)
    }

    fn open(&mut self, now: Instant, random: f64) -> Option<Transition> {
        let time = self.policy.time_open(self.failed_probes, random);
        let until = now.checked_add(time).unwrap_or_else(|| now + LONGEST);
        self.enter(Phase::Open { until })
    }

    fn close(&mut self, now: Instant) -> Option<Transition> {
        self.failed_probes = 0;
        // What was counted before the trip must not trip it again.
        self.window = Rolling::new(self.policy.window / BUCKETS as u32, now);
        self.enter(Phase::Closed)
    }

    fn enter(&mut self, phase: Phase) -> Option<Transition> {
        let from = self.state();
        self.phase = phase;
        self.epoch += 1;
        Some(Transition { from, to: self.state() })
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.failures = self.failures.saturating_add(other.failures);
        self.slow = self.slow.saturating_add(other.slow);
    }
}
