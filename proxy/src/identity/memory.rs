//! Certificate and key over a restart of the process: in a memory filesystem, never on a disk.
//!
//! Without it a sidecar that restarts while the control plane is away has no identity and must wait. `client` saves
//! after every renewal, `sidecar` loads once at start. A folder that is not in memory, or that others may read, is
//! refused; a file that does not fit is ignored with a warning, as if it were not there.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Material, SpiffeId};
use crate::tls::TlsConfigs;

/// Magic numbers of statfs(2): tmpfs and ramfs.
const MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
/// Largest file that is read.
const FILE_BYTES: u64 = 1 << 20;

/// A file in memory for one workload's identity.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    path: PathBuf,
    id: SpiffeId,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    #[error("cannot use {path:?} for the identity: {source}")]
    Folder { path: PathBuf, source: io::Error },
    #[error(
        "{path:?} is not in a memory filesystem, and keys are never written to a disk (hint: use a folder below /dev/shm or /run)"
    )]
    Disk { path: PathBuf },
    #[error("{path:?} may be read by others (hint: chmod 700 {})", path.display())]
    Open { path: PathBuf },
}

#[derive(Serialize, Deserialize)]
struct Kept {
    chain: Vec<String>,
    key: String,
    roots: Vec<String>,
}

impl MemoryFile {
    /// The file for `workload` with identity `id` in `folder`, which is made (0700) when it is missing.
    ///
    /// # Errors
    /// [`MemoryFileError`] says what is wrong with the folder.
    pub fn new(folder: &Path, workload: &str, id: SpiffeId) -> Result<Self, MemoryFileError> {
        let failed = |source| MemoryFileError::Folder { path: folder.to_owned(), source };
        if !folder.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        }
        let kind = rustix::fs::statfs(folder).map_err(|error| failed(error.into()))?.f_type;
        if !MEMORY.contains(&kind) {
            return Err(MemoryFileError::Disk { path: folder.to_owned() });
        }
        if fs::metadata(folder).map_err(failed)?.mode() & 0o077 != 0 {
            return Err(MemoryFileError::Open { path: folder.to_owned() });
        }
        let name = format!("{}.{workload}.identity", id.namespace().unwrap_or("none"));
        Ok(Self { path: folder.join(name), id })
    }

    /// The identity that was saved, if there is one that is whole, ours and still valid.
    pub fn load(&self) -> Option<Material> {
        let size = fs::metadata(&self.path).ok()?.len();
        if size > FILE_BYTES {
            warn!(path = %self.path.display(), size, "kept identity is too large and is not used");
            return None;
        }
        let text = fs::read(&self.path).ok()?;
        match self.read(&text) {
            Ok(material) => Some(material),
            Err(problem) => {
                warn!(path = %self.path.display(), problem, "kept identity is not used");
                None
            }
        }
    }

    /// Replaces what was saved.
    ///
    /// # Errors
    /// The filesystem's; the old file stays.
    pub fn save(&self, material: &Material) -> io::Result<()> {
        let certificates = |list: &[CertificateDer<'_>]| list.iter().map(|item| BASE64.encode(item)).collect();
        let kept = Kept {
            chain: certificates(&material.chain),
            key: BASE64.encode(material.key.secret_der()),
            roots: certificates(&material.roots),
        };
        let text = serde_json::to_vec(&kept)?;
        let new = self.path.with_extension("new");
        // Left behind by a process that died in between.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        fs::rename(&new, &self.path)
    }

    fn read(&self, text: &[u8]) -> Result<Material, String> {
        let kept: Kept = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let bytes = |text: &String| BASE64.decode(text).map_err(|error| error.to_string());
        let certificates = |list: &[String]| -> Result<Vec<_>, String> {
            list.iter().map(|item| Ok(CertificateDer::from(bytes(item)?))).collect()
        };
        let material = Material {
            chain: certificates(&kept.chain)?,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(bytes(&kept.key)?)),
            roots: certificates(&kept.roots)?,
            trust_domain: Arc::from(self.id.trust_domain()),
        };
        let configs = TlsConfigs::new(&material).map_err(|error| error.to_string())?;
        if *configs.identity() != self.id {
            return Err(format!("it is of {}", configs.identity()));
        }
        Ok(material)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("outrigger-identity-").tempdir_in("/dev/shm").unwrap()
    }

    fn id() -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", "web").unwrap()
    }

    fn material(id: &SpiffeId) -> Material {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        let leaf = leaf.signed_by(&key, &root).unwrap();
        Material {
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            roots: vec![root.der().clone()],
            trust_domain: Arc::from(id.trust_domain()),
        }
    }

    #[test]
    fn identity_survives_a_restart_and_only_its_owner_can_read_it() {
        // Without it a sidecar restarted during an outage of the control plane carries no traffic.
        let folder = folder();
        let file = MemoryFile::new(&folder.path().join("own"), "web-1", id()).unwrap();
        assert!(file.load().is_none());
        let before = material(&id());
        file.save(&before).unwrap();
        let after = file.load().unwrap();
        assert_eq!(before.chain, after.chain);
        assert_eq!(before.key.secret_der(), after.key.secret_der());
        assert_eq!(fs::metadata(&file.path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn another_workloads_identity_and_damaged_files_are_not_used() {
        // A file that was moved must not let one workload speak as another.
        let folder = folder();
        let file = MemoryFile::new(&folder.path().join("own"), "web-1", id()).unwrap();
        file.save(&material(&SpiffeId::new("cluster.local", "shop", "other").unwrap())).unwrap();
        assert!(file.load().is_none());
        file.save(&material(&id())).unwrap();
        let text = fs::read(&file.path).unwrap();
        for end in [0, 1, text.len() / 2, text.len() - 1] {
            fs::write(&file.path, &text[..end]).unwrap();
            assert!(file.load().is_none(), "{end} bytes");
        }
    }

    #[test]
    fn disks_and_open_folders_are_refused() {
        // A key on a disk outlives the process, the machine and every intention.
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let on_disk = MemoryFile::new(disk.path(), "web-1", id());
        assert!(matches!(on_disk, Err(MemoryFileError::Disk { .. })), "{on_disk:?}");
        let open = folder();
        fs::set_permissions(open.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let open = MemoryFile::new(open.path(), "web-1", id());
        assert!(matches!(open, Err(MemoryFileError::Open { .. })), "{open:?}");
    }
}
