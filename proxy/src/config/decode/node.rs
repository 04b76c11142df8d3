//! Checks what a proxy must know of itself.

use std::{sync::Arc, time::Duration};

use outrigger_proto::mesh;

use super::{Checked, Fault, In, duration, each, named, policy::limits, port, protocol, refuse, unknown};
use crate::config::view::{InboundPort, Map, Node, OutboundMode, PeerMode};

pub(super) fn node(name: &str, node: &mesh::Node) -> Checked<Node> {
    let namespace = named(&node.namespace, "namespace")?;
    let workload = named(&node.workload, "workload")?;
    if name != format!("{namespace}/{workload}") {
        return refuse(format!("is \"{name}\", but the content is of \"{namespace}/{workload}\"")).in_field("name");
    }
    let Some(default_peer_mode) = peer_mode(node.default_peer_mode).in_field("default_peer_mode")? else {
        return refuse("is unspecified").in_field("default_peer_mode");
    };
    let ports = each("inbound", &node.inbound, |inbound| {
        let port = port(inbound.port).in_field("port")?;
        let value = InboundPort {
            protocol: protocol(inbound.protocol).in_field("protocol")?,
            peer_mode: peer_mode(inbound.peer_mode).in_field("peer_mode")?.unwrap_or(default_peer_mode),
            limits: limits(inbound.pool.as_ref()),
        };
        Ok((port, value))
    })?;
    let mut inbound = Map::default();
    for (index, (port, value)) in ports.into_iter().enumerate() {
        if inbound.insert(port, value).is_some() {
            return Err(Fault::new(format!("port {port} is listed twice")).under(format_args!("inbound[{index}]")));
        }
    }
    Ok(Node {
        namespace,
        workload,
        service_account: named(&node.service_account, "service_account")?,
        trust_domain: named(&node.trust_domain, "trust_domain")?,
        labels: node.labels.clone(),
        default_peer_mode,
        inbound,
        preload: each("preload", &node.preload, |name| {
            super::check_name(name)?;
            Ok(Arc::from(name.as_str()))
        })?,
        outbound_mode: match mesh::OutboundMode::try_from(node.outbound_mode) {
            Ok(mesh::OutboundMode::AllowAny) => OutboundMode::AllowAny,
            Ok(mesh::OutboundMode::RegistryOnly) => OutboundMode::RegistryOnly,
            Ok(mesh::OutboundMode::Unspecified) => return refuse("is unspecified").in_field("outbound_mode"),
            Err(_) => return unknown(node.outbound_mode).in_field("outbound_mode"),
        },
        domain_suffix: if node.domain_suffix.is_empty() { "cluster.local" } else { &node.domain_suffix }.into(),
        connect_timeout: duration(node.connect_timeout.as_ref())
            .in_field("connect_timeout")?
            .unwrap_or(Duration::from_secs(10)),
        locality: node.locality.as_str().into(),
    })
}

/// `None`: unspecified.
fn peer_mode(value: i32) -> Checked<Option<PeerMode>> {
    Ok(match mesh::PeerMode::try_from(value) {
        Ok(mesh::PeerMode::Unspecified) => None,
        Ok(mesh::PeerMode::Permissive) => Some(PeerMode::Permissive),
        Ok(mesh::PeerMode::Strict) => Some(PeerMode::Strict),
        Ok(mesh::PeerMode::Disable) => Some(PeerMode::Disable),
        Err(_) => return unknown(value),
    })
}
