//! Which routes apply to which port of which service, for whom, in which order. Pure.
//!
//! A route in the Service's namespace is for every client (scope empty), one in another namespace for clients of that namespace, for
//! whom it replaces the others. On one port and scope an HTTPRoute beats a TCPRoute. Only the routes of the service that is called
//! apply, never those of a backend.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use outrigger_proto::mesh::{
    Arm, BadTarget, HttpRule, Protocol, RequestMatch, RouteTable, Split, Sticky, Target, TcpRule, arm, http_rule,
    path_match,
};
use prost::Message;

use super::{Findings, MeshSettings, Service, breakers::Breakers, origin, precedence, protocol, service_key};
use crate::{
    api::{
        Object, Spec,
        gateway::{BackendRef, HttpRoute, ParentRef, TcpRoute},
    },
    validate::{Problem, codes},
};

/// Routes of one port and scope, by kind, oldest first.
#[derive(Default)]
struct Group<'a> {
    http: Vec<(&'a Arc<Object>, &'a HttpRoute, &'a ParentRef)>,
    tcp: Vec<(&'a Arc<Object>, &'a TcpRoute, &'a ParentRef)>,
}

type Groups<'a> = BTreeMap<(String, u16, String), Group<'a>>;

/// Keys of services made from ServiceEntries, by namespace and name of the object.
type Entries = HashMap<(String, String), String>;

/// Backends of one route as they resolved, by rule.
type Splits = HashMap<String, Vec<Split>>;

pub(super) fn attach(
    services: &mut BTreeMap<String, Service>,
    objects: &[&Arc<Object>],
    breakers: &Breakers,
    settings: &MeshSettings,
    findings: &mut Findings,
) {
    let mut groups = Groups::new();
    let mut splits = Splits::new();
    let entries: Entries = services
        .values()
        .filter(|service| matches!(service.source.spec, Spec::ServiceEntry(_)))
        .map(|service| ((service.source.namespace.clone(), service.source.name.clone()), service.key.clone()))
        .collect();
    for object in objects {
        let (parents, resolved) = match &object.spec {
            Spec::HttpRoute(route) => {
                if let Some(place) = &route.hostnames {
                    findings.report(
                        object,
                        place,
                        Problem::new(
                            &codes::HOSTNAMES_IGNORED,
                            "a route on a Service is chosen by the Service, not by host names",
                        )
                        .effect("requests with any host name match")
                        .fix("remove hostnames"),
                    );
                }
                let rules = route.rules.iter().map(|rule| (&rule.backends, rule.redirect.is_some(), &rule.place));
                let sticky = route.sticky.clone().map(|sticky| Sticky {
                    // Whoever renames or reorders rules does not want other users in the canary.
                    seed: object.key().to_string(),
                    ..sticky
                });
                (&route.parents, resolve_all(object, rules, services, settings, sticky.as_ref(), findings))
            }
            Spec::TcpRoute(route) => {
                let rules = route.rules.iter().map(|rule| (&rule.backends, false, &rule.place));
                (&route.parents, resolve_all(object, rules, services, settings, None, findings))
            }
            _ => continue,
        };
        splits.insert(object.key().to_string(), resolved);
        for parent in parents {
            join(object, parent, services, &entries, settings, &mut groups, findings);
        }
    }
    for ((key, port, scope), group) in groups {
        settle(&key, port, &scope, &group, findings);
        let Some(port) =
            services.get_mut(&key).and_then(|service| service.ports.iter_mut().find(|one| one.number == port))
        else {
            continue;
        };
        let table = if group.http.is_empty() {
            tcp_table(&group, &splits)
        } else {
            http_table(&group, &splits, breakers, findings)
        };
        // Whoever attaches only TCPRoutes says that the port carries bytes.
        if group.http.is_empty() && scope.is_empty() && protocol::may_be_http(port.protocol) {
            port.protocol = Protocol::Tcp;
        }
        port.routes.insert(scope, table);
    }
}

/// Finds what a parentRef means and adds the route there.
fn join<'a>(
    object: &'a Arc<Object>,
    parent: &'a ParentRef,
    services: &BTreeMap<String, Service>,
    entries: &Entries,
    settings: &MeshSettings,
    groups: &mut Groups<'a>,
    findings: &mut Findings,
) {
    let refuse = |findings: &mut Findings, code, reason, message: String, fix: String| {
        findings.refuse(object, reason, message.clone());
        let problem = Problem::new(code, message).effect("the route does not apply there").fix(fix);
        findings.report(object, &parent.place, problem);
    };
    let name = format!("{} {}/{}", parent.kind, parent.namespace, parent.name);
    let service = match (parent.group.as_str(), parent.kind.as_str()) {
        ("", "Service") => services.get(&service_key(&parent.namespace, &parent.name, settings)),
        ("networking.istio.io", "ServiceEntry") => {
            entries.get(&(parent.namespace.clone(), parent.name.clone())).and_then(|key| services.get(key))
        }
        (group, kind) => {
            let message = format!("a route cannot be attached to a {kind} of group \"{group}\" yet");
            return refuse(
                findings,
                &codes::REFERENCE_KIND,
                "InvalidKind",
                message,
                "attach it to a Service".to_owned(),
            );
        }
    };
    let Some(service) = service else {
        let fix = near_service(&parent.namespace, &parent.name, services, findings);
        return refuse(findings, &codes::PARENT_NOT_FOUND, "NoMatchingParent", format!("there is no {name}"), fix);
    };
    if service.headless {
        let message = format!("{name} is headless, so calls to it carry no address of its own");
        return refuse(
            findings,
            &codes::PARENT_HEADLESS,
            "UnsupportedValue",
            message,
            "attach the route to a Service with an address".to_owned(),
        );
    }
    let is_http = matches!(object.spec, Spec::HttpRoute(_));
    let named = parent.port.is_some() || parent.section.is_some();
    let ports: Vec<_> = service
        .ports
        .iter()
        .filter(|port| parent.port.is_none_or(|number| port.number == number))
        .filter(|port| parent.section.as_ref().is_none_or(|section| port.name == *section))
        .collect();
    if ports.is_empty() {
        let wanted = match (&parent.port, &parent.section) {
            (Some(port), _) => format!("port {port}"),
            (None, Some(section)) => format!("port \"{section}\""),
            (None, None) => "port at all".to_owned(),
        };
        let message = format!("{name} has no {wanted}");
        let fix = format!("use one of its ports: {}", service.ports_text());
        return refuse(findings, &codes::PARENT_PORT_NOT_FOUND, "NoMatchingParent", message, fix);
    }
    let usable: Vec<_> = ports.iter().filter(|port| !is_http || protocol::may_be_http(port.protocol)).collect();
    if usable.is_empty() {
        let numbers: Vec<String> = ports.iter().map(|port| port.number.to_string()).collect();
        let what = if named { "speaks" } else { "and every other port speak" };
        let message = format!("port {} of {name} {what} TCP or TLS, not HTTP", numbers.join(", "));
        let fix = "declare HTTP with the port's name or appProtocol, or use a TCPRoute".to_owned();
        return refuse(findings, &codes::HTTP_ON_TCP, "UnsupportedProtocol", message, fix);
    }
    let scope = if object.namespace == service.namespace { String::new() } else { object.namespace.clone() };
    if !scope.is_empty() {
        findings.report(
            object,
            &parent.place,
            Problem::new(&codes::CONSUMER_ROUTE, format!("this route applies to clients in namespace {scope} only"))
                .effect(format!("for them it replaces every route of namespace {}", service.namespace)),
        );
    }
    for port in usable {
        let group = groups.entry((service.key.clone(), port.number, scope.clone())).or_default();
        match &object.spec {
            Spec::HttpRoute(route) if !group.http.iter().any(|(other, ..)| Arc::ptr_eq(other, object)) => {
                group.http.push((object, route, parent));
            }
            Spec::TcpRoute(route) if !group.tcp.iter().any(|(other, ..)| Arc::ptr_eq(other, object)) => {
                group.tcp.push((object, route, parent));
            }
            _ => {}
        }
    }
}

/// Notes who has a port, and tells the others.
fn settle(key: &str, port: u16, scope: &str, group: &Group<'_>, findings: &mut Findings) {
    let (winner, losers) = match (group.http.first(), group.tcp.split_first()) {
        (Some((winner, ..)), Some(_)) => (*winner, &group.tcp[..]),
        (None, Some(((winner, ..), losers))) => {
            findings.attach(winner);
            (*winner, losers)
        }
        (_, None) => {
            group.http.iter().for_each(|(object, ..)| findings.attach(object));
            return;
        }
    };
    group.http.iter().for_each(|(object, ..)| findings.attach(object));
    for (loser, _, parent) in losers {
        let host = key.split_once('/').map_or(key, |(_, host)| host);
        let message = format!("{} already has port {port} of {host}", winner.key());
        findings.refuse(loser, "Conflicted", message.clone());
        let clients = if scope.is_empty() { String::new() } else { format!(" for clients in namespace {scope}") };
        let why = if winner.kind == loser.kind { "the older route wins" } else { "an HTTPRoute wins over a TCPRoute" };
        findings.report(
            loser,
            &parent.place,
            Problem::new(&codes::ROUTE_CONFLICT, message)
                .effect(format!("this route has no effect there{clients}: {why}"))
                .fix("attach it to another port, or remove one of the two"),
        );
    }
}

fn tcp_table(group: &Group<'_>, splits: &Splits) -> RouteTable {
    let mut table = RouteTable::default();
    // The oldest route has the port to itself: rules of TCPRoutes match everything.
    for (object, route, _) in group.tcp.iter().take(1) {
        table.origins.push(origin(object));
        let resolved = splits.get(&object.key().to_string());
        for (index, rule) in route.rules.iter().enumerate() {
            table.tcp.push(TcpRule {
                name: rule_name(object, rule.name.as_deref(), index),
                split: Some(resolved.and_then(|splits| splits.get(index)).cloned().unwrap_or_default()),
                origin: Some(origin(object)),
            });
        }
    }
    table
}

fn http_table(group: &Group<'_>, splits: &Splits, breakers: &Breakers, findings: &mut Findings) -> RouteTable {
    let mut table = RouteTable::default();
    let mut entries = Vec::new();
    for (object, route, _) in &group.http {
        table.origins.push(origin(object));
        for (index, rule) in route.rules.iter().enumerate() {
            for (place, matched) in rule.matches.iter().enumerate() {
                let rank =
                    precedence::rank(matched, object.created_unix, (&object.namespace, &object.name), (index, place));
                entries.push((rank, *object, index, rule, matched));
            }
        }
    }
    entries.sort_by(|left, right| left.0.cmp(&right.0));
    let mut seen: HashSet<Vec<u8>> = HashSet::new();
    let mut last: Option<(&Arc<Object>, usize)> = None;
    for (_, object, index, rule, matched) in &entries {
        if !seen.insert(matched.encode_to_vec()) {
            findings.report(
                object,
                &rule.place,
                Problem::new(
                    &codes::UNREACHABLE_MATCH,
                    "a match of this rule is the same as an earlier one on this port",
                )
                .effect("no request reaches it: the earlier rule, or the older route, gets them")
                .fix("remove it, or make it more specific"),
            );
            continue;
        }
        if let Some((before, before_index)) = last
            && Arc::ptr_eq(before, object)
            && before_index == *index
            && let Some(same) = table.http.last_mut()
        {
            same.matches.push((*matched).clone());
            continue;
        }
        last = Some((object, *index));
        let breaker = breakers.of_rule(object, rule.name.as_deref());
        if let Some((_, origin)) = breaker
            && !table.origins.contains(origin)
        {
            table.origins.push(origin.clone());
        }
        let split =
            || splits.get(&object.key().to_string()).and_then(|splits| splits.get(*index)).cloned().unwrap_or_default();
        let action =
            rule.redirect.clone().map_or_else(|| http_rule::Action::Split(split()), http_rule::Action::Redirect);
        table.http.push(HttpRule {
            name: rule_name(object, rule.name.as_deref(), *index),
            matches: vec![(*matched).clone()],
            request_headers: rule.request_headers.clone(),
            response_headers: rule.response_headers.clone(),
            rewrite: rule.rewrite.clone(),
            timeout: rule.timeout,
            try_timeout: rule.try_timeout,
            retry: rule.retry.clone(),
            breaker: breaker.map(|(breaker, _)| breaker.clone()),
            origin: Some(origin(object)),
            action: Some(action),
        });
    }
    remark(group, entries.iter().map(|(_, _, _, _, matched)| *matched), findings);
    table
}

/// Says what surprises people about the table as a whole, to its oldest route.
fn remark<'m>(group: &Group<'_>, matches: impl Iterator<Item = &'m RequestMatch>, findings: &mut Findings) {
    let Some((object, _, parent)) = group.http.first() else { return };
    let (mut all, mut regex, mut prefix) = (false, false, false);
    for matched in matches {
        match matched.path.as_ref().and_then(|path| path.kind.as_ref()) {
            Some(path_match::Kind::Regex(_)) => regex = true,
            Some(path_match::Kind::SegmentPrefix(text)) => {
                prefix = true;
                let free = matched.method.is_empty() && matched.headers.is_empty() && matched.query.is_empty();
                all |= text == "/" && free;
            }
            _ => {}
        }
    }
    if !all {
        findings.report(
            object,
            &parent.place,
            Problem::new(&codes::UNMATCHED_PATHS, "no rule on this port matches every request")
                .effect("requests that match no rule get 404; without any route they would reach the Service")
                .fix("add a rule without matches if the rest should reach a backend"),
        );
    }
    if regex && prefix {
        findings.report(
            object,
            &parent.place,
            Problem::new(
                &codes::REGEX_AND_PREFIX,
                "regular expressions and prefixes on this port may match the same path",
            )
            .effect("the one with the longer text wins"),
        );
    }
}

fn rule_name(object: &Object, name: Option<&str>, index: usize) -> String {
    match name {
        Some(name) => format!("{}/{}/{name}", object.namespace, object.name),
        None => format!("{}/{}/{index}", object.namespace, object.name),
    }
}

fn resolve_all<'a>(
    object: &Object,
    rules: impl Iterator<Item = (&'a Vec<BackendRef>, bool, &'a crate::api::Place)>,
    services: &BTreeMap<String, Service>,
    settings: &MeshSettings,
    sticky: Option<&Sticky>,
    findings: &mut Findings,
) -> Vec<Split> {
    let mut splits = Vec::new();
    for (backends, redirects, place) in rules {
        if !redirects && backends.iter().all(|backend| backend.weight == 0) {
            let message =
                if backends.is_empty() { "this rule has no backend" } else { "all weights of this rule are zero" };
            findings.report(
                object,
                place,
                Problem::new(&codes::WEIGHTS_ZERO, message)
                    .effect(if object.kind == "TCPRoute" { "connections are closed" } else { "its requests get 500" })
                    .fix("add a backendRef with a weight above 0"),
            );
        }
        let arms = backends.iter().map(|backend| resolve(object, backend, services, settings, findings));
        // With one backend there is nowhere else to be.
        let sticky = sticky.filter(|_| backends.len() > 1).cloned();
        splits.push(Split { arms: arms.collect(), sticky });
    }
    splits
}

fn resolve(
    object: &Object,
    backend: &BackendRef,
    services: &BTreeMap<String, Service>,
    settings: &MeshSettings,
    findings: &mut Findings,
) -> Arm {
    let effect =
        if object.kind == "TCPRoute" { "connections of its share are closed" } else { "requests of its share get 500" };
    let bad = |findings: &mut Findings, code, reason, message: String, fix: String| {
        findings.unresolved(object, reason, message.clone());
        findings.report(object, &backend.place, Problem::new(code, message.clone()).effect(effect).fix(fix));
        arm::To::Bad(BadTarget { reason: message })
    };
    let name = format!("{}/{}", backend.namespace, backend.name);
    let to = if !backend.group.is_empty() || backend.kind != "Service" {
        let message = format!("{} of group \"{}\" cannot be a backend yet", backend.kind, backend.group);
        bad(findings, &codes::REFERENCE_KIND, "InvalidKind", message, "use a Service".to_owned())
    } else {
        let key = service_key(&backend.namespace, &backend.name, settings);
        match (services.get(&key), backend.port) {
            (None, _) => {
                let fix = near_service(&backend.namespace, &backend.name, services, findings);
                bad(findings, &codes::BACKEND_NOT_FOUND, "BackendNotFound", format!("there is no Service {name}"), fix)
            }
            (Some(service), None) => {
                let fix = format!("add port: one of {}", service.ports_text());
                bad(
                    findings,
                    &codes::BACKEND_PORT_NOT_FOUND,
                    "BackendNotFound",
                    format!("the port of Service {name} is missing"),
                    fix,
                )
            }
            (Some(service), Some(port)) if service.port(port).is_none() => {
                let fix = format!("use one of its ports: {}", service.ports_text());
                bad(
                    findings,
                    &codes::BACKEND_PORT_NOT_FOUND,
                    "BackendNotFound",
                    format!("Service {name} has no port {port}"),
                    fix,
                )
            }
            (Some(_), Some(port)) => {
                arm::To::Target(Target { service: key, port: u32::from(port), subset: String::new() })
            }
        }
    };
    Arm {
        weight: backend.weight,
        request_headers: backend.request_headers.clone(),
        response_headers: backend.response_headers.clone(),
        to: Some(to),
    }
}

/// The smallest fix for a name that is not there: the same name elsewhere, or a similar one here.
fn near_service(namespace: &str, name: &str, services: &BTreeMap<String, Service>, findings: &mut Findings) -> String {
    if !findings.may_suggest() {
        return "correct the name, or add the Service".to_owned();
    }
    let prefix = format!("{namespace}/");
    let here = services
        .range(prefix.clone()..)
        .take_while(|(key, _)| key.starts_with(&prefix))
        .map(|(_, service)| service.name.as_str());
    if let Some(near) = crate::api::values::nearest(name, here.take(1000)) {
        return format!("did you mean \"{near}\"?");
    }
    match services.values().find(|service| service.name == name) {
        Some(service) => format!("add namespace: {} (a Service of that name is there)", service.namespace),
        None => "correct the name, or add the Service".to_owned(),
    }
}
