//! x
use http::Request;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use super::Body;
use crate::{host::Stream, relay::{Counts, RelayError, RelayLimits, relay}};
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgrade { Http1 { protocol: Box<str> }, Connect, ExtendedConnect { protocol: Box<str> } }
pub fn wants_upgrade(r: &Request<Body>) -> Option<Upgrade> {
    if r.method() == http::Method::CONNECT { return Some(Upgrade::Connect); }
    r.headers().get("upgrade").and_then(|u| u.to_str().ok()).map(|u| Upgrade::Http1 { protocol: u.into() })
}
pub fn take(request: &mut Request<Body>) -> OnUpgrade { hyper::upgrade::on(request) }
#[derive(Debug, thiserror::Error)]
pub enum JoinError { #[error("d {0}")] Downstream(#[source] hyper::Error), #[error("u {0}")] Upstream(#[source] hyper::Error), #[error(transparent)] Relay(#[from] RelayError) }
pub async fn join(d: OnUpgrade, u: OnUpgrade, limits: RelayLimits, counts: &Counts) -> Result<(), JoinError> {
    let d = d.await.map_err(JoinError::Downstream)?; let u = u.await.map_err(JoinError::Upstream)?;
    Ok(relay(TokioIo::new(d), TokioIo::new(u), limits, counts).await?)
}
pub async fn join_stream<S: Stream>(d: OnUpgrade, u: S, limits: RelayLimits, counts: &Counts) -> Result<(), JoinError> {
    let d = d.await.map_err(JoinError::Downstream)?;
    Ok(relay(TokioIo::new(d), u, limits, counts).await?)
}
