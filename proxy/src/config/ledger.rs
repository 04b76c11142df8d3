//! What the server was told, what it still owes us, and what is wrong with a response as such. Pure.
//!
//! One account per resource kind, because in the protocol kinds are independent of each other. Asked by `subscriber`
//! for the next subscription request and shown every response before its content is looked at. Versions stand with
//! the resources in [`super::apply::Held`] and are read from there when a stream opens.
//!
//! Rules (delta xDS): the first request of a kind on a stream restates the whole interest and the versions held;
//! later ones carry differences. A kind without interest stays silent, since an empty first subscription would ask
//! for everything. Every subscribed name must be answered; one that is not counts as absent after
//! [`ANSWER_TIMEOUT`], while the interest stays.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use outrigger_proto::{discovery::DeltaDiscoveryResponse, kind::Kind};

use super::{apply::Wanted, decode::Rejected};
use crate::host::Instant;

/// How long a subscribed name may stay unanswered before it counts as absent.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The accounts of one stream after another.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: BTreeMap<Kind, Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// Whether this stream has carried a request of this kind.
    opened: bool,
    /// The interest as the server knows it.
    told: BTreeSet<Arc<str>>,
    /// Names without an answer on this stream, and since when.
    asked: BTreeMap<Arc<str>, Instant>,
}

/// A change of interest to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub kind: Kind,
    /// First of its kind on this stream: the node must stand in it.
    pub first: bool,
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
    /// Only in a first one.
    pub initial_versions: BTreeMap<String, String>,
}

/// A response, taken apart.
#[derive(Debug, Default)]
pub struct Receipt {
    pub resources: Vec<Incoming>,
    pub removed: Vec<Arc<str>>,
    /// What is wrong with the response itself; its other resources may still be good.
    pub refused: Vec<Rejected>,
}

/// One resource that can be decoded.
#[derive(Debug)]
pub struct Incoming {
    pub name: Arc<str>,
    pub version: Arc<str>,
    pub aliases: Vec<Arc<str>>,
    /// `None`: only says that this version is still the right one.
    pub encoded: Option<Bytes>,
}

impl Ledger {
    /// Forgets what the last stream knew; the next [`Ledger::reconcile`] restates everything.
    pub fn reset(&mut self) {
        self.accounts.clear();
    }

    /// What to tell the server so that it knows `wanted`.
    ///
    /// `held` gives the versions of a kind and is only asked when the kind opens; `answered` says whether a name has
    /// been answered before, on whatever stream, so that it needs no answer now.
    pub fn reconcile(
        &mut self,
        wanted: &Wanted,
        held: impl Fn(Kind) -> BTreeMap<String, String>,
        answered: impl Fn(Kind, &str) -> bool,
        now: Instant,
    ) -> Vec<Subscription> {
        let mut subscriptions = Vec::new();
        for kind in Kind::ALL {
            let names = wanted.of(kind);
            let account = self.accounts.entry(kind).or_default();
            if names.is_empty() && !account.opened {
                continue;
            }
            let subscribe: Vec<Arc<str>> = names.difference(&account.told).cloned().collect();
            let unsubscribe: Vec<Arc<str>> = account.told.difference(names).cloned().collect();
            if subscribe.is_empty() && unsubscribe.is_empty() {
                continue;
            }
            for name in &unsubscribe {
                account.told.remove(name);
                account.asked.remove(name);
            }
            for name in &subscribe {
                account.told.insert(Arc::clone(name));
                if !answered(kind, name) {
                    account.asked.insert(Arc::clone(name), now);
                }
            }
            let first = !std::mem::replace(&mut account.opened, true);
            let strings = |names: Vec<Arc<str>>| names.iter().map(ToString::to_string).collect();
            subscriptions.push(Subscription {
                kind,
                first,
                subscribe: strings(subscribe),
                unsubscribe: strings(unsubscribe),
                initial_versions: if first { held(kind) } else { BTreeMap::new() },
            });
        }
        subscriptions
    }

    /// Whether this stream has carried a request of a kind.
    pub fn is_open(&self, kind: Kind) -> bool {
        self.accounts.get(&kind).is_some_and(|account| account.opened)
    }

    /// Whether the server knows of an interest in a name.
    pub fn is_told(&self, kind: Kind, name: &str) -> bool {
        self.accounts.get(&kind).is_some_and(|account| account.told.contains(name))
    }

    /// Takes a response apart and notes what it answers.
    pub fn receive(&mut self, kind: Kind, response: DeltaDiscoveryResponse) -> Receipt {
        let mut receipt = Receipt::default();
        let mut times: HashMap<String, u32> = HashMap::new();
        let names = response.resources.iter().map(|resource| &resource.name).chain(&response.removed_resources);
        for name in names {
            *times.entry(name.clone()).or_default() += 1;
        }
        let is_double = |name: &str| times.get(name).is_some_and(|times| *times > 1);
        let mut reported = HashSet::new();
        let account = self.accounts.entry(kind).or_default();
        for resource in response.resources {
            account.asked.remove(resource.name.as_str());
            for alias in &resource.aliases {
                account.asked.remove(alias.as_str());
            }
            let problem = match &resource.resource {
                _ if is_double(&resource.name) => Some("stands in one response more than once".to_owned()),
                _ if resource.version.is_empty() => Some("has no version".to_owned()),
                Some(any) if any.type_url != kind.type_url() => Some(format!("is of type \"{}\"", any.type_url)),
                _ => None,
            };
            if let Some(reason) = problem {
                if reported.insert(resource.name.clone()) {
                    receipt.refused.push(Rejected { resource: resource.name, path: String::new(), reason });
                }
                continue;
            }
            receipt.resources.push(Incoming {
                name: resource.name.into(),
                version: resource.version.into(),
                aliases: resource.aliases.into_iter().map(Arc::from).collect(),
                encoded: resource.resource.map(|any| any.value.into()),
            });
        }
        for name in response.removed_resources {
            account.asked.remove(name.as_str());
            if !is_double(&name) {
                receipt.removed.push(name.into());
            } else if reported.insert(name.clone()) {
                let reason = "stands in one response more than once".to_owned();
                receipt.refused.push(Rejected { resource: name, path: String::new(), reason });
            }
        }
        receipt
    }

    /// Names that the server has not answered in time; each is given once.
    pub fn overdue(&mut self, now: Instant) -> Vec<(Kind, Arc<str>)> {
        let mut overdue = Vec::new();
        for (kind, account) in &mut self.accounts {
            account.asked.retain(|name, since| {
                let waits = now.saturating_duration_since(*since) < ANSWER_TIMEOUT;
                if !waits {
                    overdue.push((*kind, Arc::clone(name)));
                }
                waits
            });
        }
        overdue
    }

    /// When [`Ledger::overdue`] has something next, as things stand.
    pub fn next_overdue(&self) -> Option<Instant> {
        let asked = self.accounts.values().flat_map(|account| account.asked.values());
        asked.min().map(|since| *since + ANSWER_TIMEOUT)
    }
}
