//! One address of a backend: how to speak to it, its load, its standing, its connections.
//!
//! The description is replaced with every view that changes it; [`EndpointState`] is carried over by [`EndpointKey`].

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{dial::Transport, pool::Pool};
use crate::{
    balance::{Candidate, Cost, Standing, load::Load},
    config::view::{self, Health},
    host::{self, Instant},
    resilience::ejection::{Ejection, EjectionPolicy, Fault, may_eject},
    telemetry::LabelId,
};

/// What makes an endpoint the same endpoint across views: a changed key means new connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    pub address: SocketAddr,
    /// The identity expected there, `None` for plaintext, empty for any identity of the trust domain.
    pub identity: Option<Arc<str>>,
    pub multiplex: bool,
}

/// One endpoint as one view describes it.
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub transport: Transport,
    pub weight: u32,
    pub health: Health,
    /// Destination labels for metrics.
    pub labels: LabelId,
    pub config: Arc<view::Endpoint>,
    pub state: Arc<EndpointState>,
}

/// What outlives views.
#[derive(Debug)]
pub struct EndpointState {
    pub load: Arc<Load>,
    record: Mutex<Ejection>,
    /// Mirrors the record, so that a pick looks without locking.
    ejected: AtomicBool,
    /// The last view said that it is not ready.
    was_unready: AtomicBool,
    /// When it came into use, or back to it.
    since: Mutex<Instant>,
    /// One pool per worker.
    pools: Box<[Pool]>,
}

impl EndpointState {
    pub fn new(workers: usize) -> Self {
        Self {
            load: Arc::new(Load::new(host::now())),
            record: Mutex::new(Ejection::default()),
            ejected: AtomicBool::new(false),
            was_unready: AtomicBool::new(false),
            since: Mutex::new(host::now()),
            pools: (0..workers.max(1)).map(|_| Pool::default()).collect(),
        }
    }

    /// The pool of one worker; worker numbers beyond the last share it.
    #[expect(clippy::indexing_slicing, reason = "`new` makes at least one pool, and the index is at most the last")]
    pub fn pool(&self, worker: usize) -> &Pool {
        let last = self.pools.len() - 1;
        &self.pools[worker.min(last)]
    }

    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    pub fn is_ejected(&self) -> bool {
        if !self.ejected.load(Ordering::Relaxed) {
            return false;
        }
        let ejected = self.record.lock().is_ejected(host::now());
        // Of those who see the end of it, one: it starts like a new endpoint, with one request until an answer says more.
        if !ejected && self.ejected.swap(false, Ordering::Relaxed) {
            self.load.forget();
            *self.since.lock() = host::now();
        }
        ejected
    }

    /// Told of every view: an endpoint that is ready again starts like a new one.
    pub fn follow_health(&self, health: Health) {
        let is_unready = health == Health::Unready;
        if self.was_unready.swap(is_unready, Ordering::Relaxed) && !is_unready {
            self.load.forget();
            self.record.lock().forget();
            self.ejected.store(false, Ordering::Relaxed);
            *self.since.lock() = host::now();
        }
    }

    /// Notes an outcome; true when this very outcome put the endpoint aside.
    ///
    /// `standing` gives how many endpoints there are and how many are put aside already.
    pub fn note(&self, policy: &EjectionPolicy, fault: Fault, standing: impl FnOnce() -> (usize, usize)) -> bool {
        let mut record = self.record.lock();
        if !record.note(policy, fault) || self.ejected.load(Ordering::Relaxed) {
            return false;
        }
        let (total, ejected) = standing();
        if !may_eject(policy, total, ejected) {
            return false;
        }
        record.eject(policy, host::now());
        self.ejected.store(true, Ordering::Relaxed);
        true
    }
}

impl Candidate for Arc<Endpoint> {
    fn weight(&self) -> u32 {
        self.weight
    }

    fn cost(&self) -> Cost {
        self.state.load.cost()
    }

    fn part_cost(&self, part: u32) -> Cost {
        self.state.load.part_cost(self.weight, part)
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(*self.state.since.lock()))
    }

    fn standing(&self) -> Standing {
        match self.health {
            Health::Unready => Standing::Unready,
            Health::Draining => Standing::Draining,
            Health::Ready if self.state.is_ejected() => Standing::Ejected,
            Health::Ready => Standing::Ready,
        }
    }
}
