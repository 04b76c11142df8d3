//! Every rule about the other side's certificate.
//!
//! The chain must end in one of our roots and be valid now for the role it is used in (RFC 5280, checked by webpki),
//! and the leaf must name exactly one SPIFFE id in its URI names (X.509-SVID §2), of our trust domain and, when a server
//! is expected to be somebody, exactly that. DNS names and the common name mean nothing here.

use std::{io, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use webpki::{EndEntityCert, KeyUsage};

use super::Expected;
use crate::identity::spiffe_id::{SpiffeId, SpiffeIdError};

/// What is wrong with the name in a certificate whose chain is sound.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityProblem {
    #[error("certificate is not readable as X.509")]
    Malformed,
    #[error("certificate has no URI name")]
    NoUri,
    #[error("certificate has more than one URI name")]
    SeveralUris,
    #[error(transparent)]
    NotSpiffe(#[from] SpiffeIdError),
    #[error("peer proved identity {proved}, expected {expected}")]
    Unexpected { expected: Box<str>, proved: SpiffeId },
}

/// The one identity a leaf names. Says nothing about who signed it.
pub(super) fn identity(leaf: &CertificateDer<'_>) -> Result<SpiffeId, IdentityProblem> {
    let certificate = EndEntityCert::try_from(leaf).map_err(|_| IdentityProblem::Malformed)?;
    let mut uris = certificate.valid_uri_names();
    let uri = uris.next().ok_or(IdentityProblem::NoUri)?;
    // X.509-SVID §2: "An X.509 SVID MUST contain exactly one URI SAN"; with two, it would be our choice who they are.
    if uris.next().is_some() {
        return Err(IdentityProblem::SeveralUris);
    }
    Ok(SpiffeId::parse(uri)?)
}

/// The identity problem inside a failed handshake's error, if that was the cause.
pub(super) fn problem_in(error: &io::Error) -> Option<&IdentityProblem> {
    match error.get_ref()?.downcast_ref()? {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

/// Judges the other side, in either role.
#[derive(Debug)]
pub(super) struct Verifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    expected: Expected,
    trust_domain: Arc<str>,
}

impl Verifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: &CryptoProvider,
        expected: Expected,
        trust_domain: Arc<str>,
    ) -> Self {
        Self { roots, algorithms: provider.signature_verification_algorithms, expected, trust_domain }
    }

    /// The chain of a server, without its name.
    pub(super) fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, self.algorithms.all)
    }

    fn verify_identity(&self, leaf: &CertificateDer<'_>) -> Result<(), IdentityProblem> {
        let proved = identity(leaf)?;
        let expected: Box<str> = match &self.expected {
            Expected::Exactly(expected) if *expected == proved => return Ok(()),
            Expected::Exactly(expected) => expected.as_str().into(),
            Expected::TrustDomain if proved.trust_domain() == &*self.trust_domain => return Ok(()),
            Expected::TrustDomain => format!("one of trust domain {}", self.trust_domain).into(),
        };
        Err(IdentityProblem::Unexpected { expected, proved })
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }
}

fn refused(problem: IdentityProblem) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(problem))))
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The chain first: a name in a certificate that nobody vouches for must not even reach the log as proved.
        self.verify_chain(leaf, intermediates, now)?;
        self.verify_identity(leaf).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Clients have one certificate; a list of roots would only grow every handshake.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        EndEntityCert::try_from(leaf)
            .and_then(|certificate| {
                certificate.verify_for_usage(
                    self.algorithms.all,
                    &self.roots.roots,
                    intermediates,
                    now,
                    KeyUsage::client_auth(),
                    None,
                    None,
                )?;
                Ok(())
            })
            .map_err(untrusted)?;
        self.verify_identity(leaf).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// webpki's words in rustls' form, which picks the alert.
fn untrusted(error: webpki::Error) -> Error {
    use webpki::Error as Problem;
    Error::InvalidCertificate(match error {
        Problem::CertExpired { .. } => CertificateError::Expired,
        Problem::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Problem::UnknownIssuer => CertificateError::UnknownIssuer,
        Problem::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        Problem::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}
