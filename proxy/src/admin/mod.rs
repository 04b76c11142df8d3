//! What an operator may ask of one proxy and do to it: plain HTTP/1 on loopback, and a smaller public port.
//!
//! `sidecar` binds both listeners and implements [`AdminSource`]; nothing here decides about traffic. The admin port
//! answers only requests whose Host is an address or `localhost` and that no web page sent, so that a browser on the
//! same machine cannot be used against it; what changes something is POST and comes from loopback.

mod paths;
mod server;

use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::log::LogControl;

/// What the ports show and do.
pub trait AdminSource: Send + Sync + 'static {
    /// Whether traffic may come.
    ///
    /// # Errors
    /// What is still missing, in words.
    fn ready(&self) -> Result<(), String>;
    /// The configuration in effect.
    fn config_dump(&self) -> Value;
    /// Services and endpoints as balancing sees them.
    fn upstreams(&self) -> Value;
    /// Our certificate and the roots, without keys.
    fn certificates(&self) -> Value;
    /// Who this proxy is, its version and state.
    fn server_info(&self) -> Value;
    /// Stop taking part, keep what is in flight; calling again does nothing.
    fn start_drain(&self);
    /// Drain, then end the process.
    fn quit(&self);
    /// Prometheus text.
    fn metrics(&self) -> String;
}

/// Serves the operator's port until `stop`; without `log` the level cannot be changed.
///
/// Open connections end with the listener. Errors of the listener are waited out.
pub async fn serve_admin(
    listener: TcpListener,
    source: Arc<dyn AdminSource>,
    log: Option<LogControl>,
    stop: CancellationToken,
) {
    server::serve(listener, Arc::new(paths::Port::Admin { source, log }), stop).await;
}

/// Serves readiness and metrics, nothing else, until `stop`. Meant for others than the operator: kubelet, Prometheus.
pub async fn serve_ready(listener: TcpListener, source: Arc<dyn AdminSource>, stop: CancellationToken) {
    server::serve(listener, Arc::new(paths::Port::Ready { source }), stop).await;
}
