//! Checks services and the shards that list their endpoints.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use outrigger_proto::mesh;

use super::{
    Checked, Fault, In, SHARD_ENDPOINTS, address, check_name, each, named, port, protocol, refuse, scoped, unknown,
};
use crate::{
    config::view::{Endpoint, EndpointPort, Health, PeerKind, Protocol},
    identity::spiffe_id::SpiffeId,
};

/// A service as the control plane defines it for every client: with names where a view has things.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Resource name, "namespace/host".
    pub resource: Arc<str>,
    pub namespace: Arc<str>,
    pub host: Arc<str>,
    pub name: Arc<str>,
    pub addresses: Vec<IpAddr>,
    pub hosts: Vec<Arc<str>>,
    pub ports: Vec<DefinedPort>,
    /// Names of EndpointShard resources.
    pub shards: Vec<Arc<str>>,
    pub external: bool,
}

/// One port of a [`Definition`].
#[derive(Clone, Debug)]
pub struct DefinedPort {
    pub port: u16,
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// Names of RouteTable resources by client namespace; "" for namespaces that are not listed.
    pub routes: BTreeMap<String, Arc<str>>,
    /// Names of BackendPolicy resources, likewise.
    pub policies: BTreeMap<String, Arc<str>>,
}

impl DefinedPort {
    /// The route table that clients of a namespace use; `None`: no rules.
    pub fn routes_for(&self, namespace: &str) -> Option<&Arc<str>> {
        self.routes.get(namespace).or_else(|| self.routes.get(""))
    }

    /// The policy that clients of a namespace use; `None`: defaults.
    pub fn policy_for(&self, namespace: &str) -> Option<&Arc<str>> {
        self.policies.get(namespace).or_else(|| self.policies.get(""))
    }
}

pub(super) fn definition(name: &str, service: &mesh::Service) -> Checked<Definition> {
    let namespace = named(&service.namespace, "namespace")?;
    let host = named(&service.host, "host")?;
    if name != format!("{namespace}/{host}") {
        return refuse(format!("is \"{name}\", but the content is of \"{namespace}/{host}\"")).in_field("name");
    }
    let ports = each("ports", &service.ports, |defined| {
        Ok(DefinedPort {
            port: port(defined.port).in_field("port")?,
            name: defined.name.as_str().into(),
            protocol: protocol(defined.protocol).in_field("protocol")?,
            routes: scoped(&defined.routes, "routes")?,
            policies: scoped(&defined.policies, "policies")?,
        })
    })?;
    let mut seen = HashSet::new();
    for (index, defined) in ports.iter().enumerate() {
        if !seen.insert(defined.port) {
            let twice = Fault::new(format!("port {} is listed twice", defined.port));
            return Err(twice.under(format_args!("ports[{index}]")));
        }
    }
    let names = |field: &str, names: &[String]| {
        each(field, names, |name| {
            check_name(name)?;
            Ok(Arc::from(name.as_str()))
        })
    };
    Ok(Definition {
        resource: name.into(),
        name: if service.name.is_empty() { Arc::clone(&host) } else { service.name.as_str().into() },
        namespace,
        host,
        addresses: each("addresses", &service.addresses, |bytes| address(bytes))?,
        hosts: names("hosts", &service.hosts)?,
        ports,
        shards: names("endpoint_shards", &service.endpoint_shards)?,
        external: service.external,
    })
}

pub(super) fn shard(shard: &mesh::EndpointShard) -> Checked<Arc<[Arc<Endpoint>]>> {
    if shard.endpoints.len() > SHARD_ENDPOINTS {
        let count = shard.endpoints.len();
        return refuse(format!("has {count} entries, a shard has at most {SHARD_ENDPOINTS}")).in_field("endpoints");
    }
    let endpoints = each("endpoints", &shard.endpoints, |value| endpoint(value).map(Arc::new))?;
    let mut seen = HashSet::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        if !seen.insert(&endpoint.uid) {
            let twice = Fault::new(format!("\"{}\" is listed twice", endpoint.uid));
            return Err(twice.under("uid").under(format_args!("endpoints[{index}]")));
        }
    }
    Ok(endpoints.into())
}

fn endpoint(endpoint: &mesh::Endpoint) -> Checked<Endpoint> {
    Ok(Endpoint {
        uid: named(&endpoint.uid, "uid")?,
        address: address(&endpoint.address).in_field("address")?,
        ports: each("ports", &endpoint.ports, |entry| {
            Ok(EndpointPort {
                service_port: port(entry.service_port).in_field("service_port")?,
                port: port(entry.port).in_field("port")?,
                peer: match mesh::PeerKind::try_from(entry.peer) {
                    Ok(mesh::PeerKind::Plain) => PeerKind::Plain,
                    Ok(mesh::PeerKind::Mesh) => PeerKind::Mesh,
                    Ok(mesh::PeerKind::Outrigger) => PeerKind::Outrigger,
                    // Guessing plaintext here would be a downgrade, guessing TLS an outage.
                    Ok(mesh::PeerKind::Unspecified) => return refuse("is unspecified").in_field("peer"),
                    Err(_) => return unknown(entry.peer).in_field("peer"),
                },
            })
        })?,
        identity: match endpoint.identity.as_str() {
            "" => None,
            id => match SpiffeId::parse(id) {
                Ok(_) => Some(id.into()),
                Err(error) => return refuse(format!("\"{id}\" is no SPIFFE id: {error}")).in_field("identity"),
            },
        },
        labels: endpoint.labels.clone(),
        locality: endpoint.locality.as_str().into(),
        weight: endpoint.weight.max(1),
        health: match mesh::Health::try_from(endpoint.health) {
            Ok(mesh::Health::Ready) => Health::Ready,
            Ok(mesh::Health::Draining) => Health::Draining,
            Ok(mesh::Health::Unready) => Health::Unready,
            Ok(mesh::Health::Unspecified) => return refuse("is unspecified").in_field("health"),
            Err(_) => return unknown(endpoint.health).in_field("health"),
        },
        namespace: endpoint.namespace.as_str().into(),
        workload: endpoint.workload.as_str().into(),
    })
}
