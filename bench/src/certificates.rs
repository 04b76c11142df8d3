//! Certificates of a run: one authority, and P-256 certificates that the chains use.
//!
//! Written to the run's folder as PEM, because nginx and HAProxy read files. Each certificate has one DNS name, for those
//! who look at names, and one SPIFFE id, for Outrigger. Mutual TLS 1.3 for everybody.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// The name that the certificates are for.
pub const SERVER_NAME: &str = "bench.test";
/// Certificate of the authority.
pub const AUTHORITY: &str = "ca.pem";
/// Certificate of both hops.
pub const CERTIFICATE: &str = "tls.pem";
/// Key of both hops.
pub const KEY: &str = "tls.key";
/// Certificate and key in one file, as HAProxy wants them.
pub const BOTH: &str = "tls-both.pem";
/// Service accounts that have a folder as `outrigger proxy --cert-dir` takes it.
pub const ACCOUNTS: [&str; 2] = ["client", "app"];

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
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);
    write(folder, AUTHORITY, &authority_pem)?;
    for account in ACCOUNTS {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new([SERVER_NAME.to_owned()])?;
        let id = format!("spiffe://cluster.local/ns/bench/sa/{account}");
        leaf.subject_alt_names.push(SanType::URI(id.as_str().try_into()?));
        leaf.distinguished_name.push(DnType::CommonName, SERVER_NAME);
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = leaf.signed_by(&key, &issuer)?.pem();
        let own = folder.join(account);
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
        write(&own, "tls.crt", &certificate)?;
        write(&own, "tls.key", &key.serialize_pem())?;
        write(&own, "ca.crt", &authority_pem)?;
        if account == "client" {
            write(folder, CERTIFICATE, &certificate)?;
            write(folder, KEY, &key.serialize_pem())?;
            write(folder, BOTH, &format!("{certificate}{}", key.serialize_pem()))?;
        }
    }
    Ok(())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))
}

/// TLS of one who takes connections and speaks these protocols; none for raw bytes.
///
/// # Errors
/// When the folder does not hold what [`make`] writes.
pub fn server(folder: &Path, protocols: &[&str]) -> Result<Arc<ServerConfig>> {
    let (roots, chain, key) = read(folder)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// TLS of one who connects. Without resumption: what counts as a handshake is a full one.
///
/// # Errors
/// As [`server`].
pub fn client(folder: &Path, protocols: &[&str]) -> Result<Arc<ClientConfig>> {
    let (roots, chain, key) = read(folder)?;
    let mut config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
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
