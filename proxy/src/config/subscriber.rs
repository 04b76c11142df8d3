//! The client's side of the protocol without its connection: what is held, owed and wanted. Pure.
//!
//! Fed by `stream` with what arrives and what time it is; gives out requests to send and views to publish. Joins the
//! parts: `ledger` (what the server knows of our interest), `apply` (resources and views), `interest` (what the data path
//! asked for). A response is acknowledged when everything in it is in force, or refused as far as it is not valid; what
//! was held before stays.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use outrigger_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node as Client},
    kind::{FEATURES, Kind, REFUSAL_TYPE_URL},
    mesh::{Refusal, Registration},
    rpc,
};
use prost::Message;
use rustls_pki_types::CertificateDer;
use tracing::{error, warn};

use super::{
    apply::{Assembler, Held, Known, PATIENCE, Wanted},
    decode::Rejected,
    demand::{Answer, Request},
    disk::{Absent, Snapshot, Stored},
    interest::Interest,
    ledger::{Incoming, Ledger, Receipt, Subscription},
    view::View,
};
use crate::{
    host::Instant,
    settings::{Limits, NodeSettings},
};

/// Responses that may wait for their acknowledgement; beyond it the oldest is acknowledged early.
const PENDING_RESPONSES: usize = 1024;
/// Characters of one reason in a refusal.
const REASON_CHARACTERS: usize = 1024;
/// Refusals described in one message; the rest is only counted.
const REFUSALS: usize = 256;

/// Everything between the stream and the data path.
#[derive(Debug)]
pub(super) struct Subscriber {
    node: NodeSettings,
    unused: Duration,
    ledger: Ledger,
    held: Held,
    assembler: Assembler,
    interest: Interest,
    wanted: Wanted,
    next: Option<Instant>,
    stream: Option<StreamState>,
    registration: Registration,
    /// Resources refused since the start.
    refused: u64,
    /// Something changed that belongs on disk.
    unsaved: bool,
    /// Roots that came from the server in this process.
    roots: Option<Arc<[CertificateDer<'static>]>>,
}

/// What lives as long as one stream.
#[derive(Debug, Default)]
struct StreamState {
    outbox: VecDeque<DeltaDiscoveryRequest>,
    pending: VecDeque<Pending>,
    /// The registration has changed since the server was told.
    registration_changed: bool,
    draining_told: bool,
    draining_confirmed: bool,
    answered: bool,
    revision: String,
}

/// A response that is not acknowledged yet.
#[derive(Debug)]
struct Pending {
    kind: Kind,
    nonce: String,
    revision: String,
    accepted: Vec<Arc<str>>,
    refused: Vec<Rejected>,
}

impl Subscriber {
    pub(super) fn new(node: NodeSettings, registration: Registration, limits: &Limits, unused: Duration) -> Self {
        Self {
            assembler: Assembler::new(&node.namespace, &node.workload, &node.trust_domain, 0),
            node,
            unused,
            ledger: Ledger::default(),
            held: Held::default(),
            interest: Interest::new(limits),
            wanted: Wanted::default(),
            next: None,
            stream: None,
            registration,
            refused: 0,
            unsaved: false,
            roots: None,
        }
    }

    /// Who the saved configuration belongs to.
    pub(super) fn owner(node: &NodeSettings) -> String {
        format!("{} {}/{}", node.trust_domain, node.namespace, node.workload)
    }

    /// Starts from what was saved. What does not decode any more is left out.
    pub(super) fn restore(&mut self, snapshot: Snapshot, now: Instant) {
        for Stored { type_url, name, version, aliases, encoded } in snapshot.resources {
            let Some(kind) = Kind::from_type_url(&type_url) else { continue };
            let aliases = aliases.into_iter().map(Arc::from).collect();
            if let Err(rejected) = self.held.accept(kind, &name.into(), &version.into(), aliases, encoded) {
                error!(%rejected, "saved resource is not valid and is left out");
            }
        }
        for Absent { type_url, name } in snapshot.absent {
            if let Some(kind) = Kind::from_type_url(&type_url) {
                self.held.give_up(kind, &name.into());
            }
        }
        for name in snapshot.demanded {
            self.interest.follow(name.into(), now);
        }
    }

    /// What to save, if anything changed since the last call.
    pub(super) fn unsaved(&mut self) -> Option<Snapshot> {
        if !std::mem::take(&mut self.unsaved) {
            return None;
        }
        let resources = self.held.iter().map(|(kind, name, entry)| Stored {
            type_url: kind.type_url().to_owned(),
            name: name.to_string(),
            version: entry.version.to_string(),
            aliases: entry.aliases.iter().map(ToString::to_string).collect(),
            encoded: entry.encoded.clone(),
        });
        let absent = self.held.absences();
        let absent = absent.map(|(kind, name)| Absent { type_url: kind.type_url().to_owned(), name: name.to_string() });
        Some(Snapshot {
            owner: Self::owner(&self.node),
            resources: resources.collect(),
            absent: absent.collect(),
            demanded: self.interest.names().iter().map(ToString::to_string).collect(),
        })
    }

    /// Whether [`Subscriber::unsaved`] has something.
    pub(super) fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// A stream is open; nothing was said on it yet.
    pub(super) fn connected(&mut self) {
        self.ledger.reset();
        self.stream = Some(StreamState::default());
    }

    /// The stream is gone, and with it everything that was owed on it.
    pub(super) fn disconnected(&mut self) {
        self.stream = None;
    }

    /// What the workload says of itself has changed.
    pub(super) fn register(&mut self, registration: Registration) {
        if registration == self.registration {
            return;
        }
        self.registration = registration;
        if let Some(stream) = &mut self.stream {
            stream.registration_changed = true;
        }
    }

    /// The data path wants a name.
    pub(super) fn demand(&mut self, request: Request, now: Instant) {
        let (namespace, suffix) = match self.held.node(&format!("{}/{}", self.node.namespace, self.node.workload)) {
            Some(node) => (Arc::clone(&node.namespace), Arc::clone(&node.domain_suffix)),
            None => (self.node.namespace.as_str().into(), "cluster.local".into()),
        };
        let Some(name) = request.name.resource_name(&namespace, &suffix) else {
            // The asker may have gone away.
            let _ = request.reply.send(Answer::Absent);
            return;
        };
        self.interest.ask(&name, request.reply, known(&self.held, &self.assembler), now);
        self.unsaved = true;
    }

    /// Takes in one response.
    pub(super) fn receive(&mut self, response: DeltaDiscoveryResponse) {
        let Some(stream) = &mut self.stream else { return };
        stream.answered = true;
        let (nonce, revision) = (response.nonce.clone(), response.system_version_info.clone());
        let Some(kind) = Kind::from_type_url(&response.type_url) else {
            warn!(type_url = response.type_url, "control plane sent a type of resource that was not asked for");
            let reason = "type is not known to this version".to_owned();
            let refused = [Rejected { resource: String::new(), path: String::new(), reason }];
            stream.outbox.push_back(answer(response.type_url, nonce, &refused));
            return;
        };
        if kind == Kind::Node && response.resources.is_empty() && response.removed_resources.is_empty() {
            stream.draining_confirmed |= stream.draining_told;
        }
        let Receipt { resources, removed, mut refused } = self.ledger.receive(kind, response);
        let mut accepted = Vec::new();
        for Incoming { name, version, aliases, encoded } in resources {
            let told = |name: &Arc<str>| self.ledger.is_told(kind, name);
            if !told(&name) && !aliases.iter().any(told) {
                // Crossed with the end of our interest, or sent without one.
                continue;
            }
            let Some(encoded) = encoded else {
                if self.held.get(kind, &name).is_none_or(|entry| entry.version != version) {
                    let reason = "has no content, and this version of it is not held".to_owned();
                    refused.push(Rejected { resource: name.to_string(), path: String::new(), reason });
                }
                continue;
            };
            match self.held.accept(kind, &name, &version, aliases, encoded) {
                Ok(()) => accepted.push(name),
                Err(rejected) => refused.push(rejected),
            }
        }
        for name in removed {
            // Without these two nothing can be accepted; a server that has lost them must not take us down.
            if matches!(kind, Kind::Node | Kind::TrustBundle) {
                warn!(?kind, %name, "control plane does not know this proxy any more, the last configuration stays");
                continue;
            }
            self.held.remove(kind, &name);
        }
        for rejected in &refused {
            warn!(?kind, %rejected, "resource refused, the previous one stays");
        }
        if kind == Kind::TrustBundle
            && let Some(roots) = self.held.roots(&self.node.trust_domain)
        {
            self.roots = Some(Arc::clone(roots));
        }
        self.refused = self.refused.saturating_add(refused.len() as u64);
        self.unsaved = true;
        stream.pending.push_back(Pending { kind, nonce, revision, accepted, refused });
    }

    /// Notes what the data path used, and forgets what it has not used for long.
    pub(super) fn sweep(&mut self, used: &[Arc<str>], now: Instant) {
        let used: BTreeSet<&str> = used.iter().map(AsRef::as_ref).collect();
        let held = &self.held;
        let forgotten =
            self.interest.sweep(|name| used.contains(held.real_name(Kind::Service, name)), self.unused, now);
        self.unsaved |= forgotten;
    }

    /// Works out what follows from everything fed in; the view, if there is one, must be published now, before
    /// [`Subscriber::settle`].
    pub(super) fn step(&mut self, now: Instant) -> Option<Arc<View>> {
        if self.stream.is_some() {
            for (kind, name) in self.ledger.overdue(now) {
                warn!(?kind, %name, "control plane gave no answer for a name, it counts as absent");
                self.held.give_up(kind, &name);
            }
        }
        let step = self.assembler.step(&mut self.held, &self.interest.names(), now);
        self.wanted = step.wanted;
        self.next = step.next;
        step.view
    }

    /// Whatever became true with the view just published: answers to the data path and to the server.
    pub(super) fn settle(&mut self, now: Instant) {
        self.interest.answer(known(&self.held, &self.assembler));
        let Some(stream) = &mut self.stream else { return };
        let mut waiting = VecDeque::new();
        let mut surplus = stream.pending.len().saturating_sub(PENDING_RESPONSES);
        for pending in std::mem::take(&mut stream.pending) {
            let in_effect = pending.accepted.iter().all(|name| self.assembler.in_effect(pending.kind, name));
            if !in_effect && surplus == 0 {
                waiting.push_back(pending);
                continue;
            }
            surplus = surplus.saturating_sub(1);
            stream.outbox.push_back(answer(pending.kind.type_url().to_owned(), pending.nonce, &pending.refused));
            stream.revision = pending.revision;
        }
        stream.pending = waiting;

        // What the server has not taken yet is enough to say for now; differences add up.
        if stream.outbox.len() < MAX_UNSENT {
            let held = &self.held;
            let answered = |kind, name: &str| held.known(kind, name) != Known::Missing;
            let subscriptions = self.ledger.reconcile(&self.wanted, |kind| held.versions(kind), answered, now);
            for subscription in subscriptions {
                let node = subscription.first.then(|| client(&self.node, &self.registration));
                if subscription.kind == Kind::Node && subscription.first {
                    stream.registration_changed = false;
                    stream.draining_told = self.registration.draining;
                }
                stream.outbox.push_back(request(subscription, node));
            }
        }
        if stream.registration_changed && self.ledger.is_open(Kind::Node) {
            stream.registration_changed = false;
            stream.draining_told = self.registration.draining;
            stream.outbox.push_back(DeltaDiscoveryRequest {
                node: Some(client(&self.node, &self.registration)),
                type_url: Kind::Node.type_url().to_owned(),
                ..DeltaDiscoveryRequest::default()
            });
        }
    }

    /// The next request to send.
    pub(super) fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.stream.as_mut()?.outbox.pop_front()
    }

    /// Number of requests to send.
    pub(super) fn unsent(&self) -> usize {
        self.stream.as_ref().map_or(0, |stream| stream.outbox.len())
    }

    /// When to step again even if nothing happens.
    pub(super) fn next_step(&self) -> Option<Instant> {
        let overdue = self.stream.as_ref().and_then(|_| self.ledger.next_overdue());
        self.next.into_iter().chain(overdue).min()
    }

    /// Roots of the trust domain, if the server announced some since the last call.
    pub(super) fn take_roots(&mut self) -> Option<Arc<[CertificateDer<'static>]>> {
        self.roots.take()
    }

    /// Whether the server has answered the announcement that we are draining.
    pub(super) fn is_draining_confirmed(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.draining_confirmed)
    }

    /// Whether anything came on this stream.
    pub(super) fn is_answered(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.answered)
    }

    /// Store revision of the newest response in force; `None` before the first on this stream.
    pub(super) fn revision(&self) -> Option<&str> {
        self.stream.as_ref().map(|stream| stream.revision.as_str()).filter(|revision| !revision.is_empty())
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    pub(super) fn generation(&self) -> u64 {
        self.assembler.generation()
    }
}

/// Requests that may wait to be sent before nothing more is taken in and differences of interest are left to add up.
pub(super) const MAX_UNSENT: usize = 16;

const _: () = assert!(PATIENCE.as_secs() < super::ledger::ANSWER_TIMEOUT.as_secs(), "waiting for an answer ends later");

/// The answer to a demand for a name as things stand.
fn known<'a>(held: &'a Held, assembler: &'a Assembler) -> impl Fn(&str) -> Option<Answer> + 'a {
    |name| match held.known(Kind::Service, name) {
        Known::Held => assembler.has(held.real_name(Kind::Service, name)).then_some(Answer::Found),
        Known::Absent => Some(Answer::Absent),
        Known::Missing => None,
    }
}

/// Who we are and what we understand.
fn client(node: &NodeSettings, registration: &Registration) -> Client {
    Client {
        id: format!("{}/{}", node.namespace, node.workload),
        user_agent_name: "outrigger-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        client_features: FEATURES.iter().map(ToString::to_string).collect(),
        registration: Some(registration.clone()),
    }
}

fn request(subscription: Subscription, node: Option<Client>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node,
        type_url: subscription.kind.type_url().to_owned(),
        resource_names_subscribe: subscription.subscribe,
        resource_names_unsubscribe: subscription.unsubscribe,
        initial_resource_versions: subscription.initial_versions,
        response_nonce: String::new(),
        error_detail: None,
    }
}

/// Acknowledges a response, except for what was refused of it.
fn answer(type_url: String, nonce: String, refused: &[Rejected]) -> DeltaDiscoveryRequest {
    let error_detail = (!refused.is_empty()).then(|| rpc::Status {
        code: tonic::Code::InvalidArgument as i32,
        message: match refused {
            [one] => one.to_string().chars().take(REASON_CHARACTERS).collect(),
            many => format!("{} resources refused", many.len()),
        },
        details: refused.iter().take(REFUSALS).map(detail).collect(),
    });
    DeltaDiscoveryRequest { type_url, response_nonce: nonce, error_detail, ..DeltaDiscoveryRequest::default() }
}

fn detail(rejected: &Rejected) -> prost_types::Any {
    let refusal = Refusal {
        resource_name: rejected.resource.clone(),
        path: rejected.path.clone(),
        reason: rejected.reason.chars().take(REASON_CHARACTERS).collect(),
    };
    prost_types::Any { type_url: REFUSAL_TYPE_URL.to_owned(), value: refusal.encode_to_vec().into() }
}
