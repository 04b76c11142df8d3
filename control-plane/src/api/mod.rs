//! What users write: Kubernetes-shaped objects, read into typed specs and checked on the way.
//!
//! `parse` reads texts (YAML or JSON, many documents, lists), `from_json` reads stored objects. What one object says
//! is judged here; what it means together with others is judged by `model`. Nothing here does I/O.

pub mod circuit_breaker;
pub mod core;
mod fields;
pub mod gateway;
pub mod istio;
mod kinds;
pub mod load_balancer;
mod node;
mod sticky;
pub(crate) mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use fields::{Field, Fields, Report};
pub use fields::{FieldUse, Place};
use kinds::{Found, KindEntry, Support};
use node::{Node, Value};

use crate::validate::codes;
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
    Service(core::Service),
    EndpointSlice(core::EndpointSlice),
    WorkloadEntry(istio::WorkloadEntry),
    ServiceEntry(istio::ServiceEntry),
    DestinationRule(istio::DestinationRule),
    PeerAuthentication(istio::PeerAuthentication),
    HttpRoute(gateway::HttpRoute),
    TcpRoute(gateway::TcpRoute),
    CircuitBreaker(circuit_breaker::CircuitBreaker),
    /// Kinds that are stored and have no effect of their own: Namespace, ServiceAccount.
    Inert,
}

/// Reads many documents. Objects with errors are left out; their problems say why. Never panics.
///
/// `default_namespace` is for objects that name none. A list (`kind: List`) stands for its items.
pub fn parse(file: &str, text: &str, default_namespace: &str) -> (Vec<Object>, Vec<Problem>) {
    let file: Arc<str> = file.into();
    let lines: Vec<&str> = text.lines().collect();
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    let mut seen: BTreeMap<ObjectKey, Location> = BTreeMap::new();
    for document in node::read(text) {
        let document = match document {
            Ok(document) => document,
            Err(error) => {
                let report =
                    Report::new(file.clone(), Some(&lines), Location { file: file.clone(), line: 0, column: 0 });
                report.add(error.line, error.column, Problem::new(&codes::SYNTAX, error.message));
                problems.extend(report.finish());
                continue;
            }
        };
        for item in items(&document) {
            let fallback = Location { file: file.clone(), line: item.line, column: item.column };
            let (object, mut found) = read_object(item, file.clone(), Some(&lines), fallback, default_namespace);
            if let Some(object) = object {
                match seen.get(&object.key()) {
                    None => {
                        seen.insert(object.key(), object.location.clone());
                        objects.push(object);
                    }
                    Some(first) => found.push(
                        Problem::new(&codes::SAME_OBJECT, format!("{} is already defined at {first}", object.key()))
                            .about(&object)
                            .fix("remove one of the two, or give it another name"),
                    ),
                }
            }
            problems.extend(found);
        }
    }
    (objects, problems)
}

/// Reads one stored object; warnings are dropped.
///
/// # Errors
/// All problems, when at least one is an error.
pub fn from_json(value: &serde_json::Value, location: Location) -> Result<Object, Vec<Problem>> {
    let (object, problems) = check_json(value, location);
    object.ok_or(problems)
}

/// Reads one stored object and tells everything about it: warnings too, also when it is in order.
pub fn check_json(value: &serde_json::Value, location: Location) -> (Option<Object>, Vec<Problem>) {
    let node = Node::from_json(value);
    read_object(&node, location.file.clone(), None, location, "default")
}

/// What the readers of the kinds in a text do with the fields they know: by kind, then by path
/// (`spec.rules[].matches[].path.value`). Fields inside an object are known only where the text has that object, so the
/// reference is made from documents that set everything.
pub fn field_uses(text: &str) -> BTreeMap<String, BTreeMap<String, BTreeSet<FieldUse>>> {
    let mut uses: BTreeMap<String, BTreeMap<String, BTreeSet<FieldUse>>> = BTreeMap::new();
    let file: Arc<str> = "".into();
    for document in node::read(text).into_iter().flatten() {
        let mut report = Report::new(file.clone(), None, Location { file: file.clone(), line: 0, column: 0 });
        report.remember_asked();
        if let Some(start) = read_start(&document, &report, "default") {
            let kind = start.entry.kind.to_owned();
            read_rest(&document, &report, start, report.fallback.clone());
            let of_kind = uses.entry(kind).or_default();
            for (path, found) in report.asked() {
                of_kind.entry(path).or_default().extend(found);
            }
        }
    }
    uses
}

/// Every kind that is known, as a table in Markdown: in which versions, and what becomes of it.
pub fn kinds_reference() -> String {
    let mut text = String::from("| kind | apiVersion | what becomes of it |\n|---|---|---|\n");
    for entry in kinds::KINDS {
        let versions: Vec<String> = match entry.versions {
            [] => vec![format!("{}/*", entry.group)],
            versions if entry.group.is_empty() => versions.iter().map(ToString::to_string).collect(),
            versions => versions.iter().map(|version| format!("{}/{version}", entry.group)).collect(),
        };
        let outcome = match entry.support {
            Support::Read(_) => "understood".to_owned(),
            Support::Inert => "stored; has no effect of its own".to_owned(),
            Support::No(code, effect) => format!("{}, {} ({effect})", code.code, code.severity),
        };
        text.push_str(&format!("| {} | `{}` | {outcome} |\n", entry.kind, versions.join("`, `")));
    }
    text
}

/// The canonical kind for what a user typed: any case, plural, or the usual short name (`svc`, `httproutes`, `dr`).
/// `None` for what is not a supported kind.
pub fn canonical_kind(user_text: &str) -> Option<&'static str> {
    kinds::canonical(user_text)
}

/// Whether objects of a kind, given by its canonical name, live in a namespace.
pub fn is_namespaced(kind: &str) -> bool {
    kinds::KINDS.iter().find(|entry| entry.kind == kind).is_none_or(|entry| entry.namespaced)
}

fn items(document: &Node) -> Vec<&Node> {
    let is_list =
        matches!(document.field("kind").map(|kind| &kind.value), Some(Value::Text(kind)) if kind.ends_with("List"));
    match document.field("items").map(|items| &items.value) {
        Some(Value::List(items)) if is_list => items.iter().collect(),
        _ => vec![document],
    }
}

/// Longest name of an object, in bytes.
const NAME_LIMIT_BYTES: usize = 253;

fn read_object(
    node: &Node,
    file: Arc<str>,
    lines: Option<&[&str]>,
    fallback: Location,
    default_namespace: &str,
) -> (Option<Object>, Vec<Problem>) {
    let mut report = Report::new(file, lines, fallback.clone());
    let Some(start) = read_start(node, &report, default_namespace) else { return (None, report.finish()) };
    report.object = Some(ObjectKey {
        kind: start.entry.kind.to_owned(),
        namespace: start.namespace.clone(),
        name: start.name.clone(),
    });
    let object = read_rest(node, &report, start, fallback);
    let object = object.filter(|_| !report.has_errors());
    (object, report.finish())
}

/// What must be known before problems can name the object.
struct Start {
    api_version: String,
    entry: &'static KindEntry,
    namespace: String,
    name: String,
}

fn read_start(node: &Node, report: &Report<'_>, default_namespace: &str) -> Option<Start> {
    let root = Field { node, path: String::new(), report };
    if !matches!(node.value, Value::Map(_)) {
        root.problem(
            &codes::NOT_AN_OBJECT,
            format!("this is {}, not an object with apiVersion, kind, metadata and spec", node.value.noun()),
        );
        return None;
    }
    let mut fields = Fields::new(root);
    let (api_version, kind) = (fields.require("apiVersion"), fields.require("kind"));
    let (api_version, kind_field) = (api_version?, kind?);
    let (api_version_text, kind) = (api_version.text()?, kind_field.text()?);
    let entry = match kinds::find(&api_version_text, &kind) {
        Found::Entry(entry) => entry,
        Found::Other => {
            kind_field.say(
                Problem::new(&codes::KIND_NOT_SUPPORTED, format!("{kind} has no meaning for the mesh"))
                    .effect("it is left out"),
            );
            return None;
        }
        Found::WrongVersion(versions) => {
            let message = format!("there is no kind {kind} in \"{api_version_text}\"");
            api_version.problem_with_fix(
                &codes::UNKNOWN_API_VERSION,
                message,
                format!("write {}", versions.join(" or ")),
            );
            return None;
        }
        Found::Unknown(near) => {
            let message = format!("there is no kind \"{kind}\" in \"{api_version_text}\"");
            let fix = near.map_or_else(
                || "see the list of kinds in the documentation".to_owned(),
                |near| format!("did you mean {near}?"),
            );
            kind_field.problem_with_fix(&codes::UNKNOWN_KIND, message, fix);
            return None;
        }
    };
    let metadata = fields.require("metadata")?;
    let mut metadata = metadata.object()?;
    let name = metadata.require("name")?.text()?;
    let namespace = match metadata.get("namespace") {
        _ if !entry.namespaced => String::new(),
        Some(field) => field.text()?,
        None => default_namespace.to_owned(),
    };
    Some(Start { api_version: api_version_text, entry, namespace, name })
}

fn check_names(metadata: &mut Fields<'_>, start: &Start) {
    let Some(name_field) = metadata.get("name") else { return };
    // The name of a Service is one label of its host name.
    let one_label = start.entry.kind == "Service";
    if start.name.len() > NAME_LIMIT_BYTES
        || !values::is_dns_name(&start.name)
        || (one_label && !values::is_dns_label(&start.name))
    {
        let fix = if one_label {
            "use lower-case letters, digits and \"-\", at most 63"
        } else {
            "use lower-case letters, digits, \"-\" and \".\""
        };
        name_field.problem_with_fix(&codes::BAD_NAME, format!("\"{}\" is not a valid name", start.name), fix);
    }
    if start.entry.namespaced && !values::is_dns_label(&start.namespace) {
        let field = metadata.get("namespace").unwrap_or(name_field);
        field.problem_with_fix(
            &codes::BAD_NAME,
            format!("\"{}\" is not a valid namespace", start.namespace),
            "use lower-case letters, digits and \"-\", at most 63",
        );
    }
}

fn read_rest(node: &Node, report: &Report<'_>, start: Start, location: Location) -> Option<Object> {
    let mut fields = Fields::new(Field { node, path: String::new(), report });
    fields.without_effect(&["apiVersion", "status"]);
    let kind = fields.get("kind")?;
    if let Support::No(code, effect) = start.entry.support {
        let verb =
            if code.code == codes::NEVER_SUPPORTED.code { "cannot be supported" } else { "is not supported yet" };
        kind.say(Problem::new(code, format!("{} {verb}", start.entry.kind)).effect(effect));
        return None;
    }
    let mut metadata = fields.object("metadata")?;
    check_names(&mut metadata, &start);
    metadata.without_effect(&[
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
    ]);
    let labels = metadata.get("labels").map(|field| field.labels()).unwrap_or_default();
    let annotations = metadata.get("annotations").map(|field| field.texts()).unwrap_or_default();
    let generation = metadata.get("generation").and_then(|field| field.number(0, i64::MAX as u64)).unwrap_or(0);
    let created_unix = metadata.get("creationTimestamp").and_then(|field| {
        let text = field.text()?;
        let time = text.parse::<jiff::Timestamp>().ok();
        if time.is_none() {
            field.problem(&codes::WRONG_TYPE, format!("\"{text}\" is not a time like \"2026-01-31T12:00:00Z\""));
        }
        time.map(jiff::Timestamp::as_second)
    });
    metadata.finish();
    let spec = match start.entry.support {
        Support::Read(reader) => {
            let header = kinds::Header { namespace: &start.namespace, labels: &labels, annotations: &annotations };
            let spec = reader(&mut fields, &header);
            fields.finish();
            spec?
        }
        Support::Inert | Support::No(..) => Spec::Inert,
    };
    let mut json = node.to_json();
    if let Some(serde_json::Value::Object(metadata)) = json.get_mut("metadata")
        && start.entry.namespaced
    {
        metadata.insert("namespace".to_owned(), start.namespace.clone().into());
    }
    Some(Object {
        api_version: start.api_version,
        kind: start.entry.kind.to_owned(),
        namespace: start.namespace,
        name: start.name,
        labels,
        annotations,
        spec,
        json,
        location,
        generation,
        created_unix: created_unix.unwrap_or(0),
    })
}
