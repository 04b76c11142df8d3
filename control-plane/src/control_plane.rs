//! What runs in a control plane, in which order it becomes ready, and how it stops.
//!
//! `serve`, `up`, `demo` and tests all start it here. Order: the store (which also keeps a second control plane out of the data
//! directory), the authority, the sockets, the workloads known from before, the first catalogue; then the listeners accept.
//! Stopping: listeners first, then streams, then the store.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use outrigger_proto::{
    admin::admin_server::AdminServer, ca::istio_certificate_service_server::IstioCertificateServiceServer,
    discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, service::Routes};

pub use crate::settings::{Limits, Settings};
use crate::{
    admin::{AdminService, token::AdminToken},
    authority::{
        Authority, AuthorityError, authenticate, service::CertificateService, serving::ServingCertificate,
        serving::ServingError, sign::HostName,
    },
    discovery::{Catalogue, Sessions, service::DiscoveryService},
    listener::{Gate, Listener},
    model::MeshSettings,
    monitoring::Monitoring,
    pipeline::{Moments, Parsed, Picture, Pipeline, Signal},
    registry::{Registry, health},
    store::{Store, StoreError},
    telemetry::Metrics,
};

/// Largest request of the command line, in bytes.
const MAX_ADMIN_REQUEST_BYTES: usize = 64 << 20;
/// Longest wait for tasks when stopping.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A control plane at work. Dropping it stops it without waiting; [`Running::shutdown`] waits.
pub struct Running {
    /// Where sidecars connect (bound address, so the port is never 0).
    pub discovery_address: SocketAddr,
    /// Where the command line connects.
    pub admin_address: SocketAddr,
    /// Where metrics are read, unless turned off.
    pub monitoring_address: Option<SocketAddr>,
    /// File with the admin token (mode 0600); the command line reads it.
    pub admin_token_path: PathBuf,
    /// File with the root certificate in PEM; the command line trusts it.
    pub ca_path: PathBuf,
    /// SHA-256 of the root's public key (SubjectPublicKeyInfo in DER), hex: the last part of every join token.
    pub root_pin: String,
    admin: AdminService,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why a control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} for {purpose}: {source} (hint: {hint})")]
    Listen { address: SocketAddr, purpose: &'static str, source: std::io::Error, hint: &'static str },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The root, its key or the admin token cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The trust domain cannot be part of an identity.
    #[error(
        "trust domain {0:?} is not usable (hint: lower case letters, digits, dots, dashes, for example cluster.local)"
    )]
    TrustDomain(String),
}

/// Starts a control plane on the current (multi-thread) runtime and returns once every listener accepts.
///
/// # Errors
/// [`StartError`]; nothing keeps running then.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    if crate::authority::Identity::new(&settings.trust_domain, "a", "a").is_err() {
        return Err(StartError::TrustDomain(settings.trust_domain));
    }
    let store = Arc::new(Store::open(&settings.data_dir, settings.history_limit)?);
    let authority = Arc::new(Authority::load_or_create(&settings.data_dir, &settings.trust_domain)?);
    let admin_token = AdminToken::load_or_create(&settings.data_dir)?;
    let discovery_socket = bind(settings.discovery_listen, "discovery", "--listen takes another address").await?;
    let admin_socket = bind(settings.admin_listen, "administration", "--admin-listen takes another address").await?;
    let monitoring_socket = match settings.monitoring_listen {
        Some(address) => Some(bind(address, "monitoring", "--monitoring-listen takes another address").await?),
        None => None,
    };
    let address = |socket: &TcpListener, wanted| socket.local_addr().unwrap_or(wanted);
    let discovery_address = address(&discovery_socket, settings.discovery_listen);
    let admin_address = address(&admin_socket, settings.admin_listen);
    let monitoring_address =
        monitoring_socket.as_ref().zip(settings.monitoring_listen).map(|(socket, wanted)| address(socket, wanted));

    let (stop, tasks, ready) = (CancellationToken::new(), TaskTracker::new(), CancellationToken::new());
    let metrics = Arc::new(Metrics::default());
    let signal = Arc::new(Signal::default());
    let moments = Arc::new(Moments::default());
    let sessions = Arc::new(Sessions::default());
    let registry = Registry::new(Arc::clone(&signal), health::tcp(), settings.limits.workloads, stop.clone());
    registry.restore(store.workloads()?);
    let mesh = MeshSettings {
        trust_domain: settings.trust_domain.clone(),
        domain_suffix: settings.domain_suffix.clone(),
        ..MeshSettings::default()
    };
    let (publish, catalogue) = watch::channel(Arc::new(Catalogue::default()));
    let picture = Arc::new(ArcSwap::from_pointee(Picture::default()));
    let mut pipeline = Pipeline {
        store: Arc::clone(&store),
        registry: Arc::clone(&registry),
        signal: Arc::clone(&signal),
        metrics: Arc::clone(&metrics),
        settings: mesh.clone(),
        limits: settings.limits.clone(),
        roots: vec![Bytes::from(authority.root_pem().to_owned())],
        catalogue: publish,
        picture: Arc::clone(&picture),
        parsed: Parsed::default(),
    };
    // Nobody is told that something does not exist before everything that is stored has been read.
    pipeline.step()?;
    tasks.spawn(pipeline.run(stop.clone()));
    tasks.spawn(Arc::clone(&registry).save_until_stopped(Arc::clone(&store)));

    let hosts = host_names(&settings, &[discovery_address, admin_address]);
    let serving = ServingCertificate::issue(&authority, &hosts)?;
    let renewed = Arc::clone(&serving);
    let renewing = Arc::clone(&authority);
    let stop_renewing = stop.clone();
    tasks.spawn(async move { renewed.renew_until(renewing, hosts, stop_renewing).await });

    let discovery = DiscoveryService {
        sessions: Arc::clone(&sessions),
        registry: Arc::clone(&registry),
        catalogue: catalogue.clone(),
        moments: Arc::clone(&moments),
        metrics: Arc::clone(&metrics),
        limits: settings.limits.clone(),
        stop: stop.clone(),
        tasks: tasks.clone(),
    };
    let certificates =
        CertificateService::new(Arc::clone(&authority), Arc::clone(&store), Arc::clone(&metrics), settings.leaf_ttl);
    let routes = Routes::new(
        AggregatedDiscoveryServiceServer::new(discovery).max_decoding_message_size(settings.limits.request_bytes),
    )
    .add_service(IstioCertificateServiceServer::new(certificates).max_decoding_message_size(64 * 1024))
    .prepare();
    let listener = Listener {
        socket: discovery_socket,
        tls: Arc::new(serving.server_config(&authority, true)?),
        routes,
        gate: discovery_gate(Arc::clone(&store), settings.trust_domain.clone()),
        limits: settings.limits.clone(),
    };
    tasks.spawn(listener.serve(stop.clone(), tasks.clone()));

    let admin = AdminService {
        store,
        registry,
        sessions: Arc::clone(&sessions),
        authority: Arc::clone(&authority),
        signal,
        moments,
        metrics: Arc::clone(&metrics),
        picture,
        catalogue,
        mesh,
        discovery_address: discovery_address.to_string(),
    };
    let routes =
        Routes::new(AdminServer::new(admin.clone()).max_decoding_message_size(MAX_ADMIN_REQUEST_BYTES)).prepare();
    let listener = Listener {
        socket: admin_socket,
        tls: Arc::new(serving.server_config(&authority, false)?),
        routes,
        gate: admin_gate(admin_token),
        limits: settings.limits.clone(),
    };
    tasks.spawn(listener.serve(stop.clone(), tasks.clone()));
    if let Some(socket) = monitoring_socket {
        let monitoring = Monitoring { metrics, sessions, ready: ready.clone(), stop: stop.clone() };
        tasks.spawn(monitoring.serve(socket, tasks.clone()));
    }
    ready.cancel();
    tracing::info!(%discovery_address, %admin_address, ?monitoring_address, "control plane is ready");
    Ok(Running {
        discovery_address,
        admin_address,
        monitoring_address,
        admin_token_path: settings.data_dir.join(crate::admin::token::FILE),
        ca_path: authority.certificate_path().to_owned(),
        root_pin: authority.pin().to_owned(),
        admin,
        stop,
        tasks,
    })
}

impl Running {
    /// Issues a join token for a service account; what `outrigger token create` does, without a network hop.
    ///
    /// `ttl` `None`: 24 h. `uses` `None`: unlimited within the lifetime.
    ///
    /// # Errors
    /// When a name cannot be part of an identity, or the disk fails.
    pub async fn create_token(
        &self,
        namespace: &str,
        service_account: &str,
        ttl: Option<Duration>,
        uses: Option<u32>,
    ) -> Result<String, Status> {
        Ok(self.admin.issue_token(namespace, service_account, ttl, uses).await?.0)
    }

    /// The admin calls themselves, without a network hop: `running.admin().apply(tonic::Request::new(..))`
    /// with the trait [`outrigger_proto::admin::admin_server::Admin`] in scope.
    pub fn admin(&self) -> &AdminService {
        &self.admin
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        self.admin.authority.root_pem()
    }

    /// Ends every stream and waits until everything has stopped (at most 15 s).
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn bind(address: SocketAddr, purpose: &'static str, hint: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, purpose, source, hint })
}

/// Every name and address under which the listeners may be reached.
fn host_names(settings: &Settings, listening: &[SocketAddr]) -> Vec<HostName> {
    let mut hosts = vec![HostName::Dns("localhost".to_owned()), HostName::parse("127.0.0.1"), HostName::parse("::1")];
    let addresses = listening.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).map(HostName::Ip);
    for host in addresses.chain(settings.host_names.iter().map(|name| HostName::parse(name))) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// Discovery wants a certificate of the mesh; signing takes a join token too.
fn discovery_gate(store: Arc<Store>, trust_domain: String) -> Gate {
    Arc::new(move |request, peer| {
        let now = SystemTime::now();
        let caller = if request.uri.path().starts_with("/istio.v1.auth.") {
            let authorization = request.headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
            authenticate::authenticate(authorization, peer, &store, &trust_domain, now)
        } else {
            authenticate::by_certificate(peer, &trust_domain, now)
        };
        let caller = caller.map_err(|reason| {
            tracing::debug!(address = %peer.address, path = request.uri.path(), %reason, "refused a caller");
            Status::unauthenticated(reason.to_string())
        })?;
        request.extensions.insert(caller);
        Ok(())
    })
}

fn admin_gate(token: AdminToken) -> Gate {
    Arc::new(move |request, peer| {
        let authorization = request.headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
        if token.is_in(authorization) {
            return Ok(());
        }
        tracing::warn!(address = %peer.address, "refused an admin request without the admin token");
        Err(Status::unauthenticated(
            "the admin token is missing or wrong (hint: it is in admin.token in the data directory)",
        ))
    })
}
