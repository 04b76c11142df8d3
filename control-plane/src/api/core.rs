//! Kubernetes' own kinds: Service and EndpointSlice.

use std::{collections::BTreeMap, net::IpAddr};

use outrigger_proto::mesh::{Health, PeerKind, Protocol};

use super::{
    Problem, Spec,
    fields::{Field, Fields, Place},
    kinds::Header,
    values,
};
use crate::{model::protocol, validate::codes};

/// Marks endpoints whose sidecar is Istio's or speaks its protocol names; label or annotation.
pub(crate) const TLS_MODE: &str = "security.istio.io/tlsMode";
/// Says what kind of sidecar is at the endpoints: `outrigger`, `istio` or `plain`; annotation.
pub(crate) const PEER: &str = "outrigger.mesh/peer";
const SERVICE_ACCOUNTS: [&str; 2] = ["outrigger.mesh/service-account", "security.istio.io/service-account"];
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Kubernetes' Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Addresses given in the object; empty when there are none.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `type: ExternalName`.
    pub external_name: bool,
    /// Empty: endpoints come from EndpointSlices.
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
    /// Workloads that are not ready count as ready.
    pub publish_not_ready: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Empty when the Service has one port only.
    pub name: String,
    pub port: u16,
    pub target: TargetPort,
    pub protocol: Protocol,
}

/// Which port of a workload a Service port means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

/// Kubernetes' EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Name of the Service, in the same namespace.
    pub service: Option<String>,
    pub endpoints: Vec<SliceEndpoint>,
    /// Name (empty for none) and number.
    pub ports: Vec<(String, u16)>,
    pub peer: PeerKind,
    /// `account`, `namespace/account` or a SPIFFE id.
    pub service_account: Option<String>,
    /// Where the ports stand.
    pub place: Place,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceEndpoint {
    pub address: IpAddr,
    pub health: Health,
    pub zone: String,
    /// `namespace/name` of the Pod behind it.
    pub target: Option<(String, String)>,
}

/// What kind of sidecar labels and annotations tell of: the workload's labels first, then the object's annotations.
///
/// Endpoints inside a ServiceEntry have labels only, so [`PEER`] is read there too.
pub(crate) fn peer_of(labels: &BTreeMap<String, String>, header: &Header<'_>, field: &Field<'_>) -> PeerKind {
    if let Some(word) = labels.get(PEER).or_else(|| header.annotations.get(PEER)) {
        match word.as_str() {
            "outrigger" => return PeerKind::Outrigger,
            "istio" => return PeerKind::Mesh,
            "plain" => return PeerKind::Plain,
            _ => field.report.add(
                field.node.line,
                field.node.column,
                Problem::new(&codes::UNKNOWN_WORD, format!("\"{word}\" is not known here"))
                    .at(if labels.contains_key(PEER) {
                        format!("labels[{PEER}]")
                    } else {
                        format!("metadata.annotations[{PEER}]")
                    })
                    .fix("use one of outrigger, istio, plain"),
            ),
        }
    }
    let mode = labels.get(TLS_MODE).or_else(|| header.annotations.get(TLS_MODE));
    if mode.is_some_and(|mode| mode == "istio") { PeerKind::Mesh } else { PeerKind::Plain }
}

pub(super) fn service(root: &mut Fields<'_>, _: &Header<'_>) -> Option<Spec> {
    let spec_field = root.require("spec")?;
    let mut spec = spec_field.object()?;
    let kind = spec.get("type").and_then(|field| {
        field.word(&[
            ("ClusterIP", "ClusterIP"),
            ("NodePort", "NodePort"),
            ("LoadBalancer", "LoadBalancer"),
            ("ExternalName", "ExternalName"),
        ])
    });
    let external_name = kind == Some("ExternalName");
    if external_name && let Some(field) = spec.get("type") {
        field.say(
            Problem::new(&codes::FIELD_NOT_SUPPORTED, "type ExternalName is not supported yet")
                .effect("requests to it are handled as to an unknown destination"),
        );
    }
    let mut cluster_ips = Vec::new();
    let mut headless = false;
    let listed: Vec<Field<'_>> = spec.list("clusterIPs");
    for field in spec.get("clusterIP").into_iter().chain(listed) {
        match field.text().as_deref() {
            Some("None") => headless = true,
            Some("") | None => {}
            Some(_) => {
                if let Some(address) = field.address()
                    && !cluster_ips.contains(&address)
                {
                    cluster_ips.push(address);
                }
            }
        }
    }
    if headless && !cluster_ips.is_empty() {
        spec_field.problem(&codes::EXCLUSIVE, "clusterIP is both None and an address");
    }
    let selector = spec.get("selector").map(|field| field.labels()).unwrap_or_default();
    let publish_not_ready = spec.get("publishNotReadyAddresses").and_then(|field| field.flag()).unwrap_or(false);
    spec.without_effect(&[
        "externalTrafficPolicy",
        "ipFamilies",
        "ipFamilyPolicy",
        "loadBalancerIP",
        "loadBalancerClass",
        "loadBalancerSourceRanges",
        "allocateLoadBalancerNodePorts",
        "healthCheckNodePort",
        "externalIPs",
        "externalName",
        "sessionAffinityConfig",
    ]);
    for (name, default) in [("sessionAffinity", "None"), ("internalTrafficPolicy", "Cluster")] {
        if let Some(field) = spec.get(name)
            && field.text().is_some_and(|text| text != default)
        {
            field.say(
                Problem::new(&codes::FIELD_NOT_SUPPORTED, format!("{name} other than {default} is not supported yet"))
                    .effect("every endpoint may get any request")
                    .fix(format!("remove {name}")),
            );
        }
    }
    spec.not_supported(&["trafficDistribution"], "every endpoint may get any request");
    let ports_field = spec.get("ports");
    let port_fields = ports_field.as_ref().map(Field::items).unwrap_or_default();
    if port_fields.is_empty() && !headless && !external_name {
        spec_field.say(
            Problem::new(&codes::MISSING, "ports is missing")
                .at("spec.ports")
                .fix("list at least one port, for example \"- port: 80\""),
        );
    }
    let several = port_fields.len() > 1;
    let mut ports: Vec<ServicePort> = Vec::new();
    for field in &port_fields {
        let Some((port, carried)) = service_port(field, several) else { continue };
        if !carried {
            continue;
        }
        if ports.iter().any(|other| other.port == port.port) {
            field.problem(&codes::DUPLICATE, format!("port {} is listed twice", port.port));
        } else if !port.name.is_empty() && ports.iter().any(|other| other.name == port.name) {
            field.problem(&codes::DUPLICATE, format!("port name \"{}\" is used twice", port.name));
        } else {
            ports.push(port);
        }
    }
    spec.finish();
    Some(Spec::Service(Service { cluster_ips, headless, external_name, selector, ports, publish_not_ready }))
}

/// The port, and whether the mesh carries it.
fn service_port(field: &Field<'_>, name_needed: bool) -> Option<(ServicePort, bool)> {
    let mut fields = field.object()?;
    let number = fields.require("port").and_then(|port| port.port());
    let name = fields.get("name").and_then(|field| {
        let name = field.text()?;
        if !values::is_dns_label(&name) {
            let message = format!("\"{name}\" is not a valid port name");
            field.problem_with_fix(&codes::BAD_NAME, message, "use lower-case letters, digits and \"-\"");
        }
        Some(name)
    });
    if name_needed && name.is_none() {
        field.problem_with_fix(&codes::MISSING, "name is missing", "name every port when there are several");
    }
    let name = name.unwrap_or_default();
    let target = fields.get("targetPort").and_then(|field| target_port(&field));
    let transport =
        fields.get("protocol").and_then(|field| field.word(&[("TCP", true), ("UDP", false), ("SCTP", false)]));
    let carried = transport.unwrap_or(true);
    if !carried {
        field.problem(&codes::UDP_IGNORED, "this port is not TCP; the mesh leaves it alone");
    }
    let app_protocol = fields.text("appProtocol");
    fields.without_effect(&["nodePort"]);
    fields.finish();
    let port = number?;
    let protocol = protocol::of_port(app_protocol.as_deref(), &name, port);
    Some((ServicePort { name, port, target: target.unwrap_or(TargetPort::Number(port)), protocol }, carried))
}

fn target_port(field: &Field<'_>) -> Option<TargetPort> {
    if matches!(field.node.value, super::node::Value::Number(_)) {
        return field.port().map(TargetPort::Number);
    }
    let text = field.text()?;
    if let Ok(number) = text.parse::<u16>() {
        field.problem_with_fix(
            &codes::WRONG_TYPE,
            "a number in quotes names a port",
            format!("write {number} without quotes"),
        );
        return None;
    }
    if !values::is_dns_label(&text) {
        field.problem(&codes::BAD_NAME, format!("\"{text}\" is not a valid port name"));
        return None;
    }
    Some(TargetPort::Name(text))
}

pub(super) fn endpoint_slice(root: &mut Fields<'_>, header: &Header<'_>) -> Option<Spec> {
    let address_type = root
        .require("addressType")
        .and_then(|field| field.word(&[("IPv4", true), ("IPv6", true), ("FQDN", false)]).map(|known| (field, known)));
    if let Some((field, false)) = &address_type {
        field.say(
            Problem::new(&codes::FIELD_NOT_SUPPORTED, "addressType FQDN is not supported yet")
                .effect("its endpoints are left out"),
        );
    }
    let is_ip = address_type.is_none_or(|(_, is_ip)| is_ip);
    let mut endpoints = Vec::new();
    for field in root.list("endpoints") {
        slice_endpoint(&field, is_ip, &mut endpoints);
    }
    let ports_field = root.get("ports");
    let mut ports: Vec<(String, u16)> = Vec::new();
    for field in ports_field.as_ref().map(Field::items).unwrap_or_default() {
        let Some(mut fields) = field.object() else { continue };
        let name = fields.text("name").unwrap_or_default();
        let number = fields.require("port").and_then(|field| field.port());
        let tcp =
            fields.get("protocol").and_then(|field| field.word(&[("TCP", true), ("UDP", false), ("SCTP", false)]));
        fields.without_effect(&["appProtocol"]);
        fields.finish();
        if let Some(number) = number.filter(|_| tcp.unwrap_or(true)) {
            if ports.iter().any(|(other, _)| *other == name) {
                field.problem(&codes::DUPLICATE, format!("port name \"{name}\" is used twice"));
            } else {
                ports.push((name, number));
            }
        }
    }
    let service = header.labels.get(SERVICE_NAME).cloned();
    if service.is_none() {
        root.field.say(
            Problem::new(&codes::SLICE_WITHOUT_SERVICE, format!("label {SERVICE_NAME} is missing"))
                .at("metadata.labels")
                .effect("its endpoints belong to no Service")
                .fix(format!("add the label {SERVICE_NAME} with the Service's name")),
        );
    }
    let annotation = SERVICE_ACCOUNTS.iter().find_map(|name| Some((*name, header.annotations.get(*name)?)));
    if let Some((name, account)) = annotation.filter(|(_, account)| !values::is_account(account)) {
        root.field.report.add(
            root.field.node.line,
            root.field.node.column,
            Problem::new(&codes::BAD_NAME, format!("\"{account}\" is not a service account"))
                .at(format!("metadata.annotations[{name}]"))
                .fix("write the account's name, namespace/name, or a SPIFFE id"),
        );
    }
    let service_account = annotation.map(|(_, account)| account.clone());
    let peer = peer_of(header.labels, header, &root.field);
    if peer != PeerKind::Plain && service_account.is_none() {
        root.field.say(
            Problem::new(&codes::ANY_IDENTITY, format!("annotation {} is missing", SERVICE_ACCOUNTS[0]))
                .effect("any identity of the trust domain is accepted from these endpoints")
                .fix(format!("name the workloads' service account in the annotation {}", SERVICE_ACCOUNTS[0])),
        );
    }
    Some(Spec::EndpointSlice(EndpointSlice {
        service,
        endpoints,
        ports,
        peer,
        service_account,
        place: ports_field.as_ref().unwrap_or(&root.field).place(),
    }))
}

fn slice_endpoint(field: &Field<'_>, is_ip: bool, endpoints: &mut Vec<SliceEndpoint>) {
    let Some(mut fields) = field.object() else { return };
    let addresses = fields.require("addresses").map(|field| field.items()).unwrap_or_default();
    let (mut ready, mut serving, mut terminating) = (None, None, None);
    if let Some(mut conditions) = fields.object("conditions") {
        ready = conditions.get("ready").and_then(|field| field.flag());
        serving = conditions.get("serving").and_then(|field| field.flag());
        terminating = conditions.get("terminating").and_then(|field| field.flag());
        conditions.finish();
    }
    // EndpointConditions: "A nil value should be interpreted as true" for ready, as ready for serving, as false for terminating.
    let ready = ready.unwrap_or(true);
    let health = if ready {
        Health::Ready
    } else if serving.unwrap_or(ready) && terminating.unwrap_or(false) {
        Health::Draining
    } else {
        Health::Unready
    };
    let zone = fields.text("zone").unwrap_or_default();
    let mut target = None;
    if let Some(mut reference) = fields.object("targetRef") {
        let namespace = reference.text("namespace").unwrap_or_default();
        target = reference.text("name").filter(|_| !namespace.is_empty()).map(|name| (namespace, name));
        reference.without_effect(&["kind", "apiVersion", "uid", "resourceVersion", "fieldPath"]);
        reference.finish();
    }
    fields.without_effect(&["hostname", "nodeName", "hints", "deprecatedTopology"]);
    fields.finish();
    if !is_ip {
        return;
    }
    for address in addresses.iter().filter_map(Field::address) {
        endpoints.push(SliceEndpoint { address, health, zone: zone.clone(), target: target.clone() });
    }
}
