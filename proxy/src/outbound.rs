//! Application -> mesh: every branch of a connection's and a request's way out.
//!
//! A connection comes in one of three ways ([`Way`]); what it speaks is declared or found out; HTTP is carried request
//! by request with the newest picture of the mesh, everything else as bytes.

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response, request::Parts, uri::Authority};
use http_body::Body as _;
use tokio::io::AsyncReadExt;
use tracing::debug;

use crate::{
    accept::{Accepted, original_dst::original_dst, socket::OverTcp},
    config::{
        demand::{Answer, DemandName},
        view::{OutboundMode, Protocol},
    },
    detect::{Detected, Rewound},
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
    resilience::{call::call, deadline::Deadline},
    telemetry::{self, ConnectionRecord, Direction, ListenerKind, RequestRecord},
    upstream::{
        Toward,
        exchange::Exchange,
        opaque,
        rule::{self, Chosen},
        settle::{self, Settled, Uploaded},
    },
};

/// How long a silent client may be about to speak before the server is given the chance to speak first.
const SERVER_FIRST: Duration = Duration::from_millis(3);

/// How a connection came to us.
#[derive(Clone, Debug)]
pub enum Way {
    /// The application uses us as its HTTP proxy.
    Proxy,
    /// A local port that leads to one service.
    Service { host: Arc<str>, port: u16 },
    /// Redirected by the kernel, which knows where it was going.
    Intercepted,
}

/// What the requests of one connection are for.
#[derive(Clone, Debug)]
enum Scope {
    /// Each request says where it goes.
    Proxy,
    Name {
        host: Arc<str>,
        port: u16,
    },
    Address(SocketAddr),
}

/// Carries one connection from accept to close.
pub async fn serve_connection(accepted: Accepted, way: Way, worker: Worker) {
    let _active = worker.telemetry.connection_accepted(match way {
        Way::Proxy => ListenerKind::Outbound,
        Way::Service { .. } => ListenerKind::Local,
        Way::Intercepted => ListenerKind::TransparentOutbound,
    });
    let scope = match way {
        Way::Proxy => Scope::Proxy,
        Way::Service { host, port } => Scope::Name { host, port },
        Way::Intercepted => match original_dst(&accepted.io) {
            Ok(address) => Scope::Address(address),
            Err(error) => {
                debug!(peer = %accepted.peer, %error, "connection was not redirected, so where to is unknown");
                return;
            }
        },
    };
    let peer = accepted.peer;
    if let Err(failure) = carry(Rewound::new(accepted.io), scope, peer, worker).await {
        debug!(%peer, %failure, "outbound connection ended");
    }
}

/// Carries a byte stream with a known scope: the connection itself, or what came through CONNECT.
async fn carry<S: Stream + OverTcp + 'static>(
    mut io: Rewound<S>,
    scope: Scope,
    peer: SocketAddr,
    worker: Worker,
) -> Result<(), Failure> {
    let timeouts = &worker.residents.settings.timeouts;
    if matches!(scope, Scope::Proxy) {
        let detected = io.detect_within(timeouts).await?;
        return match Version::of(&detected) {
            Some(version) => serve_http(io, version, scope, peer, worker).await,
            None => Err(Reason::BadRequest.into()),
        };
    }
    let toward = find(&worker, &scope, None).await?;
    match toward.protocol() {
        Protocol::Tcp | Protocol::Tls => forward_opaque(io, &toward, None, peer, &worker).await,
        Protocol::Http | Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => {
            let detected = io.detect_within(timeouts).await?;
            match Version::of(&detected) {
                Some(version) => serve_http(io, version, scope, peer, worker).await,
                None => Err(Reason::BadRequest.into()),
            }
        }
        Protocol::Detect => match detect(&mut io, &toward, peer, &worker).await? {
            (Some(detected), _) if Version::of(&detected).is_some() => {
                worker.telemetry.protocol_detected(Direction::Outbound, telemetry_word(&detected));
                let version = Version::of(&detected).unwrap_or(Version::Http1);
                serve_http(io, version, scope, peer, worker).await
            }
            (_, opened) => {
                worker.telemetry.protocol_detected(Direction::Outbound, telemetry::Detected::Opaque);
                forward_opaque(io, &toward, opened, peer, &worker).await
            }
        },
    }
}

/// Finds out what the client speaks. A silent client gets its upstream connection meanwhile, in case the server speaks
/// first; then it is opaque at once, and that connection is used.
async fn detect<S: Stream>(
    io: &mut Rewound<S>,
    toward: &Toward,
    peer: SocketAddr,
    worker: &Worker,
) -> Result<(Option<Detected>, Option<opaque::Opened>), Failure> {
    tokio::select! {
        biased;
        detected = io.detect_client() => return Ok((Some(detected?), None)),
        () = host::sleep(SERVER_FIRST) => {}
    }
    let mut opened = tokio::select! {
        biased;
        detected = io.detect_client() => return Ok((Some(detected?), None)),
        opened = opaque::open(toward, worker.carrier(Direction::Outbound).for_client(&peer)) => opened?,
    };
    let limit = worker.residents.settings.timeouts.detect;
    let mut first = bytes::BytesMut::with_capacity(1024);
    tokio::select! {
        biased;
        detected = io.detect_client() => {
            let detected = detected?;
            let keep = Version::of(&detected).is_none();
            Ok((Some(detected), keep.then_some(opened)))
        }
        read = opened.io.read_buf(&mut first) => {
            read.map_err(|error| Failure::new(Reason::UpstreamReset).because(error))?;
            opened.first = first.freeze();
            Ok((None, Some(opened)))
        }
        () = host::sleep(limit) => Ok((None, Some(opened))),
    }
}

const fn telemetry_word(detected: &Detected) -> telemetry::Detected {
    match detected {
        Detected::Http1 => telemetry::Detected::Http1,
        Detected::Http2 => telemetry::Detected::Http2,
        Detected::Tls(_) => telemetry::Detected::Tls,
        Detected::Opaque => telemetry::Detected::Opaque,
    }
}

/// Carries bytes to an endpoint and back; nothing in them is looked at.
async fn forward_opaque<S: Stream + OverTcp>(
    mut io: Rewound<S>,
    toward: &Toward,
    opened: Option<opaque::Opened>,
    peer: SocketAddr,
    worker: &Worker,
) -> Result<(), Failure> {
    let counts = Counts::default();
    let mut record = ConnectionRecord::open(&worker.telemetry, Direction::Outbound, host::now());
    record.describe(|log| log.downstream_remote = Some(peer));
    record.destination(toward.labels());
    let opened = match opened {
        Some(opened) => opened,
        None => match opaque::open(toward, worker.carrier(Direction::Outbound).for_client(&peer)).await {
            Ok(opened) => opened,
            Err(failure) => {
                record.failure(failure.reason);
                return Err(failure);
            }
        },
    };
    record.destination(opened.labels);
    record.security(opened.security());
    record.established(opened.address);
    let settings = &worker.residents.settings;
    let limits = RelayLimits {
        buffer_bytes: settings.limits.connection_buffer_bytes,
        idle: opened.idle.unwrap_or(settings.timeouts.opaque_idle),
        half_close: settings.timeouts.half_close,
    };
    let mut upstream = Rewound::with(opened.io, opened.first);
    let relayed = settle::relayed(&mut io, &mut upstream, limits, &counts, &mut record).await;
    match relayed {
        Ok(()) => Ok(()),
        Err(error) => {
            relay::pass_on(&error, io.tcp(), Some(upstream.get_ref().tcp()));
            let reason = error.reason();
            record.failure(reason);
            Err(Failure::new(reason).because(error))
        }
    }
}

async fn serve_http<S: Stream + 'static>(
    io: Rewound<S>,
    version: Version,
    scope: Scope,
    peer: SocketAddr,
    worker: Worker,
) -> Result<(), Failure> {
    let residents = Arc::clone(&worker.residents);
    let scope = Arc::new(scope);
    let telemetry = Arc::clone(&worker.telemetry);
    let counts = Arc::clone(&worker.telemetry);
    let handler =
        move |request, downstream| serve_request(request, downstream, Arc::clone(&scope), peer, worker.clone());
    let refused = move |fault| {
        let mut record = RequestRecord::open(&telemetry, Direction::Outbound, host::now());
        record.describe(|log| log.connection.downstream_remote = Some(peer));
        settle::refused(fault, record);
    };
    let abused = move |abuse| counts.http2_abuse(Direction::Outbound, telemetry::Side::Downstream, abuse);
    serve::serve(io, version, &residents.serve, residents.outbound_drain.clone(), handler, refused, abused)
        .await
        .map_err(|error| Failure::new(Reason::DownstreamClosed).because(error))
}

/// Carries one request to an endpoint and its response back, with the newest picture of the mesh.
async fn serve_request(
    request: Request<Body>,
    downstream: Downstream,
    scope: Arc<Scope>,
    peer: SocketAddr,
    worker: Worker,
) -> Box<Response<Body>> {
    let (mut request, body) = request.into_parts();
    let mut record = RequestRecord::open(&worker.telemetry, Direction::Outbound, downstream.at);
    record.head(&request.method, &request.uri, request.version, &request.headers);
    record.describe(|log| log.connection.downstream_remote = Some(peer));
    let grpc = downstream.seen.has(Field::ContentType) && grpc::is_grpc(&request.headers);
    if grpc {
        record.protocol(telemetry::RequestProtocol::Grpc);
    }
    if request.method == http::Method::CONNECT && matches!(*scope, Scope::Proxy) {
        return match Box::pin(open_tunnel(&mut request, peer, &worker)).await {
            Ok(response) => settle::own(response, record),
            Err(failure) => settle::failed(reply(&failure, false), &failure, record),
        };
    }
    // Pinned where it lies: awaited as a value, a future is copied twice before it is polled.
    let outcome = pin!(answer(request, body, downstream, &scope, &peer, &worker, &mut record)).await;
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
    scope: &Scope,
    peer: &SocketAddr,
    worker: &Worker,
    record: &mut RequestRecord,
) -> Result<(Settled, Option<Arc<Uploaded>>), Failure> {
    let residents = &worker.residents;
    residents.overload.admit()?;
    let Downstream { at: started, mut seen, interim } = downstream;
    let wanted = upgrade::wants_upgrade(&request, seen);
    let leaving = wanted.as_ref().map(|_| upgrade::take(&mut request));
    // Only sidecars say these things; from an application they would be forged.
    headers::set_client_cert(&mut request.headers, seen, None);
    headers::take_orig_proto(&mut request.headers, &mut seen);
    headers::take_introduction(&mut request.headers, &mut seen);
    let target = normalize(&mut request, !body.is_end_stream(), seen, &residents.settings.limits)?;
    let id = headers::request_id(&mut request.headers, seen);
    record.describe(|log| log.request_id = Some(id));
    let authority = target.authority.ok_or(Reason::BadRequest)?;
    let toward = find(worker, scope, Some(&authority)).await?;
    record.destination(toward.labels());
    record.describe(|log| log.connection.service_port = toward.service_port());

    let chosen = match rule::choose(&toward, &request, seen)? {
        Chosen::Redirect(response) => return Ok((Settled::own(*response), None)),
        Chosen::Forward(forward) => forward,
    };
    if let Some(name) = chosen.rule_name() {
        record.route(name);
    }
    let asked = if seen.has(Field::GrpcTimeout) { grpc::timeout(&request.headers) } else { None };
    let deadline = Deadline::after(started, chosen.timeout()).min(Deadline::after(started, asked));
    let mut head = chosen.head(request, seen, Some(interim), authority, wanted.clone())?;
    head.speak_as_declared(toward.protocol());
    let (body, uploaded) = settle::upload(&head, body, &residents.settings);
    // Made again below: kept, it would be part of every request's future.
    let carrier = || worker.carrier(Direction::Outbound).for_client(peer);
    // Later than the start: finding may have waited for the control plane.
    let now = host::now();
    let mut exchange = Exchange::new(chosen.route, carrier(), head, body, now);
    let outcome = pin!(call(chosen.plan(deadline, &residents.default_retry), now, &mut exchange)).await;
    record.retries(exchange.tried().saturating_sub(1));
    if let Some(endpoint) = exchange.endpoint() {
        record.destination(endpoint.labels);
        record.upstream(endpoint.address);
        record.security(endpoint.transport.security());
    }
    if let Err(failure) = &outcome {
        record.failure(failure.reason);
    }
    let mut settled = if settle::wants_fallback(&outcome, chosen.route) {
        // Boxed: what few requests need would be part of every request's future.
        Box::pin(settle::fall_back(outcome, exchange, chosen.route, deadline, carrier(), record)).await?
    } else {
        Settled::answered(outcome?)
    };
    settled.edit(&chosen);
    settled.end_at(deadline);
    settled.upgrade(wanted, leaving, &residents.settings);
    Ok((settled, uploaded))
}

/// Answers CONNECT and carries what comes through it like a connection of its own.
async fn open_tunnel(request: &mut Parts, peer: SocketAddr, worker: &Worker) -> Result<Response<Body>, Failure> {
    worker.residents.overload.admit()?;
    let authority = request.uri.authority().ok_or(Reason::BadRequest)?;
    let port = authority
        .port_u16()
        .ok_or_else(|| Failure::new(Reason::BadRequest).because("CONNECT needs host:port (hint: add the port)"))?;
    let scope = Scope::Name { host: Arc::from(authority.host()), port };
    // A destination that cannot be had is said now, with a status; later there would only be a closed connection.
    find(worker, &scope, None).await?;
    let leaving = upgrade::take(request);
    let worker = worker.clone();
    host::spawn(async move {
        match leaving.stream().await {
            Ok(io) => {
                if let Err(failure) = tunnelled(io, scope, peer, worker).await {
                    debug!(%peer, %failure, "tunnel ended");
                }
            }
            Err(error) => debug!(%peer, %error, "CONNECT was not followed by anything"),
        }
    });
    Ok(Response::new(Body::empty()))
}

/// [`carry`] with its type written out: a tunnel may hold HTTP that opens a tunnel.
fn tunnelled(
    io: Box<dyn Stream>,
    scope: Scope,
    peer: SocketAddr,
    worker: Worker,
) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> {
    Box::pin(carry(Rewound::new(io), scope, peer, worker))
}

/// Where a request or connection goes: in the newest picture, or after asking the control plane, or outside the mesh.
async fn find(worker: &Worker, scope: &Scope, authority: Option<&Authority>) -> Result<Toward, Failure> {
    let residents = &worker.residents;
    let mesh = residents.mesh().ok_or(Reason::NotReady)?;
    if let Some(toward) = look(&mesh, scope, authority) {
        if let Some(service) = toward.service() {
            residents.demand.used(service);
        }
        return Ok(toward);
    }
    // Boxed: what is asked for once need not be part of every request's future.
    Box::pin(find_elsewhere(worker, scope, authority)).await
}

/// [`find`] for what is not in the picture.
async fn find_elsewhere(worker: &Worker, scope: &Scope, authority: Option<&Authority>) -> Result<Toward, Failure> {
    let residents = &worker.residents;
    let name = match (scope, authority) {
        (Scope::Address(address), _) => DemandName::Vip(address.ip()),
        (Scope::Name { host, .. }, _) => DemandName::Host(host.to_string()),
        (Scope::Proxy, Some(authority)) => DemandName::Host(authority.host().to_owned()),
        (Scope::Proxy, None) => return Err(Reason::UnknownDestination.into()),
    };
    let answer = residents.demand.want(name, residents.settings.timeouts.demand).await;
    worker.telemetry.demand(match answer {
        Answer::Found => telemetry::Demand::Found,
        Answer::Absent => telemetry::Demand::Absent,
        Answer::TimedOut => telemetry::Demand::TimedOut,
    });
    let mesh = residents.mesh().ok_or(Reason::NotReady)?;
    if answer == Answer::Found
        && let Some(toward) = look(&mesh, scope, authority)
    {
        return Ok(toward);
    }
    if mesh.view.node.outbound_mode == OutboundMode::RegistryOnly {
        return Err(Reason::UnknownDestination.into());
    }
    match (scope, authority) {
        (Scope::Address(address), _) if residents.is_own(*address) => Err(Reason::Loop.into()),
        (Scope::Address(address), _) => Ok(Toward::Outside(residents.outside.at(&[*address]))),
        (Scope::Name { host, port }, _) => Ok(Toward::Outside(residents.outside.by_name(host, *port).await?)),
        (Scope::Proxy, Some(authority)) => {
            let port = authority.port_u16().unwrap_or(80);
            Ok(Toward::Outside(residents.outside.by_name(authority.host(), port).await?))
        }
        (Scope::Proxy, None) => Err(Reason::UnknownDestination.into()),
    }
}

fn look(mesh: &crate::upstream::Mesh, scope: &Scope, authority: Option<&Authority>) -> Option<Toward> {
    match (scope, authority) {
        (Scope::Name { host, port }, _) => mesh.toward_name(host, *port),
        (Scope::Address(address), _) => mesh.toward_address(*address),
        (Scope::Proxy, Some(authority)) => mesh.toward_name(authority.host(), authority.port_u16().unwrap_or(80)),
        (Scope::Proxy, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_under_way_stays_small() {
        // Each request moves its future several times and allocates it on HTTP/2; rarely used branches in it cost every request.
        fn size_of_future<A, F: Future>(_: impl Fn(Request<Body>, Downstream, A, SocketAddr, Worker) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size_of_future(serve_request);
        assert!(bytes <= 4096, "{bytes} bytes (hint: box the branch that most requests do not take)");
    }
}
