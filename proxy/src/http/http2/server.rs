//! One downstream connection: requests in, each handled in a task of its own, responses out.
//!
//! Limits of time and number and the graceful end are described in `http/serve.rs`, which calls this. The graceful end is RFC 9113 §6.8's:
//! GOAWAY without a last stream and a ping; when that has come back, or a second has passed, GOAWAY with the last stream we saw.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use http_body::Body as _;
use smallvec::SmallVec;

use super::{
    body::{Incoming, Pump, Stopped},
    budget::Abuse,
    driver::{Arrived, Driver},
    fault::{Code, Ended, Refusal},
    frame::{self, MAX_WINDOW},
    head::RequestHead,
    link::{Link, Role},
    stall::{HURRY, Patience},
    tunnel::Tunnel,
};
use crate::{
    detect::Rewound,
    drain::DrainWatch,
    failure::Failure,
    host::{self, Instant, Stream},
    http::{
        Body, Downstream,
        http1::{Fault, server::date},
        interim::Interim,
        reply,
        seen::Seen,
        upgrade::{Agreement, Departure},
    },
};

pub use super::link::Rules;

/// How long and how often a connection may be used.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// Requests on one connection, at least 1; a tenth less at random, so that connections do not all end together.
    pub requests: u64,
    /// From the connection to its first byte.
    pub first_byte: Duration,
    /// From the first byte of the preface to its last.
    pub head: Duration,
    /// From the last response to the next request.
    pub idle: Duration,
    /// Of the connection; a tenth more or less at random.
    pub age: Duration,
    /// While the client reads nothing of what waits for it: on the whole connection after `silent`, on a stream as [`Patience`] says.
    pub stall: Patience,
}

/// A client whose connection is younger than this is not sent elsewhere when memory is short: it has just come from there, and a new handshake
/// costs more than another refusal.
const SETTLED: Duration = Duration::from_secs(10);
/// After a goodbye that nobody answers.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is read after the end, so that the far side sees our last words.
const DISCARD_BYTES: usize = 64 * 1024;
/// Payload of the ping that goes with a goodbye.
const FAREWELL: [u8; 8] = *b"farewell";

/// What is told of requests that no handler sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was reset.
    Malformed(&'static str),
    /// It was answered.
    Answered(Fault),
}

/// How far the end of the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    Not,
    /// GOAWAY without a last stream went out at this moment.
    Announced(Instant),
    /// No new stream is accepted.
    Final,
}

/// Serves requests until the connection ends. `refused` is told of those that no handler sees, `abused` of what the client wastes.
///
/// # Errors
/// [`Ended`], when the connection broke or the client broke HTTP/2.
pub async fn serve<S, H, F>(
    io: S,
    rules: Rules,
    life: Lifetime,
    mut drain: DrainWatch,
    handler: H,
    refused: impl Fn(Refused),
    abused: impl Fn(Abuse),
) -> Result<(), Ended>
where
    S: Stream + 'static,
    H: Fn(Request<Body>, Downstream) -> F + Send + Sync + 'static,
    F: Future<Output: Into<Box<Response<Body>>>> + Send + 'static,
{
    let handler = Arc::new(handler);
    let link = Link::new(Role::Server, rules);
    let mut driver = Driver::new(io, Arc::clone(&link));
    // Whatever ends this future ends the streams' tasks.
    let _end = EndsWith(Arc::clone(&link));
    let start = host::now();
    let oldest = start + life.age.mul_f64(0.9 + host::random_unit() / 5.0);
    let most_requests = life.requests.saturating_sub(host::random_below(life.requests / 10 + 1)).max(1);
    let mut told = drain.clone();
    let mut drained = pin!(drain.fired());
    let mut clock = Clock { start, oldest, preface_since: None, idle_since: None, stalled: None };
    let mut timer_at = start + life.first_byte;
    let mut timer = pin!(host::sleep(life.first_byte));
    let mut parting = Parting::Not;
    let mut served: u64 = 0;
    // Of these, those before memory was short.
    let mut seen_in_plenty: u64 = 0;
    let ended = poll_fn(|cx| {
        loop {
            let polled = driver.poll(cx);
            if !driver.arrived.is_empty() {
                served += begin(&link, &mut driver, &handler, &refused, life.stall);
            }
            if let Poll::Ready(ended) = polled {
                return Poll::Ready(ended);
            }
            let acknowledged = driver.pongs.drain(..).any(|pong| pong == FAREWELL);
            let relief = told.word().relief;
            let short = relief.idle;
            let (open, leave, goodbye, charged) = {
                let mut state = link.lock();
                state.set_hurry(short.is_some());
                (state.open, state.leave, state.goodbye, state.take_charged())
            };
            if let Some(charged) = charged {
                charged.tell(&abused);
            }
            if parting == Parting::Not
                && driver.has_begun()
                && (leave || goodbye || served >= most_requests || drained.as_mut().poll(cx).is_ready())
            {
                parting = Parting::Announced(host::now());
                announce(&link);
                continue;
            }
            if parting != Parting::Final && parting != Parting::Not && (acknowledged || leave || goodbye) {
                parting = Parting::Final;
                say_goodbye(&link, Code::NO_ERROR);
                continue;
            }
            if parting == Parting::Final && open == 0 && driver.is_flushed() {
                return Poll::Ready(Ended::Closed);
            }
            if parting == Parting::Not && !driver.has_begun() && drained.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ended::Closed);
            }
            if !relief.is_memory() {
                seen_in_plenty = served;
            } else if parting == Parting::Not && served > seen_in_plenty && host::now() >= start + SETTLED {
                // The client asks for more than there is memory for: as HTTP/1 closes behind a 503, so that the next request may go elsewhere.
                parting = Parting::Announced(host::now());
                announce(&link);
                continue;
            }
            let due = match clock.stall(&life, &driver, &link, short.is_some()) {
                Some(stall) if stall <= host::now() => return Poll::Ready(Ended::Stalled),
                Some(stall) => stall.min(clock.due(&life, &driver, open, parting, short)),
                None => clock.due(&life, &driver, open, parting, short),
            };
            if due < timer_at {
                timer_at = due;
                timer.set(host::sleep(due.saturating_duration_since(host::now())));
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = host::now();
            if now < due {
                // A busy connection touches the timer only when an old one has run out.
                timer_at = due;
                timer.set(host::sleep(due.saturating_duration_since(now)));
                continue;
            }
            if clock.stalled.is_some() && clock.due(&life, &driver, open, parting, short) > now {
                continue;
            }
            timer_at = now + FAR;
            timer.set(host::sleep(FAR));
            match parting {
                Parting::Not if !driver.has_begun() => return Poll::Ready(Ended::Closed),
                Parting::Not => {
                    driver.rest();
                    parting = Parting::Announced(now);
                    announce(&link);
                }
                Parting::Announced(_) => {
                    parting = Parting::Final;
                    say_goodbye(&link, Code::NO_ERROR);
                }
                Parting::Final => {}
            }
        }
    })
    .await;
    if let Some(charged) = link.lock().take_charged() {
        charged.tell(&abused);
    }
    if let Ended::Flood { deed, .. } = &ended {
        abused(Abuse::Closed(*deed));
    }
    let code = ended.code();
    if parting != Parting::Final && driver.has_begun() && !matches!(ended, Ended::Io(_)) {
        say_goodbye(&link, code);
    }
    let talked = driver.has_begun();
    link.lock().end(ended.clone());
    let mut time = pin!(host::sleep(PATIENCE));
    let mut most = DISCARD_BYTES;
    let mut shut = matches!(ended, Ended::Io(_));
    poll_fn(|cx| {
        if !shut {
            match driver.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return time.as_mut().poll(cx),
            }
        }
        if !talked {
            return Poll::Ready(());
        }
        // Closing over unread bytes would reset the connection, and our last words would be lost.
        match driver.poll_discard(cx, &mut most) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => time.as_mut().poll(cx),
        }
    })
    .await;
    match ended {
        Ended::Closed => Ok(()),
        // Clients may hang up on our goodbye before we have closed ourselves.
        Ended::Io(_) if parting != Parting::Not && link.lock().open == 0 => Ok(()),
        ended => Err(ended),
    }
}

/// Further away than any connection lives.
const FAR: Duration = Duration::from_secs(86_400 * 365);

/// Ends all streams with the connection.
struct EndsWith(Arc<Link>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.lock().end(Ended::Closed);
    }
}

/// What is known of time.
struct Clock {
    start: Instant,
    oldest: Instant,
    preface_since: Option<Instant>,
    idle_since: Option<Instant>,
    /// Since when nothing of what waits was written, and how much had been before.
    stalled: Option<(Instant, u64)>,
}

impl Clock {
    /// When something has to happen next.
    fn due<S: Stream>(
        &mut self,
        life: &Lifetime,
        driver: &Driver<S>,
        open: u32,
        parting: Parting,
        short: Option<Duration>,
    ) -> Instant {
        match parting {
            Parting::Announced(since) => return since + PATIENCE,
            Parting::Final => return self.start + FAR,
            Parting::Not => {}
        }
        if !driver.has_heard_anything() {
            return self.start + life.first_byte;
        }
        if !driver.has_begun() {
            return *self.preface_since.get_or_insert_with(host::now) + life.head;
        }
        if open > 0 {
            self.idle_since = None;
            return self.oldest;
        }
        let idle = short.map_or(life.idle, |short| short.min(life.idle));
        (*self.idle_since.get_or_insert_with(host::now) + idle).min(self.oldest)
    }

    /// When the client will have read nothing for too long; `None`: nothing waits for it.
    fn stall<S: Stream>(&mut self, life: &Lifetime, driver: &Driver<S>, link: &Link, short: bool) -> Option<Instant> {
        if life.stall.silent.is_zero() || driver.is_flushed() {
            self.stalled = None;
            return None;
        }
        let written = link.lock().written;
        let since = match self.stalled {
            Some((since, before)) if before == written => since,
            _ => host::now(),
        };
        self.stalled = Some((since, written));
        Some(since + if short { life.stall.silent / HURRY } else { life.stall.silent })
    }
}

fn announce(link: &Link) {
    link.lock().queue_frames(|out, _| {
        frame::write_goaway(&mut out.tail, MAX_WINDOW, Code::NO_ERROR);
        frame::write_ping(&mut out.tail, false, FAREWELL);
    });
}

fn say_goodbye(link: &Link, code: Code) {
    let mut state = link.lock();
    let last = state.last.min(state.accept_up_to);
    state.accept_up_to = last;
    state.queue_frames(|out, _| frame::write_goaway(&mut out.tail, last, code));
}

/// Starts the work on what has arrived; on how many requests.
fn begin<S, H, F>(
    link: &Arc<Link>,
    driver: &mut Driver<S>,
    handler: &Arc<H>,
    refused: &impl Fn(Refused),
    patience: Patience,
) -> u64
where
    S: Stream + 'static,
    H: Fn(Request<Body>, Downstream) -> F + Send + Sync + 'static,
    F: Future<Output: Into<Box<Response<Body>>>> + Send + 'static,
{
    let mut begun = 0;
    let mut at = None;
    for Arrived { stream, head } in std::mem::take(&mut driver.arrived) {
        if let Ok(RequestHead { content: Some(0), .. }) = &head
            && !link.has_ended(stream)
        {
            // Without content, but its end has not come: what comes instead could spoil it, and then it must not have been forwarded.
            driver.arrived.push_back(Arrived { stream, head });
            continue;
        }
        begun += 1;
        let head = match head {
            Ok(head) => head,
            Err(Refusal::Malformed(what)) => {
                refused(Refused::Malformed(what));
                continue;
            }
            Err(Refusal::Answer(fault)) => {
                refused(Refused::Answered(fault));
                let failure = Failure::new(fault.reason()).because(fault);
                let asked = Asked { method: Method::GET, leaving: None };
                let reply = Box::new(reply::reply(&failure, false));
                work(link, stream, respond(Arc::clone(link), stream, asked, reply, patience));
                continue;
            }
        };
        let at = *at.get_or_insert_with(host::now);
        let downstream =
            Downstream { at, seen: Seen::of(&head.parts.headers), interim: Interim::http2(Arc::clone(link), stream) };
        let Some((request, asked)) = request(link, stream, head.parts) else { continue };
        let mut guard = Guard { link: Some(Arc::clone(link)), stream };
        let handler = Arc::clone(handler);
        // Made where it stays, in the task: a future that is handed on is copied each time.
        work(link, stream, async move {
            let response = pin!(handler(request, downstream)).await;
            if let Some(link) = guard.link.take() {
                pin!(respond(link, stream, asked, response.into(), patience)).await;
            }
        });
    }
    begun
}

/// What the response has to know of its request.
struct Asked {
    method: Method,
    /// CONNECT: the stream, which is the tunnel's and not the request's.
    leaving: Option<(Agreement, Tunnel)>,
}

/// Resets the stream of a handler that panics.
struct Guard {
    link: Option<Arc<Link>>,
    stream: u32,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.give_up(self.stream, Code::INTERNAL_ERROR);
        }
    }
}

fn work(link: &Arc<Link>, stream: u32, work: impl Future<Output = ()> + Send + 'static) {
    // Boxed: from here to where it runs, the work is handed on a dozen times.
    let handle = host::spawn(Box::pin(work)).abort_handle();
    if let Some(stream) = link.lock().streams.get_mut(&stream)
        && stream.lost.is_none()
    {
        stream.work = Some(handle);
    } else {
        handle.abort();
    }
}

/// The content of a request; `None`: the stream is gone.
fn content(link: &Arc<Link>, id: u32) -> Option<Body> {
    let mut state = link.lock();
    let stream = state.streams.get_mut(&id).filter(|stream| stream.lost.is_none())?;
    let length = stream.incoming.length();
    if stream.incoming.ended
        && stream.incoming.trailers.is_none()
        && let Some(whole) = stream.incoming.pieces.take_only()
    {
        stream.incoming.wanted = false;
        state.take(id, whole.len());
        return Some(Body::full(whole));
    }
    drop(state);
    Some(Incoming::body(Arc::clone(link), id, length))
}

/// The request for the handler, and what its response needs; `None`: the stream is gone.
fn request(link: &Arc<Link>, stream: u32, mut parts: request::Parts) -> Option<(Request<Body>, Asked)> {
    let method = parts.method.clone();
    if method != Method::CONNECT {
        let body = content(link, stream)?;
        return Some((Request::from_parts(parts, body), Asked { method, leaving: None }));
    }
    let (departure, agreement) = Departure::new();
    parts.extensions.insert(departure);
    let leaving = Some((agreement, Tunnel::new(Arc::clone(link), stream)));
    Some((Request::from_parts(parts, Body::empty()), Asked { method, leaving }))
}

/// Sends a response to its end.
async fn respond(link: Arc<Link>, stream: u32, asked: Asked, response: Box<Response<Body>>, patience: Patience) {
    let (parts, body) = response.into_parts();
    let Asked { method, leaving } = asked;
    let _refused = match leaving {
        Some((agreement, tunnel)) if parts.status.is_success() => {
            if link.send_response(stream, parts.status, &parts.headers, &[], None, false) {
                agreement.part(Rewound::new(Box::new(tunnel) as Box<dyn Stream>));
            }
            return;
        }
        // Kept until the response is out: without it the stream would be reset.
        leaving => leaving,
    };
    let bodiless = method == Method::HEAD
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || parts.status.is_informational();
    let length = if bodiless { announced(parts.status, &parts.headers) } else { body.size_hint().exact() };
    let end = bodiless || (length == Some(0)) || body.is_end_stream();
    let mut own = SmallVec::<[_; 1]>::new();
    if !parts.headers.contains_key(header::DATE) {
        // RFC 9110 §6.6.1: a proxy adds the date when it forwards a response without one.
        own.push((header::DATE, date()));
    }
    if !link.send_response(stream, parts.status, &parts.headers, &own, length, end) || end {
        return;
    }
    // Headers live on in nobody: their memory is free before a long body.
    drop(parts);
    let mut pump = Pump::new(link, stream, body, length, Code::INTERNAL_ERROR).stalling_at_most(patience);
    match poll_fn(|cx| pump.poll(cx)).await {
        Ok(()) | Err(Stopped::Broke { .. } | Stopped::Lost | Stopped::Stalled) => {}
    }
}

/// The length that a response without content speaks of (RFC 9110 §8.6).
fn announced(status: StatusCode, headers: &HeaderMap) -> Option<u64> {
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        return None;
    }
    headers.get(header::CONTENT_LENGTH).and_then(|value| crate::http::http1::framing::decimal(value.as_bytes()))
}

#[cfg(test)]
mod tests;
