//! From the resources held to what else is wanted, and to the next view. Pure.
//!
//! [`Held`] keeps every accepted resource; [`Assembler`] puts services together. A service enters a view, or changes
//! in it, only when everything its current definition refers to is held or known to be absent; until then its previous
//! form stays. After [`PATIENCE`] it is assembled anyway, and what is missing answers with an error of its own. What
//! a form in use refers to stays wanted until the form is replaced, so nothing is taken away under it.
//!
//! Called by `subscriber` and `fixed`; the order in which independent resources arrive makes no difference.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use outrigger_proto::kind::Kind;
use rustls_pki_types::CertificateDer;

use super::{
    decode::{Definition, Rejected, Resource, decode},
    view::{Endpoint, Node, PolicySet, Service, ServicePort, View},
};
use crate::{
    host::Instant,
    resilience::{breaker::BreakerPolicy, fallback::FallbackKind},
    route::{Leg, RouteTable, Target},
};

/// Longest that a change waits for what it refers to.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Names by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    names: BTreeMap<Kind, BTreeSet<Arc<str>>>,
}

impl Wanted {
    /// The names of one kind.
    pub fn of(&self, kind: Kind) -> &BTreeSet<Arc<str>> {
        const NONE: &BTreeSet<Arc<str>> = &BTreeSet::new();
        self.names.get(&kind).unwrap_or(NONE)
    }

    fn insert(&mut self, kind: Kind, name: &Arc<str>) -> bool {
        self.names.entry(kind).or_default().insert(Arc::clone(name))
    }
}

/// Every accepted resource.
#[derive(Debug, Default)]
pub struct Held {
    entries: BTreeMap<Kind, BTreeMap<Arc<str>, Entry>>,
    /// Aliases of services.
    aliases: BTreeMap<Arc<str>, Arc<str>>,
    absent: Wanted,
    /// Nothing else will ever come: what is not held does not exist.
    complete: bool,
}

/// One accepted resource.
#[derive(Clone, Debug)]
pub struct Entry {
    pub version: Arc<str>,
    pub aliases: Vec<Arc<str>>,
    pub encoded: Bytes,
    pub resource: Resource,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Held,
    /// The server said so.
    Absent,
    /// Not answered yet.
    Missing,
}

impl Held {
    /// For a set of resources that nothing is added to: a name that is not held counts as absent.
    pub fn complete() -> Self {
        Self { complete: true, ..Self::default() }
    }

    /// Takes a resource in, replacing what was held under the name.
    ///
    /// # Errors
    /// When it is not valid; what was held before stays.
    pub fn accept(
        &mut self,
        kind: Kind,
        name: &Arc<str>,
        version: &Arc<str>,
        aliases: Vec<Arc<str>>,
        encoded: Bytes,
    ) -> Result<(), Rejected> {
        let resource = match self.get(kind, name) {
            // Versions are hashes of the content: the same version is the same resource.
            Some(entry) if entry.version == *version && entry.encoded == encoded => entry.resource.clone(),
            _ => decode(kind, name, &encoded)?,
        };
        if kind == Kind::Service {
            self.aliases.retain(|_, of| of != name);
            for alias in &aliases {
                self.aliases.insert(Arc::clone(alias), Arc::clone(name));
            }
        }
        if let Some(absent) = self.absent.names.get_mut(&kind) {
            absent.remove(name);
            for alias in &aliases {
                absent.remove(alias);
            }
        }
        let entry = Entry { version: Arc::clone(version), aliases, encoded, resource };
        self.entries.entry(kind).or_default().insert(Arc::clone(name), entry);
        Ok(())
    }

    /// Notes that a name (or alias) does not exist, and drops what was held under it.
    pub fn remove(&mut self, kind: Kind, name: &Arc<str>) {
        self.absent.insert(kind, name);
        if kind == Kind::Service && self.aliases.remove(name).is_some() {
            return;
        }
        let Some(entry) = self.entries.get_mut(&kind).and_then(|entries| entries.remove(name)) else { return };
        for alias in &entry.aliases {
            if self.aliases.get(alias).is_some_and(|of| of == name) {
                self.aliases.remove(alias);
                self.absent.insert(kind, alias);
            }
        }
    }

    /// Notes that the server gave no answer for a name; held ones stay.
    pub fn give_up(&mut self, kind: Kind, name: &Arc<str>) {
        if self.known(kind, name) == Known::Missing {
            self.absent.insert(kind, name);
        }
    }

    /// What is known of a name or alias.
    pub fn known(&self, kind: Kind, name: &str) -> Known {
        if self.get(kind, self.real_name(kind, name)).is_some() {
            Known::Held
        } else if self.complete || self.absent.of(kind).contains(name) {
            Known::Absent
        } else {
            Known::Missing
        }
    }

    /// The resource under a name; aliases are not followed.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Entry> {
        self.entries.get(&kind)?.get(name)
    }

    /// The name that an alias stands for, or the name itself.
    pub fn real_name<'a>(&'a self, kind: Kind, name: &'a str) -> &'a str {
        if kind == Kind::Service { self.aliases.get(name).map_or(name, |real| real) } else { name }
    }

    /// Names and versions of one kind.
    pub fn versions(&self, kind: Kind) -> BTreeMap<String, String> {
        let entries = self.entries.get(&kind).into_iter().flatten();
        entries.map(|(name, entry)| (name.to_string(), entry.version.to_string())).collect()
    }

    /// Everything held, in sending order.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &Arc<str>, &Entry)> {
        self.entries.iter().flat_map(|(kind, entries)| entries.iter().map(|(name, entry)| (*kind, name, entry)))
    }

    /// Names known to be absent.
    pub fn absences(&self) -> impl Iterator<Item = (Kind, &Arc<str>)> {
        self.absent.names.iter().flat_map(|(kind, names)| names.iter().map(|name| (*kind, name)))
    }

    /// Roots of a trust domain.
    pub fn roots(&self, trust_domain: &str) -> Option<&Arc<[CertificateDer<'static>]>> {
        match &self.get(Kind::TrustBundle, trust_domain)?.resource {
            Resource::TrustBundle(roots) => Some(roots),
            _ => None,
        }
    }

    /// Number of resources held.
    pub fn len(&self) -> usize {
        self.entries.values().map(BTreeMap::len).sum()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what nobody wants: entries that are not in `keep`, absences of names that are not in `wanted`.
    fn retain(&mut self, keep: &Wanted, wanted: &Wanted) {
        for (kind, entries) in &mut self.entries {
            // Both are sorted, and on most steps equal: one walk over both instead of a search for each.
            let mut kept = keep.of(*kind).iter().peekable();
            entries.retain(|name, _| {
                while kept.next_if(|kept| *kept < name).is_some() {}
                kept.peek().is_some_and(|kept| *kept == name)
            });
        }
        self.aliases.retain(|_, of| keep.of(Kind::Service).contains(of));
        for (kind, names) in &mut self.absent.names {
            names.retain(|name| wanted.of(*kind).contains(name));
        }
    }

    fn definition(&self, name: &str) -> Option<&Arc<Definition>> {
        self.service(name).map(|(_, definition)| definition)
    }

    /// A service under its real name, with the name as it is kept.
    fn service(&self, name: &str) -> Option<(&Arc<str>, &Arc<Definition>)> {
        let (name, entry) = self.entries.get(&Kind::Service)?.get_key_value(name)?;
        match &entry.resource {
            Resource::Service(definition) => Some((name, definition)),
            _ => None,
        }
    }

    fn shard(&self, name: &str) -> Option<&Arc<[Arc<Endpoint>]>> {
        match &self.get(Kind::EndpointShard, name)?.resource {
            Resource::EndpointShard(shard) => Some(shard),
            _ => None,
        }
    }

    fn table(&self, name: &str) -> Option<&Arc<RouteTable<Target>>> {
        match &self.get(Kind::RouteTable, name)?.resource {
            Resource::RouteTable(table) => Some(table),
            _ => None,
        }
    }

    fn policies(&self, name: &str) -> Option<&Arc<PolicySet>> {
        match &self.get(Kind::BackendPolicy, name)?.resource {
            Resource::BackendPolicy(policies) => Some(policies),
            _ => None,
        }
    }

    /// This proxy's own node.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        match &self.get(Kind::Node, name)?.resource {
            Resource::Node(node) => Some(node),
            _ => None,
        }
    }
}

/// Something a form was made from. Two forms with equal inputs are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Input {
    /// `None`: absent, or not there in time.
    Resource { kind: Kind, name: Arc<str>, version: Option<Arc<str>> },
    /// `Err`: why the leg is bad.
    Leg { target: Target, resolved: Result<(), Arc<str>> },
    /// A service that is only referred to, by a fallback.
    Mention(Arc<str>),
    /// What follows belongs to this port.
    Port(u16),
}

impl Input {
    /// What it keeps wanted, whatever version that has.
    const fn reference(&self) -> Option<(Kind, &Arc<str>)> {
        match self {
            Self::Resource { kind, name, .. } => Some((*kind, name)),
            Self::Leg { target: Target { service, .. }, .. } | Self::Mention(service) => Some((Kind::Service, service)),
            Self::Port(_) => None,
        }
    }
}

/// A service as it stands in views.
#[derive(Debug)]
struct Form {
    service: Arc<Service>,
    inputs: Vec<Input>,
}

/// A service whose current definition is not in effect yet.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// What it would be made of.
    of: BTreeSet<(Kind, Arc<str>)>,
}

/// What one step came to.
#[derive(Debug)]
pub struct Step {
    /// `None`: nothing changed, or there is no node yet.
    pub view: Option<Arc<View>>,
    /// Every name to be subscribed to.
    pub wanted: Wanted,
    /// When to step again even if nothing arrives.
    pub next: Option<Instant>,
}

/// Puts services together.
#[derive(Debug)]
pub struct Assembler {
    node_name: Arc<str>,
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    node: Option<Arc<Node>>,
    forms: BTreeMap<Arc<str>, Form>,
    waiting: BTreeMap<Arc<str>, Waiting>,
    generation: u64,
    /// Whether a first view was given out.
    published: bool,
    /// How long the first view may wait for what the node preloads; set once a node is held.
    first_until: Option<Instant>,
}

impl Assembler {
    /// For the proxy of one workload. Views count on from `generation`.
    pub fn new(namespace: &str, workload: &str, trust_domain: &str, generation: u64) -> Self {
        Self {
            node_name: format!("{namespace}/{workload}").into(),
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            node: None,
            forms: BTreeMap::new(),
            waiting: BTreeMap::new(),
            generation,
            published: false,
            first_until: None,
        }
    }

    /// Makes of `held` what can be made, and drops from it what is no longer wanted.
    ///
    /// `roots` are the services (names or aliases) wanted for their own sake, besides those that the node preloads.
    pub fn step(&mut self, held: &mut Held, roots: &BTreeSet<Arc<str>>, now: Instant) -> Step {
        let mut before = self.reach(held, roots, BTreeMap::new());
        let Assembled { mut changed, refers_elsewhere } = self.assemble(held, &before, now);
        // What is wanted is only another when a form was replaced that referred to something else: seldom, and with as many services
        // as a mesh has, looking again costs as much as everything before.
        let after = if refers_elsewhere {
            let inputs = std::mem::take(&mut before.services);
            self.reach(held, roots, inputs)
        } else {
            before
        };
        let size = self.forms.len();
        self.forms.retain(|name, _| after.services.contains_key(name) && held.definition(name).is_some());
        self.waiting.retain(|name, _| after.services.contains_key(name));
        changed |= self.forms.len() != size;

        // The node is mandatory: without it nothing is published, and once there it is never taken away.
        if let Some(node) = held.node(&self.node_name)
            && !self.node.as_ref().is_some_and(|known| Arc::ptr_eq(known, node))
        {
            self.node = Some(Arc::clone(node));
            changed = true;
        }
        let mut next = self.waiting.values().map(|waiting| waiting.since + PATIENCE).min();
        let mut view = None;
        if let Some(node) = self.node.clone()
            && (changed || !self.published)
        {
            // The first view waits for what the node preloads: once it is there, the application may start.
            let until = *self.first_until.get_or_insert(now + PATIENCE);
            let settled = self.waiting.is_empty() && after.missing_roots == 0;
            if self.published || settled || now >= until {
                self.published = true;
                self.generation += 1;
                let services = self.forms.iter().map(|(name, form)| (Arc::clone(name), Arc::clone(&form.service)));
                view = Some(Arc::new(View { generation: self.generation, node, services: services.collect() }));
            } else {
                next = Some(next.map_or(until, |next| next.min(until)));
            }
        }
        held.retain(&after.keep, &after.wanted);
        Step { view, wanted: after.wanted, next }
    }

    /// Whether an accepted resource is in effect: no service waits that would be made of it.
    pub fn in_effect(&self, kind: Kind, name: &Arc<str>) -> bool {
        let part = (kind, Arc::clone(name));
        if kind == Kind::Node && !self.published {
            return false;
        }
        !self.waiting.values().any(|waiting| waiting.of.contains(&part))
    }

    /// Whether a service (real name) stands in the newest view.
    pub fn has(&self, service: &str) -> bool {
        self.published && self.forms.contains_key(service)
    }

    /// The newest generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Everything that is wanted because something wanted refers to it. `known`: inputs that were found for these resources before.
    fn reach(&self, held: &Held, roots: &BTreeSet<Arc<str>>, mut known: BTreeMap<Arc<str>, Vec<Input>>) -> Reach {
        let mut reach = Reach::default();
        for (kind, name) in [(Kind::Node, &self.node_name), (Kind::TrustBundle, &self.trust_domain)] {
            reach.wanted.insert(kind, name);
            reach.keep.insert(kind, name);
        }
        let preload = held.node(&self.node_name).or(self.node.as_ref()).map(|node| node.preload.as_slice());
        let mut todo: Vec<Arc<str>> = roots.iter().chain(preload.unwrap_or_default()).cloned().collect();
        reach.missing_roots = todo.iter().filter(|name| held.known(Kind::Service, name) == Known::Missing).count();
        while let Some(name) = todo.pop() {
            reach.wanted.insert(Kind::Service, &name);
            let Some((real, definition)) = held.service(held.real_name(Kind::Service, &name)) else { continue };
            if reach.services.contains_key(real) {
                continue;
            }
            reach.keep.insert(Kind::Service, real);
            let mut refer = |input: &Input| match input {
                Input::Resource { kind: Kind::Service, .. } => {}
                Input::Resource { kind, name, .. } => {
                    reach.wanted.insert(*kind, name);
                    reach.keep.insert(*kind, name);
                }
                Input::Leg { target: Target { service, .. }, .. } | Input::Mention(service) => {
                    todo.push(Arc::clone(service));
                }
                Input::Port(_) => {}
            };
            let inputs = known.remove(real).unwrap_or_else(|| self.inputs(held, definition));
            inputs.iter().for_each(&mut refer);
            // What the form in use refers to must not go before the form does.
            let form = self.forms.get(real).filter(|form| form.inputs != inputs);
            form.into_iter().flat_map(|form| &form.inputs).for_each(&mut refer);
            reach.services.insert(Arc::clone(real), inputs);
        }
        reach
    }

    /// What a service would be made of now.
    fn inputs(&self, held: &Held, definition: &Definition) -> Vec<Input> {
        let mut inputs = Vec::new();
        let version = |kind, name: &str| held.get(kind, name).map(|entry| Arc::clone(&entry.version));
        let resource = |inputs: &mut Vec<Input>, kind, name: &Arc<str>| {
            inputs.push(Input::Resource { kind, name: Arc::clone(name), version: version(kind, name) });
        };
        resource(&mut inputs, Kind::Service, &definition.resource);
        for shard in &definition.shards {
            resource(&mut inputs, Kind::EndpointShard, shard);
        }
        for port in &definition.ports {
            inputs.push(Input::Port(port.port));
            if let Some(name) = port.policy_for(&self.namespace) {
                resource(&mut inputs, Kind::BackendPolicy, name);
                if let Some(set) = held.policies(name) {
                    let policies = std::iter::once(&set.base).chain(set.subsets.iter().map(|subset| &subset.policy));
                    for breaker in policies.filter_map(|policy| policy.breaker.as_deref()) {
                        inputs.extend(fallback_service(breaker).cloned().map(Input::Mention));
                    }
                }
            }
            if let Some(name) = port.routes_for(&self.namespace) {
                resource(&mut inputs, Kind::RouteTable, name);
                if let Some(table) = held.table(name) {
                    for target in targets(table) {
                        inputs.push(Input::Leg { target: target.clone(), resolved: self.resolve(held, target) });
                    }
                    for breaker in table.http.iter().filter_map(|rule| rule.breaker.as_deref()) {
                        inputs.extend(fallback_service(breaker).cloned().map(Input::Mention));
                    }
                }
            }
        }
        inputs
    }

    /// Whether a leg leads somewhere, and if not, why.
    fn resolve(&self, held: &Held, Target { service, port, subset }: &Target) -> Result<(), Arc<str>> {
        let Some(definition) = held.definition(service) else {
            return Err(format!("service \"{service}\" does not exist").into());
        };
        let Some(defined) = definition.ports.iter().find(|defined| defined.port == *port) else {
            return Err(format!("service \"{service}\" has no port {port}").into());
        };
        let policies = defined.policy_for(&self.namespace).and_then(|name| held.policies(name));
        if subset.is_empty() || policies.is_some_and(|set| set.subsets.iter().any(|known| known.name == *subset)) {
            return Ok(());
        }
        Err(format!("service \"{service}\" has no subset \"{subset}\" for port {port}").into())
    }

    /// Brings forms up to date, as far as they may be.
    fn assemble(&mut self, held: &Held, reach: &Reach, now: Instant) -> Assembled {
        let mut stale: BTreeMap<Arc<str>, Stale> = BTreeMap::new();
        for (name, inputs) in &reach.services {
            if self.forms.get(name).is_some_and(|form| form.inputs == *inputs) {
                self.waiting.remove(name);
                continue;
            }
            let inputs = inputs.clone();
            let since = self.waiting.get(name).map_or(now, |waiting| waiting.since);
            let patient = now.saturating_duration_since(since) < PATIENCE;
            let missing = |input: &Input| match input {
                Input::Resource { kind, name, .. } => held.known(*kind, name) == Known::Missing,
                Input::Leg { target: Target { service, .. }, .. } | Input::Mention(service) => {
                    held.known(Kind::Service, service) == Known::Missing
                }
                Input::Port(_) => false,
            };
            let waits = patient && inputs.iter().any(missing);
            stale.insert(Arc::clone(name), Stale { inputs, since, patient, waits });
        }
        // Who refers to a service that waits has to wait too: it may need exactly what is new in that service.
        loop {
            let refers = |stale_service: &Stale| {
                stale_service.inputs.iter().any(|input| match input {
                    Input::Leg { target: Target { service, .. }, .. } | Input::Mention(service) => {
                        stale.get(service).is_some_and(|other| other.waits)
                    }
                    Input::Resource { .. } | Input::Port(_) => false,
                })
            };
            let more: Vec<Arc<str>> = stale
                .iter()
                .filter(|(_, service)| service.patient && !service.waits && refers(service))
                .map(|(name, _)| Arc::clone(name))
                .collect();
            if more.is_empty() {
                break;
            }
            for name in more {
                if let Some(service) = stale.get_mut(&name) {
                    service.waits = true;
                }
            }
        }
        let mut assembled = Assembled::default();
        for (name, Stale { inputs, since, waits, .. }) in stale {
            if waits {
                let of = inputs.iter().filter_map(|input| match input {
                    Input::Resource { kind, name, .. } => Some((*kind, Arc::clone(name))),
                    Input::Leg { .. } | Input::Mention(_) | Input::Port(_) => None,
                });
                self.waiting.insert(name, Waiting { since, of: of.collect() });
            } else if let Some(definition) = held.definition(&name) {
                self.waiting.remove(&name);
                let service = Arc::new(self.form(held, definition, &inputs));
                assembled.changed = true;
                assembled.refers_elsewhere |= self.forms.get(&name).is_some_and(|form| {
                    !form.inputs.iter().map(Input::reference).eq(inputs.iter().map(Input::reference))
                });
                self.forms.insert(name, Form { service, inputs });
            }
        }
        assembled
    }

    /// Makes a service, sharing with its previous form what has not changed.
    fn form(&self, held: &Held, definition: &Definition, inputs: &[Input]) -> Service {
        let previous = self.forms.get(&definition.resource);
        let same = |relevant: &dyn Fn(&Input) -> bool| {
            previous.is_some_and(|form| {
                form.inputs.iter().filter(|input| relevant(input)).eq(inputs.iter().filter(|input| relevant(input)))
            })
        };
        let is_shard = |input: &Input| matches!(input, Input::Resource { kind: Kind::EndpointShard, .. });
        let endpoints = match previous {
            Some(form) if same(&is_shard) => Arc::clone(&form.service.endpoints),
            _ => {
                // While shards are split, an instance may stand in two of them.
                let mut seen = HashSet::new();
                let shards = definition.shards.iter().filter_map(|name| held.shard(name));
                shards.flat_map(|shard| shard.iter()).filter(|endpoint| seen.insert(&endpoint.uid)).cloned().collect()
            }
        };
        let is_route = |input: &Input| {
            matches!(input, Input::Resource { kind: Kind::RouteTable, .. } | Input::Leg { .. } | Input::Port(_))
        };
        let same_routes = same(&is_route);
        let ports = definition.ports.iter().map(|port| {
            let old = previous.and_then(|form| form.service.ports.iter().find(|old| old.port == port.port));
            let table = port.routes_for(&self.namespace);
            let routes = match (table, old.and_then(|old| old.routes.as_ref())) {
                (Some(_), Some(routes)) if same_routes => Some(Arc::clone(routes)),
                (Some(name), _) => held.table(name).map(|table| Arc::new(self.join(held, table))),
                (None, _) => None,
            };
            let policies = port.policy_for(&self.namespace).and_then(|name| held.policies(name)).cloned();
            ServicePort {
                port: port.port,
                name: Arc::clone(&port.name),
                protocol: port.protocol,
                routes,
                policies: policies.unwrap_or_default(),
            }
        });
        Service {
            resource: Arc::clone(&definition.resource),
            namespace: Arc::clone(&definition.namespace),
            host: Arc::clone(&definition.host),
            name: Arc::clone(&definition.name),
            addresses: definition.addresses.clone(),
            hosts: definition.hosts.clone(),
            ports: ports.collect(),
            endpoints,
            external: definition.external,
        }
    }

    /// The table with every leg that leads nowhere marked as bad.
    fn join(&self, held: &Held, table: &RouteTable<Target>) -> RouteTable<Target> {
        let leg = |target: Target| match self.resolve(held, &target) {
            Ok(()) => Leg::To(target),
            Err(reason) => Leg::Bad(reason),
        };
        table.clone().map(|_, target| leg(target), |_, target| leg(target))
    }
}

/// A service whose form is not what it should be.
struct Stale {
    inputs: Vec<Input>,
    since: Instant,
    /// Still has time to wait.
    patient: bool,
    waits: bool,
}

/// What became of the forms.
#[derive(Debug, Default)]
struct Assembled {
    changed: bool,
    /// A form was replaced by one that does not refer to the same.
    refers_elsewhere: bool,
}

#[derive(Debug, Default)]
struct Reach {
    /// Names as they are referred to, aliases included.
    wanted: Wanted,
    /// Real names.
    keep: Wanted,
    /// Real names of the services among them that are held, and what each would be made of now.
    services: BTreeMap<Arc<str>, Vec<Input>>,
    missing_roots: usize,
}

fn fallback_service(breaker: &BreakerPolicy) -> Option<&Arc<str>> {
    match &breaker.fallback.as_deref()?.kind {
        FallbackKind::Backend(target) => Some(&target.service),
        FallbackKind::Reply { .. } => None,
    }
}

/// Everything that a table leads to.
fn targets(table: &RouteTable<Target>) -> impl Iterator<Item = &Target> {
    table.arms().filter_map(|arm| match &arm.leg {
        Leg::To(target) => Some(target),
        Leg::Bad(_) => None,
    })
}

#[cfg(test)]
mod tests;
