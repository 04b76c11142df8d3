//! Certificates for the chains that are not ours: one authority, and one P-256 certificate that both hops use.
//!
//! Written to the run's folder as PEM, because nginx and HAProxy read files. Mutual TLS 1.3 for everybody, without
//! resumption between handshakes worth naming: connections are kept.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// The name that the certificate is for.
pub const SERVER_NAME: &str = "bench.test";
/// Certificate of the authority.
pub const AUTHORITY: &str = "ca.pem";
/// Certificate of both hops.
pub const CERTIFICATE: &str = "tls.pem";
/// Key of both hops.
pub const KEY: &str = "tls.key";
/// Certificate and key in one file, as HAProxy wants them.
pub const BOTH: &str = "tls-both.pem";

/// Makes them in `folder`.
///
/// # Errors
/// When files cannot be written.
pub fn make(folder: &Path) -> Result<()> {
    let mut authority = CertificateParams::default();
    // Names must differ: OpenSSL takes a certificate whose issuer has its own name for self-signed.
    authority.distinguished_name.push(DnType::CommonName, "bench authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new([SERVER_NAME.to_owned()])?;
    leaf.distinguished_name.push(DnType::CommonName, SERVER_NAME);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = leaf.signed_by(&key, &issuer)?.pem();
    let write =
        |name: &str, text: &str| fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"));
    write(AUTHORITY, &authority_certificate.pem())?;
    write(CERTIFICATE, &certificate)?;
    write(KEY, &key.serialize_pem())?;
    write(BOTH, &format!("{certificate}{}", key.serialize_pem()))
}

/// TLS of the floor's second hop.
///
/// # Errors
/// When the folder does not hold what [`make`] writes.
pub fn server(folder: &Path) -> Result<Arc<ServerConfig>> {
    let (roots, chain, key) = read(folder)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// TLS of the floor's first hop.
///
/// # Errors
/// As [`server`].
pub fn client(folder: &Path) -> Result<Arc<ClientConfig>> {
    let (roots, chain, key) = read(folder)?;
    let mut config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn read(folder: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let within = |name: &str| {
        let path = folder.join(name);
        move |error| anyhow::anyhow!("cannot read {}: {error}", path.display())
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join(AUTHORITY)).map_err(within(AUTHORITY))?)?;
    let chain = vec![CertificateDer::from_pem_file(folder.join(CERTIFICATE)).map_err(within(CERTIFICATE))?];
    let key = PrivateKeyDer::from_pem_file(folder.join(KEY)).map_err(within(KEY))?;
    Ok((roots, chain, key))
}
