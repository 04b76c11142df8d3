//! Time left for the request and for one try. Pure.

use std::time::Duration;

use crate::host::Instant;

/// When a request must be over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// `None`: never.
    pub at: Option<Instant>,
}

impl Deadline {
    /// From a start and a limit; `None` or zero: no deadline.
    pub fn after(start: Instant, limit: Option<Duration>) -> Self {
        Self { at: limit.filter(|limit| !limit.is_zero()).map(|limit| start + limit) }
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
}
