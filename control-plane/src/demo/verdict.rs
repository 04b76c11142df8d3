//! What the demo promises, what it saw, and which promise was broken. Pure.
//!
//! [`Report`] is the JSON object that `-o json` ends with; its field names are an interface. [`Report::broken`] is
//! what the exit code follows.

use serde::Serialize;

use super::binomial;

/// Confidence of the interval that an observed canary share must lie in.
pub const CONFIDENCE: f64 = 0.999;
/// Swaps that must have come into effect.
pub const MIN_SWAPS: u64 = 30;
/// States that the breaker must have gone through, in this order.
pub const BREAKER_STORY: [&str; 4] = ["closed", "open", "half_open", "closed"];

/// What was seen, from start to end.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct Report {
    /// Requests that the demo sent and that ended.
    pub requests: u64,
    /// Those that got anything but a 2xx answer of the shop, the fallback included.
    pub failed: u64,
    /// Configuration changes that came into effect on all sidecars.
    pub config_swaps: u64,
    /// Failed requests that were under way while configuration was swapped.
    pub failed_during_swaps: u64,
    pub canary: Vec<CanaryStep>,
    /// Connections and requests between workloads that were mutually authenticated, as the sidecars counted them.
    pub mtls_connections: u64,
    /// The same in plaintext.
    pub plaintext_connections: u64,
    /// Tries that sidecars made beyond the first.
    pub retries: u64,
    /// States of the breaker for ratings in order, the first one included.
    pub breaker_transitions: Vec<String>,
    /// Requests of the demo that were answered with the fallback for ratings.
    pub fallback_responses: u64,
    pub propagation_ms: Propagation,
}

/// One weight of the canary.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct CanaryStep {
    /// Percent of the traffic that reviews v2 should get.
    pub weight: u32,
    /// Percent that it got, of the requests sent after the change was in effect.
    pub observed_percent: f64,
    pub requests: u64,
}

/// From the moment a change was stored until the last sidecar had it in effect, milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq)]
pub struct Propagation {
    pub p50: f64,
    pub p99: f64,
}

impl CanaryStep {
    /// From counted answers.
    pub fn new(weight: u32, hits: u64, requests: u64) -> Self {
        let percent = if requests == 0 { 0.0 } else { hits as f64 * 100.0 / requests as f64 };
        Self { weight, observed_percent: (percent * 100.0).round() / 100.0, requests }
    }

    /// The percentages that are believable for this weight and number of requests.
    pub fn believable_percent(&self) -> (f64, f64) {
        if self.requests == 0 {
            return (0.0, 0.0);
        }
        let (low, high) = binomial::interval(self.requests, f64::from(self.weight) / 100.0, CONFIDENCE);
        (low as f64 * 100.0 / self.requests as f64, high as f64 * 100.0 / self.requests as f64)
    }

    /// Whether the share is believable.
    pub fn holds(&self) -> bool {
        let (low, high) = self.believable_percent();
        // `observed_percent` is rounded to hundredths.
        self.requests > 0 && self.observed_percent >= low - 0.005 && self.observed_percent <= high + 0.005
    }
}

impl Propagation {
    /// Nearest-rank percentiles; zeros when nothing was measured.
    pub fn of(samples_us: &[u64]) -> Self {
        let mut sorted = samples_us.to_vec();
        sorted.sort_unstable();
        let rank = |share: f64| {
            let index = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(index.saturating_sub(1)).map_or(0.0, |us| (*us as f64 / 10.0).round() / 100.0)
        };
        Self { p50: rank(0.5), p99: rank(0.99) }
    }
}

impl Report {
    /// One sentence for each promise that was not kept; empty when all were.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut promise = |kept: bool, sentence: String| {
            if !kept {
                broken.push(sentence);
            }
        };
        promise(self.requests > 0, "no request was answered".to_owned());
        promise(self.failed == 0, format!("{} of {} requests failed", self.failed, self.requests));
        promise(
            self.plaintext_connections == 0,
            format!("{} connections between workloads were plaintext", self.plaintext_connections),
        );
        promise(self.mtls_connections > 0, "no connection between workloads was seen to use mutual TLS".to_owned());
        for weight in [0, 10, 50, 100] {
            match self.canary.iter().find(|step| step.weight == weight) {
                None => promise(false, format!("the canary never reached {weight} %")),
                Some(step) => {
                    let (low, high) = step.believable_percent();
                    promise(
                        step.holds(),
                        format!(
                            "the canary at {weight} % got {} % of {} requests, which is not between {low:.2} % and {high:.2} %",
                            step.observed_percent, step.requests
                        ),
                    );
                }
            }
        }
        promise(self.retries > 0, "no retry was counted although ratings was flaky".to_owned());
        promise(
            contains_in_order(&self.breaker_transitions, &BREAKER_STORY),
            format!(
                "the breaker went through [{}], not through {}",
                self.breaker_transitions.join(", "),
                BREAKER_STORY.join(", ")
            ),
        );
        promise(self.fallback_responses > 0, "no request was answered by the fallback during the outage".to_owned());
        promise(
            self.config_swaps >= MIN_SWAPS,
            format!("only {} configuration swaps came into effect, not {MIN_SWAPS}", self.config_swaps),
        );
        promise(
            self.failed_during_swaps == 0,
            format!("{} requests failed while configuration was swapped", self.failed_during_swaps),
        );
        broken
    }
}

/// Whether `wanted` is a subsequence of `seen`.
pub fn contains_in_order(seen: &[String], wanted: &[&str]) -> bool {
    let mut left = seen.iter();
    wanted.iter().all(|word| left.any(|state| state == word))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn good() -> Report {
        Report {
            requests: 9000,
            failed: 0,
            config_swaps: 44,
            failed_during_swaps: 0,
            canary: vec![
                CanaryStep::new(0, 0, 450),
                CanaryStep::new(10, 51, 450),
                CanaryStep::new(50, 220, 450),
                CanaryStep::new(100, 450, 450),
            ],
            mtls_connections: 20,
            plaintext_connections: 0,
            retries: 80,
            breaker_transitions: ["closed", "open", "half_open", "open", "half_open", "closed"]
                .map(str::to_owned)
                .to_vec(),
            fallback_responses: 400,
            propagation_ms: Propagation { p50: 12.0, p99: 31.5 },
        }
    }

    #[test]
    fn each_broken_promise_is_named() {
        // A demo that exits 0 although something failed would be worse than none.
        assert_eq!(good().broken(), Vec::<String>::new());
        type Spoil = fn(&mut Report);
        let cases: [(Spoil, &str); 11] = [
            (|r| r.requests = 0, "no request was answered"),
            (|r| r.failed = 2, "2 of 9000 requests failed"),
            (|r| r.plaintext_connections = 1, "plaintext"),
            (|r| r.mtls_connections = 0, "mutual TLS"),
            (|r| r.canary[1] = CanaryStep::new(10, 120, 450), "canary at 10 %"),
            (|r| r.canary.truncate(3), "never reached 100 %"),
            (|r| r.retries = 0, "no retry"),
            (|r| r.breaker_transitions.truncate(3), "the breaker went through [closed, open, half_open]"),
            (|r| r.fallback_responses = 0, "fallback"),
            (|r| r.config_swaps = 29, "only 29 configuration swaps"),
            (|r| r.failed_during_swaps = 1, "1 requests failed while"),
        ];
        for (spoil, sentence) in cases {
            let mut report = good();
            spoil(&mut report);
            let broken = report.broken();
            assert_eq!(broken.len(), 1, "{broken:?}");
            assert!(broken[0].contains(sentence), "{broken:?}");
        }
    }

    #[test]
    fn a_canary_step_must_be_exact_at_the_ends() {
        // One request to a version with weight 0 is a broken split, not noise.
        for (weight, hits, requests, holds) in
            [(0, 0, 450, true), (0, 1, 450, false), (100, 450, 450, true), (100, 449, 450, false), (50, 0, 0, false)]
        {
            assert_eq!(CanaryStep::new(weight, hits, requests).holds(), holds, "{weight} {hits} {requests}");
        }
    }

    #[test]
    fn the_json_has_exactly_the_promised_fields() {
        // Scripts that read the report would break.
        let json = serde_json::to_value(good()).unwrap();
        let mut fields: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            [
                "breaker_transitions",
                "canary",
                "config_swaps",
                "failed",
                "failed_during_swaps",
                "fallback_responses",
                "mtls_connections",
                "plaintext_connections",
                "propagation_ms",
                "requests",
                "retries",
            ]
        );
        assert_eq!(json["canary"][1], serde_json::json!({"weight": 10, "observed_percent": 11.33, "requests": 450}));
        assert_eq!(json["propagation_ms"], serde_json::json!({"p50": 12.0, "p99": 31.5}));
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        // A p99 below the worst sample of fifty would hide the slow one.
        let samples: Vec<u64> = (1..=50).map(|ms| ms * 1000).collect();
        assert_eq!(Propagation::of(&samples), Propagation { p50: 25.0, p99: 50.0 });
        assert_eq!(Propagation::of(&[]), Propagation::default());
        assert_eq!(Propagation::of(&[1234]), Propagation { p50: 1.23, p99: 1.23 });
    }

    #[test]
    fn the_order_of_states_matters() {
        // "closed, half_open, open, closed" is not how a breaker works.
        let seen = |states: &[&str]| states.iter().map(|&state| state.to_owned()).collect::<Vec<_>>();
        assert!(contains_in_order(&seen(&["closed", "open", "half_open", "closed", "open"]), &BREAKER_STORY));
        assert!(!contains_in_order(&seen(&["closed", "half_open", "open", "closed"]), &BREAKER_STORY));
        assert!(!contains_in_order(&seen(&[]), &BREAKER_STORY));
    }
}
