//! One connected proxy: what it is owed, in which order, and what of it is in effect. No I/O and no clock of its own.
//!
//! `service` feeds requests and catalogues in and takes responses out, one at a time and only when there is room to send.
//! Nothing is queued here: a response is made from the newest catalogue at the moment it can be sent, so changes that
//! come while a proxy is slow become one, and a proxy that never reads costs no memory.
//!
//! Order: answers to names just asked for, at once. Then updates, kind by kind in the order of [`Kind::ALL`], one unacked push for
//! each kind; a later kind waits until the earlier ones are sent. Removals come last, kinds backwards, and only when everything
//! that could still refer to them is replaced and acked, and nothing that exists is refused or withheld. What was refused and is
//! deleted since is in nobody's way: its removal is the remedy.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use outrigger_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource},
    kind::{Kind, REFUSAL_TYPE_URL},
    mesh,
    rpc::Status as RpcStatus,
};
use prost::Message as _;

use super::{
    Catalogue,
    subscription::{Held, Owed, Refusal, Subscription, View},
};
use crate::compile::Resource;

/// Answers to subscriptions that may be unacked at once, for each kind; further ones wait and become one. Generous, because a
/// proxy acks an answer only when all that it refers to is there too, which may take further answers.
const MAX_UNACKED_ANSWERS: usize = 1024;
/// Revisions whose moment of effect is remembered.
const MAX_MOMENTS: usize = 256;
/// Bytes that a resource costs in a message beside its content, counted generously.
const OVERHEAD_BYTES: usize = 160;
/// Longest text of a refusal that is kept.
const MAX_REASON_BYTES: usize = 1024;

/// One stream's state.
#[derive(Debug)]
pub struct Session {
    /// "namespace/workload": the one Node resource it may see.
    node: String,
    features: Vec<String>,
    response_bytes: usize,
    max_names: usize,
    catalogue: Arc<Catalogue>,
    kinds: [KindState; Kind::ALL.len()],
    next_nonce: u64,
    /// An empty Node response is due: the peers of this draining workload have stopped.
    confirm_drain: bool,
    /// Newest revision that is wholly in effect, and when each became so.
    in_effect: u64,
    moments: VecDeque<(u64, Instant)>,
}

#[derive(Debug, Default)]
struct KindState {
    subscription: Subscription,
    unacked: VecDeque<Unacked>,
    /// Sequence and revision of the newest catalogue of which everything is in effect.
    synced: (u64, u64),
    /// Sequence of the catalogue for which nothing is owed; `None` after anything that may have changed that.
    settled: Option<u64>,
    withheld: Vec<(Arc<Resource>, &'static str)>,
}

#[derive(Debug)]
struct Unacked {
    nonce: String,
    resources: Vec<(Arc<str>, Arc<str>)>,
    /// An answer to a subscription; otherwise a push.
    answer: bool,
    /// After the ack, everything of this sequence and revision is in effect.
    covers: Option<(u64, u64)>,
}

/// What a request said that is not allowed. The stream ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    #[error("unknown type_url {0:?} (hint: the proxy is newer than this control plane)")]
    Type(String),
    #[error("more than {0} names subscribed (hint: raise subscriptions_per_proxy)")]
    TooManyNames(usize),
}

/// A resource that a proxy does not have in effect, for status and tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedResource {
    pub kind: Kind,
    pub name: Arc<str>,
    pub refusal: Refusal,
}

/// What a request made happen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Resources that were refused just now.
    pub refused: Vec<RefusedResource>,
}

impl Session {
    /// A new stream of the proxy `node`, which understands `features`.
    pub fn new(
        node: &str,
        features: Vec<String>,
        catalogue: Arc<Catalogue>,
        response_bytes: usize,
        max_names: usize,
    ) -> Self {
        Self {
            node: node.to_owned(),
            features,
            response_bytes,
            max_names,
            catalogue,
            kinds: Default::default(),
            next_nonce: 1,
            confirm_drain: false,
            in_effect: 0,
            moments: VecDeque::new(),
        }
    }

    /// Takes in one request: first its ack or refusal, then its names, whatever its nonce is.
    ///
    /// # Errors
    /// [`BadRequest`], upon which the stream ends.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Outcome, BadRequest> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            // A request may carry news of the workload only.
            if request.type_url.is_empty() && request.resource_names_subscribe.is_empty() {
                return Ok(Outcome::default());
            }
            return Err(BadRequest::Type(request.type_url.chars().take(200).collect()));
        };
        let mut outcome = Outcome::default();
        if !request.response_nonce.is_empty() {
            outcome.refused = self.settle(kind, &request.response_nonce, request.error_detail.as_ref());
        }
        let subscription = &mut self.kinds[kind as usize].subscription;
        let is_answer = !request.response_nonce.is_empty();
        let names = !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty();
        if names || !is_answer && !subscription.started() {
            let count = request.resource_names_subscribe.len() + request.initial_resource_versions.len();
            let present: usize = self.kinds.iter().map(|k| k.subscription.names()).sum();
            if present + count > self.max_names {
                return Err(BadRequest::TooManyNames(self.max_names));
            }
            // An empty Node response says that peers have stopped: its first answer must never look like that.
            let nothing = BTreeMap::new();
            let initial = if kind == Kind::Node { &nothing } else { &request.initial_resource_versions };
            self.kinds[kind as usize].subscription.request(
                &request.resource_names_subscribe,
                &request.resource_names_unsubscribe,
                initial,
            );
            self.kinds[kind as usize].settled = None;
        }
        Ok(outcome)
    }

    /// The newest catalogue.
    pub fn set_catalogue(&mut self, catalogue: Arc<Catalogue>) {
        for (kind, state) in Kind::ALL.into_iter().zip(&mut self.kinds) {
            if let Some(settled) = state.settled {
                // Nothing of this kind changed: what was settled stays settled.
                state.settled = (settled >= catalogue.changed(kind)).then_some(catalogue.sequence);
            }
        }
        self.catalogue = catalogue;
    }

    /// Lets the next response to this proxy say that its peers have stopped sending it anything new.
    pub fn confirm_drain(&mut self) {
        self.confirm_drain = true;
    }

    /// The next response that can be sent now, if any. Asking makes it count as sent.
    pub fn next_response(&mut self, now: Instant) -> Option<DeltaDiscoveryResponse> {
        let response = self.choose_response();
        self.note_progress(now);
        response
    }

    fn choose_response(&mut self) -> Option<DeltaDiscoveryResponse> {
        if std::mem::take(&mut self.confirm_drain) {
            return Some(self.respond(Kind::Node, &[], &[], true, None));
        }
        let mut owed: [Owed; Kind::ALL.len()] = Default::default();
        for kind in Kind::ALL {
            owed[kind as usize] = self.owed(kind);
        }
        for kind in Kind::ALL {
            let mine = &mut owed[kind as usize];
            let answers = self.kinds[kind as usize].unacked.iter().filter(|u| u.answer).count();
            if mine.has_answers() && answers < MAX_UNACKED_ANSWERS {
                let count = self.fitting(&mine.answers);
                let whole = count == mine.answers.len();
                let answers = &mine.answers[..count];
                // What does not exist is told with the last part.
                let absent: &[Arc<str>] = if whole { &mine.absent } else { &[] };
                let covers = (whole && mine.updates.is_empty() && mine.removals.is_empty()).then(|| self.covered(kind));
                return Some(self.respond(kind, answers, absent, true, covers.flatten()));
            }
        }
        for kind in Kind::ALL {
            let mine = &owed[kind as usize];
            if mine.updates.is_empty() {
                continue;
            }
            if self.push_is_unacked(kind) {
                // Later kinds may refer to what waits here.
                return None;
            }
            let count = self.fitting(&mine.updates);
            let whole = count == mine.updates.len() && mine.removals.is_empty();
            let covers = if whole { self.covered(kind) } else { None };
            return Some(self.respond(kind, &mine.updates[..count], &[], false, covers));
        }
        let waits = |(state, owed): (&KindState, &Owed)| {
            !state.unacked.is_empty() || state.subscription.refuses_beside(&owed.removals) || !state.withheld.is_empty()
        };
        if self.kinds.iter().zip(&owed).any(waits) {
            return None;
        }
        for kind in Kind::ALL.into_iter().rev() {
            let removals = &owed[kind as usize].removals;
            if !removals.is_empty() {
                let mut bytes = 0;
                let count = removals
                    .iter()
                    .take_while(|name| {
                        bytes += name.len() + 8;
                        bytes <= self.response_bytes
                    })
                    .count()
                    .max(1);
                let covers = if count == removals.len() { self.covered(kind) } else { None };
                return Some(self.respond_removing(kind, &[], &removals[..count], false, covers));
            }
        }
        None
    }

    fn owed(&mut self, kind: Kind) -> Owed {
        let Self { catalogue, node, features, kinds, .. } = self;
        let state = &mut kinds[kind as usize];
        if !state.subscription.started() || state.settled == Some(catalogue.sequence) {
            return Owed::default();
        }
        let mut owed = state.subscription.owed(View { catalogue, kind, node, features });
        state.withheld = std::mem::take(&mut owed.withheld);
        if owed.is_empty() {
            state.settled = Some(catalogue.sequence);
        }
        owed
    }

    /// How many of these fit into one message; at least one, so that a single large one travels alone.
    fn fitting(&self, resources: &[Arc<Resource>]) -> usize {
        let mut bytes = 0;
        let count = resources
            .iter()
            .take_while(|resource| {
                let names: usize = resource.aliases.iter().map(|a| a.len() + 4).sum();
                bytes += resource.bytes.len() + resource.name.len() + names + OVERHEAD_BYTES;
                bytes <= self.response_bytes
            })
            .count();
        count.max(1).min(resources.len())
    }

    /// Sequence and revision of the catalogue, unless something of this kind is withheld.
    fn covered(&self, kind: Kind) -> Option<(u64, u64)> {
        self.kinds[kind as usize].withheld.is_empty().then_some((self.catalogue.sequence, self.catalogue.revision))
    }

    fn push_is_unacked(&self, kind: Kind) -> bool {
        self.kinds[kind as usize].unacked.iter().any(|u| !u.answer)
    }

    fn respond(
        &mut self,
        kind: Kind,
        resources: &[Arc<Resource>],
        absent: &[Arc<str>],
        answer: bool,
        covers: Option<(u64, u64)>,
    ) -> DeltaDiscoveryResponse {
        let Self { catalogue, node, features, kinds, .. } = self;
        let view = View { catalogue, kind, node, features };
        kinds[kind as usize].subscription.sent(resources, absent, &[], view);
        self.message(kind, resources, absent, answer, covers)
    }

    fn respond_removing(
        &mut self,
        kind: Kind,
        resources: &[Arc<Resource>],
        removed: &[Arc<str>],
        answer: bool,
        covers: Option<(u64, u64)>,
    ) -> DeltaDiscoveryResponse {
        let Self { catalogue, node, features, kinds, .. } = self;
        let view = View { catalogue, kind, node, features };
        kinds[kind as usize].subscription.sent(resources, &[], removed, view);
        self.message(kind, resources, removed, answer, covers)
    }

    fn message(
        &mut self,
        kind: Kind,
        resources: &[Arc<Resource>],
        removed: &[Arc<str>],
        answer: bool,
        covers: Option<(u64, u64)>,
    ) -> DeltaDiscoveryResponse {
        let nonce = format!("{:x}", self.next_nonce);
        self.next_nonce += 1;
        let state = &mut self.kinds[kind as usize];
        state.settled = None;
        state.unacked.push_back(Unacked {
            nonce: nonce.clone(),
            resources: resources.iter().map(|r| (Arc::clone(&r.name), Arc::clone(&r.version))).collect(),
            answer,
            covers,
        });
        DeltaDiscoveryResponse {
            system_version_info: self.catalogue.revision.to_string(),
            resources: resources.iter().map(|r| wire(r)).collect(),
            type_url: kind.type_url().to_owned(),
            nonce,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
        }
    }

    /// An ack or refusal of exactly this response; one of an unknown nonce says nothing. Proxies answer when something is in
    /// effect, so a later response may be acked before an earlier one.
    fn settle(&mut self, kind: Kind, nonce: &str, error: Option<&RpcStatus>) -> Vec<RefusedResource> {
        let state = &mut self.kinds[kind as usize];
        let Some(position) = state.unacked.iter().position(|u| u.nonce == nonce) else { return Vec::new() };
        state.settled = None;
        let Some(unacked) = state.unacked.remove(position) else { return Vec::new() };
        let mut refused = Vec::new();
        let refusals = error.map(|status| read_refusals(status, &unacked));
        for (name, version) in &unacked.resources {
            match refusals.as_ref().and_then(|r| r.get(&**name)) {
                Some(refusal) => {
                    state.subscription.refused(name, version, refusal.clone());
                    refused.push(RefusedResource { kind, name: Arc::clone(name), refusal: refusal.clone() });
                }
                None => state.subscription.acked(name, version),
            }
        }
        // An older response that is still unacked may hold something of the same revision.
        let older = state.unacked.iter().take(position).count();
        if let (None, Some(covers), 0) = (error, unacked.covers, older)
            && !state.subscription.has_refused()
        {
            state.synced = state.synced.max(covers);
        }
        refused
    }

    fn note_progress(&mut self, now: Instant) {
        let (sequence, revision) = (self.catalogue.sequence, self.catalogue.revision);
        for state in &mut self.kinds {
            let idle = !state.subscription.started() || state.settled == Some(sequence);
            if idle && state.unacked.is_empty() && state.withheld.is_empty() && !state.subscription.has_refused() {
                state.synced = state.synced.max((sequence, revision));
            }
        }
        if !self.kinds.iter().any(|k| k.subscription.started()) {
            // It has not asked for anything yet: nothing is in effect there.
            return;
        }
        let in_effect = self.kinds.iter().map(|k| k.synced.1).min().unwrap_or(0);
        if in_effect > self.in_effect {
            self.in_effect = in_effect;
            self.moments.push_back((in_effect, now));
            if self.moments.len() > MAX_MOMENTS {
                self.moments.pop_front();
            }
        }
    }

    /// Newest revision that is wholly in effect at this proxy.
    pub fn in_effect(&self) -> u64 {
        self.in_effect
    }

    /// When `revision` (or a later one) came into effect; `None` when it has not, or too long ago.
    pub fn in_effect_since(&self, revision: u64) -> Option<Instant> {
        self.moments.iter().find(|(r, _)| *r >= revision).map(|(_, at)| *at)
    }

    /// Sequence of the newest catalogue of which this kind is wholly in effect.
    pub fn synced(&self, kind: Kind) -> u64 {
        self.kinds[kind as usize].synced.0
    }

    /// What it does not have in effect although it was sent, or could not be sent.
    pub fn refused(&self) -> Vec<RefusedResource> {
        let mut out = Vec::new();
        for (kind, state) in Kind::ALL.into_iter().zip(&self.kinds) {
            for (name, held) in state.subscription.held() {
                if let Some(refusal) = &held.refused {
                    out.push(RefusedResource { kind, name: Arc::clone(name), refusal: refusal.clone() });
                }
            }
            for (resource, feature) in &state.withheld {
                let reason = format!("not sent: this proxy does not understand {feature} (hint: upgrade the proxy)");
                let refusal = Refusal { path: String::new(), reason };
                out.push(RefusedResource { kind, name: Arc::clone(&resource.name), refusal });
            }
        }
        out
    }

    /// Everything it holds, by kind and name.
    pub fn held(&self) -> impl Iterator<Item = (Kind, &Arc<str>, &Held)> {
        Kind::ALL
            .into_iter()
            .zip(&self.kinds)
            .flat_map(|(kind, state)| state.subscription.held().iter().map(move |(name, held)| (kind, name, held)))
    }

    /// The catalogue that responses are made from.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// Its id, "namespace/workload".
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What it understands.
    pub fn features(&self) -> &[String] {
        &self.features
    }
}

fn wire(resource: &Resource) -> WireResource {
    WireResource {
        version: resource.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: resource.kind.type_url().to_owned(),
            value: resource.bytes.to_vec(),
        }),
        name: resource.name.to_string(),
        aliases: resource.aliases.iter().map(ToString::to_string).collect(),
    }
}

/// Which resources of a response were refused: those named in the details, or all of them when none is named.
fn read_refusals(status: &RpcStatus, unacked: &Unacked) -> BTreeMap<String, Refusal> {
    let cut = |text: &str| -> String {
        let mut end = text.len().min(MAX_REASON_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].to_owned()
    };
    let mut named = BTreeMap::new();
    for detail in status.details.iter().filter(|d| d.type_url == REFUSAL_TYPE_URL) {
        let Ok(refusal) = mesh::Refusal::decode(detail.value.as_slice()) else { continue };
        if unacked.resources.iter().any(|(name, _)| **name == *refusal.resource_name) {
            named.insert(refusal.resource_name, Refusal { path: cut(&refusal.path), reason: cut(&refusal.reason) });
        }
    }
    if named.is_empty() {
        for (name, _) in &unacked.resources {
            named.insert(name.to_string(), Refusal { path: String::new(), reason: cut(&status.message) });
        }
    }
    named
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
