//! Time left for the request and for one try. Pure.
//!
//! The attempt loop makes one for the request and, with [`Deadline::min`], one for each try.

use std::time::Duration;

use crate::host::Instant;

/// When a request must be over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// `None`: never.
    pub at: Option<Instant>,
}

impl Deadline {
    /// From a start and a limit; `None`, zero, or more than the clock can hold: no deadline.
    pub fn after(start: Instant, limit: Option<Duration>) -> Self {
        Self { at: limit.filter(|limit| !limit.is_zero()).and_then(|limit| start.checked_add(limit)) }
    }

    /// The earlier of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        match (self.at, other.at) {
            (Some(a), Some(b)) => Self { at: Some(a.min(b)) },
            (a, b) => Self { at: a.or(b) },
        }
    }

    /// Time left; `None` when there is no deadline, zero when it has passed.
    pub fn left(self, now: Instant) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(now))
    }

    /// Whether it has passed.
    pub fn is_over(self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    /// Whether something that takes so long would end in time: a wait that would not is pointless.
    pub fn allows(self, now: Instant, wait: Duration) -> bool {
        self.left(now).is_none_or(|left| wait < left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;

    #[test]
    fn zero_none_and_forever_mean_no_deadline() {
        // Gateway API's "0s" disables a timeout; reading it as "at once" would fail every request.
        let now = host::now();
        for limit in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
            let deadline = Deadline::after(now, limit);
            assert_eq!(deadline.left(now), None, "{limit:?}");
            assert!(!deadline.is_over(now) && deadline.allows(now, Duration::from_secs(1 << 40)), "{limit:?}");
        }
    }

    #[test]
    fn the_earlier_of_two_ends_a_try() {
        // A try timeout longer than what is left of the request must not prolong the request.
        let now = host::now();
        let second = Duration::from_secs(1);
        let request = Deadline::after(now, Some(second));
        let attempt = Deadline::after(now, Some(3 * second));
        let never = Deadline::after(now, None);
        for (both, left) in [
            (request.min(attempt), Some(second)),
            (attempt.min(request), Some(second)),
            (never.min(attempt), Some(3 * second)),
            (attempt.min(never), Some(3 * second)),
            (never.min(never), None),
        ] {
            assert_eq!(both.left(now), left);
        }
        assert!(!request.is_over(now + second / 2));
        assert!(request.is_over(now + second), "over at the moment itself, not after it");
        assert_eq!(request.left(now + 5 * second), Some(Duration::ZERO));
        assert!(request.allows(now, second / 2));
        assert!(!request.allows(now, second), "a wait up to the very end leaves no time for the try");
    }
}
