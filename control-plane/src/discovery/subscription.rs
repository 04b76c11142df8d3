//! Held + wanted + available -> what one proxy is owed for one kind. Pure.
//!
//! The rules are delta xDS's: every name that is asked for is answered, if need be with "does not exist", and the interest
//! stays; after a reconnect only what differs is sent; `*` stands for everything, and so does a first request that names
//! nothing (until a name is given). Names may be aliases; the answer carries the resource's own name.
//! What was sent counts as held: a refused version is not sent again until it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use outrigger_proto::kind::Kind;

use super::Catalogue;
use crate::compile::Resource;

/// What a proxy may see of the catalogue.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub catalogue: &'a Catalogue,
    pub kind: Kind,
    /// Node resources of other proxies do not exist for this one.
    pub node: &'a str,
    /// What the proxy understands.
    pub features: &'a [String],
}

impl<'a> View<'a> {
    fn find(&self, name: &str) -> Option<&'a Arc<Resource>> {
        self.catalogue.find(self.kind, name).filter(|r| self.visible(r))
    }

    fn visible(&self, resource: &Resource) -> bool {
        self.kind != Kind::Node || &*resource.name == self.node
    }

    fn missing_feature(&self, resource: &Resource) -> Option<&'static str> {
        self.catalogue.missing_feature(resource, self.features)
    }
}

/// What one proxy asked for and holds, of one kind.
#[derive(Debug, Default)]
pub struct Subscription {
    /// The first request has come.
    started: bool,
    /// Asked by naming nothing at all; ends with the first name.
    legacy_wildcard: bool,
    wildcard: bool,
    /// By the name that was asked for.
    wanted: BTreeMap<Arc<str>, Told>,
    /// Names that must be answered although nothing may have changed.
    unanswered: BTreeSet<Arc<str>>,
    /// An answer is due even if it is empty.
    answer_due: bool,
    /// Something was unsubscribed: what is held and no longer wanted is dropped on both sides without a word.
    dropped: bool,
    /// By the resource's own name.
    held: BTreeMap<Arc<str>, Held>,
}

/// What the proxy knows of a name that it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Present,
    Absent,
}

/// One resource as the proxy has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Version that was sent last (or that the proxy brought along).
    pub sent: Arc<str>,
    /// Version that the proxy has in effect; `None` before the first ack.
    pub acked: Option<Arc<str>>,
    /// Why it refused the version that was sent last.
    pub refused: Option<Refusal>,
}

/// A refusal in the proxy's words.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Refusal {
    /// Field path inside the resource; may be empty.
    pub path: String,
    pub reason: String,
}

/// What is owed now.
#[derive(Debug, Default)]
pub struct Owed {
    /// Answers to names just asked for; sent at once.
    pub answers: Vec<Arc<Resource>>,
    /// Names just asked for that do not exist.
    pub absent: Vec<Arc<str>>,
    /// An answer must go out even if it is empty.
    pub answer_due: bool,
    /// New versions of what is held, or new resources under a wildcard.
    pub updates: Vec<Arc<Resource>>,
    /// What was there and is not any more; sent last.
    pub removals: Vec<Arc<str>>,
    /// Resources that the proxy does not understand, with the feature it lacks.
    pub withheld: Vec<(Arc<Resource>, &'static str)>,
}

impl Owed {
    /// Is there anything to say before removals?
    pub fn has_answers(&self) -> bool {
        self.answer_due || !self.answers.is_empty() || !self.absent.is_empty()
    }

    /// Is there nothing to say at all?
    pub fn is_empty(&self) -> bool {
        !self.has_answers() && self.updates.is_empty() && self.removals.is_empty()
    }
}

/// The wildcard's name.
const ALL: &str = "*";

impl Subscription {
    /// Takes in the names of one request; `initial` counts on the first request of a stream only.
    pub fn request(&mut self, subscribe: &[String], unsubscribe: &[String], initial: &BTreeMap<String, String>) {
        let first = !std::mem::replace(&mut self.started, true);
        if first {
            for (name, version) in initial {
                let version: Arc<str> = version.as_str().into();
                let held = Held { sent: Arc::clone(&version), acked: Some(version), refused: None };
                self.held.insert(name.as_str().into(), held);
            }
            self.answer_due = true;
            // What the proxy brought along and did not ask for is forgotten, not removed.
            self.dropped = true;
            if subscribe.is_empty() && unsubscribe.is_empty() {
                self.legacy_wildcard = true;
            }
        }
        if !subscribe.is_empty() || !unsubscribe.is_empty() {
            self.legacy_wildcard = false;
        }
        for name in subscribe {
            if name == ALL {
                self.wildcard = true;
                self.answer_due = true;
                continue;
            }
            let name: Arc<str> = name.as_str().into();
            // The first request restates everything: versions that are held need no answer of their own.
            if !first {
                self.unanswered.insert(Arc::clone(&name));
            }
            self.wanted.entry(name).or_insert(Told::Nothing);
        }
        for name in unsubscribe {
            if name == ALL {
                self.wildcard = false;
                self.dropped = true;
                self.unanswered.retain(|name| self.wanted.contains_key(name));
                continue;
            }
            self.unanswered.remove(name.as_str());
            self.wanted.remove(name.as_str());
            self.dropped = true;
            // The proxy has let go of it. Where another name or the wildcard still wants it, it is owed again.
            self.held.remove(name.as_str());
            if self.everything() {
                self.unanswered.insert(name.as_str().into());
            }
        }
    }

    /// What is owed, given what exists. Forgets what nobody wants any more.
    pub fn owed(&mut self, view: View<'_>) -> Owed {
        let mut owed = Owed { answer_due: self.answer_due, ..Owed::default() };
        let mut desired: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut withheld: BTreeSet<Arc<str>> = BTreeSet::new();
        for (name, told) in &self.wanted {
            let asked = *told == Told::Nothing || self.unanswered.contains(name);
            match view.find(name) {
                Some(resource) => match view.missing_feature(resource) {
                    Some(feature) => {
                        if withheld.insert(Arc::clone(&resource.name)) {
                            owed.withheld.push((Arc::clone(resource), feature));
                        }
                        if asked && !self.held.contains_key(&resource.name) {
                            owed.absent.push(Arc::clone(name));
                        }
                        desired.insert(Arc::clone(&resource.name));
                    }
                    None => {
                        let differs = self.differs(resource);
                        // Two names of one resource: one copy answers both.
                        let fresh = desired.insert(Arc::clone(&resource.name));
                        let forced = self.unanswered.contains(name);
                        if asked && (differs || forced) {
                            if fresh || !owed.answers.iter().any(|r| r.name == resource.name) {
                                owed.updates.retain(|r| r.name != resource.name);
                                owed.answers.push(Arc::clone(resource));
                            }
                        } else if differs && fresh {
                            owed.updates.push(Arc::clone(resource));
                        }
                    }
                },
                None if asked => owed.absent.push(Arc::clone(name)),
                None if *told == Told::Present => owed.removals.push(Arc::clone(name)),
                None => {}
            }
        }
        if self.everything() {
            for resource in view.catalogue.of_kind(view.kind).filter(|r| view.visible(r)) {
                if !desired.insert(Arc::clone(&resource.name)) {
                    continue;
                }
                if let Some(feature) = view.missing_feature(resource) {
                    owed.withheld.push((Arc::clone(resource), feature));
                } else if self.unanswered.contains(&resource.name) || self.answer_due && self.differs(resource) {
                    owed.answers.push(Arc::clone(resource));
                } else if self.differs(resource) {
                    owed.updates.push(Arc::clone(resource));
                }
            }
            let known = |name: &Arc<str>| self.wanted.contains_key(name) || view.find(name).is_some();
            owed.absent.extend(self.unanswered.iter().filter(|name| !known(name)).cloned());
        }
        let mut forgotten = Vec::new();
        for name in self.held.keys().filter(|name| !desired.contains(*name)) {
            if self.dropped && view.find(name).is_some() {
                forgotten.push(Arc::clone(name));
            } else if !owed.removals.contains(name) && !owed.absent.contains(name) {
                owed.removals.push(Arc::clone(name));
            }
        }
        for name in forgotten {
            self.held.remove(&name);
        }
        self.dropped = false;
        owed
    }

    /// These went out; what asked for them is answered.
    pub fn sent(&mut self, resources: &[Arc<Resource>], absent: &[Arc<str>], removed: &[Arc<str>], view: View<'_>) {
        self.answer_due = false;
        for resource in resources {
            let names = std::iter::once(&resource.name).chain(&resource.aliases);
            for name in names {
                self.unanswered.remove(name);
                if let Some(told) = self.wanted.get_mut(name) {
                    *told = Told::Present;
                }
            }
            let held = self.held.entry(Arc::clone(&resource.name)).or_insert_with(|| Held {
                sent: Arc::clone(&resource.version),
                acked: None,
                refused: None,
            });
            held.sent = Arc::clone(&resource.version);
            held.refused = None;
        }
        for name in absent.iter().chain(removed) {
            self.unanswered.remove(name);
            if let Some(told) = self.wanted.get_mut(name) {
                *told = Told::Absent;
            }
            if view.find(name).is_none() {
                self.held.remove(name);
            }
        }
        for name in removed {
            self.held.remove(name);
        }
        self.settle(view);
    }

    /// Names whose resource the proxy already had in this very version when it came back need no answer.
    fn settle(&mut self, view: View<'_>) {
        for (name, told) in &mut self.wanted {
            if *told == Told::Nothing
                && !self.unanswered.contains(name)
                && view.find(name).is_some_and(|r| self.held.get(&r.name).is_some_and(|h| h.sent == r.version))
            {
                *told = Told::Present;
            }
        }
    }

    /// The proxy has this version in effect.
    pub fn acked(&mut self, name: &str, version: &Arc<str>) {
        if let Some(held) = self.held.get_mut(name) {
            held.acked = Some(Arc::clone(version));
            // One version may travel twice, to a name asked for again: the last word about it counts.
            if held.sent == *version {
                held.refused = None;
            }
        }
    }

    /// The proxy keeps what it had; of a version that is not the last one sent, this says nothing any more.
    pub fn refused(&mut self, name: &str, version: &Arc<str>, refusal: Refusal) {
        if let Some(held) = self.held.get_mut(name)
            && held.sent == *version
        {
            held.refused = Some(refusal);
        }
    }

    /// Everything held, by the resource's own name.
    pub fn held(&self) -> &BTreeMap<Arc<str>, Held> {
        &self.held
    }

    /// How many names are remembered because the proxy mentioned them.
    pub fn names(&self) -> usize {
        self.wanted.len() + self.unanswered.len()
    }

    /// Has anything been asked for on this stream?
    pub fn started(&self) -> bool {
        self.started
    }

    /// Is a resource held in a version that was refused?
    pub fn has_refused(&self) -> bool {
        self.held.values().any(|held| held.refused.is_some())
    }

    /// Is one refused that is not about to be removed? What the proxy has instead of it may refer to anything that was ever there.
    pub fn refuses_beside(&self, removals: &[Arc<str>]) -> bool {
        self.held.iter().any(|(name, held)| held.refused.is_some() && !removals.contains(name))
    }

    fn everything(&self) -> bool {
        self.wildcard || self.legacy_wildcard
    }

    fn differs(&self, resource: &Resource) -> bool {
        self.held.get(&resource.name).is_none_or(|held| held.sent != resource.version)
    }
}
