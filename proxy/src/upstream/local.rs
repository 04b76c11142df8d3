//! The application in this pod: one backend per port, reached in plaintext.
//!
//! Asks for proof of authorization ([`Authorized`]) before it hands out a way to the application.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    backend::{Backend, BackendState},
    dial::Transport,
    endpoint::{Endpoint, EndpointKey},
    pool::IdleLimits,
};
use crate::{
    authorize::Authorized,
    config::view::{self, Health, Policy},
    resilience::limits::LimitPolicy,
    telemetry::LabelId,
};

/// Wait for the application to take a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// The ports of the application.
#[derive(Debug)]
pub struct Applications {
    workers: usize,
    states: Mutex<HashMap<SocketAddr, Weak<BackendState>>>,
    cached: Mutex<HashMap<(SocketAddr, LimitPolicy), Arc<Backend>>>,
}

impl Applications {
    pub fn new(workers: usize) -> Self {
        Self { workers, states: Mutex::default(), cached: Mutex::default() }
    }

    /// The backend for the application at `address`; `limits` are those of the port.
    pub fn at(
        &self,
        _authorized: &Authorized,
        address: SocketAddr,
        limits: LimitPolicy,
        labels: LabelId,
    ) -> Arc<Backend> {
        let mut cached = self.cached.lock();
        if let Some(backend) = cached.get(&(address, limits)) {
            return Arc::clone(backend);
        }
        let policy = Arc::new(Policy { limits, ..Policy::default() });
        let mut states = self.states.lock();
        let state =
            states.get(&address).and_then(Weak::upgrade).unwrap_or_else(|| Arc::new(BackendState::new(&policy)));
        states.insert(address, Arc::downgrade(&state));
        let key = EndpointKey { address, identity: None, multiplex: false };
        let endpoint = Endpoint {
            address,
            transport: Transport::Plain,
            weight: 1,
            health: Health::Ready,
            labels,
            config: Arc::new(view::Endpoint::bare(address)),
            state: state.endpoint(key, self.workers),
        };
        let backend = Arc::new(Backend {
            name: Arc::from(format!("inbound:{}", address.port())),
            policy,
            ejection: None,
            affinity: None,
            arrangement: None,
            endpoints: vec![Arc::new(endpoint)],
            connect_timeout: CONNECT,
            labels,
            state,
        });
        // Limits of earlier views are forgotten; there are as many entries as the application has ports.
        cached.retain(|(other, _), _| *other != address);
        cached.insert((address, limits), Arc::clone(&backend));
        backend
    }

    /// Drops connections that are closed or idle for too long; for one worker.
    pub fn sweep(&self, worker: usize, now: crate::host::Instant, idle: IdleLimits) {
        for backend in self.cached.lock().values() {
            for endpoint in &backend.endpoints {
                endpoint.state.pool(worker).sweep(now, idle);
            }
        }
    }

    /// Every application port that was reached.
    pub fn all(&self) -> Vec<Arc<Backend>> {
        self.cached.lock().values().cloned().collect()
    }
}
