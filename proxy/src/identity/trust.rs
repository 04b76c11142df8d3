//! Is the server that we reached our control plane? Asked by rustls in the handshake.
//!
//! Its certificate must chain to a root that we know, or to a certificate authority in the presented chain whose
//! public key has the pinned hash, and must carry the control plane's SPIFFE id. Host names are not looked at: the
//! identity does not depend on the address it is reached under.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::Material;

/// Whom to believe.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Known roots; may be empty when there is a pin.
    pub roots: Vec<CertificateDer<'static>>,
    /// SHA-256 of the SubjectPublicKeyInfo of the root.
    pub pin: Option<[u8; 32]>,
    /// The identity that the server must prove, [`control_plane_id`].
    pub server: String,
}

/// The control plane's SPIFFE id in a trust domain.
pub fn control_plane_id(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/ns/outrigger-system/sa/outrigger")
}

/// Settings for connections to the control plane, with our certificate if we have one.
///
/// # Errors
/// When certificate and key cannot be used.
pub fn client_config(trust: Trust, material: Option<&Material>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier { trust, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match material {
        Some(material) => builder.with_client_auth_cert(material.chain.clone(), material.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed handshake shows no certificate, so it would prove nothing about today's roots.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn verify(&self, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let pinned = chain.iter().filter(|presented| self.is_pinned(presented));
        // Whoever is trusted must be able to sign: `verify_for_usage` below checks that it did.
        let anchors: Vec<TrustAnchor<'_>> = (self.trust.roots.iter())
            .chain(pinned)
            .filter_map(|root| webpki::anchor_from_trusted_cert(root).ok())
            .collect();
        certificate
            .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, chain, now, KeyUsage::server_auth(), None, None)
            .map_err(|error| match error {
                webpki::Error::CertExpired { .. } => CertificateError::Expired,
                webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
                webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
                other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
            })?;
        if certificate.valid_uri_names().any(|name| name == self.trust.server) {
            Ok(())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        let Some(pin) = &self.trust.pin else { return false };
        EndEntityCert::try_from(certificate)
            .is_ok_and(|parsed| key_hash(parsed.subject_public_key_info().as_ref()) == *pin)
    }
}

/// SHA-256 of a SubjectPublicKeyInfo in DER.
fn key_hash(key_info: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, key_info).as_ref());
    hash
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let now = crate::host::wall_clock().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.verify(end_entity, intermediates, UnixTime::since_unix_epoch(now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

    use super::*;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()).unwrap()
    }

    fn server(authority: &CertifiedIssuer<'static, KeyPair>, uri: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        params.signed_by(&key, authority).unwrap().der().clone()
    }

    fn pin(authority: &CertifiedIssuer<'static, KeyPair>) -> [u8; 32] {
        let der = authority.der().clone();
        key_hash(EndEntityCert::try_from(&der).unwrap().subject_public_key_info().as_ref())
    }

    #[test]
    fn only_the_control_plane_of_a_trusted_root_is_believed() {
        // Whoever passes here may hand out certificates and routes.
        let (ours, theirs) = (authority(), authority());
        let name = control_plane_id("mesh.local");
        let good = server(&ours, &name);
        let neighbour = server(&ours, "spiffe://mesh.local/ns/shop/sa/reviews");
        let forged = server(&theirs, &name);
        let (root, other) = (ours.der().clone(), theirs.der().clone());
        let table = [
            ("known root", vec![root.clone()], None, &good, vec![], true),
            ("pin, root presented", vec![], Some(pin(&ours)), &good, vec![root.clone()], true),
            ("pin, root not presented", vec![], Some(pin(&ours)), &good, vec![], false),
            ("pin of another root", vec![], Some(pin(&theirs)), &good, vec![root.clone()], false),
            ("another workload of the mesh", vec![root.clone()], None, &neighbour, vec![], false),
            ("signed by another root", vec![root.clone()], None, &forged, vec![other.clone()], false),
            (
                "pinned root presented, but signed by another",
                vec![],
                Some(pin(&ours)),
                &forged,
                vec![root, other],
                false,
            ),
            ("nothing trusted", vec![], None, &good, vec![ours.der().clone()], false),
        ];
        for (case, roots, pin, leaf, chain, expected) in table {
            let trust = Trust { roots, pin, server: name.clone() };
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let verifier = Verifier { trust, provider };
            assert_eq!(verifier.verify(leaf, &chain, UnixTime::now()).is_ok(), expected, "{case}");
        }
    }
}
