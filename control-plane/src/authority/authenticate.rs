//! Who asks: a workload with a join token, or one that already has a certificate.
//!
//! The listener calls [`authenticate`] before anything of a request's body is read. Names in requests are never believed;
//! identity comes from here only.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Identity, token::JoinToken};
use crate::{listener::Peer, store::Store};

/// A caller that proved who it is; travels in the request's extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    pub identity: Identity,
    /// Id of the join token that proved it; `None` where a client certificate did.
    pub token: Option<String>,
}

/// Why a caller is not believed. The words do not tell which part of a token was wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    #[error(
        "no credentials (hint: send a join token as `authorization: Bearer`, or connect with the workload's certificate)"
    )]
    Missing,
    #[error(
        "the join token is not valid: unknown, expired, used up or revoked (hint: `outrigger token create` makes a new one)"
    )]
    Token,
    #[error("the client certificate expired (hint: connect again with the renewed one)")]
    Expired,
    #[error("the client certificate is of trust domain {0}, not of this mesh")]
    TrustDomain(String),
    #[error(
        "the client certificate holds no identity of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>"
    )]
    NoIdentity,
}

/// The caller's identity, from its certificate or else from its token.
///
/// A token that is sent along wins, so that a workload whose service account changed can join anew.
///
/// # Errors
/// [`Unauthenticated`], to be answered with gRPC's UNAUTHENTICATED.
pub fn authenticate(
    authorization: Option<&[u8]>,
    peer: &Peer,
    store: &Arc<Store>,
    trust_domain: &str,
    now: SystemTime,
) -> Result<Caller, Unauthenticated> {
    match authorization {
        Some(header) => by_token(header, store, trust_domain, now),
        None => by_certificate(peer, trust_domain, now),
    }
}

/// The identity of the connection's client certificate.
///
/// # Errors
/// When there is none, it has run out, or it belongs to another trust domain.
pub fn by_certificate(peer: &Peer, trust_domain: &str, now: SystemTime) -> Result<Caller, Unauthenticated> {
    let certificate = peer.certificate.as_ref().ok_or(Unauthenticated::Missing)?;
    let identity = certificate.identity.clone().ok_or(Unauthenticated::NoIdentity)?;
    if identity.trust_domain != trust_domain {
        return Err(Unauthenticated::TrustDomain(identity.trust_domain));
    }
    // The handshake checked this, but a connection may outlive its certificate.
    if unix_seconds(now) > certificate.not_after_unix {
        return Err(Unauthenticated::Expired);
    }
    Ok(Caller { identity, token: None })
}

fn by_token(header: &[u8], store: &Arc<Store>, trust_domain: &str, now: SystemTime) -> Result<Caller, Unauthenticated> {
    let text = std::str::from_utf8(header).map_err(|_| Unauthenticated::Token)?;
    let (scheme, text) = text.split_once(' ').ok_or(Unauthenticated::Token)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Unauthenticated::Token);
    }
    let token = JoinToken::parse(text.trim()).map_err(|_| Unauthenticated::Token)?;
    let record = store.token(&token.id).ok().flatten().ok_or(Unauthenticated::Token)?;
    // The comparison comes first and always, so that its outcome alone decides how long this takes.
    let genuine = token.matches(&record.secret_hash);
    if !genuine || record.expires_unix <= unix_seconds(now) || record.uses_left == Some(0) {
        return Err(Unauthenticated::Token);
    }
    let identity =
        Identity::new(trust_domain, &record.namespace, &record.service_account).map_err(|_| Unauthenticated::Token)?;
    Ok(Caller { identity, token: Some(token.id) })
}

/// Whole seconds since 1970.
pub fn unix_seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{listener::PeerCertificate, store::TokenRecord};

    const NOW: u64 = 1_800_000_000;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn store_with(token: &JoinToken, expires: i64, uses: Option<u32>) -> (tempfile::TempDir, Arc<Store>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path(), 100).unwrap());
        store
            .add_token(TokenRecord {
                id: token.id.clone(),
                namespace: "shop".to_owned(),
                service_account: "reviews".to_owned(),
                secret_hash: token.secret_hash(),
                expires_unix: expires,
                uses_left: uses,
            })
            .unwrap();
        (folder, store)
    }

    fn anonymous() -> Peer {
        Peer { address: "127.0.0.1:1".parse().unwrap(), certificate: None, closing: CancellationToken::new() }
    }

    #[test]
    fn tokens_prove_exactly_one_identity() {
        // A token that is expired, used up or of another secret must not let anybody in.
        let token = JoinToken::generate(&"ab".repeat(32)).unwrap();
        let future = i64::try_from(NOW).unwrap() + 60;
        let mut wrong_secret = token.clone();
        wrong_secret.secret[0] ^= 1;
        let mut wrong_id = token.clone();
        wrong_id.id = "ffffff".to_owned();
        let bearer = |t: &JoinToken| format!("Bearer {}", t.reveal());
        let cases = [
            (bearer(&token), future, None, true),
            (format!("bearer {}", token.reveal()), future, Some(1), true),
            (bearer(&token), future - 60, None, false),
            (bearer(&token), future, Some(0), false),
            (bearer(&wrong_secret), future, None, false),
            (bearer(&wrong_id), future, None, false),
            (token.reveal(), future, None, false),
            (format!("Basic {}", token.reveal()), future, None, false),
            ("Bearer ".to_owned(), future, None, false),
        ];
        for (header, expires, uses, ok) in cases {
            let (_folder, store) = store_with(&token, expires, uses);
            let caller = authenticate(Some(header.as_bytes()), &anonymous(), &store, "cluster.local", now());
            match caller {
                Ok(caller) => {
                    assert!(ok, "{header}");
                    assert_eq!(caller.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/reviews");
                }
                Err(e) => assert!(!ok && e == Unauthenticated::Token, "{header}: {e}"),
            }
        }
    }

    #[test]
    fn used_up_tokens_stay_used_up() {
        // A single-use token that works twice is not single-use.
        let token = JoinToken::generate(&"ab".repeat(32)).unwrap();
        let (_folder, store) = store_with(&token, i64::MAX, Some(1));
        assert!(store.use_token(&token.id).unwrap());
        assert!(!store.use_token(&token.id).unwrap());
        let header = format!("Bearer {}", token.reveal());
        assert!(authenticate(Some(header.as_bytes()), &anonymous(), &store, "cluster.local", now()).is_err());
    }

    #[test]
    fn certificates_count_only_while_they_last() {
        // A stolen, expired certificate on an old connection must not get a new one.
        let (_folder, store) = store_with(&JoinToken::generate("").unwrap(), 0, None);
        let peer = |identity: Option<&str>, not_after: u64| Peer {
            address: "127.0.0.1:1".parse().unwrap(),
            closing: CancellationToken::new(),
            certificate: Some(Arc::new(PeerCertificate {
                identity: identity.map(|text| text.parse().unwrap()),
                not_after_unix: i64::try_from(not_after).unwrap(),
            })),
        };
        let ask = |peer: &Peer| authenticate(None, peer, &store, "cluster.local", now()).map(|c| c.identity.namespace);
        let me = "spiffe://cluster.local/ns/shop/sa/reviews";
        assert_eq!(ask(&peer(Some(me), NOW + 1)), Ok("shop".to_owned()));
        assert_eq!(ask(&peer(Some(me), NOW - 1)), Err(Unauthenticated::Expired));
        assert_eq!(ask(&peer(None, NOW + 1)), Err(Unauthenticated::NoIdentity));
        assert_eq!(
            ask(&peer(Some("spiffe://other/ns/shop/sa/reviews"), NOW + 1)),
            Err(Unauthenticated::TrustDomain("other".to_owned()))
        );
        assert_eq!(ask(&anonymous()), Err(Unauthenticated::Missing));
    }
}
