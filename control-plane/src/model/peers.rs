//! Which of plaintext and mutual TLS a workload's port accepts: PeerAuthentication. Pure.
//!
//! Nearest first: a port of the oldest policy whose selector matches, that policy, the namespace's policy, the mesh's policy
//! (the root namespace's), PERMISSIVE. UNSET asks the next one. At one level the oldest policy counts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use outrigger_proto::mesh::{Origin, PeerMode};

use super::{Findings, Service, origin, selects};
use crate::{
    api::{Object, Spec, core::TargetPort, istio::PeerAuthentication},
    validate::{Problem, codes},
};

/// Effective modes of all workloads.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerModes {
    mesh: Option<Arc<Object>>,
    namespaces: HashMap<String, Arc<Object>>,
    /// By namespace, oldest first.
    selected: HashMap<String, Vec<Arc<Object>>>,
}

fn spec(object: &Object) -> Option<&PeerAuthentication> {
    match &object.spec {
        Spec::PeerAuthentication(spec) => Some(spec),
        _ => None,
    }
}

impl PeerModes {
    /// `objects` are in order of age.
    pub(super) fn new(objects: &[&Arc<Object>], root_namespace: &str, findings: &mut Findings) -> Self {
        let mut modes = Self::default();
        for object in objects {
            let Some(spec) = spec(object) else { continue };
            let in_root = object.namespace == root_namespace;
            if !spec.selector.is_empty() {
                if in_root {
                    findings.report(
                        object,
                        &spec.place,
                        Problem::new(
                            &codes::SELECTOR_IN_ROOT,
                            "a policy with a selector applies to workloads of its own namespace only",
                        )
                        .effect(format!("workloads outside {root_namespace} are not selected")),
                    );
                }
                modes.selected.entry(object.namespace.clone()).or_default().push((*object).clone());
                continue;
            }
            let holder = if in_root {
                modes.mesh.get_or_insert_with(|| (*object).clone())
            } else {
                modes.namespaces.entry(object.namespace.clone()).or_insert_with(|| (*object).clone())
            };
            if !Arc::ptr_eq(holder, object) {
                findings.report(
                    object,
                    &spec.place,
                    Problem::new(
                        &codes::DUPLICATE_POLICY,
                        format!("{} already speaks for the same workloads", holder.key()),
                    )
                    .effect("this policy has no effect: the older one wins")
                    .fix("remove one of the two"),
                );
                findings.refuse(object, "Conflicted", format!("{} is older", holder.key()));
            }
        }
        modes
    }

    /// The mode of one port of a workload, or of all others with `None`.
    pub(crate) fn mode(&self, namespace: &str, labels: &BTreeMap<String, String>, port: Option<u16>) -> PeerMode {
        let selected = self.selected_for(namespace, labels);
        let of_port = selected.and_then(|object| spec(object)).and_then(|spec| {
            let own = port.and_then(|port| spec.ports.get(&port)).copied().flatten();
            own.or(spec.mode)
        });
        let of = |object: Option<&Arc<Object>>| object.and_then(|object| spec(object)).and_then(|spec| spec.mode);
        of_port
            .or_else(|| of(self.namespaces.get(namespace)))
            .or_else(|| of(self.mesh.as_ref()))
            .unwrap_or(PeerMode::Permissive)
    }

    /// The policies that decide for a workload.
    pub(crate) fn origins(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<Origin> {
        let all = [self.selected_for(namespace, labels), self.namespaces.get(namespace), self.mesh.as_ref()];
        all.into_iter().flatten().map(|object| origin(object)).collect()
    }

    fn selected_for(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<&Arc<Object>> {
        let list = self.selected.get(namespace)?;
        list.iter().find(|object| spec(object).is_some_and(|spec| selects(&spec.selector, labels)))
    }

    /// Finds ports that name the Service's port where the workload's is meant.
    pub(super) fn check_ports(
        &self,
        objects: &[&Arc<Object>],
        services: &BTreeMap<String, Service>,
        findings: &mut Findings,
    ) {
        for object in objects {
            let Some(spec) = spec(object).filter(|spec| !spec.ports.is_empty()) else { continue };
            let prefix = format!("{}/", object.namespace);
            let near: Vec<&Service> = services
                .range(prefix.clone()..)
                .take_while(|(key, _)| key.starts_with(&prefix))
                .map(|(_, service)| service)
                .filter(|service| !service.selector.is_empty() && selects(&service.selector, &spec.selector))
                .collect();
            for number in spec.ports.keys() {
                let ports = || near.iter().flat_map(|service| &service.ports);
                if ports().any(|port| port.target == TargetPort::Number(*number)) {
                    continue;
                }
                if let Some(port) = ports().find(|port| port.number == *number) {
                    let target = match &port.target {
                        TargetPort::Number(target) => target.to_string(),
                        TargetPort::Name(name) => format!("\"{name}\""),
                    };
                    findings.report(
                        object,
                        &spec.place,
                        Problem::new(
                            &codes::PEER_PORT_UNCLAIMED,
                            format!("{number} is the Service's port; the workload listens on {target}"),
                        )
                        .effect(format!("the mode of port {target} is not changed"))
                        .fix(format!("write {target} instead of {number}")),
                    );
                }
            }
        }
    }
}
