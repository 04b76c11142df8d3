//! The endpoint that a request belongs to, where the policy hashes: its key, and the table that the key is looked up in.
//!
//! The table is made when a view is joined, and only when the endpoints or the policy have changed; the key is read once per request
//! or connection. Which endpoint it is, `balance::keyed` says.

use std::{net::IpAddr, sync::Arc};

use http::HeaderValue;

use super::{endpoint::Endpoint, exchange::Head};
use crate::{
    balance::{
        key::{HashPolicy, Key, KeySource},
        keyed::{Member, Table},
        stable_hash::hash,
    },
    host,
};

/// Consistent hashing of one backend.
#[derive(Clone, Debug)]
pub struct Affinity {
    policy: Arc<HashPolicy>,
    pub table: Arc<Table>,
    /// The key of applications that reach us over the loopback.
    own: u64,
}

impl Affinity {
    /// `workload` is the one that this sidecar belongs to; `last` is what the previous view had.
    pub fn new(
        policy: &Arc<HashPolicy>,
        endpoints: &[Arc<Endpoint>],
        workload: &str,
        last: Option<&Arc<Table>>,
    ) -> Self {
        let members: Vec<Member<'_>> =
            endpoints.iter().map(|endpoint| Member { id: &endpoint.config.uid, weight: endpoint.weight }).collect();
        let table = match last.filter(|last| last.is_of(policy.table, &members)) {
            Some(last) => Arc::clone(last),
            None => Arc::new(Table::build(policy.table, &members)),
        };
        Self { policy: Arc::clone(policy), table, own: hash(workload.as_bytes(), 0) }
    }

    /// The key of a request, and the Set-Cookie field for its answer where the key had to be made.
    pub fn of_request(&self, head: &Head, source: Option<IpAddr>) -> (Option<u64>, Option<Box<HeaderValue>>) {
        match self.policy.key.of_request(&head.headers, &head.path, self.seen(source)) {
            Key::Is(key) => (Some(key), None),
            Key::Missing => (self.without_source(), None),
            Key::Generate => {
                let KeySource::Cookie(cookie) = &self.policy.key else { return (None, None) };
                let (key, field) = cookie.generate(host::random_u128());
                (Some(key), field.map(Box::new))
            }
        }
    }

    /// The key of a connection whose bytes nobody looks at.
    pub fn of_connection(&self, source: Option<IpAddr>) -> Option<u64> {
        match self.policy.key.of_connection(self.seen(source)) {
            Key::Is(key) => Some(key),
            Key::Missing | Key::Generate => self.without_source(),
        }
    }

    /// 127.0.0.1 is another client on every machine; hashed as it is, it would send the whole mesh to one endpoint.
    fn seen(&self, source: Option<IpAddr>) -> Option<IpAddr> {
        source.filter(|source| !source.is_loopback())
    }

    fn without_source(&self) -> Option<u64> {
        matches!(self.policy.key, KeySource::SourceIp).then_some(self.own)
    }
}
