//! One downstream connection: requests in, one after the other, responses out.
//!
//! The connection is a single future that also runs the handler. Limits of time and number, the graceful end and what becomes of a
//! request nobody waits for are described in `http/serve.rs`, which calls this.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as _, Frame};
use parking_lot::Mutex;

use super::{
    chunked::ChunkLimits,
    fault::{Broken, Fault},
    framing::{self, Framing},
    head::{self, HeadLimits, RequestHead, Scan},
    incoming::{Content, Incoming, Source},
    wire::{FIRST_READ_BYTES, Parted, Wire},
    write::{self, Length, Persistence},
};
use crate::{
    drain::DrainWatch,
    failure::Failure,
    host::{self, Instant, Stream},
    http::{
        Body, BodyError, Downstream,
        interim::{Announce, Interim},
        reply,
        seen::Field,
        upgrade::{Agreement, Departure, has_token},
    },
};

/// What a connection is held to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub head: HeadLimits,
    pub chunks: ChunkLimits,
    /// Requests on one connection, at least 1; a tenth less at random, so that connections do not all end together.
    pub requests: u64,
    /// From the connection to its first byte.
    pub first_byte: Duration,
    /// From the first byte of a head to its last.
    pub head_time: Duration,
    /// From a response to the next request.
    pub idle: Duration,
    /// While a response waits to be written, from the last byte the client took; zero: no limit.
    pub write_stall: Duration,
    /// Of the connection; a tenth more or less at random.
    pub age: Duration,
}

/// What serves a connection and what reads its bodies have in common.
struct Link<S>(Mutex<State<S>>);

struct State<S> {
    wire: Wire<S>,
    content: Content,
    limits: ChunkLimits,
    write_stall: Duration,
    /// Counts requests; a body of an earlier one reads nothing any more.
    number: u64,
    /// The client waits to be asked for the content.
    continue_due: bool,
    /// An HTTP/1.0 client knows no interim responses.
    interim: bool,
    /// The client has said that this is its last request: ending its half then only repeats that.
    last_request: bool,
    /// Who serves the connection, while somebody else reads a body.
    server: Option<Waker>,
}

/// What the wait for a request ended with.
enum Arrival {
    Head(Bytes),
    Over,
    TooSlow,
}

/// Content that nobody wants is read for so long ...
const DISCARD_TIME: Duration = Duration::from_secs(1);
/// ... and so far, before the connection is closed instead.
const DISCARD_BYTES: u64 = 64 * 1024;

/// Serves requests until the connection ends.
///
/// # Errors
/// [`Broken`], when it ended in the middle of something; [`Broken::Fault`] only for a head that broke a rule: the client has been told,
/// and no handler has seen a request.
pub async fn serve<S, H, F>(io: S, rules: &Rules, mut drain: DrainWatch, handler: H) -> Result<(), Broken>
where
    S: Stream + 'static,
    H: Fn(Request<Body>, Downstream) -> F,
    F: Future<Output: Into<Box<Response<Body>>>>,
{
    let link = Arc::new(Link::new(io, rules));
    let start = host::now();
    let oldest = start + rules.age.mul_f64(0.9 + host::random_unit() / 5.0);
    let most_requests = rules.requests.saturating_sub(host::random_below(rules.requests / 10 + 1)).max(1);
    let mut told = drain.clone();
    let mut drained = pin!(drain.fired());
    let mut timer_at = start + rules.first_byte;
    let mut timer = pin!(host::sleep(rules.first_byte));
    let mut served: u64 = 0;
    let mut since = start;
    loop {
        let mut scan = Scan::default();
        let mut head_began = None;
        let mut skipped = false;
        let arrival = poll_fn(|cx| {
            let mut state = link.0.lock();
            let small_heads = told.word().relief.small_heads;
            match state.poll_head(cx, &mut scan, &mut skipped, &rules.head, small_heads) {
                Poll::Ready(arrival) => return Poll::Ready(arrival),
                Poll::Pending => {}
            }
            let nothing_yet = state.wire.received.is_empty();
            drop(state);
            // Polled, this also wakes us when idle connections are asked to end.
            if nothing_yet && drained.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Arrival::Over));
            }
            // Asked only now: what is said after this wakes us.
            let relief = told.word().relief;
            let due = match (nothing_yet, served) {
                (true, 0) => start + rules.first_byte,
                (true, _) => (since + relief.idle.map_or(rules.idle, |idle| idle.min(rules.idle))).min(oldest),
                (false, _) => *head_began.get_or_insert_with(host::now) + rules.head_time,
            };
            loop {
                if due < timer_at {
                    timer_at = due;
                    timer.set(host::sleep(due.saturating_duration_since(host::now())));
                }
                ready!(timer.as_mut().poll(cx));
                let now = host::now();
                if now >= due {
                    return Poll::Ready(Ok(if nothing_yet { Arrival::Over } else { Arrival::TooSlow }));
                }
                // A busy connection touches the timer only when an old one has run out.
                timer_at = due;
                timer.set(host::sleep(due.saturating_duration_since(now)));
            }
        })
        .await;
        let head = match arrival {
            Ok(Arrival::Head(head)) => head,
            Ok(Arrival::Over) => return link.close(false).await,
            Ok(Arrival::TooSlow) => {
                // Only where no earlier response can be in the way.
                if served == 0 {
                    link.0.lock().wire.outgoing.extend_from_slice(reply::HEAD_TIMEOUT);
                }
                return link.close(false).await;
            }
            Err(Broken::Fault(fault)) => return link.refuse(fault, &mut told).await,
            Err(broken) => return Err(broken),
        };
        let head = match head::request(&head, &rules.head) {
            Ok(head) => head,
            Err(fault) => return link.refuse(fault, &mut told).await,
        };
        served += 1;
        let asked = Asked::of(&head);
        let at = host::now();
        let last = served >= most_requests || at >= oldest;
        let (request, downstream, agreement) = link.begin(head, served, at);
        let mut handling = pin!(handler(request, downstream));
        let response = poll_fn(|cx| {
            if let Poll::Ready(response) = handling.as_mut().poll(cx) {
                return Poll::Ready(Some(response.into()));
            }
            link.0.lock().poll_gone(cx).map(|_| None)
        })
        .await;
        // Nobody waits for the response.
        let Some(response) = response else { return Err(Broken::incomplete()) };
        let keep = asked.keep_alive && !last && !told.word().stop;
        let next = pin!(link.respond(response, &asked, keep, &mut told)).await?;
        match next {
            Next::Stay => {}
            Next::Close => return link.close(true).await,
            Next::Leave => {
                if let (Some(agreement), Some(parted)) = (agreement, link.0.lock().part()) {
                    agreement.part(parted);
                }
                return Ok(());
            }
        }
        let next = pin!(link.finish(served)).await;
        if next == Next::Close {
            return link.close(true).await;
        }
        since = host::now();
    }
}

/// What the response has to know of its request.
struct Asked {
    method: Method,
    version: Version,
    keep_alive: bool,
    /// The client reads trailers.
    trailers: bool,
}

impl Asked {
    fn of(head: &RequestHead) -> Self {
        let RequestHead { parts, seen, keep_alive, .. } = head;
        Self {
            method: parts.method.clone(),
            version: parts.version,
            keep_alive: *keep_alive,
            trailers: seen.has(Field::Te) && has_token(&parts.headers, &header::TE, "trailers"),
        }
    }
}

/// What becomes of a connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Stay,
    Close,
    Leave,
}

impl<S: Stream + 'static> State<S> {
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        scan: &mut Scan,
        skipped: &mut bool,
        limits: &HeadLimits,
        small: bool,
    ) -> Poll<Result<Arrival, Broken>> {
        loop {
            // RFC 9112 §2.2: clients in use send an empty line behind a request.
            if !*skipped && self.wire.received.starts_with(b"\r\n") {
                let _ = self.wire.received.split_to(2);
                *scan = Scan::default();
                *skipped = true;
            }
            if !self.wire.received.is_empty()
                && let Some(end) = head::find_end(&self.wire.received, scan, limits)?
            {
                return Poll::Ready(Ok(Arrival::Head(self.wire.received.split_to(end).freeze())));
            }
            if small && self.wire.received.len() >= FIRST_READ_BYTES {
                return Poll::Ready(Err(Fault::NoRoom.into()));
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) if self.wire.received.is_empty() => return Poll::Ready(Ok(Arrival::Over)),
                Ok(0) => return Poll::Ready(Err(Broken::incomplete())),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => {
                    return Poll::Ready(Err(Fault::NoRoom.into()));
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Ready when the client has ended or broken the connection; only looked at when nobody reads content. Writes what is due meanwhile.
    ///
    /// Its end alone cannot be told from a program that is gone, and work for nobody should stop. Who announced it with
    /// `Connection: close` (or speaks HTTP/1.0) still waits for the answer: RFC 9112 §9.6 has it that way round.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.wire.has_outgoing()
            && let Poll::Ready(Err(_)) = self.wire.poll_flush(cx)
        {
            return Poll::Ready(());
        }
        if !self.content.is_over() {
            match &mut self.server {
                Some(server) => server.clone_from(cx.waker()),
                None => self.server = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        // The next request may come early, and waits here; a client that sends more than fits is not watched.
        while self.wire.received.len() < 4096 {
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) if self.last_request => return Poll::Pending,
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    fn part(&mut self) -> Option<Parted> {
        let (first, io) = self.wire.part()?.into_parts();
        Some(Parted::with(Box::new(io), first))
    }
}

impl<S: Stream + 'static> Link<S> {
    fn new(io: S, rules: &Rules) -> Self {
        Self(Mutex::new(State {
            wire: Wire::new(io),
            content: Content::Over,
            limits: rules.chunks,
            write_stall: rules.write_stall,
            number: 0,
            continue_due: false,
            interim: false,
            last_request: false,
            server: None,
        }))
    }

    /// A head has come: the request for the handler, and for one that may leave HTTP, where its stream goes then.
    fn begin(
        self: &Arc<Self>,
        head: RequestHead,
        number: u64,
        at: Instant,
    ) -> (Request<Body>, Downstream, Option<Agreement>) {
        let RequestHead { mut parts, seen, framing, expects_continue, keep_alive } = head;
        let mut state = self.0.lock();
        state.last_request = !keep_alive;
        state.number = number;
        state.content = Content::new(framing);
        state.continue_due = expects_continue;
        state.interim = parts.version == Version::HTTP_11;
        let State { content, wire, .. } = &mut *state;
        let body = match framing {
            Framing::Empty => Body::empty(),
            _ => match content.take_whole(&mut wire.received) {
                Some(whole) => Body::full(whole),
                None => Incoming::body(Arc::clone(self) as Arc<dyn Source>, number, framing),
            },
        };
        drop(state);
        let interim = Interim::http1(Arc::clone(self) as Arc<dyn Announce>);
        let leaves = parts.method == Method::CONNECT || seen.has(Field::Upgrade);
        let agreement = leaves.then(|| {
            let (departure, agreement) = Departure::new();
            parts.extensions.insert(departure);
            agreement
        });
        (Request::from_parts(parts, body), Downstream { at, seen, interim }, agreement)
    }

    /// Writes a response to its end.
    async fn respond(
        &self,
        response: Box<Response<Body>>,
        asked: &Asked,
        keep: bool,
        told: &mut DrainWatch,
    ) -> Result<Next, Broken> {
        let (parts, mut body) = response.into_parts();
        let leaves = parts.status == StatusCode::SWITCHING_PROTOCOLS
            || (asked.method == Method::CONNECT && parts.status.is_success());
        if leaves && !self.0.lock().content.is_over() {
            // RFC 9110 §7.8: the request comes to its end before the protocol changes. Its rest would be taken for the new one.
            return Err(Broken::BodyBroke);
        }
        let bodiless = leaves || asked.method == Method::HEAD || has_no_content(parts.status);
        let length = match body.size_hint().exact() {
            _ if leaves => Length::None,
            // What a GET would have had (RFC 9110 §8.6).
            _ if bodiless => announced(parts.status, &parts.headers),
            Some(bytes) => Length::Known(bytes),
            None if asked.version == Version::HTTP_11 => Length::Chunked,
            None => Length::UntilClose,
        };
        let said_close = parts.headers.get(header::CONNECTION).is_some_and(|value| value == "close");
        let keep = {
            let mut state = self.0.lock();
            // A client that was never asked for its content may send it or not; who is to know.
            let unasked = std::mem::take(&mut state.continue_due) && !state.content.is_over();
            let keep = keep && !unasked && !said_close && length != Length::UntilClose;
            let persistence = match (leaves, keep) {
                (true, _) if parts.status == StatusCode::SWITCHING_PROTOCOLS => Persistence::Upgrade,
                (true, _) => Persistence::Implied,
                (false, false) => Persistence::Close,
                (false, true) if asked.version == Version::HTTP_11 => Persistence::Implied,
                (false, true) => Persistence::KeepAlive,
            };
            state.interim = false;
            let date = (!parts.headers.contains_key(header::DATE)).then(date);
            write::response(&mut state.wire.outgoing, parts.status, &parts.headers, length, persistence, date.as_ref());
            keep
        };
        // Headers live on in nobody: their memory is free before a long body.
        drop(parts);
        let mut left = match length {
            Length::Known(bytes) if !bodiless => Some(bytes),
            _ => None,
        };
        let mut over = bodiless;
        let mut stall = Stall::new(self.0.lock().write_stall);
        poll_fn(|cx| {
            loop {
                let mut starved = false;
                while !over && self.0.lock().wire.has_room() {
                    let frame = match Pin::new(&mut body).poll_frame(cx) {
                        Poll::Ready(frame) => frame,
                        Poll::Pending => {
                            starved = true;
                            break;
                        }
                    };
                    let wire = &mut self.0.lock().wire;
                    match frame {
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) if data.is_empty() => {}
                            Ok(data) => {
                                if let Some(left) = &mut left {
                                    *left = left.checked_sub(data.len() as u64).ok_or(Broken::BodyBroke)?;
                                }
                                let chunk = length == Length::Chunked;
                                if chunk {
                                    write::chunk_start(&mut wire.outgoing, data.len());
                                }
                                wire.push(data, chunk);
                                // With a known length nobody asks again after the last byte.
                                over = left == Some(0);
                            }
                            Err(frame) => {
                                if let (Ok(trailers), Length::Chunked) = (frame.into_trailers(), length) {
                                    let trailers = asked.trailers.then_some(&trailers);
                                    write::last_chunk(&mut wire.outgoing, trailers);
                                    over = true;
                                }
                            }
                        },
                        Some(Err(_)) => return Poll::Ready(Err(Broken::BodyBroke)),
                        None if left.is_some_and(|left| left > 0) => return Poll::Ready(Err(Broken::BodyBroke)),
                        None => {
                            if length == Length::Chunked {
                                write::last_chunk(&mut wire.outgoing, None);
                            }
                            over = true;
                        }
                    }
                }
                let mut state = self.0.lock();
                match state.wire.poll_flush(cx) {
                    Poll::Ready(flushed) => flushed?,
                    Poll::Pending => {
                        ready!(stall.poll(state.wire.written, told, cx));
                        return Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
                    }
                }
                stall.ended();
                if over {
                    return Poll::Ready(Ok::<_, Broken>(()));
                }
                if starved {
                    ready!(state.poll_gone(cx));
                    return Poll::Ready(Err(Broken::incomplete()));
                }
            }
        })
        .await?;
        Ok(match (leaves, keep) {
            (true, _) => Next::Leave,
            (false, true) => Next::Stay,
            (false, false) => Next::Close,
        })
    }
}

/// How long a client has taken nothing of what waits to be written.
struct Stall {
    limit: Duration,
    /// What had been written when it last took something, and when that was; `None`: nothing waits.
    last: Option<(u64, Instant)>,
    timer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Stall {
    const fn new(limit: Duration) -> Self {
        Self { limit, last: None, timer: None }
    }

    fn ended(&mut self) {
        self.last = None;
    }

    /// Called while nothing can be written; ready when that has lasted too long.
    fn poll(&mut self, written: u64, told: &mut DrainWatch, cx: &mut Context<'_>) -> Poll<()> {
        if self.limit.is_zero() {
            return Poll::Pending;
        }
        let since = match self.last {
            Some((at, since)) if at == written => since,
            _ => self.last.insert((written, host::now())).1,
        };
        loop {
            // One timer for many stalls: where they stand is looked at when it fires, which is also when a shortage is noticed.
            let timer = self.timer.get_or_insert_with(|| Box::pin(host::sleep(self.limit / HURRY)));
            ready!(timer.as_mut().poll(cx));
            let silent = host::now().saturating_duration_since(since);
            let limit = if told.word().relief.idle.is_some() { self.limit / HURRY } else { self.limit };
            if silent >= limit {
                return Poll::Ready(());
            }
            self.timer = Some(Box::pin(host::sleep((limit - silent).min(self.limit / HURRY))));
        }
    }
}

/// So much less time has a client that does not read while others wait for its place.
const HURRY: u32 = 10;

fn has_no_content(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The length that a response without content speaks of.
fn announced(status: StatusCode, headers: &HeaderMap) -> Length {
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        return Length::None;
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| framing::decimal(value.as_bytes()));
    length.map_or(Length::None, Length::Known)
}

impl<S: Stream + 'static> Link<S> {
    /// After a response: what is left of the request's content is read and dropped, if it is little and comes soon.
    async fn finish(&self, number: u64) -> Next {
        {
            let mut state = self.0.lock();
            debug_assert_eq!(state.number, number, "requests come one after the other");
            state.number = 0;
            state.server = None;
            if state.content.is_over() {
                state.wire.rest();
                return Next::Stay;
            }
        }
        let mut bytes = 0;
        let mut time = pin!(host::sleep(DISCARD_TIME));
        poll_fn(|cx| {
            let mut state = self.0.lock();
            let State { content, wire, limits, .. } = &mut *state;
            loop {
                match content.poll_frame(wire, limits, cx) {
                    Poll::Ready(None) => {
                        wire.rest();
                        return Poll::Ready(Next::Stay);
                    }
                    Poll::Ready(Some(Ok(frame))) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                    // It was answered already; what is left of it only says that nothing more can follow.
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Next::Close),
                    Poll::Pending if time.as_mut().poll(cx).is_ready() => return Poll::Ready(Next::Close),
                    Poll::Pending => return Poll::Pending,
                }
                if bytes > DISCARD_BYTES {
                    return Poll::Ready(Next::Close);
                }
            }
        })
        .await
    }

    /// Tells the client which rule it broke, and closes.
    async fn refuse(&self, fault: Fault, told: &mut DrainWatch) -> Result<(), Broken> {
        let failure = Failure::new(fault.reason()).because(fault);
        let asked = Asked { method: Method::GET, version: Version::HTTP_11, keep_alive: false, trailers: false };
        self.respond(Box::new(reply::reply(&failure, false)), &asked, false, told).await?;
        self.close(true).await?;
        Err(fault.into())
    }

    /// Ends our side. `linger`: the client may still be sending; closing over that would reset the connection, and what we said
    /// last would be lost on its way (RFC 9112 §9.6).
    async fn close(&self, linger: bool) -> Result<(), Broken> {
        let mut time = pin!(host::sleep(DISCARD_TIME));
        let mut bytes = 0;
        let mut shut = false;
        poll_fn(|cx| {
            let wire = &mut self.0.lock().wire;
            if !shut {
                match wire.poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => shut = true,
                    // It is gone already, and knows all it wants to know.
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return time.as_mut().poll(cx),
                }
            }
            while linger && bytes <= DISCARD_BYTES {
                wire.received.clear();
                match wire.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => break,
                    Poll::Ready(Ok(read)) => bytes += read as u64,
                    Poll::Pending => return time.as_mut().poll(cx),
                }
            }
            Poll::Ready(())
        })
        .await;
        Ok(())
    }
}

impl<S: Stream + 'static> Source for Link<S> {
    fn poll_frame(&self, number: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.0.lock();
        if state.number != number {
            return Poll::Ready(Some(Err(BodyError::Cancelled)));
        }
        if std::mem::take(&mut state.continue_due) && state.wire.received.is_empty() {
            write::interim(&mut state.wire.outgoing, StatusCode::CONTINUE, &HeaderMap::new());
            // What does not leave at once leaves with the next look at the connection.
            if let Poll::Ready(Err(error)) = state.wire.poll_flush(cx) {
                return Poll::Ready(Some(Err(Broken::from(error).into())));
            }
        }
        let State { content, wire, limits, .. } = &mut *state;
        let frame = ready!(content.poll_frame(wire, limits, cx)).map(|frame| frame.map_err(BodyError::from));
        if content.is_over()
            && let Some(server) = state.server.take()
        {
            // From here on it is the server that looks whether the client is still there.
            server.wake();
        }
        Poll::Ready(frame)
    }

    fn let_go(&self, _number: u64) {}
}

impl<S: Stream + 'static> Announce for Link<S> {
    fn announce(&self, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.0.lock();
        if state.interim {
            write::interim(&mut state.wire.outgoing, status, headers);
        }
    }
}

/// The present, for a response that says nothing (RFC 9110 §6.6.1). Written anew once a second and thread.
pub(in crate::http) fn date() -> HeaderValue {
    thread_local! {
        static LAST: std::cell::RefCell<(u64, HeaderValue)> = const { std::cell::RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let now = host::wall_clock();
    let second = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|(last, value)| {
        if *last != second {
            *last = second;
            *value = HeaderValue::try_from(httpdate::fmt_http_date(now)).unwrap_or(HeaderValue::from_static(""));
        }
        value.clone()
    })
}

#[cfg(test)]
mod tests;
