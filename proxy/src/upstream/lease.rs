//! A connection for one request: from the pool, from the streams of a shared one, or newly opened.
//!
//! HTTP/1 connections carry one request each and come back when its response is over. HTTP/2 connections are shared;
//! a new one is opened when all are full, by one task for everybody who waits. The backend's limits are asked here.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    backend::Backend,
    dial::{Carrier, Dialer, Transport},
    endpoint::Endpoint,
    http1::{self, Http1},
    http2::{self, Stream},
    pool::{Opening, Pool},
};
use crate::{
    failure::{Failure, Reason},
    host::{self, Instant},
    resilience::limits::{Held, Slot},
    telemetry::{Overflow, Side},
    tls::{Alpn, Offer},
};

/// Longest run of "somebody else took the stream I waited for" before giving up.
const PATIENCE: usize = 64;

/// What a request needs of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// HTTP/1 semantics; may be carried as HTTP/2 to one of us.
    Http1,
    /// HTTP/2 as the application speaks it.
    Http2,
    /// HTTP/1 on a connection of its own, for an upgrade.
    Upgrade,
}

/// A connection lent to one request.
#[derive(Debug)]
pub enum Lease {
    Http1(Http1Lease),
    Http2(Stream),
}

/// An HTTP/1 connection with the way back to its pool.
#[derive(Debug)]
pub struct Http1Lease {
    connection: Option<Http1>,
    /// It had carried requests before: the far side may have closed it just now.
    pub reused: bool,
    backend: Arc<Backend>,
    endpoint: Arc<Endpoint>,
    worker: usize,
    idle_limit: usize,
}

impl Backend {
    /// A connection to `endpoint` for one request.
    ///
    /// # Errors
    /// What dialling says; `ConnectionOverflow` or `UpstreamOverflow` when the backend's limits are reached.
    pub async fn lease(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        need: Need,
        carrier: Carrier<'_>,
        now: Instant,
    ) -> Result<Lease, Failure> {
        let pool = endpoint.state.pool(carrier.worker);
        let multiplex = match (&endpoint.transport, need) {
            (_, Need::Upgrade) => return Box::pin(self.open_http1(endpoint, carrier)).await.map(Lease::Http1),
            (Transport::Mesh { multiplex: true, .. }, _) | (_, Need::Http2) => true,
            (_, Need::Http1) => false,
        };
        if multiplex {
            return pin!(self.stream(endpoint, pool, carrier)).await;
        }
        if let Some(connection) = pool.take_idle(now, self.http1_idle(carrier.dialer)) {
            return Ok(Lease::Http1(self.lend(connection, endpoint, carrier)));
        }
        // Boxed, as everything that most requests never do: a handshake's state would be part of every request's future,
        // and those are moved several times.
        Box::pin(self.open_http1(endpoint, carrier)).await.map(Lease::Http1)
    }

    /// A connection that has carried nothing yet, for the try after a reused one turned out to be closed.
    ///
    /// # Errors
    /// As [`Backend::lease`].
    pub async fn open_http1(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        carrier: Carrier<'_>,
    ) -> Result<Http1Lease, Failure> {
        let slot = match self.connection_slot() {
            Ok(slot) => slot,
            Err(_) => match self.wait_for_connection(endpoint, carrier).await? {
                Waited::Connection(connection) => return Ok(self.lend(connection, endpoint, carrier)),
                Waited::Slot(slot) => slot,
            },
        };
        let (io, _) = carrier.dial(endpoint.address, &endpoint.transport, Offer::Http1, self.connect_timeout).await?;
        let hold = (slot, carrier.telemetry.upstream_opened(carrier.direction));
        let connection = http1::open(io, &carrier.dialer.limits, self.max_age(carrier.dialer), hold);
        Ok(self.lend(connection, endpoint, carrier))
    }

    fn lend(self: &Arc<Self>, connection: Http1, endpoint: &Arc<Endpoint>, carrier: Carrier<'_>) -> Http1Lease {
        Http1Lease {
            reused: connection.requests > 0,
            connection: Some(connection),
            backend: Arc::clone(self),
            endpoint: Arc::clone(endpoint),
            worker: carrier.worker,
            idle_limit: carrier.dialer.limits.idle_connections_per_endpoint,
        }
    }

    /// A place among the backend's connections; `None` inside when connections are not limited.
    fn connection_slot(&self) -> Result<Option<Held>, Reason> {
        if let Ok(held) = self.hold(Slot::Connection) {
            return Ok(Some(held));
        }
        // Idle connections of other workers or endpoints count too: one of them makes room.
        let gave_up = self.endpoints.iter().flat_map(|endpoint| endpoint.state.pools()).any(Pool::give_up_one);
        if gave_up {
            return self.hold(Slot::Connection).map(Some);
        }
        Err(Reason::ConnectionOverflow)
    }

    /// At the limit of connections a request waits, as one of at most `max_pending_requests`, for one to come back.
    async fn wait_for_connection(&self, endpoint: &Endpoint, carrier: Carrier<'_>) -> Result<Waited, Failure> {
        carrier.telemetry.limit_overflowed(Overflow::Connections);
        let _pending = match self.hold(Slot::Pending) {
            Ok(pending) => pending,
            Err(reason) => {
                carrier.telemetry.limit_overflowed(Overflow::PendingRequests);
                return Err(reason.into());
            }
        };
        let waiting = async {
            loop {
                let freed = self.state.freed.notified();
                if let Some(connection) =
                    endpoint.state.pool(carrier.worker).take_idle(host::now(), self.http1_idle(carrier.dialer))
                {
                    return Waited::Connection(connection);
                }
                if let Ok(slot) = self.connection_slot() {
                    return Waited::Slot(slot);
                }
                freed.await;
            }
        };
        tokio::time::timeout(self.connect_timeout, waiting).await.map_err(|_| Failure::new(Reason::ConnectionOverflow))
    }

    /// A stream on a shared connection.
    async fn stream(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        pool: &Pool,
        carrier: Carrier<'_>,
    ) -> Result<Lease, Failure> {
        for _ in 0..PATIENCE {
            let mut opening = {
                let mut shared = pool.http2.lock();
                let now = host::now();
                shared.connections.retain(|connection| connection.is_open(now));
                let free = shared.connections.iter().min_by_key(|connection| connection.active()).cloned();
                if let Some(stream) = free.and_then(|connection| connection.stream()) {
                    return Ok(Lease::Http2(stream));
                }
                match &shared.opening {
                    Some(opening) => opening.clone(),
                    None => {
                        let slot = match self.connection_slot() {
                            Ok(slot) => slot,
                            // As with Envoy, a worker may always have one: the limit bounds how many more it opens.
                            Err(_) if shared.connections.is_empty() => None,
                            Err(reason) => {
                                carrier.telemetry.limit_overflowed(Overflow::Connections);
                                return Err(reason.into());
                            }
                        };
                        let (report, opening) = watch::channel(Opening::UnderWay);
                        shared.opening = Some(opening.clone());
                        self.open_http2(Arc::clone(endpoint), carrier, slot, report);
                        opening
                    }
                }
            };
            let outcome = opening.wait_for(|state| !matches!(state, Opening::UnderWay)).await;
            match outcome.as_deref() {
                Ok(Opening::Failed(reason, source)) => {
                    return Err(Failure::new(*reason).because(source.to_string()));
                }
                Ok(_) => {}
                // The task that opened it is gone without a word; somebody else tries.
                Err(_) => pool.http2.lock().opening = None,
            }
        }
        Err(Failure::new(Reason::UpstreamOverflow))
    }

    /// Opens a shared connection in a task of its own, so that it outlives the request that asked first.
    fn open_http2(
        self: &Arc<Self>,
        endpoint: Arc<Endpoint>,
        carrier: Carrier<'_>,
        slot: Option<Held>,
        report: watch::Sender<Opening>,
    ) {
        let (backend, dialer, telemetry) =
            (Arc::clone(self), Arc::clone(carrier.dialer), Arc::clone(carrier.telemetry));
        let (worker, direction) = (carrier.worker, carrier.direction);
        host::spawn(async move {
            let carrier = Carrier { worker, direction, dialer: &dialer, telemetry: &telemetry, source: None };
            let opened = async {
                let (io, alpn) =
                    carrier.dial(endpoint.address, &endpoint.transport, Offer::Http2, backend.connect_timeout).await?;
                if alpn == Some(Alpn::MeshHttp1) {
                    return Err(Failure::new(Reason::UpstreamProtocol)
                        .because("the endpoint's sidecar speaks only HTTP/1.1 to the mesh"));
                }
                let streams = match backend.policy.max_concurrent_streams {
                    0 => dialer.limits.mesh_streams,
                    limit => limit.min(dialer.limits.mesh_streams),
                };
                let hold = (slot, telemetry.upstream_opened(direction));
                let counts = Arc::clone(&telemetry);
                let abused = move |abuse| counts.http2_abuse(direction, Side::Upstream, abuse);
                let age = backend.max_age(&dialer);
                Ok(http2::open(io, &dialer.limits, &dialer.timeouts, age, streams, hold, abused))
            }
            .await;
            let mut shared = endpoint.state.pool(worker).http2.lock();
            shared.opening = None;
            let outcome = match opened {
                Ok(connection) => {
                    shared.connections.push(connection);
                    Opening::Open
                }
                Err(failure) => {
                    let source = failure.source.as_ref().map(ToString::to_string).unwrap_or_default();
                    Opening::Failed(failure.reason, source.into())
                }
            };
            drop(shared);
            report.send_replace(outcome);
        });
    }

    /// Idle time of HTTP/1 connections.
    pub fn http1_idle(&self, dialer: &Dialer) -> Duration {
        self.policy.http_idle_timeout.unwrap_or(dialer.timeouts.pool_idle)
    }

    /// Greatest age of a new connection, with 10 % of jitter either way.
    fn max_age(&self, dialer: &Dialer) -> Duration {
        let age = self.policy.max_connection_duration.unwrap_or(dialer.timeouts.connection_age);
        age.mul_f64(0.9 + 0.2 * host::random_unit())
    }
}

enum Waited {
    Connection(Http1),
    Slot(Option<Held>),
}

impl Http1Lease {
    /// The connection, while it is lent.
    pub fn connection(&mut self) -> Option<&mut Http1> {
        self.connection.as_mut()
    }

    /// Gives the connection back after a response that ended cleanly.
    pub fn put_back(mut self, now: Instant) {
        let Some(mut connection) = self.connection.take() else { return };
        let limit = self.backend.policy.max_requests_per_connection;
        if limit == 0 || connection.requests < limit {
            connection.idle_since = now;
            let mut idle = self.endpoint.state.pool(self.worker).http1.lock();
            if idle.len() < self.idle_limit {
                idle.push(connection);
            }
        }
        // Dropping self tells whoever waits for a connection.
    }
}

impl Drop for Http1Lease {
    fn drop(&mut self) {
        drop(self.connection.take());
        self.backend.state.freed.notify_one();
    }
}
