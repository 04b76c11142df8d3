//! A connection to an endpoint for bytes that nobody looks at.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    backend::RouteBackend,
    destination::Toward,
    dial::{Carrier, Upstream},
    endpoint::Endpoint,
};
use crate::{
    balance::load::InFlight,
    failure::{Failure, Reason, Sent},
    host,
    resilience::{
        ejection::Fault,
        limits::{Held, Slot},
    },
    route::Leg,
    telemetry::{EjectionEvent, LabelId, Security},
    tls::Offer,
};

/// Endpoints tried for one connection. Nothing has been sent while connecting, so another try is always safe.
const TRIES: usize = 3;

/// An open connection with what must be known of it.
#[derive(Debug)]
pub struct Opened {
    pub io: Upstream,
    /// What the endpoint said before the client did.
    pub first: Bytes,
    pub address: SocketAddr,
    pub labels: LabelId,
    /// Idle limit of the policy; `None`: the proxy's own.
    pub idle: Option<Duration>,
    pub endpoint: Arc<Endpoint>,
    _slot: Held,
    _in_flight: InFlight,
}

impl Opened {
    pub fn security(&self) -> Security {
        self.endpoint.transport.security()
    }
}

/// Opens a connection by the rules for connections, or to the service itself where there are none.
///
/// # Errors
/// The last endpoint's failure; `NoRoute` and `BadBackend` when the rules lead nowhere.
pub async fn open(toward: &Toward, carrier: Carrier<'_>) -> Result<Opened, Failure> {
    open_route(choose(toward)?, carrier).await
}

/// Opens a connection to one backend.
///
/// # Errors
/// The last endpoint's failure.
pub async fn open_route(route: &RouteBackend, carrier: Carrier<'_>) -> Result<Opened, Failure> {
    let backend = &route.backend;
    let slot = backend.hold(Slot::Connection)?;
    let key = backend.affinity.as_ref().and_then(|affinity| affinity.of_connection(carrier.source.map(SocketAddr::ip)));
    let (mut avoid, mut last) = (None, None);
    for _ in 0..TRIES {
        let (index, endpoint) = match backend.pick(avoid, key) {
            Ok(picked) => picked,
            Err(reason) => return Err(last.unwrap_or_else(|| reason.into())),
        };
        avoid = Some(index);
        let mut in_flight = endpoint.state.load.start();
        let started = host::now();
        match carrier.dial(endpoint.address, &endpoint.transport, Offer::Opaque, backend.connect_timeout).await {
            Ok((io, _)) => {
                backend.note(endpoint, Fault::None);
                let now = host::now();
                in_flight.answered(now.saturating_duration_since(started), now);
                return Ok(Opened {
                    io,
                    first: Bytes::new(),
                    address: endpoint.address,
                    labels: endpoint.labels,
                    idle: backend.policy.tcp_idle_timeout,
                    endpoint: Arc::clone(endpoint),
                    _slot: slot,
                    _in_flight: in_flight,
                });
            }
            Err(failure) => {
                in_flight.failed(host::now());
                if failure.reason.is_upstream_fault() && backend.note(endpoint, Fault::Local) {
                    carrier.telemetry.ejection(EjectionEvent::Ejected);
                }
                last = Some(failure);
            }
        }
        if backend.endpoints.len() < 2 {
            break;
        }
    }
    Err(last.unwrap_or_else(|| Failure::new(Reason::NoEndpoints).sent(Sent::Nothing)))
}

fn choose(toward: &Toward) -> Result<&RouteBackend, Failure> {
    let Toward::Service(destination) = toward else { return Ok(toward.own()) };
    let Some(rule) = destination.routes.as_ref().and_then(|table| table.tcp.first()) else {
        return Ok(&destination.own);
    };
    let arm = rule.split.choose(host::random_below(rule.split.total)).ok_or(Reason::BadBackend)?;
    match &arm.leg {
        Leg::To(route) => Ok(route),
        Leg::Bad(reason) => Err(Failure::new(Reason::BadBackend).because(reason.to_string())),
    }
}
