//! What a route sends to: the endpoints of one service port (or of a subset), with policy and live counters.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    affinity::Affinity,
    breakers::BreakerCell,
    endpoint::{Endpoint, EndpointKey, EndpointState},
};
use crate::{
    balance::{self, NoEndpoint, PickContext, arranged::Arrangement, keyed::Table, warmup::Warming},
    config::view::Policy,
    failure::Reason,
    host,
    resilience::{
        ejection::{EjectionPolicy, Fault},
        fallback::FallbackPolicy,
        limits::{Held, Limits, Slot},
        retry_budget::RetryBudget,
    },
    telemetry::LabelId,
};

/// One backend as one view describes it.
#[derive(Clone, Debug)]
pub struct Backend {
    /// "host:port" or "host:port/subset".
    pub name: Arc<str>,
    pub policy: Arc<Policy>,
    /// The policy's ejection or else the default one; `None`: off.
    pub ejection: Option<Arc<EjectionPolicy>>,
    /// Consistent hashing; `None`: each pick stands alone.
    pub affinity: Option<Box<Affinity>>,
    /// Endpoints by how near they are; `None`: all alike.
    pub arrangement: Option<Arc<Arrangement>>,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub connect_timeout: Duration,
    /// Labels for requests that reach no endpoint.
    pub labels: LabelId,
    pub state: Arc<BackendState>,
}

/// What outlives views, by backend name.
#[derive(Debug)]
pub struct BackendState {
    pub limits: Arc<Limits>,
    pub budget: Mutex<RetryBudget>,
    cursor: AtomicU64,
    endpoints: Mutex<HashMap<EndpointKey, Weak<EndpointState>>>,
    /// Told whenever a connection of this backend becomes idle or closes.
    pub freed: Notify,
    ejections: AtomicU64,
    /// The table of consistent hashing that the last view had.
    table: Mutex<Option<Arc<Table>>>,
}

/// A backend as one rule sees it: with the breaker of that rule.
#[derive(Clone, Debug)]
pub struct RouteBackend {
    pub backend: Arc<Backend>,
    pub breaker: Option<Arc<BreakerCell>>,
    pub fallback: Option<Fallback>,
}

/// What answers instead of the backend.
#[derive(Clone, Debug)]
pub struct Fallback {
    pub policy: Arc<FallbackPolicy>,
    /// The backend that answers, when the policy names one and it exists.
    pub backend: Option<Arc<Backend>>,
}

impl BackendState {
    pub fn new(policy: &Policy) -> Self {
        Self {
            limits: Arc::new(Limits::default()),
            budget: Mutex::new(RetryBudget::new(policy.retry_budget, host::now())),
            cursor: AtomicU64::new(0),
            endpoints: Mutex::new(HashMap::new()),
            freed: Notify::new(),
            ejections: AtomicU64::new(0),
            table: Mutex::new(None),
        }
    }

    /// The live state of an endpoint: what a previous view had, or new.
    pub fn endpoint(&self, key: EndpointKey, workers: usize) -> Arc<EndpointState> {
        let mut endpoints = self.endpoints.lock();
        if let Some(state) = endpoints.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        endpoints.retain(|_, state| state.strong_count() > 0);
        let state = Arc::new(EndpointState::new(workers));
        endpoints.insert(key, Arc::downgrade(&state));
        state
    }

    /// Consistent hashing over these endpoints, with the table of the last view if it is still right.
    pub fn affinity(&self, policy: &Policy, endpoints: &[Arc<Endpoint>], workload: &str) -> Option<Box<Affinity>> {
        let mut table = self.table.lock();
        let affinity =
            policy.hash.as_ref().map(|hash| Box::new(Affinity::new(hash, endpoints, workload, table.as_ref())));
        *table = affinity.as_ref().map(|affinity| Arc::clone(&affinity.table));
        affinity
    }

    /// Ejections since the start.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }
}

impl Backend {
    /// The endpoint for one try; `avoid` is the index that the last try failed on, `key` that of consistent hashing.
    ///
    /// # Errors
    /// `NoEndpoints` or `NoHealthyEndpoint`.
    pub fn pick(&self, avoid: Option<usize>, key: Option<u64>) -> Result<(usize, &Arc<Endpoint>), Reason> {
        let context = PickContext {
            algorithm: self.policy.algorithm,
            cursor: &self.state.cursor,
            panic_percent: self.panic_percent(),
            avoid,
            warming: self.policy.warmup.as_ref().map(|policy| Warming { policy, now: host::now() }),
        };
        let keyed = self.affinity.as_ref().zip(key).map(|(affinity, key)| (&*affinity.table, key));
        let picked = match (&self.arrangement, keyed) {
            (None, None) => balance::pick(&self.endpoints, &context, host::random_below),
            (None, Some((table, key))) => balance::pick_keyed(&self.endpoints, &context, table, key),
            (Some(arrangement), keyed) => {
                balance::pick_arranged(&self.endpoints, &context, arrangement, keyed, host::random_below)
            }
        };
        let index = match picked {
            Ok(index) => index,
            Err(NoEndpoint::Empty) => return Err(Reason::NoEndpoints),
            Err(NoEndpoint::NoneUsable) => return Err(Reason::NoHealthyEndpoint),
        };
        let endpoint = self.endpoints.get(index).ok_or(Reason::Internal)?;
        Ok((index, endpoint))
    }

    /// Below this share of ready endpoints those put aside are used too; 0: never.
    pub fn panic_percent(&self) -> u32 {
        self.ejection.as_ref().map_or(0, |ejection| ejection.min_health_percent)
    }

    /// Tells ejection how a try ended; true when it put the endpoint aside.
    pub fn note(&self, endpoint: &Endpoint, fault: Fault) -> bool {
        let Some(policy) = &self.ejection else { return false };
        let ejected = endpoint.state.note(policy, fault, || {
            let ejected = self.endpoints.iter().filter(|endpoint| endpoint.state.is_ejected()).count();
            (self.endpoints.len(), ejected)
        });
        if ejected {
            self.state.ejections.fetch_add(1, Ordering::Relaxed);
        }
        ejected
    }

    /// Takes a unit of the backend's limits.
    ///
    /// # Errors
    /// `UpstreamOverflow`, or `ConnectionOverflow` for connections.
    pub fn hold(&self, slot: Slot) -> Result<Held, Reason> {
        let reason = match slot {
            Slot::Connection => Reason::ConnectionOverflow,
            Slot::Pending | Slot::Request | Slot::Retry | Slot::Fallback => Reason::UpstreamOverflow,
        };
        self.state.limits.acquire(slot, self.policy.limits.maximum(slot)).ok_or(reason)
    }
}
