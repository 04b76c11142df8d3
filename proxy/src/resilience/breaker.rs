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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host;

    const SECOND: Duration = Duration::from_secs(1);
    const MIDDLE: f64 = 0.5;

    /// A breaker on a clock of its own.
    struct Bench {
        breaker: Breaker,
        now: Instant,
        seen: Vec<State>,
    }

    impl Bench {
        fn new(change: impl FnOnce(&mut BreakerPolicy)) -> Self {
            let mut policy = BreakerPolicy::named("ns/test");
            change(&mut policy);
            let now = host::now();
            Self { breaker: Breaker::new(Arc::new(policy), now), now, seen: vec![State::Closed] }
        }

        fn note(&mut self, transition: Option<Transition>) {
            if let Some(Transition { from, to }) = transition {
                assert_eq!(self.seen.last(), Some(&from));
                assert_eq!(to, self.breaker.state());
                self.seen.push(to);
            }
        }

        fn permit(&mut self) -> Option<Permit> {
            let (permit, transition) = self.breaker.permit(self.now);
            self.note(transition);
            permit
        }

        fn report(&mut self, permit: Permit, result: Result, took: Duration) {
            let transition = self.breaker.report(permit, result, took, self.now, MIDDLE);
            self.note(transition);
        }

        /// One call from permit to outcome; `false` when it was refused.
        fn call(&mut self, result: Result) -> bool {
            let Some(permit) = self.permit() else { return false };
            self.report(permit, result, Duration::ZERO);
            true
        }

        /// How many of so many calls were admitted.
        fn calls(&mut self, count: usize, result: Result) -> usize {
            (0..count).filter(|_| self.call(result)).count()
        }

        fn time_open(&self) -> Duration {
            self.breaker.opens_again_in(self.now).unwrap()
        }

        fn wait_until_probe(&mut self) {
            self.now += self.time_open();
        }
    }

    #[test]
    fn it_opens_probes_and_closes() {
        // The whole promise: stop sending to what is broken, try carefully, go back to normal.
        let mut bench = Bench::new(|_| {});
        assert_eq!(bench.calls(100, Result::Failure), 20, "the twentieth failure trips it");
        assert_eq!(bench.time_open(), 5 * SECOND);
        bench.now += 5 * SECOND - Duration::from_nanos(1);
        assert!(bench.permit().is_none() && bench.breaker.state() == State::Open);
        bench.now += Duration::from_nanos(1);
        assert_eq!(bench.time_open(), Duration::ZERO);
        for probe in 0..3 {
            let permit = bench.permit().unwrap();
            assert!(permit.probe, "{probe}");
            assert!(bench.permit().is_none(), "one probe at a time");
            assert_eq!(bench.breaker.opens_again_in(bench.now), None);
            bench.report(permit, Result::Success, Duration::ZERO);
        }
        assert!(!bench.permit().unwrap().probe);
        assert_eq!(bench.seen, [State::Closed, State::Open, State::HalfOpen, State::Closed]);
        assert_eq!(
            bench.seen.iter().map(|state| state.word()).collect::<Vec<_>>(),
            ["closed", "open", "half_open", "closed"]
        );
        // Nothing of the time before the trip is left.
        assert_eq!(bench.calls(19, Result::Failure), 19);
        assert_eq!(bench.breaker.state(), State::Closed);
        bench.call(Result::Failure);
        assert_eq!(bench.time_open(), 5 * SECOND, "and the growth starts over");
    }

    #[test]
    fn failures_trip_it_by_share_and_volume() {
        // One failure out of one, at night, must not cut a service off; half of a busy minute must.
        for (successes, failures, minimum, percent, expected) in [
            (0, 19, 20, 50.0, State::Closed),
            (0, 20, 20, 50.0, State::Open),
            (10, 10, 20, 50.0, State::Open),
            (11, 10, 20, 50.0, State::Closed),
            (100, 0, 20, 0.0, State::Closed),
            (100, 1, 20, 0.0, State::Open),
            (0, 1, 0, 50.0, State::Open),
            (0, 100, 20, f64::NAN, State::Closed),
        ] {
            let mut bench = Bench::new(|policy| {
                policy.minimum_requests = minimum;
                policy.failure_percent = percent;
            });
            bench.calls(successes, Result::Success);
            bench.calls(failures, Result::Failure);
            assert_eq!(bench.breaker.state(), expected, "{failures} of {} at {percent} %", successes + failures);
        }
        // What fills the window may be a success.
        let mut bench = Bench::new(|_| {});
        bench.calls(19, Result::Failure);
        bench.call(Result::Success);
        assert_eq!(bench.breaker.state(), State::Open);
    }

    #[test]
    fn old_failures_are_forgotten() {
        // Failures spread over a day are no outage.
        let mut bench = Bench::new(|_| {});
        for _ in 0..100 {
            bench.calls(10, Result::Failure);
            bench.now += 11 * SECOND;
        }
        assert_eq!(bench.breaker.state(), State::Closed);
        bench.calls(10, Result::Failure);
        bench.now += 8 * SECOND;
        bench.calls(10, Result::Failure);
        assert_eq!(bench.breaker.state(), State::Open);
    }

    #[test]
    fn slow_calls_trip_it_when_asked_to() {
        // A backend that answers everything after a minute is as down as one that answers nothing.
        let slow = 2 * SECOND;
        for (limit, percent, slow_calls, expected) in [
            (None, 100.0, 20, State::Closed),
            (Some(SECOND), 100.0, 20, State::Open),
            (Some(SECOND), 100.0, 19, State::Closed),
            (Some(SECOND), 50.0, 10, State::Open),
            (Some(slow), 100.0, 20, State::Closed),
        ] {
            let mut bench = Bench::new(|policy| {
                policy.slow_call = limit;
                policy.slow_percent = percent;
            });
            for call in 0..20 {
                let permit = bench.permit().unwrap();
                bench.report(permit, Result::Success, if call < 20 - slow_calls { SECOND } else { slow });
            }
            assert_eq!(bench.breaker.state(), expected, "{limit:?} {percent} {slow_calls}");
        }
        // And a slow probe is a failed one.
        let mut bench = Bench::new(|policy| policy.slow_call = Some(SECOND));
        bench.calls(20, Result::Failure);
        bench.wait_until_probe();
        let permit = bench.permit().unwrap();
        bench.report(permit, Result::Success, slow);
        assert_eq!((bench.breaker.state(), bench.time_open()), (State::Open, 10 * SECOND));
    }

    #[test]
    fn failed_probes_double_the_time_open_up_to_the_cap() {
        // Probing a dead backend every five seconds from a thousand proxies keeps it dead.
        let mut bench = Bench::new(|_| {});
        bench.calls(20, Result::Failure);
        for seconds in [5, 10, 20, 40, 60, 60] {
            assert_eq!(bench.time_open(), seconds * SECOND);
            bench.wait_until_probe();
            assert_eq!(bench.calls(5, Result::Failure), 1);
        }
        // A success that is not enough does not reset the growth.
        bench.wait_until_probe();
        bench.calls(2, Result::Success);
        bench.call(Result::Failure);
        assert_eq!(bench.time_open(), 60 * SECOND);
    }

    #[test]
    fn the_time_open_is_spread_and_cannot_overflow() {
        // Jitter of plus and minus ten percent; absurd policies must not crash the proxy.
        let policy = BreakerPolicy::named("ns/test");
        assert_eq!(policy.time_open(0, 0.0), Duration::from_millis(4500));
        assert_eq!(policy.time_open(0, 1.0), Duration::from_millis(5500));
        assert_eq!(policy.time_open(1000, 0.5), 60 * SECOND);
        let mut bench = Bench::new(|policy| {
            policy.open = Duration::MAX;
            policy.window = Duration::ZERO;
            policy.minimum_requests = 1;
        });
        bench.call(Result::Failure);
        assert_eq!(bench.time_open(), LONGEST);
    }

    #[test]
    fn a_cancelled_probe_opens_again_for_no_longer() {
        // A client that hangs up must neither leave the breaker stuck half-open nor count as a failed backend.
        let mut bench = Bench::new(|_| {});
        bench.calls(20, Result::Failure);
        bench.wait_until_probe();
        let permit = bench.permit().unwrap();
        let transition = bench.breaker.cancel(permit, bench.now, MIDDLE);
        bench.note(transition);
        assert_eq!((bench.breaker.state(), bench.time_open()), (State::Open, 5 * SECOND));
        // Cancelled while closed: nothing.
        let mut bench = Bench::new(|policy| policy.minimum_requests = 1);
        let permit = bench.permit().unwrap();
        assert_eq!(bench.breaker.cancel(permit, bench.now, MIDDLE), None);
        assert_eq!(bench.breaker.state(), State::Closed);
    }

    #[test]
    fn a_probe_that_never_ends_does_not_hold_it_half_open() {
        // A backend that takes requests and never answers, without a timeout configured.
        let mut bench = Bench::new(|_| {});
        bench.calls(20, Result::Failure);
        bench.wait_until_probe();
        let lost = bench.permit().unwrap();
        bench.now += 59 * SECOND;
        assert!(bench.permit().is_none() && bench.breaker.state() == State::HalfOpen);
        bench.now += SECOND;
        assert!(bench.permit().is_none());
        assert_eq!((bench.breaker.state(), bench.time_open()), (State::Open, 10 * SECOND));
        bench.wait_until_probe();
        let probe = bench.permit().unwrap();
        bench.report(lost, Result::Success, Duration::ZERO);
        assert!(bench.permit().is_none(), "the late answer has freed no place");
        bench.report(probe, Result::Success, Duration::ZERO);
    }

    #[test]
    fn late_answers_do_not_count() {
        // What was sent before the trip says nothing about the backend now.
        let mut bench = Bench::new(|_| {});
        let early: Vec<_> = (0..3).map(|_| bench.permit().unwrap()).collect();
        bench.calls(20, Result::Failure);
        bench.wait_until_probe();
        let probe = bench.permit().unwrap();
        for permit in early {
            bench.report(permit, Result::Success, Duration::ZERO);
        }
        assert_eq!(bench.breaker.state(), State::HalfOpen);
        bench.report(probe, Result::Failure, Duration::ZERO);
        assert_eq!(bench.breaker.state(), State::Open);
    }

    #[test]
    fn a_changed_policy_keeps_state_and_counts() {
        // Applying a change during an outage must not close the breaker, nor forget the failures so far.
        let mut bench = Bench::new(|_| {});
        bench.calls(15, Result::Failure);
        let mut policy = BreakerPolicy::named("ns/test");
        policy.window = 20 * SECOND;
        bench.breaker.set_policy(Arc::new(policy.clone()));
        assert_eq!(bench.calls(100, Result::Failure), 5);
        policy.open = SECOND;
        bench.breaker.set_policy(Arc::new(policy));
        assert_eq!((bench.breaker.state(), bench.time_open()), (State::Open, 5 * SECOND));
        assert_eq!(bench.breaker.policy().open, SECOND);
    }

    /// P9, the breaker as a list of sentences: every call is remembered, nothing is clever.
    struct Model {
        policy: BreakerPolicy,
        state: State,
        epoch: u64,
        /// Number of the bucket, counted from `since`, and whether it failed.
        calls: Vec<(u128, bool)>,
        since: Instant,
        until: Instant,
        growth: u32,
        probes: u32,
        successes: u32,
    }

    impl Model {
        fn enter(&mut self, state: State) {
            (self.state, self.epoch, self.probes, self.successes) = (state, self.epoch + 1, 0, 0);
        }

        fn open(&mut self, now: Instant) {
            self.until = now + (self.policy.open * 2_u32.pow(self.growth.min(9))).min(self.policy.max_open);
            self.enter(State::Open);
        }

        fn permit(&mut self, now: Instant) -> bool {
            if self.state == State::Open && now >= self.until {
                self.enter(State::HalfOpen);
            }
            let admitted = match self.state {
                State::Closed => true,
                State::Open => false,
                State::HalfOpen => self.probes < self.policy.half_open_requests,
            };
            self.probes += u32::from(admitted);
            admitted
        }

        fn end(&mut self, epoch: u64, failed: Option<bool>, now: Instant) {
            if epoch != self.epoch {
                return;
            }
            match (self.state, failed) {
                (State::Closed, Some(failed)) => {
                    let bucket = |at: Instant| (at - self.since).as_nanos() / (self.policy.window / 10).as_nanos();
                    self.calls.push((bucket(now), failed));
                    let recent: Vec<_> = self.calls.iter().filter(|(at, _)| at + 10 > bucket(now)).collect();
                    let failures = recent.iter().filter(|(_, failed)| *failed).count();
                    if recent.len() >= self.policy.minimum_requests as usize
                        && 2 * failures >= recent.len()
                        && failures > 0
                    {
                        self.open(now);
                    }
                }
                (State::HalfOpen, Some(true)) => {
                    self.growth += 1;
                    self.open(now);
                }
                (State::HalfOpen, None) => self.open(now),
                (State::HalfOpen, Some(false)) => {
                    self.probes -= 1;
                    self.successes += 1;
                    if self.successes == self.policy.half_open_successes {
                        (self.calls, self.since, self.growth) = (Vec::new(), now, 0);
                        self.enter(State::Closed);
                    }
                }
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn it_does_what_the_model_does(
            minimum_requests in 1_u32..6, half_open_requests in 1_u32..4, half_open_successes in 1_u32..4,
            steps in proptest::collection::vec((0_u8..5, 0_usize..8, 0_u64..4000), 1..300),
        ) {
            // Any order of permits, late answers, cancellations and pauses.
            let mut bench = Bench::new(|policy| {
                (policy.minimum_requests, policy.half_open_requests, policy.half_open_successes) =
                    (minimum_requests, half_open_requests, half_open_successes);
                // Longer than the test, so that no probe counts as lost; the cap is tested above.
                policy.max_open = 10_000 * SECOND;
            });
            let mut model = Model {
                policy: BreakerPolicy::clone(bench.breaker.policy()),
                state: State::Closed, epoch: 0, calls: Vec::new(), since: bench.now, until: bench.now,
                growth: 0, probes: 0, successes: 0,
            };
            let mut out = Vec::new();
            for (step, which, millis) in steps {
                match step {
                    0 | 1 => {
                        let permit = bench.permit();
                        prop_assert_eq!(permit.is_some(), model.permit(bench.now));
                        out.extend(permit);
                    }
                    2 => bench.now += Duration::from_millis(millis),
                    _ if out.is_empty() => {}
                    _ => {
                        let permit = out.swap_remove(which % out.len());
                        // Mostly outcomes, some cancellations; failures about as often as successes.
                        let failed = if which == 7 { None } else { Some(step == 3) };
                        model.end(permit.epoch, failed, bench.now);
                        match failed {
                            Some(true) => bench.report(permit, Result::Failure, SECOND),
                            Some(false) => bench.report(permit, Result::Success, SECOND),
                            None => {
                                let transition = bench.breaker.cancel(permit, bench.now, MIDDLE);
                                bench.note(transition);
                            }
                        }
                    }
                }
                prop_assert_eq!((bench.breaker.state(), bench.breaker.epoch), (model.state, model.epoch));
                if model.state == State::Open {
                    let left = model.until.saturating_duration_since(bench.now).as_secs_f64();
                    prop_assert!((bench.time_open().as_secs_f64() - left).abs() < 1e-3);
                    // The halves of jitter round apart by a nanosecond; the rest of the test needs the same moment.
                    model.until = bench.now + bench.time_open();
                }
            }
        }
    }
}
