//! Everything put together: what a sidecar is made of, the order in which it becomes ready, and how it stops.
//!
//! The control runtime (this thread) receives configuration and certificates, answers the operator and watches the
//! application; the workers carry traffic. Nothing is carried before there is an identity and a first picture.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outrigger_proto::mesh::{RegisteredPort, Registration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
};
use tracing::{info, warn};

use crate::{
    accept::ConnectionLimit,
    admin,
    config::{self, demand, status::Status, view::View},
    drain::{self, DrainTrigger},
    host,
    identity::{Identity, Material, SpiffeId, client, memory::MemoryFile},
    inbound,
    intercept::dns::{self, DnsSettings},
    outbound,
    residents::{Parts, Residents},
    settings::Settings,
    telemetry::{LabelSet, Telemetry, log::LogControl},
    upstream::Upstreams,
    workers::{Entrance, Opening, Stops, Workers},
};

mod inspect;
mod names;
mod watch_application;
mod watch_overload;

/// Where configuration and identity come from.
pub enum Source {
    /// A control plane, as the settings say.
    ControlPlane,
    /// Given at the start and replaced through a channel.
    Fixed { view: Arc<View>, material: Material, updates: mpsc::Receiver<Update> },
}

/// A replacement for what a fixed source gave.
#[derive(Debug)]
pub struct Update {
    pub view: Option<Arc<View>>,
    pub material: Option<Material>,
}

/// Why a sidecar could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot start worker threads: {0}")]
    Workers(#[source] io::Error),
    #[error("cannot use the given certificate: {0}")]
    Identity(String),
    #[error("{0}")]
    Settings(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (hint: another process listens there; choose another port or stop it)",
        io::ErrorKind::PermissionDenied => " (hint: ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one)",
        io::ErrorKind::AddrNotAvailable => " (hint: the address belongs to no interface of this machine)",
        _ => "",
    }
}

/// The running sidecar.
struct Sidecar {
    residents: Arc<Residents>,
    status: Arc<Status>,
    ready: AtomicBool,
    draining: AtomicBool,
    /// Someone asked the process to end.
    quit: Notify,
    registration: watch::Sender<Registration>,
    inbound_drain: DrainTrigger,
    outbound_drain: DrainTrigger,
    stops: Stops,
}

/// Runs a sidecar until it is told to stop. Builds its own runtimes, handles SIGTERM and SIGINT (drain; the second
/// one ends at once).
///
/// # Errors
/// When it cannot start. Once it serves, trouble is logged and coped with.
pub fn run(settings: Settings, source: Source, log: Option<LogControl>) -> Result<(), RunError> {
    host::raise_descriptor_limit();
    let runtime = host::runtime(1).map_err(RunError::Workers)?;
    let outcome = runtime.block_on(serve(settings, source, log));
    runtime.shutdown_timeout(Duration::from_millis(200));
    outcome
}

/// For `main`: the exit code of [`run`].
pub fn exit(outcome: Result<(), RunError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(mut settings: Settings, source: Source, log: Option<LogControl>) -> Result<(), RunError> {
    let workers = settings.workers.unwrap_or_else(host::cpu_limit).max(1);
    // One index more than workers: the control runtime counts apart.
    let telemetry = Telemetry::new(&settings.telemetry, LabelSet::node(&settings.node), workers + 1);
    let (demand, requests) = demand::channel(&settings.limits);
    let (inbound_drain, inbound_watch) = drain::drain();
    let (outbound_drain, outbound_watch) = drain::drain();
    let (identity, fixed) = match source {
        Source::ControlPlane => (Identity::new(), None),
        Source::Fixed { view, material, updates } => {
            let identity = Identity::fixed(material).map_err(|error| RunError::Identity(error.to_string()))?;
            (identity, Some((view, updates)))
        }
    };
    let kept = kept_identity(&settings)?;
    if let Some(material) = kept.as_ref().and_then(MemoryFile::load) {
        match identity.replace(material) {
            Ok(()) => info!("identity of the process before is used until a new one is signed"),
            Err(error) => warn!(%error, "kept identity is not used"),
        }
    }
    let openings = openings(&mut settings)?;
    let residents = Arc::new(Residents::new(Parts {
        identity: Arc::clone(&identity),
        upstreams: Upstreams::new(
            workers,
            Arc::clone(&telemetry),
            settings.listeners.transparent.as_ref().and_then(|transparent| transparent.address),
            settings.ejection.policy(),
        ),
        telemetry,
        demand: demand.clone(),
        inbound_drain: inbound_watch,
        outbound_drain: outbound_watch,
        workers,
        settings: settings.clone(),
    }));
    let (registration, registered) = watch::channel(registration(&settings));
    let sidecar = Arc::new(Sidecar {
        residents: Arc::clone(&residents),
        status: Status::new(),
        ready: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        quit: Notify::new(),
        registration,
        inbound_drain,
        outbound_drain,
        stops: Stops::default(),
    });
    sidecar.serve_operators(log)?;
    let first = Arc::new(Notify::new());
    let publish = {
        let (residents, first) = (Arc::clone(&residents), Arc::clone(&first));
        move |view: Arc<View>| {
            residents.publish(view);
            first.notify_one();
        }
    };
    match fixed {
        None => {
            let Some(control_plane) = settings.control_plane.clone() else {
                return Err(RunError::Settings(
                    "no control plane is set (hint: give --control-plane, or --static with a file)".to_owned(),
                ));
            };
            let (status, stop) = (Arc::clone(&sidecar.status), sidecar.stops.all.clone());
            let mark = residents.dialer.mark;
            let signing =
                client::Options { control_plane: control_plane.clone(), node: settings.node.clone(), mark, kept };
            host::spawn(client::keep(Arc::clone(&identity), signing, stop.clone()));
            let options = config::Options {
                control_plane,
                node: settings.node.clone(),
                limits: settings.limits.clone(),
                timeouts: settings.timeouts.clone(),
                state_dir: settings.state_dir.clone(),
                mark,
            };
            host::spawn(config::run(options, Arc::clone(&identity), registered, requests, status, publish, stop));
        }
        Some((view, updates)) => {
            publish(view);
            host::spawn(follow(updates, Arc::clone(&identity), publish));
            host::spawn(demand::answer_absent(requests, sidecar.stops.all.clone()));
        }
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Workers)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Workers)?;
    tokio::select! {
        () = async { identity.ready().await; first.notified().await; preloaded(&residents, &first).await } => {}
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    let limit = ConnectionLimit::new(settings.limits.connections);
    let running = Workers::start(workers, settings.runtime, &residents, &openings, &limit, &sidecar.stops)
        .map_err(RunError::Workers)?;
    host::spawn(watch_overload::run(Arc::clone(&sidecar), limit));
    sidecar.ready.store(true, Ordering::Release);
    // Only now: before it listens, nobody may be sent to it, however ready the application is.
    host::spawn(watch_application::run(Arc::clone(&sidecar)));
    for opening in &openings {
        info!(address = %opening.address, entrance = ?opening.entrance, "listening");
    }
    for address in settings.listeners.dns.clone() {
        let names = Arc::new(names::Names(Arc::clone(&residents)));
        let dns = DnsSettings { listen: address, resolvers: dns::system_resolvers(), mark: residents.dialer.mark };
        let stop = sidecar.stops.all.clone();
        host::spawn(async move {
            if let Err(error) = dns::serve(dns, names, stop).await {
                warn!(%address, %error, "names of the mesh are not served");
            }
        });
    }
    info!(workers, "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = sidecar.quit.notified() => {}
    }
    tokio::select! {
        () = sidecar.drain(&running) => {}
        _ = terminate.recv() => warn!("told to stop again: ending at once"),
        _ = interrupt.recv() => warn!("told to stop again: ending at once"),
    }
    sidecar.stops.all.cancel();
    running.join();
    residents.telemetry.flush();
    Ok(())
}

/// The file in memory that keeps the identity over a restart, if the settings name a folder.
fn kept_identity(settings: &Settings) -> Result<Option<MemoryFile>, RunError> {
    let Some(folder) = &settings.identity_dir else { return Ok(None) };
    let node = &settings.node;
    let id = SpiffeId::new(&node.trust_domain, &node.namespace, &node.service_account)
        .map_err(|error| RunError::Settings(error.to_string()))?;
    MemoryFile::new(folder, &node.workload, id).map(Some).map_err(|error| RunError::Settings(error.to_string()))
}

/// Waits, at most [`PRELOAD`], until the services that are held from the start stand in the picture: who is told that we are
/// ready may call them at once.
async fn preloaded(residents: &Residents, published: &Notify) {
    let complete = async {
        while !residents
            .mesh()
            .is_some_and(|mesh| mesh.view.node.preload.iter().all(|name| mesh.view.services.contains_key(name)))
        {
            published.notified().await;
        }
    };
    tokio::select! {
        () = complete => {}
        () = host::sleep(PRELOAD) => warn!("some services are not known yet; they are asked for when they are used"),
    }
}

/// Replaces view and identity as a fixed source says.
async fn follow(mut updates: mpsc::Receiver<Update>, identity: Arc<Identity>, publish: impl Fn(Arc<View>)) {
    while let Some(Update { view, material }) = updates.recv().await {
        if let Some(material) = material
            && let Err(error) = identity.replace(material)
        {
            warn!(%error, "certificate was not replaced; the one before stays in use");
        }
        if let Some(view) = view {
            publish(view);
        }
    }
}

impl Sidecar {
    /// Stops without losing anything: peers first, then what is in flight, then our own application's way out.
    async fn drain(&self, workers: &Workers) {
        let settings = &self.residents.settings;
        self.ready.store(false, Ordering::Release);
        self.begin_drain();
        // A control plane that is away cannot tell peers; they learn it from the connections.
        let listens = self.status.report().connected_since.is_some();
        if listens && !self.status.confirmed_draining(settings.drain.notice).await {
            warn!("the control plane did not confirm that peers stopped sending; draining anyway");
        }
        info!("draining inbound");
        self.stops.inbound.cancel();
        self.inbound_drain.fire();
        let grace = host::sleep(settings.drain.grace);
        tokio::pin!(grace);
        let finished = async {
            while workers.open().0 > 0 {
                host::sleep(POLL).await;
            }
            // Outbound works until the application is gone, or until it holds nothing any more.
            while workers.open().1 > 0 && !watch_application::is_gone(&self.residents.dialer, settings).await {
                host::sleep(POLL).await;
            }
            self.stops.outbound.cancel();
            self.outbound_drain.fire();
            while workers.open().1 > 0 {
                host::sleep(POLL).await;
            }
        };
        tokio::select! {
            () = finished => info!("drained"),
            () = &mut grace => {
                let (inbound, outbound) = workers.open();
                warn!(inbound, outbound, "grace period is over: closing what is left");
            }
        }
    }

    /// Tells the control plane to take this workload out of balancers; traffic is still served.
    fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.registration.send_if_modified(|registration| !std::mem::replace(&mut registration.draining, true));
    }

    fn serve_operators(self: &Arc<Self>, log: Option<LogControl>) -> Result<(), RunError> {
        let listeners = &self.residents.settings.listeners;
        for (address, operator) in [(listeners.admin, true), (listeners.ready, false)] {
            let Some(address) = address else { continue };
            let listener = host::listen(address, false).map_err(|source| RunError::Listen { address, source })?;
            let bound = listener.local_addr().map_err(|source| RunError::Listen { address, source })?;
            info!(address = %bound, operator, "listening");
            let (source, stop, log) = (Arc::clone(self), self.stops.all.clone(), log.clone());
            host::spawn(async move {
                if operator {
                    admin::serve_admin(listener, source, log, stop).await;
                } else {
                    admin::serve_ready(listener, source, stop).await;
                }
            });
        }
        Ok(())
    }
}

/// Longest wait for services that should be there from the start; a name that was removed meanwhile never comes.
const PRELOAD: Duration = Duration::from_secs(2);
/// How often draining looks whether it is done.
const POLL: Duration = Duration::from_millis(20);

/// Every listening address, with free ports already chosen and conflicts already found.
fn openings(settings: &mut Settings) -> Result<Vec<Opening>, RunError> {
    let listeners = &mut settings.listeners;
    let mut wanted = Vec::new();
    for inbound in &listeners.inbound {
        let way = inbound::Way::Explicit { application: inbound.application, target_port: inbound.target_port };
        wanted.push((inbound.listen, Entrance::Inbound(way)));
    }
    for address in &listeners.outbound {
        wanted.push((*address, Entrance::Outbound(outbound::Way::Proxy)));
    }
    for local in &listeners.local {
        let way = outbound::Way::Service { host: Arc::from(local.host.as_str()), port: local.port };
        wanted.push((local.listen, Entrance::Outbound(way)));
    }
    if let Some(transparent) = &listeners.transparent {
        for address in &transparent.inbound {
            wanted.push((*address, Entrance::Inbound(inbound::Way::Intercepted)));
        }
        for address in &transparent.outbound {
            wanted.push((*address, Entrance::Outbound(outbound::Way::Intercepted)));
        }
    }
    let mut probes = Vec::new();
    let mut openings = Vec::new();
    for (address, entrance) in wanted {
        // Alone first: with shared addresses a second sidecar would silently take half of the connections.
        let probe = host::listen(address, false).map_err(|source| RunError::Listen { address, source })?;
        let address = probe.local_addr().map_err(|source| RunError::Listen { address, source })?;
        probes.push(probe);
        openings.push(Opening { address, entrance });
    }
    // What is registered and shown is what was bound, also where port 0 left the choice to the system.
    for (inbound, opening) in listeners.inbound.iter_mut().zip(&openings) {
        inbound.listen = opening.address;
    }
    Ok(openings)
}

/// What this sidecar says of the workload beside it.
fn registration(settings: &Settings) -> Registration {
    let (node, listeners) = (&settings.node, &settings.listeners);
    let mut address: Option<IpAddr> = listeners.inbound.first().map(|inbound| inbound.listen.ip());
    let mut ports: Vec<_> = listeners
        .inbound
        .iter()
        .map(|inbound| RegisteredPort {
            target_port: u32::from(inbound.target_port),
            name: inbound.port_name.clone(),
            reachable_port: u32::from(inbound.listen.port()),
        })
        .collect();
    if let Some(transparent) = &listeners.transparent {
        address = transparent.address.or(address);
        ports.extend(transparent.ports.iter().map(|(port, name)| RegisteredPort {
            target_port: u32::from(*port),
            name: name.clone(),
            reachable_port: u32::from(*port),
        }));
    }
    let address = address.filter(|address| !address.is_unspecified());
    Registration {
        namespace: node.namespace.clone(),
        workload: node.workload.clone(),
        service_account: node.service_account.clone(),
        labels: node.labels.clone(),
        locality: node.locality.clone(),
        address: match address {
            Some(IpAddr::V4(address)) => address.octets().to_vec().into(),
            Some(IpAddr::V6(address)) => address.octets().to_vec().into(),
            None => bytes::Bytes::new(),
        },
        ports,
        // Until we listen and the application has answered, nobody is sent to it.
        ready: false,
        draining: false,
    }
}
