//! Loads or creates the root that every identity of the mesh chains to.
//!
//! `ca.key` (PKCS#8, mode 0600) and `ca.crt` lie in the data directory. When neither is there a P-256 root of ten years is made;
//! when both are there they are used as they are, also an intermediate with its chain (`ca.crt`: signing certificate first, root
//! last). One without the other is an error, never a reason to make a new root: that would cut off every workload.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    sign,
    token::{hex, sha256},
};

/// Lifetime of a root that we make ourselves.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Largest `ca.crt` or `ca.key` that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The signing key with the certificates above it.
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// Signing certificate first, root last; the same one when there is no intermediate.
    chain: Vec<CertificateDer<'static>>,
    chain_pem: Vec<String>,
    trust_domain: String,
    pin: String,
    certificate_path: PathBuf,
    /// End of the signing certificate: no leaf outlives it.
    pub(super) ends: SystemTime,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is there but {} is not (hint: put both files of one authority there, or remove both to have a new root made; \
             a new root cuts off every workload that has joined)", present.display(), missing.display())]
    Half { present: PathBuf, missing: PathBuf },
    #[error("{} is not usable: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("cannot make a root: {0}")]
    Make(#[from] rcgen::Error),
}

impl Authority {
    /// Loads the authority of `folder`, or makes one.
    ///
    /// # Errors
    /// [`AuthorityError`], with the file and what is wrong with it.
    pub fn load_or_create(folder: &Path, trust_domain: &str) -> Result<Self, AuthorityError> {
        let (key_path, certificate_path) = (folder.join("ca.key"), folder.join("ca.crt"));
        match (key_path.exists(), certificate_path.exists()) {
            (true, true) => {}
            (false, false) => {
                let (key_pem, certificate_pem) = make_root(trust_domain)?;
                write_private(&key_path, key_pem.as_bytes(), 0o600)?;
                write_private(&certificate_path, certificate_pem.as_bytes(), 0o644)?;
                tracing::info!(path = %certificate_path.display(), "made a new root");
            }
            (true, false) => return Err(AuthorityError::Half { present: key_path, missing: certificate_path }),
            (false, true) => return Err(AuthorityError::Half { present: certificate_path, missing: key_path }),
        }
        Self::load(&key_path, &certificate_path, trust_domain)
    }

    fn load(key_path: &Path, certificate_path: &Path, trust_domain: &str) -> Result<Self, AuthorityError> {
        let unusable = |path: &Path, reason: String| AuthorityError::Unusable { path: path.to_owned(), reason };
        let mode = fs::metadata(key_path)
            .map_err(|source| AuthorityError::File { path: key_path.to_owned(), source })?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(unusable(key_path, format!("others may read it (mode {:o}; hint: chmod 600)", mode & 0o777)));
        }
        let key_pem = read_limited(key_path)?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| unusable(key_path, e.to_string()))?;
        let certificate_pem = read_limited(certificate_path)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| unusable(certificate_path, e.to_string()))?;
        let (Some(signing), Some(root)) = (chain.first(), chain.last()) else {
            return Err(unusable(certificate_path, "it holds no certificate".to_owned()));
        };
        let (_, parsed) =
            x509_parser::parse_x509_certificate(signing).map_err(|e| unusable(certificate_path, e.to_string()))?;
        if !parsed.is_ca() {
            return Err(unusable(certificate_path, "its first certificate is not a certificate authority".to_owned()));
        }
        if !parsed.validity().is_valid() {
            return Err(unusable(
                certificate_path,
                format!("its first certificate expired at {}", parsed.validity().not_after),
            ));
        }
        if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
            return Err(unusable(certificate_path, format!("its key is not the one in {}", key_path.display())));
        }
        let (_, parsed_root) =
            x509_parser::parse_x509_certificate(root).map_err(|e| unusable(certificate_path, e.to_string()))?;
        let pin = hex(&sha256(parsed_root.public_key().raw));
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(ends);
        let issuer = Issuer::from_ca_cert_der(signing, key).map_err(|e| unusable(certificate_path, e.to_string()))?;
        let chain_pem = chain.iter().map(|der| sign::pem("CERTIFICATE", der)).collect();
        Ok(Self {
            issuer,
            chain,
            chain_pem,
            trust_domain: trust_domain.to_owned(),
            pin,
            certificate_path: certificate_path.to_owned(),
            ends,
        })
    }

    /// Trust domain of every identity signed here.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// SHA-256 of the root's public key, hex.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// Everything between a leaf and the root, root included, root last.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The same in PEM, one certificate each.
    pub fn chain_pem(&self) -> &[String] {
        &self.chain_pem
    }

    /// The root alone.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().expect("a loaded chain holds at least one certificate")
    }

    /// The root alone, in PEM.
    pub fn root_pem(&self) -> &str {
        self.chain_pem.last().map_or("", String::as_str)
    }

    /// Where the certificate lies, for messages and the command line.
    pub fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }
}

fn make_root(trust_domain: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, trust_domain);
    name.push(DnType::CommonName, "outrigger root");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(sign::random_serial()?);
    let now = SystemTime::now();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + sign::since_1970(now - sign::BACKDATE);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + sign::since_1970(now + ROOT_LIFETIME);
    let certificate = params.self_signed(&key)?;
    Ok((key.serialize_pem(), certificate.pem()))
}

fn read_limited(path: &Path) -> Result<String, AuthorityError> {
    let error = |source| AuthorityError::File { path: path.to_owned(), source };
    if fs::metadata(path).map_err(error)?.len() > MAX_FILE_BYTES {
        return Err(AuthorityError::Unusable { path: path.to_owned(), reason: "it is larger than 1 MiB".to_owned() });
    }
    fs::read_to_string(path).map_err(error)
}

/// Writes a whole file or nothing: temporary file, sync, rename, sync of the folder.
///
/// # Errors
/// [`AuthorityError::File`] with the path.
pub fn write_private(path: &Path, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let error = |source| AuthorityError::File { path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(error)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(error)?;
    fs::rename(&temporary, path).map_err(error)?;
    if let Some(folder) = path.parent() {
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(error)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_root_survives_a_restart() {
        // A new root after each start would cut off every workload.
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::load_or_create(folder.path(), "cluster.local").unwrap();
        let second = Authority::load_or_create(folder.path(), "cluster.local").unwrap();
        assert_eq!(first.pin(), second.pin());
        assert_eq!(first.root_pem(), second.root_pem());
        assert_eq!(fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn broken_files_stop_the_start_with_a_reason() {
        // Silently making a new root instead would be an outage.
        let make = || {
            let folder = tempfile::tempdir().unwrap();
            Authority::load_or_create(folder.path(), "cluster.local").unwrap();
            folder
        };
        let reason = |folder: &tempfile::TempDir| match Authority::load_or_create(folder.path(), "cluster.local") {
            Ok(_) => String::new(),
            Err(e) => e.to_string(),
        };
        let (folder, other) = (make(), make());
        fs::remove_file(folder.path().join("ca.crt")).unwrap();
        assert!(reason(&folder).contains("is not"), "{}", reason(&folder));
        let folder = make();
        fs::copy(other.path().join("ca.crt"), folder.path().join("ca.crt")).unwrap();
        assert!(reason(&folder).contains("its key is not the one"), "{}", reason(&folder));
        let folder = make();
        fs::write(folder.path().join("ca.crt"), "nothing").unwrap();
        assert!(reason(&folder).contains("no certificate"), "{}", reason(&folder));
        let folder = make();
        fs::set_permissions(folder.path().join("ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(reason(&folder).contains("chmod 600"), "{}", reason(&folder));
    }
}
