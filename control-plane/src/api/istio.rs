//! Istio's DestinationRule, ServiceEntry, WorkloadEntry and PeerAuthentication.
//!
//! Field names are accepted in lowerCamel and snake_case, as Istio does. Blocks are read into the messages that proxies get;
//! defaults that depend on a block being present are filled in here.

use std::{collections::BTreeMap, net::IpAddr};

use outrigger_proto::mesh::{ConnectionPool, OutlierDetection, PeerKind, PeerMode, Protocol, TlsMode};

use super::{
    Problem, Spec,
    core::peer_of,
    fields::{Field, Fields, Place},
    kinds::Header,
    load_balancer::{self, LoadBalancing},
    values::{self, DurationStyle},
};
use crate::{model::protocol, validate::codes};

/// The blocks of a traffic policy; `None` where nothing is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    pub load_balancer: Option<LoadBalancing>,
    pub pool: Option<ConnectionPool>,
    pub outlier_detection: Option<OutlierDetection>,
    pub tls: Option<TlsMode>,
    /// Whole policies for single ports; they replace the blocks above.
    pub ports: BTreeMap<u16, Self>,
}

impl TrafficPolicy {
    /// Whether it says anything for ports without a policy of their own.
    pub(crate) fn has_blocks(&self) -> bool {
        self.load_balancer.is_some() || self.pool.is_some() || self.outlier_detection.is_some() || self.tls.is_some()
    }
}

/// Istio's DestinationRule.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// As written.
    pub host: String,
    pub policy: Option<TrafficPolicy>,
    pub subsets: Vec<Subset>,
    pub place: Place,
}

/// One subset.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub policy: Option<TrafficPolicy>,
}

/// Istio's WorkloadEntry, also inside a ServiceEntry.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadEntry {
    pub address: IpAddr,
    /// Port numbers by the name of the service's port.
    pub ports: BTreeMap<String, u16>,
    pub labels: BTreeMap<String, String>,
    pub locality: String,
    /// 0 means 1.
    pub weight: u32,
    /// Empty: no identity is demanded.
    pub service_account: String,
    pub peer: PeerKind,
    pub place: Place,
}

/// How a ServiceEntry finds its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The address that the application dialled.
    None,
    Static,
    /// By DNS: not supported yet.
    Dns,
}

/// Istio's ServiceEntry.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceEntry {
    pub hosts: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<EntryPort>,
    /// `location: MESH_EXTERNAL`, which is the default.
    pub external: bool,
    pub resolution: Resolution,
    pub endpoints: Vec<WorkloadEntry>,
    pub selector: BTreeMap<String, String>,
    /// The one identity that endpoints without a service account must prove.
    pub identity: Option<String>,
    pub place: Place,
}

/// One port of a ServiceEntry.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryPort {
    pub number: u16,
    pub name: String,
    pub protocol: Protocol,
    pub target: u16,
}

/// Istio's PeerAuthentication.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    /// Empty: the whole namespace.
    pub selector: BTreeMap<String, String>,
    /// `None`: as the level above says.
    pub mode: Option<PeerMode>,
    /// By port of the workload.
    pub ports: BTreeMap<u16, Option<PeerMode>>,
    pub place: Place,
}

const UNUSED: &str = "it has no effect";

fn spec<'a>(root: &mut Fields<'a>) -> Option<Fields<'a>> {
    Some(root.require("spec")?.object()?.proto_json())
}

fn everyone(fields: &mut Fields<'_>) {
    if let Some(field) = fields.get("exportTo") {
        let all =
            field.items().iter().all(|item| matches!(&item.node.value, super::node::Value::Text(text) if text == "*"));
        if !all {
            field.say(
                Problem::new(&codes::FIELD_NOT_SUPPORTED, "exportTo other than \"*\" is not supported yet")
                    .effect("every namespace sees it")
                    .fix("remove exportTo"),
            );
        }
    }
}

pub(super) fn destination_rule(root: &mut Fields<'_>, _: &Header<'_>) -> Option<Spec> {
    let mut spec = spec(root)?;
    let host_field = spec.require("host");
    let host = host_field.as_ref().and_then(Field::text);
    if let (Some(field), Some(host)) = (&host_field, &host)
        && !is_host_pattern(host)
    {
        field.problem(&codes::BAD_HOST, format!("\"{host}\" is not a host name"));
    }
    let policy = spec.object("trafficPolicy").map(|fields| traffic_policy(fields, true));
    let mut subsets: Vec<Subset> = Vec::new();
    for field in spec.list("subsets") {
        let Some(fields) = field.object() else { continue };
        let mut fields = fields.proto_json();
        let name = fields.require("name").and_then(|field| field.text());
        let labels = fields.get("labels").map(|field| field.labels()).unwrap_or_default();
        let policy = fields.object("trafficPolicy").map(|fields| traffic_policy(fields, true));
        fields.finish();
        let Some(name) = name else { continue };
        if !values::is_dns_label(&name) {
            field.problem(&codes::BAD_NAME, format!("\"{name}\" is not a valid subset name"));
        }
        if subsets.iter().any(|other| other.name == name) {
            field.problem(&codes::DUPLICATE, format!("subset \"{name}\" is defined twice"));
        }
        subsets.push(Subset { name, labels, policy });
    }
    everyone(&mut spec);
    spec.not_supported_security(
        &["workloadSelector"],
        "the rule would apply to every client instead of the selected ones",
    );
    spec.finish();
    let place = host_field.map_or_else(Place::default, |field| field.place());
    Some(Spec::DestinationRule(DestinationRule { host: host?, policy, subsets, place }))
}

fn is_host_pattern(host: &str) -> bool {
    let rest = host.strip_prefix("*.").unwrap_or(host);
    host == "*" || values::is_dns_name(rest)
}

fn traffic_policy(mut fields: Fields<'_>, with_ports: bool) -> TrafficPolicy {
    let load_balancer = fields.object("loadBalancer").map(load_balancer::read);
    let pool = fields.object("connectionPool").map(connection_pool);
    let outlier_detection = fields.object("outlierDetection").map(outlier_detection);
    let tls = fields.object("tls").and_then(tls);
    let mut ports = BTreeMap::new();
    if with_ports {
        for field in fields.list("portLevelSettings") {
            let Some(inner) = field.object() else { continue };
            let mut inner = inner.proto_json();
            let port = inner.require("port").and_then(|field| {
                let mut port = field.object()?;
                let number = port.require("number").and_then(|field| field.port());
                port.finish();
                number
            });
            let policy = traffic_policy(inner, false);
            if let Some(port) = port
                && ports.insert(port, policy).is_some()
            {
                field.problem(&codes::DUPLICATE, format!("port {port} has two policies"));
            }
        }
    } else {
        fields.without_effect(&["port"]);
    }
    fields.not_supported(&["tunnel", "proxyProtocol", "retryBudget"], UNUSED);
    fields.finish();
    TrafficPolicy { load_balancer, pool, outlier_detection, tls, ports }
}

fn connection_pool(mut fields: Fields<'_>) -> ConnectionPool {
    let mut pool = ConnectionPool::default();
    if let Some(mut tcp) = fields.object("tcp") {
        pool.max_connections = tcp.count("maxConnections");
        pool.connect_timeout = tcp.duration("connectTimeout", DurationStyle::Go);
        pool.tcp_idle_timeout = tcp.duration("idleTimeout", DurationStyle::Go);
        pool.max_connection_duration = tcp.duration("maxConnectionDuration", DurationStyle::Go);
        tcp.not_supported(&["tcpKeepalive"], "the sidecar's own keep-alive settings apply");
        tcp.finish();
    }
    if let Some(mut http) = fields.object("http") {
        pool.max_pending_requests = http.count("http1MaxPendingRequests");
        pool.max_requests = http.count("http2MaxRequests");
        pool.max_requests_per_connection = http.count("maxRequestsPerConnection");
        pool.max_retries = http.count("maxRetries");
        pool.http_idle_timeout = http.duration("idleTimeout", DurationStyle::Go);
        pool.max_concurrent_streams = http.count("maxConcurrentStreams");
        http.not_supported(&["h2UpgradePolicy", "useClientProtocol", "http2Keepalive"], UNUSED);
        http.finish();
    }
    fields.finish();
    pool
}

fn outlier_detection(mut fields: Fields<'_>) -> OutlierDetection {
    let count = |fields: &mut Fields<'_>, name: &'static str, default: u32| match fields.get(name) {
        None => default,
        Some(field) => {
            field.number(0, u64::from(u32::MAX)).and_then(|number| u32::try_from(number).ok()).unwrap_or(default)
        }
    };
    let percent = |fields: &mut Fields<'_>, name: &'static str, default: u32| match fields.get(name) {
        None => default,
        Some(field) => field.number(0, 100).and_then(|number| u32::try_from(number).ok()).unwrap_or(default),
    };
    let seconds = |seconds: i64| prost_types::Duration { seconds, nanos: 0 };
    let split = fields.get("splitExternalLocalOriginErrors").and_then(|field| field.flag()).unwrap_or(false);
    let deprecated = count(&mut fields, "consecutiveErrors", 5);
    let detection = OutlierDetection {
        consecutive_5xx: count(&mut fields, "consecutive5xxErrors", deprecated),
        consecutive_gateway_errors: count(&mut fields, "consecutiveGatewayErrors", 0),
        consecutive_local_failures: count(&mut fields, "consecutiveLocalOriginFailures", if split { 5 } else { 0 }),
        split_local_errors: split,
        interval: Some(fields.duration("interval", DurationStyle::Go).unwrap_or_else(|| seconds(10))),
        base_ejection_time: Some(fields.duration("baseEjectionTime", DurationStyle::Go).unwrap_or_else(|| seconds(30))),
        max_ejection_percent: percent(&mut fields, "maxEjectionPercent", 10),
        min_health_percent: percent(&mut fields, "minHealthPercent", 0),
    };
    fields.not_supported(&["outlierDetectionHttpErrorCodes"], "every 5xx counts");
    fields.finish();
    detection
}

fn tls(mut fields: Fields<'_>) -> Option<TlsMode> {
    let mode_field = fields.require("mode");
    let mode = mode_field.as_ref().and_then(|field| {
        field.word(&[
            ("DISABLE", Some(TlsMode::Disable)),
            ("ISTIO_MUTUAL", Some(TlsMode::Mesh)),
            ("SIMPLE", None),
            ("MUTUAL", None),
        ])
    });
    if let (Some(field), Some(None)) = (&mode_field, mode) {
        field.say(
            Problem::new(&codes::SECURITY_FIELD_NOT_SUPPORTED, "TLS origination (SIMPLE, MUTUAL) is not supported yet")
                .effect("connections would be plaintext, so the rule is refused")
                .fix("let the application speak TLS itself, or use ISTIO_MUTUAL for endpoints in the mesh"),
        );
    }
    fields.not_supported_security(
        &[
            "sni",
            "subjectAltNames",
            "caCertificates",
            "clientCertificate",
            "privateKey",
            "credentialName",
            "insecureSkipVerify",
            "caCrl",
        ],
        "connections would not be checked as written, so the rule is refused",
    );
    fields.finish();
    mode.flatten()
}

/// `is_object`: whether the object is a WorkloadEntry itself, so that its labels are the workload's.
fn entry_fields(fields: &mut Fields<'_>, header: &Header<'_>, is_object: bool) -> Option<WorkloadEntry> {
    let address = fields.require("address").and_then(|field| {
        let text = field.text()?;
        let address = text.parse().ok();
        if address.is_none() {
            field.problem_with_fix(
                &codes::BAD_ADDRESS,
                format!("\"{text}\" is not an IP address; host names and sockets are not supported yet"),
                "write an IP address",
            );
        }
        address
    });
    let mut ports = BTreeMap::new();
    for (name, field) in fields.get("ports").map(|field| field.entries()).unwrap_or_default() {
        if let Some(port) = field.port() {
            ports.insert(name, port);
        }
    }
    let own = fields.get("labels").map(|field| field.labels()).unwrap_or_default();
    // WorkloadEntry labels are those of the spec; those of the object are added, as Istio does.
    let mut labels = if is_object { header.labels.clone() } else { BTreeMap::new() };
    labels.extend(own);
    let locality = fields.text("locality").unwrap_or_default();
    let weight = fields.count("weight");
    let service_account = fields.get("serviceAccount").and_then(|field| {
        let account = field.text()?;
        if !account.is_empty() && !values::is_account(&account) {
            field.problem(&codes::BAD_NAME, format!("\"{account}\" is not a service account"));
        }
        Some(account)
    });
    let service_account = service_account.unwrap_or_default();
    fields.not_supported(&["network"], "the address is dialled directly");
    let peer = peer_of(&labels, header, &fields.field);
    if peer != PeerKind::Plain && service_account.is_empty() {
        fields.field.say(
            Problem::new(&codes::ANY_IDENTITY, "serviceAccount is missing")
                .effect("any identity of the trust domain is accepted from this endpoint")
                .fix("name the workload's serviceAccount"),
        );
    }
    Some(WorkloadEntry {
        address: address?,
        ports,
        labels,
        locality,
        weight,
        service_account,
        peer,
        place: fields.field.place(),
    })
}

pub(super) fn workload_entry(root: &mut Fields<'_>, header: &Header<'_>) -> Option<Spec> {
    let mut spec = spec(root)?;
    let entry = entry_fields(&mut spec, header, true);
    spec.finish();
    entry.map(Spec::WorkloadEntry)
}

pub(super) fn service_entry(root: &mut Fields<'_>, header: &Header<'_>) -> Option<Spec> {
    let mut spec = spec(root)?;
    let hosts_field = spec.require("hosts");
    let mut hosts = Vec::new();
    for field in hosts_field.as_ref().map(Field::items).unwrap_or_default() {
        let Some(host) = field.text() else { continue };
        if host.starts_with('*') {
            field.say(
                Problem::new(&codes::FIELD_NOT_SUPPORTED, "a host with a wildcard is not supported yet")
                    .effect("requests to it are handled as to an unknown destination"),
            );
        } else if !values::is_dns_name(&host) {
            field.problem(&codes::BAD_HOST, format!("\"{host}\" is not a host name"));
        } else if hosts.contains(&host) {
            field.problem(&codes::DUPLICATE, format!("host \"{host}\" is listed twice"));
        } else {
            hosts.push(host);
        }
    }
    if let Some(field) = &hosts_field
        && field.items().is_empty()
    {
        field.problem(&codes::MISSING, "hosts is empty");
    }
    let mut addresses = Vec::new();
    for field in spec.list("addresses") {
        let Some(text) = field.text() else { continue };
        let single = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128")).unwrap_or(&text);
        if let Ok(address) = single.parse::<IpAddr>() {
            addresses.push(address);
        } else if text.parse::<ipnet::IpNet>().is_ok() {
            field.say(
                Problem::new(&codes::FIELD_NOT_SUPPORTED, "a range of addresses is not supported yet")
                    .effect("connections to these addresses are handled as to an unknown destination")
                    .fix("list single addresses"),
            );
        } else {
            field.problem(&codes::BAD_ADDRESS, format!("\"{text}\" is not an IP address"));
        }
    }
    let ports = entry_ports(&mut spec);
    let external = spec
        .get("location")
        .and_then(|field| field.word(&[("MESH_EXTERNAL", true), ("MESH_INTERNAL", false)]))
        .unwrap_or(true);
    let resolution_field = spec.get("resolution");
    let resolution = resolution_field.as_ref().and_then(|field| {
        field.word(&[
            ("NONE", Resolution::None),
            ("STATIC", Resolution::Static),
            ("DNS", Resolution::Dns),
            ("DNS_ROUND_ROBIN", Resolution::Dns),
            ("DYNAMIC_DNS", Resolution::Dns),
        ])
    });
    let resolution = resolution.unwrap_or(Resolution::None);
    if let (Some(field), Resolution::Dns) = (&resolution_field, resolution) {
        field.say(
            Problem::new(&codes::FIELD_NOT_SUPPORTED, "resolution by DNS is not supported yet")
                .effect("requests to these hosts are handled as to an unknown destination")
                .fix("use resolution STATIC with endpoints, or remove the ServiceEntry"),
        );
    }
    let endpoints_field = spec.get("endpoints");
    let mut endpoints = Vec::new();
    let port_names: Vec<String> = ports.iter().map(|port| port.name.clone()).collect();
    for field in endpoints_field.as_ref().map(Field::items).unwrap_or_default() {
        let Some(fields) = field.object().filter(|_| resolution != Resolution::Dns) else { continue };
        let mut fields = fields.proto_json();
        if let Some(entry) = entry_fields(&mut fields, header, false) {
            for name in entry.ports.keys().filter(|name| !port_names.contains(name)) {
                field.problem(
                    &codes::INCONSISTENT,
                    format!("ports names \"{name}\", which is no port of this ServiceEntry"),
                );
            }
            endpoints.push(entry);
        }
        fields.finish();
    }
    let selector = spec.get("workloadSelector").map(|field| selector(&field, "labels")).unwrap_or_default();
    if let Some(field) = &endpoints_field {
        if !selector.is_empty() {
            field.problem_with_fix(
                &codes::EXCLUSIVE,
                "endpoints and workloadSelector exclude each other",
                "remove one of the two",
            );
        }
        if resolution == Resolution::None {
            field.problem_with_fix(
                &codes::EXCLUSIVE,
                "endpoints have no use with resolution NONE",
                "write resolution: STATIC",
            );
        }
    }
    let mut identity = None;
    if let Some(field) = spec.get("subjectAltNames") {
        let names: Vec<String> = field.items().iter().filter_map(Field::text).collect();
        if names.len() > 1 {
            field.say(
                Problem::new(
                    &codes::SECURITY_FIELD_NOT_SUPPORTED,
                    "more than one of subjectAltNames is not supported yet",
                )
                .effect("endpoints would be checked against one of them only, so the entry is refused")
                .fix("give every endpoint its own serviceAccount"),
            );
        }
        identity = names.into_iter().next();
        if identity.as_ref().is_some_and(|name| !(name.starts_with("spiffe://") && values::is_account(name))) {
            field.problem_with_fix(
                &codes::SECURITY_FIELD_NOT_SUPPORTED,
                "only SPIFFE ids are supported here yet",
                "write spiffe://<trust domain>/ns/<namespace>/sa/<account>",
            );
        }
    }
    everyone(&mut spec);
    spec.finish();
    let place = hosts_field.map_or_else(Place::default, |field| field.place());
    Some(Spec::ServiceEntry(ServiceEntry {
        hosts,
        addresses,
        ports,
        external,
        resolution,
        endpoints,
        selector,
        identity,
        place,
    }))
}

fn entry_ports(spec: &mut Fields<'_>) -> Vec<EntryPort> {
    let mut ports: Vec<EntryPort> = Vec::new();
    let Some(list) = spec.require("ports") else { return ports };
    for field in list.items() {
        let Some(fields) = field.object() else { continue };
        let mut fields = fields.proto_json();
        let number = fields.require("number").and_then(|field| field.port());
        let name = fields.require("name").and_then(|field| field.text());
        let declared = fields.get("protocol").and_then(|field| {
            let text = field.text()?;
            let words = ["http", "https", "grpc", "grpc-web", "http2", "tcp", "tls", "mongo"];
            let lower = text.to_ascii_lowercase();
            if !words.contains(&lower.as_str()) {
                field.problem_with_fix(
                    &codes::UNKNOWN_WORD,
                    format!("\"{text}\" is not a protocol"),
                    "use one of HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP, TLS",
                );
            }
            Some(lower)
        });
        let target = fields.get("targetPort").and_then(|field| field.port());
        fields.finish();
        let (Some(number), Some(name)) = (number, name) else { continue };
        if ports.iter().any(|other| other.number == number || other.name == name) {
            field.problem(
                &codes::DUPLICATE,
                format!("port {number} \"{name}\" has a number or name that is used twice"),
            );
            continue;
        }
        let protocol = protocol::of_port(declared.as_deref(), &name, number);
        ports.push(EntryPort { number, name, protocol, target: target.unwrap_or(number) });
    }
    ports
}

fn selector(field: &Field<'_>, name: &'static str) -> BTreeMap<String, String> {
    let Some(fields) = field.object() else { return BTreeMap::new() };
    let mut fields = fields.proto_json();
    let labels = fields.get(name).map(|field| field.labels()).unwrap_or_default();
    fields.finish();
    labels
}

const MODES: [(&str, Option<PeerMode>); 4] = [
    ("UNSET", None),
    ("PERMISSIVE", Some(PeerMode::Permissive)),
    ("STRICT", Some(PeerMode::Strict)),
    ("DISABLE", Some(PeerMode::Disable)),
];

fn mode(field: &Field<'_>) -> Option<PeerMode> {
    let mut fields = field.object()?;
    let mode = fields.get("mode").and_then(|field| field.word(&MODES)).flatten();
    fields.finish();
    mode
}

pub(super) fn peer_authentication(root: &mut Fields<'_>, _: &Header<'_>) -> Option<Spec> {
    let Some(spec_field) = root.get("spec") else {
        return Some(Spec::PeerAuthentication(PeerAuthentication {
            selector: BTreeMap::new(),
            mode: None,
            ports: BTreeMap::new(),
            place: root.field.place(),
        }));
    };
    let mut spec = spec_field.object()?.proto_json();
    let selector = spec.get("selector").map(|field| selector(&field, "matchLabels")).unwrap_or_default();
    let own_mode = spec.get("mtls").and_then(|field| mode(&field));
    let ports_field = spec.get("portLevelMtls");
    let mut ports = BTreeMap::new();
    for (key, field) in ports_field.as_ref().map(Field::entries).unwrap_or_default() {
        match key.parse::<u16>() {
            Ok(port) if port > 0 => {
                ports.insert(port, mode(&field));
            }
            _ => field.problem(&codes::OUT_OF_RANGE, format!("\"{key}\" is not a port from 1 to 65535")),
        }
    }
    if let Some(field) = &ports_field
        && selector.is_empty()
    {
        field.problem_with_fix(
            &codes::INCONSISTENT,
            "portLevelMtls needs a selector",
            "add selector.matchLabels for the workloads that have these ports",
        );
    }
    spec.finish();
    let place = ports_field.unwrap_or(spec_field).place();
    Some(Spec::PeerAuthentication(PeerAuthentication { selector, mode: own_mode, ports, place }))
}
