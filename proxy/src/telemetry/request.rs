//! What became of one request: opened once, finished once.
//!
//! The journeys tell it what they learn; when it is finished or dropped it writes metrics and, if wanted, one line of
//! the access log. Everything that only the log needs is kept only when the log is on.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, Method, Uri, Version};

use super::{Direction, LabelId, RequestLog, RequestProtocol, Security, WorkerTelemetry, series::SeriesParts};
use crate::{
    failure::Reason,
    host::{self, Instant},
};

/// One request. Dropping it finishes it; without response and failure it then counts as cancelled (`DC`).
pub struct RequestRecord {
    worker: Arc<WorkerTelemetry>,
    start: Instant,
    parts: SeriesParts,
    request_bytes: u64,
    response_bytes: u64,
    request_messages: u64,
    response_messages: u64,
    retries: u32,
    /// `None`: when this is dropped.
    ended: Option<Instant>,
    log: Option<Box<RequestLog>>,
}

impl RequestRecord {
    /// Opens the record of a request whose head began to arrive at `start`.
    ///
    /// This proxy's own side is filled in; the other side is unknown until it is set.
    pub fn open(worker: &Arc<WorkerTelemetry>, direction: Direction, start: Instant) -> Self {
        let (source, destination) = match direction {
            Direction::Inbound => (LabelId::UNKNOWN, LabelId::OWN),
            Direction::Outbound => (LabelId::OWN, LabelId::UNKNOWN),
        };
        let log = worker.process.access_log.as_ref().map(|_| Box::new(RequestLog::opened(start)));
        Self {
            worker: worker.clone(),
            start,
            parts: SeriesParts {
                direction,
                source,
                destination,
                protocol: Some(RequestProtocol::Http),
                security: None,
                status: 0,
                failure: None,
                grpc_status: None,
            },
            request_bytes: 0,
            response_bytes: 0,
            request_messages: 0,
            response_messages: 0,
            retries: 0,
            ended: None,
            log,
        }
    }

    /// When the request began.
    pub const fn started(&self) -> Instant {
        self.start
    }

    /// What was asked, for the access log; costs nothing when the log is off.
    pub fn head(&mut self, method: &Method, uri: &Uri, version: Version, headers: &HeaderMap) {
        if let Some(log) = &mut self.log {
            log.head(method, uri, version, headers);
        }
    }

    /// Whatever else only the access log shows; `write` runs only when the log is on.
    pub fn describe(&mut self, write: impl FnOnce(&mut RequestLog)) {
        if let Some(log) = &mut self.log {
            write(log);
        }
    }

    /// HTTP (the default) or gRPC.
    pub const fn protocol(&mut self, protocol: RequestProtocol) {
        self.parts.protocol = Some(protocol);
    }

    /// Who asks.
    pub const fn source(&mut self, source: LabelId) {
        self.parts.source = source;
    }

    /// Who answers.
    pub const fn destination(&mut self, destination: LabelId) {
        self.parts.destination = destination;
    }

    /// How the downstream connection was protected; shown by the destination's side only, as with Istio.
    pub const fn security(&mut self, security: Security) {
        self.parts.security = Some(security);
    }

    /// Name of the route that matched.
    pub fn route(&mut self, route: &Arc<str>) {
        if let Some(log) = &mut self.log {
            log.route = Some(route.clone());
        }
    }

    /// The request is about to be sent there; after a retry the last one counts.
    pub fn upstream(&mut self, address: SocketAddr) {
        if let Some(log) = &mut self.log {
            log.upstream = Some(address);
            log.sent_upstream = Some(host::now());
        }
    }

    /// The response head that goes downstream, ours or the upstream's.
    pub fn response(&mut self, status: http::StatusCode) {
        self.parts.status = status.as_u16();
        if let Some(log) = &mut self.log {
            log.answered = Some(host::now());
        }
    }

    /// What went wrong; the last one counts.
    pub const fn failure(&mut self, reason: Reason) {
        self.parts.failure = Some(reason);
    }

    /// How often the request was sent again, in all.
    pub const fn retries(&mut self, retries: u32) {
        self.retries = retries;
    }

    /// gRPC's own status, from trailers or head.
    pub fn grpc_status(&mut self, status: u32) {
        // Above 16 nothing is defined; one value stands for all of them, so that an upstream cannot make up series.
        self.parts.grpc_status = Some(if status <= 16 { status as u8 } else { 2 });
    }

    /// Adds bytes received from downstream.
    pub const fn request_bytes(&mut self, bytes: u64) {
        self.request_bytes = self.request_bytes.saturating_add(bytes);
    }

    /// Adds bytes sent downstream.
    pub const fn response_bytes(&mut self, bytes: u64) {
        self.response_bytes = self.response_bytes.saturating_add(bytes);
    }

    /// Adds gRPC messages of either direction.
    pub const fn messages(&mut self, requests: u64, responses: u64) {
        self.request_messages += requests;
        self.response_messages += responses;
    }

    /// Writes everything down; it ended at `now`.
    pub fn finish(mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if self.parts.status == 0 && self.parts.failure.is_none() {
            self.parts.failure = Some(Reason::DownstreamClosed);
        }
        let duration = self.ended.unwrap_or_else(host::now).saturating_duration_since(self.start);
        self.worker.http(self.parts.key(), |cell| {
            cell.duration.record_duration(duration);
            cell.request_bytes.record_bytes(self.request_bytes);
            cell.response_bytes.record_bytes(self.response_bytes);
            cell.request_messages += self.request_messages;
            cell.response_messages += self.response_messages;
        });
        if let Some(reason) = self.parts.failure {
            self.worker.failed(self.parts.direction, reason);
        }
        if self.retries > 0 {
            let retries = &self.worker.cells.counters.retries;
            retries.fetch_add(u64::from(self.retries), std::sync::atomic::Ordering::Relaxed);
        }
        if let (Some(log), Some(sink)) = (&self.log, &self.worker.process.access_log) {
            let labels = self.worker.process.labels.get(self.parts.destination);
            sink.request(log, &self.parts, &labels, duration, self.request_bytes, self.response_bytes, self.retries);
        }
    }
}
