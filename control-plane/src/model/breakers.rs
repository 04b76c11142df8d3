//! Which circuit breaker applies to a Service's port and to a route's rule. Pure.
//!
//! A policy attaches to targets of its own namespace. For one target the oldest counts; one with a section (port or rule) beats
//! one without.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use outrigger_proto::mesh::{Breaker, Fallback, FallbackTarget, Origin, fallback};

use super::{Findings, MeshSettings, Service, origin, service_key};
use crate::{
    api::{
        Object, Spec,
        circuit_breaker::{CircuitBreaker, FallbackTo, TargetRef},
    },
    validate::{Problem, codes},
};

/// Breakers by target: kind, namespace, name, section (empty for the whole target).
#[derive(Default)]
pub(super) struct Breakers {
    by_target: HashMap<(&'static str, String, String, String), (Breaker, Origin)>,
}

impl Breakers {
    /// `objects` are in order of age.
    pub(super) fn collect(
        objects: &[&Arc<Object>],
        services: &BTreeMap<String, Service>,
        settings: &MeshSettings,
        findings: &mut Findings,
    ) -> Self {
        let mut breakers = Self::default();
        let routes: HashMap<(&str, &str), &Object> = objects
            .iter()
            .filter(|object| matches!(object.spec, Spec::HttpRoute(_)))
            .map(|object| ((object.namespace.as_str(), object.name.as_str()), &***object))
            .collect();
        for object in objects {
            let Spec::CircuitBreaker(spec) = &object.spec else { continue };
            let breaker = finished(object, spec, services, settings, findings);
            for target in &spec.targets {
                let fault = match target.kind.as_str() {
                    "Service" => service_fault(object, target, services, settings),
                    _ => route_fault(
                        object,
                        target,
                        routes.get(&(object.namespace.as_str(), target.name.as_str())).copied(),
                    ),
                };
                if let Some(message) = fault {
                    findings.refuse(object, "TargetNotFound", message.clone());
                    findings.report(
                        object,
                        &target.place,
                        Problem::new(&codes::TARGET_NOT_FOUND, message)
                            .effect("no breaker guards it")
                            .fix("correct name or sectionName"),
                    );
                    continue;
                }
                let kind = if target.kind == "Service" { "Service" } else { "HTTPRoute" };
                let section = target.section.clone().unwrap_or_default();
                let key = (kind, object.namespace.clone(), target.name.clone(), section);
                if let Some((_, holder)) = breakers.by_target.get(&key) {
                    let holder = format!("CircuitBreaker {}/{}", holder.namespace, holder.name);
                    findings.refuse(object, "Conflicted", format!("{holder} is older and has the same target"));
                    findings.report(
                        object,
                        &target.place,
                        Problem::new(&codes::DUPLICATE_POLICY, format!("{holder} already has this target"))
                            .effect("this one has no effect on it: the older one wins")
                            .fix("remove one of the two"),
                    );
                    continue;
                }
                findings.attach(object);
                breakers.by_target.insert(key, (breaker.clone(), origin(object)));
            }
        }
        breakers
    }

    /// The breaker of a Service's port.
    pub(super) fn of_port(&self, service: &Service, port_name: &str) -> Option<&(Breaker, Origin)> {
        if !matches!(service.source.spec, Spec::Service(_)) {
            return None;
        }
        self.of("Service", &service.namespace, &service.name, port_name)
    }

    /// The breaker of a route's rule.
    pub(super) fn of_rule(&self, route: &Object, rule_name: Option<&str>) -> Option<&(Breaker, Origin)> {
        self.of("HTTPRoute", &route.namespace, &route.name, rule_name.unwrap_or_default())
    }

    fn of(&self, kind: &'static str, namespace: &str, name: &str, section: &str) -> Option<&(Breaker, Origin)> {
        if self.by_target.is_empty() {
            return None;
        }
        let get =
            |section: &str| self.by_target.get(&(kind, namespace.to_owned(), name.to_owned(), section.to_owned()));
        get(section).or_else(|| get(""))
    }
}

fn service_fault(
    object: &Object,
    target: &TargetRef,
    services: &BTreeMap<String, Service>,
    settings: &MeshSettings,
) -> Option<String> {
    let Some(service) = services.get(&service_key(&object.namespace, &target.name, settings)) else {
        return Some(format!("there is no Service {}/{}", object.namespace, target.name));
    };
    let section = target.section.as_ref()?;
    let found = service.ports.iter().any(|port| port.name == *section);
    (!found).then(|| format!("Service {}/{} has no port named \"{section}\"", object.namespace, target.name))
}

fn route_fault(object: &Object, target: &TargetRef, route: Option<&Object>) -> Option<String> {
    let Some(Spec::HttpRoute(route)) = route.map(|route| &route.spec) else {
        return Some(format!("there is no HTTPRoute {}/{}", object.namespace, target.name));
    };
    let section = target.section.as_ref()?;
    let found = route.rules.iter().any(|rule| rule.name.as_ref() == Some(section));
    (!found).then(|| format!("HTTPRoute {}/{} has no rule named \"{section}\"", object.namespace, target.name))
}

/// The breaker with its name and fallback.
fn finished(
    object: &Object,
    spec: &CircuitBreaker,
    services: &BTreeMap<String, Service>,
    settings: &MeshSettings,
    findings: &mut Findings,
) -> Breaker {
    let mut breaker = spec.breaker.clone();
    breaker.name = format!("{}/{}", object.namespace, object.name);
    let Some(fallback) = &spec.fallback else { return breaker };
    let kind = match &fallback.to {
        FallbackTo::Reply(reply) => fallback::Kind::Reply(reply.clone()),
        FallbackTo::Backend { namespace, name, port, place } => {
            let key = service_key(namespace, name, settings);
            let (code, message) = match services.get(&key) {
                Some(service) if service.port(*port).is_some() => {
                    let target = FallbackTarget { service: key, port: u32::from(*port), subset: String::new() };
                    breaker.fallback = Some(Fallback {
                        max_concurrent: fallback.max_concurrent,
                        kind: Some(fallback::Kind::Backend(target)),
                    });
                    return breaker;
                }
                Some(service) => (
                    &codes::BACKEND_PORT_NOT_FOUND,
                    format!("Service {namespace}/{name} has no port {port} (it has {})", service.ports_text()),
                ),
                None => (&codes::BACKEND_NOT_FOUND, format!("there is no Service {namespace}/{name}")),
            };
            findings.unresolved(object, "BackendNotFound", message.clone());
            findings.report(
                object,
                place,
                Problem::new(code, message)
                    .effect("while the breaker is open, requests get 503")
                    .fix("correct the fallback's backendRef"),
            );
            return breaker;
        }
    };
    breaker.fallback = Some(Fallback { max_concurrent: fallback.max_concurrent, kind: Some(kind) });
    breaker
}
