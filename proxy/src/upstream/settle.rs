//! From an answered try to the response that goes downstream, and to the end of its body.
//!
//! A request's record, its place in the limits and its connection are held by the response body and settled
//! exactly once: at its clean end, when it breaks, or when the client goes away.

use std::{
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, UPGRADE},
};
use http_body::Body as _;
use tracing::debug;

use super::{
    backend::RouteBackend,
    dial::Carrier,
    exchange::{Answer, Exchange, Head, Holds, Speaks},
    rule::Forward,
};
use crate::{
    accept::socket::OverTcp,
    failure::{Failure, Reason, Sent},
    host::{self, Stream},
    http::{
        Body,
        body::{BodyError, Observer, Pace},
        grpc, headers,
        http1::Fault,
        replay::Replay,
        reply,
        seen::{Field, Seen},
        upgrade::{self, Leaving, Upgrade},
    },
    relay::{Counts, RelayError, RelayLimits, relay_sockets},
    resilience::{
        call::call,
        deadline::Deadline,
        fallback::{FallbackKind, FallbackPolicy},
        limits::Held,
        retry::RetryPolicy,
    },
    settings::Settings,
    telemetry::{self, ConnectionRecord, RequestRecord, WorkerTelemetry},
};

/// Names the breaker whose fallback answered.
pub const FALLBACK_HEADER: HeaderName = HeaderName::from_static("x-outrigger-fallback");

/// How often long connections report their bytes.
const REPORT: Duration = Duration::from_secs(5);

/// A response on its way downstream.
pub struct Settled {
    response: Box<Response<Body>>,
    /// Fields that it came with.
    seen: Seen,
    grpc_status: Option<u32>,
    holds: Option<Box<Holds>>,
    fallback: Option<Held>,
}

/// What the request body has carried, read when the record is written.
#[derive(Debug, Default)]
pub struct Uploaded(AtomicU64);

impl Settled {
    /// A response of our own: a redirect, a static reply.
    pub fn own(response: Response<Body>) -> Self {
        let grpc_status = grpc::status(response.headers());
        Self { response: Box::new(response), seen: Seen::default(), grpc_status, holds: None, fallback: None }
    }

    /// The response of an answered try.
    pub fn answered(answer: Answer) -> Self {
        let Answer { response, seen, grpc_status, holds, .. } = answer;
        Self { response, seen, grpc_status, holds: Some(holds), fallback: None }
    }

    /// Removes the word by which sidecars tell each other of failures: whatever an application says under that name is not passed on.
    pub fn remove_error(&mut self) {
        if self.seen.has(Field::Deceptive) {
            self.response.headers_mut().remove(reply::ERROR);
        }
    }

    /// Applies what the rule changes, after what belongs to the upstream connection is gone.
    pub fn edit(&mut self, forward: &Forward<'_>) {
        if self.holds.is_some() {
            headers::strip_hop_by_hop(self.response.headers_mut(), self.seen, None);
        }
        forward.edit_response(&mut self.response);
    }

    /// Ends the response body at the deadline of the request.
    pub fn end_at(&mut self, deadline: Deadline) {
        if let Some(at) = deadline.at
            && self.holds.is_some()
            && !self.response.body().is_whole()
        {
            self.response.body_mut().set_deadline(at);
        }
    }

    /// Joins both sides when the upstream agreed to leave HTTP; the connection is then held by the join.
    pub fn upgrade(&mut self, wanted: Option<Upgrade>, downstream: Option<Leaving>, settings: &Settings) {
        let (Some(wanted), Some(downstream)) = (wanted, downstream) else { return };
        let agreed = match &wanted {
            Upgrade::Http1 { .. } | Upgrade::ExtendedConnect { .. } => {
                self.response.status() == StatusCode::SWITCHING_PROTOCOLS
            }
            Upgrade::Connect => self.response.status().is_success(),
        };
        if !agreed {
            return;
        }
        let limits = RelayLimits {
            buffer_bytes: settings.limits.connection_buffer_bytes,
            idle: settings.timeouts.opaque_idle,
            half_close: settings.timeouts.half_close,
        };
        let mut holds = self.holds.take();
        let Some(upstream) = holds.as_mut().and_then(|holds| holds.part()) else { return };
        host::spawn(async move {
            let counts = Counts::default();
            if let Err(error) = upgrade::join(downstream, upstream, limits, &counts).await {
                debug!(%error, "upgraded connection ended");
            }
            drop(holds);
        });
        match wanted {
            Upgrade::Http1 { protocol } => {
                let headers = self.response.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                if let Ok(protocol) = HeaderValue::from_str(&protocol) {
                    headers.insert(UPGRADE, protocol);
                }
            }
            Upgrade::ExtendedConnect { .. } => {
                self.response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
                *self.response.status_mut() = StatusCode::OK;
            }
            Upgrade::Connect => {}
        }
        *self.response.body_mut() = Body::empty();
    }

    /// The response with its record; from here on the body settles everything.
    pub fn attach(self, mut record: RequestRecord, uploaded: Option<Arc<Uploaded>>) -> Box<Response<Body>> {
        let mut response = self.response;
        record.response(response.status());
        if let Some(status) = self.grpc_status {
            record.grpc_status(status);
        }
        let end = End { record: Some(record), holds: self.holds, uploaded, _fallback: self.fallback, bytes: 0 };
        response.body_mut().observe(end);
        response
    }
}

/// A response of our own, with its record.
pub fn own(response: Response<Body>, record: RequestRecord) -> Box<Response<Body>> {
    Settled::own(response).attach(record, None)
}

/// Records what broke a rule before it was a request; the codec has answered it.
pub fn refused(fault: Fault, mut record: RequestRecord) {
    record.response(fault.status());
    record.failure(fault.reason());
    record.finish(host::now());
}

/// A response of our own that tells of a failure, with its record.
pub fn failed(response: Response<Body>, failure: &Failure, mut record: RequestRecord) -> Box<Response<Body>> {
    record.failure(failure.reason);
    own(response, record)
}

/// The request body on its way up: counted, kept for another try up to the limit, and held to a least pace where it is
/// a message that ends. A gRPC call or another stream over HTTP/2 may be silent for as long as it likes.
pub fn upload(head: &Head, body: Body, settings: &Settings) -> (Replay, Option<Arc<Uploaded>>) {
    if body.is_end_stream() {
        return (Replay::new(Body::empty(), 0), None);
    }
    let uploaded = Arc::new(Uploaded::default());
    let is_message = match head.speaks {
        Speaks::Http1 => !head.grpc,
        Speaks::Http2 => body.size_hint().exact().is_some(),
        Speaks::Upgrade(_) => false,
    };
    let body = if is_message { body.with_idle_limit(Pace::new(&settings.timeouts)) } else { body };
    let body = body.observed(CountUpload(Arc::clone(&uploaded)));
    (Replay::new(body, settings.limits.replay_bytes), Some(uploaded))
}

/// Whether the tries failed and there is a fallback.
pub fn wants_fallback(outcome: &Result<Answer, Failure>, route: &RouteBackend) -> bool {
    let failed = match outcome {
        Ok(answer) => answer.failed,
        Err(failure) => !matches!(failure.reason, Reason::BadRequest | Reason::DownstreamBody),
    };
    failed && route.breaker.is_some() && route.fallback.is_some()
}

/// What the breaker's fallback says, or the outcome of the tries.
///
/// # Errors
/// The original failure, when there is no fallback or no room for one more.
pub async fn fall_back(
    outcome: Result<Answer, Failure>,
    exchange: Exchange<'_>,
    route: &RouteBackend,
    deadline: Deadline,
    carrier: Carrier<'_>,
    record: &mut RequestRecord,
) -> Result<Settled, Failure> {
    let (Some(breaker), Some(fallback)) = (&route.breaker, &route.fallback) else {
        return outcome.map(Settled::answered);
    };
    let Some(slot) = breaker.begin_fallback(fallback.policy.max_concurrent) else {
        return outcome.map(Settled::answered);
    };
    let instead = match &fallback.policy.kind {
        FallbackKind::Reply { .. } => static_reply(&fallback.policy, carrier.telemetry),
        FallbackKind::Backend(_) => {
            // A request that an application may have seen goes elsewhere only if it may be repeated.
            let repeatable =
                exchange.may_go_elsewhere(outcome.as_ref().err().map_or(Sent::Maybe, |failure| failure.sent));
            let (Some(backend), Some((head, body))) =
                (&fallback.backend, repeatable.then(|| exchange.into_parts()).flatten())
            else {
                return outcome.map(Settled::answered);
            };
            let other = RouteBackend { backend: Arc::clone(backend), breaker: None, fallback: None };
            let now = host::now();
            let mut exchange = Exchange::new(&other, carrier, head, body, now);
            let never = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
            let straight = Forward::straight(&other);
            match Box::pin(call(straight.plan(deadline, &never), now, &mut exchange)).await {
                Ok(answer) => {
                    carrier.telemetry.fallback_answered(telemetry::Fallback::Backend);
                    record.destination(answer.holds.endpoint.labels);
                    record.upstream(answer.holds.endpoint.address);
                    Settled::answered(answer)
                }
                // The first failure says more than the fallback's.
                Err(failure) => {
                    debug!(%failure, breaker = %breaker.name, "fallback backend failed");
                    return outcome.map(Settled::answered);
                }
            }
        }
    };
    let mut settled = instead;
    settled.fallback = Some(slot);
    if let Ok(name) = HeaderValue::from_str(&breaker.name) {
        settled.response.headers_mut().insert(FALLBACK_HEADER, name);
    }
    Ok(settled)
}

fn static_reply(policy: &FallbackPolicy, telemetry: &Arc<WorkerTelemetry>) -> Settled {
    let FallbackKind::Reply { status, content_type, body } = &policy.kind else {
        return Settled::own(Response::new(Body::empty()));
    };
    telemetry.fallback_answered(telemetry::Fallback::Static);
    let mut response = Response::new(Body::full(body.clone()));
    *response.status_mut() = *status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    Settled::own(response)
}

/// Carries opaque bytes and tells the record about them every now and then, so that long connections show in metrics.
///
/// # Errors
/// The relay's.
pub async fn relayed<A: Stream + OverTcp, B: Stream + OverTcp>(
    a: A,
    b: B,
    limits: RelayLimits,
    counts: &Counts,
    record: &mut ConnectionRecord,
) -> Result<(), RelayError> {
    let relay = relay_sockets(a, b, limits, counts);
    tokio::pin!(relay);
    let (mut sent, mut received) = (0, 0);
    loop {
        let outcome = tokio::select! {
            biased;
            outcome = &mut relay => Some(outcome),
            () = host::sleep(REPORT) => None,
        };
        let (to_b, to_a) = (counts.a_to_b.load(Ordering::Relaxed), counts.b_to_a.load(Ordering::Relaxed));
        record.transferred(to_a - sent, to_b - received);
        (sent, received) = (to_a, to_b);
        if let Some(outcome) = outcome {
            return outcome;
        }
    }
}

struct CountUpload(Arc<Uploaded>);

impl Observer for CountUpload {
    fn data(&mut self, bytes: usize) {
        self.0.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Settles everything when the response body is over.
struct End {
    record: Option<RequestRecord>,
    holds: Option<Box<Holds>>,
    uploaded: Option<Arc<Uploaded>>,
    _fallback: Option<Held>,
    bytes: u64,
}

impl Observer for End {
    fn data(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if let (Some(status), Some(record)) = (grpc::status(trailers), &mut self.record) {
            record.grpc_status(status);
        }
    }

    fn end(&mut self, result: Result<(), &BodyError>) {
        let now = host::now();
        if let Some(mut record) = self.record.take() {
            record.response_bytes(self.bytes);
            if let Some(uploaded) = &self.uploaded {
                record.request_bytes(uploaded.0.load(Ordering::Relaxed));
            }
            match result {
                Ok(()) => {}
                Err(BodyError::Cancelled) => record.failure(Reason::DownstreamClosed),
                Err(_) => record.failure(Reason::UpstreamResetBody),
            }
            record.finish(now);
        }
        if let Some(holds) = self.holds.take() {
            holds.finish(result.is_ok(), now);
        }
    }
}
