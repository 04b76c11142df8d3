//! x
use std::{convert::Infallible, future::Future};
use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use super::Body;
use crate::{drain::DrainWatch, host::Stream, settings::Settings};
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version { Http1, Http2 }
pub struct ServeSettings { conn: u32, stream: u32, streams: u32 }
impl ServeSettings { pub fn new(s: &Settings, mesh: bool) -> Self { Self { conn: s.limits.http2_connection_window_bytes, stream: s.limits.http2_stream_window_bytes, streams: if mesh { s.limits.mesh_streams } else { s.limits.http2_streams } } } }
pub async fn serve<S, H, F>(io: S, version: Version, settings: &ServeSettings, mut drain: DrainWatch, handler: H) -> Result<(), hyper::Error>
where S: Stream + 'static, H: Fn(Request<Body>) -> F + Clone + Send + 'static, F: Future<Output = Response<Body>> + Send + 'static {
    let service = hyper::service::service_fn(move |r: Request<hyper::body::Incoming>| { let f = handler(r.map(Body::incoming)); async move { Ok::<_, Infallible>(f.await) } });
    match version {
        Version::Http1 => {
            let c = hyper::server::conn::http1::Builder::new().timer(TokioTimer::new()).half_close(true).serve_connection(TokioIo::new(io), service).with_upgrades();
            tokio::pin!(c);
            tokio::select! { r = c.as_mut() => return r, () = drain.fired() => {} }
            c.as_mut().graceful_shutdown(); c.await
        }
        Version::Http2 => {
            let c = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).initial_connection_window_size(settings.conn).initial_stream_window_size(settings.stream).max_concurrent_streams(settings.streams).serve_connection(TokioIo::new(io), service);
            tokio::pin!(c);
            tokio::select! { r = c.as_mut() => return r, () = drain.fired() => {} }
            c.as_mut().graceful_shutdown(); c.await
        }
    }
}
