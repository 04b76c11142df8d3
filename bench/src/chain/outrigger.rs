//! Outrigger as it runs in a mesh, without a control plane: everything on but the access log.
//!
//! Mutual TLS, a route with retries and timeouts, a circuit breaker, limits, outlier detection, metrics.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{Place, Side};

/// The name that the client asks for; the other chains do not look at it.
pub const HOST: &str = "app.bench.svc.cluster.local";

pub(super) fn command(binary: &Path, place: &Place<'_>, side: Side) -> Result<Command> {
    let (name, arguments) = match side {
        Side::First => ("client", ["--local".to_owned(), format!("{}=app.bench:80", place.first)]),
        Side::Second => {
            ("app", ["--inbound".to_owned(), format!("{}={},port=8080,name=http", place.second, place.origin)])
        }
    };
    let documents = place.write(&format!("outrigger-{}.yaml", place.first.port()), &documents(place))?;
    let mut command = Command::new(binary);
    command
        .arg("proxy")
        .arg("--static")
        .arg(documents)
        .args(["--as", &format!("bench/{name}")])
        .arg("--dev-ca")
        .arg(place.folder.join("outrigger-ca"))
        .args(arguments)
        .args(["--workers", "1", "--access-log", "off", "--log-level", "warn"]);
    Ok(command)
}

fn documents(place: &Place<'_>) -> String {
    let (peer, port) = match place.hops {
        2 => ("outrigger", place.second.port()),
        _ => ("plain", place.origin.port()),
    };
    format!(
        r#"apiVersion: v1
kind: Service
metadata: {{name: app, namespace: bench}}
spec:
  selector: {{app: app}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app, namespace: bench, annotations: {{outrigger.mesh/peer: {peer}}}}}
spec:
  address: 127.0.0.1
  ports: {{http: {port}}}
  labels: {{app: app}}
  serviceAccount: app
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: bench}}
spec: {{address: 127.0.0.1, labels: {{app: client}}, serviceAccount: client}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: app, namespace: bench}}
spec:
  parentRefs: [{{group: "", kind: Service, name: app, port: 80}}]
  rules:
  - name: all
    backendRefs: [{{name: app, port: 80}}]
    timeouts: {{request: 10s, backendRequest: 5s}}
    retry: {{attempts: 2, codes: [502, 503], backoff: 25ms}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: app, namespace: bench}}
spec:
  host: app
  trafficPolicy:
    connectionPool:
      tcp: {{maxConnections: 1000, connectTimeout: 5s}}
      http: {{http1MaxPendingRequests: 1000, http2MaxRequests: 1000, maxRetries: 10}}
    outlierDetection: {{consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 30s}}
---
apiVersion: outrigger.mesh/v1alpha1
kind: CircuitBreaker
metadata: {{name: app, namespace: bench}}
spec:
  targetRefs: [{{group: "", kind: Service, name: app}}]
  window: 10s
  minimumRequests: 20
  failurePercent: 50
  openFor: 5s
"#
    )
}
