//! What the sidecars say about themselves: counters from `/metrics`, the breaker from `/clusters`.
//!
//! The reading of both is pure. Everything is asked of the sidecars' own admin ports, so the demo claims nothing that an
//! operator could not see.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::{http_client::Client, topology::Plan};

/// Longest wait for an admin port.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that turned out to be protected or not, by the side that saw it.
const SECURED: &str = "outrigger_connections_secured_total";
/// Tries beyond the first.
const RETRIES: &str = "outrigger_retries_total";

/// Numbers of one sidecar, or of all added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Accepted from peers with mutual TLS.
    pub mtls_connections: u64,
    /// Accepted from peers, or opened to them, in plaintext.
    pub plaintext_connections: u64,
    pub retries: u64,
}

impl Counters {
    pub const fn plus(self, other: Self) -> Self {
        Self {
            mtls_connections: self.mtls_connections + other.mtls_connections,
            plaintext_connections: self.plaintext_connections + other.plaintext_connections,
            retries: self.retries + other.retries,
        }
    }

    /// Reads Prometheus' text format. Protected connections are counted where they are accepted, which is exactly
    /// once; plaintext counts wherever it is seen.
    pub fn read(text: &str) -> Self {
        let mut counters = Self::default();
        for Sample { name, labels, value } in text.lines().filter_map(Sample::read) {
            let has = |name: &str, value: &str| labels.get(name).is_some_and(|found| *found == value);
            // Counters are whole numbers, written as floating point.
            let count = value as u64;
            match name {
                SECURED if has("direction", "inbound") && has("security", "mutual_tls") => {
                    counters.mtls_connections += count;
                }
                SECURED if !has("security", "mutual_tls") => counters.plaintext_connections += count,
                RETRIES => counters.retries += count,
                _ => {}
            }
        }
        counters
    }
}

/// One line of the text format.
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    value: f64,
}

impl<'a> Sample<'a> {
    /// `name{label="value",..} number`; `None` for comments and what cannot be read.
    fn read(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.trim_end().rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let Some((name, mut rest)) = series.split_once('{') else {
            return Some(Self { name: series.trim_end(), labels: BTreeMap::new(), value });
        };
        let mut labels = BTreeMap::new();
        while let Some((label, after)) = rest.split_once("=\"") {
            let end = closing_quote(after)?;
            labels.insert(label.trim_start_matches([',', ' ']), after.get(..end)?);
            rest = after.get(end + 1..)?;
        }
        Some(Self { name, labels, value })
    }
}

/// Where the quote that ends a label's value stands; a backslash takes the next character along.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => byte == b'"',
    })
}

/// The part of `/clusters` that is read here.
#[derive(Debug, Default, Deserialize)]
struct Clusters {
    #[serde(default)]
    breakers: Vec<BreakerDump>,
}

#[derive(Debug, Deserialize)]
struct BreakerDump {
    /// "namespace/name" of the CircuitBreaker.
    name: String,
    state: String,
    #[serde(default)]
    transitions: Vec<TransitionDump>,
}

#[derive(Debug, Deserialize)]
struct TransitionDump {
    from: String,
    to: String,
}

/// Where a breaker stands and how it got there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BreakerHistory {
    pub state: String,
    /// The states in order, the first one included.
    pub states: Vec<String>,
}

impl BreakerHistory {
    /// Reads `/clusters`; `None` when there is no breaker of this name yet.
    pub fn read(json: &[u8], name: &str) -> anyhow::Result<Option<Self>> {
        let clusters: Clusters = serde_json::from_slice(json).context("the answer of /clusters cannot be read")?;
        // One CircuitBreaker may guard several rules; the one that moved most is the one traffic went through.
        let named = clusters.breakers.into_iter().filter(|breaker| breaker.name == name);
        let Some(breaker) = named.max_by_key(|breaker| breaker.transitions.len()) else {
            return Ok(None);
        };
        let mut states: Vec<String> = breaker.transitions.first().map(|first| first.from.clone()).into_iter().collect();
        states.extend(breaker.transitions.into_iter().map(|transition| transition.to));
        if states.is_empty() {
            states.push(breaker.state.clone());
        }
        Ok(Some(Self { state: breaker.state, states }))
    }
}

/// Connections to the admin ports of all sidecars.
pub struct Observer {
    sidecars: BTreeMap<&'static str, Client>,
}

impl Observer {
    pub fn new(plan: &Plan) -> Self {
        let client = |address| Client::new(address, 1, TIMEOUT);
        Self { sidecars: plan.placed.iter().map(|placed| (placed.workload.name, client(placed.admin))).collect() }
    }

    async fn ask(&self, workload: &str, path: &str) -> anyhow::Result<bytes::Bytes> {
        let client = self.sidecars.get(workload).with_context(|| format!("there is no sidecar {workload}"))?;
        let asked = || format!("cannot read {}{path} of sidecar {workload}", client.target());
        let answer = client.get(path).await.with_context(asked)?;
        ensure!(answer.status.is_success(), "{}: status {}", asked(), answer.status.as_u16());
        Ok(answer.body)
    }

    /// Counters of one sidecar.
    pub async fn counters(&self, workload: &str) -> anyhow::Result<Counters> {
        let body = self.ask(workload, "/metrics").await?;
        Ok(Counters::read(&String::from_utf8_lossy(&body)))
    }

    /// Counters of the sidecars that answer, added up, and what is wrong with the others.
    pub async fn reachable_counters(&self) -> (Counters, Vec<String>) {
        let (mut sum, mut doubts) = (Counters::default(), Vec::new());
        for workload in self.sidecars.keys() {
            match self.counters(workload).await {
                Ok(counters) => sum = sum.plus(counters),
                Err(error) => doubts.push(format!("{error:#}")),
            }
        }
        (sum, doubts)
    }

    /// Counters of all sidecars, added up.
    pub async fn all_counters(&self) -> anyhow::Result<Counters> {
        let mut sum = Counters::default();
        for workload in self.sidecars.keys() {
            sum = sum.plus(self.counters(workload).await?);
        }
        Ok(sum)
    }

    /// A breaker of one sidecar; closed without a history until it is first used.
    pub async fn breaker(&self, workload: &str, name: &str) -> anyhow::Result<BreakerHistory> {
        let body = self.ask(workload, "/clusters").await?;
        Ok(BreakerHistory::read(&body, name)?.unwrap_or_default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_text_format() {
        // A misread metric would turn a plaintext connection into a kept promise.
        let text = "# HELP outrigger_connections_secured_total x\n\
                    outrigger_connections_secured_total{direction=\"inbound\",security=\"mutual_tls\"} 12\n\
                    outrigger_connections_secured_total{direction=\"inbound\",security=\"none\"} 2\n\
                    outrigger_connections_secured_total{direction=\"outbound\",security=\"mutual_tls\"} 100\n\
                    outrigger_connections_secured_total{direction=\"outbound\",security=\"none\"} 1\n\
                    outrigger_retries_total{backend=\"a\\\"},b{\",x=\"y\"} 3.0\n\
                    outrigger_retries_total 4\n\
                    broken{ 5\n\
                    other NaN\n";
        assert_eq!(Counters::read(text), Counters { mtls_connections: 12, plaintext_connections: 3, retries: 7 });
        assert_eq!(Counters::read(""), Counters::default());
    }

    #[test]
    fn the_breaker_is_told_in_order() {
        // The report names the states in the order they were gone through.
        let json = br#"{"clusters": [], "breakers": [
            {"name": "shop/other", "backend": "x", "state": "open", "transitions": []},
            {"name": "shop/ratings", "backend": "unused", "state": "closed", "transitions": []},
            {"name": "shop/ratings", "backend": "ratings", "state": "closed", "transitions": [
                {"from": "closed", "to": "open", "at_ms": 1}, {"from": "open", "to": "half_open", "at_ms": 2},
                {"from": "half_open", "to": "closed", "at_ms": 3}]}]}"#;
        let history = BreakerHistory::read(json, "shop/ratings").unwrap().unwrap();
        assert_eq!(history.states, ["closed", "open", "half_open", "closed"]);
        assert_eq!(BreakerHistory::read(json, "shop/other").unwrap().unwrap().states, ["open"]);
        assert_eq!(BreakerHistory::read(b"{}", "shop/ratings").unwrap(), None);
        assert!(BreakerHistory::read(b"<html>", "shop/ratings").is_err());
    }
}
