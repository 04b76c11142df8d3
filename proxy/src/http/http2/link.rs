//! What everybody on a connection shares: its streams and what waits to be written. Its windows stand in `link/windows.rs`.
//!
//! The driver of a connection (`driver.rs`) owns the socket; it hands arriving frames in and takes queued ones out. Those who send
//! or read a message on a stream do so from their own tasks, through [`Link`]: they queue frames and wake the driver, so that
//! the frames of many streams leave in one write. Everything here is a step under one short lock; nothing waits inside it.

mod windows;

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority};
use http_body::Frame;
use parking_lot::{Mutex, MutexGuard};

use super::{
    budget::{Budget, Charged, Deed, Verdict},
    fault::{Code, Ended, Lost, Offence},
    frame::{self, FIRST_WINDOW, MAX_PAYLOAD, MAX_WINDOW},
    head::HeadLimits,
    hpack::{TABLE_BYTES, encode::Encoder},
    outgoing::Outgoing,
    stream::Stream,
};
use crate::{
    host::{self, Instant},
    http::{BodyError, body::TrailerLimit, http1::write::is_ours},
    resilience::growth::{GROWTH, Grown, Growth},
    settings::Limits,
};

/// What a connection is held to.
#[derive(Clone, Debug)]
pub struct Rules {
    pub head: HeadLimits,
    pub trailers: TrailerLimit,
    /// Bytes of a compressed header block.
    pub block_bytes: usize,
    /// Streams that the far side may have open at once.
    pub streams: u32,
    /// Receive window of a stream.
    pub stream_window: u32,
    /// Receive window of the connection.
    pub connection_window: u32,
    /// Bytes that may wait to be written before contents have to wait ...
    pub buffer_bytes: usize,
    /// Interim responses before a final one.
    pub interim: usize,
    /// What buffers may have beyond the first window (RFC 9113 §6.9.2) of what comes and the first piece of what goes.
    pub memory: &'static Growth,
    limits: Limits,
}

impl Rules {
    /// From the settings; `streams`: how many the far side may open at once, 0 for a server, which opens none.
    pub fn new(limits: &Limits, streams: u32) -> Self {
        let list_bytes = limits.http2_header_list_bytes as usize;
        Self {
            head: HeadLimits { list_bytes, fields: limits.header_fields, target_bytes: limits.uri_bytes },
            trailers: TrailerLimit::new(limits),
            // Uncompressed, a list is shorter than its limit says; so whatever is longer than this is too large for certain.
            block_bytes: list_bytes.saturating_mul(2),
            streams,
            stream_window: limits.http2_stream_window_bytes.min(MAX_WINDOW),
            connection_window: limits.http2_connection_window_bytes.clamp(FIRST_WINDOW, MAX_WINDOW),
            buffer_bytes: limits.connection_buffer_bytes,
            interim: limits.interim_responses,
            memory: &GROWTH,
            limits: limits.clone(),
        }
    }
}

/// Which end we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// A connection, as its streams see it.
pub struct Link(Mutex<State>);

pub(super) struct State {
    pub role: Role,
    pub rules: Rules,
    pub out: Outgoing,
    encoder: Encoder,
    /// Boxed: a table moves what is in it.
    pub streams: HashMap<u32, Box<Stream>, BuildHasherDefault<IdHasher>>,
    /// Streams of which one direction at least has not ended.
    pub open: u32,
    /// The highest stream that was opened, and how many were.
    pub last: u32,
    pub opened: u32,
    /// Bytes that we may still send, on all streams together.
    send_window: i64,
    /// The window that the far side gives a new stream.
    first_send_window: i64,
    /// Streams that the far side lets us open at once.
    pub peer_streams: u32,
    /// Bytes that the far side may still send, and those taken that it has not been told of.
    receive_window: i64,
    taken: u32,
    /// What it may have under way to us and in our buffers together: `receive_window`, `taken` and what nobody has taken yet.
    connection_window: u32,
    /// For `connection_window`, where memory is bounded.
    incoming_memory: Grown,
    /// For what waits to be written.
    pub outgoing_memory: Grown,
    /// Streams with content that wait for the connection's window or for room.
    queue: VecDeque<u32>,
    /// Streams that we reset: what the far side sent before it knew is no offence.
    reset: VecDeque<u32>,
    /// Bytes ever queued, and ever written.
    pub queued: u64,
    pub written: u64,
    driver: Option<Waker>,
    driver_sleeps: bool,
    pub ended: Option<Ended>,
    /// We accept no streams above this one (our last GOAWAY).
    pub accept_up_to: u32,
    /// The far side accepts no new streams.
    pub goodbye: bool,
    /// Nobody opens streams here any more.
    pub unused: bool,
    /// The account went down to a quarter.
    pub leave: bool,
    /// Reads of the socket that brought something.
    pub heard: u64,
    /// We have asked whether the far side is there, when so much had been heard.
    asked: Option<u64>,
    /// Others need the places of those who do not read.
    pub hurry: bool,
    budget: Budget,
    born: Instant,
}

/// Streams are numbered by the far side, one after the other; a table of at most some hundred needs no better.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Fibonacci hashing: both ends of the hash depend on the whole id.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// Payload of the ping that asks whether somebody is there.
const THERE: [u8; 8] = *b"anybody?";

/// Ids that are remembered after we reset them.
const REMEMBERED_RESETS: usize = 1024;

/// What a message that leaves begins with.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    pub method: &'a Method,
    pub authority: &'a Authority,
    pub path: &'a str,
}

impl Link {
    pub(super) fn new(role: Role, rules: Rules) -> Arc<Self> {
        let mut out = Outgoing::default();
        // Where memory is bounded, a window is promised only once it is needed and there is memory for it.
        let window = if rules.memory.is_bounded() { FIRST_WINDOW } else { rules.connection_window };
        let (incoming_memory, outgoing_memory) = (Grown::of(rules.memory), Grown::of(rules.memory));
        let budget = Budget::new(&rules.limits);
        use frame::setting::{
            ENABLE_CONNECT_PROTOCOL, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE,
        };
        let ours = match role {
            Role::Client => (ENABLE_PUSH, 0),
            Role::Server => (ENABLE_CONNECT_PROTOCOL, 1),
        };
        if role == Role::Client {
            out.tail.extend_from_slice(frame::PREFACE);
        }
        let list_bytes = u32::try_from(rules.head.list_bytes).unwrap_or(u32::MAX);
        frame::write_settings(
            &mut out.tail,
            &[
                ours,
                (MAX_CONCURRENT_STREAMS, rules.streams),
                (INITIAL_WINDOW_SIZE, rules.stream_window),
                (MAX_HEADER_LIST_SIZE, list_bytes),
            ],
        );
        if window > FIRST_WINDOW {
            frame::write_window_update(&mut out.tail, 0, window - FIRST_WINDOW);
        }
        let queued = out.len() as u64;
        Arc::new(Self(Mutex::new(State {
            role,
            rules,
            out,
            encoder: Encoder::default(),
            streams: HashMap::default(),
            open: 0,
            last: 0,
            opened: 0,
            send_window: i64::from(FIRST_WINDOW),
            first_send_window: i64::from(FIRST_WINDOW),
            peer_streams: u32::MAX,
            receive_window: i64::from(window),
            taken: 0,
            connection_window: window,
            incoming_memory,
            outgoing_memory,
            queue: VecDeque::new(),
            reset: VecDeque::new(),
            queued,
            written: 0,
            driver: None,
            driver_sleeps: false,
            ended: None,
            accept_up_to: MAX_WINDOW,
            goodbye: false,
            unused: false,
            leave: false,
            heard: 0,
            asked: None,
            hurry: false,
            budget,
            born: host::now(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// The next piece of what the far side sends on a stream; `None`: it has ended.
    pub(super) fn poll_frame(&self, id: u32, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.lock();
        let Some(stream) = state.streams.get_mut(&id) else {
            return Poll::Ready(Some(Err(BodyError::Cancelled)));
        };
        if std::mem::take(&mut stream.incoming.continue_due)
            && stream.incoming.pieces.is_empty()
            && !stream.incoming.ended
            && !stream.answered
            && stream.lost.is_none()
        {
            // Somebody wants the content, and nothing of it has come.
            state.queue_frames(|out, encoder| {
                frame::write_headers(&mut out.tail, id, false, |block| {
                    encoder.begin(block);
                    encoder.status(block, StatusCode::CONTINUE);
                });
            });
        }
        let Some(stream) = state.streams.get_mut(&id) else {
            return Poll::Ready(Some(Err(BodyError::Cancelled)));
        };
        let incoming = &mut stream.incoming;
        // The last piece is kept until the far side has ended the message: with it, the next hop takes the message for whole, and what
        // comes behind could no longer spoil it.
        let complete = incoming.ended || incoming.left != Some(0) || incoming.pieces.are_several();
        if complete && let Some(piece) = incoming.pieces.pop() {
            state.take(id, piece.len());
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if incoming.ended {
            return Poll::Ready(incoming.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if let Some(lost) = &stream.lost {
            return Poll::Ready(Some(Err(lost.clone().into())));
        }
        register(&mut incoming.reader, cx);
        Poll::Pending
    }

    /// Whether nothing comes on the stream any more.
    pub(super) fn is_over(&self, id: u32) -> bool {
        let state = self.lock();
        state.streams.get(&id).is_none_or(|stream| {
            stream.incoming.ended && stream.incoming.pieces.is_empty() && stream.incoming.trailers.is_none()
        })
    }

    /// Whether the far side has sent its last frame on a stream, or will not.
    pub(super) fn has_ended(&self, id: u32) -> bool {
        self.lock().streams.get(&id).is_none_or(|stream| stream.incoming.ended || stream.lost.is_some())
    }

    /// Nobody reads the stream any further.
    pub(super) fn let_go(&self, id: u32) {
        let mut state = self.lock();
        let Some(stream) = state.streams.get_mut(&id) else { return };
        stream.incoming.wanted = false;
        let rest = stream.incoming.pieces.clear();
        let over = stream.is_over();
        state.take(id, rest);
        if over {
            state.streams.remove(&id);
        } else if state.role == Role::Client {
            // Nobody waits for the response: the far side need not go on with it.
            state.reset(id, Code::CANCEL, Lost::Dropped);
        }
    }

    /// Queues as much of `piece` as the windows allow; ready when all of it is, with the end of the stream behind it if `end`.
    ///
    /// # Errors
    /// The stream takes no more.
    pub(super) fn poll_data(
        &self,
        id: u32,
        piece: &mut Bytes,
        end: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Lost>> {
        let mut state = self.lock();
        loop {
            let room = state.has_room();
            let connection = state.send_window;
            let Some(stream) = state.streams.get_mut(&id) else { return Poll::Ready(Err(Lost::Dropped)) };
            let outgoing = &mut stream.outgoing;
            if outgoing.ended {
                return Poll::Ready(Err(stream.lost.clone().unwrap_or(Lost::Dropped)));
            }
            let window = outgoing.window.min(connection);
            let most = usize::try_from(window).unwrap_or(0).min(MAX_PAYLOAD).min(piece.len());
            if !piece.is_empty() && (most == 0 || !room) {
                register(&mut outgoing.sender, cx);
                // What waits for its own window is woken by that.
                if outgoing.window > 0 && !outgoing.queued {
                    outgoing.queued = true;
                    state.queue.push_back(id);
                }
                return Poll::Pending;
            }
            let part = piece.split_to(most);
            let last = piece.is_empty();
            outgoing.window -= most as i64;
            outgoing.ended |= last && end;
            state.send_window -= most as i64;
            state.budget.carry(most);
            if most > 0 || end {
                state.queue_frames(|out, _| out.data(id, part, last && end));
            }
            if last {
                if end {
                    state.settle(id);
                }
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Waits until something can be sent on the stream; how much.
    pub(super) fn poll_capacity(&self, id: u32, cx: &mut Context<'_>) -> Poll<Result<usize, Lost>> {
        let mut state = self.lock();
        let room = state.has_room();
        let connection = state.send_window;
        let Some(stream) = state.streams.get_mut(&id) else { return Poll::Ready(Err(Lost::Dropped)) };
        let outgoing = &mut stream.outgoing;
        if outgoing.ended {
            return Poll::Ready(Err(stream.lost.clone().unwrap_or(Lost::Dropped)));
        }
        let most = usize::try_from(outgoing.window.min(connection)).unwrap_or(0).min(MAX_PAYLOAD);
        if most > 0 && room {
            return Poll::Ready(Ok(most));
        }
        register(&mut outgoing.sender, cx);
        if outgoing.window > 0 && !outgoing.queued {
            outgoing.queued = true;
            state.queue.push_back(id);
        }
        Poll::Pending
    }

    /// Ends our side with trailers.
    ///
    /// # Errors
    /// The stream takes no more.
    pub(super) fn send_trailers(&self, id: u32, trailers: &HeaderMap) -> Result<(), Lost> {
        let mut state = self.lock();
        state.end_outgoing(id)?;
        state.queue_frames(|out, encoder| {
            frame::write_headers(&mut out.tail, id, true, |block| {
                encoder.begin(block);
                write_fields(encoder, block, trailers, &[]);
            });
        });
        state.settle(id);
        Ok(())
    }

    /// Begins a response, final or not. False: nobody waits for it.
    pub(super) fn send_response(
        &self,
        id: u32,
        status: StatusCode,
        headers: &HeaderMap,
        own: &[(HeaderName, HeaderValue)],
        length: Option<u64>,
        end: bool,
    ) -> bool {
        let mut state = self.lock();
        let Some(stream) = state.streams.get_mut(&id).filter(|stream| !stream.outgoing.ended) else { return false };
        stream.answered |= !status.is_informational();
        stream.outgoing.ended |= end;
        state.queue_frames(|out, encoder| {
            frame::write_headers(&mut out.tail, id, end, |block| {
                encoder.begin(block);
                encoder.status(block, status);
                write_fields(encoder, block, headers, own);
                if let Some(bytes) = length {
                    encoder.content_length(block, bytes);
                }
            });
        });
        if end {
            state.settle(id);
        }
        true
    }

    /// An interim response, if the stream still waits for its final one.
    pub(in crate::http) fn announce(&self, id: u32, status: StatusCode, headers: &HeaderMap) {
        let waits = self.lock().streams.get(&id).is_some_and(|stream| !stream.answered);
        if waits {
            self.send_response(id, status, headers, &[], None, false);
        }
    }

    /// Gives a stream up; what it was doing does not come to its end.
    pub(super) fn give_up(&self, id: u32, code: Code) {
        self.lock().reset(id, code, Lost::Dropped);
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// End-to-end fields, with `own` before them and instead of those with the same name.
fn write_fields(
    encoder: &mut Encoder,
    block: &mut bytes::BytesMut,
    headers: &HeaderMap,
    own: &[(HeaderName, HeaderValue)],
) {
    for (name, value) in own {
        encoder.field(block, name, value);
    }
    for (name, value) in headers {
        if !is_ours(name) && *name != header::HOST && !own.iter().any(|(own, _)| own == name) {
            encoder.field(block, name, value);
        }
    }
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

impl State {
    /// Queues frames and sees to it that they are written.
    pub fn queue_frames(&mut self, write: impl FnOnce(&mut Outgoing, &mut Encoder)) {
        let before = self.out.len();
        write(&mut self.out, &mut self.encoder);
        self.queued += (self.out.len() - before) as u64;
        self.wake_driver();
    }

    pub fn wake_driver(&mut self) {
        if std::mem::take(&mut self.driver_sleeps)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }

    /// The driver has nothing to do until somebody wakes it.
    pub fn sleep(&mut self, cx: &Context<'_>) {
        register(&mut self.driver, cx);
        self.driver_sleeps = true;
    }

    /// Opens a stream of ours and sends the head of its request; `None`: the connection takes none.
    pub fn send_request(
        &mut self,
        line: &RequestLine<'_>,
        headers: &HeaderMap,
        own: &[(HeaderName, HeaderValue)],
        length: Option<u64>,
        end: bool,
    ) -> Option<u32> {
        let id = if self.last == 0 { 1 } else { self.last + 2 };
        if self.goodbye || self.ended.is_some() || id > MAX_WINDOW {
            return None;
        }
        let mut stream = Box::new(Stream::new(self.rules.stream_window.max(FIRST_WINDOW), self.first_send_window));
        stream.outgoing.ended = end;
        stream.outgoing.begins = self.queued;
        self.last = id;
        self.opened += 1;
        self.open += 1;
        self.streams.insert(id, stream);
        self.queue_frames(|out, encoder| {
            frame::write_headers(&mut out.tail, id, end, |block| {
                encoder.begin(block);
                encoder.method(block, line.method);
                encoder.scheme(block, false);
                encoder.authority(block, line.authority.as_str());
                encoder.path(block, line.path);
                write_fields(encoder, block, headers, own);
                if let Some(bytes) = length {
                    encoder.content_length(block, bytes);
                }
            });
        });
        Some(id)
    }

    fn end_outgoing(&mut self, id: u32) -> Result<(), Lost> {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.outgoing.ended => {
                stream.outgoing.ended = true;
                Ok(())
            }
            Some(stream) => Err(stream.lost.clone().unwrap_or(Lost::Dropped)),
            None => Err(Lost::Dropped),
        }
    }

    /// Asks whether the far side is there: one ping for all streams that want to know.
    pub fn ask(&mut self) {
        if self.asked.replace(self.heard) != Some(self.heard) {
            self.queue_frames(|out, _| frame::write_ping(&mut out.tail, false, THERE));
        }
    }

    /// Others need the places of those who do not read, or no longer.
    pub fn set_hurry(&mut self, hurry: bool) {
        if std::mem::replace(&mut self.hurry, hurry) == hurry {
            return;
        }
        // Those that wait look at their time again.
        for stream in self.streams.values() {
            if let Some(sender) = &stream.outgoing.sender {
                sender.wake_by_ref();
            }
        }
    }

    /// A direction of the stream has ended: closes it when both have, and forgets it when nobody needs it.
    pub fn settle(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.lost.is_none() && self.role == Role::Server && stream.outgoing.ended && !stream.incoming.ended {
            // RFC 9113 §8.1: the response is whole, and nobody needs the rest of the request.
            return self.reset(id, Code::NO_ERROR, Lost::Dropped);
        }
        if !stream.is_over() {
            return;
        }
        let regular = stream.lost.is_none();
        let wanted = stream.incoming.wanted;
        if std::mem::take(&mut stream.open) {
            self.open -= 1;
            if regular {
                self.budget.finished();
            }
        }
        if !wanted {
            self.streams.remove(&id);
        }
        if self.open == 0 {
            // It may be time to close, or the beginning of idleness.
            self.wake_driver();
        }
    }

    /// Drops what is known of a stream that is over and that nobody reads.
    pub fn forget_if_over(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|stream| stream.is_over() && !stream.incoming.wanted) {
            self.streams.remove(&id);
        }
    }

    /// Ends a stream before its end and tells the far side.
    pub fn reset(&mut self, id: u32, code: Code, lost: Lost) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.is_over() {
            return;
        }
        self.remember_reset(id);
        self.queue_frames(|out, _| frame::write_reset(&mut out.tail, id, code));
        self.lose(id, lost);
    }

    fn remember_reset(&mut self, id: u32) {
        if self.reset.len() >= REMEMBERED_RESETS {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
    }

    /// A stream will not come to its end.
    pub fn lose(&mut self, id: u32, lost: Lost) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.lost.is_some() {
            return;
        }
        // A response that came whole stays whole; only what we still sent stops (RFC 9113 §8.1).
        let whole = self.role == Role::Client && stream.incoming.ended;
        stream.outgoing.ended = true;
        if !whole {
            stream.lost = Some(lost);
        }
        if let Some(work) = stream.work.take() {
            work.abort();
        }
        stream.wake_all();
        if !self.queue.is_empty() {
            // It may have been given its turn and does not use it.
            self.wake_queue();
        }
        self.settle(id);
    }

    /// The connection is over, and all its streams with it.
    pub fn end(&mut self, ended: Ended) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(ended.clone());
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for id in ids {
            self.lose(id, Lost::Connection(ended.clone()));
        }
    }

    /// The far side broke a rule that concerns one stream.
    ///
    /// # Errors
    /// It did so too often.
    pub fn offend(&mut self, id: u32, offence: Offence) -> Result<(), Ended> {
        if self.streams.get(&id).is_some_and(|stream| !stream.is_over()) {
            self.reset(id, offence.code, Lost::Offence(offence));
        } else {
            self.remember_reset(id);
            self.queue_frames(|out, _| frame::write_reset(&mut out.tail, id, offence.code));
        }
        self.spend(Deed::Broken)
    }

    /// # Errors
    /// The account is empty.
    pub fn spend(&mut self, deed: Deed) -> Result<(), Ended> {
        let born = self.born;
        match self.budget.spend(deed, || host::now().saturating_duration_since(born)) {
            Verdict::Fine => Ok(()),
            Verdict::Leave => {
                self.leave = true;
                Ok(())
            }
            Verdict::Close => Err(Ended::Flood { limit: self.budget.limit(), deed }),
        }
    }

    /// What was charged to the account since the last call.
    pub fn take_charged(&mut self) -> Option<Charged> {
        self.budget.take_charged()
    }

    /// Content came.
    pub fn carried(&mut self, bytes: usize) {
        self.budget.carry(bytes);
    }

    /// Whether frames on this stream, which is not open any more, may have been on their way when we reset or refused it or said
    /// goodbye: they are no offence.
    pub fn may_lag(&self, id: u32) -> bool {
        id > self.accept_up_to || self.reset.contains(&id)
    }

    /// Turns a stream away that nobody has looked at (RFC 9113 §8.7).
    pub fn refuse(&mut self, id: u32) {
        self.remember_reset(id);
        self.queue_frames(|out, _| frame::write_reset(&mut out.tail, id, Code::REFUSED_STREAM));
    }

    /// A setting of the far side.
    ///
    /// # Errors
    /// It makes a window too large.
    pub fn set(&mut self, id: u16, value: u32) -> Result<(), Offence> {
        use frame::setting;
        match id {
            setting::HEADER_TABLE_SIZE => self.encoder.resize((value as usize).min(TABLE_BYTES)),
            setting::MAX_CONCURRENT_STREAMS => self.peer_streams = value,
            setting::INITIAL_WINDOW_SIZE => {
                let change = i64::from(value) - self.first_send_window;
                self.first_send_window = i64::from(value);
                for stream in self.streams.values_mut() {
                    stream.outgoing.window += change;
                    if stream.outgoing.window > i64::from(MAX_WINDOW) {
                        return Err(Offence { code: Code::FLOW_CONTROL_ERROR, what: "a window is too large" });
                    }
                    if let Some(sender) = stream.outgoing.sender.take() {
                        sender.wake();
                    }
                }
            }
            setting::ENABLE_PUSH if value == 1 && self.role == Role::Client => {
                return Err(Offence::protocol("a server cannot be pushed to"));
            }
            _ => {}
        }
        Ok(())
    }

    /// The far side opens a stream; the caller has checked that it may.
    pub fn open(&mut self, id: u32) {
        self.last = id;
        self.opened += 1;
        self.open += 1;
        // Before it has seen our settings it may use the window of the standard (RFC 9113 §6.9.3).
        let stream = Box::new(Stream::new(self.rules.stream_window.max(FIRST_WINDOW), self.first_send_window));
        self.streams.insert(id, stream);
    }
}
