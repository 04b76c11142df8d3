//! One upstream connection: one request at a time, without a task of its own.
//!
//! [`Connection::send`] writes the request and reads the response head; the body of the response then drives what is left of both.
//! A connection carries another request only when the last exchange ended exactly where both sides said it would.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body::{Body as _, Frame};
use parking_lot::Mutex;

use super::{
    chunked::ChunkLimits,
    fault::{Broken, Fault},
    framing::Framing,
    head::{self, HeadLimits, Scan},
    incoming::{Content, Incoming, Source},
    wire::{Parted, Wire},
    write::{self, Length, Outgoing},
};
use crate::{
    host::Stream,
    http::{Body, BodyError, interim::Interim},
};

/// What responses are held to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub head: HeadLimits,
    pub chunks: ChunkLimits,
    /// Interim responses before a final one.
    pub interim: usize,
}

/// A connection that is idle or carries one request.
pub struct Connection<S>(Arc<Link<S>>);

/// An exchange without a response head.
#[derive(Debug)]
pub struct Unanswered {
    pub broken: Broken,
    /// Not a byte of the request was taken by the far side's system.
    pub untouched: bool,
    /// It was the request's own body that broke off.
    pub upload_failed: bool,
    /// The far side ended the connection without a word (and did not break it).
    pub ended: bool,
    /// Bytes that the stream had taken before this request.
    pub written_before: u64,
}

struct Link<S>(Mutex<State<S>>);

struct State<S> {
    wire: Wire<S>,
    rules: Rules,
    /// Counts exchanges; a body of an earlier one reads nothing any more.
    number: u64,
    upload: Upload,
    answer: Answer,
    /// Where the wire stood when the request began.
    written_before: u64,
    /// The far side ended while a head was waited for, before a byte of it came.
    ended: bool,
}

/// The request's content on its way.
enum Upload {
    Done,
    Under {
        body: Body,
        length: Length,
        left: Option<u64>,
    },
    /// The far side takes no more; it may have answered all the same.
    Refused(std::io::Error),
}

enum Answer {
    /// Nothing is expected.
    Idle,
    Head {
        scan: Scan,
        asked: Method,
        upgrade: bool,
        interim: usize,
        announce: Option<Interim>,
    },
    Content {
        content: Content,
        keep_alive: bool,
    },
    /// Whatever comes now belongs to nothing.
    Spent,
}

/// The head of a response, as it will come. Dropping it makes the connection unusable.
pub struct Answering<S: Stream + 'static> {
    link: Arc<Link<S>>,
    number: u64,
    over: bool,
}

impl<S> Clone for Connection<S> {
    /// Another handle to the same connection.
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Stream + 'static> Connection<S> {
    pub fn new(io: S, rules: Rules) -> Self {
        Self(Arc::new(Link(Mutex::new(State {
            wire: Wire::new(io),
            rules,
            number: 0,
            upload: Upload::Done,
            answer: Answer::Idle,
            written_before: 0,
            ended: false,
        }))))
    }

    /// Whether a request may start on it: the last exchange is over, the far side is there and has said nothing unasked.
    pub fn is_ready(&self) -> bool {
        let mut state = self.0.0.lock();
        matches!((&state.answer, &state.upload), (Answer::Idle, Upload::Done)) && state.wire.is_quiet()
    }

    /// Looks at the stream beneath; `None` once it has left HTTP.
    pub fn with_io<R>(&self, look: impl FnOnce(&S) -> R) -> Option<R> {
        self.0.0.lock().wire.get_ref().map(look)
    }

    /// Sends a request; its head is serialised before this returns.
    pub fn send(&self, request: &Outgoing<'_>, body: Body, announce: Option<Interim>) -> Answering<S> {
        let mut state = self.0.0.lock();
        state.number += 1;
        state.written_before = state.wire.written;
        let length = match body.size_hint().exact() {
            // RFC 9110 §8.6: methods that are expected to bring content say when there is none.
            Some(0) if matches!(*request.method, Method::POST | Method::PUT | Method::PATCH) => Length::Known(0),
            Some(0) => Length::None,
            Some(bytes) => Length::Known(bytes),
            None => Length::Chunked,
        };
        write::request(&mut state.wire.outgoing, request, length);
        state.upload = match length {
            Length::Known(0) | Length::None => Upload::Done,
            Length::Known(bytes) => Upload::Under { body, length, left: Some(bytes) },
            Length::Chunked | Length::UntilClose => Upload::Under { body, length, left: None },
        };
        state.answer = Answer::Head {
            scan: Scan::default(),
            asked: request.method.clone(),
            upgrade: request.upgrade.is_some(),
            interim: 0,
            announce,
        };
        let number = state.number;
        drop(state);
        Answering { link: Arc::clone(&self.0), number, over: false }
    }

    /// The stream, after a response that agreed to leave HTTP; `None` when there was none.
    pub fn part(&self) -> Option<Parted> {
        let mut state = self.0.0.lock();
        let (first, io) = state.wire.part()?.into_parts();
        Some(Parted::with(Box::new(io), first))
    }
}

impl<S: Stream> State<S> {
    /// Writes what is there, and of the content what is ready. Errors of the stream are kept: the far side may have answered before.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            let mut starved = false;
            while let Upload::Under { body, length, left } = &mut self.upload {
                if !self.wire.has_room() {
                    break;
                }
                let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                    starved = true;
                    break;
                };
                let chunk = *length == Length::Chunked;
                let over = match frame {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if data.is_empty() => false,
                        Ok(data) => {
                            if let Some(left) = left {
                                *left = left.checked_sub(data.len() as u64).ok_or(Broken::BodyBroke)?;
                            }
                            if chunk {
                                write::chunk_start(&mut self.wire.outgoing, data.len());
                            }
                            self.wire.push(data, chunk);
                            *left == Some(0)
                        }
                        Err(frame) => {
                            if let (Ok(trailers), true) = (frame.into_trailers(), chunk) {
                                write::last_chunk(&mut self.wire.outgoing, Some(&trailers));
                            }
                            chunk
                        }
                    },
                    Some(Err(BodyError::TooSlow)) => return Poll::Ready(Err(Broken::BodyTooSlow)),
                    Some(Err(_)) => return Poll::Ready(Err(Broken::BodyBroke)),
                    None if left.is_some_and(|left| left > 0) => return Poll::Ready(Err(Broken::BodyBroke)),
                    None => {
                        if chunk {
                            write::last_chunk(&mut self.wire.outgoing, None);
                        }
                        true
                    }
                };
                if over {
                    self.upload = Upload::Done;
                }
            }
            if matches!(self.upload, Upload::Refused(_)) {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = ready!(self.wire.poll_flush(cx)) {
                self.upload = Upload::Refused(error);
                return Poll::Ready(Ok(()));
            }
            if matches!(self.upload, Upload::Done) {
                return Poll::Ready(Ok(()));
            }
            if starved {
                return Poll::Pending;
            }
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<head::ResponseHead, Broken>> {
        // A response may come before all of the request has gone.
        let _ = self.poll_upload(cx)?;
        loop {
            let Answer::Head { scan, asked, upgrade, interim, announce } = &mut self.answer else {
                return Poll::Ready(Err(Broken::incomplete()));
            };
            if !self.wire.received.is_empty()
                && let Some(end) = head::find_end(&self.wire.received, scan, &self.rules.head)?
            {
                let bytes = self.wire.received.split_to(end).freeze();
                let head = head::response(&bytes, asked, &self.rules.head)?;
                let status = head.parts.status;
                if status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(if *upgrade { Ok(head) } else { Err(Fault::UnaskedSwitch.into()) });
                }
                if !status.is_informational() {
                    return Poll::Ready(Ok(head));
                }
                *interim += 1;
                if *interim > self.rules.interim {
                    return Poll::Ready(Err(Fault::TooManyInterim.into()));
                }
                *scan = Scan::default();
                if let Some(announce) = announce {
                    announce.announce(status, &head.parts.headers);
                }
                continue;
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) => {
                    self.ended = self.wire.received.is_empty() && *interim == 0;
                    return Poll::Ready(Err(match std::mem::replace(&mut self.upload, Upload::Done) {
                        Upload::Refused(error) => error.into(),
                        _ => Broken::incomplete(),
                    }));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// The exchange has come to its end, or cannot: whether another request may follow.
    fn settle(&mut self, keep_alive: bool) {
        let uploaded = matches!(self.upload, Upload::Done) && !self.wire.has_outgoing();
        self.upload = Upload::Done;
        self.answer = if keep_alive && uploaded && self.wire.received.is_empty() {
            self.wire.rest();
            Answer::Idle
        } else {
            Answer::Spent
        };
    }

    fn give_up(&mut self) {
        self.upload = Upload::Done;
        self.answer = Answer::Spent;
    }
}

impl<S: Stream + 'static> Future for Answering<S> {
    /// Boxed: it is handed on a dozen times.
    type Output = Result<Box<Response<Body>>, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.link.0.lock();
        let head = match ready!(state.poll_head(cx)) {
            Ok(head) => head,
            Err(broken) => {
                let untouched = state.wire.written == state.written_before;
                let upload_failed = matches!(broken, Broken::BodyBroke | Broken::BodyTooSlow);
                let (ended, written_before) = (state.ended, state.written_before);
                state.give_up();
                drop(state);
                self.over = true;
                return Poll::Ready(Err(Unanswered { broken, untouched, upload_failed, ended, written_before }));
            }
        };
        let leaves = head.parts.status == StatusCode::SWITCHING_PROTOCOLS
            || matches!(&state.answer, Answer::Head { asked, .. } if *asked == Method::CONNECT)
                && head.parts.status.is_success();
        let mut content = Content::new(head.framing);
        let body = if leaves {
            // The stream is taken out by whoever joins the two sides.
            state.give_up();
            Body::empty()
        } else if content.is_over() {
            state.settle(head.keep_alive);
            Body::empty()
        } else if let Some(whole) = content.take_whole(&mut state.wire.received) {
            state.settle(head.keep_alive);
            Body::full(whole)
        } else {
            let keep_alive = head.keep_alive && head.framing != Framing::UntilClose;
            state.answer = Answer::Content { content, keep_alive };
            Incoming::body(Arc::clone(&self.link) as Arc<dyn Source>, self.number, head.framing)
        };
        drop(state);
        self.over = true;
        Poll::Ready(Ok(Box::new(Response::from_parts(head.parts, body))))
    }
}

impl<S: Stream + 'static> Drop for Answering<S> {
    fn drop(&mut self) {
        if !self.over {
            self.link.0.lock().give_up();
        }
    }
}

impl<S: Stream + 'static> Source for Link<S> {
    fn poll_frame(&self, number: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.0.lock();
        if state.number != number {
            return Poll::Ready(Some(Err(BodyError::Cancelled)));
        }
        if !matches!(state.upload, Upload::Done)
            && let Poll::Ready(Err(broken)) = state.poll_upload(cx)
        {
            state.give_up();
            return Poll::Ready(Some(Err(broken.into())));
        }
        let State { wire, answer, rules, .. } = &mut *state;
        let Answer::Content { content, keep_alive } = answer else {
            return Poll::Ready(Some(Err(BodyError::Cancelled)));
        };
        let frame = ready!(content.poll_frame(wire, &rules.chunks, cx));
        if matches!(frame, Some(Err(_))) {
            state.give_up();
        } else if content.is_over() {
            let keep_alive = *keep_alive;
            state.settle(keep_alive);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }

    fn let_go(&self, number: u64) {
        let mut state = self.0.lock();
        if state.number == number && !matches!(state.answer, Answer::Idle) {
            state.give_up();
        }
    }
}

impl<S> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
