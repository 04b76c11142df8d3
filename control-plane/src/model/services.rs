//! Which services there are, under which names and addresses. Pure.
//!
//! A Kubernetes Service or a ServiceEntry becomes one service. Where two claim one host or address, the older keeps it.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use outrigger_proto::mesh::{BackendPolicy, Endpoint, Origin, Protocol, RouteTable};

use super::{Findings, Inputs, origin, service_host};
use crate::{
    api::{Object, Place, Spec, core::TargetPort, istio::Resolution},
    validate::{Problem, codes},
};

/// A name that traffic is sent to.
#[derive(Clone, Debug)]
pub struct Service {
    /// `namespace/host`.
    pub key: String,
    pub namespace: String,
    /// Complete host name.
    pub host: String,
    /// Short name, for labels.
    pub name: String,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Further names that mean this service.
    pub hosts: Vec<String>,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
    /// The WorkloadEntry or EndpointSlice that an endpoint comes from, by uid. Kept apart from `origins`, so that
    /// endpoints that come and go leave the service itself unchanged.
    pub(crate) endpoint_origins: BTreeMap<String, Origin>,
    /// No mesh identity is expected behind it.
    pub external: bool,
    /// The address that the application dialled is the endpoint.
    pub passthrough: bool,
    /// No older service has the same host.
    pub(crate) owns_host: bool,
    pub(crate) headless: bool,
    pub(crate) publish_not_ready: bool,
    /// Labels of its workloads; empty when endpoints are listed.
    pub selector: BTreeMap<String, String>,
    pub origins: Vec<Origin>,
    /// The object that it was made from.
    pub source: Arc<Object>,
}

/// One port of a service, with what applies to it by scope (empty, or a client namespace).
#[derive(Clone, Debug)]
pub struct Port {
    pub number: u16,
    pub name: String,
    pub target: TargetPort,
    pub protocol: Protocol,
    pub routes: BTreeMap<String, RouteTable>,
    pub policies: BTreeMap<String, BackendPolicy>,
}

impl Service {
    pub(crate) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Ports in words, for messages.
    pub(crate) fn ports_text(&self) -> String {
        let ports: Vec<String> = self.ports.iter().map(|port| port.number.to_string()).collect();
        if ports.is_empty() { "none".to_owned() } else { ports.join(", ") }
    }
}

/// All services by key. `objects` are in order of age.
pub(super) fn collect(
    objects: &[&Arc<Object>],
    inputs: &Inputs<'_>,
    findings: &mut Findings,
) -> BTreeMap<String, Service> {
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    let mut claims: HashMap<String, String> = HashMap::new();
    for object in objects {
        let Some(mut service) = read(object, inputs) else { continue };
        let place = Place::default();
        let own = service.key.clone();
        let mut lost = Vec::new();
        let mut claim = |name: String| match claims.get(&name) {
            None => {
                claims.insert(name, own.clone());
                true
            }
            Some(holder) => {
                lost.push((name, holder.clone()));
                false
            }
        };
        let has_host = claim(service.host.clone());
        service.hosts.retain(|host| claim(host.clone()));
        service.addresses.retain(|address| claim(address.to_string()));
        for (name, holder) in lost {
            findings.report(
                object,
                &place,
                Problem::new(&codes::NAME_TAKEN, format!("\"{name}\" already belongs to {holder}"))
                    .effect(format!("traffic to {name} goes to {holder}, which is older"))
                    .fix("use another name or address, or remove one of the two"),
            );
        }
        match services.entry(service.key.clone()) {
            Entry::Vacant(entry) => {
                service.owns_host = has_host;
                if !has_host {
                    findings.refuse(
                        object,
                        "Conflicted",
                        format!("host {} already belongs to another service", service.host),
                    );
                }
                entry.insert(service);
            }
            Entry::Occupied(_) => {
                findings.refuse(object, "Conflicted", format!("{} is already defined by an older object", service.key))
            }
        }
    }
    services
}

fn read(object: &Arc<Object>, inputs: &Inputs<'_>) -> Option<Service> {
    let assigned = |key: &str| inputs.virtual_addresses.get(key).cloned().unwrap_or_default();
    match &object.spec {
        Spec::Service(spec) if !spec.external_name => {
            let host = service_host(&object.namespace, &object.name, inputs.settings);
            let key = format!("{}/{host}", object.namespace);
            let mut addresses = spec.cluster_ips.clone();
            if addresses.is_empty() && !spec.headless {
                addresses = assigned(&key);
            }
            let ports = spec.ports.iter().map(|port| Port {
                number: port.port,
                name: port.name.clone(),
                target: port.target.clone(),
                protocol: port.protocol,
                routes: BTreeMap::new(),
                policies: BTreeMap::new(),
            });
            Some(Service {
                key,
                namespace: object.namespace.clone(),
                host,
                name: object.name.clone(),
                addresses,
                hosts: vec![
                    format!("{}.{}", object.name, object.namespace),
                    format!("{}.{}.svc", object.name, object.namespace),
                ],
                ports: ports.collect(),
                endpoints: Vec::new(),
                endpoint_origins: BTreeMap::new(),
                external: false,
                passthrough: false,
                owns_host: true,
                headless: spec.headless,
                publish_not_ready: spec.publish_not_ready,
                selector: spec.selector.clone(),
                origins: vec![origin(object)],
                source: object.clone(),
            })
        }
        Spec::ServiceEntry(spec) if spec.resolution != Resolution::Dns => {
            let (host, further) = spec.hosts.split_first()?;
            let key = format!("{}/{host}", object.namespace);
            let passthrough = spec.resolution == Resolution::None;
            let addresses =
                if spec.addresses.is_empty() && !passthrough { assigned(&key) } else { spec.addresses.clone() };
            let ports = spec.ports.iter().map(|port| Port {
                number: port.number,
                name: port.name.clone(),
                target: TargetPort::Number(port.target),
                protocol: port.protocol,
                routes: BTreeMap::new(),
                policies: BTreeMap::new(),
            });
            Some(Service {
                key,
                namespace: object.namespace.clone(),
                host: host.clone(),
                name: host.clone(),
                addresses,
                hosts: further.to_vec(),
                ports: ports.collect(),
                endpoints: Vec::new(),
                endpoint_origins: BTreeMap::new(),
                external: spec.external,
                passthrough,
                owns_host: true,
                headless: false,
                publish_not_ready: false,
                selector: spec.selector.clone(),
                origins: vec![origin(object)],
                source: object.clone(),
            })
        }
        _ => None,
    }
}
