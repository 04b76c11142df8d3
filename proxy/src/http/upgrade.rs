//! CONNECT and Upgrade: requests that leave HTTP, and the two streams joined into a relay.
//!
//! The journeys ask [`wants_upgrade`] after `normalize`, take the downstream side with [`take`] before they forward the
//! request, and call [`join`] in an own task once the endpoint has agreed (101, or 2xx to CONNECT). Until then no byte of the new
//! protocol is read.

use std::sync::Arc;

use http::{Method, Version, header, request::Parts};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    http1::Parted,
    seen::{Field, Seen},
};
use crate::{
    host::Stream,
    relay::{Counts, RelayError, RelayLimits, relay},
};

/// How a request asks to leave HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// `Connection: upgrade` with these `Upgrade` tokens on HTTP/1.1; agreed with 101.
    Http1 { protocol: Box<str> },
    /// CONNECT to an authority; agreed with 2xx.
    Connect,
    /// Extended CONNECT (RFC 8441) on HTTP/2 with this `:protocol`; agreed with 2xx.
    ExtendedConnect { protocol: Box<str> },
}

/// `:protocol` of an extended CONNECT (RFC 8441 §4); in the extensions of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol(pub Box<str>);

/// Where a handler can take the stream once both sides have agreed to leave HTTP; in the extensions of a request that asks for it.
#[derive(Clone)]
pub struct Departure(Arc<Mutex<Option<oneshot::Receiver<Parted>>>>);

/// The other end of a [`Departure`], held by whoever writes the response.
pub struct Agreement(oneshot::Sender<Parted>);

impl Departure {
    pub fn new() -> (Self, Agreement) {
        let (sender, receiver) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(receiver)))), Agreement(sender))
    }
}

impl Agreement {
    /// The agreeing response was written. Whoever wanted the stream may be gone; then it is closed.
    pub fn part(self, stream: Parted) {
        let _ = self.0.send(stream);
    }
}

/// Whether and how the request wants to leave HTTP.
///
/// An `Upgrade` without `Connection: upgrade` is none (RFC 9110 §7.8), nor is one to `h2c`: that would carry
/// requests past us (RFC 9113 §3.1 retired it). Both are then removed with the other hop-by-hop fields.
pub fn wants_upgrade(request: &Parts, seen: Seen) -> Option<Upgrade> {
    if let Some(protocol) = request.extensions.get::<Protocol>() {
        return Some(Upgrade::ExtendedConnect { protocol: protocol.0.clone() });
    }
    if request.method == Method::CONNECT {
        return Some(Upgrade::Connect);
    }
    if request.version != Version::HTTP_11
        || !seen.has(Field::Upgrade)
        || !has_token(&request.headers, &header::CONNECTION, "upgrade")
    {
        return None;
    }
    let protocols: Vec<&str> =
        tokens(&request.headers, &header::UPGRADE).filter(|protocol| !protocol.eq_ignore_ascii_case("h2c")).collect();
    if protocols.is_empty() {
        return None;
    }
    Some(Upgrade::Http1 { protocol: protocols.join(", ").into() })
}

/// The elements of a comma-separated field, over all its lines; unreadable lines have none.
pub(super) fn tokens<'a>(headers: &'a http::HeaderMap, name: &header::HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|token| token.trim_matches([' ', '\t']))
        .filter(|token| !token.is_empty())
}

pub(super) fn has_token(headers: &http::HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

/// A stream that will leave HTTP when the response that agrees has been written; `None`: it cannot.
pub struct Leaving(Option<oneshot::Receiver<Parted>>);

impl Leaving {
    /// Waits until it has left.
    ///
    /// # Errors
    /// When it was not agreed after all, or the connection broke.
    pub async fn stream(self) -> Result<Box<dyn Stream>, JoinError> {
        let parted = self.0.ok_or(JoinError::Stayed)?.await.map_err(|_| JoinError::Stayed)?;
        Ok(Box::new(parted))
    }
}

/// Takes what will become the downstream stream.
pub fn take(request: &mut Parts) -> Leaving {
    Leaving(request.extensions.remove::<Departure>().and_then(|departure| departure.0.lock().take()))
}

/// Why two sides could not be joined, or parted early.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("downstream did not leave HTTP: the connection ended")]
    Stayed,
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// Waits for the downstream side to leave HTTP, then relays until both directions have ended. `a` of the counts is downstream.
///
/// # Errors
/// [`JoinError`]; both streams are closed then.
pub async fn join<S: Stream>(
    downstream: Leaving,
    upstream: S,
    limits: RelayLimits,
    counts: &Counts,
) -> Result<(), JoinError> {
    Ok(relay(downstream.stream().await?, upstream, limits, counts).await?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_real_upgrades_count() {
        // WebSockets would not work, or requests be carried past every rule.
        let http1 = |protocol: &str| Some(Upgrade::Http1 { protocol: protocol.into() });
        for (method, version, fields, expected) in [
            ("GET", Version::HTTP_11, vec![("connection", "Upgrade"), ("upgrade", "websocket")], http1("websocket")),
            (
                "GET",
                Version::HTTP_11,
                vec![("connection", "keep-alive, upgrade"), ("upgrade", "a/1, b")],
                http1("a/1, b"),
            ),
            (
                "GET",
                Version::HTTP_11,
                vec![("connection", "x"), ("connection", "upgrade"), ("upgrade", "x")],
                http1("x"),
            ),
            ("GET", Version::HTTP_11, vec![("upgrade", "websocket")], None),
            ("GET", Version::HTTP_11, vec![("connection", "upgrade")], None),
            ("GET", Version::HTTP_11, vec![("connection", "upgrade, http2-settings"), ("upgrade", "h2c")], None),
            ("GET", Version::HTTP_11, vec![("connection", "upgrade"), ("upgrade", "H2C, x")], http1("x")),
            ("GET", Version::HTTP_10, vec![("connection", "upgrade"), ("upgrade", "x")], None),
            ("GET", Version::HTTP_2, vec![("connection", "upgrade"), ("upgrade", "x")], None),
            ("CONNECT", Version::HTTP_11, vec![], Some(Upgrade::Connect)),
            ("CONNECT", Version::HTTP_2, vec![], Some(Upgrade::Connect)),
        ] {
            let (mut request, ()) =
                http::Request::builder().method(method).version(version).body(()).unwrap().into_parts();
            for (name, value) in &fields {
                request.headers.append(*name, value.parse().unwrap());
            }
            assert_eq!(
                wants_upgrade(&request, Seen::of(&request.headers)),
                expected,
                "{method} {version:?} {fields:?}"
            );
        }
        let connect = http::Request::builder().method("CONNECT").version(Version::HTTP_2);
        let (mut request, ()) = connect.body(()).unwrap().into_parts();
        request.extensions.insert(Protocol("websocket".into()));
        assert_eq!(
            wants_upgrade(&request, Seen::default()),
            Some(Upgrade::ExtendedConnect { protocol: "websocket".into() })
        );
    }
}
