//! Every metric: name, unit, labels, help, in one list.
//!
//! `pilot_*` and `istio_build` carry Istio's names where they mean the same, so that existing dashboards work; our own start
//! with `outrigger_`. Counters are plain atomics; nothing here is on a data path.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use outrigger_proto::kind::Kind;

/// A number that only grows, or one that is set.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// What it is now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of durations, in seconds; Istio's convergence buckets with finer ones below.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0];
/// Upper bounds of sizes, in bytes.
const BYTES: [f64; 12] = [1.0, 1e3, 1e4, 1e5, 2e5, 5e5, 1e6, 2e6, 4e6, 1e7, 2e7, 1e8];

/// How often something was at most this much.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64; 12],
    buckets: [AtomicU64; 13],
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    const fn new(bounds: &'static [f64; 12]) -> Self {
        Self { bounds, buckets: [const { AtomicU64::new(0) }; 13], sum: AtomicU64::new(0) }
    }

    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let index = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    /// Counts one duration.
    pub fn observe_time(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (bucket, bound) in self.buckets.iter().zip(self.bounds) {
            total += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let count = self.count();
        #[allow(clippy::cast_precision_loss)]
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }
}

/// All of them.
#[derive(Debug)]
pub struct Metrics {
    /// Connected proxies.
    pub connected: Counter,
    /// Discovery responses sent, by kind.
    pub pushes: [Counter; Kind::ALL.len()],
    /// Resources refused by proxies, by kind.
    pub rejects: [Counter; Kind::ALL.len()],
    /// Runs of the pipeline for configuration, and for workloads.
    pub triggers_config: Counter,
    pub triggers_endpoint: Counter,
    /// Streams that ended with an error of ours.
    pub internal_errors: Counter,
    /// From a stored revision until it is in effect at one proxy.
    pub convergence: Histogram,
    /// One run of the pipeline: build, compile, compare.
    pub push_time: Histogram,
    /// Bytes of one response.
    pub config_size: Histogram,
    pub certificates_issued: Counter,
    pub certificates_refused: Counter,
    pub validation_passed: Counter,
    pub validation_failed: Counter,
    /// Newest revision, resources and workloads that exist.
    pub revision: Counter,
    pub resources: Counter,
    pub workloads: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connected: Counter::default(),
            pushes: Default::default(),
            rejects: Default::default(),
            triggers_config: Counter::default(),
            triggers_endpoint: Counter::default(),
            internal_errors: Counter::default(),
            convergence: Histogram::new(&SECONDS),
            push_time: Histogram::new(&SECONDS),
            config_size: Histogram::new(&BYTES),
            certificates_issued: Counter::default(),
            certificates_refused: Counter::default(),
            validation_passed: Counter::default(),
            validation_failed: Counter::default(),
            revision: Counter::default(),
            resources: Counter::default(),
            workloads: Counter::default(),
        }
    }
}

/// The label that Istio's dashboards expect for a kind.
const fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::TrustBundle => "trust",
        Kind::EndpointShard => "eds",
        Kind::BackendPolicy => "policy",
        Kind::Service => "cds",
        Kind::RouteTable => "rds",
        Kind::Node => "node",
    }
}

impl Metrics {
    /// Everything, as Prometheus reads it.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(8192);
        let version = env!("CARGO_PKG_VERSION");
        let single = |out: &mut String, name: &str, kind: &str, help: &str, counter: &Counter| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}", counter.value());
        };
        let by_kind = |out: &mut String, name: &str, help: &str, counters: &[Counter]| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for (kind, counter) in Kind::ALL.into_iter().zip(counters) {
                let _ = writeln!(out, "{name}{{type=\"{}\"}} {}", label(kind), counter.value());
            }
        };
        let _ = writeln!(
            out,
            "# HELP istio_build Version of this component.\n# TYPE istio_build gauge\nistio_build{{component=\"outrigger\",tag=\"{version}\"}} 1"
        );
        let _ = writeln!(
            out,
            "# HELP pilot_xds Connected proxies.\n# TYPE pilot_xds gauge\npilot_xds{{version=\"{version}\"}} {}",
            self.connected.value()
        );
        by_kind(&mut out, "pilot_xds_pushes", "Discovery responses sent.", &self.pushes);
        by_kind(&mut out, "pilot_total_xds_rejects", "Resources refused by proxies.", &self.rejects);
        let _ = writeln!(
            out,
            "# HELP pilot_push_triggers What caused a push.\n# TYPE pilot_push_triggers counter\npilot_push_triggers{{type=\"config\"}} {}\npilot_push_triggers{{type=\"endpoint\"}} {}",
            self.triggers_config.value(),
            self.triggers_endpoint.value()
        );
        single(
            &mut out,
            "pilot_total_xds_internal_errors",
            "counter",
            "Streams that ended with an error of the control plane.",
            &self.internal_errors,
        );
        self.convergence.write(
            &mut out,
            "pilot_proxy_convergence_time",
            "Seconds from a stored revision until it is in effect at one proxy.",
        );
        self.push_time.write(&mut out, "pilot_xds_push_time", "Seconds that one run from change to resources took.");
        self.config_size.write(
            &mut out,
            "pilot_xds_config_size_bytes",
            "Bytes of resources in one discovery response.",
        );
        single(
            &mut out,
            "galley_validation_passed",
            "counter",
            "Applied documents that were accepted.",
            &self.validation_passed,
        );
        single(
            &mut out,
            "galley_validation_failed",
            "counter",
            "Applied documents that were refused.",
            &self.validation_failed,
        );
        single(
            &mut out,
            "outrigger_certificates_issued_total",
            "counter",
            "Workload certificates signed.",
            &self.certificates_issued,
        );
        single(
            &mut out,
            "outrigger_certificates_refused_total",
            "counter",
            "Certificate requests refused.",
            &self.certificates_refused,
        );
        single(&mut out, "outrigger_store_revision", "gauge", "Newest revision of the store.", &self.revision);
        single(&mut out, "outrigger_resources", "gauge", "Resources that exist.", &self.resources);
        single(&mut out, "outrigger_workloads", "gauge", "Registered workloads.", &self.workloads);
        process(&mut out);
        out
    }
}

/// What Linux says of this process.
fn process(out: &mut String) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // Fields after the command's closing bracket, see proc_pid_stat(5): utime 14, stime 15, vsize 23, rss 24.
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    let field = |n: usize| fields.get(n - 3).copied().unwrap_or(0);
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    #[allow(clippy::cast_precision_loss)]
    let cpu = (field(14) + field(15)) as f64 / ticks as f64;
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let _ = writeln!(
        out,
        "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {cpu}\n\
         # TYPE process_virtual_memory_bytes gauge\nprocess_virtual_memory_bytes {}\n\
         # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}\n\
         # TYPE process_open_fds gauge\nprocess_open_fds {files}",
        field(23),
        field(24) * page
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        // A malformed line makes the scraper drop everything.
        let metrics = Metrics::default();
        metrics.convergence.observe_time(Duration::from_millis(7));
        metrics.convergence.observe_time(Duration::from_secs(100));
        metrics.pushes[Kind::Service as usize].add(3);
        let text = metrics.render();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let value = line.rsplit(' ').next().unwrap_or("");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
        assert!(text.contains("pilot_xds_pushes{type=\"cds\"} 3"));
        assert!(text.contains("pilot_proxy_convergence_time_bucket{le=\"0.01\"} 1\n"));
        assert!(text.contains("pilot_proxy_convergence_time_bucket{le=\"+Inf\"} 2\n"));
        assert!(text.contains("process_resident_memory_bytes "));
    }
}
