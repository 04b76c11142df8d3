//! Steady traffic at the front end, and the record of what came back.
//!
//! Sends on a fixed schedule over reused connections, so that a slow answer does not hide behind a slower sender
//! (as far as [`CONNECTIONS`] reach). Every request is counted once, in the totals and in the window it started in;
//! `story` opens a window for each thing it wants to measure. Records no single request: memory stays bounded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::http_client::{Answer, Client, ClientError, Target};

/// Connections, and so requests in flight at most.
const CONNECTIONS: usize = 64;
/// Longest wait for an answer; then the request has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A sender this far behind its schedule starts a new one instead of sending a burst.
const MAX_LAG: Duration = Duration::from_millis(500);
/// Different descriptions of failures that are kept for the end.
const MAX_FAILURE_NOTES: usize = 5;

/// What came of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of the shop answered; which version of reviews did.
    Ok { reviews: String },
    /// The shop answered, with the fallback instead of ratings.
    Fallback { reviews: String },
    /// Anything else, in words.
    Failed(String),
}

/// Counted requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All that ended.
    pub requests: u64,
    /// Answered in full.
    pub ok: u64,
    /// Answered with the fallback for ratings.
    pub fallback: u64,
    pub failed: u64,
    /// Answered (in full or with the fallback) by reviews v2.
    pub by_v2: u64,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.requests += 1;
        match outcome {
            Outcome::Ok { reviews } => {
                self.ok += 1;
                self.by_v2 += u64::from(reviews == "v2");
            }
            Outcome::Fallback { reviews } => {
                self.fallback += 1;
                self.by_v2 += u64::from(reviews == "v2");
            }
            Outcome::Failed(_) => self.failed += 1,
        }
    }

    /// Requests that the shop answered, with or without the fallback.
    pub const fn answered(&self) -> u64 {
        self.ok + self.fallback
    }
}

#[derive(Default)]
struct Books {
    total: Tally,
    window: Tally,
    /// Counts windows; a request belongs to the one it started in.
    window_number: u64,
    swapping: bool,
    failed_during_swaps: u64,
    notes: Vec<(String, u64)>,
}

/// The record, shared by senders, story and display.
#[derive(Default)]
pub struct Recorder {
    books: Mutex<Books>,
}

/// A request under way; must be finished.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    window_number: u64,
    during_swap: bool,
}

impl Recorder {
    /// Notes the start of a request.
    pub fn start(&self) -> Started {
        let books = self.books.lock();
        Started { window_number: books.window_number, during_swap: books.swapping }
    }

    /// Notes its end.
    pub fn finish(&self, started: Started, outcome: &Outcome) {
        let mut books = self.books.lock();
        books.total.add(outcome);
        if started.window_number == books.window_number {
            books.window.add(outcome);
        }
        if let Outcome::Failed(why) = outcome {
            // Under way at any time of the swaps: started or ended during them.
            if started.during_swap || books.swapping {
                books.failed_during_swaps += 1;
            }
            if let Some((_, times)) = books.notes.iter_mut().find(|(note, _)| note == why) {
                *times += 1;
            } else if books.notes.len() < MAX_FAILURE_NOTES {
                books.notes.push((why.clone(), 1));
            }
        }
    }

    /// Counts anew the requests that start from now on.
    pub fn open_window(&self) {
        let mut books = self.books.lock();
        books.window_number += 1;
        books.window = Tally::default();
    }

    /// What the open window has counted so far.
    pub fn window(&self) -> Tally {
        self.books.lock().window
    }

    /// Everything so far.
    pub fn total(&self) -> Tally {
        self.books.lock().total
    }

    /// Says whether configuration is being swapped, until said otherwise.
    pub fn set_swapping(&self, swapping: bool) {
        self.books.lock().swapping = swapping;
    }

    /// Failed requests that were under way while configuration was swapped.
    pub fn failed_during_swaps(&self) -> u64 {
        self.books.lock().failed_during_swaps
    }

    /// The first few different failures in words, with how often they happened.
    pub fn failure_notes(&self) -> Vec<String> {
        let books = self.books.lock();
        books.notes.iter().map(|(note, times)| format!("failed {times} times: {note}")).collect()
    }
}

/// Reads the front end's answer.
pub fn judge(answer: &Result<Answer, ClientError>) -> Outcome {
    let Answer { status, body } = match answer {
        Ok(answer) => answer,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    if *status != StatusCode::OK {
        let text = String::from_utf8_lossy(body.get(..200).unwrap_or(body));
        return Outcome::Failed(format!("status {}: {}", status.as_u16(), text.trim()));
    }
    let Ok(page) = serde_json::from_slice::<Value>(body) else {
        return Outcome::Failed("the answer is not JSON".to_owned());
    };
    let Some(reviews) = page["reviews"]["version"].as_str() else {
        return Outcome::Failed("the answer has no reviews".to_owned());
    };
    let reviews = reviews.to_owned();
    // Only v2 shows ratings; "fallback" is the version that the static reply gives itself.
    match page["reviews"]["ratings"]["version"].as_str() {
        Some("fallback") => Outcome::Fallback { reviews },
        None if reviews == "v2" => Outcome::Failed("reviews v2 answered without ratings".to_owned()),
        _ => Outcome::Ok { reviews },
    }
}

/// Senders at work; dropping it ends them at once, [`Traffic::stop`] lets each finish its request.
pub struct Traffic {
    stop: watch::Sender<bool>,
    senders: JoinSet<()>,
}

impl Traffic {
    /// Starts sending `rate` requests per second to `target`; must be called inside a runtime.
    pub fn start(target: &Target, rate: u32, recorder: &Arc<Recorder>) -> Self {
        let (stop, stopping) = watch::channel(false);
        let schedule = Arc::new(Schedule::new(rate));
        let mut senders = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let client = Client::new(target.clone(), 1, TIMEOUT);
            senders.spawn(send(client, Arc::clone(&schedule), Arc::clone(recorder), stopping.clone()));
        }
        Self { stop, senders }
    }

    /// Sends nothing more and waits for what is under way.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.senders.join_next().await.is_some() {}
    }
}

/// Gives out the times at which requests are due.
struct Schedule {
    start: Instant,
    gap_ns: u64,
    /// Nanoseconds after `start` at which the next request is due.
    next_ns: AtomicU64,
}

impl Schedule {
    fn new(rate: u32) -> Self {
        Self { start: Instant::now(), gap_ns: 1_000_000_000 / u64::from(rate.max(1)), next_ns: AtomicU64::new(0) }
    }

    /// When the next request is due; given out once. What is long overdue is left out.
    fn take(&self, now: Instant) -> Instant {
        let now_ns = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        let oldest_ns = now_ns.saturating_sub(MAX_LAG.as_nanos() as u64);
        let due_ns = self
            .next_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| Some(next.max(oldest_ns) + self.gap_ns))
            .map_or(now_ns, |next| next.max(oldest_ns));
        self.start + Duration::from_nanos(due_ns)
    }
}

async fn send(client: Client, schedule: Arc<Schedule>, recorder: Arc<Recorder>, mut stopping: watch::Receiver<bool>) {
    loop {
        let due = schedule.take(Instant::now());
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        if *stopping.borrow() {
            return;
        }
        let started = recorder.start();
        let answer = client.get("/").await;
        recorder.finish(started, &judge(&answer));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn answer(status: u16, body: &str) -> Result<Answer, ClientError> {
        Ok(Answer { status: StatusCode::from_u16(status).unwrap(), body: Bytes::from(body.to_owned()) })
    }

    #[test]
    fn answers_are_told_apart() {
        // A fallback taken for a full answer would prove nothing; a failure taken for an answer would lie.
        let ok = |version: &str| Outcome::Ok { reviews: version.to_owned() };
        for (body, expected) in [
            (r#"{"reviews":{"version":"v1"}}"#, ok("v1")),
            (r#"{"reviews":{"version":"v2","ratings":{"version":"v1"}}}"#, ok("v2")),
            (
                r#"{"reviews":{"version":"v2","ratings":{"version":"fallback"}}}"#,
                Outcome::Fallback { reviews: "v2".to_owned() },
            ),
        ] {
            assert_eq!(judge(&answer(200, body)), expected, "{body}");
        }
        for bad in [
            answer(503, r#"{"reviews":{"version":"v1"}}"#),
            answer(200, "<html>"),
            answer(200, "{}"),
            answer(200, r#"{"reviews":{"version":"v2"}}"#),
            Err(ClientError::Timeout(TIMEOUT)),
        ] {
            assert!(matches!(judge(&bad), Outcome::Failed(_)), "{bad:?}");
        }
    }

    #[test]
    fn a_window_counts_only_what_started_in_it() {
        // A canary step would otherwise be measured with requests that were routed by the weights before it.
        let recorder = Recorder::default();
        let before = recorder.start();
        recorder.open_window();
        let within = recorder.start();
        recorder.finish(before, &Outcome::Ok { reviews: "v1".to_owned() });
        recorder.finish(within, &Outcome::Ok { reviews: "v2".to_owned() });
        assert_eq!(recorder.window(), Tally { requests: 1, ok: 1, by_v2: 1, ..Tally::default() });
        assert_eq!(recorder.total().requests, 2);
    }

    #[test]
    fn a_failure_that_overlaps_a_swap_counts_against_it() {
        // A request that started before the swaps and broke during them is the case that matters most.
        let recorder = Recorder::default();
        let failed = Outcome::Failed("reset".to_owned());
        let early = recorder.start();
        recorder.finish(recorder.start(), &failed);
        recorder.set_swapping(true);
        recorder.finish(early, &failed);
        let late = recorder.start();
        recorder.set_swapping(false);
        recorder.finish(late, &failed);
        recorder.finish(recorder.start(), &failed);
        assert_eq!(recorder.failed_during_swaps(), 2);
        assert_eq!(recorder.failure_notes(), ["failed 4 times: reset"]);
        assert_eq!(recorder.total().failed, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_schedule_keeps_its_rate_and_forgets_what_is_overdue() {
        // After a stall the demo would otherwise hit the front end with all that it missed.
        let schedule = Schedule::new(100);
        let start = Instant::now();
        for number in 0..50 {
            assert_eq!(schedule.take(Instant::now()) - start, Duration::from_millis(10 * number));
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        let due = schedule.take(Instant::now());
        assert_eq!(Instant::now() - due, MAX_LAG);
    }
}
