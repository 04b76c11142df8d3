//! Who a series speaks of: label sets of sources and destinations, interned to small numbers.
//!
//! Called when a connection's peer becomes known and when an endpoint appears, never for each request. The number of
//! sets is bounded by configuration, so that neither peers nor names can grow the process.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use parking_lot::RwLock;

use crate::{config::view::Map, settings::NodeSettings};

/// What the labels of this proxy's own side say.
pub type NodeLabels = LabelSet;

/// One interned [`LabelSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LabelId(pub(super) u32);

impl LabelId {
    /// Nothing is known: every label says "unknown".
    pub const UNKNOWN: Self = Self(0);
    /// There were too many sets: every label says "other".
    pub const OTHER: Self = Self(1);
    /// The workload beside this proxy.
    pub const OWN: Self = Self(2);
}

/// Name of a workload in telemetry: label `app` (with `version`), else `app.kubernetes.io/name`, else its own name.
pub fn workload_name(labels: &BTreeMap<String, String>, own: &str) -> String {
    match (labels.get("app"), labels.get("version")) {
        (Some(app), Some(version)) => format!("{app}-{version}"),
        (Some(app), None) => app.clone(),
        _ => labels.get("app.kubernetes.io/name").cloned().unwrap_or_else(|| own.to_owned()),
    }
}

/// Longest part of an introduction that is shown; Kubernetes allows 63 in a label value.
const INTRODUCTION_BYTES: usize = 253;

/// Who a source or destination is. Empty fields are reported as "unknown".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSet {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    /// "spiffe://trust-domain/ns/namespace/sa/account", only where it was verified or is demanded.
    pub principal: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub cluster: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
    /// Complete host name; only destinations show it.
    pub service_host: Arc<str>,
    pub service_name: Arc<str>,
    pub service_namespace: Arc<str>,
}

impl LabelSet {
    /// A workload as its labels describe it, by Istio's rules for canonical names.
    pub fn workload(namespace: &str, workload: &str, principal: &str, labels: &BTreeMap<String, String>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| labels.get(*name)).map_or("", String::as_str);
        let app = first(&["app", "app.kubernetes.io/name"]);
        let version = first(&["version", "app.kubernetes.io/version"]);
        let service = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let revision = first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        Self {
            workload: workload.into(),
            namespace: namespace.into(),
            principal: principal.into(),
            app: app.into(),
            version: version.into(),
            canonical_service: if service.is_empty() { workload } else { service }.into(),
            canonical_revision: if revision.is_empty() { "latest" } else { revision }.into(),
            ..Self::default()
        }
    }

    /// The workload beside this proxy.
    pub fn node(node: &NodeSettings) -> Self {
        let principal = format!("spiffe://{}/ns/{}/sa/{}", node.trust_domain, node.namespace, node.service_account);
        let own = workload_name(&node.labels, &node.workload);
        let labels = Self::workload(&node.namespace, &own, &principal, &node.labels);
        // The destination's side cannot know under which service it was called; its canonical name stands for it.
        let (name, namespace) = (labels.canonical_service.clone(), labels.namespace.clone());
        labels.of_service(&format!("{name}.{namespace}.svc.cluster.local").into(), &name, &namespace)
    }

    /// A peer of which only its verified identity is known: principal and, if it has the usual form, namespace.
    pub fn peer(principal: &str) -> Self {
        let mut parts = principal.split('/').skip_while(|part| *part != "ns");
        let namespace = parts.nth(1).unwrap_or("");
        Self { principal: principal.into(), namespace: namespace.into(), ..Self::default() }
    }

    /// What [`LabelSet::introduced`] reads at the far side: workload, app, version and canonical names, no secrets.
    pub fn introduction(&self) -> String {
        [&self.workload, &self.app, &self.version, &self.canonical_service, &self.canonical_revision]
            .map(|part| part.replace(|c: char| !c.is_ascii_graphic() || c == ';', "_"))
            .join(";")
    }

    /// A peer with a verified identity that has introduced its workload; what it left out stays unknown.
    pub fn introduced(principal: &str, introduction: &str) -> Self {
        let mut parts = introduction.split(';').map(|part| if part.len() <= INTRODUCTION_BYTES { part } else { "" });
        let mut next = || Arc::from(parts.next().unwrap_or_default());
        Self {
            workload: next(),
            app: next(),
            version: next(),
            canonical_service: next(),
            canonical_revision: next(),
            ..Self::peer(principal)
        }
    }

    /// The same, as a destination reached through a service.
    #[must_use]
    pub fn of_service(mut self, host: &Arc<str>, name: &Arc<str>, namespace: &Arc<str>) -> Self {
        self.service_host = host.clone();
        self.service_name = name.clone();
        self.service_namespace = namespace.clone();
        self
    }

    fn all(word: &str) -> Self {
        let word: Arc<str> = word.into();
        Self {
            workload: word.clone(),
            namespace: word.clone(),
            principal: word.clone(),
            app: word.clone(),
            version: word.clone(),
            cluster: word.clone(),
            canonical_service: word.clone(),
            canonical_revision: word.clone(),
            service_host: word.clone(),
            service_name: word.clone(),
            service_namespace: word,
        }
    }

    fn write_side(&self, side: &str, text: &mut String) {
        for (name, value) in [
            ("workload", &self.workload),
            ("workload_namespace", &self.namespace),
            ("principal", &self.principal),
            ("app", &self.app),
            ("version", &self.version),
            ("cluster", &self.cluster),
            ("canonical_service", &self.canonical_service),
            ("canonical_revision", &self.canonical_revision),
        ] {
            let _ = write!(text, "{side}_");
            write_label(name, value, text);
        }
    }

    pub(super) fn write_source(&self, text: &mut String) {
        self.write_side("source", text);
    }

    pub(super) fn write_destination(&self, text: &mut String) {
        self.write_side("destination", text);
        write_label("destination_service", &self.service_host, text);
        write_label("destination_service_name", &self.service_name, text);
        write_label("destination_service_namespace", &self.service_namespace, text);
    }
}

/// Appends `name="value",`, escaped as Prometheus wants it; empty values say "unknown".
pub(super) fn write_label(name: &str, value: &str, text: &mut String) {
    text.push_str(name);
    text.push_str("=\"");
    for character in if value.is_empty() { "unknown" } else { value }.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push_str("\",");
}

/// All sets of the process.
pub(super) struct Labels {
    inner: RwLock<Interned>,
    limit: usize,
}

struct Interned {
    ids: Map<Arc<LabelSet>, LabelId>,
    sets: Vec<Arc<LabelSet>>,
}

impl Labels {
    pub(super) fn new(own: NodeLabels, limit: usize) -> Self {
        let mut interned = Interned { ids: Map::default(), sets: Vec::new() };
        for set in [LabelSet::default(), LabelSet::all("other"), own] {
            let set = Arc::new(set);
            let id = LabelId(interned.sets.len() as u32);
            interned.ids.insert(set.clone(), id);
            interned.sets.push(set);
        }
        Self { inner: RwLock::new(interned), limit: limit.min(u32::MAX as usize - 3) }
    }

    pub(super) fn intern(&self, set: LabelSet) -> LabelId {
        if let Some(id) = self.inner.read().ids.get(&set) {
            return *id;
        }
        let mut inner = self.inner.write();
        if let Some(id) = inner.ids.get(&set) {
            return *id;
        }
        if inner.sets.len() >= self.limit.saturating_add(3) {
            return LabelId::OTHER;
        }
        let set = Arc::new(set);
        let id = LabelId(inner.sets.len() as u32);
        inner.ids.insert(set.clone(), id);
        inner.sets.push(set);
        id
    }

    /// The set behind an id; ids of another process's table read as the empty set.
    pub(super) fn get(&self, id: LabelId) -> Arc<LabelSet> {
        self.inner.read().sets.get(id.0 as usize).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn m09_label_sets_past_the_bound_become_other() {
        // Without the bound, a scanner with many identities would grow every sidecar until it dies.
        let labels = Labels::new(LabelSet::default(), 2);
        let set = |name: &str| LabelSet { workload: name.into(), ..LabelSet::default() };
        let first = labels.intern(set("a"));
        assert_eq!(labels.intern(set("a")), first);
        assert_ne!(labels.intern(set("b")), LabelId::OTHER);
        assert_eq!(labels.intern(set("c")), LabelId::OTHER);
        assert_eq!(labels.intern(set("a")), first);
        assert_eq!(&*labels.get(first).workload, "a");
        assert_eq!(&*labels.get(LabelId(999)).workload, "");
    }

    #[test]
    fn canonical_names_follow_istio() {
        // Kiali groups by these labels; wrong fallbacks make every workload a service of its own.
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let set = LabelSet::workload("shop", "reviews-1", "", &labels(&[("app", "reviews"), ("version", "v2")]));
        assert_eq!((&*set.canonical_service, &*set.canonical_revision, &*set.app), ("reviews", "v2", "reviews"));
        let set = LabelSet::workload("shop", "reviews-1", "", &labels(&[]));
        assert_eq!((&*set.canonical_service, &*set.canonical_revision, &*set.app), ("reviews-1", "latest", ""));
        let set = LabelSet::workload(
            "shop",
            "r",
            "",
            &labels(&[("app", "x"), ("service.istio.io/canonical-name", "y"), ("app.kubernetes.io/name", "z")]),
        );
        assert_eq!((&*set.canonical_service, &*set.app), ("y", "x"));
    }

    #[test]
    fn peer_namespace_comes_from_its_identity() {
        // Otherwise inbound metrics cannot say which namespace calls.
        for (principal, namespace) in [
            ("spiffe://cluster.local/ns/shop/sa/front", "shop"),
            ("spiffe://cluster.local/other", ""),
            ("", ""),
            ("spiffe://cluster.local/ns", ""),
        ] {
            assert_eq!(&*LabelSet::peer(principal).namespace, namespace, "{principal}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        // An unescaped quote makes the whole scrape unreadable.
        let mut text = String::new();
        write_label("a", "x\"y\\z\n", &mut text);
        assert_eq!(text, "a=\"x\\\"y\\\\z\\n\",");
        text.clear();
        write_label("a", "", &mut text);
        assert_eq!(text, "a=\"unknown\",");
    }
}
