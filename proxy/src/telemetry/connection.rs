//! What became of one opaque connection: opened once, closed once, bytes in between.

use std::{net::SocketAddr, sync::Arc};

use super::{ConnectionLog, Direction, LabelId, Security, WorkerTelemetry, series::SeriesParts};
use crate::{
    failure::Reason,
    host::{self, Instant},
};

/// One opaque (TCP) connection. Dropping it finishes it.
pub struct ConnectionRecord {
    worker: Arc<WorkerTelemetry>,
    start: Instant,
    parts: SeriesParts,
    established: bool,
    sent_bytes: u64,
    received_bytes: u64,
    log: Option<Box<ConnectionLog>>,
}

impl ConnectionRecord {
    /// Opens the record of a connection accepted at `start`.
    ///
    /// This proxy's own side is filled in; the other side is unknown until it is set.
    pub fn open(worker: &Arc<WorkerTelemetry>, direction: Direction, start: Instant) -> Self {
        let (source, destination) = match direction {
            Direction::Inbound => (LabelId::UNKNOWN, LabelId::OWN),
            Direction::Outbound => (LabelId::OWN, LabelId::UNKNOWN),
        };
        let log = worker.process.access_log.as_ref().map(|_| Box::new(ConnectionLog::opened(start)));
        Self {
            worker: worker.clone(),
            start,
            parts: SeriesParts {
                direction,
                source,
                destination,
                protocol: None,
                security: None,
                status: 0,
                failure: None,
                grpc_status: None,
            },
            established: false,
            sent_bytes: 0,
            received_bytes: 0,
            log,
        }
    }

    /// Who connects.
    pub const fn source(&mut self, source: LabelId) {
        self.parts.source = source;
    }

    /// Who is connected to.
    pub const fn destination(&mut self, destination: LabelId) {
        self.parts.destination = destination;
    }

    /// How the downstream connection was protected; shown by the destination's side only, as with Istio.
    pub const fn security(&mut self, security: Security) {
        self.parts.security = Some(security);
    }

    /// Whatever only the access log shows; `write` runs only when the log is on.
    pub fn describe(&mut self, write: impl FnOnce(&mut ConnectionLog)) {
        if let Some(log) = &mut self.log {
            write(log);
        }
    }

    /// Both halves stand: counts as opened. Labels should be set before.
    pub fn established(&mut self, upstream: SocketAddr) {
        if let Some(log) = &mut self.log {
            log.upstream = Some(upstream);
        }
        self.count_opened();
    }

    /// Adds bytes since the last call: `sent` to downstream, `received` from downstream (Istio's sense of the words).
    ///
    /// Call it now and then for long connections, not for every read.
    pub fn transferred(&mut self, sent: u64, received: u64) {
        self.sent_bytes = self.sent_bytes.saturating_add(sent);
        self.received_bytes = self.received_bytes.saturating_add(received);
        // Bytes count under the labels of a healthy connection whatever becomes of it, so that rates stay one series.
        let key = SeriesParts { failure: None, ..self.parts }.key();
        self.worker.tcp(key, |cell| {
            cell.sent_bytes += sent;
            cell.received_bytes += received;
        });
    }

    /// What went wrong; the last one counts.
    pub const fn failure(&mut self, reason: Reason) {
        self.parts.failure = Some(reason);
    }

    /// Writes everything down. The same as dropping; says that the end was meant.
    pub fn finish(self) {}

    fn count_opened(&mut self) {
        if !std::mem::replace(&mut self.established, true) {
            let key = SeriesParts { failure: None, ..self.parts }.key();
            self.worker.tcp(key, |cell| cell.opened += 1);
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        // Opened and closed must meet in the sums, also for a connection that never reached anything.
        self.count_opened();
        self.worker.tcp(self.parts.key(), |cell| cell.closed += 1);
        if let Some(reason) = self.parts.failure {
            self.worker.failed(self.parts.direction, reason);
        }
        if let (Some(log), Some(sink)) = (&self.log, &self.worker.process.access_log) {
            let labels = self.worker.process.labels.get(self.parts.destination);
            let duration = host::now().saturating_duration_since(self.start);
            sink.connection(log, &self.parts, &labels, duration, self.received_bytes, self.sent_bytes);
        }
    }
}
