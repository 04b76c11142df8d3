//! One view from a fixed set of resources: static mode, where no control plane answers. Pure.
//!
//! Called at start and whenever the files change. A set is taken as a whole or not at all.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use outrigger_proto::kind::Kind;

use super::{
    apply::{Assembler, Held},
    decode::Rejected,
    view::{Service, View},
};
use crate::host;

/// The view that these resources make; names that are referred to and not among them count as absent.
///
/// There must be exactly one Node; every Service is in the view.
/// `previous` is the view before: where its endpoints are equal, they are shared.
///
/// # Errors
/// Every resource that was refused; then nothing of the new set applies.
pub fn view(
    resources: impl IntoIterator<Item = (Kind, String, Vec<u8>)>,
    generation: u64,
    previous: Option<&View>,
) -> Result<View, Vec<Rejected>> {
    let mut held = Held::complete();
    let mut rejected = Vec::new();
    let mut roots = BTreeSet::new();
    let mut nodes = Vec::new();
    for (place, (kind, name, encoded)) in resources.into_iter().enumerate() {
        let name: Arc<str> = name.into();
        if held.get(kind, &name).is_some() {
            let reason = "stands in the set more than once".to_owned();
            rejected.push(Rejected { resource: name.to_string(), path: String::new(), reason });
            continue;
        }
        if let Err(reason) = held.accept(kind, &name, &place.to_string().into(), Vec::new(), Bytes::from(encoded)) {
            rejected.push(reason);
            continue;
        }
        match kind {
            Kind::Service => drop(roots.insert(Arc::clone(&name))),
            Kind::Node => nodes.push(name),
            _ => {}
        }
    }
    let node = match nodes.as_slice() {
        [name] => held.node(name).cloned(),
        _ => None,
    };
    let Some(node) = node else {
        if rejected.is_empty() {
            let reason = format!("{} nodes in the set, there must be one", nodes.len());
            rejected.push(Rejected { resource: "node".to_owned(), path: String::new(), reason });
        }
        return Err(rejected);
    };
    if !rejected.is_empty() {
        return Err(rejected);
    }
    let mut assembler = Assembler::new(&node.namespace, &node.workload, &node.trust_domain, generation);
    let made = assembler.step(&mut held, &roots, host::now()).view;
    let services = made.map(|view| view.services.clone()).unwrap_or_default();
    let services = services.into_iter().map(|(name, service)| {
        let old = previous.and_then(|view| view.services.get(&name));
        let service = old.map_or(Arc::clone(&service), |old| share(old, service));
        (name, service)
    });
    Ok(View { generation, node, services: services.collect() })
}

/// The new service with the endpoints of the old where they are equal, so that readers can compare by pointer.
fn share(old: &Service, new: Arc<Service>) -> Arc<Service> {
    if old.endpoints != new.endpoints {
        return new;
    }
    Arc::new(Service {
        resource: Arc::clone(&new.resource),
        namespace: Arc::clone(&new.namespace),
        host: Arc::clone(&new.host),
        name: Arc::clone(&new.name),
        addresses: new.addresses.clone(),
        hosts: new.hosts.clone(),
        ports: new.ports.iter().map(super::view::ServicePort::clone).collect(),
        endpoints: Arc::clone(&old.endpoints),
        external: new.external,
    })
}
