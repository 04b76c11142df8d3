//! What lives as long as the process, as the journeys see it.
//!
//! Made by `sidecar`, shared by every worker; nothing here decides anything.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use tokio::sync::{Notify, Semaphore, watch};

use crate::{
    config::{
        demand::Demand,
        view::{InboundPort, PeerMode},
    },
    drain::DrainWatch,
    http::serve::ServeSettings,
    identity::Identity,
    resilience::{
        overload::Overload,
        retry::{Conditions, RetryPolicy},
    },
    settings::Settings,
    telemetry::{Direction, LabelId, LabelSet, Telemetry, WorkerTelemetry},
    upstream::{Carrier, Dialer, Mesh, OwnPorts, Upstreams, local::Applications, passthrough::Outside},
};

/// Everything that requests and connections share.
pub struct Residents {
    pub settings: Settings,
    pub identity: Arc<Identity>,
    pub telemetry: Arc<Telemetry>,
    pub upstreams: Upstreams,
    pub applications: Applications,
    pub outside: Outside,
    pub dialer: Arc<Dialer>,
    pub demand: Demand,
    /// Retries where no rule says otherwise.
    pub default_retry: RetryPolicy,
    /// Towards the application: only what it provably did not process, or may be repeated.
    pub inbound_retry: RetryPolicy,
    /// Told when the application refuses a connection, so that its health is looked at now.
    pub application_refused: Notify,
    /// Room for TLS handshakes of peers that connect.
    pub handshakes: Semaphore,
    /// What is refused while the process is short of memory or descriptors.
    pub overload: Overload,
    pub serve: ServeSettings,
    pub serve_mesh: ServeSettings,
    /// Fires when inbound connections should finish.
    pub inbound_drain: DrainWatch,
    /// Fires when outbound connections should finish.
    pub outbound_drain: DrainWatch,
    mesh: ArcSwapOption<Mesh>,
    /// The last generation that changed which ports take plaintext; for connections that such a change ends.
    modes: watch::Sender<u64>,
}

/// One worker's share.
#[derive(Clone)]
pub struct Worker {
    pub index: usize,
    pub telemetry: Arc<WorkerTelemetry>,
    pub residents: Arc<Residents>,
}

impl Worker {
    /// What this worker lends to everything it carries.
    pub fn carrier(&self, direction: Direction) -> Carrier<'_> {
        Carrier {
            worker: self.index,
            direction,
            dialer: &self.residents.dialer,
            telemetry: &self.telemetry,
            source: None,
        }
    }
}

/// Parts of [`Residents`] that `sidecar` chooses.
pub struct Parts {
    pub settings: Settings,
    pub identity: Arc<Identity>,
    pub telemetry: Arc<Telemetry>,
    pub upstreams: Upstreams,
    pub demand: Demand,
    pub inbound_drain: DrainWatch,
    pub outbound_drain: DrainWatch,
    pub workers: usize,
}

impl Residents {
    pub fn new(parts: Parts) -> Self {
        let settings = parts.settings;
        let dialer = Dialer {
            identity: Arc::clone(&parts.identity),
            timeouts: settings.timeouts.clone(),
            limits: settings.limits.clone(),
            introduction: HeaderValue::try_from(LabelSet::node(&settings.node).introduction())
                .unwrap_or(HeaderValue::from_static("")),
            mark: settings.listeners.transparent.as_ref().and_then(|transparent| transparent.mark),
            own: OwnPorts::of(&settings.listeners),
        };
        Self {
            serve: ServeSettings::new(&settings, false),
            serve_mesh: ServeSettings::new(&settings, true),
            identity: parts.identity,
            telemetry: parts.telemetry,
            upstreams: parts.upstreams,
            applications: Applications::new(parts.workers),
            default_retry: RetryPolicy::default(),
            inbound_retry: RetryPolicy {
                attempts: 1,
                conditions: Conditions {
                    refused_stream: true,
                    reset_before_request: true,
                    reset: true,
                    ..Conditions::default()
                },
                codes: Vec::new(),
                ..RetryPolicy::default()
            },
            application_refused: Notify::new(),
            handshakes: Semaphore::new(settings.limits.handshakes.max(1)),
            overload: Overload::default(),
            outside: Outside::new(parts.workers, LabelId::UNKNOWN),
            dialer: Arc::new(dialer),
            demand: parts.demand,
            inbound_drain: parts.inbound_drain,
            outbound_drain: parts.outbound_drain,
            mesh: ArcSwapOption::empty(),
            modes: watch::Sender::new(0),
            settings,
        }
    }

    /// Whether an address is one of our own listeners: going there would come back to us.
    pub fn is_own(&self, address: SocketAddr) -> bool {
        let listeners = &self.settings.listeners;
        let explicit = listeners.inbound.iter().map(|inbound| inbound.listen);
        let transparent = listeners
            .transparent
            .iter()
            .flat_map(|transparent| transparent.outbound.iter().chain(&transparent.inbound))
            .copied();
        let locals = listeners.local.iter().map(|local| local.listen);
        let others =
            listeners.outbound.iter().chain(&listeners.admin).chain(&listeners.ready).chain(&listeners.dns).copied();
        explicit
            .chain(transparent)
            .chain(locals)
            .chain(others)
            .any(|own| own.port() == address.port() && (own.ip() == address.ip() || own.ip().is_unspecified()))
    }

    /// Waits until this port of the application takes no plaintext any more.
    pub async fn until_strict(&self, port: u16) {
        let mut modes = self.modes.subscribe();
        loop {
            if self.mesh().is_some_and(|mesh| mesh.view.node.peer_mode(port) == PeerMode::Strict) {
                return;
            }
            if modes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The newest picture; `None` before the first. Whoever takes it keeps it for the whole request.
    pub fn mesh(&self) -> Option<Arc<Mesh>> {
        self.mesh.load_full()
    }

    /// Puts a new picture in force for every request that starts from now on.
    pub fn publish(&self, view: Arc<crate::config::view::View>) {
        let previous = self.mesh.load_full();
        let generation = view.generation;
        let mesh = self.upstreams.join(view, previous.as_deref());
        let modes_changed = previous.as_ref().is_none_or(|previous| {
            let (old, new) = (&previous.view.node, &mesh.view.node);
            let same = |(port, inbound): (&u16, &InboundPort)| old.peer_mode(*port) == inbound.peer_mode;
            old.default_peer_mode != new.default_peer_mode
                || old.inbound.len() != new.inbound.len()
                || !new.inbound.iter().all(same)
        });
        self.mesh.store(Some(Arc::new(mesh)));
        if modes_changed {
            // Not for every swap: each connection in plaintext is woken.
            self.modes.send_replace(generation);
        }
        self.telemetry.config_swapped(generation);
    }
}
