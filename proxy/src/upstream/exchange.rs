//! One request and the tries it takes to have it answered.
//!
//! [`Exchange`] is what the attempt loop drives: each try asks the breaker, takes a unit of the limits, picks an
//! endpoint, leases a connection, writes the request anew from typed parts and waits for the head. [`Holds`] is
//! what an answered try keeps until its response body is over.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{SEC_WEBSOCKET_KEY, SET_COOKIE},
    uri::{Authority, PathAndQuery},
};
use smallvec::SmallVec;

use super::{
    backend::{Backend, RouteBackend},
    breakers::Ticket,
    dial::{Carrier, Transport},
    endpoint::Endpoint,
    http1::Http1,
    http2::Stream,
    lease::{Http1Lease, Lease, Need},
};
use crate::{
    balance::load::InFlight,
    config::view::Protocol,
    failure::{Failure, Reason, Sent},
    host,
    http::{
        Body, grpc, headers,
        http1::{
            Parted,
            write::{Outgoing, Target},
        },
        http2::{RequestLine, client},
        interim::Interim,
        replay::Replay,
        reply,
        seen::{Field, Seen},
        upgrade::Upgrade,
    },
    resilience::{
        breaker,
        call::{Answered, Attempts},
        deadline::Deadline,
        ejection::Fault,
        limits::{Held, Slot},
        retry::Repeatable,
    },
    telemetry::{EjectionEvent, Overflow, RetryRefusal},
};

/// Connections that may say goodbye to one request before it counts as a failed try.
const RENEWALS: u32 = 3;

/// Everything of a request but its body, as it goes upstream.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: Method,
    pub path: PathAndQuery,
    pub authority: Authority,
    /// End-to-end headers only; Host stands in `authority`.
    pub headers: HeaderMap,
    /// A call of gRPC.
    pub grpc: bool,
    pub speaks: Speaks,
    /// Where interim responses go; `None`: nowhere.
    pub interim: Option<Interim>,
}

impl Head {
    /// A port that is declared as plain HTTP gets HTTP/1.1 whatever the client speaks; calls of gRPC are HTTP/2 everywhere. On ports
    /// that declare nothing the application is spoken to as the client does.
    pub fn speak_as_declared(&mut self, protocol: Protocol) {
        if self.speaks == Speaks::Http2 && matches!(protocol, Protocol::Http | Protocol::Http1) && !self.grpc {
            self.speaks = Speaks::Http1;
        }
    }
}

/// What the application speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Http2,
    /// HTTP/1 that wants to become something else.
    Upgrade(Upgrade),
}

/// One request under way.
pub struct Exchange<'a> {
    route: &'a RouteBackend,
    carrier: Carrier<'a>,
    head: Head,
    body: Replay,
    /// The endpoint of the last try, with its place among the backend's.
    last: Option<(usize, Arc<Endpoint>)>,
    tried: u32,
    /// Of consistent hashing; the same for every try.
    key: Option<u64>,
    /// Set-Cookie field of a key that had to be made.
    cookie: Option<Box<HeaderValue>>,
}

/// A try that was answered.
#[derive(Debug)]
pub struct Answer {
    /// Boxed, as `holds`: it is handed on a dozen times.
    pub response: Box<Response<Body>>,
    /// Fields that the response came with.
    pub seen: Seen,
    /// gRPC's status, where it stands in the head.
    pub grpc_status: Option<u32>,
    /// When the head had come.
    pub at: host::Instant,
    /// The breaker counts it as a failure.
    pub failed: bool,
    pub holds: Box<Holds>,
}

/// What an answered try keeps until its response body is over.
#[derive(Debug)]
pub struct Holds {
    pub endpoint: Arc<Endpoint>,
    connection: Connection,
    _in_flight: InFlight,
    _request: Held,
}

#[derive(Debug)]
enum Connection {
    Http1(Http1Lease),
    /// Held for its place among the streams of the connection.
    Http2(#[allow(dead_code, reason = "counts while it is held")] Stream),
}

impl<'a> Exchange<'a> {
    pub fn new(route: &'a RouteBackend, carrier: Carrier<'a>, head: Head, body: Replay, now: host::Instant) -> Self {
        route.backend.state.budget.lock().deposit(now);
        let affinity = route.backend.affinity.as_ref();
        let (key, cookie) =
            affinity.map_or((None, None), |affinity| affinity.of_request(&head, carrier.source.map(SocketAddr::ip)));
        Self { route, carrier, head, body, last: None, tried: 0, key, cookie }
    }

    /// The endpoint of the last try, if one was picked.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.last.as_ref().map(|(_, endpoint)| endpoint)
    }

    /// Tries so far.
    pub fn tried(&self) -> u32 {
        self.tried
    }

    /// Whether another backend may get it: nothing was sent, or it may be repeated.
    pub fn may_go_elsewhere(&self, sent: Sent) -> bool {
        sent == Sent::Nothing || self.repeatable().idempotent
    }

    /// Gives the request up for another backend: head and body, if the body can still be sent.
    pub fn into_parts(mut self) -> Option<(Head, Replay)> {
        self.body.is_replayable().then(|| (self.head, std::mem::replace(&mut self.body, Replay::new(Body::empty(), 0))))
    }

    async fn send(
        &mut self,
        endpoint: &Arc<Endpoint>,
        lease: Lease,
    ) -> Result<(Box<Response<Body>>, Connection), Failure> {
        match lease {
            Lease::Http2(mut stream) => {
                let multiplexed = matches!(endpoint.transport, Transport::Mesh { multiplex: true, .. });
                let mut renewed = 0;
                loop {
                    let sent = pin!(self.http2_send(&stream, multiplexed)?).await;
                    let failure = match sent {
                        Ok(response) => return Ok((response, Connection::Http2(stream))),
                        Err(failure) => failure,
                    };
                    // RFC 9113 §6.8: a connection that says goodbye did not look at what came after. The next one takes it;
                    // that is no try, so neither policy nor budget is asked.
                    if failure.sent != Sent::Nothing || !stream.is_retired() || renewed == RENEWALS {
                        return Err(failure);
                    }
                    renewed += 1;
                    let need = if self.head.speaks == Speaks::Http1 { Need::Http1 } else { Need::Http2 };
                    let again = self.route.backend.lease(endpoint, need, self.carrier, host::now());
                    stream = match Box::pin(again).await? {
                        Lease::Http2(stream) => stream,
                        Lease::Http1(_) => return Err(failure),
                    };
                }
            }
            Lease::Http1(mut lease) => {
                let introduce = matches!(endpoint.transport, Transport::Mesh { multiplex: true, .. });
                let connection = lease.connection().ok_or(Reason::Internal)?;
                let sent = pin!(self.http1_send(connection, introduce)?).await;
                let failure = match sent {
                    Ok(response) => return Ok((response, Connection::Http1(lease))),
                    Err(failure) => failure,
                };
                // A pooled connection that the far side closed in the same moment: nothing was processed if nothing arrived.
                if !lease.reused || failure.sent != Sent::Nothing {
                    return Err(failure);
                }
                drop(lease);
                let mut fresh = Box::pin(self.route.backend.open_http1(endpoint, self.carrier)).await?;
                let connection = fresh.connection().ok_or(Reason::Internal)?;
                let response = self.http1_send(connection, introduce)?.await?;
                Ok((response, Connection::Http1(fresh)))
            }
        }
    }

    fn body(&mut self) -> Result<Body, Failure> {
        self.body.body().ok_or_else(|| Failure::new(Reason::DownstreamBody).sent(Sent::Maybe))
    }

    fn http1_send(
        &mut self,
        connection: &mut Http1,
        introduce: bool,
    ) -> Result<impl Future<Output = Result<Box<Response<Body>>, Failure>> + Send + use<>, Failure> {
        let body = self.body()?;
        let head = &self.head;
        let mut own: SmallVec<[(HeaderName, HeaderValue); 2]> = SmallVec::new();
        own.push((headers::ATTEMPT_COUNT, headers::attempt_count(self.tried)));
        if introduce && connection.requests == 0 {
            // The far side remembers it for the connection.
            own.push((headers::PEER, self.carrier.dialer.introduction.clone()));
        }
        let mut method = &head.method;
        let mut target = Target::Origin(&head.path);
        let mut upgrade = None;
        match &head.speaks {
            Speaks::Upgrade(leaving @ (Upgrade::Http1 { protocol } | Upgrade::ExtendedConnect { protocol })) => {
                if matches!(leaving, Upgrade::ExtendedConnect { .. }) {
                    // RFC 8441 §5: over HTTP/2 there is no key; HTTP/1.1 wants one, of 16 random bytes.
                    method = &Method::GET;
                    let key = BASE64.encode(host::random_u128().to_be_bytes());
                    let key = HeaderValue::try_from(key).unwrap_or(HeaderValue::from_static(""));
                    own.push((SEC_WEBSOCKET_KEY, key));
                }
                let protocol =
                    HeaderValue::from_str(protocol).map_err(|error| Failure::new(Reason::BadRequest).because(error))?;
                upgrade = Some(protocol);
            }
            Speaks::Upgrade(Upgrade::Connect) => target = Target::Authority(&head.authority),
            Speaks::Http1 | Speaks::Http2 => {}
        }
        let outgoing = Outgoing {
            method,
            target,
            host: &head.authority,
            headers: &head.headers,
            own: &own,
            upgrade: upgrade.as_ref(),
        };
        Ok(connection.send(&outgoing, body, head.interim.clone()))
    }

    fn http2_send(
        &mut self,
        stream: &Stream,
        multiplexed: bool,
    ) -> Result<impl Future<Output = Result<Box<Response<Body>>, Failure>> + Send + use<>, Failure> {
        let body = self.body()?;
        let head = &self.head;
        let mut own: SmallVec<[(HeaderName, HeaderValue); 3]> = SmallVec::new();
        own.push((headers::ATTEMPT_COUNT, headers::attempt_count(self.tried)));
        if multiplexed {
            // HPACK makes an unchanging field one byte from the second request on.
            own.push((headers::PEER, self.carrier.dialer.introduction.clone()));
            if head.speaks == Speaks::Http1 {
                own.push((headers::ORIG_PROTO, headers::HTTP_11));
            }
        }
        let line = RequestLine { method: &head.method, authority: &head.authority, path: head.path.as_str() };
        let outgoing = client::Outgoing { line, headers: &head.headers, own: &own };
        Ok(stream.send(&outgoing, body, head.interim.clone()))
    }

    /// One try, after breaker and limits have let it pass.
    async fn reach(
        &mut self,
        endpoint: &Arc<Endpoint>,
        limit: Deadline,
        now: host::Instant,
    ) -> Result<(Box<Response<Body>>, Connection), Failure> {
        let need = match self.head.speaks {
            Speaks::Http1 => Need::Http1,
            Speaks::Http2 => Need::Http2,
            Speaks::Upgrade(_) => Need::Upgrade,
        };
        let began = AtomicBool::new(false);
        let mut reached = pin!(async {
            let lease = pin!(self.route.backend.lease(endpoint, need, self.carrier, now)).await?;
            began.store(true, Ordering::Relaxed);
            let (response, connection) = pin!(self.send(endpoint, lease)).await?;
            refused_by_sidecar(endpoint, &response)?;
            Ok((response, connection))
        });
        let Some(at) = limit.at else { return reached.await };
        match tokio::time::timeout_at(at, reached.as_mut()).await {
            Ok(reached) => reached,
            Err(_) => Err(Failure::new(Reason::TryTimeout).sent(if began.load(Ordering::Relaxed) {
                Sent::Maybe
            } else {
                Sent::Nothing
            })),
        }
    }
}

impl Attempts for Exchange<'_> {
    type Answer = Answer;
    type Hold = Held;

    async fn attempt(&mut self, tried: u32, started: host::Instant, limit: Deadline) -> Result<Answer, Failure> {
        self.tried = tried;
        let route = self.route;
        let ticket = match &route.breaker {
            Some(breaker) => Some(breaker.ask(started).ok_or(Reason::BreakerOpen)?),
            None => None,
        };
        let backend = &route.backend;
        let request = match backend.hold(Slot::Request) {
            Ok(request) => request,
            Err(reason) => {
                self.carrier.telemetry.limit_overflowed(Overflow::Requests);
                return Err(reason.into());
            }
        };
        let avoid = self.last.as_ref().map(|(index, _)| *index);
        let (index, endpoint) = match backend.pick(avoid, self.key) {
            Ok((index, endpoint)) => (index, Arc::clone(endpoint)),
            Err(reason) => {
                report(ticket, breaker::Result::Failure, started, host::now());
                return Err(reason.into());
            }
        };
        self.last = Some((index, Arc::clone(&endpoint)));
        let mut in_flight = endpoint.state.load.start();
        let reached = pin!(self.reach(&endpoint, limit, started)).await;
        match reached {
            Ok((mut response, connection)) => {
                if let Some(cookie) = &self.cookie {
                    response.headers_mut().append(SET_COOKIE, HeaderValue::clone(cookie));
                }
                let now = host::now();
                in_flight.answered(now.saturating_duration_since(started), now);
                let seen = Seen::of(response.headers());
                let grpc_status = if seen.has(Field::GrpcStatus) { grpc::status(response.headers()) } else { None };
                let (fault, result) = judge(response.status(), grpc_status);
                self.note(backend, &endpoint, fault);
                let failed = result == breaker::Result::Failure;
                report(ticket, result, started, now);
                let holds = Box::new(Holds { endpoint, connection, _in_flight: in_flight, _request: request });
                Ok(Answer { response, seen, grpc_status, at: now, failed, holds })
            }
            Err(failure) => {
                if failure.reason.is_upstream_fault() {
                    let now = host::now();
                    in_flight.failed(now);
                    self.note(backend, &endpoint, Fault::Local);
                    report(ticket, breaker::Result::Failure, started, now);
                }
                Err(failure)
            }
        }
    }

    fn repeatable(&self) -> Repeatable {
        if matches!(self.head.speaks, Speaks::Upgrade(_)) {
            return Repeatable { idempotent: false, replayable: true };
        }
        Repeatable::of(&self.head.method, &self.head.headers, self.body.is_replayable())
    }

    fn take_retry(&mut self) -> Result<Held, RetryRefusal> {
        let backend = &self.route.backend;
        let held = backend.hold(Slot::Retry).map_err(|_| {
            self.carrier.telemetry.limit_overflowed(Overflow::Retries);
            RetryRefusal::LimitReached
        })?;
        if !backend.state.budget.lock().withdraw(host::now()) {
            return Err(RetryRefusal::BudgetExhausted);
        }
        Ok(held)
    }

    fn retry_refused(&mut self, why: RetryRefusal) {
        self.carrier.telemetry.retry_refused(why);
    }
}

impl Exchange<'_> {
    fn note(&self, backend: &Backend, endpoint: &Endpoint, fault: Fault) {
        if backend.note(endpoint, fault) {
            self.carrier.telemetry.ejection(EjectionEvent::Ejected);
        }
    }
}

impl Answered for Answer {
    type Body = Body;

    fn head(&self) -> &Response<Body> {
        &self.response
    }

    fn grpc_status(&self) -> Option<u32> {
        self.grpc_status
    }

    fn at(&self) -> host::Instant {
        self.at
    }
}

impl Holds {
    /// The stream to the endpoint, after a response that agreed to leave HTTP.
    pub fn part(&mut self) -> Option<Parted> {
        match &mut self.connection {
            Connection::Http1(lease) => lease.connection()?.part(),
            Connection::Http2(_) => None,
        }
    }

    /// The response is over. `clean`: to its last byte, so that the connection can carry another request.
    pub fn finish(self, clean: bool, now: host::Instant) {
        if let Connection::Http1(lease) = self.connection
            && clean
        {
            lease.put_back(now);
        }
    }
}

fn report(ticket: Option<Ticket>, result: breaker::Result, started: host::Instant, now: host::Instant) {
    if let Some(ticket) = ticket {
        ticket.report(result, now.saturating_duration_since(started), now);
    }
}

/// What a response head means for ejection and breaker.
fn judge(status: StatusCode, grpc_status: Option<u32>) -> (Fault, breaker::Result) {
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            (Fault::GatewayError, breaker::Result::Failure)
        }
        status if status.is_server_error() => (Fault::ServerError, breaker::Result::Failure),
        // Trailers-only gRPC: the status stands in the head. Codes of the server's own trouble.
        _ => match grpc_status {
            Some(4 | 13 | 14 | 15) => (Fault::ServerError, breaker::Result::Failure),
            _ => (Fault::None, breaker::Result::Success),
        },
    }
}

/// The sidecar at the far side says that its application never saw the request.
///
/// Only believed from one of us, over mutual TLS: that sidecar removes the header from what its application sends.
fn refused_by_sidecar(endpoint: &Endpoint, response: &Response<Body>) -> Result<(), Failure> {
    if !matches!(endpoint.transport, Transport::Mesh { multiplex: true, .. }) {
        return Ok(());
    }
    let Some(word) = response.headers().get(reply::ERROR) else { return Ok(()) };
    let untouched =
        [Reason::UpstreamConnectRefused, Reason::UpstreamConnectTimeout, Reason::NotReady, Reason::Draining];
    match untouched.into_iter().find(|reason| reason.word().as_bytes() == word.as_bytes()) {
        Some(reason) => Err(Failure::new(Reason::UpstreamConnectRefused)
            .because(format!("the sidecar of the endpoint says {}", reason.word()))),
        None => Ok(()),
    }
}
