//! The last good configuration on disk, so that a proxy starts while its control plane is away.
//!
//! Written by `run` some time after a change, read once at start. A file that is torn, altered, of another format or of
//! another workload is ignored with an error in the log: it is a convenience, never a reason not to start. Holds
//! resources as they were received, which names were absent and which were asked for; no keys, no tokens.
//!
//! Format: magic with version (8 bytes), length of the body (8 bytes, big endian), SHA-256 of the body, body.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use bytes::Bytes;
use prost::Message;

const MAGIC: &[u8; 8] = b"ORGCONF1";
const HEADER_BYTES: usize = 8 + 8 + 32;
/// Largest file that is read.
const FILE_BYTES: u64 = 256 << 20;
const FILE_NAME: &str = "last-good-configuration";

/// Everything that is kept.
#[derive(Clone, PartialEq, Message)]
pub struct Snapshot {
    /// Whose configuration this is: trust domain and "namespace/workload".
    #[prost(string, tag = "1")]
    pub owner: String,
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Stored>,
    #[prost(message, repeated, tag = "3")]
    pub absent: Vec<Absent>,
    /// Names that the data path asked for.
    #[prost(string, repeated, tag = "4")]
    pub demanded: Vec<String>,
}

/// One resource as it was received.
#[derive(Clone, PartialEq, Message)]
pub struct Stored {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub version: String,
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
    #[prost(bytes = "bytes", tag = "5")]
    pub encoded: Bytes,
}

/// A name that did not exist.
#[derive(Clone, PartialEq, Message)]
pub struct Absent {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(string, tag = "2")]
    pub name: String,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("is of another format or version")]
    Format,
    #[error("is torn: {present} of {expected} bytes are there")]
    Torn { present: usize, expected: usize },
    #[error("is damaged: the checksum does not fit")]
    Checksum,
    #[error("is of {found:?}, not of {owner:?}")]
    Owner { found: String, owner: String },
    #[error("is larger than {FILE_BYTES} bytes")]
    TooLarge,
}

/// Where the file of a state directory is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE_NAME)
}

/// Reads the configuration of `owner`; `None` when there is none yet.
///
/// # Errors
/// When there is a file and it cannot be used.
pub fn load(state_dir: &Path, owner: &str) -> Result<Option<Snapshot>, DiskError> {
    let file = match File::open(path(state_dir)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut content = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES {
        return Err(DiskError::TooLarge);
    }
    let snapshot = parse(content.into())?;
    if snapshot.owner == owner {
        Ok(Some(snapshot))
    } else {
        Err(DiskError::Owner { found: snapshot.owner, owner: owner.to_owned() })
    }
}

/// Replaces the file as a whole: it is the old one or the new one at any moment, also when the machine dies.
///
/// # Errors
/// The operating system's; the old file stays.
pub fn save(state_dir: &Path, snapshot: &Snapshot) -> io::Result<()> {
    fs::create_dir_all(state_dir)?;
    let target = path(state_dir);
    let temporary = target.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    // An older file may have had wider permissions.
    file.set_permissions(fs::Permissions::from(std::os::unix::fs::PermissionsExt::from_mode(0o600)))?;
    file.write_all(&render(snapshot))?;
    file.sync_all()?;
    fs::rename(&temporary, &target)?;
    File::open(state_dir)?.sync_all()
}

fn render(snapshot: &Snapshot) -> Vec<u8> {
    let body = snapshot.encode_to_vec();
    let mut content = Vec::with_capacity(HEADER_BYTES + body.len());
    content.extend_from_slice(MAGIC);
    content.extend_from_slice(&(body.len() as u64).to_be_bytes());
    content.extend_from_slice(digest::digest(&digest::SHA256, &body).as_ref());
    content.extend_from_slice(&body);
    content
}

fn parse(content: Bytes) -> Result<Snapshot, DiskError> {
    let Some((magic, rest)) = content.split_first_chunk::<8>() else { return Err(DiskError::Format) };
    if magic != MAGIC {
        return Err(DiskError::Format);
    }
    let torn = |expected| DiskError::Torn { present: content.len(), expected };
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| torn(HEADER_BYTES))?;
    let (checksum, body) = rest.split_first_chunk::<32>().ok_or_else(|| torn(HEADER_BYTES))?;
    let length = usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if body.len() != length {
        return Err(torn(length.saturating_add(HEADER_BYTES)));
    }
    if digest::digest(&digest::SHA256, body).as_ref() != checksum {
        return Err(DiskError::Checksum);
    }
    // Resources share the memory of the file's content.
    Snapshot::decode(content.slice(HEADER_BYTES.min(content.len())..)).map_err(|_| DiskError::Format)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            owner: "mesh.local shop/front-1".to_owned(),
            resources: vec![Stored {
                type_url: "t".to_owned(),
                name: "shop/reviews".to_owned(),
                version: "1".to_owned(),
                aliases: vec!["vip/10.0.0.1".to_owned()],
                encoded: Bytes::from_static(b"content"),
            }],
            absent: vec![Absent { type_url: "t".to_owned(), name: "host/none".to_owned() }],
            demanded: vec!["host/none".to_owned()],
        }
    }

    #[test]
    fn what_was_saved_is_loaded_and_only_the_owner_may_read_it() {
        // Without this a restart during an outage of the control plane is an outage of the workload.
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert!(load(&state, &snapshot().owner).unwrap().is_none());
        for version in ["1", "2"] {
            let mut snapshot = snapshot();
            version.clone_into(&mut snapshot.resources[0].version);
            save(&state, &snapshot).unwrap();
            assert_eq!(load(&state, &snapshot.owner).unwrap(), Some(snapshot));
        }
        assert_eq!(fs::metadata(path(&state)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(load(&state, "mesh.local shop/other"), Err(DiskError::Owner { .. })));
    }

    #[test]
    fn a_file_cut_anywhere_is_ignored() {
        // A machine that died while writing must not leave a configuration that was never sent.
        let content = Bytes::from(render(&snapshot()));
        for length in 0..content.len() {
            assert!(parse(content.slice(..length)).is_err(), "cut at {length}");
        }
        let mut longer = content.to_vec();
        longer.push(0);
        assert!(parse(longer.into()).is_err());
        assert_eq!(parse(content).unwrap(), snapshot());
    }

    #[test]
    fn a_file_changed_anywhere_is_ignored() {
        // Bad sectors and edits must not steer traffic.
        let content = render(&snapshot());
        for place in 0..content.len() {
            let mut changed = content.clone();
            changed[place] ^= 1;
            assert!(parse(changed.into()).is_err(), "changed at {place}");
        }
    }
}
