//! What the operator sees of a running sidecar, as JSON.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::Sidecar;
use crate::{
    admin::AdminSource,
    balance::{self, Candidate as _, keyed::TableKind},
    config::view::{Health, View},
    host,
    route::{Action, Leg},
    upstream::{Backend, BreakerCell, RouteBackend},
};

impl AdminSource for Sidecar {
    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Acquire) {
            return Err("draining".to_owned());
        }
        if self.residents.identity.current().is_none() {
            return Err("no certificate yet".to_owned());
        }
        if self.residents.mesh().is_none() {
            return Err("no configuration yet".to_owned());
        }
        if !self.ready.load(Ordering::Acquire) {
            return Err("not listening yet".to_owned());
        }
        Ok(())
    }

    fn config_dump(&self) -> Value {
        self.residents.mesh().map_or(Value::Null, |mesh| view(&mesh.view))
    }

    fn upstreams(&self) -> Value {
        let Some(mesh) = self.residents.mesh() else { return Value::Null };
        let mut backends: Vec<&RouteBackend> = mesh.backends().collect();
        backends.sort_by(|a, b| a.backend.name.cmp(&b.backend.name));
        backends.dedup_by(|a, b| a.backend.name == b.backend.name);
        let breakers = self.residents.upstreams.breakers();
        json!({
            "generation": mesh.view.generation,
            "backends": backends.iter().map(|route| backend(&route.backend)).collect::<Vec<_>>(),
            "applications": self.residents.applications.all().iter().map(|route| backend(route)).collect::<Vec<_>>(),
            "breakers": breakers.iter().map(breaker).collect::<Vec<_>>(),
        })
    }

    fn certificates(&self) -> Value {
        match self.residents.identity.current() {
            Some(configs) => json!({
                "identity": configs.identity().as_str(),
                "not_after_unix": unix(configs.not_after()),
            }),
            None => Value::Null,
        }
    }

    fn server_info(&self) -> Value {
        let settings = &self.residents.settings;
        let report = self.status.report();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "namespace": settings.node.namespace,
            "workload": settings.node.workload,
            "state": self.ready().err().unwrap_or_else(|| "ready".to_owned()),
            "control_plane": {
                "address": settings.control_plane.as_ref().map(|control_plane| &control_plane.address),
                "connected_since_unix": report.connected_since.map(unix),
                "disconnected_since_unix": report.disconnected_since.map(unix),
                "last_error": report.last_error,
                "generation": report.generation,
                "from_disk": report.from_disk,
                "revision": report.revision,
                "refused": report.refused,
            },
            "overload": self.residents.telemetry.overload_report(),
            "settings": settings,
        })
    }

    fn start_drain(&self) {
        self.begin_drain();
    }

    fn quit(&self) {
        self.quit.notify_one();
    }

    fn metrics(&self) -> String {
        if let Some(configs) = self.residents.identity.current() {
            self.residents.telemetry.certificate_expires(configs.not_after());
        }
        self.residents.telemetry.encode()
    }
}

fn view(view: &View) -> Value {
    let mut services: Vec<_> = view.services.values().collect();
    services.sort_by(|a, b| a.resource.cmp(&b.resource));
    json!({
        "generation": view.generation,
        "node": {
            "namespace": view.node.namespace.as_ref(),
            "workload": view.node.workload.as_ref(),
            "service_account": view.node.service_account.as_ref(),
            "trust_domain": view.node.trust_domain.as_ref(),
            "labels": view.node.labels,
            "default_peer_mode": format!("{:?}", view.node.default_peer_mode).to_uppercase(),
            "outbound_mode": format!("{:?}", view.node.outbound_mode),
            "locality": view.node.locality.as_ref(),
        },
        "services": services.iter().map(|service| json!({
            "name": service.resource.as_ref(),
            "host": service.host.as_ref(),
            "addresses": service.addresses,
            "ports": service.ports.iter().map(|port| json!({
                "port": port.port,
                "name": port.name.as_ref(),
                "protocol": format!("{:?}", port.protocol),
                "routes": port.routes.as_ref().map(|table| json!({
                    "http": table.http.iter().map(|rule| json!({
                        "name": rule.name.as_ref(),
                        "matches": rule.matches.len(),
                        "timeout": rule.timeout.map(|timeout| format!("{timeout:?}")),
                        "retries": rule.retry.attempts,
                        "sticky": match &rule.action {
                            Action::Split(split) => split.sticky.as_ref().map(|sticky| sticky.key.to_string()),
                            Action::Redirect(_) => None,
                        },
                        "backends": match &rule.action {
                            Action::Split(split) => split.arms.iter().map(|arm| match &arm.leg {
                                Leg::To(target) => json!({
                                    "weight": arm.weight, "service": target.service.as_ref(),
                                    "port": target.port, "subset": target.subset.as_ref(),
                                }),
                                Leg::Bad(reason) => json!({ "weight": arm.weight, "bad": reason.as_ref() }),
                            }).collect(),
                            Action::Redirect(_) => vec![json!("redirect")],
                        },
                    })).collect::<Vec<_>>(),
                    "tcp": table.tcp.len(),
                })),
            })).collect::<Vec<_>>(),
            "endpoints": service.endpoints.len(),
        })).collect::<Vec<_>>(),
    })
}

fn backend(backend: &Backend) -> Value {
    let limits = &backend.state.limits;
    json!({
        "name": backend.name.as_ref(),
        "connections": limits.connections.load(Ordering::Relaxed),
        "pending_requests": limits.pending.load(Ordering::Relaxed),
        "requests": limits.requests.load(Ordering::Relaxed),
        "retries": limits.retries.load(Ordering::Relaxed),
        "ejections": backend.state.ejections(),
        "balancing": balancing(backend),
        "panic": balance::in_panic(&backend.endpoints, backend.panic_percent()),
        "endpoints": backend.endpoints.iter().enumerate().map(|(index, endpoint)| {
            let (idle, shared, streams) = endpoint.state.pools().iter().map(|pool| pool.counts()).fold(
                (0, 0, 0),
                |(idle, shared, streams), (i, s, t)| (idle + i, shared + s, streams + t),
            );
            json!({
                "uid": endpoint.config.uid.as_ref(),
                "address": endpoint.address.to_string(),
                "health": match endpoint.health {
                    Health::Ready => "ready",
                    Health::Draining => "draining",
                    Health::Unready => "unready",
                },
                "ejected": endpoint.state.is_ejected(),
                "locality": endpoint.config.locality.as_ref(),
                "group": backend.arrangement.as_ref().and_then(|arrangement| arrangement.group_of(index)),
                "warmup": backend.policy.warmup.as_ref().map(|warmup| {
                    endpoint.age(host::now()).map_or(1.0, |age| warmup.factor(age))
                }),
                "in_flight": endpoint.state.load.in_flight.load(Ordering::Relaxed),
                "latency_ms": endpoint.state.load.latency.load(Ordering::Relaxed) as f64 / 1e6,
                "idle_connections": idle,
                "shared_connections": shared,
                "streams": streams,
            })
        }).collect::<Vec<_>>(),
    })
}

/// How an endpoint is chosen, in the words of the configuration.
fn balancing(backend: &Backend) -> Value {
    let mut value = choosing(backend);
    if let (Some(arrangement), Some(value)) = (&backend.arrangement, value.as_object_mut()) {
        value.insert("groups".to_owned(), arrangement.word().into());
    }
    value
}

fn choosing(backend: &Backend) -> Value {
    match (&backend.policy.hash, &backend.affinity) {
        (Some(policy), Some(affinity)) => json!({
            "key": policy.key.to_string(),
            "table": match policy.table {
                TableKind::Ring { .. } => "ring",
                TableKind::Maglev { .. } => "maglev",
            },
            "size": affinity.table.size(),
        }),
        _ => json!({ "algorithm": backend.policy.algorithm.word() }),
    }
}

fn breaker(cell: &Arc<BreakerCell>) -> Value {
    json!({
        "name": cell.name.as_ref(),
        "rule": cell.rule.as_ref(),
        "backend": cell.backend.as_ref(),
        "state": cell.state().word(),
        "fallbacks": cell.fallbacks_served(),
        "transitions": cell.history().iter().map(|past| json!({
            "from": past.transition.from.word(),
            "to": past.transition.to.word(),
            "at_ms": past.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        })).collect::<Vec<_>>(),
    })
}

fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
