//! Applies, compares and shows what users wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use outrigger_proto::admin::{self, Document, ObjectDiff};
use serde_json::Value as Json;

use crate::{
    api::{self, Object, ObjectKey},
    model::{Inputs, Mesh, MeshSettings, needs_virtual_address},
    pipeline::{self, Picture},
    registry::Registry,
    store::{Action, Change, Edit, Store, StoreError, StoredObject, without_server_fields},
    validate::{Problem, codes},
};

/// What documents came to.
pub struct Checked {
    pub objects: Vec<Object>,
    pub problems: Vec<Problem>,
}

impl Checked {
    /// Was anything wrong enough to refuse everything?
    pub fn is_refused(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }

    /// The edits that store these objects.
    pub fn edits(&self) -> Vec<Edit> {
        self.objects.iter().map(|object| Edit::Put(object.key(), object.json.clone())).collect()
    }
}

/// Reads documents and checks them, alone and together with what is stored.
///
/// # Errors
/// When the store cannot be read.
pub fn check(
    documents: &[Document],
    namespace: &str,
    store: &Store,
    picture: &Picture,
    registry: &Registry,
    settings: &MeshSettings,
) -> Result<Checked, StoreError> {
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    let (mut objects, mut problems): (Vec<Object>, Vec<Problem>) = (Vec::new(), Vec::new());
    let mut seen: BTreeSet<ObjectKey> = BTreeSet::new();
    for document in documents {
        let (read, found) = api::parse(&document.file, &document.text, namespace);
        problems.extend(found);
        for object in read {
            if seen.insert(object.key()) {
                objects.push(object);
            } else if !problems.iter().any(|p| p.code == codes::SAME_OBJECT.code && p.object == Some(object.key())) {
                let problem = Problem::new(&codes::SAME_OBJECT, format!("{} is defined twice", object.key()))
                    .about(&object)
                    .effect("only one of the two could be stored")
                    .fix("remove one of them");
                problems.push(problem);
            }
        }
    }
    let checked = Checked { objects, problems };
    if checked.is_refused() {
        return Ok(checked);
    }
    let together = together(&checked.objects, store, picture, registry, settings)?;
    let Checked { objects, mut problems } = checked;
    problems.extend(together.into_iter().filter(|p| p.object.as_ref().is_some_and(|key| seen.contains(key))));
    Ok(Checked { objects, problems })
}

/// Problems of the whole mesh as it would be.
fn together(
    new: &[Object],
    store: &Store,
    picture: &Picture,
    registry: &Registry,
    settings: &MeshSettings,
) -> Result<Vec<Problem>, StoreError> {
    let mut all: BTreeMap<ObjectKey, Arc<Object>> = BTreeMap::new();
    if picture.revision == store.newest()? {
        all.extend(picture.objects.iter().map(|object| (object.key(), Arc::clone(object))));
    } else {
        for stored in store.objects(None)? {
            if let Ok(object) = pipeline::parse(&stored) {
                all.insert(stored.key, Arc::new(object));
            }
        }
    }
    for object in new {
        let mut object = object.clone();
        if let Some(present) = all.get(&object.key()) {
            object.created_unix = present.created_unix;
        } else {
            // New ones are younger than everything that is stored: that decides conflicts.
            object.created_unix = i64::MAX;
        }
        all.insert(object.key(), Arc::new(object));
    }
    let objects: Vec<Arc<Object>> = all.into_values().collect();
    let addresses =
        needs_virtual_address(&objects, settings).into_iter().map(|service| (service, Vec::new())).collect();
    let (_, workloads) = registry.workloads();
    let inputs = Inputs { objects: &objects, workloads: &workloads, virtual_addresses: &addresses, settings };
    Ok(Mesh::build(inputs).1)
}

/// What applying these objects would change, shown as YAML on both sides.
///
/// # Errors
/// When the store cannot be read.
pub fn diff_documents(objects: &[Object], store: &Store) -> Result<Vec<ObjectDiff>, StoreError> {
    let present: BTreeMap<ObjectKey, StoredObject> =
        store.objects(None)?.into_iter().map(|object| (object.key.clone(), object)).collect();
    let edits: Vec<Edit> = objects.iter().map(|object| Edit::Put(object.key(), object.json.clone())).collect();
    let changes = store.preview(&edits)?.changes;
    let diffs = objects.iter().zip(changes).map(|(object, change)| {
        let before = present.get(&change.object).map(|stored| yaml(&stored.json)).unwrap_or_default();
        ObjectDiff {
            object: Some(key(&change.object)),
            action: change.action.word().to_owned(),
            before,
            after: yaml(&object.json),
        }
    });
    Ok(diffs.filter(|d| d.action != Action::Unchanged.word()).collect())
}

/// What differs between two revisions; `to` `None` is the newest.
///
/// # Errors
/// When one of them does not exist or is no longer kept.
pub fn diff_revisions(from: u64, to: Option<u64>, store: &Store) -> Result<Vec<ObjectDiff>, StoreError> {
    let read = |revision| -> Result<BTreeMap<ObjectKey, Json>, StoreError> {
        Ok(store
            .objects(revision)?
            .into_iter()
            .map(|object| (object.key, without_server_fields(object.json)))
            .collect())
    };
    let (before, after) = (read(Some(from))?, read(to)?);
    let keys: BTreeSet<&ObjectKey> = before.keys().chain(after.keys()).collect();
    let mut diffs = Vec::new();
    for object in keys {
        let action = match (before.get(object), after.get(object)) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(_), Some(_)) => Action::Configured,
            (None, _) => Action::Created,
            (_, None) => Action::Deleted,
        };
        diffs.push(ObjectDiff {
            object: Some(key(object)),
            action: action.word().to_owned(),
            before: before.get(object).map(yaml).unwrap_or_default(),
            after: after.get(object).map(yaml).unwrap_or_default(),
        });
    }
    Ok(diffs)
}

/// An object as users write it.
fn yaml(json: &Json) -> String {
    let plain = without_server_fields(json.clone());
    // JSON is YAML too: readable, if less so.
    serde_saphyr::to_string(&plain).unwrap_or_else(|_| plain.to_string())
}

/// A key in the admin side's words.
pub fn key(key: &ObjectKey) -> admin::ObjectKey {
    admin::ObjectKey { kind: key.kind.clone(), namespace: key.namespace.clone(), name: key.name.clone() }
}

/// A change in the admin side's words.
pub fn change(change: &Change) -> admin::Change {
    admin::Change { object: Some(key(&change.object)), action: change.action.word().to_owned() }
}

/// A problem in the admin side's words.
pub fn problem(problem: &Problem) -> admin::Problem {
    let location = problem.location.as_ref();
    admin::Problem {
        code: problem.code.to_owned(),
        severity: problem.severity.to_string(),
        object: problem.object.as_ref().map(key),
        file: location.map(|l| l.file.to_string()).unwrap_or_default(),
        line: location.map_or(0, |l| l.line),
        column: location.map_or(0, |l| l.column),
        path: problem.path.clone(),
        message: problem.message.clone(),
        effect: problem.effect.clone(),
        fix: problem.fix.clone(),
        snippet: problem.snippet.clone(),
    }
}
