//! Writers that come at once share one wait for the disk.
//!
//! Used by [`Store::write`]. A sync of the disk takes milliseconds, whatever is in it, so those who come while one is under way are
//! collected: the first of them to get the turn does the edits of all, each as its own revision and in the order in which
//! they came, in one transaction. Nobody is answered before the disk has it. Writers block, so there are never more of them waiting
//! than threads that may block.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    Store, StoreError,
    revisions::{Action, Edit, Written},
};

/// Who waits, and whose turn it is.
#[derive(Default)]
pub(super) struct GroupCommit {
    waiting: Mutex<Vec<Arc<Writer>>>,
    turn: Mutex<()>,
}

/// One change, and what came of it.
pub(super) struct Writer {
    pub(super) edits: Vec<Edit>,
    pub(super) expected: Option<u64>,
    pub(super) author: String,
    pub(super) message: String,
    pub(super) now_unix_ms: i64,
    done: Mutex<Option<Result<Written, StoreError>>>,
}

impl Writer {
    pub(super) fn new(edits: &[Edit], expected: Option<u64>, author: &str, message: &str, now_unix_ms: i64) -> Self {
        Self {
            edits: edits.to_vec(),
            expected,
            author: author.to_owned(),
            message: message.to_owned(),
            now_unix_ms,
            done: Mutex::new(None),
        }
    }
}

impl Store {
    /// Does what this writer wants, together with whoever waits too; returns when it is on disk.
    pub(super) fn write_together(&self, writer: Writer) -> Result<Written, StoreError> {
        let mine = Arc::new(writer);
        self.group.waiting.lock().push(Arc::clone(&mine));
        let _turn = self.group.turn.lock();
        if mine.done.lock().is_none() {
            let group = std::mem::take(&mut *self.group.waiting.lock());
            self.commit(&group);
        }
        // Only a thread that died in the middle of a commit leaves somebody without an answer.
        let interrupted = || Err(StoreError::Record("writing was interrupted".to_owned()));
        mine.done.lock().take().unwrap_or_else(interrupted)
    }

    fn commit(&self, group: &[Arc<Writer>]) {
        match self.try_commit(group) {
            Ok(results) => {
                for (writer, result) in group.iter().zip(results) {
                    *writer.done.lock() = Some(result);
                }
            }
            Err(error) => match group {
                [only] => *only.done.lock() = Some(Err(error)),
                // Nothing of it was stored. Each for itself now, so that nobody fails for what another wanted.
                several => several.iter().for_each(|writer| self.commit(std::slice::from_ref(writer))),
            },
        }
    }

    /// One transaction for all. An error means that nothing was stored, for anybody.
    fn try_commit(&self, group: &[Arc<Writer>]) -> Result<Vec<Result<Written, StoreError>>, StoreError> {
        let transaction = self.database.begin_write()?;
        let mut results = Vec::with_capacity(group.len());
        for writer in group {
            match self.write_in(&transaction, writer) {
                // Found before anything was touched.
                Err(conflict @ StoreError::Conflict { .. }) => results.push(Err(conflict)),
                result => results.push(Ok(result?)),
            }
        }
        let is_changed = |written: &Written| written.changes.iter().any(|change| change.action != Action::Unchanged);
        if results.iter().flatten().any(is_changed) {
            transaction.commit()?;
        } else {
            // What is there already was synced by whoever wrote it.
            transaction.abort()?;
        }
        Ok(results)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{collections::BTreeSet, thread, time::Duration};

    use serde_json::json;

    use super::*;
    use crate::api::ObjectKey;

    fn put(name: &str, port: u64) -> Edit {
        let key = ObjectKey { kind: "Service".to_owned(), namespace: "shop".to_owned(), name: name.to_owned() };
        Edit::Put(key, json!({"metadata": {"name": name}, "spec": {"port": port}}))
    }

    #[test]
    fn many_writers_at_once_lose_nothing_and_share_no_revision() {
        // An acknowledged change that is gone after a restart, or two changes under one number.
        const WRITERS: u64 = 8;
        const CHANGES: u64 = 20;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 10_000).unwrap();
        let written: Vec<(String, u64, u64)> = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let store = &store;
                    scope.spawn(move || {
                        (1..=CHANGES)
                            .map(|port| {
                                let name = format!("s{writer}");
                                let written = store.write(&[put(&name, port)], None, &name, "", 0).unwrap();
                                // Acknowledged means visible.
                                assert!(store.newest().unwrap() >= written.revision);
                                (name, port, written.revision)
                            })
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        drop(store);
        let store = Store::open(folder.path(), 10_000).unwrap();
        let revisions: BTreeSet<u64> = written.iter().map(|(_, _, revision)| *revision).collect();
        assert_eq!(revisions, (1..=WRITERS * CHANGES).collect());
        for (name, port, revision) in written {
            let objects = store.objects(Some(revision)).unwrap();
            let object = objects.iter().find(|object| object.key.name == name).unwrap();
            assert_eq!((&object.json["spec"]["port"], object.revision), (&json!(port), revision));
        }
    }

    #[test]
    fn those_who_wait_go_together_and_one_that_is_refused_harms_nobody() {
        // One stale writer must not undo what others were told is stored, and ten waiting writers must not wait ten times.
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 10_000).unwrap();
        let turn = store.group.turn.lock();
        let results: Vec<_> = thread::scope(|scope| {
            let write = |name: &'static str, expected| {
                let store = &store;
                scope.spawn(move || store.write(&[put(name, 1)], expected, name, "", 0))
            };
            let mut writers = Vec::new();
            for (count, (name, expected)) in [("a", None), ("b", Some(7)), ("c", None)].into_iter().enumerate() {
                writers.push(write(name, expected));
                while store.group.waiting.lock().len() <= count {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            drop(turn);
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(results[0].as_ref().unwrap().revision, 1);
        assert!(matches!(results[1], Err(StoreError::Conflict { expected: 7, newest: 1 })), "{:?}", results[1]);
        assert_eq!(results[2].as_ref().unwrap().revision, 2, "in the order in which they came");
        let again = store.write(&[put("a", 1)], Some(2), "a", "", 0).unwrap();
        assert_eq!((again.revision, store.newest().unwrap()), (2, 2), "what changes nothing is no revision");
    }
}
