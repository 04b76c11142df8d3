//! Mesh -> application: every branch of a connection's and a request's way in.
//!
//! The first bytes tell mutual TLS of the mesh from everything else. What is not mutual TLS passes only where the port's
//! mode allows it; the proof of that ([`Authorized`]) is what opens the way to the application.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderValue, Request, Response, request::Parts};
use http_body::Body as _;
use tokio::io::AsyncReadExt;
use tracing::debug;

use crate::{
    accept::{
        Accepted,
        original_dst::original_dst,
        socket::{OverTcp, refuse},
    },
    authorize::{Authorized, authorize_connection},
    config::view::{PeerMode, Protocol},
    detect::{ClientHello, Detected, Rewound},
    failure::{Failure, Reason},
    host::{self, Stream},
    http::{
        Body, Downstream, grpc, headers,
        normalize::normalize,
        reply::reply,
        seen::Field,
        serve::{self, Version},
        upgrade,
    },
    relay::{self, Counts, RelayLimits},
    residents::Worker,
    resilience::{call::call, deadline::Deadline, limits::LimitPolicy},
    telemetry::{self, ConnectionRecord, Direction, LabelId, LabelSet, ListenerKind, RequestRecord, Security},
    tls::{self, Alpn, Peer},
    upstream::{
        RouteBackend,
        exchange::Exchange,
        opaque,
        rule::Forward,
        settle::{self, Settled, Uploaded},
    },
};

/// How long a silent client may be about to speak before the application is given the chance to speak first.
const SERVER_FIRST: Duration = Duration::from_millis(3);

/// How a connection came to us.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// A listener of its own for one port of the application.
    Explicit { application: SocketAddr, target_port: u16 },
    /// Redirected by the kernel, which knows which port was meant.
    Intercepted,
}

/// What is known of a connection once it has been let in.
#[derive(Debug)]
struct Entry {
    application: SocketAddr,
    protocol: Protocol,
    /// `None`: plaintext.
    peer: Option<Peer>,
    /// Known from the identity; better known once the peer has introduced itself.
    source: LabelId,
    introduced: OnceLock<LabelId>,
    remote: SocketAddr,
    /// The peer as the application is told of it.
    caller: Option<HeaderValue>,
    /// To the application; made with the proof that the connection may reach it.
    route: RouteBackend,
}

/// Carries one connection from accept to close.
pub async fn serve_connection(accepted: Accepted, way: Way, worker: Worker) {
    let _active = worker.telemetry.connection_accepted(match way {
        Way::Explicit { .. } => ListenerKind::Inbound,
        Way::Intercepted => ListenerKind::TransparentInbound,
    });
    let peer = accepted.peer;
    if let Err(failure) = admit(accepted, way, worker).await {
        debug!(%peer, %failure, "inbound connection ended");
    }
}

/// Finds out who connects and whether this port lets them in.
async fn admit(accepted: Accepted, way: Way, worker: Worker) -> Result<(), Failure> {
    let residents = Arc::clone(&worker.residents);
    let mesh = residents.mesh().ok_or(Reason::NotReady)?;
    let configs = residents.identity.current().ok_or(Reason::NotReady)?;
    let (application, port) = match way {
        Way::Explicit { application, target_port } => (application, target_port),
        Way::Intercepted => {
            let address = original_dst(&accepted.io).map_err(|error| Failure::new(Reason::Loop).because(error))?;
            (address, address.port())
        }
    };
    if residents.is_own(application) {
        return Err(Reason::Loop.into());
    }
    let node = &mesh.view.node;
    let (mode, protocol, limits) = match node.inbound.get(&port) {
        Some(inbound) => (inbound.peer_mode, inbound.protocol, inbound.limits),
        None => (node.default_peer_mode, Protocol::Detect, LimitPolicy::default()),
    };
    drop(mesh);

    let entry = |peer: Option<Peer>, authorized: Authorized| {
        let source = peer
            .as_ref()
            .map_or(LabelId::UNKNOWN, |peer| residents.telemetry.labels(LabelSet::peer(peer.identity.as_str())));
        let caller = peer.as_ref().and_then(|peer| headers::client_cert(peer, configs.identity()));
        let backend = residents.applications.at(&authorized, application, limits, LabelId::OWN);
        let route = RouteBackend { backend, breaker: None, fallback: None };
        Entry { application, protocol, peer, source, introduced: OnceLock::new(), remote: accepted.peer, caller, route }
    };
    let mut io = Rewound::new(accepted.io);
    if mode == PeerMode::Disable {
        worker.telemetry.connection_secured(Direction::Inbound, Security::None);
        let authorized = authorize_connection(mode, false)?;
        return carry_plaintext(io, None, None, entry(None, authorized), port, worker).await;
    }
    // STRICT: only a client that speaks can be let in. PERMISSIVE: a silent one may be waiting for the server, or its first bytes
    // are still on their way, and may yet be those of a mesh peer.
    let (detected, opened) = match mode {
        PeerMode::Strict => (Some(io.detect_within(&residents.settings.timeouts).await?), None),
        PeerMode::Permissive | PeerMode::Disable => tokio::select! {
            biased;
            detected = io.detect_client() => (Some(detected?), None),
            () = host::sleep(SERVER_FIRST) => match protocol {
                Protocol::Http | Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => {
                    (Some(io.detect_within(&residents.settings.timeouts).await?), None)
                }
                Protocol::Tcp | Protocol::Tls | Protocol::Detect => {
                    let silent = entry(None, authorize_connection(mode, false)?);
                    wait_for_either(&mut io, &silent, &worker).await?
                }
            },
        },
    };
    match detected {
        Some(Detected::Tls(hello)) if is_mesh(&hello) => {
            worker.telemetry.protocol_detected(Direction::Inbound, telemetry::Detected::MeshTls);
            let Ok(room) = residents.handshakes.try_acquire() else {
                worker.telemetry.limit_overflowed(telemetry::Overflow::Handshakes);
                worker.telemetry.handshake_failed(Direction::Inbound, telemetry::Handshake::Overload);
                return Err(Reason::Overloaded.into());
            };
            let handshake = tls::server::accept(io, &configs, residents.settings.timeouts.handshake).await;
            drop(room);
            let (io, peer) = match handshake {
                Ok(accepted) => accepted,
                Err(error) => {
                    worker.telemetry.handshake_failed(Direction::Inbound, error.handshake());
                    return Err(Failure::new(Reason::DownstreamClosed).because(error));
                }
            };
            worker.telemetry.connection_secured(Direction::Inbound, Security::MutualTls);
            let authorized = authorize_connection(mode, true)?;
            carry_mesh(io, entry(Some(peer), authorized), worker).await
        }
        detected => {
            let authorized = match authorize_connection(mode, false) {
                Ok(authorized) => authorized,
                Err(reason) => {
                    let mut record = ConnectionRecord::open(&worker.telemetry, Direction::Inbound, host::now());
                    record.describe(|log| log.downstream_remote = Some(accepted.peer));
                    record.failure(reason);
                    refuse(io.into_parts().1);
                    return Err(reason.into());
                }
            };
            worker.telemetry.connection_secured(Direction::Inbound, Security::None);
            carry_plaintext(io, detected, opened, entry(None, authorized), port, worker).await
        }
    }
}

/// Gives the application the chance to speak first while the client is silent. `None`: the client has said nothing, and is not waited
/// for any longer; what the application said first is kept with the connection to it.
async fn wait_for_either<S: Stream>(
    io: &mut Rewound<S>,
    entry: &Entry,
    worker: &Worker,
) -> Result<(Option<Detected>, Option<opaque::Opened>), Failure> {
    let mut opened = open(entry, worker).await?;
    let mut first = bytes::BytesMut::with_capacity(1024);
    let detected = tokio::select! {
        biased;
        detected = io.detect_client() => Some(detected?),
        read = opened.io.read_buf(&mut first) => {
            read.map_err(|error| Failure::new(Reason::UpstreamReset).because(error))?;
            None
        }
        () = host::sleep(worker.residents.settings.timeouts.detect) => None,
    };
    opened.first = first.freeze();
    Ok((detected, Some(opened)))
}

/// Carries what a mesh peer sends: its protocol stands in the handshake.
async fn carry_mesh<S: Stream + OverTcp + 'static>(io: S, entry: Entry, worker: Worker) -> Result<(), Failure> {
    let version = match entry.peer.as_ref().and_then(|peer| peer.alpn) {
        Some(Alpn::MeshHttp2) => Version::Http2,
        Some(Alpn::MeshHttp1) => Version::Http1,
        Some(Alpn::MeshOpaque) | None => return forward_opaque(Rewound::new(io), None, &entry, &worker).await,
    };
    serve_http(Rewound::new(io), version, entry, worker).await
}

/// Carries a connection without mutual TLS, for as long as its port takes such.
async fn carry_plaintext<S: Stream + OverTcp + 'static>(
    io: Rewound<S>,
    detected: Option<Detected>,
    opened: Option<opaque::Opened>,
    entry: Entry,
    port: u16,
    worker: Worker,
) -> Result<(), Failure> {
    let residents = Arc::clone(&worker.residents);
    // Boxed: two futures in one would make every connection's larger.
    let carried = Box::pin(carry(io, detected, opened, entry, worker));
    tokio::select! {
        biased;
        ended = carried => ended,
        // Whoever came before the door was shut is not left inside.
        () = residents.until_strict(port) => Err(Reason::PlaintextRefused.into()),
    }
}

/// Carries plaintext by what the port declares or the first bytes say.
async fn carry<S: Stream + OverTcp + 'static>(
    mut io: Rewound<S>,
    detected: Option<Detected>,
    opened: Option<opaque::Opened>,
    entry: Entry,
    worker: Worker,
) -> Result<(), Failure> {
    let timeouts = &worker.residents.settings.timeouts;
    match entry.protocol {
        Protocol::Tcp | Protocol::Tls => forward_opaque(io, opened, &entry, &worker).await,
        Protocol::Http | Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => {
            let detected = match detected {
                Some(detected) => detected,
                None => io.detect_within(timeouts).await?,
            };
            match Version::of(&detected) {
                Some(version) => serve_http(io, version, entry, worker).await,
                // The application's own TLS: the application will know.
                None if matches!(detected, Detected::Tls(_)) => forward_opaque(io, None, &entry, &worker).await,
                // Declared HTTP and not HTTP: what a lenient application would make of it, nobody knows.
                None => Err(Reason::BadRequest.into()),
            }
        }
        Protocol::Detect => {
            let (detected, opened) = match (detected, opened) {
                (None, None) => wait_for_either(&mut io, &entry, &worker).await?,
                known => known,
            };
            match detected.as_ref().and_then(Version::of) {
                Some(version) => serve_http(io, version, entry, worker).await,
                None => forward_opaque(io, opened, &entry, &worker).await,
            }
        }
    }
}

async fn forward_opaque<S: Stream + OverTcp>(
    mut io: Rewound<S>,
    opened: Option<opaque::Opened>,
    entry: &Entry,
    worker: &Worker,
) -> Result<(), Failure> {
    let mut record = ConnectionRecord::open(&worker.telemetry, Direction::Inbound, host::now());
    record.describe(|log| log.downstream_remote = Some(entry.remote));
    record.source(entry.source);
    record.security(entry.security());
    let opened = match opened {
        Some(opened) => Ok(opened),
        None => open(entry, worker).await,
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            record.failure(failure.reason);
            return Err(failure);
        }
    };
    record.established(opened.address);
    let settings = &worker.residents.settings;
    let limits = RelayLimits {
        buffer_bytes: settings.limits.connection_buffer_bytes,
        idle: settings.timeouts.opaque_idle,
        half_close: settings.timeouts.half_close,
    };
    let mut application = Rewound::with(opened.io, opened.first);
    let counts = Counts::default();
    settle::relayed(&mut io, &mut application, limits, &counts, &mut record).await.map_err(|error| {
        relay::pass_on(&error, io.tcp(), Some(application.get_ref().tcp()));
        let reason = error.reason();
        record.failure(reason);
        Failure::new(reason).because(error)
    })
}

async fn open(entry: &Entry, worker: &Worker) -> Result<opaque::Opened, Failure> {
    opaque::open_route(&entry.route, worker.carrier(Direction::Inbound)).await
}

async fn serve_http<S: Stream + 'static>(
    io: Rewound<S>,
    version: Version,
    entry: Entry,
    worker: Worker,
) -> Result<(), Failure> {
    let residents = Arc::clone(&worker.residents);
    let settings = if entry.peer.is_some() { &residents.serve_mesh } else { &residents.serve };
    let entry = Arc::new(entry);
    let (telemetry, connection) = (Arc::clone(&worker.telemetry), Arc::clone(&entry));
    let counts = Arc::clone(&worker.telemetry);
    let handler = move |request, downstream| serve_request(request, downstream, Arc::clone(&entry), worker.clone());
    let refused = move |fault| {
        let mut record = RequestRecord::open(&telemetry, Direction::Inbound, host::now());
        record.describe(|log| log.connection.downstream_remote = Some(connection.remote));
        record.source(connection.source);
        record.security(connection.security());
        settle::refused(fault, record);
    };
    let abused = move |abuse| counts.http2_abuse(Direction::Inbound, telemetry::Side::Downstream, abuse);
    serve::serve(io, version, settings, residents.inbound_drain.clone(), handler, refused, abused)
        .await
        .map_err(|error| Failure::new(Reason::DownstreamClosed).because(error))
}

/// Carries one request to the application and its response back.
async fn serve_request(
    request: Request<Body>,
    downstream: Downstream,
    entry: Arc<Entry>,
    worker: Worker,
) -> Box<Response<Body>> {
    let (request, body) = request.into_parts();
    let mut record = RequestRecord::open(&worker.telemetry, Direction::Inbound, downstream.at);
    record.head(&request.method, &request.uri, request.version, &request.headers);
    record.describe(|log| log.connection.downstream_remote = Some(entry.remote));
    record.source(entry.source);
    record.security(entry.security());
    let grpc = downstream.seen.has(Field::ContentType) && grpc::is_grpc(&request.headers);
    if grpc {
        record.protocol(telemetry::RequestProtocol::Grpc);
    }
    // Pinned where it lies: awaited as a value, a future is copied twice before it is polled.
    let outcome = pin!(answer(request, body, downstream, &entry, &worker, &mut record)).await;
    match outcome {
        Ok((settled, uploaded)) => settled.attach(record, uploaded),
        Err(failure) => {
            debug!(%failure, "request failed");
            settle::failed(reply(&failure, grpc), &failure, record)
        }
    }
}

async fn answer(
    mut request: Parts,
    body: Body,
    downstream: Downstream,
    entry: &Entry,
    worker: &Worker,
    record: &mut RequestRecord,
) -> Result<(Settled, Option<Arc<Uploaded>>), Failure> {
    let residents = &worker.residents;
    residents.overload.admit()?;
    let Downstream { at: started, mut seen, interim } = downstream;
    let wanted = upgrade::wants_upgrade(&request, seen);
    let leaving = wanted.as_ref().map(|_| upgrade::take(&mut request));
    // The marks are promises of one sidecar to another; from anybody else it is only a header, and goes.
    let carried = headers::take_orig_proto(&mut request.headers, &mut seen).filter(|_| entry.peer.is_some());
    let introduction = headers::take_introduction(&mut request.headers, &mut seen);
    if let Some(peer) = &entry.peer {
        if let Some(introduction) = introduction {
            entry.introduced.get_or_init(|| {
                let introduction = introduction.to_str().unwrap_or_default();
                residents.telemetry.labels(LabelSet::introduced(peer.identity.as_str(), introduction))
            });
        }
        if let Some(source) = entry.introduced.get() {
            record.source(*source);
        }
    }
    let target = normalize(&mut request, !body.is_end_stream(), seen, &residents.settings.limits)?;
    if let Some(version) = carried {
        request.version = version;
    }
    let authority = target.authority.ok_or(Reason::BadRequest)?;
    let id = headers::request_id(&mut request.headers, seen);
    record.describe(|log| log.request_id = Some(id));
    headers::set_client_cert(&mut request.headers, seen, entry.caller.as_ref());
    let route = &entry.route;
    let forward = Forward::straight(route);
    let asked = if seen.has(Field::GrpcTimeout) { grpc::timeout(&request.headers) } else { None };
    let deadline = Deadline::after(started, asked);
    let mut head = forward.head(request, seen, Some(interim), authority, wanted.clone())?;
    head.speak_as_declared(entry.protocol);
    let (body, uploaded) = settle::upload(&head, body, &residents.settings);
    let mut exchange = Exchange::new(route, worker.carrier(Direction::Inbound), head, body, started);
    let outcome = pin!(call(forward.plan(deadline, &residents.inbound_retry), started, &mut exchange)).await;
    record.upstream(entry.application);
    let answer = match outcome {
        Ok(answer) => answer,
        Err(failure) => {
            if failure.reason == Reason::UpstreamConnectRefused {
                residents.application_refused.notify_one();
            }
            return Err(failure);
        }
    };
    let mut settled = Settled::answered(answer);
    settled.edit(&forward);
    // Only a sidecar speaks of sidecars: whatever the application says under these names is not passed on.
    settled.remove_error();
    settled.end_at(deadline);
    settled.upgrade(wanted, leaving, &residents.settings);
    Ok((settled, uploaded))
}

impl Entry {
    const fn security(&self) -> Security {
        match self.peer {
            Some(_) => Security::MutualTls,
            None => Security::None,
        }
    }
}

/// Whether the client offers any of the mesh's own protocol names; the application's TLS never does.
fn is_mesh(hello: &ClientHello) -> bool {
    Alpn::any_offered(&hello.alpn)
}
