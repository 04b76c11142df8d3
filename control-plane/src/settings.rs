//! How a control plane is started: addresses, folder, lifetimes and limits.
//!
//! Filled by `serve`, `up`, `demo` and tests; read once by [`crate::control_plane::start`]. Nothing here changes
//! while it runs; what users may change at run time are objects in the store.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Everything a control plane must be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of the store, the root (`ca.key`, `ca.crt`) and the admin token (`admin.token`). Made when missing, mode 0700.
    pub data_dir: PathBuf,
    /// Where sidecars connect for discovery and certificates. Default `0.0.0.0:15012`; port 0 picks a free one.
    pub discovery_listen: SocketAddr,
    /// Where the command line connects. Default `127.0.0.1:15010`; port 0 picks a free one.
    pub admin_listen: SocketAddr,
    /// Metrics, readiness and version over plain HTTP. Default `127.0.0.1:15014`; `None` turns it off.
    pub monitoring_listen: Option<SocketAddr>,
    /// Trust domain of every identity. Default `cluster.local`.
    pub trust_domain: String,
    /// Suffix of complete service names. Default `cluster.local`.
    pub domain_suffix: String,
    /// Lifetime of workload certificates. Default 24 h; shorter requests are honoured, longer ones cut to this.
    pub leaf_ttl: Duration,
    /// Further DNS names or IP addresses under which sidecars reach `discovery_listen`; they go into the server's certificate.
    /// `localhost`, the loopback addresses and the listening addresses are always there.
    pub host_names: Vec<String>,
    /// Revisions kept in the store; older ones are forgotten. Default 10,000; at least 1.
    pub history_limit: u64,
    /// Limits of listeners, streams and sessions.
    pub limits: Limits,
}

/// What one control plane will hold at most, and how long it waits.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at once per listener. Default 20,000; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Handshakes under way at once per listener. Default 512.
    pub handshakes: usize,
    /// Longest TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// A connection is asked to go and come back after about this long (0.9 to 1.1 times). Default 30 min.
    pub connection_age: Duration,
    /// Ping on an idle connection. Default 30 s.
    pub keepalive_interval: Duration,
    /// Silence after a ping that ends the connection. Default 10 s.
    pub keepalive_timeout: Duration,
    /// Streams at once on one connection. Default 64.
    pub streams_per_connection: u32,
    /// Names that one proxy may subscribe to, all kinds together. Default 100,000.
    pub subscriptions_per_proxy: usize,
    /// Largest request message of a proxy, in bytes. Default 4 MiB.
    pub request_bytes: usize,
    /// Largest discovery response, in bytes of resources. Default 1 MiB; one larger resource travels alone.
    pub response_bytes: usize,
    /// Workloads registered at once. Default 50,000.
    pub workloads: usize,
    /// Quiet time that ends the collecting of configuration changes. Default 1 ms: what comes while a run is under way is
    /// collected anyway, so a longer wait only makes single changes slower.
    pub debounce_quiet: Duration,
    /// Longest time that a configuration change is held back while others keep coming, where the last run took that long; a
    /// shorter run, a shorter time. Default 10 ms.
    pub debounce_max: Duration,
    /// Longest wait until the peers of a draining workload have stopped. Default 5 s.
    pub drain_confirmation: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            handshakes: 512,
            handshake_timeout: Duration::from_secs(10),
            connection_age: Duration::from_secs(30 * 60),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            streams_per_connection: 64,
            subscriptions_per_proxy: 100_000,
            request_bytes: 4 << 20,
            response_bytes: 1 << 20,
            workloads: 50_000,
            debounce_quiet: Duration::from_millis(1),
            debounce_max: Duration::from_millis(10),
            drain_confirmation: Duration::from_secs(5),
        }
    }
}

impl Settings {
    /// The defaults, with everything kept in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            data_dir: data_dir.into(),
            discovery_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15012),
            admin_listen: SocketAddr::new(loopback, 15010),
            monitoring_listen: Some(SocketAddr::new(loopback, 15014)),
            trust_domain: "cluster.local".to_owned(),
            domain_suffix: "cluster.local".to_owned(),
            leaf_ttl: Duration::from_secs(24 * 60 * 60),
            host_names: Vec::new(),
            history_limit: 10_000,
            limits: Limits::default(),
        }
    }

    /// The same with every listener on a free loopback port: for tests, `up` and `demo`.
    pub fn on_free_ports(data_dir: impl Into<PathBuf>) -> Self {
        let free = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self { discovery_listen: free, admin_listen: free, monitoring_listen: Some(free), ..Self::new(data_dir) }
    }
}
