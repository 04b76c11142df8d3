//! Outrigger as it runs in a mesh, without a control plane: everything on but the access log.
//!
//! Mutual TLS, a route with retries and timeouts, a circuit breaker, limits, outlier detection, metrics. The documents are
//! also what `mesh` gives to a control plane.

use std::{fmt::Write as _, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;

use super::{Hop, Side};
use crate::scenario::{Client, Scenario, rule_prefix};

/// What one sidecar offers another for HTTP/1.1: Istio's name for it.
pub const ALPN: &str = "istio-http/1.1";
/// Gateway API allows so many rules in one route.
const RULES_PER_ROUTE: usize = 16;

pub(super) fn command(binary: &Path, hop: &Hop<'_>) -> Result<Command> {
    let (account, arguments) = match hop.side {
        Side::First => ("client", ["--local".to_owned(), format!("{}=app.bench:80", hop.taken.address)]),
        Side::Second => {
            let port = port_name(hop.scenario.client);
            let inbound = format!("{}={},port=8080,name={port}", hop.taken.address, hop.sent.address);
            ("app", ["--inbound".to_owned(), inbound])
        }
    };
    // The second hop is addressed as the workload; without one, the origin is, in plaintext.
    let (address, peer) = match hop.side {
        Side::First if hop.sent.tls => (hop.sent.address, "outrigger"),
        Side::First => (hop.sent.address, "plain"),
        Side::Second => (hop.taken.address, "outrigger"),
    };
    let text = documents(hop.scenario, &workload(address, peer), hop.other_services());
    let documents = hop.write(&format!("outrigger-{}.yaml", hop.taken.address.port()), &text)?;
    let mut command = Command::new(binary);
    command
        .arg("proxy")
        .arg("--static")
        .arg(documents)
        .args(["--as", &format!("bench/{account}")])
        .arg("--cert-dir")
        .arg(hop.folder.join(account))
        .args(arguments)
        .args(SETTINGS);
    Ok(command)
}

/// How every sidecar of the bench runs.
pub const SETTINGS: [&str; 6] = ["--workers", "1", "--access-log", "off", "--log-level", "warn"];

/// What the port is called, and so what it speaks.
pub const fn port_name(client: Client) -> &'static str {
    match client {
        Client::Http1 => "http",
        Client::Http2 => "http2",
        Client::Grpc | Client::GrpcStream => "grpc",
        Client::Tcp => "tcp",
    }
}

/// Where the application is found, by an object instead of a sidecar that joins.
pub fn workload(address: SocketAddr, peer: &str) -> String {
    format!(
        r"---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app, namespace: bench, annotations: {{outrigger.mesh/peer: {peer}}}}}
spec:
  address: {}
  ports: {{app: {}}}
  labels: {{app: app}}
  serviceAccount: app
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: bench}}
spec: {{address: 127.0.0.1, labels: {{app: client}}, serviceAccount: client}}
",
        address.ip(),
        address.port()
    )
}

/// The mesh of a scenario; `workloads` says where the application is.
pub fn documents(scenario: &Scenario, workloads: &str, others: impl Iterator<Item = String>) -> String {
    let port = port_name(scenario.client);
    // Port and target must be called alike for the workload's ports to be found.
    let mut text = workloads.replace("ports: {app:", &format!("ports: {{{port}:"));
    for service in others.chain(["app".to_owned()]) {
        let _ = write!(
            text,
            r"---
apiVersion: v1
kind: Service
metadata: {{name: {service}, namespace: bench}}
spec:
  selector: {{app: app}}
  ports: [{{name: {port}, port: 80, targetPort: 8080}}]
"
        );
    }
    text.push_str(POLICY);
    if scenario.client != Client::Tcp {
        text.push_str(BREAKER);
        let rules: Vec<_> =
            if scenario.rules == 1 { vec!["/".to_owned()] } else { (0..scenario.rules).map(rule_prefix).collect() };
        for (number, prefixes) in rules.chunks(RULES_PER_ROUTE).enumerate() {
            route(&mut text, &format!("app-{number:06}"), prefixes, scenario.client);
        }
    }
    text
}

fn route(text: &mut String, name: &str, prefixes: &[String], client: Client) {
    // A stream stays open for the whole run.
    let timeouts = if client == Client::GrpcStream { "{request: 0s}" } else { "{request: 10s, backendRequest: 5s}" };
    let _ = write!(
        text,
        r#"---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: bench}}
spec:
  parentRefs: [{{group: "", kind: Service, name: app, port: 80}}]
  rules:
"#
    );
    for prefix in prefixes {
        // Where both hops have it, a prefix of a segment: a slash at the end of it says nothing.
        let prefix = if prefix == "/" { prefix } else { prefix.trim_end_matches('/') };
        let _ = write!(
            text,
            "  - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]
    backendRefs: [{{name: app, port: 80}}]
    timeouts: {timeouts}
    retry: {{attempts: 2, codes: [502, 503], backoff: 25ms}}
"
        );
    }
}

/// STRICT, because the peers take nothing but mutual TLS either.
const POLICY: &str = "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: bench}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: app, namespace: bench}
spec:
  host: app
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 1000, connectTimeout: 5s}
      http: {http1MaxPendingRequests: 1000, http2MaxRequests: 1000, maxRetries: 10}
    outlierDetection: {consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 30s}
";

const BREAKER: &str = r#"---
apiVersion: outrigger.mesh/v1alpha1
kind: CircuitBreaker
metadata: {name: app, namespace: bench}
spec:
  targetRefs: [{group: "", kind: Service, name: app}]
  window: 10s
  minimumRequests: 20
  failurePercent: 50
  openFor: 5s
"#;
