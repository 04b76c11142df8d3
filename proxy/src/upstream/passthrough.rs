//! Unknown destinations: straight to the address the application wanted, in the plaintext it sent.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    backend::{Backend, BackendState, RouteBackend},
    dial::Transport,
    endpoint::{Endpoint, EndpointKey},
    pool::IdleLimits,
};
use crate::{
    config::view::{self, Health, Policy},
    failure::{Failure, Reason},
    host,
    telemetry::LabelId,
};

/// Addresses tried for one name.
const ADDRESSES: usize = 4;
/// Destinations whose pooled connections are remembered; past it, those not in use are forgotten.
const REMEMBERED: usize = 1024;
/// Wait for a connection where no policy speaks.
const CONNECT: Duration = Duration::from_secs(10);

/// Destinations outside the mesh, with their connections.
#[derive(Debug)]
pub struct Outside {
    workers: usize,
    labels: LabelId,
    known: Mutex<HashMap<Vec<SocketAddr>, RouteBackend>>,
}

impl Outside {
    pub fn new(workers: usize, labels: LabelId) -> Self {
        Self { workers, labels, known: Mutex::default() }
    }

    /// The backend for a name outside the mesh.
    ///
    /// # Errors
    /// `UnknownDestination` when nobody knows the name.
    pub async fn by_name(&self, name: &str, port: u16) -> Result<RouteBackend, Failure> {
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(self.at(&[SocketAddr::new(address, port)]));
        }
        match host::resolve(&format!("{name}:{port}")).await {
            Ok(found) if !found.is_empty() => Ok(self.at(&found.into_iter().take(ADDRESSES).collect::<Vec<_>>())),
            Ok(_) => Err(Reason::UnknownDestination.into()),
            Err(error) => Err(Failure::new(Reason::UnknownDestination).because(error)),
        }
    }

    /// The backend for addresses outside the mesh.
    pub fn at(&self, addresses: &[SocketAddr]) -> RouteBackend {
        let mut known = self.known.lock();
        if let Some(backend) = known.get(addresses) {
            return backend.clone();
        }
        if known.len() >= REMEMBERED {
            known.retain(|_, route| Arc::strong_count(&route.backend) > 1);
        }
        let route = RouteBackend { backend: self.backend(addresses), breaker: None, fallback: None };
        if known.len() < REMEMBERED {
            known.insert(addresses.to_vec(), route.clone());
        }
        route
    }

    /// Drops connections that are closed or idle for too long; for one worker.
    pub fn sweep(&self, worker: usize, now: host::Instant, idle: IdleLimits) {
        for route in self.known.lock().values() {
            for endpoint in &route.backend.endpoints {
                endpoint.state.pool(worker).sweep(now, idle);
            }
        }
    }

    fn backend(&self, addresses: &[SocketAddr]) -> Arc<Backend> {
        let policy = Arc::new(Policy::default());
        let state = Arc::new(BackendState::new(&policy));
        let endpoints = addresses
            .iter()
            .map(|address| {
                let key = EndpointKey { address: *address, identity: None, multiplex: false };
                Arc::new(Endpoint {
                    address: *address,
                    transport: Transport::Plain,
                    weight: 1,
                    health: Health::Ready,
                    labels: self.labels,
                    config: Arc::new(view::Endpoint::bare(*address)),
                    state: state.endpoint(key, self.workers),
                })
            })
            .collect();
        let labels = self.labels;
        Arc::new(Backend {
            name: Arc::from("passthrough"),
            policy,
            ejection: None,
            endpoints,
            connect_timeout: CONNECT,
            labels,
            state,
        })
    }
}
