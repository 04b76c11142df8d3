//! A mesh identity: trust domain, namespace and service account, as a SPIFFE id. Pure.
//!
//! The form is Istio's, `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`; every other form is refused.

use std::{fmt, str::FromStr};

/// Who a workload is. Two workloads with one service account are one identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    pub trust_domain: String,
    pub namespace: String,
    pub service_account: String,
}

/// The text is not a SPIFFE id of the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("identity {text:?} is not of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
pub struct NotAnIdentity {
    text: String,
}

/// Longest SPIFFE id, in bytes (SPIFFE-ID §2.3).
const MAX_BYTES: usize = 2048;

impl Identity {
    /// Puts the three parts together.
    ///
    /// # Errors
    /// When a part is empty or has a character that a path segment of a SPIFFE id may not have.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, NotAnIdentity> {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }
}

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || NotAnIdentity { text: text.chars().take(200).collect() };
        if text.len() > MAX_BYTES {
            return Err(refuse());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(refuse)?;
        let mut parts = rest.split('/');
        let (trust_domain, ns, namespace, sa, service_account, end) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (trust_domain, ns, namespace, sa, service_account, end)
        else {
            return Err(refuse());
        };
        // SPIFFE-ID §2.1: trust domain names hold lower case letters, digits, dots, dashes and underscores.
        let domain_ok = !trust_domain.is_empty()
            && trust_domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
        // SPIFFE-ID §2.2: path segments hold letters, digits, dots, dashes and underscores, and are not "." or "..".
        let segment_ok = |segment: &str| {
            !segment.is_empty()
                && segment != "."
                && segment != ".."
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        if !domain_ok || !segment_ok(namespace) || !segment_ok(service_account) {
            return Err(refuse());
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_full_form_is_an_identity() {
        // A sloppy reading would let one workload speak for another.
        let cases = [
            ("spiffe://cluster.local/ns/shop/sa/reviews", true),
            ("spiffe://td_1-x/ns/a/sa/B.c", true),
            ("spiffe://cluster.local/ns/shop/sa/", false),
            ("spiffe://cluster.local/ns//sa/x", false),
            ("spiffe:///ns/shop/sa/x", false),
            ("spiffe://cluster.local/ns/shop/sa/x/y", false),
            ("spiffe://cluster.local/sa/x/ns/shop", false),
            ("spiffe://cluster.local/ns/../sa/x", false),
            ("spiffe://Cluster.local/ns/shop/sa/x", false),
            ("spiffe://cluster.local/ns/shop/sa/x?y", false),
            ("spiffe://cluster.local:80/ns/shop/sa/x", false),
            ("https://cluster.local/ns/shop/sa/x", false),
            ("", false),
        ];
        for (text, ok) in cases {
            let parsed: Result<Identity, _> = text.parse();
            assert_eq!(parsed.is_ok(), ok, "{text}");
            if let Ok(identity) = parsed {
                assert_eq!(identity.to_string(), text);
            }
        }
    }

    #[test]
    fn parts_cannot_smuggle_a_segment() {
        // A token for service account "x/../../ns/admin" must not become another identity.
        assert!(Identity::new("cluster.local", "shop/sa/admin", "x").is_err());
        assert!(Identity::new("cluster.local", "shop", "a/b").is_err());
        assert_eq!(Identity::new("cluster.local", "shop", "x").unwrap().namespace, "shop");
    }
}
