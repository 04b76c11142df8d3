//! Metrics, readiness and version over plain HTTP, for scrapers and probes. Loopback unless configured otherwise.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{discovery::Sessions, telemetry::Metrics};

/// Connections open at once.
const MAX_CONNECTIONS: usize = 64;
/// Longest wait for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// What is shown.
#[derive(Clone)]
pub struct Monitoring {
    pub metrics: Arc<Metrics>,
    pub sessions: Arc<Sessions>,
    /// Cancelled once everything accepts.
    pub ready: CancellationToken,
    pub stop: CancellationToken,
}

impl Monitoring {
    /// Serves until the control plane stops.
    pub async fn serve(self, socket: TcpListener, tasks: TaskTracker) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = socket.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let monitoring = self.clone();
            tasks.spawn(async move {
                let _place = place;
                let stop = monitoring.stop.clone();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let response = monitoring.answer(request.method(), request.uri().path());
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => {}
                }
            });
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let text = "text/plain; charset=utf-8";
        let (status, kind, body) = match (method == Method::GET || method == Method::HEAD, path) {
            (false, _) => (StatusCode::METHOD_NOT_ALLOWED, text, "only GET is answered here\n".to_owned()),
            (true, "/metrics") => {
                self.metrics.connected.set(self.sessions.len() as u64);
                (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())
            }
            (true, "/ready") if self.ready.is_cancelled() && !self.stop.is_cancelled() => {
                (StatusCode::OK, text, "ready\n".to_owned())
            }
            (true, "/ready") => (StatusCode::SERVICE_UNAVAILABLE, text, "not ready\n".to_owned()),
            (true, "/version") => {
                let version = serde_json::json!({"version": env!("CARGO_PKG_VERSION")});
                (StatusCode::OK, "application/json", format!("{version}\n"))
            }
            (true, _) => (StatusCode::NOT_FOUND, text, "here are /metrics, /ready and /version\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    }
}
