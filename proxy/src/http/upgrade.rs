//! CONNECT and Upgrade.
use http::Request;
use hyper::upgrade::OnUpgrade;

use super::Body;
use crate::{
    host::Stream,
    relay::{Counts, RelayError, RelayLimits},
};

/// How a request asks to leave HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// `Connection: upgrade` with this `Upgrade` token on HTTP/1.1; answered with 101.
    Http1 { protocol: Box<str> },
    /// CONNECT to an authority; answered with 2xx.
    Connect,
    /// Extended CONNECT (RFC 8441) on HTTP/2 with this `:protocol`; answered with 2xx.
    ExtendedConnect { protocol: Box<str> },
}

/// Whether and how the request wants to leave HTTP.
pub fn wants_upgrade(_request: &Request<Body>) -> Option<Upgrade> {
    unimplemented!()
}

/// Takes what will become the connection; call before the request is forwarded.
pub fn take(request: &mut Request<Body>) -> OnUpgrade {
    hyper::upgrade::on(request)
}

/// Why two sides could not be joined, or parted early.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("downstream did not leave HTTP: {0}")]
    Downstream(#[source] hyper::Error),
    #[error("upstream did not leave HTTP: {0}")]
    Upstream(#[source] hyper::Error),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// Waits for both sides to leave HTTP, then relays.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    _downstream: OnUpgrade,
    _upstream: OnUpgrade,
    _limits: RelayLimits,
    _counts: &Counts,
) -> Result<(), JoinError> {
    unimplemented!()
}

/// Waits for the downstream side to leave HTTP, then relays to a stream.
///
/// # Errors
/// See [`JoinError`].
pub async fn join_stream<S: Stream>(
    _downstream: OnUpgrade,
    _upstream: S,
    _limits: RelayLimits,
    _counts: &Counts,
) -> Result<(), JoinError> {
    unimplemented!()
}
