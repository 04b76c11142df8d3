//! One upstream connection: many requests at once.
//!
//! [`open`] starts a task that drives the socket; [`Connection::send`] queues a request and gives the future of its response head.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use http_body::Body as _;

use super::{
    body::{Incoming, Pump},
    budget::Abuse,
    driver::Driver,
    fault::{Code, Ended, Lost},
    frame,
    link::{Link, RequestLine, Role, Rules},
    stream::Answer,
};
use crate::{
    host::{self, Stream},
    http::{Body, interim::Interim},
};

/// When a silent connection is asked whether it is still there.
#[derive(Clone, Copy, Debug)]
pub struct Pings {
    /// Silence before a ping, while requests are under way.
    pub interval: Duration,
    /// Further silence before the connection is given up.
    pub timeout: Duration,
}

/// An open connection; when it is dropped, requests under way are finished and then it is closed.
#[derive(Debug)]
pub struct Connection(Arc<Link>);

/// A request as it leaves.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub line: RequestLine<'a>,
    /// End-to-end fields; what frames the message or concerns the connection is left out.
    pub headers: &'a HeaderMap,
    /// Stand before `headers` and instead of fields there with the same name.
    pub own: &'a [(HeaderName, HeaderValue)],
}

/// A request without a response head.
#[derive(Debug)]
pub struct Unanswered {
    pub lost: Lost,
    /// Not a byte of the request was taken by the socket.
    pub untouched: bool,
    /// It was the request's own body that broke off; inside: because it came too slowly.
    pub upload_failed: Option<bool>,
}

/// The head of a response, as it will come. Dropping it resets the stream.
#[derive(Debug)]
pub struct Answering {
    link: Arc<Link>,
    stream: u32,
    over: bool,
}

/// Starts HTTP/2 on a fresh connection. It is driven by a task of its own.
///
/// `abused` is told of what the server wastes.
pub fn open<S: Stream + 'static>(
    io: S,
    rules: Rules,
    pings: Pings,
    abused: impl Fn(Abuse) + Send + Sync + 'static,
) -> Connection {
    let link = Link::new(Role::Client, rules);
    let driver = Driver::new(io, Arc::clone(&link));
    host::spawn(drive(driver, Arc::clone(&link), pings, abused));
    Connection(link)
}

const PING: [u8; 8] = *b"outrigge";

async fn drive<S: Stream + 'static>(
    mut driver: Driver<S>,
    link: Arc<Link>,
    pings: Pings,
    abused: impl Fn(Abuse) + Send + Sync + 'static,
) {
    let mut timer = pin!(host::sleep(pings.interval));
    let mut asked = false;
    let ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = driver.poll(cx) {
                return Poll::Ready(ended);
            }
            driver.pongs.clear();
            let (open, unused, charged) = {
                let mut state = link.lock();
                state.goodbye |= state.leave;
                (state.open, state.unused, state.take_charged())
            };
            if let Some(charged) = charged {
                charged.tell(&abused);
            }
            if unused && open == 0 {
                return Poll::Ready(Ended::Closed);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let heard = driver.take_heard();
            if asked && !heard {
                return Poll::Ready(Ended::Silent);
            }
            asked = open > 0 && !heard;
            if asked {
                link.lock().queue_frames(|out, _| frame::write_ping(&mut out.tail, false, PING));
            } else if open == 0 {
                driver.rest();
            }
            timer.set(host::sleep(if asked { pings.timeout } else { pings.interval }));
        }
    })
    .await;
    if let Some(charged) = link.lock().take_charged() {
        charged.tell(&abused);
    }
    if let Ended::Flood { deed, .. } = &ended {
        abused(Abuse::Closed(*deed));
    }
    {
        let mut state = link.lock();
        let code = ended.code();
        state.end(ended);
        state.queue_frames(|out, _| frame::write_goaway(&mut out.tail, 0, code));
    }
    // Its errors surface in the streams that were under way; the far side is told if it still listens.
    let _ = tokio::time::timeout(pings.timeout, poll_fn(|cx| driver.poll_shutdown(cx))).await;
}

impl Connection {
    /// Whether new requests can start here.
    pub fn is_open(&self) -> bool {
        let state = self.0.lock();
        !state.goodbye && state.ended.is_none()
    }

    /// Requests that the far side lets us have under way at once.
    pub fn most_streams(&self) -> u32 {
        self.0.lock().peer_streams
    }

    /// Why it ended; `None`: it has not.
    pub fn ended(&self) -> Option<Ended> {
        self.0.lock().ended.clone()
    }

    /// Sends a request; its head is queued before this returns. `None`: the connection takes no more requests, nothing was sent.
    pub fn send(&self, request: &Outgoing<'_>, mut body: Body, announce: Option<Interim>) -> Option<Answering> {
        let length = match body.size_hint().exact() {
            // RFC 9110 §8.6: methods that are expected to bring content say when there is none.
            Some(0) if matches!(*request.line.method, Method::POST | Method::PUT | Method::PATCH) => Some(0),
            Some(0) => None,
            length => length,
        };
        let end = body.is_end_stream() || length == Some(0);
        let mut state = self.0.lock();
        let stream = state.send_request(&request.line, request.headers, request.own, length, end)?;
        if let Some(stream) = state.streams.get_mut(&stream) {
            let bodiless = *request.line.method == Method::HEAD;
            stream.incoming.answer = Some(Answer { bodiless, interim: 0, announce, head: None });
        }
        drop(state);
        if end {
            // Its observers are told that it ended well.
            let _ = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
        } else {
            let mut pump = Pump::new(Arc::clone(&self.0), stream, body, length, Code::CANCEL);
            // Most contents are there already. What is not goes in a task of its own: a response may be read slowly or not at all
            // while the content still has to go on.
            if pump.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                host::spawn(async move {
                    let _ = poll_fn(|cx| pump.poll(cx)).await;
                });
            }
        }
        Some(Answering { link: Arc::clone(&self.0), stream, over: false })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.unused = true;
        state.wake_driver();
    }
}

impl Future for Answering {
    /// Boxed: it is handed on a dozen times.
    type Output = Result<Box<Response<Body>>, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.stream;
        let link = Arc::clone(&self.link);
        let mut state = link.lock();
        let written = state.written;
        let Some(stream) = state.streams.get_mut(&id) else {
            self.over = true;
            return Poll::Ready(Err(Unanswered { lost: Lost::Dropped, untouched: false, upload_failed: None }));
        };
        let incoming = &mut stream.incoming;
        if let Some(parts) = incoming.answer.as_mut().and_then(|answer| answer.head.take()) {
            let whole = incoming.ended && incoming.trailers.is_none();
            let length = incoming.length();
            self.over = true;
            let body = if whole && let Some(piece) = incoming.pieces.take_only() {
                incoming.wanted = false;
                state.take(id, piece.len());
                state.forget_if_over(id);
                drop(state);
                Body::full(piece)
            } else {
                drop(state);
                Incoming::body(Arc::clone(&link), id, length)
            };
            return Poll::Ready(Ok(Box::new(Response::from_parts(parts, body))));
        }
        if let Some(lost) = stream.lost.clone() {
            let untouched = written <= stream.outgoing.begins;
            let upload_failed = stream.outgoing.broke;
            self.over = true;
            drop(state);
            link.let_go(id);
            return Poll::Ready(Err(Unanswered { lost, untouched, upload_failed }));
        }
        match &mut incoming.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            None => incoming.reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.over {
            self.link.let_go(self.stream);
        }
    }
}
