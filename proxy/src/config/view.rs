//! View: one immutable, checked picture of the configuration.
//!
//! Built by `decode` and `apply`; read by `upstream`, which joins it to live connections. A service stands in a view
//! only when all that its routes refer to is there too (or is known not to exist).

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use crate::{
    balance::{
        Algorithm,
        key::HashPolicy,
        locality::{LocalityPolicy, Place},
        warmup::Warmup,
    },
    resilience::{
        breaker::BreakerPolicy, ejection::EjectionPolicy, limits::LimitPolicy, retry_budget::RetryBudgetPolicy,
    },
    route::{RouteTable, Target},
};

/// Hash maps on the request path: fast, seeded per process.
pub type Map<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// One picture.
#[derive(Debug)]
pub struct View {
    /// Counts swaps in this process, from 1.
    pub generation: u64,
    pub node: Arc<Node>,
    /// By resource name, "namespace/host".
    pub services: Map<Arc<str>, Arc<Service>>,
}

/// What the proxy knows of itself.
#[derive(Clone, Debug)]
pub struct Node {
    pub namespace: Arc<str>,
    pub workload: Arc<str>,
    pub service_account: Arc<str>,
    pub trust_domain: Arc<str>,
    pub labels: BTreeMap<String, String>,
    pub default_peer_mode: PeerMode,
    /// By application port.
    pub inbound: Map<u16, InboundPort>,
    /// Resource names of services to hold from the start.
    pub preload: Vec<Arc<str>>,
    pub outbound_mode: OutboundMode,
    /// "cluster.local" unless configured.
    pub domain_suffix: Arc<str>,
    /// Default 10 s.
    pub connect_timeout: Duration,
    /// "region/zone/subzone"; empty: unknown.
    pub locality: Arc<str>,
}

impl Node {
    /// Whether the same endpoints are near.
    pub fn is_at_the_same_place(&self, other: &Self) -> bool {
        self.locality == other.locality && self.labels == other.labels
    }

    /// Which clients may use this port of the application.
    pub fn peer_mode(&self, port: u16) -> PeerMode {
        self.inbound.get(&port).map_or(self.default_peer_mode, |inbound| inbound.peer_mode)
    }
}

/// What is known of one application port.
#[derive(Clone, Debug)]
pub struct InboundPort {
    pub protocol: Protocol,
    /// Already resolved against the node's default.
    pub peer_mode: PeerMode,
    pub limits: LimitPolicy,
}

/// Istio's PeerAuthentication modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMode {
    Permissive,
    Strict,
    Disable,
}

/// What happens to destinations nobody declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundMode {
    AllowAny,
    RegistryOnly,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Look at the first bytes.
    Detect,
    Tcp,
    /// The application's own TLS: opaque.
    Tls,
    Http1,
    Http2,
    Grpc,
    /// HTTP of either version, by the first bytes.
    Http,
}

/// A name that traffic is sent to.
#[derive(Debug)]
pub struct Service {
    /// Resource name, "namespace/host".
    pub resource: Arc<str>,
    pub namespace: Arc<str>,
    /// Complete host name.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    pub addresses: Vec<IpAddr>,
    /// Further names that mean this service.
    pub hosts: Vec<Arc<str>>,
    pub ports: Vec<ServicePort>,
    pub endpoints: Arc<[Arc<Endpoint>]>,
    pub external: bool,
}

/// One port of a service, as this client sees it: its routes and policy already chosen by namespace.
#[derive(Clone, Debug)]
pub struct ServicePort {
    pub port: u16,
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// `None`: no rules, everything goes to the service's own endpoints.
    pub routes: Option<Arc<RouteTable<Target>>>,
    pub policies: Arc<PolicySet>,
}

/// Policy of a service port and of its subsets.
#[derive(Debug)]
pub struct PolicySet {
    pub base: Arc<Policy>,
    pub subsets: Vec<Subset>,
}

/// Some of a service's endpoints, by label.
#[derive(Debug)]
pub struct Subset {
    pub name: Arc<str>,
    pub labels: BTreeMap<String, String>,
    pub policy: Arc<Policy>,
}

/// How to treat a backend, all defaults filled in.
#[derive(Clone, Debug)]
pub struct Policy {
    pub algorithm: Algorithm,
    /// Consistent hashing; requests without the key go by the algorithm, which is then `Random`.
    pub hash: Option<Arc<HashPolicy>>,
    /// `None`: near and far are alike.
    pub locality: Option<Arc<LocalityPolicy>>,
    /// Slow start; `None`: none.
    pub warmup: Option<Warmup>,
    pub limits: LimitPolicy,
    /// `None`: the node's.
    pub connect_timeout: Option<Duration>,
    /// 0: no limit.
    pub max_requests_per_connection: u32,
    /// Idle time of pooled connections; `None`: the proxy's own default.
    pub http_idle_timeout: Option<Duration>,
    /// Idle time of opaque connections; `None`: the proxy's own default.
    pub tcp_idle_timeout: Option<Duration>,
    /// `None`: the proxy's own default.
    pub max_connection_duration: Option<Duration>,
    /// Streams at once on one HTTP/2 connection; 0: the proxy's own default.
    pub max_concurrent_streams: u32,
    /// `None`: the proxy's own default.
    pub ejection: Option<Arc<EjectionPolicy>>,
    pub tls: TlsMode,
    pub retry_budget: RetryBudgetPolicy,
    /// `None`: no breaker.
    pub breaker: Option<Arc<BreakerPolicy>>,
}

impl Default for PolicySet {
    /// For ports that name no policy.
    fn default() -> Self {
        Self { base: Arc::default(), subsets: Vec::new() }
    }
}

impl Default for Policy {
    /// What holds where the user said nothing.
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            hash: None,
            locality: None,
            warmup: None,
            limits: LimitPolicy::default(),
            connect_timeout: None,
            max_requests_per_connection: 0,
            http_idle_timeout: None,
            tcp_idle_timeout: None,
            max_connection_duration: None,
            max_concurrent_streams: 0,
            ejection: None,
            tls: TlsMode::Auto,
            retry_budget: RetryBudgetPolicy {
                percent: 20.0,
                min_retries_per_second: 10,
                window: Duration::from_secs(10),
            },
            breaker: None,
        }
    }
}

/// Whether to use mutual TLS with the mesh's identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// As each endpoint says.
    Auto,
    Disable,
    /// Always.
    Mesh,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Stable identity of the instance.
    pub uid: Arc<str>,
    pub address: IpAddr,
    pub ports: Vec<EndpointPort>,
    /// SPIFFE id it must prove; `None`: any of the trust domain.
    pub identity: Option<Arc<str>>,
    pub labels: BTreeMap<String, String>,
    pub locality: Arc<str>,
    /// At least 1.
    pub weight: u32,
    pub health: Health,
    pub namespace: Arc<str>,
    pub workload: Arc<str>,
}

/// Where an endpoint serves one port of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    pub service_port: u16,
    pub port: u16,
    pub peer: PeerKind,
}

/// What stands at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerKind {
    Plain,
    /// Mutual TLS, HTTP in the version the application used.
    Mesh,
    /// Mutual TLS to one of us: HTTP/1 may travel as HTTP/2.
    Outrigger,
}

/// Health as the control plane knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    Draining,
    Unready,
}

impl Endpoint {
    /// Where it is.
    pub fn place(&self) -> Place<'_> {
        Place { locality: &self.locality, labels: &self.labels }
    }

    /// An address of which nothing else is known.
    pub fn bare(address: std::net::SocketAddr) -> Self {
        Self {
            uid: Arc::from(address.to_string()),
            address: address.ip(),
            ports: Vec::new(),
            identity: None,
            labels: BTreeMap::new(),
            locality: Arc::from(""),
            weight: 1,
            health: Health::Ready,
            namespace: Arc::from(""),
            workload: Arc::from(""),
        }
    }
}
