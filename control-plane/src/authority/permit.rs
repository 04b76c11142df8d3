//! May this caller have this certificate, and for how long. Pure.
//!
//! A request may carry exactly one thing: a P-256 key and the caller's own identity as its single URI name. Anything more
//! (a DNS name, a second identity, the wish to be an authority) refuses the whole request, because a signer that silently
//! drops names teaches callers to ask for too much. What is signed is written by `sign` and never copied from the request.

use std::time::Duration;

use rcgen::{CertificateSigningRequestParams, IsCa, KeyUsagePurpose, PublicKey, SanType};

use super::Identity;

/// What may be signed.
#[derive(Debug)]
pub struct Permit {
    pub public_key: PublicKey,
    pub lifetime: Duration,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not PEM, not PKCS#10, an unknown extension, or the signature is wrong.
    #[error("certificate request cannot be read: {0}")]
    Unreadable(String),
    /// The key is not P-256.
    #[error("certificate request has a key of another kind than P-256")]
    Key,
    /// No URI name at all.
    #[error("certificate request names no identity; expected the single URI {expected}")]
    NoName { expected: String },
    /// Another identity, a further name, or a name of another kind.
    #[error("certificate request asks for {asked}; the caller is {expected}")]
    Name { asked: String, expected: String },
    /// It asks to sign others.
    #[error("certificate request asks to be a certificate authority")]
    Authority,
    /// A negative lifetime.
    #[error("certificate lifetime {0} s is negative")]
    Lifetime(i64),
}

/// Largest certificate request that is looked at, in bytes of PEM.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// Shortest lifetime that is signed; shorter wishes get this.
pub const MIN_LIFETIME: Duration = Duration::from_secs(5);

/// Decides about one request.
///
/// `wanted_seconds` zero asks for `longest`, which also cuts longer wishes.
///
/// # Errors
/// [`Refused`] with the reason, to be told to the caller.
pub fn permit(csr_pem: &str, caller: &Identity, wanted_seconds: i64, longest: Duration) -> Result<Permit, Refused> {
    if csr_pem.len() > MAX_REQUEST_BYTES {
        return Err(Refused::Unreadable(format!("larger than {MAX_REQUEST_BYTES} bytes")));
    }
    let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| Refused::Unreadable(e.to_string()))?;
    if request.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(Refused::Key);
    }
    let expected = caller.to_string();
    match request.params.subject_alt_names.as_slice() {
        [] => return Err(Refused::NoName { expected }),
        [SanType::URI(uri)] if uri.as_str() == expected => {}
        names => {
            return Err(Refused::Name { asked: names.iter().map(describe).collect::<Vec<_>>().join(", "), expected });
        }
    }
    let signs_others = !matches!(request.params.is_ca, IsCa::NoCa | IsCa::ExplicitNoCa)
        || request
            .params
            .key_usages
            .iter()
            .any(|u| matches!(u, KeyUsagePurpose::KeyCertSign | KeyUsagePurpose::CrlSign));
    if signs_others {
        return Err(Refused::Authority);
    }
    let lifetime = match wanted_seconds {
        0 => longest,
        seconds => {
            let wanted = u64::try_from(seconds).map_err(|_| Refused::Lifetime(seconds))?;
            Duration::from_secs(wanted).max(MIN_LIFETIME).min(longest)
        }
    };
    Ok(Permit { public_key: request.public_key, lifetime })
}

fn describe(name: &SanType) -> String {
    match name {
        SanType::URI(uri) => format!("URI {}", uri.as_str()),
        SanType::DnsName(dns) => format!("DNS name {}", dns.as_str()),
        SanType::Rfc822Name(mail) => format!("e-mail address {}", mail.as_str()),
        SanType::IpAddress(ip) => format!("IP address {ip}"),
        _ => "a name of an unknown kind".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P384_SHA384};

    use super::*;

    const ME: &str = "spiffe://cluster.local/ns/shop/sa/reviews";
    const DAY: Duration = Duration::from_secs(86_400);

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn csr(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(ME)];
        change(&mut params);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    fn ask(pem: &str, seconds: i64) -> Result<Duration, Refused> {
        permit(pem, &ME.parse().unwrap(), seconds, DAY).map(|p| p.lifetime)
    }

    #[test]
    fn only_the_callers_own_identity_is_permitted() {
        // Otherwise a workload could get a certificate in another's name.
        assert_eq!(ask(&csr(|_| {}), 0), Ok(DAY));
        let other = "spiffe://cluster.local/ns/shop/sa/ratings";
        let names: Vec<Vec<SanType>> = vec![
            vec![uri(other)],
            vec![uri(ME), uri(other)],
            vec![uri(ME), uri(ME)],
            vec![uri(ME), SanType::DnsName("reviews.shop".try_into().unwrap())],
            vec![uri(ME), SanType::IpAddress("10.0.0.1".parse().unwrap())],
            vec![uri(ME), SanType::Rfc822Name("root@example.com".try_into().unwrap())],
            vec![SanType::DnsName("reviews.shop".try_into().unwrap())],
            vec![uri("spiffe://other.domain/ns/shop/sa/reviews")],
            vec![uri("spiffe://cluster.local/ns/shop/sa/reviews/")],
        ];
        for list in names {
            let result = ask(&csr(|p| p.subject_alt_names.clone_from(&list)), 0);
            assert!(matches!(result, Err(Refused::Name { .. })), "{list:?}: {result:?}");
        }
        assert!(matches!(ask(&csr(|p| p.subject_alt_names.clear()), 0), Err(Refused::NoName { .. })));
    }

    #[test]
    fn nobody_becomes_an_authority() {
        // A workload with a signing certificate would own the mesh.
        let wishes: [fn(&mut CertificateParams); 3] = [
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            |p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign],
        ];
        for wish in wishes {
            assert_eq!(ask(&csr(wish), 0), Err(Refused::Authority));
        }
    }

    #[test]
    fn unreadable_requests_are_refused() {
        // Bytes from outside must end in a message.
        let custom = csr(|p| p.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0])]);
        let mut broken = csr(|_| {});
        let middle = broken.len() / 2;
        let replacement = if broken.as_bytes()[middle] == b'A' { "B" } else { "A" };
        broken.replace_range(middle..=middle, replacement);
        for pem in ["", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----", &custom, &broken] {
            assert!(ask(pem, 0).is_err(), "{pem}");
        }
        assert!(matches!(ask(&"x".repeat(MAX_REQUEST_BYTES + 1), 0), Err(Refused::Unreadable(_))));
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(ME)];
        let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(ask(&params.serialize_request(&p384).unwrap().pem().unwrap(), 0), Err(Refused::Key));
    }

    #[test]
    fn lifetimes_are_cut_and_never_negative() {
        // A workload must not be able to outlive the operator's choice.
        let pem = csr(|_| {});
        let cases = [(0, Ok(DAY)), (60, Ok(Duration::from_secs(60))), (1, Ok(MIN_LIFETIME)), (i64::MAX, Ok(DAY))];
        for (seconds, expected) in cases {
            assert_eq!(ask(&pem, seconds), expected, "{seconds}");
        }
        assert_eq!(ask(&pem, -1), Err(Refused::Lifetime(-1)));
    }
}
