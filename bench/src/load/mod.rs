//! What is done to a chain, and what the one who does it sees.
//!
//! All generators run on the load's core. Closed loops give rate and cost at saturation: wrk for HTTP/1.1, h2load (or our own
//! generator) for HTTP/2. Constant rates give latency: each request has its intended start.

pub mod constant_rate;
pub mod h2load;
pub mod http2;
pub mod probe;
pub mod raw;
pub mod tls;
pub mod wrk;

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;

use crate::{
    chain::Running,
    peers::{self, Peer},
    scenario::{self, Client, Scenario},
};

/// Latency above this counts as this, and a response that takes longer ends the run.
pub const LONGEST: Duration = Duration::from_secs(60);

/// What the load generator saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Units of work that were done.
    pub count: f64,
    pub rate: f64,
    /// None where there is nothing to wait for.
    pub latency: Option<Latency>,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
}

/// Where the load goes to, from which core, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Aim<'a> {
    pub scenario: &'a Scenario,
    pub entry: SocketAddr,
    pub time: Duration,
    pub core: usize,
    /// Where files may be left.
    pub folder: &'a Path,
}

impl Aim<'_> {
    /// Makes the load of its scenario.
    ///
    /// # Errors
    /// When a request fails: a chain that fails is not a fast chain.
    pub fn fire(&self, running: &Running) -> Result<Load> {
        match &self.scenario.load {
            scenario::Load::Closed { connections, streams } => match self.scenario.client {
                Client::Http1 => wrk::run(self, *connections),
                Client::Http2 | Client::Grpc if peers::find(Peer::H2load).is_some() => {
                    h2load::run(self, *connections, *streams)
                }
                _ => http2::closed(self, *connections, *streams),
            },
            scenario::Load::Open { connections, requests_per_second } => {
                if self.scenario.client.is_http2() {
                    http2::constant_rate(self, *connections, *requests_per_second)
                } else {
                    constant_rate::run(self, *connections, *requests_per_second)
                }
            }
            scenario::Load::Bulk { connections, direction } => raw::bulk(self, *connections, *direction),
            scenario::Load::Connect { connections } => raw::connect(self, *connections),
            scenario::Load::Handshake { connections } => tls::handshakes(self, *connections, running.alpn),
            _ => anyhow::bail!("scenario {} makes no load of this kind", self.scenario.name),
        }
    }
}

/// An empty histogram of microseconds.
///
/// # Errors
/// None that can happen.
pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, u64::try_from(LONGEST.as_micros())?, 3).context("no histogram")
}

/// Counts one answer since `start`.
pub fn record(histogram: &mut Histogram<u64>, start: Instant) {
    histogram.saturating_record(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
}

impl Load {
    /// One unit of work for each entry.
    pub fn of(latencies: &Histogram<u64>, took: Duration) -> Self {
        let count = latencies.len() as f64;
        Self { count, rate: count / took.as_secs_f64(), latency: Some(Latency::of(latencies)) }
    }
}

impl Latency {
    pub fn of(latencies: &Histogram<u64>) -> Self {
        let at = |quantile| latencies.value_at_quantile(quantile) as f64;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999) }
    }
}
