//! Which endpoints a service has, on which ports, and how each is spoken to. Pure.
//!
//! A selector finds registered workloads and WorkloadEntries of the service's namespace; where it finds none, and for Services
//! without one, EndpointSlices count. A ServiceEntry may list its endpoints. Whoever is not ready is kept and marked,
//! so that "all unready" can be told from "none".

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use outrigger_proto::mesh::{Endpoint, EndpointPort, Health, PeerKind, PeerMode};
use outrigger_proxy::telemetry::workload_name;

use super::{Findings, Inputs, PeerModes, RegisteredWorkload, Service, origin, selects, service_key};
use crate::{
    api::{
        Object, Spec,
        core::{EndpointSlice, TargetPort},
        istio::WorkloadEntry,
    },
    validate::{Problem, codes},
};

/// Who can be selected.
#[derive(Clone, Copy)]
enum Instance<'a> {
    Workload(&'a RegisteredWorkload),
    Entry(&'a Arc<Object>, &'a WorkloadEntry),
}

impl<'a> Instance<'a> {
    fn namespace(self) -> &'a str {
        match self {
            Self::Workload(workload) => &workload.namespace,
            Self::Entry(object, _) => &object.namespace,
        }
    }

    fn labels(self) -> &'a BTreeMap<String, String> {
        match self {
            Self::Workload(workload) => &workload.labels,
            Self::Entry(_, entry) => &entry.labels,
        }
    }
}

/// Everyone by namespace and label, so that a selector need not look at all.
struct Instances<'a> {
    all: Vec<Instance<'a>>,
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<usize>>,
}

impl<'a> Instances<'a> {
    fn new(objects: &'a [&'a Arc<Object>], inputs: &Inputs<'a>) -> Self {
        let mut workloads: Vec<&RegisteredWorkload> = inputs.workloads.iter().collect();
        workloads.sort_by(|left, right| left.uid.cmp(&right.uid));
        let mut all: Vec<Instance<'a>> = workloads.into_iter().map(Instance::Workload).collect();
        for object in objects {
            if let Spec::WorkloadEntry(entry) = &object.spec {
                all.push(Instance::Entry(object, entry));
            }
        }
        let mut by_label: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, instance) in all.iter().enumerate() {
            for (label, value) in instance.labels() {
                by_label.entry((instance.namespace(), label.as_str(), value.as_str())).or_default().push(index);
            }
        }
        Self { all, by_label }
    }

    fn select(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<Instance<'a>> {
        let lists = selector.iter().map(|(label, value)| {
            self.by_label.get(&(namespace, label.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice)
        });
        let shortest = lists.min_by_key(|list| list.len()).unwrap_or_default();
        let candidates = shortest.iter().filter_map(|index| self.all.get(*index).copied());
        candidates.filter(|instance| selects(selector, instance.labels())).collect()
    }
}

pub(super) fn attach(
    services: &mut BTreeMap<String, Service>,
    objects: &[&Arc<Object>],
    inputs: &Inputs<'_>,
    peers: &PeerModes,
    findings: &mut Findings,
) {
    let instances = Instances::new(objects, inputs);
    let context = Context { peers, trust_domain: &inputs.settings.trust_domain };
    let mut slices: HashMap<String, Vec<(&Arc<Object>, &EndpointSlice)>> = HashMap::new();
    for object in objects {
        let Spec::EndpointSlice(slice) = &object.spec else { continue };
        let Some(name) = &slice.service else { continue };
        let key = service_key(&object.namespace, name, inputs.settings);
        if services.contains_key(&key) {
            slices.entry(key).or_default().push((object, slice));
        } else {
            findings.report(
                object,
                &slice.place,
                Problem::new(&codes::SLICE_WITHOUT_SERVICE, format!("there is no Service {}/{name}", object.namespace))
                    .effect("its endpoints get no traffic")
                    .fix("correct the label kubernetes.io/service-name, or add the Service"),
            );
        }
    }
    for service in services.values_mut() {
        let mut endpoints = Vec::new();
        if !service.selector.is_empty() {
            for instance in instances.select(&service.namespace, &service.selector) {
                let endpoint = match instance {
                    Instance::Workload(workload) => context.of_workload(service, workload),
                    Instance::Entry(object, entry) => {
                        let uid = format!("{}/{}", object.namespace, object.name);
                        service.endpoint_origins.insert(uid.clone(), origin(object));
                        context.of_entry(service, entry, uid, &object.name)
                    }
                };
                endpoints.extend(endpoint);
            }
        }
        let source = service.source.clone();
        if let Spec::ServiceEntry(spec) = &source.spec {
            for entry in &spec.endpoints {
                let port = service.ports.first().map(|port| entry_port(port, entry)).unwrap_or_default();
                let uid = socket_text(entry.address, port);
                let name = service.name.clone();
                endpoints.extend(context.of_entry(service, entry, uid, &name));
            }
        }
        if endpoints.is_empty() {
            for (object, slice) in slices.get(&service.key).into_iter().flatten() {
                let before = endpoints.len();
                context.of_slice(service, object, slice, &mut endpoints, findings);
                let uids = endpoints.iter().skip(before).map(|endpoint| endpoint.uid.clone());
                service.endpoint_origins.extend(uids.map(|uid| (uid, origin(object))));
            }
        }
        if service.publish_not_ready {
            for endpoint in endpoints.iter_mut().filter(|endpoint| endpoint.health() == Health::Unready) {
                endpoint.set_health(Health::Ready);
            }
        }
        endpoints.sort_by(|left, right| (&left.uid, &left.address).cmp(&(&right.uid, &right.address)));
        endpoints.dedup_by(|left, right| left.uid == right.uid);
        service.endpoints = endpoints;
    }
}

fn socket_text(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Port of an entry that serves a service's port: by the port's name, else the target port.
fn entry_port(port: &super::Port, entry: &WorkloadEntry) -> u16 {
    let by_name = entry.ports.get(&port.name);
    match &port.target {
        TargetPort::Number(number) => by_name.copied().unwrap_or(*number),
        TargetPort::Name(name) => by_name.or_else(|| entry.ports.get(name)).copied().unwrap_or(port.number),
    }
}

struct Context<'a> {
    peers: &'a PeerModes,
    trust_domain: &'a str,
}

impl Context<'_> {
    /// SPIFFE id of an account: `account`, `namespace/account`, or already an id. Empty stays empty.
    fn identity(&self, namespace: &str, account: &str) -> String {
        if account.is_empty() || account.starts_with("spiffe://") {
            return account.to_owned();
        }
        let (namespace, account) = account.split_once('/').unwrap_or((namespace, account));
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
    }

    /// How a port is spoken to: where mutual TLS is disabled, there is none whatever the sidecar could.
    fn peer(
        &self,
        service: &Service,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        port: u16,
        peer: PeerKind,
    ) -> PeerKind {
        let disabled = self.peers.mode(namespace, labels, Some(port)) == PeerMode::Disable;
        match peer {
            PeerKind::Mesh | PeerKind::Outrigger if !disabled && !service.external => peer,
            _ => PeerKind::Plain,
        }
    }

    fn of_workload(&self, service: &Service, workload: &RegisteredWorkload) -> Option<Endpoint> {
        let address = workload.address?;
        let mut ports = Vec::new();
        for port in &service.ports {
            let found = workload.ports.iter().find(|candidate| match &port.target {
                TargetPort::Number(number) => candidate.target_port == *number,
                TargetPort::Name(name) => candidate.name == *name,
            });
            if let Some(found) = found {
                let peer = self.peer(service, &workload.namespace, &workload.labels, found.target_port, workload.mesh);
                ports.push(EndpointPort {
                    service_port: u32::from(port.number),
                    port: u32::from(found.reachable_port),
                    peer: peer.into(),
                });
            }
        }
        let health = match (workload.draining, workload.ready) {
            (true, _) => Health::Draining,
            (false, true) => Health::Ready,
            (false, false) => Health::Unready,
        };
        (!ports.is_empty()).then(|| Endpoint {
            uid: workload.uid.clone(),
            address: address_bytes(address).into(),
            ports,
            identity: self.identity(&workload.namespace, &workload.service_account),
            labels: workload.labels.clone(),
            locality: workload.locality.clone(),
            weight: 1,
            health: health.into(),
            namespace: workload.namespace.clone(),
            workload: workload_name(&workload.labels, &workload.workload),
        })
    }

    fn of_entry(&self, service: &Service, entry: &WorkloadEntry, uid: String, name: &str) -> Option<Endpoint> {
        let namespace = &service.namespace;
        let ports: Vec<EndpointPort> = service
            .ports
            .iter()
            .map(|port| {
                let number = entry_port(port, entry);
                let peer = self.peer(service, namespace, &entry.labels, number, entry.peer);
                EndpointPort { service_port: u32::from(port.number), port: u32::from(number), peer: peer.into() }
            })
            .collect();
        let mut identity = self.identity(namespace, &entry.service_account);
        if identity.is_empty()
            && let Spec::ServiceEntry(spec) = &service.source.spec
        {
            identity = spec.identity.clone().unwrap_or_default();
        }
        (!ports.is_empty()).then(|| Endpoint {
            uid,
            address: address_bytes(entry.address).into(),
            ports,
            identity,
            labels: entry.labels.clone(),
            locality: entry.locality.clone(),
            weight: entry.weight.max(1),
            health: Health::Ready.into(),
            namespace: namespace.clone(),
            workload: workload_name(&entry.labels, name),
        })
    }

    fn of_slice(
        &self,
        service: &Service,
        object: &Object,
        slice: &EndpointSlice,
        endpoints: &mut Vec<Endpoint>,
        findings: &mut Findings,
    ) {
        // Kubernetes joins by port name. A single port on either side is unambiguous, so it may lack the name.
        let single = match (service.ports.as_slice(), slice.ports.as_slice()) {
            ([port], [(name, number)]) if name.is_empty() || port.name.is_empty() => Some((port, *number)),
            _ => None,
        };
        let by_name = service.ports.iter().filter_map(|port| {
            slice.ports.iter().find(|(name, _)| *name == port.name).map(|(_, number)| (port, *number))
        });
        let mut joined: Vec<(&super::Port, u16)> = by_name.collect();
        if joined.is_empty() {
            joined.extend(single);
        }
        if joined.is_empty() && !slice.ports.is_empty() {
            let names: Vec<String> = service.ports.iter().map(|port| format!("\"{}\"", port.name)).collect();
            findings.report(
                object,
                &slice.place,
                Problem::new(
                    &codes::SLICE_WITHOUT_SERVICE,
                    format!("no port has a name of the Service's ports ({})", names.join(", ")),
                )
                .effect("its endpoints get no traffic")
                .fix("give the ports the names that the Service's ports have"),
            );
        }
        let (Some((_, first)), none) = (joined.first(), BTreeMap::new()) else { return };
        for listed in &slice.endpoints {
            let ports = joined.iter().map(|(port, number)| EndpointPort {
                service_port: u32::from(port.number),
                port: u32::from(*number),
                peer: self.peer(service, &object.namespace, &none, *number, slice.peer).into(),
            });
            let target = listed.target.as_ref();
            endpoints.push(Endpoint {
                uid: target.map_or_else(
                    || socket_text(listed.address, *first),
                    |(namespace, name)| format!("{namespace}/{name}"),
                ),
                address: address_bytes(listed.address).into(),
                ports: ports.collect(),
                identity: self.identity(&object.namespace, slice.service_account.as_deref().unwrap_or_default()),
                labels: none.clone(),
                locality: if listed.zone.is_empty() { String::new() } else { format!("/{}", listed.zone) },
                weight: 1,
                health: listed.health.into(),
                namespace: object.namespace.clone(),
                workload: target.map_or_else(|| service.name.clone(), |(_, name)| name.clone()),
            });
        }
    }
}
