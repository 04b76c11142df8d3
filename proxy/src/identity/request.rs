//! A fresh key and the request to have it signed.
//!
//! P-256, as every SPIFFE implementation accepts it. The request names nothing but the SPIFFE id: signers refuse
//! requests that want more. The key stays in memory.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::spiffe_id::SpiffeId;

/// A key without a certificate yet.
pub struct SigningRequest {
    key: KeyPair,
    /// PKCS#10 in PEM.
    pub csr: String,
}

impl SigningRequest {
    /// Makes a key and its request.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn new(id: &SpiffeId) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        let csr = params.serialize_request(&key)?.pem()?;
        Ok(Self { key, csr })
    }

    /// The key, for the certificate that was made of the request.
    pub fn into_key(self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}
