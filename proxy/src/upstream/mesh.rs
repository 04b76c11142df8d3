//! The view joined to live state: what the journeys look names and addresses up in.
//!
//! Joining happens off the data path, on every swap. Services whose own description and whose backends' descriptions are
//! unchanged are taken over as they are; backends, endpoints and breakers keep their live state by name and key.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    backend::{Backend, BackendState, Fallback, RouteBackend},
    breakers::{BreakerCell, Observer},
    destination::{Destination, Toward},
    dial::Transport,
    endpoint::{Endpoint, EndpointKey},
    pool::IdleLimits,
};
use crate::{
    balance::locality::{Place, arrange},
    config::view::{self, Map, PeerKind, Policy, Protocol, TlsMode, View},
    host::Instant,
    identity::spiffe_id::SpiffeId,
    resilience::{breaker::BreakerPolicy, ejection::EjectionPolicy, fallback::FallbackKind},
    route::{Leg, RouteTable, Target},
    telemetry::{LabelSet, Telemetry},
    tls::Expected,
};

/// One picture, ready to carry traffic.
pub struct Mesh {
    pub view: Arc<View>,
    services: Map<Arc<str>, Arc<LiveService>>,
    hosts: Map<Arc<str>, Arc<LiveService>>,
    addresses: Map<IpAddr, Arc<LiveService>>,
    /// Endpoints by address and port, for applications that dial one directly.
    endpoints: Map<SocketAddr, (Arc<Backend>, usize)>,
}

/// One service with its ports.
#[derive(Debug)]
pub struct LiveService {
    pub config: Arc<view::Service>,
    pub destinations: Vec<Arc<Destination>>,
}

/// What outlives every view; makes the next [`Mesh`] out of the last.
pub struct Upstreams {
    workers: usize,
    telemetry: Arc<Telemetry>,
    /// Our own address where traffic is intercepted: our connections to it are not redirected to ourselves.
    own_address: Option<IpAddr>,
    /// Ejection of backends whose policy has none of its own; `None`: off.
    ejection: Option<Arc<EjectionPolicy>>,
    backends: Mutex<HashMap<Arc<str>, Weak<BackendState>>>,
    breakers: Mutex<HashMap<BreakerKey, Weak<BreakerCell>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct BreakerKey {
    name: Arc<str>,
    rule: Arc<str>,
    backend: Arc<str>,
}

/// Backends built during one join, so that every rule shares them.
struct Joining<'a> {
    view: &'a View,
    built: HashMap<Target, Option<Arc<Backend>>>,
}

impl Mesh {
    /// The service that a host name means here: complete, or short as seen from our own namespace.
    pub fn service_by_host(&self, host: &str) -> Option<&Arc<LiveService>> {
        let host = host.strip_suffix('.').unwrap_or(host);
        if let Some(service) = self.hosts.get(host) {
            return Some(service);
        }
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.hosts.get(host.to_ascii_lowercase().as_str());
        }
        None
    }

    /// The service that has this virtual address.
    pub fn service_by_address(&self, address: IpAddr) -> Option<&Arc<LiveService>> {
        self.addresses.get(&address)
    }

    /// The endpoint that is reached directly at this address.
    pub fn endpoint(&self, address: SocketAddr) -> Option<(&Arc<Backend>, usize)> {
        self.endpoints.get(&address).map(|(backend, index)| (backend, *index))
    }

    /// Where a name and port lead, as seen from here.
    pub fn toward_name(&self, host: &str, port: u16) -> Option<Toward> {
        if let Some(service) = self.service_by_host(host) {
            return service.port(port).map(|destination| Toward::Service(Arc::clone(destination)));
        }
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        self.toward_address(SocketAddr::new(bare.parse::<IpAddr>().ok()?, port))
    }

    /// Where an address leads: to the service that has it, or to an endpoint.
    pub fn toward_address(&self, address: SocketAddr) -> Option<Toward> {
        if let Some(service) = self.service_by_address(address.ip()) {
            return service.port(address.port()).map(|destination| Toward::Service(Arc::clone(destination)));
        }
        let (backend, index) = self.endpoint(address)?;
        let only = Backend {
            endpoints: vec![Arc::clone(backend.endpoints.get(index)?)],
            // Who dials an address wants this one, also when it fails.
            ejection: Some(Arc::new(EjectionPolicy::IGNORED)),
            affinity: None,
            arrangement: None,
            ..Backend::clone(backend)
        };
        let route = RouteBackend { backend: Arc::new(only), breaker: None, fallback: None };
        Some(Toward::Endpoint(route, Protocol::Detect))
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<LiveService>> {
        self.services.values()
    }

    /// Every backend once or more often, in no order.
    pub fn backends(&self) -> impl Iterator<Item = &RouteBackend> {
        self.services.values().flat_map(|service| service.destinations.iter()).flat_map(|destination| {
            let routed = destination.routes.iter().flat_map(|table| {
                let http = table.http.iter().filter_map(|rule| match &rule.action {
                    crate::route::Action::Split(split) => Some(split),
                    crate::route::Action::Redirect(_) => None,
                });
                http.chain(table.tcp.iter().map(|rule| &rule.split)).flat_map(|split| &split.arms).filter_map(|arm| {
                    match &arm.leg {
                        Leg::To(backend) => Some(backend),
                        Leg::Bad(_) => None,
                    }
                })
            });
            routed.chain(std::iter::once(&destination.own))
        })
    }

    /// Drops connections that are closed, too old or idle for too long; for one worker.
    pub fn sweep(&self, worker: usize, now: Instant, default: IdleLimits) {
        for RouteBackend { backend, .. } in self.backends() {
            let idle = default.or_policy(backend.policy.http_idle_timeout);
            for endpoint in &backend.endpoints {
                endpoint.state.pool(worker).sweep(now, idle);
            }
        }
    }
}

impl LiveService {
    /// The destination of one of its ports.
    pub fn port(&self, port: u16) -> Option<&Arc<Destination>> {
        self.destinations.iter().find(|destination| destination.port == port)
    }
}

impl Upstreams {
    pub fn new(
        workers: usize,
        telemetry: Arc<Telemetry>,
        own_address: Option<IpAddr>,
        ejection: Option<EjectionPolicy>,
    ) -> Self {
        Self {
            workers,
            telemetry,
            own_address,
            ejection: ejection.map(Arc::new),
            backends: Mutex::default(),
            breakers: Mutex::default(),
        }
    }

    /// Every breaker that is in use.
    pub fn breakers(&self) -> Vec<Arc<BreakerCell>> {
        let mut cells: Vec<_> = self.breakers.lock().values().filter_map(Weak::upgrade).collect();
        cells.sort_by(|a, b| (&a.name, &a.rule, &a.backend).cmp(&(&b.name, &b.rule, &b.backend)));
        cells
    }

    /// Joins a view to what is alive.
    pub fn join(&self, view: Arc<View>, previous: Option<&Mesh>) -> Mesh {
        let mut joining = Joining { view: &view, built: HashMap::new() };
        let mut services = Map::default();
        // Who is near depends on where we are.
        let previous = previous.filter(|mesh| mesh.view.node.is_at_the_same_place(&view.node));
        for (name, config) in &view.services {
            let kept = previous.and_then(|mesh| mesh.services.get(name)).filter(|live| live.is_current(config, &view));
            let live = match kept {
                Some(live) => {
                    for destination in &live.destinations {
                        joining.keep(destination);
                    }
                    Arc::clone(live)
                }
                None => Arc::new(self.service(config, &mut joining)),
            };
            services.insert(Arc::clone(name), live);
        }
        self.backends.lock().retain(|_, state| state.strong_count() > 0);
        self.breakers.lock().retain(|_, cell| cell.strong_count() > 0);
        Self::index(view, services)
    }

    fn index(view: Arc<View>, services: Map<Arc<str>, Arc<LiveService>>) -> Mesh {
        let (mut hosts, mut addresses, mut endpoints) = (Map::default(), Map::default(), Map::default());
        // In name order, so that two services that claim one name or address give the same winner everywhere.
        let mut ordered: Vec<_> = services.values().collect();
        ordered.sort_by(|a, b| a.config.resource.cmp(&b.config.resource));
        let namespace = &view.node.namespace;
        for service in ordered {
            let config = &service.config;
            let full = [&config.host].into_iter().chain(&config.hosts).cloned();
            for host in full {
                hosts.entry(host).or_insert_with(|| Arc::clone(service));
            }
            if config.namespace == *namespace {
                hosts.entry(Arc::clone(&config.name)).or_insert_with(|| Arc::clone(service));
            }
            for address in &config.addresses {
                addresses.entry(*address).or_insert_with(|| Arc::clone(service));
            }
            for destination in &service.destinations {
                let backend = &destination.own.backend;
                for (index, endpoint) in backend.endpoints.iter().enumerate() {
                    endpoints.entry(endpoint.address).or_insert_with(|| (Arc::clone(backend), index));
                }
            }
        }
        Mesh { view, services, hosts, addresses, endpoints }
    }

    fn service(&self, config: &Arc<view::Service>, joining: &mut Joining<'_>) -> LiveService {
        let destinations = config.ports.iter().map(|port| Arc::new(self.destination(config, port, joining))).collect();
        LiveService { config: Arc::clone(config), destinations }
    }

    fn destination(
        &self,
        service: &Arc<view::Service>,
        port: &view::ServicePort,
        joining: &mut Joining<'_>,
    ) -> Destination {
        let mut built_from = Vec::new();
        let own_target = Target { service: Arc::clone(&service.resource), port: port.port, subset: Arc::from("") };
        let own = match self.backend(&own_target, joining) {
            Some(backend) => self.route_backend(backend, &Arc::from(""), None, joining, &mut built_from),
            None => RouteBackend { backend: self.empty_backend(service, port.port), breaker: None, fallback: None },
        };
        let routes = port.routes.as_ref().map(|table| {
            let built_from = std::cell::RefCell::new(&mut built_from);
            let joining = std::cell::RefCell::new(&mut *joining);
            let lead = |rule: &Arc<str>, breaker: Option<&Arc<BreakerPolicy>>, target: Target| {
                let (mut joining, mut built_from) = (joining.borrow_mut(), built_from.borrow_mut());
                built_from.push((Arc::clone(&target.service), joining.view.services.get(&target.service).cloned()));
                match self.backend(&target, &mut joining) {
                    Some(backend) => Leg::To(self.route_backend(backend, rule, breaker, &mut joining, &mut built_from)),
                    None => Leg::Bad(Arc::from(format!(
                        "{}:{}{} does not exist",
                        target.service,
                        target.port,
                        if target.subset.is_empty() { String::new() } else { format!(" subset {}", target.subset) },
                    ))),
                }
            };
            RouteTable::clone(table)
                .map(|rule, target| lead(rule.name, rule.breaker, target), |rule, target| lead(rule, None, target))
        });
        Destination {
            service: Arc::clone(service),
            port: port.port,
            protocol: port.protocol,
            routes,
            labels: own.backend.labels,
            own,
            built_from,
        }
    }

    fn route_backend(
        &self,
        backend: Arc<Backend>,
        rule: &Arc<str>,
        breaker: Option<&Arc<BreakerPolicy>>,
        joining: &mut Joining<'_>,
        built_from: &mut Vec<(Arc<str>, Option<Arc<view::Service>>)>,
    ) -> RouteBackend {
        let Some(policy) = breaker.or(backend.policy.breaker.as_ref()).cloned() else {
            return RouteBackend { backend, breaker: None, fallback: None };
        };
        let fallback = policy.fallback.as_ref().map(|fallback| {
            let instead = match &fallback.kind {
                FallbackKind::Reply { .. } => None,
                FallbackKind::Backend(target) => {
                    built_from.push((Arc::clone(&target.service), joining.view.services.get(&target.service).cloned()));
                    self.backend(target, joining)
                }
            };
            Fallback { policy: Arc::clone(fallback), backend: instead }
        });
        let key = BreakerKey {
            name: Arc::clone(&policy.name),
            // A breaker of the backend's own policy is one for all rules that lead there.
            rule: if breaker.is_some() { Arc::clone(rule) } else { Arc::from("") },
            backend: Arc::clone(&backend.name),
        };
        let mut breakers = self.breakers.lock();
        let cell = match breakers.get(&key).and_then(Weak::upgrade) {
            Some(cell) => {
                cell.set_policy(policy);
                cell
            }
            None => {
                let cell = Arc::new(BreakerCell::new(
                    policy,
                    Arc::clone(&key.rule),
                    Arc::clone(&key.backend),
                    self.observer(&key),
                ));
                breakers.insert(key, Arc::downgrade(&cell));
                cell
            }
        };
        RouteBackend { backend, breaker: Some(cell), fallback }
    }

    /// Counts and logs the transitions of one breaker.
    fn observer(&self, key: &BreakerKey) -> Observer {
        let gauge = Mutex::new(self.telemetry.breaker(&key.name, &key.backend));
        Arc::new(move |cell, transition| {
            gauge.lock().changed(transition);
            tracing::info!(
                breaker = %cell.name, rule = %cell.rule, backend = %cell.backend,
                from = transition.from.word(), to = transition.to.word(), "breaker changed state"
            );
        })
    }

    fn backend(&self, target: &Target, joining: &mut Joining<'_>) -> Option<Arc<Backend>> {
        if let Some(built) = joining.built.get(target) {
            return built.clone();
        }
        let built = self.build_backend(target, joining.view);
        joining.built.insert(target.clone(), built.clone());
        built
    }

    fn build_backend(&self, target: &Target, view: &View) -> Option<Arc<Backend>> {
        let service = view.services.get(&target.service)?;
        let port = service.ports.iter().find(|port| port.port == target.port)?;
        let (policy, labels) = if target.subset.is_empty() {
            (&port.policies.base, None)
        } else {
            let subset = port.policies.subsets.iter().find(|subset| subset.name == target.subset)?;
            (&subset.policy, Some(&subset.labels))
        };
        let name: Arc<str> = if target.subset.is_empty() {
            Arc::from(format!("{}:{}", service.host, target.port))
        } else {
            Arc::from(format!("{}:{}/{}", service.host, target.port, target.subset))
        };
        let state = self.backend_state(&name, policy);
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for endpoint in service.endpoints.iter() {
            let wanted = labels.is_none_or(|labels| {
                labels.iter().all(|(key, value)| endpoint.labels.get(key).is_some_and(|other| other == value))
            });
            if !wanted {
                continue;
            }
            let Some(place) = endpoint.ports.iter().find(|place| place.service_port == target.port) else { continue };
            endpoints.push(Arc::new(self.endpoint(service, endpoint, *place, policy, &state)));
        }
        let workload = format!("{}/{}", view.node.namespace, view.node.workload);
        let affinity = state.affinity(policy, &endpoints, &workload);
        let arrangement = policy.locality.as_ref().and_then(|locality| {
            let own = Place { locality: &view.node.locality, labels: &view.node.labels };
            let places: Vec<_> = endpoints.iter().map(|endpoint| endpoint.config.place()).collect();
            arrange(locality, own, &places).map(Arc::new)
        });
        Some(Arc::new(Backend {
            name,
            policy: Arc::clone(policy),
            ejection: policy.ejection.clone().or_else(|| self.ejection.clone()),
            affinity,
            arrangement,
            endpoints,
            connect_timeout: policy.connect_timeout.unwrap_or(view.node.connect_timeout),
            labels: self.telemetry.labels(service_labels(service)),
            state,
        }))
    }

    fn empty_backend(&self, service: &view::Service, port: u16) -> Arc<Backend> {
        let policy = Arc::new(Policy::default());
        let name: Arc<str> = Arc::from(format!("{}:{port}", service.host));
        Arc::new(Backend {
            state: self.backend_state(&name, &policy),
            name,
            policy,
            ejection: None,
            affinity: None,
            arrangement: None,
            endpoints: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            labels: self.telemetry.labels(service_labels(service)),
        })
    }

    fn backend_state(&self, name: &Arc<str>, policy: &Policy) -> Arc<BackendState> {
        let mut backends = self.backends.lock();
        if let Some(state) = backends.get(name).and_then(Weak::upgrade) {
            state.budget.lock().set_policy(policy.retry_budget, crate::host::now());
            return state;
        }
        let state = Arc::new(BackendState::new(policy));
        backends.insert(Arc::clone(name), Arc::downgrade(&state));
        state
    }

    fn endpoint(
        &self,
        service: &view::Service,
        endpoint: &Arc<view::Endpoint>,
        place: view::EndpointPort,
        policy: &Policy,
        backend: &BackendState,
    ) -> Endpoint {
        let address = SocketAddr::new(endpoint.address, place.port);
        let peer = match policy.tls {
            // The application beside us: no wire in between, and nobody there who would terminate TLS.
            _ if self.own_address == Some(endpoint.address) => PeerKind::Plain,
            TlsMode::Auto => place.peer,
            TlsMode::Disable => PeerKind::Plain,
            TlsMode::Mesh if place.peer == PeerKind::Plain => PeerKind::Mesh,
            TlsMode::Mesh => place.peer,
        };
        let expected = endpoint.identity.as_deref().and_then(|identity| SpiffeId::parse(identity).ok());
        let transport = match peer {
            PeerKind::Plain => Transport::Plain,
            kind => Transport::Mesh {
                expected: expected.map_or(Expected::TrustDomain, Expected::Exactly),
                multiplex: kind == PeerKind::Outrigger,
            },
        };
        let key = EndpointKey {
            address,
            identity: (peer != PeerKind::Plain).then(|| endpoint.identity.clone().unwrap_or_else(|| Arc::from(""))),
            multiplex: peer == PeerKind::Outrigger,
        };
        let state = backend.endpoint(key, self.workers);
        state.follow_health(endpoint.health);
        Endpoint {
            address,
            transport,
            weight: endpoint.weight.max(1),
            health: endpoint.health,
            labels: self.telemetry.labels(endpoint_labels(service, endpoint)),
            config: Arc::clone(endpoint),
            state,
        }
    }
}

fn service_labels(service: &view::Service) -> LabelSet {
    LabelSet::default().of_service(&service.host, &service.name, &service.namespace)
}

fn endpoint_labels(service: &view::Service, endpoint: &view::Endpoint) -> LabelSet {
    let principal = endpoint.identity.as_deref().unwrap_or_default();
    LabelSet::workload(&endpoint.namespace, &endpoint.workload, principal, &endpoint.labels).of_service(
        &service.host,
        &service.name,
        &service.namespace,
    )
}

impl LiveService {
    /// Whether nothing that this was built from has changed.
    fn is_current(&self, config: &Arc<view::Service>, view: &View) -> bool {
        Arc::ptr_eq(&self.config, config)
            && self.destinations.iter().all(|destination| {
                destination.built_from.iter().all(|(name, before)| match (before, view.services.get(name)) {
                    (Some(before), Some(now)) => Arc::ptr_eq(before, now),
                    (None, None) => true,
                    _ => false,
                })
            })
    }
}

impl Joining<'_> {
    /// Lets later services share what a kept one already has.
    fn keep(&mut self, destination: &Destination) {
        let target = Target {
            service: Arc::clone(&destination.service.resource),
            port: destination.port,
            subset: Arc::from(""),
        };
        self.built.entry(target).or_insert_with(|| Some(Arc::clone(&destination.own.backend)));
    }
}
