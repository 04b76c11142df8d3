//! The mesh in our own words: services, endpoints, routes and policies, with references resolved and conflicts settled. Pure.
//!
//! Built from all objects and registered workloads at once; the order of either never matters. `compile` turns it into
//! resources.

mod breakers;
mod endpoints;
mod peers;
mod policies;
mod precedence;
pub mod protocol;
mod routes;
mod services;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use outrigger_proto::mesh::Origin;
pub use outrigger_proto::mesh::PeerKind;

pub use outrigger_proxy::telemetry::workload_name;
pub(crate) use peers::PeerModes;
pub use services::{Port, Service};

use crate::{
    api::{Object, ObjectKey, Place, Spec, istio::Resolution},
    validate::Problem,
};

/// What is true for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// Trust domain of all identities. Default `cluster.local`.
    pub trust_domain: String,
    /// Domain of service names. Default `cluster.local`.
    pub domain_suffix: String,
    /// Namespace whose policies apply to the whole mesh. Default `istio-system`.
    pub root_namespace: String,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            domain_suffix: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
        }
    }
}

/// A port that a sidecar registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Port of the application.
    pub target_port: u16,
    /// Name of that port; may be empty.
    pub name: String,
    /// Port on the workload's address where peers reach it.
    pub reachable_port: u16,
}

/// A workload that its sidecar registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredWorkload {
    /// `namespace/workload`.
    pub uid: String,
    pub namespace: String,
    pub workload: String,
    pub service_account: String,
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`; empty when unknown.
    pub locality: String,
    /// `None` for one that only calls others.
    pub address: Option<IpAddr>,
    pub ports: Vec<WorkloadPort>,
    /// The application passes its health check, or has none.
    pub ready: bool,
    /// The sidecar is going away.
    pub draining: bool,
    /// How peers speak to it where no PeerAuthentication disables mutual TLS.
    pub mesh: PeerKind,
}

/// All that the mesh is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub objects: &'a [Arc<Object>],
    pub workloads: &'a [RegisteredWorkload],
    /// Addresses given to services that have none of their own, by service key `namespace/host`.
    pub virtual_addresses: &'a BTreeMap<String, Vec<IpAddr>>,
    pub settings: &'a MeshSettings,
}

/// The mesh, ready to be compiled.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub(crate) settings: MeshSettings,
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) peers: PeerModes,
    pub(crate) outcomes: BTreeMap<ObjectKey, Outcome>,
    /// Keys of services by namespace and the first label of their selector.
    selectors: HashMap<(String, String, String), Vec<String>>,
}

impl Mesh {
    /// Puts everything together. Problems are those that only show together with other objects; none is an error.
    pub fn build(inputs: Inputs<'_>) -> (Self, Vec<Problem>) {
        let mut objects: Vec<&Arc<Object>> = inputs.objects.iter().collect();
        objects.sort_by_key(|object| age(object));
        let mut findings = Findings::new(&objects);
        let peers = PeerModes::new(&objects, &inputs.settings.root_namespace, &mut findings);
        let mut services = services::collect(&objects, &inputs, &mut findings);
        peers.check_ports(&objects, &services, &mut findings);
        endpoints::attach(&mut services, &objects, &inputs, &peers, &mut findings);
        let breakers = breakers::Breakers::collect(&objects, &services, inputs.settings, &mut findings);
        routes::attach(&mut services, &objects, &breakers, inputs.settings, &mut findings);
        policies::attach(&mut services, &objects, &breakers, inputs.settings, &mut findings);
        let mut selectors: HashMap<_, Vec<String>> = HashMap::new();
        for service in services.values() {
            if let Some((label, value)) = service.selector.first_key_value() {
                let index = (service.namespace.clone(), label.clone(), value.clone());
                selectors.entry(index).or_default().push(service.key.clone());
            }
        }
        let (outcomes, problems) = findings.finish();
        (Self { settings: inputs.settings.clone(), services, peers, outcomes, selectors }, problems)
    }

    /// All services, by key (`namespace/host`).
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The service with this key.
    pub fn service(&self, key: &str) -> Option<&Service> {
        self.services.get(key)
    }

    /// Services whose selector a workload with these labels satisfies, by key.
    pub(crate) fn services_of(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<&Service> {
        let mut found: Vec<&Service> = labels
            .iter()
            .filter_map(|(label, value)| self.selectors.get(&(namespace.to_owned(), label.clone(), value.clone())))
            .flatten()
            .filter_map(|key| self.services.get(key))
            .filter(|service| selects(&service.selector, labels))
            .collect();
        found.sort_by(|left, right| left.key.cmp(&right.key));
        found
    }
}

/// Oldest first, then by namespace and name: Gateway API's total order. The kind only makes it total over all objects.
pub(crate) fn age(object: &Object) -> (i64, &str, &str, &str) {
    (object.created_unix, &object.namespace, &object.name, &object.kind)
}

/// Whether all labels of a selector are there.
pub(crate) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(label, value)| labels.get(label) == Some(value))
}

/// Where something comes from, for the wire.
pub(crate) fn origin(object: &Object) -> Origin {
    Origin {
        kind: object.kind.clone(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        generation: object.generation,
    }
}

/// What became of one object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) generation: u64,
    /// How many of its parents or targets took it.
    pub(crate) attached: usize,
    /// Why it was not accepted, if it was not: reason and message.
    pub(crate) refused: Option<(&'static str, String)>,
    /// Which reference does not resolve: reason and message.
    pub(crate) unresolved: Option<(&'static str, String)>,
}

/// Problems and outcomes, collected while the mesh is built.
pub(crate) struct Findings {
    outcomes: BTreeMap<ObjectKey, Outcome>,
    problems: Vec<Problem>,
    suggestions: usize,
}

/// Problems of one build that may look through all services for what was probably meant.
const SUGGESTION_LIMIT: usize = 50;

impl Findings {
    fn new(objects: &[&Arc<Object>]) -> Self {
        let outcome =
            |object: &&Arc<Object>| (object.key(), Outcome { generation: object.generation, ..Outcome::default() });
        Self { outcomes: objects.iter().map(outcome).collect(), problems: Vec::new(), suggestions: 0 }
    }

    /// Whether there is still time to look for a near name; in a large mesh that is broken everywhere there is not.
    pub(crate) fn may_suggest(&mut self) -> bool {
        self.suggestions += 1;
        self.suggestions <= SUGGESTION_LIMIT
    }

    /// Reports a problem with a part of an object.
    pub(crate) fn report(&mut self, object: &Object, place: &Place, problem: Problem) {
        let mut problem = problem.about(object).at(place.path.clone());
        if place.line != 0
            && let Some(location) = &mut problem.location
        {
            (location.line, location.column) = (place.line, place.column);
        }
        self.problems.push(problem);
    }

    /// Notes that a parent or target took the object.
    pub(crate) fn attach(&mut self, object: &Object) {
        self.outcomes.entry(object.key()).or_default().attached += 1;
    }

    /// Notes that a parent or target did not take it; the first reason is kept.
    pub(crate) fn refuse(&mut self, object: &Object, reason: &'static str, message: impl Into<String>) {
        let outcome = self.outcomes.entry(object.key()).or_default();
        outcome.refused.get_or_insert_with(|| (reason, message.into()));
    }

    /// Notes that a reference does not resolve; the first one is kept.
    pub(crate) fn unresolved(&mut self, object: &Object, reason: &'static str, message: impl Into<String>) {
        let outcome = self.outcomes.entry(object.key()).or_default();
        outcome.unresolved.get_or_insert_with(|| (reason, message.into()));
    }

    fn finish(mut self) -> (BTreeMap<ObjectKey, Outcome>, Vec<Problem>) {
        let order = |problem: &Problem| {
            (
                problem.object.clone(),
                problem.path.clone(),
                problem.code,
                problem.message.clone(),
                problem.effect.clone(),
            )
        };
        self.problems.sort_by_cached_key(order);
        self.problems.dedup();
        (self.outcomes, self.problems)
    }
}

/// Keys (`namespace/host`) of the services to which the caller must assign a virtual address, sorted.
pub fn needs_virtual_address(objects: &[Arc<Object>], settings: &MeshSettings) -> Vec<String> {
    let mut keys: Vec<String> = objects
        .iter()
        .filter_map(|object| match &object.spec {
            Spec::Service(service) if !service.headless && !service.external_name && service.cluster_ips.is_empty() => {
                Some(service_key(&object.namespace, &object.name, settings))
            }
            Spec::ServiceEntry(entry) if entry.resolution == Resolution::Static && entry.addresses.is_empty() => {
                entry.hosts.first().map(|host| format!("{}/{host}", object.namespace))
            }
            _ => None,
        })
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Key of a Kubernetes Service: `namespace/name.namespace.svc.domain`.
pub(crate) fn service_key(namespace: &str, name: &str, settings: &MeshSettings) -> String {
    format!("{namespace}/{}", service_host(namespace, name, settings))
}

/// Complete host name of a Kubernetes Service.
pub(crate) fn service_host(namespace: &str, name: &str, settings: &MeshSettings) -> String {
    format!("{name}.{namespace}.svc.{}", settings.domain_suffix)
}
