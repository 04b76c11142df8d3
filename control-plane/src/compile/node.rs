//! What one proxy must know of itself. Pure.

use std::collections::HashSet;

use outrigger_proto::{
    kind::Kind,
    mesh::{InboundPort, Node, OutboundMode, Protocol},
};

use super::{Resource, resource::encode};
use crate::{
    api::core::TargetPort,
    model::{Mesh, RegisteredWorkload, WorkloadPort, protocol},
};

/// Most services of its own namespace that a proxy holds from the start.
const PRELOAD_LIMIT: usize = 50;
/// Longest wait when connecting to an endpoint, in seconds, where no policy says otherwise: Istio's default.
const CONNECT_TIMEOUT_SECONDS: i64 = 10;

/// The Node resource of one proxy; also for one that only calls others.
pub fn node(mesh: &Mesh, workload: &RegisteredWorkload) -> Resource {
    let services = mesh.services_of(&workload.namespace, &workload.labels);
    let mode = |port| mesh.peers.mode(&workload.namespace, &workload.labels, port);
    // A port may be registered under several names; the first speaks for it.
    let mut seen = HashSet::new();
    let ports = workload.ports.iter().filter(|port| seen.insert(port.target_port));
    let inbound = ports.map(|port| InboundPort {
        port: u32::from(port.target_port),
        protocol: inbound_protocol(&services, port).into(),
        peer_mode: mode(Some(port.target_port)).into(),
        pool: None,
    });
    let prefix = format!("{}/", workload.namespace);
    let preload = mesh.services.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    let origins = mesh.peers.origins(&workload.namespace, &workload.labels);
    let message = Node {
        origins: origins.clone(),
        namespace: workload.namespace.clone(),
        // The instance, as in the resource's name; telemetry makes the workload's name from the labels.
        workload: workload.workload.clone(),
        service_account: workload.service_account.clone(),
        trust_domain: mesh.settings.trust_domain.clone(),
        labels: workload.labels.clone(),
        default_peer_mode: mode(None).into(),
        inbound: inbound.collect(),
        preload: preload.take(PRELOAD_LIMIT).map(|(key, _)| key.clone()).collect(),
        outbound_mode: OutboundMode::AllowAny.into(),
        domain_suffix: mesh.settings.domain_suffix.clone(),
        connect_timeout: Some(prost_types::Duration { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 }),
        locality: workload.locality.clone(),
    };
    encode(Kind::Node, &workload.uid, Vec::new(), &message, &origins)
}

/// What a port of the application speaks: as the first service that sends there declares, else by the port's own name.
fn inbound_protocol(services: &[&crate::model::Service], port: &WorkloadPort) -> Protocol {
    let to_this = |target: &TargetPort| match target {
        TargetPort::Number(number) => *number == port.target_port,
        TargetPort::Name(name) => *name == port.name,
    };
    let declared = services
        .iter()
        .flat_map(|service| &service.ports)
        .filter(|one| to_this(&one.target))
        .map(|one| one.protocol)
        .find(|protocol| *protocol != Protocol::Detect);
    declared.unwrap_or_else(|| protocol::of_port(None, &port.name, port.target_port))
}
