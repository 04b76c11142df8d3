//! What operators see of one proxy: metrics, access log, process log.
//!
//! The journeys open a [`RequestRecord`] or [`ConnectionRecord`] and finish it exactly once; everything else counts
//! through [`WorkerTelemetry`]. Each worker writes cells of its own, which [`Telemetry::encode`] adds up when somebody
//! asks, so that two workers never touch the same memory for a request. Label text is rendered when a series first
//! appears, never for a request. Finishing a record with the access log off allocates nothing once its series exists.
//!
//! Only this module writes metrics; it decides nothing about traffic.

mod access_log;
mod breakers;
mod connection;
mod counters;
mod encode;
mod labels;
pub mod log;
pub mod metrics;
mod overload;
mod request;
mod series;
mod writer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

pub use access_log::{ConnectionLog, RequestLog};
pub use breakers::BreakerGauge;
pub use connection::ConnectionRecord;
use counters::AbuseEnd;
pub use counters::{
    ActiveConnection, ActiveUpstream, Demand, Detected, EjectionEvent, Fallback, Handshake, ListenerKind, Overflow,
    RetryRefusal, Side,
};
pub use labels::{LabelId, LabelSet, NodeLabels, workload_name};
pub use request::RequestRecord;

use self::{
    access_log::AccessLogSink,
    breakers::Breakers,
    counters::Counters,
    labels::Labels,
    overload::OverloadGauge,
    series::{SeriesKey, SeriesTexts, Table},
};
use crate::{
    failure::Reason,
    http::http2::Abuse,
    resilience::overload::{Measures, Readings},
    settings::TelemetrySettings,
};

/// Which half of the sidecar speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Mesh to application; reports as `reporter="destination"`.
    Inbound,
    /// Application to mesh; reports as `reporter="source"`.
    Outbound,
}

/// What the metrics call `request_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    Http,
    Grpc,
}

/// How a connection was protected, as this proxy knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    MutualTls,
    None,
}

/// Metrics and access log of the process.
pub struct Telemetry {
    labels: Labels,
    texts: SeriesTexts,
    workers: Vec<Arc<WorkerCells>>,
    breakers: Breakers,
    access_log: Option<AccessLogSink>,
    overload: OverloadGauge,
    generation: AtomicU64,
    config_swaps: AtomicU64,
    config_refusals: AtomicU64,
    /// Unix seconds; 0: no certificate yet.
    certificate_expiry: AtomicI64,
    started: SystemTime,
}

/// What one worker writes.
struct WorkerCells {
    table: parking_lot::Mutex<Table>,
    counters: Counters,
}

/// One worker's way to count. Any thread may use it; only speed asks for one per worker.
pub struct WorkerTelemetry {
    process: Arc<Telemetry>,
    cells: Arc<WorkerCells>,
}

impl Telemetry {
    /// Sets up cells for `workers` workers (at least one) and, if wanted, the access log on standard output.
    ///
    /// The control-plane client, the admin port and others that are no workers should have an index of their own.
    pub fn new(settings: &TelemetrySettings, own: NodeLabels, workers: usize) -> Arc<Self> {
        Self::with_access_log(settings, own, workers, Box::new(std::io::stdout()))
    }

    /// As [`Telemetry::new`], with the access log somewhere else.
    pub fn with_access_log(
        settings: &TelemetrySettings,
        own: NodeLabels,
        workers: usize,
        output: Box<dyn std::io::Write + Send>,
    ) -> Arc<Self> {
        Arc::new(Self {
            labels: Labels::new(own, settings.series),
            texts: SeriesTexts::new(settings.series),
            workers: (0..workers.max(1))
                .map(|_| Arc::new(WorkerCells { table: Default::default(), counters: Counters::default() }))
                .collect(),
            breakers: Breakers::new(settings.series),
            access_log: AccessLogSink::start(settings.access_log, output),
            overload: OverloadGauge::default(),
            generation: AtomicU64::new(0),
            config_swaps: AtomicU64::new(0),
            config_refusals: AtomicU64::new(0),
            certificate_expiry: AtomicI64::new(0),
            started: crate::host::wall_clock(),
        })
    }

    /// The cells of one worker; an index beyond the number given at the start shares cells, which is only slower.
    #[expect(
        clippy::indexing_slicing,
        reason = "the remainder of a length is below it, and there is at least one worker"
    )]
    pub fn worker(self: &Arc<Self>, index: usize) -> Arc<WorkerTelemetry> {
        let cells = self.workers[index % self.workers.len()].clone();
        Arc::new(WorkerTelemetry { process: self.clone(), cells })
    }

    /// Interns who a source or destination is. Not for every request: keep the id with the connection or endpoint.
    ///
    /// Beyond `settings.series` different sets everything new is [`LabelId::OTHER`].
    pub fn labels(&self, set: LabelSet) -> LabelId {
        self.labels.intern(set)
    }

    /// All metrics in Prometheus' text format, every worker added up.
    pub fn encode(&self) -> String {
        encode::encode(self)
    }

    /// Every metric as a Markdown table, for the documentation.
    pub fn reference() -> String {
        metrics::reference()
    }

    /// A new configuration is in effect.
    pub fn config_swapped(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        self.config_swaps.fetch_add(1, Ordering::Relaxed);
    }

    /// A configuration resource was refused and the last good one kept.
    pub fn config_refused(&self) {
        self.config_refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// The certificate in use ends then.
    pub fn certificate_expires(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().min(i64::MAX as u64) as i64);
        self.certificate_expiry.store(seconds, Ordering::Relaxed);
    }

    /// What is used of what there is, and what is done about it.
    pub fn overload(&self, readings: &Readings, measures: Measures) {
        self.overload.set(readings, measures);
    }

    /// The same, for people.
    pub fn overload_report(&self) -> serde_json::Value {
        self.overload.report()
    }

    /// Registers one breaker (one route rule and backend), closed; dropping the gauge unregisters it.
    ///
    /// `breaker` is "namespace/name" of the CircuitBreaker, `backend` the host behind it.
    pub fn breaker(self: &Arc<Self>, breaker: &str, backend: &str) -> BreakerGauge {
        BreakerGauge::new(self.clone(), breaker, backend)
    }

    /// Waits until the access log lines so far are written, at most a second. For the end of the process.
    pub fn flush(&self) {
        if let Some(sink) = &self.access_log {
            sink.flush();
        }
    }
}

impl WorkerTelemetry {
    /// The process this worker belongs to.
    pub fn process(&self) -> &Arc<Telemetry> {
        &self.process
    }

    /// A connection was accepted; it counts as active until the guard is dropped.
    pub fn connection_accepted(self: &Arc<Self>, kind: ListenerKind) -> ActiveConnection {
        ActiveConnection::new(self.clone(), kind)
    }

    /// A downstream or upstream connection turned out to be protected, or not.
    pub fn connection_secured(&self, direction: Direction, security: Security) {
        self.cells.counters.secured.add((direction, security));
    }

    /// A TLS handshake failed.
    pub fn handshake_failed(&self, direction: Direction, why: Handshake) {
        self.cells.counters.handshake_failures.add((direction, why));
    }

    /// A connection to an endpoint or to the application was opened; active until the guard is dropped.
    pub fn upstream_opened(self: &Arc<Self>, direction: Direction) -> ActiveUpstream {
        ActiveUpstream::new(self.clone(), direction)
    }

    /// Another try was wanted and not made. Tries that were made are told to [`RequestRecord::retries`].
    pub fn retry_refused(&self, why: RetryRefusal) {
        self.cells.counters.retries_refused.add(why);
    }

    /// A fallback answered instead of the backend.
    pub fn fallback_answered(&self, kind: Fallback) {
        self.cells.counters.fallbacks.add(kind);
    }

    /// An endpoint was put aside, or let back.
    pub fn ejection(&self, event: EjectionEvent) {
        self.cells.counters.ejections.add(event);
    }

    /// A limit refused something.
    pub fn limit_overflowed(&self, limit: Overflow) {
        self.cells.counters.overflows.add(limit);
    }

    /// What a connection turned out to speak.
    pub fn protocol_detected(&self, direction: Direction, detected: Detected) {
        self.cells.counters.detections.add((direction, detected));
    }

    /// A destination was asked for at the control plane.
    pub fn demand(&self, outcome: Demand) {
        self.cells.counters.demands.add(outcome);
    }

    /// An HTTP/2 peer did something that gets nothing done.
    pub fn http2_abuse(&self, direction: Direction, side: Side, abuse: Abuse) {
        let counters = &self.cells.counters;
        let peer = (direction, side);
        match abuse {
            Abuse::Charged(deed, times) => counters.http2_deeds.change((peer, deed), i64::from(times)),
            Abuse::Left(deed) => counters.http2_ends.add((peer, (AbuseEnd::Graceful, deed))),
            Abuse::Closed(deed) => counters.http2_ends.add((peer, (AbuseEnd::Hard, deed))),
        }
    }

    fn failed(&self, direction: Direction, reason: Reason) {
        self.cells.counters.failures.add((direction, reason));
    }

    /// Finds (or makes) the cells of `key` in this worker and writes to them.
    fn http(&self, key: SeriesKey, write: impl FnOnce(&mut series::HttpCell)) {
        let mut table = self.cells.table.lock();
        if let Some(cell) = table.http(key) {
            write(cell);
            return;
        }
        let key = self.process.texts.admit(key, &self.process.labels);
        write(table.http_or_new(key));
    }

    fn tcp(&self, key: SeriesKey, write: impl FnOnce(&mut series::TcpCell)) {
        let mut table = self.cells.table.lock();
        if let Some(cell) = table.tcp(key) {
            write(cell);
            return;
        }
        let key = self.process.texts.admit(key, &self.process.labels);
        write(table.tcp_or_new(key));
    }
}

#[cfg(test)]
mod tests;
