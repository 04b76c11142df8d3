//! What the process was started with: one documented tree, with every limit in it.
//!
//! Policy that users change while the mesh runs is not here; it comes through `config`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::resilience::ejection::EjectionPolicy;

pub mod overlay;

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub node: NodeSettings,
    pub listeners: Listeners,
    pub control_plane: Option<ControlPlane>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    #[serde(default)]
    pub ejection: EjectionSettings,
    #[serde(default)]
    pub overload: OverloadSettings,
    pub telemetry: TelemetrySettings,
    pub drain: DrainSettings,
    /// How worker threads share the work. Default: thread per core.
    #[serde(default)]
    pub runtime: RuntimeKind,
    /// Worker threads; none: the CPU limit of the cgroup, or the number of CPUs.
    pub workers: Option<usize>,
    /// Where the identity is kept over a restart: a folder in a memory filesystem; none: nowhere.
    pub identity_dir: Option<PathBuf>,
    /// Where the last good configuration is kept; none: nowhere.
    pub state_dir: Option<PathBuf>,
}

/// How worker threads share the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// Each thread has its own runtime, listeners and pools.
    #[default]
    ThreadPerCore,
    /// One work-stealing runtime; for machines where connections are few and very unequal.
    MultiThread,
}

/// Who this sidecar says it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSettings {
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of this instance, unique in its namespace.
    pub workload: String,
    /// Last part of the identity.
    pub service_account: String,
    /// First part of the identity.
    pub trust_domain: String,
    /// What selectors of services see.
    pub labels: std::collections::BTreeMap<String, String>,
    /// "region/zone/subzone"; empty: unknown.
    pub locality: String,
}

/// Where connections come in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Listeners {
    /// Explicit inbound: listen here, hand to the application there.
    pub inbound: Vec<InboundListener>,
    /// Explicit outbound: HTTP forward proxy (absolute-form and CONNECT).
    pub outbound: Vec<SocketAddr>,
    /// A local port for one service.
    pub local: Vec<LocalListener>,
    /// Transparent mode: intercepted connections, where they went is asked of the kernel.
    pub transparent: Option<TransparentListeners>,
    /// Operator's port; loopback unless said otherwise.
    pub admin: Option<SocketAddr>,
    /// Readiness and metrics for others than the operator.
    pub ready: Option<SocketAddr>,
    /// Names of the mesh as DNS. Redirected questions arrive at the loopback address of their own family.
    pub dns: Vec<SocketAddr>,
}

/// One port of the application.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InboundListener {
    /// Where the mesh connects to.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub application: SocketAddr,
    /// What a Service's targetPort calls it. Zero or absent: the application's port.
    #[serde(default)]
    pub target_port: u16,
    /// The same as a name; empty: the port has none.
    #[serde(default)]
    pub port_name: String,
}

/// A port that leads to one service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LocalListener {
    /// Where the application connects to.
    pub listen: SocketAddr,
    /// "service.namespace", or any other name of it.
    pub host: String,
    /// Port of the service.
    pub port: u16,
}

/// The two ports that redirect rules point to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct TransparentListeners {
    /// Where redirect rules send what leaves. Default `[::]:15001`, IPv4 as well.
    pub outbound: Vec<SocketAddr>,
    /// Where redirect rules send what arrives. Default `[::]:15006`, IPv4 as well.
    pub inbound: Vec<SocketAddr>,
    /// Address peers reach this workload under.
    pub address: Option<std::net::IpAddr>,
    /// Ports of the application to register: number and name.
    pub ports: Vec<(u16, String)>,
    /// `SO_MARK` on our own connections; none: rely on the user id alone.
    pub mark: Option<u32>,
}

impl Default for TransparentListeners {
    fn default() -> Self {
        let any = std::net::IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED);
        Self {
            outbound: vec![SocketAddr::new(any, 15001)],
            inbound: vec![SocketAddr::new(any, 15006)],
            address: None,
            ports: Vec::new(),
            mark: None,
        }
    }
}

/// Where configuration and certificates come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlPlane {
    /// "host:port".
    pub address: String,
    /// Join token, or a file that holds one.
    #[serde(skip)]
    pub token: Option<String>,
    /// PEM of the root to trust; none: the pin inside the token.
    pub root_file: Option<PathBuf>,
}

/// Every size and count that the outside can drive. None is zero-means-unlimited unless it says so. Those that nothing
/// enforces yet are listed in `tests/references.rs` and marked in the reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of an HTTP/1 head. Default 64 KiB.
    pub http1_head_bytes: usize,
    /// Bytes of an HTTP/2 header list. Default 16 KiB.
    pub http2_header_list_bytes: u32,
    /// Header fields. Default 100.
    pub header_fields: usize,
    /// Whether request fields with "_" in their name pass. Many servers read `X_User` as `X-User`, which rules on `x-user` do not see;
    /// so they are dropped, but from gRPC, where such names are usual. Default false.
    pub underscored_fields: bool,
    /// Bytes of a request target. Default 8 KiB.
    pub uri_bytes: usize,
    /// Bytes of trailers. Default 8 KiB.
    pub trailer_bytes: usize,
    /// Trailer fields. Default 32.
    pub trailer_fields: usize,
    /// Chunk extensions in one HTTP/1 body; they are dropped in any case. Default 4 KiB.
    pub chunk_extension_bytes: usize,
    /// Interim (1xx) responses of an endpoint for one request. Default 32.
    pub interim_responses: usize,
    /// Streams at once on one downstream HTTP/2 connection. Default 100; from a mesh peer 1000.
    pub http2_streams: u32,
    /// Streams at once on one HTTP/2 connection between sidecars. Default 1000.
    pub mesh_streams: u32,
    /// Receive window of one stream. Default 1 MiB.
    pub http2_stream_window_bytes: u32,
    /// Receive window of one connection. Default 16 MiB.
    pub http2_connection_window_bytes: u32,
    /// HTTP/2 streams opened and reset at once that use up the account of `http2_control_frames`. Default 20.
    pub http2_pending_resets: usize,
    /// HTTP/2 frames that carry nothing (PING, SETTINGS, WINDOW_UPDATE, empty DATA, ...) without a finished exchange between them,
    /// before the connection is closed; carried bytes and time earn new ones. Default 1000.
    pub http2_control_frames: u32,
    /// HTTP/2 streams that break a rule, or are reset while we work on them, that use up the account of `http2_control_frames`. Default 100.
    pub http2_local_resets: usize,
    /// Bytes buffered for one connection and direction. Default 256 KiB.
    pub connection_buffer_bytes: usize,
    /// Bytes of a request body kept for another try. Default 64 KiB.
    pub replay_bytes: usize,
    /// Downstream connections. Default 10000.
    pub connections: usize,
    /// Handshakes at once. Default 1000.
    pub handshakes: usize,
    /// Requests on one downstream connection before it is closed gracefully, with jitter. Default 100000.
    pub requests_per_connection: u64,
    /// Names waiting to be looked up at the control plane. Default 1000.
    pub pending_demands: usize,
    /// Names followed because they were looked up, existing or not; past it the longest unused is forgotten.
    /// Default 4096.
    pub demanded_names: usize,
    /// Idle pooled connections to one endpoint and worker; what more requests at once have opened is closed behind them. Default 1024.
    pub idle_connections_per_endpoint: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            http1_head_bytes: 64 * 1024,
            http2_header_list_bytes: 16 * 1024,
            header_fields: 100,
            underscored_fields: false,
            uri_bytes: 8 * 1024,
            trailer_bytes: 8 * 1024,
            trailer_fields: 32,
            chunk_extension_bytes: 4 * 1024,
            interim_responses: 32,
            http2_streams: 100,
            mesh_streams: 1000,
            http2_stream_window_bytes: 1 << 20,
            http2_connection_window_bytes: 16 << 20,
            http2_pending_resets: 20,
            http2_control_frames: 1_000,
            http2_local_resets: 100,
            connection_buffer_bytes: 256 * 1024,
            replay_bytes: 64 * 1024,
            connections: 10_000,
            handshakes: 1_000,
            requests_per_connection: 100_000,
            pending_demands: 1_000,
            demanded_names: 4_096,
            idle_connections_per_endpoint: 1024,
        }
    }
}

/// Every wait.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timeouts {
    /// First byte of a downstream connection, where the client must speak first. Default 10 s.
    #[serde(with = "seconds")]
    pub first_byte: Duration,
    /// A whole request head. Default 10 s.
    #[serde(with = "seconds")]
    pub head: Duration,
    /// A TLS handshake, either side. Default 5 s.
    #[serde(with = "seconds")]
    pub handshake: Duration,
    /// Longest wait for first bytes before a connection counts as opaque. Default 5 s.
    #[serde(with = "seconds")]
    pub detect: Duration,
    /// Downstream connection without a request. Default 300 s.
    #[serde(with = "seconds")]
    pub idle: Duration,
    /// A body must make progress at `body_min_bytes_per_second` after this grace. Default 10 s.
    #[serde(with = "seconds")]
    pub body_grace: Duration,
    /// Slowest body that counts as progress. Default 500.
    pub body_min_bytes_per_second: u64,
    /// Pooled HTTP/1 connection to an application or endpoint; below common server keep-alives. Default 3 s.
    #[serde(with = "seconds")]
    pub pool_idle: Duration,
    /// Pooled HTTP/2 connection between sidecars without a stream. Default 300 s.
    #[serde(with = "seconds")]
    pub mesh_idle: Duration,
    /// Greatest age of a pooled connection, plus or minus 10 %. Default 1 h.
    #[serde(with = "seconds")]
    pub connection_age: Duration,
    /// HTTP/2 ping on mesh connections that are silent. Default 10 s.
    #[serde(with = "seconds")]
    pub ping_interval: Duration,
    /// Wait for the answer to a ping before the connection is given up. Default 5 s.
    #[serde(with = "seconds")]
    pub ping_timeout: Duration,
    /// A client that takes nothing of a response that waits for it is cut after this time, on HTTP/2 if it says nothing either. Default 30 s; zero:
    /// never, and no `stream_stall` either.
    #[serde(with = "seconds")]
    pub write_stall: Duration,
    /// An HTTP/2 stream whose client takes nothing of a response, but answers our pings, is reset after this time; while the sidecar is short of
    /// memory, descriptors or connections, after a tenth of `write_stall`. Default 300 s; zero: never.
    #[serde(with = "seconds")]
    pub stream_stall: Duration,
    /// Unacknowledged data, or a receive window kept shut, before TCP gives up. Default 30 s.
    #[serde(with = "seconds")]
    pub tcp_user: Duration,
    /// Wait for a name that was never seen. Default 250 ms.
    #[serde(with = "seconds")]
    pub demand: Duration,
    /// A destination looked up on demand and not used for this long is no longer followed. Default 1800 s.
    #[serde(with = "seconds")]
    pub forget: Duration,
    /// Opaque or upgraded connection without a byte either way. Default 3600 s.
    #[serde(with = "seconds")]
    pub opaque_idle: Duration,
    /// Half-closed opaque connection. Default 3600 s.
    #[serde(with = "seconds")]
    pub half_close: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            head: Duration::from_secs(10),
            handshake: Duration::from_secs(5),
            detect: Duration::from_secs(5),
            idle: Duration::from_secs(300),
            body_grace: Duration::from_secs(10),
            body_min_bytes_per_second: 500,
            pool_idle: Duration::from_secs(3),
            mesh_idle: Duration::from_secs(300),
            connection_age: Duration::from_secs(3600),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
            write_stall: Duration::from_secs(30),
            stream_stall: Duration::from_secs(300),
            tcp_user: Duration::from_secs(30),
            demand: Duration::from_millis(250),
            forget: Duration::from_secs(1800),
            opaque_idle: Duration::from_secs(3600),
            half_close: Duration::from_secs(3600),
        }
    }
}

/// When an endpoint is put aside where no DestinationRule with `outlierDetection` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectionSettings {
    /// Failures in a row that put an endpoint aside: not reached, broken off, or answered with 502, 503 or 504. Other answers are
    /// the application's own and do not count. Default 5; zero: nothing is put aside.
    pub consecutive_failures: u32,
    /// Time aside at first; each further time that much longer, up to 300 s. Default 10 s.
    #[serde(with = "seconds")]
    pub base_time: Duration,
    /// Most endpoints of a backend that are aside at once, in percent; one of two may always be. Default 50.
    pub max_percent: u32,
    /// Panic threshold: when less than this share of a backend's endpoints is ready and not aside, in percent, those aside are
    /// used again. Default 50; zero: never.
    pub panic_percent: u32,
}

impl Default for EjectionSettings {
    fn default() -> Self {
        Self { consecutive_failures: 5, base_time: Duration::from_secs(10), max_percent: 50, panic_percent: 50 }
    }
}

impl EjectionSettings {
    /// The policy of every backend without one of its own; `None`: off.
    pub fn policy(&self) -> Option<EjectionPolicy> {
        (self.consecutive_failures > 0).then(|| EjectionPolicy {
            consecutive_5xx: 0,
            consecutive_gateway_errors: self.consecutive_failures,
            consecutive_local_failures: 0,
            split_local_errors: false,
            base_ejection_time: self.base_time,
            max_ejection_percent: self.max_percent,
            min_health_percent: self.panic_percent,
            ..EjectionPolicy::default()
        })
    }
}

/// What is given up before memory, descriptors or connections run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OverloadSettings {
    /// Memory of the process; zero: the limit of its cgroup, and where that has none, memory is not watched. Default 0.
    pub memory_bytes: u64,
    /// Share of memory, in percent, from which on new requests get 503; and of memory, descriptors or connections, from which on connections
    /// without a request are closed, oldest first. Default 85; zero: never.
    pub shed_percent: u32,
    /// Share of memory or descriptors, in percent, from which on no connection is accepted. Default 95; zero: never.
    pub stop_percent: u32,
    /// Share of the descriptors, in percent, that is left for connections to endpoints, the operator and the control plane; the other shares
    /// are of the rest. Default 10.
    pub reserved_descriptors_percent: u32,
}

impl Default for OverloadSettings {
    fn default() -> Self {
        Self { memory_bytes: 0, shed_percent: 85, stop_percent: 95, reserved_descriptors_percent: 10 }
    }
}

/// Where what happened is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TelemetrySettings {
    /// One line per request or connection, on standard output: off, text (Istio's format) or json.
    pub access_log: AccessLog,
    /// Series kept per metric before further label sets are counted as "other". Default 10000.
    pub series: usize,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { access_log: AccessLog::Off, series: 10_000 }
    }
}

/// One line per request or connection, on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    #[default]
    Off,
    /// Istio's default text format.
    Text,
    Json,
}

/// How to stop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrainSettings {
    /// Longest wait for the control plane to confirm that peers stopped sending. Default 5 s.
    #[serde(with = "seconds")]
    pub notice: Duration,
    /// Longest wait for what is in flight. Default 30 s.
    #[serde(with = "seconds")]
    pub grace: Duration,
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self { notice: Duration::from_secs(5), grace: Duration::from_secs(30) }
    }
}

/// Durations as people write them: a number and its unit, "250ms", "10s", "1h30m".
///
/// Errors: what is wrong with the text, ready to show.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration (hint: a number and a unit, for example 250ms, 10s or 1h)");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        // Whole nanoseconds, so that "250ms" is exactly that and not a binary fraction beside it.
        let part = Duration::try_from_secs_f64((number * scale * 1e9).round() / 1e9).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(total)
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:?}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_duration(&text).map_err(D::Error::custom)
    }
}
