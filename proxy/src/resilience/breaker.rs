//! Closed, open, half-open: one breaker per route rule and backend. Pure.

use std::{sync::Arc, time::Duration};

use super::fallback::FallbackPolicy;
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
    /// Percent, default 50.
    pub failure_percent: f64,
    /// Default 5 s.
    pub open: Duration,
    /// Default 60 s.
    pub max_open: Duration,
    /// Default 1.
    pub half_open_requests: u32,
    /// Default 3.
    pub half_open_successes: u32,
    /// `None`: latency does not matter.
    pub slow_call: Option<Duration>,
    /// Percent, default 100.
    pub slow_percent: f64,
    pub fallback: Option<Arc<FallbackPolicy>>,
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

/// Leave to send one try; must be given back through [`Breaker::report`] or [`Breaker::cancel`].
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

/// One breaker.
#[derive(Debug)]
pub struct Breaker {}

impl Breaker {
    pub fn new(_policy: Arc<BreakerPolicy>, _now: Instant) -> Self {
        Self {}
    }

    /// Follows a changed policy; the state stays.
    pub fn set_policy(&mut self, _policy: Arc<BreakerPolicy>) {}

    /// The state as of `now` (an open breaker whose time is over reads as half-open only once a permit is asked).
    pub fn state(&self) -> State {
        State::Closed
    }

    /// Asks for leave; `None` while open, or while half-open with all probes out. `random` in `[0, 1)`.
    pub fn permit(&mut self, _now: Instant) -> (Option<Permit>, Option<Transition>) {
        (Some(Permit { epoch: 0, probe: false }), None)
    }

    /// Gives the outcome of a permitted try.
    pub fn report(
        &mut self,
        _permit: Permit,
        _result: Result,
        _took: Duration,
        _now: Instant,
        _random: f64,
    ) -> Option<Transition> {
        None
    }

    /// A permitted try that was dropped: a probe that never answered goes back to open.
    pub fn cancel(&mut self, _permit: Permit, _now: Instant, _random: f64) -> Option<Transition> {
        None
    }
}
