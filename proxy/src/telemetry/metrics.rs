//! Every metric there is: name, kind, unit, labels, help. The documentation is printed from this list.
//!
//! `encode` writes only what is declared here (a test holds it to that). Names and labels of the `istio_*` metrics
//! follow Istio, so that its dashboards and Kiali work unchanged; everything else begins with `outrigger_`.

/// How a metric behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts per bucket, with `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    /// Prometheus' word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// What is counted or measured.
    pub unit: &'static str,
    /// Label names in the order they are written.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! istio_labels {
    ($($further:literal),*) => {
        &[
            "reporter",
            "source_workload",
            "source_workload_namespace",
            "source_principal",
            "source_app",
            "source_version",
            "source_cluster",
            "source_canonical_service",
            "source_canonical_revision",
            "destination_workload",
            "destination_workload_namespace",
            "destination_principal",
            "destination_app",
            "destination_version",
            "destination_cluster",
            "destination_canonical_service",
            "destination_canonical_revision",
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
            "request_protocol",
            $($further,)*
            "response_flags",
            "connection_security_policy",
        ]
    };
}

/// Istio's labels of opaque connections.
const ISTIO_TCP: &[&str] = istio_labels!();
/// Istio's labels of requests; `grpc_response_status` only for gRPC.
const ISTIO_HTTP: &[&str] = istio_labels!("response_code", "grpc_response_status");

macro_rules! metrics {
    ($($constant:ident: $name:literal $kind:ident $unit:literal $labels:expr, $help:literal;)+) => {
        $(pub(super) const $constant: Metric =
            Metric { name: $name, kind: Kind::$kind, unit: $unit, labels: $labels, help: $help };)+

        /// The list.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    REQUESTS: "istio_requests_total" Counter "requests" ISTIO_HTTP,
        "Requests finished.";
    DURATION: "istio_request_duration_milliseconds" Histogram "milliseconds" ISTIO_HTTP,
        "Time from the first byte of a request to the last of its response.";
    REQUEST_BYTES: "istio_request_bytes" Histogram "bytes" ISTIO_HTTP,
        "Size of requests.";
    RESPONSE_BYTES: "istio_response_bytes" Histogram "bytes" ISTIO_HTTP,
        "Size of responses.";
    REQUEST_MESSAGES: "istio_request_messages_total" Counter "messages" ISTIO_HTTP,
        "gRPC messages from clients.";
    RESPONSE_MESSAGES: "istio_response_messages_total" Counter "messages" ISTIO_HTTP,
        "gRPC messages from servers.";
    TCP_SENT: "istio_tcp_sent_bytes_total" Counter "bytes" ISTIO_TCP,
        "Bytes sent to clients on opaque connections.";
    TCP_RECEIVED: "istio_tcp_received_bytes_total" Counter "bytes" ISTIO_TCP,
        "Bytes received from clients on opaque connections.";
    TCP_OPENED: "istio_tcp_connections_opened_total" Counter "connections" ISTIO_TCP,
        "Opaque connections opened.";
    TCP_CLOSED: "istio_tcp_connections_closed_total" Counter "connections" ISTIO_TCP,
        "Opaque connections closed.";
    ISTIO_BUILD: "istio_build" Gauge "1" &["component", "tag"],
        "Version of this proxy, where Istio's dashboards look for it.";
    ACCEPTED: "outrigger_connections_accepted_total" Counter "connections" &["listener"],
        "Downstream connections accepted.";
    ACTIVE: "outrigger_connections_active" Gauge "connections" &["listener"],
        "Downstream connections open now.";
    SECURED: "outrigger_connections_secured_total" Counter "connections" &["direction", "security"],
        "Connections between workloads by protection: inbound as accepted, outbound as opened.";
    HANDSHAKE_FAILURES: "outrigger_handshake_failures_total" Counter "handshakes" &["direction", "reason"],
        "TLS handshakes that failed.";
    UPSTREAM_OPENED: "outrigger_upstream_connections_opened_total" Counter "connections" &["direction"],
        "Connections opened to endpoints (outbound) or to the application (inbound).";
    UPSTREAM_ACTIVE: "outrigger_upstream_connections_active" Gauge "connections" &["direction"],
        "Connections to endpoints or to the application open now.";
    RETRIES: "outrigger_retries_total" Counter "tries" &[],
        "Requests sent again.";
    RETRIES_REFUSED: "outrigger_retries_refused_total" Counter "tries" &["reason"],
        "Further tries that were wanted and not made.";
    BREAKER_STATE: "outrigger_breaker_state" Gauge "breakers" &["breaker", "backend", "state"],
        "Breakers that stand in a state; one per route rule and backend.";
    BREAKER_TRANSITIONS: "outrigger_breaker_transitions_total" Counter "transitions" &["breaker", "backend", "from", "to"],
        "Changes of state of breakers.";
    FALLBACKS: "outrigger_fallback_responses_total" Counter "responses" &["kind"],
        "Responses that a fallback gave instead of the backend.";
    EJECTIONS: "outrigger_ejections_total" Counter "endpoints" &["event"],
        "Endpoints put aside, let back, or kept because too many were out.";
    OVERFLOWS: "outrigger_limit_overflows_total" Counter "refusals" &["limit"],
        "Requests and connections refused at a limit.";
    HTTP2_DEEDS: "outrigger_http2_abuse_deeds_total" Counter "deeds" &["direction", "side", "deed"],
        "What HTTP/2 peers did that gets nothing done and is charged to their connection's account. Every client does a little of it.";
    HTTP2_ENDS: "outrigger_http2_abuse_closed_total" Counter "connections" &["direction", "side", "end", "deed"],
        "HTTP/2 connections that used up three quarters of their account (`graceful`: no new streams) or all of it (`hard`: closed), by the last deed.";
    OVERLOAD_USED: "outrigger_overload_used_ratio" Gauge "ratio" &["resource"],
        "Used share of what the process may use; 0 where there is no limit. Descriptors without their reserve.";
    OVERLOAD_MEASURES: "outrigger_overload_measures" Gauge "1" &["measure"],
        "Measures against overload in force now: 1, else 0.";
    OVERLOAD_BEGUN: "outrigger_overload_measures_begun_total" Counter "measures" &["measure"],
        "Measures against overload taken.";
    FAILURES: "outrigger_failures_total" Counter "requests" &["direction", "reason"],
        "Requests and opaque connections that failed, by the word that responses and logs show too.";
    DETECTIONS: "outrigger_protocol_detections_total" Counter "connections" &["direction", "protocol"],
        "What connections turned out to speak.";
    DEMANDS: "outrigger_demand_lookups_total" Counter "lookups" &["outcome"],
        "Destinations asked for at the control plane on first use.";
    GENERATION: "outrigger_config_generation" Gauge "generation" &[],
        "Number of the configuration in effect; counts from 1 in this process.";
    SWAPS: "outrigger_config_swaps_total" Counter "swaps" &[],
        "Configurations put into effect.";
    REFUSALS: "outrigger_config_refusals_total" Counter "resources" &[],
        "Configuration resources refused; the last good ones stayed.";
    CERTIFICATE_EXPIRY: "outrigger_certificate_expiration_timestamp_seconds" Gauge "seconds" &[],
        "When the certificate in use ends, as Unix time; absent before the first one.";
    LOG_DROPPED: "outrigger_access_log_dropped_total" Counter "lines" &[],
        "Access log lines dropped because the output was blocked.";
    SERIES_OVERFLOWS: "outrigger_telemetry_series_overflows_total" Counter "lookups" &[],
        "Times a label set was counted as \"other\" because there were too many.";
    BUILD: "outrigger_build_info" Gauge "1" &["version"],
        "Version of this proxy.";
    START: "process_start_time_seconds" Gauge "seconds" &[],
        "When the process started, as Unix time.";
    CPU: "process_cpu_seconds_total" Counter "seconds" &[],
        "CPU time used by the process.";
    RESIDENT: "process_resident_memory_bytes" Gauge "bytes" &[],
        "Memory of the process that is in RAM.";
    VIRTUAL: "process_virtual_memory_bytes" Gauge "bytes" &[],
        "Address space of the process.";
    OPEN_FDS: "process_open_fds" Gauge "descriptors" &[],
        "File descriptors open now.";
}

/// The list as a Markdown table.
pub(super) fn reference() -> String {
    let mut text = String::from("| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n");
    for metric in ALL {
        let labels = if std::ptr::eq(metric.labels, ISTIO_HTTP) {
            "Istio's, with `response_code` and (gRPC) `grpc_response_status`".to_owned()
        } else if std::ptr::eq(metric.labels, ISTIO_TCP) {
            "Istio's for TCP".to_owned()
        } else {
            metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
        };
        let row = [metric.name, metric.kind.word(), metric.unit, &labels, metric.help];
        text.push_str(&format!("| `{}` | {} | {} | {} | {} |\n", row[0], row[1], row[2], row[3], row[4]));
    }
    let list = |labels: &[&str]| labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
    text.push_str(&format!("\nIstio's labels for TCP: {}.\n", list(ISTIO_TCP)));
    text.push_str(&format!("\nBuckets of histograms (`le`): {}, +Inf.\n", super::series::BUCKETS.join(", ")));
    text
}
