//! The name of a workload: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
//!
//! Parsed once, where a certificate or a resource comes in, and cheap to hand around afterwards. Accepts every valid
//! SPIFFE id (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>), also those whose path has another
//! shape than Istio's; those have no namespace and no service account. Does not look at certificates: that is
//! `tls/verify.rs`.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// A verified or configured workload name. Clones share one allocation.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the trust domain ends; it begins after the scheme.
    trust_domain_end: usize,
    /// Where namespace and service account stand, if the path is Istio's.
    workload: Option<Workload>,
}

#[derive(Clone, Copy)]
struct Workload {
    namespace_end: usize,
    service_account: usize,
}

const SCHEME: &str = "spiffe://";
const MAX_BYTES: usize = 2048;
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
const NAMESPACE: &str = "/ns/";
const SERVICE_ACCOUNT: &str = "/sa/";

/// Why a text is no SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    #[error("identity has {0} bytes; at most {MAX_BYTES} are allowed")]
    TooLong(usize),
    #[error("identity {0:?} does not start with \"spiffe://\"")]
    Scheme(Box<str>),
    #[error(
        "trust domain {0:?} is not valid: it must have 1 to {MAX_TRUST_DOMAIN_BYTES} characters from a-z, 0-9, '.', '-' and '_'"
    )]
    TrustDomain(Box<str>),
    #[error(
        "path {0:?} of the identity is not valid: its segments must not be empty, \".\" or \"..\", and hold only letters, digits, '.', '-' and '_'"
    )]
    Path(Box<str>),
}

impl SpiffeId {
    /// Reads an id.
    ///
    /// # Errors
    /// When the text is longer than 2048 bytes, has another scheme, or breaks the SPIFFE rules for trust domain
    /// and path (a port, user, query, fragment, percent-encoding or trailing slash does).
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_BYTES {
            return Err(SpiffeIdError::TooLong(text.len()));
        }
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return Err(SpiffeIdError::Scheme(text.into()));
        };
        let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if !is_trust_domain(trust_domain) {
            return Err(SpiffeIdError::TrustDomain(trust_domain.into()));
        }
        if !path.is_empty() && !path.split('/').skip(1).all(is_segment) {
            return Err(SpiffeIdError::Path(path.into()));
        }
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let workload = workload_in(path).map(|(namespace, _)| {
            let namespace_end = trust_domain_end + NAMESPACE.len() + namespace.len();
            Workload { namespace_end, service_account: namespace_end + SERVICE_ACCOUNT.len() }
        });
        Ok(Self { text: text.into(), trust_domain_end, workload })
    }

    /// Puts an id of Istio's shape together.
    ///
    /// # Errors
    /// When a part is empty or holds a character that an id cannot have.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeIdError> {
        // A slash inside a part would change the shape without breaking the syntax.
        for part in [namespace, service_account] {
            if !is_segment(part) {
                return Err(SpiffeIdError::Path(part.into()));
            }
        }
        Self::parse(&format!("{SCHEME}{trust_domain}{NAMESPACE}{namespace}{SERVICE_ACCOUNT}{service_account}"))
    }

    /// The authority of the id, for example "cluster.local".
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.trust_domain_end).unwrap_or_default()
    }

    /// The namespace; `None` when the path is not `/ns/<namespace>/sa/<service-account>`.
    pub fn namespace(&self) -> Option<&str> {
        let workload = self.workload?;
        self.text.get(self.trust_domain_end + NAMESPACE.len()..workload.namespace_end)
    }

    /// The service account; `None` when the path is not `/ns/<namespace>/sa/<service-account>`.
    pub fn service_account(&self) -> Option<&str> {
        self.text.get(self.workload?.service_account..)
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn workload_in(path: &str) -> Option<(&str, &str)> {
    let mut segments = path.strip_prefix('/')?.split('/');
    match (segments.next()?, segments.next()?, segments.next()?, segments.next()?, segments.next()) {
        ("ns", namespace, "sa", service_account, None) => Some((namespace, service_account)),
        _ => None,
    }
}

fn is_trust_domain(text: &str) -> bool {
    (1..=MAX_TRUST_DOMAIN_BYTES).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

fn is_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_istio_id_has_all_its_parts() {
        // Authorization and metrics would see an empty namespace for every peer.
        let id = SpiffeId::new("cluster.local", "shop", "reviews").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/reviews");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), Some("shop"));
        assert_eq!(id.service_account(), Some("reviews"));
        assert_eq!(SpiffeId::parse(id.as_str()).unwrap(), id);
    }

    #[test]
    fn other_shapes_are_ids_without_namespace() {
        // A peer certified by another SPIFFE authority would be refused, or a part of its path taken for a namespace.
        for text in [
            "spiffe://example.org",
            "spiffe://example.org/web",
            "spiffe://example.org/ns/a",
            "spiffe://example.org/ns/a/sa/b/c",
            "spiffe://example.org/sa/a/ns/b",
        ] {
            let id = SpiffeId::parse(text).unwrap();
            assert_eq!(id.trust_domain(), "example.org", "{text}");
            assert_eq!((id.namespace(), id.service_account()), (None, None), "{text}");
        }
    }

    #[test]
    fn s03_what_is_no_id_is_refused() {
        // Two spellings of one name would be two identities to a rule.
        for text in [
            "",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "SPIFFE://a/ns/a/sa/b",
            "https://a/ns/a/sa/b",
            "spiffe://A/ns/a/sa/b",
            "spiffe://a:1/ns/a/sa/b",
            "spiffe://u@a/ns/a/sa/b",
            "spiffe://a/",
            "spiffe://a/ns//sa/b",
            "spiffe://a/ns/../sa/b",
            "spiffe://a/ns/./sa/b",
            "spiffe://a/ns/a/sa/b/",
            "spiffe://a/ns/a/sa/b?x",
            "spiffe://a/ns/a/sa/b#x",
            "spiffe://a/ns/%61/sa/b",
            "spiffe://a/ns/%2e/sa/b",
            "spiffe://a/ns/a\0/sa/b",
            "spiffe://a/ns/*/sa/b",
            "spiffe://a/ns/ä/sa/b",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
        assert!(SpiffeId::parse(&format!("spiffe://a/{}", "x".repeat(2048))).is_err());
        assert!(SpiffeId::new("a", "b/sa/c", "d").is_err());
        assert!(SpiffeId::new("a", "", "d").is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,80}", tail in "(/[a-z.]{0,4}){0,6}") {
            // A crafted certificate would stop the proxy.
            let _ = SpiffeId::parse(&text);
            if let Ok(id) = SpiffeId::parse(&format!("spiffe://td{tail}")) {
                let _ = (id.trust_domain(), id.namespace(), id.service_account());
            }
        }
    }
}
