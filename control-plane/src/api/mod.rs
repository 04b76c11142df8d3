//! What users write: Kubernetes-shaped objects, read into typed specs and checked on the way.
//!
//! `parse` reads texts (YAML or JSON, many documents, lists), `from_json` reads stored objects. What one object says
//! is judged here; what it means together with others is judged by `model`. Nothing here does I/O.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub use crate::validate::{Problem, Severity, reference};

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Location {
    /// File name as the user gave it; empty when there was none.
    #[serde(with = "shared_text")]
    pub file: Arc<str>,
    /// Counted from 1; 0 when unknown.
    pub line: u32,
    /// Counted from 1 in characters; 0 when unknown.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return formatter.write_str(&self.file);
        }
        write!(formatter, "{}:{}", self.file, self.line)
    }
}

mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Arc::from)
    }
}

/// What identifies an object. Ordered by kind, namespace, name. Prints as `Kind namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Canonical kind.
    pub kind: String,
    /// Empty for kinds without a namespace.
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return write!(formatter, "{} {}", self.kind, self.name);
        }
        write!(formatter, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// One object, read and found in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// As written, for example `gateway.networking.k8s.io/v1`.
    pub api_version: String,
    /// Canonical kind.
    pub kind: String,
    /// Empty for kinds without a namespace.
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The typed spec.
    pub spec: Spec,
    /// The object as written, with canonical kind and its namespace filled in.
    pub json: serde_json::Value,
    pub location: Location,
    /// `metadata.generation`; 0 when there is none.
    pub generation: u64,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 when there is none, which counts as oldest.
    pub created_unix: i64,
}

impl Object {
    /// What identifies it.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind.clone(), namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// The typed spec of a supported kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// Kinds that are stored and have no effect of their own: Namespace, ServiceAccount.
    Inert,
}

/// Reads many documents. Objects with errors are left out; their problems say why. Never panics.
pub fn parse(_file: &str, _text: &str, _default_namespace: &str) -> (Vec<Object>, Vec<Problem>) {
    (Vec::new(), Vec::new())
}

/// Reads one stored object; warnings are dropped.
///
/// # Errors
/// All problems, when at least one is an error.
pub fn from_json(_value: &serde_json::Value, _location: Location) -> Result<Object, Vec<Problem>> {
    Err(Vec::new())
}

/// The canonical kind for what a user typed: any case, plural, or the usual short name (`svc`, `httproutes`, `dr`).
/// `None` for what is not a supported kind.
pub fn canonical_kind(_user_text: &str) -> Option<&'static str> {
    None
}
