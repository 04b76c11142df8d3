//! Every kind we know: those that are read, those that are stored without effect, and those that are not supported yet.

use super::{Spec, circuit_breaker, core, fields::Fields, gateway, istio};
use crate::validate::codes::{self, Code};

/// What the reader of a kind needs besides the fields.
pub(crate) struct Header<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a std::collections::BTreeMap<String, String>,
    pub(crate) annotations: &'a std::collections::BTreeMap<String, String>,
}

type Reader = fn(&mut Fields<'_>, &Header<'_>) -> Option<Spec>;

#[derive(Clone, Copy)]
pub(crate) enum Support {
    /// Read by this function, which gets the whole object.
    Read(Reader),
    /// Stored, without effect of its own.
    Inert,
    /// Reported with this code.
    No(&'static Code, &'static str),
}

pub(crate) struct KindEntry {
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) group: &'static str,
    /// Versions that mean the same; empty for any.
    pub(crate) versions: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) support: Support,
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
const OURS: &str = "outrigger.mesh";
const ISTIO_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY_VERSIONS: &[&str] = &["v1", "v1beta1"];
const NO_EFFECT: &str = "it has no effect";
const NOT_ENFORCED: &str = "what it should protect would be unprotected, so it is refused";

const fn read(
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    group: &'static str,
    versions: &'static [&'static str],
    reader: Reader,
) -> KindEntry {
    KindEntry { kind, plural, short, group, versions, namespaced: true, support: Support::Read(reader) }
}

const fn no(kind: &'static str, group: &'static str, code: &'static Code, effect: &'static str) -> KindEntry {
    KindEntry {
        kind,
        plural: "",
        short: &[],
        group,
        versions: &[],
        namespaced: true,
        support: Support::No(code, effect),
    }
}

/// The table.
pub(crate) static KINDS: &[KindEntry] = &[
    read("Service", "services", &["svc"], "", &["v1"], core::service),
    read("EndpointSlice", "endpointslices", &["eps"], "discovery.k8s.io", &["v1", "v1beta1"], core::endpoint_slice),
    KindEntry {
        kind: "Namespace",
        plural: "namespaces",
        short: &["ns"],
        group: "",
        versions: &["v1"],
        namespaced: false,
        support: Support::Inert,
    },
    KindEntry {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        short: &["sa"],
        group: "",
        versions: &["v1"],
        namespaced: true,
        support: Support::Inert,
    },
    read("HTTPRoute", "httproutes", &["hr"], GATEWAY, &["v1", "v1beta1"], gateway::http_route),
    read("TCPRoute", "tcproutes", &["tcr"], GATEWAY, &["v1", "v1alpha2", "v1alpha3"], gateway::tcp_route),
    read("DestinationRule", "destinationrules", &["dr"], NETWORKING, ISTIO_VERSIONS, istio::destination_rule),
    read("ServiceEntry", "serviceentries", &["se"], NETWORKING, ISTIO_VERSIONS, istio::service_entry),
    read("WorkloadEntry", "workloadentries", &["we"], NETWORKING, ISTIO_VERSIONS, istio::workload_entry),
    read("PeerAuthentication", "peerauthentications", &["pa"], SECURITY, SECURITY_VERSIONS, istio::peer_authentication),
    read("CircuitBreaker", "circuitbreakers", &["cb"], OURS, &["v1alpha1"], circuit_breaker::circuit_breaker),
    no("RateLimit", OURS, &codes::SECURITY_KIND_NOT_SUPPORTED, NOT_ENFORCED),
    no("Canary", OURS, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no(
        "GRPCRoute",
        GATEWAY,
        &codes::KIND_NOT_SUPPORTED,
        "gRPC calls go to the Service as if it did not exist; an HTTPRoute works for them",
    ),
    no("TLSRoute", GATEWAY, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("UDPRoute", GATEWAY, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("Gateway", GATEWAY, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("GatewayClass", GATEWAY, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("ListenerSet", GATEWAY, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("ReferenceGrant", GATEWAY, &codes::KIND_NOT_SUPPORTED, "routes on Services need no grant"),
    no("BackendTLSPolicy", GATEWAY, &codes::SECURITY_KIND_NOT_SUPPORTED, NOT_ENFORCED),
    no(
        "VirtualService",
        NETWORKING,
        &codes::KIND_NOT_SUPPORTED,
        "requests go to the service as if it did not exist; an HTTPRoute on the Service can do the same",
    ),
    no("Gateway", NETWORKING, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("Sidecar", NETWORKING, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("WorkloadGroup", NETWORKING, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("ProxyConfig", NETWORKING, &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("EnvoyFilter", NETWORKING, &codes::NEVER_SUPPORTED, "there is no Envoy in this mesh"),
    no("AuthorizationPolicy", SECURITY, &codes::SECURITY_KIND_NOT_SUPPORTED, NOT_ENFORCED),
    no("RequestAuthentication", SECURITY, &codes::SECURITY_KIND_NOT_SUPPORTED, NOT_ENFORCED),
    no("Telemetry", "telemetry.istio.io", &codes::KIND_NOT_SUPPORTED, NO_EFFECT),
    no("WasmPlugin", "extensions.istio.io", &codes::NEVER_SUPPORTED, "there is no Envoy in this mesh"),
];

/// Groups of Kubernetes whose kinds have no meaning for the mesh: a file may hold them beside those that do.
static OTHER_GROUPS: &[&str] = &[
    "",
    "apps",
    "batch",
    "autoscaling",
    "policy",
    "discovery.k8s.io",
    "networking.k8s.io",
    "rbac.authorization.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "coordination.k8s.io",
    "events.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "certificates.k8s.io",
    "gateway.networking.x-k8s.io",
    "install.istio.io",
    "monitoring.coreos.com",
];

/// Core kinds that are known though the group also holds kinds we read.
static OTHER_CORE: &[&str] = &[
    "Pod",
    "ConfigMap",
    "Secret",
    "Node",
    "Endpoints",
    "ReplicationController",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "LimitRange",
    "ResourceQuota",
    "Event",
    "PodTemplate",
];

/// What a document's apiVersion and kind stand for.
pub(crate) enum Found {
    Entry(&'static KindEntry),
    /// Another kind of Kubernetes, without meaning here.
    Other,
    /// The kind exists, in these apiVersions.
    WrongVersion(Vec<String>),
    /// The kind does not exist; perhaps this was meant.
    Unknown(Option<&'static str>),
}

/// Looks up what a document is.
pub(crate) fn find(api_version: &str, kind: &str) -> Found {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let of_group = |entry: &&KindEntry| entry.kind == kind && entry.group == group;
    if let Some(entry) = KINDS.iter().find(of_group) {
        if entry.versions.is_empty() || entry.versions.contains(&version) {
            return Found::Entry(entry);
        }
        return Found::WrongVersion(api_versions(entry));
    }
    let same_kind: Vec<String> = KINDS.iter().filter(|entry| entry.kind == kind).flat_map(api_versions).collect();
    if !same_kind.is_empty() {
        return Found::WrongVersion(same_kind);
    }
    if OTHER_CORE.contains(&kind) || (!group.is_empty() && OTHER_GROUPS.contains(&group)) {
        return Found::Other;
    }
    let near = super::values::nearest(kind, KINDS.iter().map(|entry| entry.kind).chain(OTHER_CORE.iter().copied()));
    Found::Unknown(near)
}

fn api_versions(entry: &KindEntry) -> Vec<String> {
    let versions = if entry.versions.is_empty() { &["v1"] } else { entry.versions };
    let text = |version: &&str| {
        if entry.group.is_empty() { (*version).to_owned() } else { format!("{}/{version}", entry.group) }
    };
    versions.iter().map(text).collect()
}

/// The canonical kind for what a user typed.
pub(crate) fn canonical(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    // "httproutes.gateway.networking.k8s.io" names the group too.
    let name = text.split('.').next().unwrap_or_default();
    KINDS
        .iter()
        .filter(|entry| !matches!(entry.support, Support::No(..)))
        .find(|entry| entry.kind.to_ascii_lowercase() == name || entry.plural == name || entry.short.contains(&name))
        .map(|entry| entry.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_under_every_usual_name() {
        // `outrigger get svc` must work as kubectl's does.
        for (text, kind) in [
            ("svc", "Service"),
            ("Services", "Service"),
            ("HTTPRoutes", "HTTPRoute"),
            ("httproute", "HTTPRoute"),
            ("httproutes.gateway.networking.k8s.io", "HTTPRoute"),
            ("dr", "DestinationRule"),
            ("pa", "PeerAuthentication"),
            ("se", "ServiceEntry"),
            ("we", "WorkloadEntry"),
            ("cb", "CircuitBreaker"),
            ("eps", "EndpointSlice"),
            ("ns", "Namespace"),
        ] {
            assert_eq!(canonical(text), Some(kind), "{text}");
        }
        assert_eq!(canonical("virtualservice"), None);
        assert_eq!(canonical(""), None);
    }
}
