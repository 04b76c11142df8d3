//! The embedded store: objects with every revision, join tokens, virtual addresses, registered workloads.
//!
//! One redb file in the data directory. Every change is on disk when the call returns, all of it or none; changes that come at once
//! share one wait for the disk.
//! A revision is a number with parent, author, time, message and changes; nothing is ever overwritten, so history, diff and
//! rollback (which is a new revision) need no second copy. All calls block on the disk; asynchronous callers use
//! `spawn_blocking` for those that write.

mod addresses;
mod group_commit;
mod revisions;
mod tokens;
mod workloads;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

pub use revisions::{Action, Change, Edit, Found, Revision, StoredObject, Written, without_server_fields};
pub use tokens::TokenRecord;
pub use workloads::StoredWorkload;

/// Name of the file in the data directory.
const FILE: &str = "store.redb";
/// Numbers by name: the layout's version and the newest revision.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Layout of the tables; another number is another program's file.
const LAYOUT: u64 = 1;

/// The store of one control plane.
pub struct Store {
    database: Database,
    history_limit: u64,
    group: group_commit::GroupCommit,
}

/// Why the store did not do it. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot open the store {}: {source} (hint: is another control plane using this data directory?)", path.display())]
    Open { path: PathBuf, source: Box<redb::DatabaseError> },
    #[error("the store {} has layout {found}, this version reads {LAYOUT} (hint: use the version of outrigger that wrote it)", path.display())]
    Layout { path: PathBuf, found: u64 },
    /// Somebody else was faster.
    #[error("the newest revision is {newest}, not {expected} (hint: read again, then repeat the change)")]
    Conflict { expected: u64, newest: u64 },
    #[error("revision {0} does not exist or is no longer kept")]
    NoRevision(u64),
    #[error("the store failed: {0}")]
    Database(Box<redb::Error>),
    #[error("a stored record cannot be read: {0}")]
    Record(String),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl Store {
    /// Opens the store of `folder`, or makes one; `history_limit` revisions are kept.
    ///
    /// # Errors
    /// When the folder or file cannot be used, or another process holds it.
    pub fn open(folder: &Path, history_limit: u64) -> Result<Self, StoreError> {
        let file_error = |source| StoreError::File { path: folder.to_owned(), source };
        if !folder.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(file_error)?;
        }
        let path = folder.join(FILE);
        let database = Database::create(&path)
            .map_err(|source| StoreError::Open { path: path.clone(), source: Box::new(source) })?;
        // It holds hashes of secrets and everything about the mesh.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(file_error)?;
        let transaction = database.begin_write()?;
        let layout = {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get("layout")?.map(|found| found.value());
            if found.is_none() {
                meta.insert("layout", LAYOUT)?;
                meta.insert("newest", 0)?;
            }
            found.unwrap_or(LAYOUT)
        };
        if layout != LAYOUT {
            return Err(StoreError::Layout { path, found: layout });
        }
        revisions::create_tables(&transaction)?;
        tokens::create_tables(&transaction)?;
        addresses::create_tables(&transaction)?;
        workloads::create_tables(&transaction)?;
        transaction.commit()?;
        Ok(Self { database, history_limit: history_limit.max(1), group: group_commit::GroupCommit::default() })
    }

    fn read(&self) -> Result<redb::ReadTransaction, StoreError> {
        Ok(self.database.begin_read()?)
    }
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| StoreError::Record(e.to_string()))
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|e| StoreError::Record(e.to_string()))
}
