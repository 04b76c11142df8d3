//! Objects and how they became what they are.
//!
//! Tables: `revisions` (number -> who, when, why, what), `versions` (object and revision -> what it was from then on, or that it
//! was deleted), `heads` (object -> revision of its newest version, living ones only).

use std::collections::BTreeMap;

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{META, Store, StoreError, decode, encode, group_commit::Writer};
use crate::api::ObjectKey;

const REVISIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("revisions");
const VERSIONS: TableDefinition<'_, (&str, &str, &str, u64), &[u8]> = TableDefinition::new("versions");
const HEADS: TableDefinition<'_, (&str, &str, &str), u64> = TableDefinition::new("heads");

/// What to do with one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Store this; `metadata.generation`, `creationTimestamp`, `resourceVersion` and `status` are set by the store.
    Put(ObjectKey, serde_json::Value),
    /// Remove it; nothing happens when it does not exist.
    Delete(ObjectKey),
}

/// What happened to one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Created,
    Configured,
    Unchanged,
    Deleted,
}

impl Action {
    /// The word that the command line prints.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

/// One object's part in a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub object: ObjectKey,
    pub action: Action,
}

/// Who changed what, when and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    pub revision: u64,
    pub parent: u64,
    /// Milliseconds since 1970.
    pub time_unix_ms: i64,
    pub author: String,
    pub message: String,
    /// Never `Unchanged`.
    pub changes: Vec<Change>,
}

/// One object as it was from some revision on.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredObject {
    pub key: ObjectKey,
    /// The whole object, with the metadata that the store sets.
    pub json: serde_json::Value,
    /// Counts changes of anything but metadata and status, from 1.
    pub generation: u64,
    /// Revision that last changed it.
    pub revision: u64,
    pub created_unix: i64,
}

/// A living object as [`Store::newer`] finds it.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The version that the asker has is the newest.
    Known(ObjectKey),
    Newer(StoredObject),
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Newest revision afterwards; the old one when nothing changed.
    pub revision: u64,
    /// One for each edit, in their order.
    pub changes: Vec<Change>,
}

#[derive(Serialize, Deserialize)]
struct Version {
    /// `None`: deleted in this revision.
    json: Option<serde_json::Value>,
    generation: u64,
    created_unix: i64,
}

pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(REVISIONS)?;
    transaction.open_table(VERSIONS)?;
    transaction.open_table(HEADS)?;
    Ok(())
}

impl Store {
    /// Newest revision; 0 before the first change.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn newest(&self) -> Result<u64, StoreError> {
        let meta = self.read()?.open_table(META)?;
        Ok(meta.get("newest")?.map_or(0, |n| n.value()))
    }

    /// Does all edits as one revision, or none of them. No revision comes of edits that change nothing.
    ///
    /// `expected`: refuse unless this is the newest revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], or when the disk fails; nothing is changed then.
    pub fn write(
        &self,
        edits: &[Edit],
        expected: Option<u64>,
        author: &str,
        message: &str,
        now_unix_ms: i64,
    ) -> Result<Written, StoreError> {
        self.write_together(Writer::new(edits, expected, author, message, now_unix_ms))
    }

    /// What [`Self::write`] would do; changes nothing.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn preview(&self, edits: &[Edit]) -> Result<Written, StoreError> {
        let transaction = self.database.begin_write()?;
        let mut written = self.write_in(&transaction, &Writer::new(edits, None, "", "", 0))?;
        transaction.abort()?;
        written.revision = self.newest()?;
        Ok(written)
    }

    /// Does one writer's edits inside a transaction. After [`StoreError::Conflict`] the transaction is as it was.
    pub(super) fn write_in(&self, transaction: &WriteTransaction, writer: &Writer) -> Result<Written, StoreError> {
        let mut meta = transaction.open_table(META)?;
        let newest = meta.get("newest")?.map_or(0, |n| n.value());
        if let Some(expected) = writer.expected
            && expected != newest
        {
            return Err(StoreError::Conflict { expected, newest });
        }
        let mut heads = transaction.open_table(HEADS)?;
        let mut versions = transaction.open_table(VERSIONS)?;
        let revision = newest + 1;
        let now_unix = writer.now_unix_ms / 1000;
        let changes = writer
            .edits
            .iter()
            .map(|edit| apply(edit, revision, now_unix, &mut heads, &mut versions))
            .collect::<Result<Vec<_>, _>>()?;
        let effective: Vec<Change> = changes.iter().filter(|c| c.action != Action::Unchanged).cloned().collect();
        if effective.is_empty() {
            return Ok(Written { revision: newest, changes });
        }
        let mut revisions = transaction.open_table(REVISIONS)?;
        let record = Revision {
            revision,
            parent: newest,
            time_unix_ms: writer.now_unix_ms,
            author: writer.author.clone(),
            message: writer.message.clone(),
            changes: effective,
        };
        revisions.insert(revision, encode(&record)?.as_slice())?;
        meta.insert("newest", revision)?;
        forget(&mut revisions, &mut versions, self.history_limit)?;
        Ok(Written { revision, changes })
    }

    /// Every object as of `revision` (`None`: newest), by key.
    ///
    /// # Errors
    /// [`StoreError::NoRevision`] for one in the future or no longer kept.
    pub fn objects(&self, revision: Option<u64>) -> Result<Vec<StoredObject>, StoreError> {
        let transaction = self.read()?;
        let versions = transaction.open_table(VERSIONS)?;
        let mut out = Vec::new();
        let Some(revision) = revision else {
            for head in transaction.open_table(HEADS)?.iter()? {
                let (key, at) = head?;
                let ((kind, namespace, name), at) = (key.value(), at.value());
                if let Some(version) = versions.get((kind, namespace, name, at))? {
                    out.extend(stored((kind, namespace, name, at), version.value())?);
                }
            }
            return Ok(out);
        };
        self.require(revision)?;
        let mut newest: BTreeMap<ObjectKey, Option<StoredObject>> = BTreeMap::new();
        for row in versions.iter()? {
            let (key, version) = row?;
            let (kind, namespace, name, at) = key.value();
            if at <= revision {
                // Rows of one object come in order of revision: later ones replace earlier ones.
                newest.insert(object_key(kind, namespace, name), stored(key.value(), version.value())?);
            }
        }
        Ok(newest.into_values().flatten().collect())
    }

    /// The newest revision and every object as of it, by key; read and decoded only where `known` gives another revision for it.
    ///
    /// So a change in a mesh of ten thousand objects costs ten thousand looks, and not as many parsed documents.
    ///
    /// # Errors
    /// When the file or a record cannot be read.
    pub fn newer(&self, known: impl Fn(&ObjectKey) -> Option<u64>) -> Result<(u64, Vec<Found>), StoreError> {
        let transaction = self.read()?;
        let newest = transaction.open_table(META)?.get("newest")?.map_or(0, |n| n.value());
        let versions = transaction.open_table(VERSIONS)?;
        let mut out = Vec::new();
        for head in transaction.open_table(HEADS)?.iter()? {
            let (key, at) = head?;
            let ((kind, namespace, name), at) = (key.value(), at.value());
            let object = object_key(kind, namespace, name);
            if known(&object) == Some(at) {
                out.push(Found::Known(object));
            } else if let Some(version) = versions.get((kind, namespace, name, at))? {
                out.extend(stored((kind, namespace, name, at), version.value())?.map(Found::Newer));
            }
        }
        Ok((newest, out))
    }

    /// Newest first, at most `limit`; only those that touched `object` where one is given.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn history(&self, limit: usize, object: Option<&ObjectKey>) -> Result<Vec<Revision>, StoreError> {
        let revisions = self.read()?.open_table(REVISIONS)?;
        let mut out = Vec::new();
        for row in revisions.iter()?.rev() {
            if out.len() >= limit {
                break;
            }
            let record: Revision = decode(row?.1.value())?;
            if object.is_none_or(|key| record.changes.iter().any(|c| &c.object == key)) {
                out.push(record);
            }
        }
        Ok(out)
    }

    /// Makes everything as it was at `revision`, as a new revision.
    ///
    /// # Errors
    /// [`StoreError::NoRevision`]; [`StoreError::Conflict`] when somebody else changed something meanwhile.
    pub fn rollback(
        &self,
        revision: u64,
        author: &str,
        message: &str,
        now_unix_ms: i64,
    ) -> Result<Written, StoreError> {
        let newest = self.newest()?;
        let wanted = self.objects(Some(revision))?;
        let present = self.objects(None)?;
        let mut edits: Vec<Edit> = Vec::new();
        for object in &present {
            if !wanted.iter().any(|w| w.key == object.key) {
                edits.push(Edit::Delete(object.key.clone()));
            }
        }
        edits.extend(wanted.into_iter().map(|object| Edit::Put(object.key, object.json)));
        let mut written = self.write(&edits, Some(newest), author, message, now_unix_ms)?;
        written.changes.retain(|change| change.action != Action::Unchanged);
        Ok(written)
    }

    fn require(&self, revision: u64) -> Result<(), StoreError> {
        let newest = self.newest()?;
        let oldest = self.read()?.open_table(REVISIONS)?.first()?.map_or(1, |(first, _)| first.value());
        // Revision 0 is the empty mesh, as long as nothing was forgotten.
        if revision > newest || (revision < oldest && !(revision == 0 && oldest == 1)) {
            return Err(StoreError::NoRevision(revision));
        }
        Ok(())
    }
}

type Heads<'txn> = Table<'txn, (&'static str, &'static str, &'static str), u64>;
type Versions<'txn> = Table<'txn, (&'static str, &'static str, &'static str, u64), &'static [u8]>;

fn apply(
    edit: &Edit,
    revision: u64,
    now_unix: i64,
    heads: &mut Heads<'_>,
    versions: &mut Versions<'_>,
) -> Result<Change, StoreError> {
    let (Edit::Put(key, _) | Edit::Delete(key)) = edit;
    let head = (key.kind.as_str(), key.namespace.as_str(), key.name.as_str());
    let at = |revision| (head.0, head.1, head.2, revision);
    let present: Option<(u64, Version)> = match heads.get(head)?.map(|r| r.value()) {
        Some(last) => versions.get(at(last))?.map(|v| decode(v.value())).transpose()?.map(|version| (last, version)),
        None => None,
    };
    let done = |action| Ok(Change { object: key.clone(), action });
    match (edit, present) {
        (Edit::Delete(_), None) => done(Action::Unchanged),
        (Edit::Delete(_), Some((_, old))) => {
            let gone = Version { json: None, ..old };
            versions.insert(at(revision), encode(&gone)?.as_slice())?;
            heads.remove(head)?;
            done(Action::Deleted)
        }
        (Edit::Put(_, json), present) => {
            let mut json = json.clone();
            strip(&mut json);
            if let Some((_, Version { json: Some(old), .. })) = &present
                && *old == json
            {
                return done(Action::Unchanged);
            }
            let (generation, created_unix) = match &present {
                Some((_, old)) if old.json.as_ref().map(body) == Some(body(&json)) => {
                    (old.generation, old.created_unix)
                }
                Some((_, old)) => (old.generation + 1, old.created_unix),
                None => (1, now_unix),
            };
            let version = Version { json: Some(json), generation, created_unix };
            versions.insert(at(revision), encode(&version)?.as_slice())?;
            heads.insert(head, revision)?;
            done(if present.is_some() { Action::Configured } else { Action::Created })
        }
    }
}

/// Forgets the oldest revisions beyond `limit`, and versions of objects that only they needed.
fn forget(
    revisions: &mut Table<'_, u64, &'static [u8]>,
    versions: &mut Versions<'_>,
    limit: u64,
) -> Result<(), StoreError> {
    use redb::ReadableTableMetadata as _;
    while revisions.len()? > limit {
        let Some(oldest) = revisions.pop_first()?.map(|(r, _)| r.value()) else { return Ok(()) };
        let Some(next) = revisions.get(oldest + 1)?.map(|r| decode::<Revision>(r.value())).transpose()? else {
            continue;
        };
        // What the new oldest revision replaced is not visible from any kept revision.
        for change in next.changes {
            let ObjectKey { kind, namespace, name } = &change.object;
            let (kind, namespace, name) = (kind.as_str(), namespace.as_str(), name.as_str());
            versions.retain_in((kind, namespace, name, 0)..(kind, namespace, name, oldest + 1), |_, _| false)?;
        }
    }
    Ok(())
}

fn object_key(kind: &str, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}

fn stored(
    (kind, namespace, name, revision): (&str, &str, &str, u64),
    bytes: &[u8],
) -> Result<Option<StoredObject>, StoreError> {
    let Version { json, generation, created_unix } = decode(bytes)?;
    Ok(json.map(|mut json| {
        if let Some(metadata) = json.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
            metadata.insert("generation".to_owned(), generation.into());
            metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
            if let Ok(created) = jiff::Timestamp::from_second(created_unix) {
                metadata.insert("creationTimestamp".to_owned(), created.to_string().into());
            }
        }
        StoredObject { key: object_key(kind, namespace, name), json, generation, revision, created_unix }
    }))
}

/// The object as its author wrote it: without what the store sets itself.
#[must_use]
pub fn without_server_fields(mut json: serde_json::Value) -> serde_json::Value {
    strip(&mut json);
    json
}

/// Removes what the store sets itself.
fn strip(json: &mut serde_json::Value) {
    let Some(object) = json.as_object_mut() else { return };
    object.remove("status");
    if let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        for field in ["generation", "resourceVersion", "creationTimestamp", "uid", "managedFields"] {
            metadata.remove(field);
        }
    }
}

/// What counts for the generation: everything but the metadata.
fn body(json: &serde_json::Value) -> Vec<(&String, &serde_json::Value)> {
    json.as_object().into_iter().flatten().filter(|(field, _)| *field != "metadata").collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        object_key("Service", "shop", name)
    }

    fn put(name: &str, port: u32) -> Edit {
        let json = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"port": port}});
        Edit::Put(key(name), json)
    }

    fn open() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 10_000).unwrap();
        (folder, store)
    }

    fn ports(store: &Store, revision: Option<u64>) -> Vec<(String, u64)> {
        let objects = store.objects(revision).unwrap();
        objects.into_iter().map(|o| (o.key.name, o.json["spec"]["port"].as_u64().unwrap())).collect()
    }

    #[test]
    fn generation_counts_spec_changes_only() {
        // Status tools compare generations to see whether a change has been taken in.
        let (_folder, store) = open();
        store.write(&[put("a", 1)], None, "me", "", 5_000).unwrap();
        let same = store.write(&[put("a", 1)], None, "me", "", 6_000).unwrap();
        assert_eq!((same.revision, same.changes[0].action), (1, Action::Unchanged));
        let Edit::Put(k, mut labelled) = put("a", 1) else { unreachable!() };
        labelled["metadata"]["labels"] = json!({"x": "y"});
        labelled["metadata"]["resourceVersion"] = json!("77");
        labelled["status"] = json!({"written": "by somebody"});
        store.write(&[Edit::Put(k, labelled)], None, "me", "", 7_000).unwrap();
        assert_eq!(store.objects(None).unwrap()[0].generation, 1);
        store.write(&[put("a", 2)], None, "me", "", 8_000).unwrap();
        let object = store.objects(None).unwrap().remove(0);
        assert_eq!((object.generation, object.revision, object.created_unix), (2, 3, 5));
        assert_eq!(object.json["metadata"]["creationTimestamp"], "1970-01-01T00:00:05Z");
        assert!(object.json.get("status").is_none());
    }

    #[test]
    fn a_stale_writer_is_refused_and_nothing_changes() {
        // Two people applying at once must not overwrite each other unnoticed.
        let (_folder, store) = open();
        store.write(&[put("a", 1)], Some(0), "me", "", 0).unwrap();
        let error = store.write(&[put("a", 2), put("b", 1)], Some(0), "you", "", 0).unwrap_err();
        assert!(matches!(error, StoreError::Conflict { expected: 0, newest: 1 }));
        assert_eq!(ports(&store, None), [("a".to_owned(), 1)]);
        assert_eq!(store.history(10, None).unwrap().len(), 1);
    }

    #[test]
    fn rollback_is_a_new_revision_that_restores_everything() {
        // Rolling back must bring back deleted objects and remove new ones, and must itself be undoable.
        let (_folder, store) = open();
        store.write(&[put("a", 1), put("b", 1)], None, "me", "first", 0).unwrap();
        store.write(&[put("a", 2), Edit::Delete(key("b")), put("c", 1)], None, "me", "second", 0).unwrap();
        let back = store.rollback(1, "me", "undo", 0).unwrap();
        assert_eq!((back.revision, back.changes.len()), (3, 3));
        assert_eq!(ports(&store, None), ports(&store, Some(1)));
        assert_eq!(store.rollback(2, "me", "redo", 0).unwrap().revision, 4);
        assert_eq!(ports(&store, None), ports(&store, Some(2)));
        assert_eq!(store.history(10, Some(&key("c"))).unwrap().len(), 3);
        assert!(matches!(store.rollback(9, "me", "", 0), Err(StoreError::NoRevision(9))));
        assert!(ports(&store, Some(0)).is_empty());
    }

    #[test]
    fn only_what_is_newer_is_read() {
        // An object that is taken for unchanged although it is not would never reach any proxy.
        let (_folder, store) = open();
        store.write(&[put("a", 1), put("b", 1), put("c", 1)], None, "me", "", 0).unwrap();
        store.write(&[put("b", 2), Edit::Delete(key("c"))], None, "me", "", 0).unwrap();
        let look = |known: &[(&str, u64)]| {
            let (newest, found) =
                store.newer(|object| known.iter().find(|(name, _)| *name == object.name).map(|(_, at)| *at)).unwrap();
            assert_eq!(newest, 2);
            let shown = found.into_iter().map(|found| match found {
                Found::Known(key) => key.name,
                Found::Newer(object) => {
                    format!("{} of {}: {}", object.key.name, object.revision, object.json["spec"]["port"])
                }
            });
            shown.collect::<Vec<_>>()
        };
        assert_eq!(look(&[]), ["a of 1: 1", "b of 2: 2"]);
        assert_eq!(look(&[("a", 1), ("b", 1), ("c", 1)]), ["a", "b of 2: 2"]);
        assert_eq!(look(&[("a", 1), ("b", 2)]), ["a", "b"]);
    }

    #[test]
    fn a_restart_finds_everything() {
        // An acknowledged apply must be there after a crash.
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 10).unwrap();
        store.write(&[put("a", 1)], None, "me", "why", 0).unwrap();
        drop(store);
        let store = Store::open(folder.path(), 10).unwrap();
        assert_eq!((store.newest().unwrap(), ports(&store, None).len()), (1, 1));
        assert_eq!(store.history(1, None).unwrap()[0].message, "why");
        assert!(Store::open(folder.path(), 10).is_err(), "two control planes must not share a folder");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 10))]
        #[test]
        fn every_kept_revision_reads_as_it_was(
            edits in proptest::collection::vec(proptest::collection::vec((0..4_u8, 0..4_u32), 1..4), 1..14),
            limit in 1..6_u64,
        ) {
            // History must not drift when old revisions are forgotten.
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path(), limit).unwrap();
            let mut model: BTreeMap<String, u64> = BTreeMap::new();
            let mut past: Vec<(u64, BTreeMap<String, u64>)> = Vec::new();
            for revision in edits {
                let mut batch: BTreeMap<String, Edit> = BTreeMap::new();
                for (name, port) in revision {
                    let name = format!("o{name}");
                    batch.insert(name.clone(), if port == 0 { Edit::Delete(key(&name)) } else { put(&name, port) });
                    if port == 0 { model.remove(&name); } else { model.insert(name, port.into()); }
                }
                let batch: Vec<Edit> = batch.into_values().collect();
                // The model applied edits of one name in order, the store only the last: the same outcome.
                let written = store.write(&batch, None, "me", "", 0).unwrap();
                past.retain(|(r, _)| *r != written.revision);
                past.push((written.revision, model.clone()));
                let kept = store.history(100, None).unwrap();
                prop_assert!(kept.len() as u64 <= limit);
                for (r, expected) in &past {
                    if kept.iter().any(|k| k.revision == *r) {
                        let found: BTreeMap<String, u64> = ports(&store, Some(*r)).into_iter().collect();
                        prop_assert_eq!(&found, expected, "revision {}", r);
                    }
                }
            }
        }
    }
}
