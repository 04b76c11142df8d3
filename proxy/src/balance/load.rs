//! In-flight count and peak-EWMA latency of one endpoint.
//!
//! Shared by all workers; told by `upstream`, read by `least_request`. The count is exact: it is a guard that counts down
//! when dropped, whatever the end. The latency is a moving average that jumps up to every worse answer at once and forgets
//! it over ten seconds (Finagle's "peak EWMA"): slow endpoints are left quickly and tried again carefully.
//!
//! An endpoint whose price is not known well gets one request at a time until an answer says more:
//! - one that never answered is free while idle and, with something under way, dearer than any that answered. A starting
//!   value (say one second) would either starve new endpoints or, where others are slower, send everyone there;
//! - one that has been idle grows cheaper with time and is free after fifty times its latency (at least 1 s, at most 10 s), so
//!   that it is not shunned for one slow answer; as soon as it is tried, it costs what it used to, until the answer, which
//!   then counts alone. After a failure that takes 1 s, and twice as long after each further one, up to 10 s. Without that
//!   limit one failure would keep an endpoint whose others answer in a millisecond out for more than a minute, since seven
//!   e-foldings of ten seconds lie between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Cost;
use crate::host::{self, Instant};

/// Time after which an answer counts for about a third (1/e) of what it did.
const DECAY: Duration = Duration::from_secs(10);
/// Idle time after which what is known decides no more, as a multiple of the latency, and its bounds.
const PAST_AFTER_LATENCIES: u32 = 50;
const PAST_AFTER_MIN: Duration = Duration::from_secs(1);
const PAST_AFTER_MAX: Duration = Duration::from_secs(10);
/// What a failure counts at least, in nanoseconds: one second. An endpoint that fails at once would otherwise look fast.
const FAILURE_NANOS: u64 = 1_000_000_000;
/// Cost of an endpoint that never answered and has requests waiting: dearer than any latency times load.
const UNKNOWN: f64 = 1e30;

/// The load of one endpoint, shared by all workers.
#[derive(Debug)]
pub struct Load {
    pub in_flight: AtomicU32,
    /// Nanoseconds; peak-sensitive moving average with a decay of 10 s. 0: never answered.
    pub latency: AtomicU64,
    /// Of those in flight, without an answer yet.
    waiting: AtomicU32,
    /// When `latency` was last told something, in nanoseconds after `origin`.
    told: AtomicU64,
    /// Failures in a row, those of requests that were under way together counted once.
    failures: AtomicU32,
    origin: Instant,
}

/// One request in flight; ends when dropped, and tells the latency when [`InFlight::answered`] was called.
///
/// Dropped without an answer (the client left, or the try took too long), the time it waited counts if it was longer than
/// the latency known: an endpoint that hangs becomes dear even if nobody says so.
#[must_use = "dropping it ends the request"]
#[derive(Debug)]
pub struct InFlight {
    load: Arc<Load>,
    started: Instant,
    is_waiting: bool,
}

impl Load {
    pub fn new(now: Instant) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            told: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            origin: now,
        }
    }

    /// Forgets what is known of the latency: the endpoint went away and came back, so the past says nothing.
    pub fn forget(&self) {
        self.latency.store(0, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }

    pub fn start(self: &Arc<Self>) -> InFlight {
        // Relaxed throughout: the counts guard no other memory, and a cost may be a moment old.
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        InFlight { load: Arc::clone(self), started: host::now(), is_waiting: true }
    }

    /// Cost of one more request; the latency in nanoseconds.
    pub fn cost(&self) -> Cost {
        self.part_cost(1, 0)
    }

    /// Cost of one more request on part number `part` of an endpoint seen as `weight` equal parts: what is in flight is
    /// spread over the parts, and those with a low number have one more.
    pub fn part_cost(&self, weight: u32, part: u32) -> Cost {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        Cost { latency: self.price(host::now(), in_flight), in_flight: on_part(in_flight, weight, part) }
    }

    /// Latency in nanoseconds as far as it decides.
    fn price(&self, now: Instant, in_flight: u32) -> f64 {
        let latency = self.latency.load(Ordering::Relaxed);
        let is_waiting = self.waiting.load(Ordering::Relaxed) > 0;
        if latency == 0 {
            // Long requests that were answered would have set the latency, so whatever is in flight is waiting.
            return if in_flight > 0 { UNKNOWN } else { 0.0 };
        }
        if is_waiting { latency as f64 } else { latency as f64 * self.weight_of_the_past(latency, now) }
    }

    /// How much a known latency still counts, from 1 down to 0.
    fn weight_of_the_past(&self, latency: u64, now: Instant) -> f64 {
        let told = Duration::from_nanos(self.told.load(Ordering::Relaxed));
        let age = now.saturating_duration_since(self.origin).saturating_sub(told);
        let past_after = match self.failures.load(Ordering::Relaxed) {
            0 => Duration::from_nanos(latency).saturating_mul(PAST_AFTER_LATENCIES),
            failures => PAST_AFTER_MIN.saturating_mul(1 << (failures - 1).min(8)),
        };
        if age >= past_after.clamp(PAST_AFTER_MIN, PAST_AFTER_MAX) {
            return 0.0;
        }
        (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    /// Takes in one more measurement. Two workers at once may weigh the past a little wrongly, never lose a peak.
    fn tell(&self, nanos: u64, now: Instant) {
        // 0 means never answered.
        let nanos = nanos.max(1);
        let next = |known: u64| {
            let past = self.weight_of_the_past(known, now);
            let average = known as f64 * past + nanos as f64 * (1.0 - past);
            if known == 0 || past == 0.0 || nanos >= known { nanos } else { (average as u64).max(nanos) }
        };
        // The closure always gives a value, so the update cannot fail.
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |known| Some(next(known)));
        let told = now.saturating_duration_since(self.origin).as_nanos();
        self.told.fetch_max(u64::try_from(told).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl InFlight {
    /// A response head came after `took`; for an opaque connection: it was established after `took`, since how long it
    /// then lives says nothing about the endpoint.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        if self.stop_waiting() {
            self.load.tell(nanos(took), now);
            self.load.failures.store(0, Ordering::Relaxed);
        }
    }

    /// The endpoint failed: counts as an answer after a second, or after the time it really took, if longer.
    pub fn failed(&mut self, now: Instant) {
        if self.stop_waiting() {
            let took = now.saturating_duration_since(self.started);
            let told = self.load.origin + Duration::from_nanos(self.load.told.load(Ordering::Relaxed));
            let failures = self.load.failures.load(Ordering::Relaxed);
            if failures == 0 || self.started >= told {
                self.load.failures.store(failures.saturating_add(1), Ordering::Relaxed);
            }
            self.load.tell(nanos(took).max(FAILURE_NANOS), now);
        }
    }

    /// Whether it was waiting until now.
    fn stop_waiting(&mut self) -> bool {
        let was_waiting = std::mem::replace(&mut self.is_waiting, false);
        if was_waiting {
            self.load.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        was_waiting
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.stop_waiting() {
            let now = host::now();
            let waited = nanos(now.saturating_duration_since(self.started));
            if waited > self.load.latency.load(Ordering::Relaxed) {
                self.load.tell(waited, now);
            }
        }
        self.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is in flight on one of `weight` parts when all are filled in turn: the ceiling of `(in_flight - part) / weight`.
pub(super) fn on_part(in_flight: u32, weight: u32, part: u32) -> u32 {
    in_flight.saturating_sub(part).div_ceil(weight.max(1))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::time::advance;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn load() -> Arc<Load> {
        Arc::new(Load::new(host::now()))
    }

    async fn answer_after(load: &Arc<Load>, took: Duration) {
        let mut in_flight = load.start();
        advance(took).await;
        in_flight.answered(took, host::now());
    }

    fn millis(load: &Load) -> f64 {
        load.cost().total() / 1e6
    }

    #[tokio::test(start_paused = true)]
    async fn every_end_counts_down() {
        // A request that stayed counted would make its endpoint dear for ever.
        let load = load();
        let mut requests: Vec<_> = (0..4).map(|_| load.start()).collect();
        assert_eq!(load.in_flight.load(Ordering::Relaxed), 4);
        requests[0].answered(MILLI, host::now());
        requests[0].answered(MILLI, host::now());
        requests[1].failed(host::now());
        assert_eq!(load.in_flight.load(Ordering::Relaxed), 4, "answered is not over: the body is still under way");
        assert_eq!(load.waiting.load(Ordering::Relaxed), 2);
        drop(requests);
        assert_eq!(load.in_flight.load(Ordering::Relaxed), 0);
        assert_eq!(load.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_threads_count_exactly() {
        // Workers share the count; one lost decrement is for ever.
        let load = load();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for turn in 0..2_000 {
                        let mut request = load.start();
                        if turn % 3 == 0 {
                            request.answered(MILLI, host::now());
                        }
                    }
                });
            }
        });
        assert_eq!(load.in_flight.load(Ordering::Relaxed), 0);
        assert_eq!(load.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn latency_jumps_up_and_comes_down_slowly() {
        // An average would keep sending to an endpoint that has just become slow.
        let load = load();
        answer_after(&load, 10 * MILLI).await;
        assert_eq!(millis(&load), 10.0);
        answer_after(&load, SECOND).await;
        assert_eq!(millis(&load), 1000.0);
        answer_after(&load, 10 * MILLI).await;
        let after_one = millis(&load);
        assert!(after_one > 990.0 && after_one < 1000.0, "one quick answer changes little: {after_one}");
        for _ in 0..40 {
            advance(SECOND).await;
            answer_after(&load, 10 * MILLI).await;
        }
        let after_forty_seconds = millis(&load);
        assert!((10.0..30.0).contains(&after_forty_seconds), "forty seconds change it all: {after_forty_seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn cost_grows_with_what_is_in_flight() {
        // Two equally quick endpoints must share the load.
        let load = load();
        answer_after(&load, 10 * MILLI).await;
        let requests: Vec<_> = (0..3).map(|_| load.start()).collect();
        assert_eq!(millis(&load), 40.0);
        // Three in flight on two parts: two and one.
        assert_eq!(load.part_cost(2, 0).total() / 1e6, 30.0);
        assert_eq!(load.part_cost(2, 1).total() / 1e6, 20.0);
        drop(requests);
        assert_eq!((0..5).map(|part| on_part(7, 5, part)).collect::<Vec<_>>(), [2, 2, 1, 1, 1]);
        assert_eq!((on_part(0, 3, 2), on_part(2, 0, 0)), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_endpoint_is_tried_and_not_flooded() {
        // Without a latency it would look free, and take all requests until the first answer.
        let known = load();
        answer_after(&known, SECOND).await;
        let new = load();
        assert!(new.cost().total() < known.cost().total(), "the first request goes to it");
        let mut first = new.start();
        assert!(new.cost().total() > known.cost().total() * 1e6, "the second does not");
        let other_new = load();
        let _two = (other_new.start(), other_new.start());
        assert!(new.cost().total() < other_new.cost().total(), "among unknown ones, what is in flight decides");
        first.answered(MILLI, host::now());
        assert!(new.cost().total() < known.cost().total());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_endpoint_is_tried_again_and_not_flooded() {
        // One slow answer must not exclude an endpoint for good; nor may a minute without traffic make it free for all.
        let slow = load();
        answer_after(&slow, 10 * SECOND).await;
        let quick = load();
        advance(100 * SECOND).await;
        answer_after(&quick, 10 * MILLI).await;
        assert!(slow.cost().total() < quick.cost().total(), "tried again");
        let mut trial = slow.start();
        assert!(slow.cost().total() > quick.cost().total(), "once");
        advance(10 * MILLI).await;
        trial.answered(10 * MILLI, host::now());
        drop(trial);
        assert!((10.0..11.0).contains(&millis(&slow)), "and the old answer hardly counts any more: {}", millis(&slow));
        // A long stream that was answered is no reason to hold on to the past.
        let mut stream = slow.start();
        stream.answered(10 * SECOND, host::now());
        advance(100 * SECOND).await;
        assert!(slow.cost().total() < quick.cost().total() + 10e6);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_is_over_is_forgotten_within_seconds() {
        // An application that crashed and came back at its old address would get nothing for a minute, and the others all.
        let quick = load();
        let back = load();
        for seconds in [1, 2, 4, 8, 10, 10] {
            let together = (back.start(), back.start());
            advance(MILLI).await;
            let now = host::now();
            [together.0, together.1].iter_mut().for_each(|request| request.failed(now));
            advance(seconds * SECOND - 10 * MILLI).await;
            answer_after(&quick, MILLI).await;
            assert!(back.cost().total() > quick.cost().total(), "not at once: it may still be down ({seconds})");
            advance(20 * MILLI).await;
            assert!(back.cost().total() < quick.cost().total(), "tried again after {seconds} s");
        }
        answer_after(&back, MILLI).await;
        assert_eq!(millis(&back), 1.0, "and its answer counts alone");
        // A slow endpoint is asked once in ten seconds at most, so that one request in many is slow and not one of three.
        let slow = load();
        for _ in 0..3 {
            answer_after(&slow, 200 * MILLI).await;
            advance(9 * SECOND).await;
            answer_after(&quick, MILLI).await;
            assert!(slow.cost().total() > quick.cost().total());
            advance(SECOND).await;
            answer_after(&quick, MILLI).await;
            assert!(slow.cost().total() < quick.cost().total());
        }
        back.start().failed(host::now());
        back.forget();
        assert_eq!(back.cost().total(), 0.0, "like a new one");
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_that_fail_or_hang_become_dear() {
        // A dead endpoint refuses within microseconds and would otherwise look like the fastest.
        let refusing = load();
        refusing.start().failed(host::now());
        assert_eq!(millis(&refusing), 1000.0);
        let hanging = load();
        answer_after(&hanging, MILLI).await;
        let request = hanging.start();
        advance(3 * SECOND).await;
        drop(request);
        assert_eq!(millis(&hanging), 3000.0);
        // But a client that leaves early says nothing.
        let cancelled = load();
        answer_after(&cancelled, SECOND).await;
        let request = cancelled.start();
        advance(MILLI).await;
        drop(request);
        assert!(millis(&cancelled) > 999.0);
    }
}
