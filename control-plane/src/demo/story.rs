//! The acts, in order: mutual TLS, canary, retries, outage, swaps. The same in both modes.
//!
//! Each act changes something the way a user would, watches traffic and sidecars, and says what it saw. An act fails
//! only when it cannot go on (a timeout, a refused change); whether what was seen is good enough is for `verdict`.

use std::{sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::{
    control::Control,
    display::Display,
    documents,
    observe::BreakerHistory,
    stage::Stage,
    topology::{CALLER_OF_RATINGS, NAMESPACE},
    traffic::Tally,
    verdict::CanaryStep,
};

/// Percentages of reviews v2, in order.
const CANARY: [u32; 4] = [0, 10, 50, 100];
/// Requests that a canary step is measured with, at most (fewer when the rate is low).
const CANARY_REQUESTS: u64 = 2000;
/// Fewest requests of a canary step, so that a wrong split shows.
const CANARY_MIN_REQUESTS: u64 = 300;
/// How long a canary step is measured, about.
const CANARY_TIME: Duration = Duration::from_secs(2);
/// How many of its requests ratings fails in the act of the retries, percent.
const FLAKY_PERCENT: u32 = 10;
/// How long.
const FLAKY_TIME: Duration = Duration::from_secs(3);
/// How long the fallback is shown.
const FALLBACK_TIME: Duration = Duration::from_millis(1200);
/// Swaps in quick succession.
const SWAPS: u32 = 40;
/// Fewest, when each takes long.
const MIN_SWAPS: u32 = 32;
/// Time for the swaps beyond the fewest.
const SWAPS_TIME: Duration = Duration::from_secs(4);
/// Longest wait for anything that traffic should bring about.
const TRAFFIC_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for the breaker to move.
const BREAKER_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The workload that has the flaky, mortal application.
const RATINGS: &str = "ratings-v1";

/// What the story has seen so far; shared with the status line.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub canary_percent: u32,
    pub canary: Vec<CanaryStep>,
    pub config_swaps: u64,
    /// Microseconds from stored to in effect everywhere, for each swap.
    pub propagation_us: Vec<u64>,
    /// Whether the last act is over.
    pub told: bool,
    /// Broken promises that only the acts can see.
    pub broken: Vec<String>,
}

/// Tells the story.
pub struct Story<'a> {
    stage: &'a Stage,
    control: Control,
    display: &'a Display,
    seen: Arc<Mutex<Seen>>,
}

impl<'a> Story<'a> {
    pub const fn new(stage: &'a Stage, control: Control, display: &'a Display, seen: Arc<Mutex<Seen>>) -> Self {
        Self { stage, control, display, seen }
    }

    /// All acts.
    pub async fn tell(&mut self) -> anyhow::Result<()> {
        self.mutual_tls().await?;
        self.canary().await?;
        self.retries().await?;
        self.outage().await?;
        self.swaps().await
    }

    async fn mutual_tls(&self) -> anyhow::Result<()> {
        self.display.act("Mutual TLS between all");
        self.requests_in_window(100).await?;
        let counters = self.stage.observer.all_counters().await?;
        self.display.check(&format!(
            "{} connections between workloads with mutual TLS, {} in plaintext",
            counters.mtls_connections, counters.plaintext_connections
        ));
        let Some(reviews) = self.stage.plan.place("reviews-v1") else { bail!("reviews v1 has no place") };
        let answer = knock_in_plaintext(reviews.inbound).await;
        match judge_knock(&answer) {
            Ok(()) => self.display.check("a client without a certificate is refused by reviews (STRICT)"),
            Err(sentence) => self.broken(sentence),
        }
        Ok(())
    }

    async fn canary(&mut self) -> anyhow::Result<()> {
        self.display.act("A canary: reviews v2 takes over while traffic flows");
        for weight in CANARY {
            let effect = if weight == 0 {
                "from the start".to_owned()
            } else {
                let took = self.swap(documents::canary(weight), &format!("reviews v2 gets {weight} %")).await?;
                format!("in effect on all sidecars after {:.0} ms", took as f64 / 1000.0)
            };
            self.seen.lock().canary_percent = weight;
            // Only requests that start from now on are certain to be routed by the new weights.
            self.stage.recorder.open_window();
            let started = Instant::now();
            let tally = loop {
                let tally = self.requests_in_window(CANARY_MIN_REQUESTS).await?;
                if started.elapsed() >= CANARY_TIME || tally.requests >= CANARY_REQUESTS {
                    break tally;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            };
            let step = CanaryStep::new(weight, tally.by_v2, tally.answered());
            let (low, high) = step.believable_percent();
            let text = format!(
                "{weight:>3} % wanted, {:>5.1} % of {} requests observed (believable: {low:.1} to {high:.1} %); {effect}",
                step.observed_percent, step.requests
            );
            if step.holds() {
                self.display.check(&text)
            } else {
                self.display.cross(&text)
            }
            self.seen.lock().canary.push(step);
        }
        Ok(())
    }

    async fn retries(&self) -> anyhow::Result<()> {
        self.display.act(&format!("Retries hide a flaky service: ratings fails {FLAKY_PERCENT} % of its requests"));
        let before = self.stage.observer.all_counters().await?.retries;
        self.stage.recorder.open_window();
        self.stage.make_flaky(RATINGS, FLAKY_PERCENT)?;
        tokio::time::sleep(FLAKY_TIME).await;
        let tally = self.requests_in_window(CANARY_MIN_REQUESTS).await?;
        self.stage.make_flaky(RATINGS, 0)?;
        let retries = self.stage.observer.all_counters().await?.retries.saturating_sub(before);
        let text = format!("{} requests, {retries} retries, {} failed", tally.requests, tally.failed);
        if tally.failed == 0 && retries > 0 {
            self.display.check(&text)
        } else {
            self.display.cross(&text)
        }
        Ok(())
    }

    async fn outage(&self) -> anyhow::Result<()> {
        self.display.act("An outage: ratings is killed");
        self.stage.recorder.open_window();
        let killed = Instant::now();
        self.stage.kill_application(RATINGS)?;
        self.breaker(|history| history.state == "open", "open").await?;
        self.display.check(&format!("the breaker opened after {:.1} s", killed.elapsed().as_secs_f64()));
        let end = Instant::now() + TRAFFIC_TIMEOUT;
        let shown = Instant::now();
        let tally = loop {
            let tally = self.stage.recorder.window();
            if shown.elapsed() >= FALLBACK_TIME && (tally.fallback > 0 || Instant::now() > end) {
                break tally;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        let text = format!("{} requests answered by the fallback, {} failed", tally.fallback, tally.failed);
        if tally.fallback > 0 && tally.failed == 0 {
            self.display.check(&text)
        } else {
            self.display.cross(&text)
        }

        self.stage.restart_application(RATINGS)?;
        let back = Instant::now();
        self.display.note("ratings is back");
        let reclosed = |history: &BreakerHistory| history.state == "closed" && history.states.len() > 2;
        let history = self.breaker(reclosed, "close again").await?;
        self.display.check(&format!(
            "the breaker let probes through and closed {:.1} s later: {}",
            back.elapsed().as_secs_f64(),
            history.states.join(" → ")
        ));
        self.stage.recorder.open_window();
        let tally = self.requests_in_window(50).await?;
        let text = format!("{} of {} requests answered in full again", tally.ok, tally.requests);
        if tally.ok == tally.requests {
            self.display.check(&text)
        } else {
            self.display.cross(&text)
        }
        Ok(())
    }

    async fn swaps(&mut self) -> anyhow::Result<()> {
        self.display.act("Configuration swaps under traffic");
        let failed_before = self.stage.recorder.failed_during_swaps();
        let started = Instant::now();
        let mut slowest_us = 0;
        let mut done = 0;
        self.stage.recorder.open_window();
        while done < SWAPS && (done < MIN_SWAPS || started.elapsed() < SWAPS_TIME) {
            done += 1;
            let percent = [20, 80, 50, 0, 100][done as usize % 5];
            let took = self.swap(documents::swap(percent, done), &format!("swap {done}")).await?;
            slowest_us = slowest_us.max(took);
            self.seen.lock().canary_percent = percent;
        }
        let tally = self.stage.recorder.window();
        let took = started.elapsed().as_secs_f64();
        self.swap(documents::canary(100), "the canary has become the shop").await?;
        self.seen.lock().canary_percent = 100;
        let failed = self.stage.recorder.failed_during_swaps() - failed_before;
        let text = format!(
            "{done} swaps in {took:.1} s, the slowest in effect after {:.0} ms; {} requests meanwhile, {failed} failed",
            slowest_us as f64 / 1000.0,
            tally.requests
        );
        if failed == 0 {
            self.display.check(&text)
        } else {
            self.display.cross(&text)
        }
        Ok(())
    }

    /// Applies a change and waits until it is in effect; gives the microseconds that took.
    async fn swap(&mut self, document: documents::Document, message: &str) -> anyhow::Result<u64> {
        self.stage.recorder.set_swapping(true);
        let took = self.stage.swap(&mut self.control, document, message).await;
        // What is under way now was routed by either; it is counted by its start.
        self.stage.recorder.set_swapping(false);
        let took = took?;
        let mut seen = self.seen.lock();
        seen.config_swaps += 1;
        seen.propagation_us.push(took);
        Ok(took)
    }

    /// Waits until the open window has that many requests.
    async fn requests_in_window(&self, requests: u64) -> anyhow::Result<Tally> {
        let end = Instant::now() + TRAFFIC_TIMEOUT;
        loop {
            let tally = self.stage.recorder.window();
            if tally.requests >= requests {
                return Ok(tally);
            }
            ensure!(
                Instant::now() < end,
                "only {} requests were answered within {} s",
                tally.requests,
                TRAFFIC_TIMEOUT.as_secs()
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until the breaker for ratings is as `wanted`.
    async fn breaker(&self, wanted: impl Fn(&BreakerHistory) -> bool, word: &str) -> anyhow::Result<BreakerHistory> {
        let end = Instant::now() + BREAKER_TIMEOUT;
        loop {
            let history = self.stage.observer.breaker(CALLER_OF_RATINGS, &breaker_name()).await?;
            if wanted(&history) {
                return Ok(history);
            }
            ensure!(
                Instant::now() < end,
                "the breaker for ratings did not {word} within {} s; it went through [{}]",
                BREAKER_TIMEOUT.as_secs(),
                history.states.join(", ")
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn broken(&self, sentence: String) {
        self.display.cross(&sentence);
        self.seen.lock().broken.push(sentence);
    }
}

/// "namespace/name" of the CircuitBreaker for ratings.
pub fn breaker_name() -> String {
    format!("{NAMESPACE}/{}", documents::BREAKER)
}

/// What a client without a certificate gets from a workload.
async fn knock_in_plaintext(address: std::net::SocketAddr) -> std::io::Result<Vec<u8>> {
    let knock = async {
        let mut socket = TcpStream::connect(address).await?;
        socket.write_all(format!("GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(4096).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(5), knock).await.unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
}

/// Whether that was a refusal. A closed or reset connection is one, and so is an error in plain words.
fn judge_knock(answer: &std::io::Result<Vec<u8>>) -> Result<(), String> {
    match answer {
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            Err("a client without a certificate was neither served nor refused within 5 s".to_owned())
        }
        Err(_) => Ok(()),
        Ok(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            let status = text.split_ascii_whitespace().nth(1).unwrap_or_default();
            // Only the application's own answer names the service.
            if status.starts_with('2') || text.contains("\"service\"") {
                Err("a client without a certificate was served by reviews although plaintext is forbidden".to_owned())
            } else {
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn only_a_refusal_counts_as_one() {
        // A sidecar that lets plaintext through must not earn a check mark.
        assert!(judge_knock(&Ok(Vec::new())).is_ok());
        assert!(judge_knock(&Err(Error::from(ErrorKind::ConnectionReset))).is_ok());
        assert!(judge_knock(&Ok(b"HTTP/1.1 403 Forbidden\r\n\r\nplaintext_refused".to_vec())).is_ok());
        assert!(judge_knock(&Ok(b"HTTP/1.1 200 OK\r\n\r\n{}".to_vec())).is_err());
        assert!(judge_knock(&Ok(b"HTTP/1.1 503 x\r\n\r\n{\"service\":\"reviews\"}".to_vec())).is_err());
        assert!(judge_knock(&Err(Error::from(ErrorKind::TimedOut))).is_err());
    }
}
