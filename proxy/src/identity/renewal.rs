//! When to ask for a new certificate, and how long to wait after a failure. Pure.
//!
//! Asked by `client`. At half of the lifetime, give or take 5 % so that a fleet started together does not come back
//! together; after failures from 0.5 s doubling to 150 s. The lifetime is counted on the monotonic clock from the
//! moment of receipt: a wall clock that is wrong by hours moves the renewal, but cannot make it hot or never happen.

use std::time::{Duration, SystemTime};

/// Wanted lifetime of a certificate; also the most that is believed of one.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Shortest wait between two certificates, whatever the clocks say.
const FLOOR: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(150);

/// How the last attempts went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    failures: u32,
}

impl Renewal {
    /// A certificate came: the wait until the next request. `random` is uniform in `[0, 1)`.
    pub fn succeeded(&mut self, not_after: SystemTime, wall_clock: SystemTime, random: f64) -> Duration {
        self.failures = 0;
        // A clock ahead makes the rest look short, one behind makes it look long.
        let lifetime = not_after.duration_since(wall_clock).unwrap_or_default().min(LIFETIME);
        lifetime.mul_f64(0.45 + random * 0.1).max(FLOOR)
    }

    /// An attempt failed: the wait until the next, between half and all of the doubled step. `random` as above.
    pub fn failed(&mut self, random: f64) -> Duration {
        let doubled = FIRST_RETRY.saturating_mul(1_u32.checked_shl(self.failures.min(20)).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        doubled.min(LAST_RETRY).mul_f64(0.5 + random * 0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn renewal_comes_at_half_of_the_lifetime() {
        // Renewed too late, a workload is locked out; too early or all at once, the authority is flooded.
        let now = SystemTime::UNIX_EPOCH + HOUR * 1000;
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        for (case, not_after, least, most) in [
            ("a day", now + HOUR * 24, minutes(648), minutes(792)),
            ("an hour", now + HOUR, minutes(27), minutes(33)),
            ("clock behind by a week", now + HOUR * 24 * 8, minutes(648), minutes(792)),
            ("clock ahead by 20 of 24 hours", now + HOUR * 4, minutes(108), minutes(132)),
            ("clock ahead past the end", now - HOUR, FLOOR, FLOOR),
            ("ends now", now, FLOOR, FLOOR),
        ] {
            for random in [0.0, 0.5, 0.999_999] {
                let wait = Renewal::default().succeeded(not_after, now, random);
                assert!((least..=most).contains(&wait), "{case}: {wait:?}");
            }
        }
    }

    #[test]
    fn failures_back_off_and_a_success_starts_over() {
        // A control plane that is down must not be hammered, and one that is back must be found in minutes.
        let mut renewal = Renewal::default();
        let steps: Vec<u64> = (0..12).map(|_| renewal.failed(1.0).as_millis().try_into().unwrap_or(0)).collect();
        let expected = [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 150_000, 150_000, 150_000];
        assert_eq!(steps, expected);
        assert_eq!(renewal.failed(0.0), LAST_RETRY / 2);
        for _ in 0..100 {
            assert!(renewal.failed(0.5) <= LAST_RETRY);
        }
        renewal.succeeded(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH, 0.0);
        assert_eq!(renewal.failed(1.0), FIRST_RETRY);
    }
}
