//! When an endpoint is put aside and when it may return. Pure.
//!
//! Asked by `balance` before each pick; told by `upstream` after each response. Field names and meaning follow
//! Istio's `outlierDetection`; times come in as `now`, never read here. Two differences from Envoy, both gentler: an
//! endpoint returns when its time is over and not at the next sweep, and a backend's only endpoint is not ejected
//! (see [`may_eject`]). There is no sweep at all: what a sweep would do is computed when somebody asks.

use std::time::Duration;

use crate::host::Instant;

/// Istio's outlierDetection. Zero counts: off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionPolicy {
    /// Default 5.
    pub consecutive_5xx: u32,
    /// Default off.
    pub consecutive_gateway_errors: u32,
    /// Only with `split_local_errors`; default 5.
    pub consecutive_local_failures: u32,
    /// Whether [`Fault::Local`] has a count of its own; otherwise it counts as a gateway error. Default no.
    pub split_local_errors: bool,
    /// After each such time without an ejection the next one is a step shorter. Default 10 s; zero: never shorter.
    pub interval: Duration,
    /// First ejection; multiplied by how often it was ejected, up to [`MAX_EJECTION`] or this time itself, if longer.
    /// Default 30 s.
    pub base_ejection_time: Duration,
    /// Default 10; at least one endpoint may always be ejected (see [`may_eject`]). Zero: none.
    pub max_ejection_percent: u32,
    /// The panic threshold: below this share of ready endpoints ejection is ignored (see [`crate::balance`]). Default 0: never
    /// ignored.
    pub min_health_percent: u32,
}

impl Default for EjectionPolicy {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_errors: 0,
            consecutive_local_failures: 5,
            split_local_errors: false,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}

impl EjectionPolicy {
    /// Nothing is put aside, and what was put aside is used: for an endpoint that the application dialled itself.
    pub const IGNORED: Self = Self {
        consecutive_5xx: 0,
        consecutive_gateway_errors: 0,
        consecutive_local_failures: 0,
        split_local_errors: false,
        interval: Duration::ZERO,
        base_ejection_time: Duration::ZERO,
        max_ejection_percent: 0,
        min_health_percent: 100,
    };
}

/// Longest ejection, unless `base_ejection_time` is longer (Envoy's `max_ejection_time`).
pub const MAX_EJECTION: Duration = Duration::from_secs(300);

/// What came of one try, as ejection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered below 500.
    None,
    /// Answered with 5xx other than the gateway codes.
    ServerError,
    /// Answered 502, 503 or 504.
    GatewayError,
    /// Could not be reached, or broke off.
    Local,
}

/// The record of one endpoint.
#[derive(Debug, Default)]
pub struct Ejection {
    /// In a row, each of its kind.
    errors_5xx: u32,
    gateway_errors: u32,
    local_failures: u32,
    /// Put aside until then.
    until: Option<Instant>,
    /// How often it was ejected, less what has been forgiven since; counts as of `returned`.
    times: u32,
    /// When the last ejection was over.
    returned: Option<Instant>,
}

impl Ejection {
    /// Notes an outcome. `true`: this endpoint should be ejected now, if the backend's share allows; the caller
    /// checks [`may_eject`] and then calls [`Ejection::eject`].
    ///
    /// Outcomes of requests that were under way when it was ejected change nothing.
    pub fn note(&mut self, policy: &EjectionPolicy, fault: Fault) -> bool {
        if self.until.is_some() {
            return false;
        }
        let fault = if fault == Fault::Local && !policy.split_local_errors { Fault::GatewayError } else { fault };
        match fault {
            Fault::None => (self.errors_5xx, self.gateway_errors, self.local_failures) = (0, 0, 0),
            Fault::ServerError => {
                self.errors_5xx = self.errors_5xx.saturating_add(1);
                self.gateway_errors = 0;
                self.local_failures = 0;
            }
            Fault::GatewayError => {
                self.errors_5xx = self.errors_5xx.saturating_add(1);
                self.gateway_errors = self.gateway_errors.saturating_add(1);
                self.local_failures = 0;
            }
            // With split counts, what could not be reached says nothing about what it would have answered.
            Fault::Local => self.local_failures = self.local_failures.saturating_add(1),
        }
        // Asks again at each further error while the share does not allow the ejection.
        let reached = |count: u32, threshold: u32| threshold > 0 && count >= threshold;
        reached(self.errors_5xx, policy.consecutive_5xx)
            || reached(self.gateway_errors, policy.consecutive_gateway_errors)
            || (policy.split_local_errors && reached(self.local_failures, policy.consecutive_local_failures))
    }

    /// Puts it aside for the base time multiplied by how often it was ejected.
    pub fn eject(&mut self, policy: &EjectionPolicy, now: Instant) {
        self.times = self.times_ejected(policy, now).saturating_add(1);
        let longest = MAX_EJECTION.max(policy.base_ejection_time);
        let time = policy.base_ejection_time.saturating_mul(self.times).min(longest);
        (self.errors_5xx, self.gateway_errors, self.local_failures) = (0, 0, 0);
        self.until = Some(now.checked_add(time).unwrap_or_else(|| now + MAX_EJECTION));
    }

    /// Whether it is put aside at `now`; brings it back when its time is over.
    pub fn is_ejected(&mut self, now: Instant) -> bool {
        match self.until {
            Some(until) if until > now => true,
            Some(until) => {
                self.until = None;
                self.returned = Some(until);
                false
            }
            None => false,
        }
    }

    /// Until when it is put aside, as of the last question; `None`: it is not.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// How often it was ejected, less one for each whole interval since it came back.
    pub fn times_ejected(&self, policy: &EjectionPolicy, now: Instant) -> u32 {
        let forgiven = match self.returned {
            Some(returned) if !policy.interval.is_zero() => {
                now.saturating_duration_since(returned).as_nanos() / policy.interval.as_nanos()
            }
            _ => 0,
        };
        self.times.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// Brings it back at once and forgets everything, for when its health is known to be good again.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Whether one more of `total` endpoints may be ejected when `ejected` already are.
///
/// That is `max_ejection_percent` of them, rounded down; but one, if there are at least two endpoints and the percentage
/// is not zero, because ten percent of three would otherwise eject none. A backend's only endpoint goes only at 100 percent:
/// a bad answer is worth more than none.
pub fn may_eject(policy: &EjectionPolicy, total: usize, ejected: usize) -> bool {
    let percent = u128::from(policy.max_ejection_percent.min(100));
    let share = percent * total as u128 / 100;
    let allowed = if total >= 2 && percent > 0 { share.max(1) } else { share };
    (ejected as u128) < allowed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host;

    const SECOND: Duration = Duration::from_secs(1);

    fn noted(policy: &EjectionPolicy, faults: &[Fault]) -> Vec<bool> {
        let mut ejection = Ejection::default();
        faults.iter().map(|&fault| ejection.note(policy, fault)).collect()
    }

    #[test]
    fn errors_in_a_row_eject_and_a_success_starts_over() {
        // Counting without "in a row" would sooner or later eject every endpoint of a busy service.
        use Fault::{GatewayError, Local, None, ServerError};
        let three = EjectionPolicy { consecutive_5xx: 3, ..EjectionPolicy::default() };
        let gateway = EjectionPolicy { consecutive_5xx: 0, consecutive_gateway_errors: 2, ..three };
        let split = EjectionPolicy { split_local_errors: true, consecutive_local_failures: 2, ..three };
        let off =
            EjectionPolicy { consecutive_5xx: 0, consecutive_local_failures: 0, split_local_errors: true, ..three };
        let cases: [(EjectionPolicy, &[Fault], &[bool]); 9] = [
            (three, &[ServerError, GatewayError, Local], &[false, false, true]),
            (three, &[ServerError, ServerError, None, ServerError, ServerError], &[false; 5]),
            (three, &[ServerError; 5], &[false, false, true, true, true]),
            (gateway, &[GatewayError, GatewayError], &[false, true]),
            (gateway, &[GatewayError, ServerError, GatewayError], &[false, false, false]),
            (gateway, &[Local, Local], &[false, true]),
            (split, &[Local, Local], &[false, true]),
            (split, &[Local, ServerError, Local, ServerError, ServerError], &[false, false, false, false, true]),
            (off, &[ServerError, GatewayError, Local, Local, Local, Local], &[false; 6]),
        ];
        for (policy, faults, expected) in cases {
            assert_eq!(noted(&policy, faults), expected, "{policy:?} {faults:?}");
        }
    }

    #[test]
    fn time_put_aside_grows_is_capped_and_is_forgiven() {
        // An endpoint that keeps failing must cost less and less; one that recovered must not be punished for last year.
        let policy = EjectionPolicy { consecutive_5xx: 1, ..EjectionPolicy::default() };
        let mut now = host::now();
        let mut ejection = Ejection::default();
        for expected in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300] {
            assert!(ejection.note(&policy, Fault::ServerError));
            ejection.eject(&policy, now);
            assert!(!ejection.note(&policy, Fault::ServerError), "already put aside");
            let end = now + expected * SECOND;
            assert_eq!(ejection.until(), Some(end));
            assert!(ejection.is_ejected(end - SECOND / 1000));
            assert!(!ejection.is_ejected(end), "back when the time is over");
            now = end;
        }
        assert_eq!(ejection.times_ejected(&policy, now), 11);
        assert_eq!(ejection.times_ejected(&policy, now + 35 * SECOND), 8);
        ejection.eject(&policy, now + 95 * SECOND);
        assert_eq!(ejection.until(), Some(now + 95 * SECOND + 90 * SECOND), "eleven less nine, and one more");
        assert!(!ejection.is_ejected(now + 10_000 * SECOND));
        assert_eq!(ejection.times_ejected(&policy, now + 10_000 * SECOND), 0);
    }

    #[test]
    fn a_base_time_above_the_cap_is_kept() {
        // Who asks for ten minutes gets ten minutes, and an absurd time does not crash the clock.
        let now = host::now();
        for (base, expected) in [(600 * SECOND, 600 * SECOND), (Duration::MAX, MAX_EJECTION)] {
            let policy = EjectionPolicy { base_ejection_time: base, ..EjectionPolicy::default() };
            let mut ejection = Ejection::default();
            ejection.eject(&policy, now);
            assert_eq!(ejection.until(), Some(now + expected));
            ejection.is_ejected(now + expected);
            ejection.eject(&policy, now + expected);
            assert_eq!(ejection.until(), Some(now + 2 * expected));
        }
    }

    #[test]
    fn counting_starts_over_after_a_return() {
        // One error after coming back is not the fifth in a row; nor are answers to requests sent before.
        let policy = EjectionPolicy { consecutive_5xx: 2, ..EjectionPolicy::default() };
        let now = host::now();
        let mut ejection = Ejection::default();
        ejection.note(&policy, Fault::ServerError);
        ejection.eject(&policy, now);
        ejection.note(&policy, Fault::ServerError);
        assert!(!ejection.is_ejected(now + 30 * SECOND));
        assert!(!ejection.note(&policy, Fault::ServerError));
        assert!(ejection.note(&policy, Fault::ServerError));
        ejection.eject(&policy, now + 31 * SECOND);
        ejection.forget();
        assert!(!ejection.is_ejected(now + 31 * SECOND));
    }

    #[test]
    fn the_share_that_may_be_ejected() {
        // Rounded to nothing, ejection would never work for small services; unbounded, it would take all of them out.
        for (percent, total, allowed) in [
            (10, 0, 0),
            (10, 1, 0),
            (10, 2, 1),
            (10, 19, 1),
            (10, 20, 2),
            (50, 5, 2),
            (100, 1, 1),
            (100, 3, 3),
            (250, 3, 3),
            (0, 10, 0),
        ] {
            let policy = EjectionPolicy { max_ejection_percent: percent, ..EjectionPolicy::default() };
            let count = (0..=total).take_while(|&ejected| may_eject(&policy, total, ejected)).count();
            assert_eq!(count, allowed, "{percent} % of {total}");
        }
    }

    proptest! {
        #[test]
        fn never_more_are_ejected_than_allowed(
            percent in 0_u32..=120, total in 1_usize..12, steps in proptest::collection::vec((0_usize..12, 0_u64..20), 0..200),
        ) {
            // P10, with all endpoints failing all the time.
            let policy = EjectionPolicy { consecutive_5xx: 1, max_ejection_percent: percent, ..EjectionPolicy::default() };
            let floor = percent.min(100) as usize * total / 100;
            let most = if total >= 2 && percent > 0 { floor.max(1) } else { floor };
            let mut now = host::now();
            let mut endpoints: Vec<_> = (0..total).map(|_| Ejection::default()).collect();
            for (index, seconds) in steps {
                now += Duration::from_secs(seconds);
                let ejected = endpoints.iter_mut().map(|endpoint| endpoint.is_ejected(now)).filter(|&ejected| ejected).count();
                prop_assert!(ejected <= most);
                let endpoint = &mut endpoints[index % total];
                if endpoint.note(&policy, Fault::ServerError) && may_eject(&policy, total, ejected) {
                    endpoint.eject(&policy, now);
                    prop_assert!(endpoint.is_ejected(now));
                }
            }
        }
    }
}
