//! Counts over the last stretch of time, in a ring of buckets. Pure.
//!
//! Used by the breaker and the retry budget. Memory and work are constant: nothing is kept per event. The price is that
//! the past is known by whole buckets only, and the newest bucket is still filling: `n` buckets together reach back
//! more than `n - 1` and at most `n` bucket widths. A user who must not see too little sums one bucket more than the
//! window has.

use std::time::Duration;

use crate::host::Instant;

/// Narrowest bucket; a policy with a window of zero must not divide by zero.
const MIN_WIDTH: Duration = Duration::from_millis(1);

/// `N` buckets of counts `B`, each `width` long.
#[derive(Debug)]
pub(super) struct Rolling<B, const N: usize> {
    origin: Instant,
    width: Duration,
    /// Number of the newest bucket since `origin`; bucket `i` lives at `i % N`.
    newest: u64,
    buckets: [B; N],
}

impl<B: Copy + Default, const N: usize> Rolling<B, N> {
    pub(super) fn new(width: Duration, now: Instant) -> Self {
        Self { origin: now, width: width.max(MIN_WIDTH), newest: 0, buckets: [B::default(); N] }
    }

    /// The newest bucket, after time has moved on to `now`. A `now` before it counts as within it: callers read the
    /// clock before they wait for the lock.
    pub(super) fn current(&mut self, now: Instant) -> &mut B {
        self.advance(now);
        self.bucket(self.newest)
    }

    /// The newest `count` buckets as of `now`.
    pub(super) fn newest(&mut self, now: Instant, count: usize) -> impl Iterator<Item = B> {
        self.advance(now);
        let oldest = (self.newest + 1).saturating_sub(count.min(N) as u64);
        (oldest..=self.newest).map(|number| *self.bucket(number))
    }

    /// The same history in buckets of another width. What a bucket held is put where `carry` says: it gets the ring, the
    /// moments between which the old bucket was filled, and its counts.
    pub(super) fn with_width(&mut self, width: Duration, now: Instant, carry: impl Fn(&mut Self, Filled<B>)) {
        if width.max(MIN_WIDTH) == self.width {
            return;
        }
        self.advance(now);
        let oldest = (self.newest + 1).saturating_sub(N as u64);
        let history: Vec<_> = (oldest..=self.newest)
            .map(|number| Filled {
                from: self.begin(number),
                to: self.begin(number + 1).min(now),
                counts: *self.bucket(number),
            })
            .collect();
        *self = Self { origin: self.origin, ..Self::new(width, now) };
        self.newest = self.number(now);
        for filled in history {
            carry(self, filled);
        }
    }

    /// The bucket in which `moment` fell, if it is still kept.
    pub(super) fn containing(&mut self, moment: Instant) -> Option<&mut B> {
        let number = self.number(moment).min(self.newest);
        (self.newest - number < N as u64).then(|| self.bucket(number))
    }

    fn number(&self, moment: Instant) -> u64 {
        // 64 bits hold 584 years, and dividing 128 bits costs more than the rest of a request's bookkeeping here.
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        nanos(moment.saturating_duration_since(self.origin)) / nanos(self.width).max(1)
    }

    fn begin(&self, number: u64) -> Instant {
        let nanos = self.width.as_nanos().saturating_mul(u128::from(number));
        let since = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.origin.checked_add(since).unwrap_or(self.origin)
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the remainder of N is below N; an array without entries does not compile here"
    )]
    fn bucket(&mut self, number: u64) -> &mut B {
        &mut self.buckets[(number % N as u64) as usize]
    }

    fn advance(&mut self, now: Instant) {
        let number = self.number(now);
        if number <= self.newest {
            return;
        }
        if number - self.newest >= N as u64 {
            self.buckets = [B::default(); N];
        } else {
            for passed in self.newest + 1..=number {
                *self.bucket(passed) = B::default();
            }
        }
        self.newest = number;
    }
}

/// What one bucket held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled<B> {
    pub(super) from: Instant,
    pub(super) to: Instant,
    pub(super) counts: B,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;

    fn counts(ring: &mut Rolling<u32, 4>, now: Instant, count: usize) -> Vec<u32> {
        ring.newest(now, count).collect()
    }

    #[test]
    fn buckets_fill_age_and_vanish() {
        // A count that never vanished would hold a breaker open for ever; one that vanished early, never trip it.
        let second = Duration::from_secs(1);
        let start = host::now();
        let mut ring = Rolling::<u32, 4>::new(second, start);
        for (at, add) in [(0, 1), (1, 10), (2, 100), (3, 1000)] {
            *ring.current(start + second * at) += add;
        }
        assert_eq!(counts(&mut ring, start + 3 * second, 4), [1, 10, 100, 1000]);
        assert_eq!(counts(&mut ring, start + 3 * second, 2), [100, 1000]);
        // Late callers count as now; nothing goes back.
        *ring.current(start) += 5;
        assert_eq!(counts(&mut ring, start, 1), [1005]);
        assert_eq!(counts(&mut ring, start + 4 * second, 9), [10, 100, 1005, 0]);
        assert_eq!(counts(&mut ring, start + 7 * second, 4), [0, 0, 0, 0]);
        assert_eq!(counts(&mut ring, start + 3600 * second, 4), [0, 0, 0, 0]);
    }

    #[test]
    fn history_moves_into_buckets_of_another_width() {
        // Following a changed window must neither forget what happened nor invent anything.
        let second = Duration::from_secs(1);
        let start = host::now();
        let mut ring = Rolling::<u32, 4>::new(second, start);
        for (at, add) in [(0, 1), (1, 10), (2, 100), (3, 1000)] {
            *ring.current(start + second * at) += add;
        }
        let now = start + Duration::from_millis(3500);
        let carry = |ring: &mut Rolling<u32, 4>, filled: Filled<u32>| {
            assert!(filled.from < filled.to && filled.to <= now);
            if let Some(bucket) = ring.containing(filled.from) {
                *bucket += filled.counts;
            }
        };
        ring.with_width(2 * second, now, carry);
        assert_eq!(counts(&mut ring, now, 4), [11, 1100]);
        ring.with_width(second / 2, now, carry);
        // Only the last four half seconds are kept: from 2 s on.
        assert_eq!(counts(&mut ring, now, 4), [1100, 0, 0, 0]);
    }
}
