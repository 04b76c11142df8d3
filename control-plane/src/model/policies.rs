//! Which DestinationRule and breaker apply to a service's port, by the client's namespace. Pure.
//!
//! Looked up in the client's namespace, then the service's, then the root namespace: the first with a rule for the host decides
//! alone. In one namespace the most specific host counts; rules for the same host add up, oldest first (subsets add, the first
//! traffic policy stays). portLevelSettings replace the blocks of their policy; a subset overrides block by block.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use outrigger_proto::mesh::{BackendPolicy, Breaker, LoadBalancer, Origin, Policy, Subset, TlsMode};

use super::{Findings, MeshSettings, Service, breakers::Breakers, origin};
use crate::{
    api::{
        Object, Spec,
        istio::{DestinationRule, TrafficPolicy},
        load_balancer::LocalitySetting,
    },
    validate::{Problem, codes},
};

type Rule<'a> = (&'a Arc<Object>, &'a DestinationRule);

/// Rules of one namespace.
#[derive(Default)]
struct Namespace<'a> {
    exact: HashMap<String, Vec<Rule<'a>>>,
    /// Suffix with its dot (empty for `*`), longest first.
    wildcards: Vec<(String, Vec<Rule<'a>>)>,
}

impl<'a> Namespace<'a> {
    /// Rules of the most specific host that covers one of a service's names.
    fn find(&self, service: &Service) -> Option<&[Rule<'a>]> {
        let names = || std::iter::once(&service.host).chain(&service.hosts);
        let exact = names().find_map(|name| self.exact.get(name));
        let wildcard = || self.wildcards.iter().find(|(suffix, _)| names().any(|name| name.ends_with(suffix.as_str())));
        exact.or_else(|| wildcard().map(|(_, rules)| rules)).map(Vec::as_slice)
    }
}

pub(super) fn attach(
    services: &mut BTreeMap<String, Service>,
    objects: &[&Arc<Object>],
    breakers: &Breakers,
    settings: &MeshSettings,
    findings: &mut Findings,
) {
    let mut namespaces: BTreeMap<&str, Namespace<'_>> = BTreeMap::new();
    let mut by_host: HashMap<String, BTreeSet<&str>> = HashMap::new();
    for object in objects {
        let Spec::DestinationRule(rule) = &object.spec else { continue };
        let host = complete(&rule.host, &object.namespace, settings);
        let namespace = namespaces.entry(&object.namespace).or_default();
        if let Some(suffix) = host.strip_prefix('*') {
            match namespace.wildcards.iter_mut().find(|(other, _)| other == suffix) {
                Some((_, rules)) => rules.push((object, rule)),
                None => namespace.wildcards.push((suffix.to_owned(), vec![(object, rule)])),
            }
        } else {
            by_host.entry(host.clone()).or_default().insert(&object.namespace);
            namespace.exact.entry(host).or_default().push((object, rule));
        }
        remark(object, rule, findings);
    }
    for namespace in namespaces.values_mut() {
        namespace.wildcards.sort_by(|left, right| right.0.len().cmp(&left.0.len()).then_with(|| left.0.cmp(&right.0)));
    }
    let with_wildcards: Vec<&str> =
        namespaces.iter().filter(|(_, rules)| !rules.wildcards.is_empty()).map(|(name, _)| *name).collect();
    let mut used: BTreeSet<String> = BTreeSet::new();
    for service in services.values_mut() {
        let own = namespaces.get(service.namespace.as_str()).and_then(|rules| rules.find(service));
        let root = namespaces.get(settings.root_namespace.as_str()).and_then(|rules| rules.find(service));
        let general = own.or(root).unwrap_or_default();
        let clients: BTreeSet<&str> = std::iter::once(&service.host)
            .chain(&service.hosts)
            .filter_map(|name| by_host.get(name))
            .flatten()
            .chain(&with_wildcards)
            .copied()
            .filter(|name| *name != service.namespace && *name != settings.root_namespace)
            .collect();
        let of_clients: Vec<(&str, &[Rule<'_>])> =
            clients.into_iter().filter_map(|name| Some((name, namespaces.get(name)?.find(service)?))).collect();
        for (object, _) in general.iter().chain(of_clients.iter().flat_map(|(_, rules)| rules.iter())) {
            used.insert(object.key().to_string());
        }
        remark_on_scopes(service, general, &of_clients, findings);
        // A rule of the root namespace that the service's own namespace hides is still meant for this host.
        for (object, _) in root.unwrap_or_default() {
            used.insert(object.key().to_string());
        }
        let passthrough = service.passthrough;
        let ports: Vec<(u16, Option<(Breaker, Origin)>)> =
            service.ports.iter().map(|port| (port.number, breakers.of_port(service, &port.name).cloned())).collect();
        for (port, (number, breaker)) in service.ports.iter_mut().zip(ports) {
            let default = policy(general, number, breaker.as_ref(), passthrough);
            let is_plain = |policy: &BackendPolicy| policy.subsets.is_empty() && policy.base.as_ref() == Some(&plain());
            for (client, rules) in &of_clients {
                let scoped = policy(rules, number, breaker.as_ref(), passthrough);
                if (&scoped.base, &scoped.subsets) != (&default.base, &default.subsets) {
                    port.policies.insert((*client).to_owned(), scoped);
                }
            }
            if !is_plain(&default) {
                port.policies.insert(String::new(), default);
            }
        }
    }
    for object in objects {
        let Spec::DestinationRule(rule) = &object.spec else { continue };
        if used.contains(&object.key().to_string()) {
            findings.attach(object);
        } else {
            unused(object, rule, services, settings, findings);
        }
    }
}

/// A host without a dot is completed with the rule's own namespace.
fn complete(host: &str, namespace: &str, settings: &MeshSettings) -> String {
    if host.contains(['.', '*']) { host.to_owned() } else { super::service_host(namespace, host, settings) }
}

/// What applies where nothing is written.
fn plain() -> Policy {
    Policy { load_balancer: LoadBalancer::LeastRequest.into(), tls: TlsMode::Auto.into(), ..Policy::default() }
}

fn policy(rules: &[Rule<'_>], port: u16, breaker: Option<&(Breaker, Origin)>, passthrough: bool) -> BackendPolicy {
    let mut origins: Vec<Origin> = rules.iter().map(|(object, _)| origin(object)).collect();
    let general = rules.iter().find_map(|(_, rule)| rule.policy.as_ref());
    let default = if passthrough { LoadBalancer::Passthrough } else { LoadBalancer::LeastRequest };
    let mut base = Policy { load_balancer: default.into(), ..plain() };
    let mut setting = None;
    if let Some(general) = general {
        overlay(&mut base, &mut setting, general.ports.get(&port).unwrap_or(general), default);
    }
    if let Some((breaker, from)) = breaker {
        base.breaker = Some(breaker.clone());
        origins.push(from.clone());
    }
    let mut subsets: Vec<Subset> = Vec::new();
    for subset in rules.iter().flat_map(|(_, rule)| &rule.subsets) {
        if subsets.iter().any(|other| other.name == subset.name) {
            continue;
        }
        let (mut own, mut setting) = (base.clone(), setting);
        if let Some(policy) = &subset.policy {
            match policy.ports.get(&port) {
                Some(of_port) => {
                    own = Policy { breaker: base.breaker.clone(), ..plain() };
                    setting = None;
                    overlay(&mut own, &mut setting, of_port, default);
                }
                None => overlay(&mut own, &mut setting, policy, default),
            }
        }
        own.locality = LocalitySetting::preference(setting, own.outlier_detection.is_some());
        subsets.push(Subset { name: subset.name.clone(), labels: subset.labels.clone(), policy: Some(own) });
    }
    base.locality = LocalitySetting::preference(setting, base.outlier_detection.is_some());
    BackendPolicy { origins, base: Some(base), subsets }
}

/// Puts the blocks that are written over those that are there.
fn overlay<'a>(
    policy: &mut Policy,
    setting: &mut Option<&'a LocalitySetting>,
    over: &'a TrafficPolicy,
    default: LoadBalancer,
) {
    if let Some(block) = &over.load_balancer {
        policy.load_balancer = block.simple.unwrap_or(default).into();
        policy.consistent_hash.clone_from(&block.hash);
        policy.warmup = block.warmup;
        *setting = block.locality.as_ref();
    }
    if let Some(tls) = over.tls {
        policy.tls = tls.into();
    }
    if over.pool.is_some() {
        policy.pool = over.pool;
    }
    if over.outlier_detection.is_some() {
        policy.outlier_detection = over.outlier_detection;
    }
}

/// What surprises people about one rule alone.
fn remark(object: &Object, rule: &DestinationRule, findings: &mut Findings) {
    let policies = rule.policy.iter().chain(rule.subsets.iter().filter_map(|subset| subset.policy.as_ref()));
    for policy in policies {
        if !policy.ports.is_empty() && policy.has_blocks() {
            let ports: Vec<String> = policy.ports.keys().map(ToString::to_string).collect();
            findings.report(
                object,
                &rule.place,
                Problem::new(
                    &codes::PORT_POLICY_RESETS,
                    format!(
                        "portLevelSettings for port {} replace the general settings, they do not add to them",
                        ports.join(", ")
                    ),
                )
                .effect("blocks that are not repeated there have their defaults on these ports")
                .fix("repeat the blocks you want in portLevelSettings"),
            );
        }
    }
}

fn remark_on_scopes(
    service: &Service,
    general: &[Rule<'_>],
    of_clients: &[(&str, &[Rule<'_>])],
    findings: &mut Findings,
) {
    let duplicates = |rules: &[Rule<'_>], findings: &mut Findings| {
        let mut holder: Option<&Arc<Object>> = None;
        for (object, rule) in rules.iter().filter(|(_, rule)| rule.policy.is_some()) {
            match holder {
                None => holder = Some(object),
                Some(holder) => findings.report(
                    object,
                    &rule.place,
                    Problem::new(
                        &codes::DUPLICATE_POLICY,
                        format!("{} already has a trafficPolicy for this host", holder.key()),
                    )
                    .effect("this trafficPolicy has no effect: the older one wins; subsets are added")
                    .fix("merge the two rules"),
                ),
            }
        }
    };
    duplicates(general, findings);
    for (client, rules) in of_clients {
        duplicates(rules, findings);
        for (object, rule) in *rules {
            let problem = match general.first() {
                Some((hidden, _)) if !rule.host.contains('*') => Problem::new(
                    &codes::POLICY_HIDDEN,
                    format!("for clients in namespace {client} this rule hides {} entirely", hidden.key()),
                )
                .effect("settings and subsets of the hidden rule are not merged in")
                .fix("repeat what you need of it here, or move this rule's settings there"),
                None if !rule.host.contains('*') => Problem::new(
                    &codes::CONSUMER_POLICY,
                    format!("this rule applies to clients in namespace {client} only"),
                )
                .effect(format!(
                    "clients elsewhere read rules of namespace {} and of the root namespace",
                    service.namespace
                )),
                _ => continue,
            };
            findings.report(object, &rule.place, problem);
        }
    }
}

fn unused(
    object: &Object,
    rule: &DestinationRule,
    services: &BTreeMap<String, Service>,
    settings: &MeshSettings,
    findings: &mut Findings,
) {
    let host = complete(&rule.host, &object.namespace, settings);
    // "reviews.shop" has a dot, so Istio takes it as complete; most often a service was meant.
    let meant = rule.host.split_once('.').and_then(|(name, rest)| {
        let namespace = rest.split('.').next().unwrap_or_default();
        services.get(&super::service_key(namespace, name, settings))
    });
    let problem = match meant {
        Some(service) => Problem::new(
            &codes::HOST_NOT_COMPLETED,
            format!("\"{}\" contains a dot, so it is taken as a complete host name", rule.host),
        )
        .fix(format!("write \"{}\"", service.host)),
        None => {
            // A short name means the rule's own namespace, which is not where the service is.
            let elsewhere = || services.values().find(|service| service.name == rule.host);
            let fix = match findings.may_suggest().then(elsewhere).flatten() {
                Some(service) => format!("write \"{}\"", service.host),
                None => "correct the host, or add the Service or ServiceEntry".to_owned(),
            };
            Problem::new(&codes::UNKNOWN_DESTINATION_HOST, format!("no service has the host {host}")).fix(fix)
        }
    };
    findings.unresolved(object, "HostNotFound", format!("no service has the host {host}"));
    findings.report(object, &rule.place, problem.effect("the rule has no effect"));
}
