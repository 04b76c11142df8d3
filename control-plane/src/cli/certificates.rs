//! What a sidecar without a control plane proves itself with: files, an authority shared by a folder, or its own.
//!
//! Used by static mode. Everything that would only show as a failed handshake later is checked here: that the key belongs to
//! the certificate, that it names a SPIFFE identity, that it is in force and chains to the roots.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use outrigger_proxy::{
    arguments::{plain_io, read_text},
    identity::Material,
};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use super::outcome::Failure;
use crate::authority::{Authority, Identity};

/// Lifetime of leaves that we issue to ourselves; renewed at half of it.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the identity comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// `--cert-dir`: tls.crt, tls.key, ca.crt.
    Files(PathBuf),
    /// `--dev-ca`: an authority that several sidecars of one machine share.
    Shared(PathBuf),
    /// Neither: an authority of our own that nobody else trusts.
    Own,
}

/// Key, chain and roots, with the identity they prove.
#[derive(Debug)]
pub struct Proof {
    pub material: Material,
    pub identity: Identity,
    pub roots_pem: Vec<String>,
}

/// The authority behind a run that issues its own leaves.
pub struct Issuing {
    authority: Authority,
    identity: Identity,
}

/// Reads `tls.crt`, `tls.key` and `ca.crt`.
///
/// Errors (exit 65): the file and what is wrong with it.
pub fn from_files(folder: &Path) -> Result<Proof, Failure> {
    if !folder.is_dir() {
        return Err(Failure::bad_input(format_args!(
            "certificate folder {} does not exist (hint: --cert-dir takes a folder with tls.crt, tls.key and ca.crt)",
            folder.display()
        )));
    }
    let (leaf_path, key_path, root_path) = (folder.join("tls.crt"), folder.join("tls.key"), folder.join("ca.crt"));
    let chain = certificates(&leaf_path, "certificate")?;
    let key = key(&key_path)?;
    let roots = certificates(&root_path, "root certificate")?;
    let wrong = |path: &Path, reason: &str| Failure::bad_input(format_args!("{}: {reason}", path.display()));
    let leaf = chain.first().ok_or_else(|| wrong(&leaf_path, "holds no certificate"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| wrong(&leaf_path, &format!("not a certificate: {error}")))?;
    check_validity(&parsed, &leaf_path)?;
    let identity = identity(&parsed).map_err(|reason| wrong(&leaf_path, &reason))?;
    check_key(&chain, &key, &leaf_path, &key_path)?;
    check_chain(&chain, &roots, &leaf_path, &root_path)?;
    let roots_pem = roots.iter().map(|root| to_pem(root)).collect();
    let material = Material { chain, key, roots, trust_domain: identity.trust_domain.as_str().into() };
    Ok(Proof { material, identity, roots_pem })
}

/// Loads or makes the authority of a folder. Two processes that start at once agree: the second waits for the first.
///
/// Errors (exit 65): the folder cannot be used, or what lies there is not an authority.
pub fn shared(folder: &Path, identity: Identity) -> Result<Issuing, Failure> {
    let failed = |error: std::io::Error| {
        Failure::bad_input(format_args!("cannot use --dev-ca {}: {}", folder.display(), plain_io(&error)))
    };
    make_private_folder(folder).map_err(failed)?;
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join("ca.lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let authority = Authority::load_or_create(folder, &identity.trust_domain)
        .map_err(|error| Failure::bad_input(format_args!("--dev-ca {}: {error}", folder.display())))?;
    // Closing the file gives the lock back.
    drop(lock);
    Ok(Issuing { authority, identity })
}

/// Makes an authority that lives as long as this process.
///
/// Errors: no folder for temporary files.
pub fn own(identity: Identity) -> Result<Issuing, Failure> {
    let folder = std::env::temp_dir().join(format!("outrigger-own-{}-{:016x}", std::process::id(), fastrand::u64(..)));
    let issuing = make_private_folder(&folder)
        .map_err(|error| Failure::failed(format_args!("cannot use {}: {}", folder.display(), plain_io(&error))))
        .and_then(|()| {
            Authority::load_or_create(&folder, &identity.trust_domain)
                .map_err(|error| Failure::failed(format_args!("cannot make an authority: {error}")))
        });
    let _ = fs::remove_dir_all(&folder);
    Ok(Issuing { authority: issuing?, identity })
}

fn make_private_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

impl Issuing {
    /// A fresh key and a leaf for it, good for [`LEAF_LIFETIME`].
    ///
    /// Errors: the authority cannot sign.
    pub fn issue(&self) -> Result<Proof, Failure> {
        let failed = |error: rcgen::Error| Failure::failed(format_args!("cannot issue a certificate: {error}"));
        let key = KeyPair::generate().map_err(failed)?;
        let leaf =
            self.authority.sign_leaf(&key, &self.identity, &[], LEAF_LIFETIME, SystemTime::now()).map_err(failed)?;
        let mut chain = vec![leaf.der().clone()];
        let above = self.authority.chain();
        // Everything between the leaf and the root, which the peer has.
        chain.extend(above.iter().take(above.len().saturating_sub(1)).cloned());
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|error| Failure::failed(format_args!("cannot use our own key: {error}")))?;
        let material = Material {
            chain,
            key,
            roots: vec![self.authority.root().clone()],
            trust_domain: self.identity.trust_domain.as_str().into(),
        };
        let roots_pem = vec![self.authority.root_pem().to_owned()];
        Ok(Proof { material, identity: self.identity.clone(), roots_pem })
    }
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let text = read_text(path, what)?;
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::bad_input(format_args!("{}: broken PEM: {error}", path.display())))?;
    if found.is_empty() {
        let hint = if text.contains("PRIVATE KEY") { "; it holds a private key" } else { "" };
        return Err(Failure::bad_input(format_args!("{} holds no PEM certificate{hint}", path.display())));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    let text = read_text(path, "private key")?;
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        return Err(Failure::bad_input(format_args!(
            "{} is encrypted (hint: decrypt it with `openssl pkey -in {} -out tls.key`)",
            path.display(),
            path.display()
        )));
    }
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
        let hint = if text.contains("BEGIN CERTIFICATE") { "; it holds a certificate" } else { "" };
        Failure::bad_input(format_args!("{} holds no PEM private key{hint}", path.display()))
    })
}

fn check_validity(certificate: &X509Certificate<'_>, path: &Path) -> Result<(), Failure> {
    let validity = certificate.validity();
    let now = super::output::unix_now();
    let when = super::output::time;
    if validity.not_after.timestamp() < now {
        return Err(Failure::bad_input(format_args!(
            "{} expired at {} UTC (hint: issue a new one)",
            path.display(),
            when(validity.not_after.timestamp())
        )));
    }
    if validity.not_before.timestamp() > now {
        return Err(Failure::bad_input(format_args!(
            "{} is valid only from {} UTC (hint: compare this machine's clock with the issuer's)",
            path.display(),
            when(validity.not_before.timestamp())
        )));
    }
    Ok(())
}

/// The one SPIFFE id among the certificate's names.
fn identity(certificate: &X509Certificate<'_>) -> Result<Identity, String> {
    const FORM: &str = "spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT";
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| format!("its names cannot be read: {error}"))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .filter(|uri| uri.starts_with("spiffe:"))
        .collect();
    match uris.as_slice() {
        [] => Err(format!("it names no SPIFFE identity (hint: add the URI name {FORM})")),
        [one] => one.parse().map_err(|_| format!("its identity \"{one}\" is not of the form {FORM}")),
        _ => Err(format!("it names {} SPIFFE identities; exactly one is allowed", uris.len())),
    }
}

fn check_key(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    leaf_path: &Path,
    key_path: &Path,
) -> Result<(), Failure> {
    let wrong = |reason: &dyn std::fmt::Display| Failure::bad_input(format_args!("{}: {reason}", key_path.display()));
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(key)
        .map_err(|error| wrong(&format_args!("not a key that TLS can use: {error}")))?;
    match rustls::sign::CertifiedKey::new(chain.to_vec(), signing).keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
        Err(_) => Err(wrong(&format_args!("the key does not belong to {}", leaf_path.display()))),
    }
}

fn check_chain(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    leaf_path: &Path,
    root_path: &Path,
) -> Result<(), Failure> {
    let wrong =
        |path: &Path, reason: &dyn std::fmt::Display| Failure::bad_input(format_args!("{}: {reason}", path.display()));
    let anchors = roots
        .iter()
        .map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(root_path, &format_args!("not an authority: {error}")))?;
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(wrong(leaf_path, &"holds no certificate"));
    };
    let end = webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| wrong(leaf_path, &format_args!("not usable for TLS: {error}")))?;
    for (usage, role) in [(webpki::KeyUsage::client_auth(), "client"), (webpki::KeyUsage::server_auth(), "server")] {
        end.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            UnixTime::now(),
            usage,
            None,
            None,
        )
        .map_err(|error| match error {
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                wrong(leaf_path, &format_args!("not signed by an authority in {}", root_path.display()))
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => wrong(
                leaf_path,
                &format_args!(
                    "may not be used by a TLS {role} (hint: a sidecar is both; allow clientAuth and serverAuth)"
                ),
            ),
            other => wrong(leaf_path, &format_args!("does not chain to {}: {other}", root_path.display())),
        })?;
    }
    Ok(())
}

fn to_pem(certificate: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    // RFC 7468 §2: "Generators MUST wrap the base64-encoded lines so that each line consists of exactly 64 characters".
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
