//! The socket of a connection: frames in, frames out.
//!
//! One task polls a [`Driver`]. It reads what has come, hands every frame to the streams in `link.rs`, and writes what they queued. It
//! does not read on while the far side leaves our answers lying, and gives way to others after some reads.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio_util::io::poll_read_buf;

use super::{
    budget::Deed,
    fault::{Code, Ended, Lost, Offence, Refusal},
    frame::{self, Head, MAX_PAYLOAD, flag, kind},
    head::{Lines, RequestHead},
    hpack::decode::Decoder,
    link::{Link, Role, State},
    outgoing::Outgoing,
};
use crate::{host::Stream, http::interim::Interim};

/// Bytes asked of the socket at once; TLS gives one record at a time.
const READ_BYTES: usize = 16 * 1024;
/// Reads before others have their turn.
const READS_AT_ONCE: usize = 16;
/// Contents up to this are copied: a slice would keep all that was read with it.
const COPIED_BYTES: usize = 2048;

/// One connection's socket.
pub(super) struct Driver<S> {
    io: S,
    link: Arc<Link>,
    received: BytesMut,
    decoder: Decoder,
    /// Fields that the last head had: the next one will have about as many.
    usual_fields: usize,
    /// A header block that goes on in the next frame.
    block: Option<Block>,
    /// What is being written; while it is, streams queue in the link.
    writing: Outgoing,
    /// Bytes of the preface that must still come.
    preface: usize,
    /// No frame has come yet.
    fresh: bool,
    /// Something has come since somebody last asked.
    heard: bool,
    /// Nothing was read, because the far side does not read either.
    stalled: bool,
    /// The far side has ended its side.
    ended: bool,
    /// A server's: requests that came and that nobody has looked at.
    pub arrived: VecDeque<Arrived>,
    /// Pings of ours that were answered.
    pub pongs: Vec<[u8; 8]>,
}

/// A request, or why there is none.
#[derive(Debug)]
pub(super) struct Arrived {
    pub stream: u32,
    pub head: Result<RequestHead, Refusal>,
}

struct Block {
    stream: u32,
    ends: bool,
    bytes: BytesMut,
}

/// An interim response on its way to whoever waits for the final one.
type Announcement = (Interim, StatusCode, HeaderMap);

impl<S: Stream> Driver<S> {
    pub fn new(io: S, link: Arc<Link>) -> Self {
        let server = link.lock().role == Role::Server;
        Self {
            io,
            link,
            received: BytesMut::new(),
            decoder: Decoder::default(),
            usual_fields: 0,
            block: None,
            writing: Outgoing::default(),
            preface: if server { frame::PREFACE.len() } else { 0 },
            fresh: true,
            heard: false,
            stalled: false,
            ended: false,
            arrived: VecDeque::new(),
            pongs: Vec::new(),
        }
    }

    /// Whether the preface has come.
    pub const fn has_begun(&self) -> bool {
        self.preface == 0
    }

    /// Whether some of the preface has come.
    pub fn has_heard_anything(&self) -> bool {
        !self.fresh || self.preface < frame::PREFACE.len() || !self.received.is_empty()
    }

    /// Whether something has come since the last call.
    pub const fn take_heard(&mut self) -> bool {
        mem::replace(&mut self.heard, false)
    }

    /// Whether all that was queued has been written.
    pub fn is_flushed(&self) -> bool {
        self.writing.is_empty() && self.link.lock().out.is_empty()
    }

    /// Gives the memory of an idle connection back.
    pub fn rest(&mut self) {
        if self.received.is_empty() {
            self.received = BytesMut::new();
        }
    }

    /// Reads and writes as much as goes; ready when the connection is over. Nobody needs to be told then but the far side.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let mut reads = 0;
        let mut again = true;
        while again {
            let ended = match self.poll_read(cx, &mut reads) {
                Poll::Ready(Ok(())) => {
                    // Others first: what they answer leaves with the same write.
                    cx.waker().wake_by_ref();
                    None
                }
                Poll::Ready(Err(ended)) => Some(ended),
                Poll::Pending => None,
            };
            if let Some(ended) = ended {
                self.link.lock().end(ended.clone());
                return Poll::Ready(ended);
            }
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    let ended = Ended::from(error);
                    self.link.lock().end(ended.clone());
                    return Poll::Ready(ended);
                }
                Poll::Pending => {}
            }
            let mut state = self.link.lock();
            // While we wrote, streams may have queued in other threads; and what stood in the way of reading may be gone.
            again = self.writing.is_empty() && (!state.out.is_empty() || mem::take(&mut self.stalled));
            if !again {
                state.sleep(cx);
            }
        }
        Poll::Pending
    }

    /// Ready: there is more, but others are waiting.
    fn poll_read(&mut self, cx: &mut Context<'_>, reads: &mut usize) -> Poll<Result<(), Ended>> {
        loop {
            if self.ended {
                return Poll::Pending;
            }
            if !self.writing.is_empty() {
                let state = self.link.lock();
                // Contents stop at the buffer's size; what is beyond are heads and replies, which whoever does not read them could ask
                // for without end. A client never stops reading: two that wait for each other would wait for ever.
                if state.role == Role::Server && state.out.len() >= state.rules.buffer_bytes.saturating_mul(2) {
                    self.stalled = true;
                    return Poll::Pending;
                }
            }
            if *reads == READS_AT_ONCE {
                return Poll::Ready(Ok(()));
            }
            *reads += 1;
            if self.received.capacity() - self.received.len() < READ_BYTES / 4 {
                self.received.reserve(READ_BYTES);
            }
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.received) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(0)) => {
                    self.ended = true;
                    return Poll::Ready(Err(if self.link.lock().open > 0 || !self.received.is_empty() {
                        std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()
                    } else {
                        Ended::Closed
                    }));
                }
                Poll::Ready(Ok(_)) => {
                    self.heard = true;
                    self.take_frames()?;
                }
            }
        }
    }

    /// Writes what is queued.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        loop {
            if self.writing.is_empty() {
                let mut state = self.link.lock();
                if state.out.is_empty() {
                    state.outgoing_memory.shrink();
                    drop(state);
                    return Pin::new(&mut self.io).poll_flush(cx);
                }
                mem::swap(&mut self.writing, &mut state.out);
                state.wake_queue();
            }
            let mut written = 0;
            let result = self.writing.poll_write(&mut self.io, cx, |bytes| written += bytes);
            self.link.lock().written += written as u64;
            std::task::ready!(result)?;
        }
    }

    /// Ends our side of the socket, after what is queued was written.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        std::task::ready!(self.poll_write(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Reads and forgets; ready when the far side has ended, or after `most` bytes.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>, most: &mut usize) -> Poll<()> {
        while *most > 0 && !self.ended {
            self.received.clear();
            self.received.reserve(READ_BYTES);
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.received) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(read)) if read > 0 => *most = most.saturating_sub(read),
                Poll::Ready(_) => self.ended = true,
            }
        }
        Poll::Ready(())
    }

    fn take_frames(&mut self) -> Result<(), Ended> {
        if self.preface > 0 {
            let take = self.preface.min(self.received.len());
            let done = frame::PREFACE.len() - self.preface;
            let (came, _) = self.received.split_at_checked(take).unwrap_or_default();
            if !frame::PREFACE.get(done..).unwrap_or_default().starts_with(came) {
                return Err(Offence::protocol("the connection does not begin as HTTP/2 does").into());
            }
            self.received.advance(take);
            self.preface -= take;
        }
        let mut announcements: Vec<Announcement> = Vec::new();
        let link = Arc::clone(&self.link);
        let mut state = link.lock();
        state.heard += 1;
        let result = loop {
            match self.take_frame(&mut state, &mut announcements) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(ended) => break Err(ended),
            }
        };
        drop(state);
        // They lead to other connections, whose locks must not be taken under ours.
        for (interim, status, headers) in announcements {
            interim.announce(status, &headers);
        }
        result
    }

    /// Takes one whole frame in; false: there is none.
    fn take_frame(&mut self, state: &mut State, announcements: &mut Vec<Announcement>) -> Result<bool, Ended> {
        let Some(head) = Head::read(&self.received) else { return Ok(false) };
        if head.length > MAX_PAYLOAD {
            return Err(Offence { code: Code::FRAME_SIZE_ERROR, what: "a frame is larger than agreed" }.into());
        }
        if self.fresh && head.kind != kind::SETTINGS {
            return Err(Offence::protocol("the first frame is not SETTINGS").into());
        }
        if self.received.len() < frame::HEAD_BYTES + head.length {
            return Ok(false);
        }
        self.fresh = false;
        if let Some(block) = &self.block
            && (head.kind != kind::CONTINUATION || head.stream != block.stream)
        {
            return Err(Offence::protocol("a header block is interrupted").into());
        }
        self.received.advance(frame::HEAD_BYTES);
        match head.kind {
            kind::DATA => self.data(state, &head)?,
            kind::HEADERS | kind::CONTINUATION => {
                self.headers(state, &head, announcements)?;
                self.received.advance(head.length);
            }
            _ => {
                let payload = self.received.get(..head.length).unwrap_or_default();
                let deed = control(state, &head, payload, &mut self.pongs)?;
                if head.kind == kind::RST_STREAM {
                    // Not even begun: nobody is to work on it.
                    let before = self.arrived.len();
                    self.arrived.retain(|arrived| arrived.stream != head.stream);
                    let deed = if self.arrived.len() < before { Deed::ResetAtOnce } else { deed };
                    state.spend(deed)?;
                }
                self.received.advance(head.length);
            }
        }
        Ok(true)
    }

    fn data(&mut self, state: &mut State, head: &Head) -> Result<(), Ended> {
        state.receive(head.length)?;
        if head.stream == 0 {
            return Err(Offence::protocol("DATA on no stream").into());
        }
        if is_idle(state, head.stream) {
            return Err(Offence::protocol("DATA on a stream that was never opened").into());
        }
        let payload = self.received.get(..head.length).unwrap_or_default();
        let length = frame::unpad(head, payload)?.len();
        let skip = usize::from(head.has(flag::PADDED));
        let ends = head.has(flag::END_STREAM);
        let offence = match state.streams.get_mut(&head.stream).filter(|stream| stream.lost.is_none()) {
            None => Some(Offence { code: Code::STREAM_CLOSED, what: "DATA on a stream that has ended" }),
            Some(stream) => {
                let incoming = &mut stream.incoming;
                incoming.window -= head.length as i64;
                let answered = incoming.answer.as_ref().is_none_or(|answer| answer.head.is_some()) || stream.answered;
                let bodiless = incoming.answer.as_ref().is_some_and(|answer| answer.bodiless);
                let fits = match incoming.left {
                    Some(left) if left < length as u64 => false,
                    Some(left) => !ends || left == length as u64,
                    None => true,
                };
                if incoming.ended {
                    Some(Offence { code: Code::STREAM_CLOSED, what: "DATA behind the end of a stream" })
                } else if !answered {
                    Some(Offence::protocol("DATA before the head of a response"))
                } else if incoming.window < 0 {
                    Some(Offence { code: Code::FLOW_CONTROL_ERROR, what: "more content than the stream's window" })
                } else if bodiless && length > 0 {
                    Some(Offence::protocol("content in a response that has none"))
                } else if !bodiless && !fits {
                    Some(Offence::protocol("content of another length than content-length says"))
                } else {
                    None
                }
            }
        };
        if let Some(offence) = offence {
            state.take_from_connection(head.length);
            self.received.advance(head.length);
            if offence.code == Code::STREAM_CLOSED && state.may_lag(head.stream) {
                return state.spend(Deed::Late);
            }
            return state.offend(head.stream, offence);
        }
        self.received.advance(skip);
        let content = if length > COPIED_BYTES {
            self.received.split_to(length).freeze()
        } else {
            let content = Bytes::copy_from_slice(self.received.get(..length).unwrap_or_default());
            self.received.advance(length);
            content
        };
        let padding = head.length - length;
        self.received.advance(padding - skip);
        state.carried(length);
        if padding > 0 {
            state.take(head.stream, padding);
        }
        if length == 0 && !ends {
            state.spend(Deed::EmptyData)?;
        }
        let Some(stream) = state.streams.get_mut(&head.stream) else { return Ok(()) };
        let incoming = &mut stream.incoming;
        if let Some(left) = &mut incoming.left {
            *left = left.saturating_sub(length as u64);
        }
        incoming.ended = ends;
        if incoming.wanted {
            if length > 0 {
                incoming.pieces.push(content);
            }
            if let Some(reader) = incoming.reader.take() {
                reader.wake();
            }
        } else {
            state.take(head.stream, length);
        }
        if ends {
            state.settle(head.stream);
        }
        Ok(())
    }

    fn headers(&mut self, state: &mut State, head: &Head, announcements: &mut Vec<Announcement>) -> Result<(), Ended> {
        let payload = self.received.get(..head.length).unwrap_or_default();
        let whole = head.has(flag::END_HEADERS);
        if head.kind == kind::CONTINUATION {
            // Empty ones cost nothing and would go on for ever (CVE-2024-27316).
            state.spend(Deed::Continuation)?;
            let Some(block) = &mut self.block else {
                return Err(Offence::protocol("CONTINUATION of nothing").into());
            };
            block.bytes.extend_from_slice(payload);
            if block.bytes.len() > state.rules.block_bytes {
                return Err(TOO_LARGE.into());
            }
            if !whole {
                return Ok(());
            }
            let Some(Block { stream, ends, bytes }) = self.block.take() else { return Ok(()) };
            return self.block_ends(state, stream, ends, &bytes, announcements);
        }
        if head.stream == 0 {
            return Err(Offence::protocol("HEADERS on no stream").into());
        }
        let content = frame::unpad(head, payload)?;
        let (content, depends_on_itself) = frame::without_priority(head, content)?;
        let ends = head.has(flag::END_STREAM);
        if depends_on_itself {
            return Err(Offence::protocol("a stream depends on itself").into());
        }
        if content.len() > state.rules.block_bytes {
            return Err(TOO_LARGE.into());
        }
        if !whole {
            self.block = Some(Block { stream: head.stream, ends, bytes: content.into() });
            return Ok(());
        }
        let mut lines = Lines::new(state.rules.head, self.usual_fields);
        self.decoder.decode(content, |field, bytes| lines.add(field, bytes))?;
        self.lines(state, head.stream, ends, lines, announcements)
    }

    fn block_ends(
        &mut self,
        state: &mut State,
        stream: u32,
        ends: bool,
        bytes: &[u8],
        announcements: &mut Vec<Announcement>,
    ) -> Result<(), Ended> {
        let mut lines = Lines::new(state.rules.head, self.usual_fields);
        self.decoder.decode(bytes, |field, bytes| lines.add(field, bytes))?;
        self.lines(state, stream, ends, lines, announcements)
    }

    /// A whole header block: a request, a response or trailers.
    fn lines(
        &mut self,
        state: &mut State,
        id: u32,
        ends: bool,
        lines: Lines,
        announcements: &mut Vec<Announcement>,
    ) -> Result<(), Ended> {
        self.usual_fields = lines.regular_fields();
        if state.role == Role::Server && id > state.last {
            return self.request(state, id, ends, lines);
        }
        if is_idle(state, id) {
            return Err(Offence::protocol("HEADERS on a stream that was never opened").into());
        }
        let Some(stream) = state.streams.get_mut(&id).filter(|stream| stream.lost.is_none()) else {
            if state.may_lag(id) {
                return state.spend(Deed::Late);
            }
            // Every stream from 1 on was opened: it has ended. Otherwise it may be one that was passed over.
            return Err(if u64::from(state.opened) * 2 == u64::from(state.last) + 1 {
                Offence { code: Code::STREAM_CLOSED, what: "HEADERS on a stream that has ended" }.into()
            } else {
                Offence::protocol("a stream with a number below one that was opened before").into()
            });
        };
        if stream.incoming.ended {
            return state.offend(id, Offence { code: Code::STREAM_CLOSED, what: "HEADERS behind the end of a stream" });
        }
        match &mut stream.incoming.answer {
            Some(answer) if !stream.answered => {
                let head = match lines.response() {
                    Ok(head) => head,
                    Err(refusal) => return state.offend(id, refusal.offence()),
                };
                let status = head.parts.status;
                if status.is_informational() {
                    answer.interim += 1;
                    if ends || answer.interim > state.rules.interim {
                        return state.offend(id, Offence::protocol("an interim response that ends, or one too many"));
                    }
                    if let Some(announce) = &answer.announce {
                        announcements.push((announce.clone(), status, head.parts.headers));
                    }
                    return Ok(());
                }
                answer.bodiless |= matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
                if ends && !answer.bodiless && head.content.is_some_and(|bytes| bytes > 0) {
                    return state.offend(id, Offence::protocol("content-length without content"));
                }
                stream.incoming.left = if answer.bodiless { None } else { head.content };
                answer.head = Some(head.parts);
                stream.answered = true;
            }
            _ => {
                let trailers = match lines.trailers() {
                    Ok(trailers) if ends => trailers,
                    Ok(_) => return state.offend(id, Offence::protocol("trailers that do not end the stream")),
                    Err(refusal) => return state.offend(id, refusal.offence()),
                };
                if stream.incoming.left.is_some_and(|left| left > 0) {
                    return state.offend(id, Offence::protocol("content of another length than content-length says"));
                }
                if !trailers.is_empty() && stream.incoming.wanted {
                    stream.incoming.trailers = Some(trailers);
                }
            }
        }
        stream.incoming.ended = ends;
        if let Some(reader) = stream.incoming.reader.take() {
            reader.wake();
        }
        if ends {
            state.settle(id);
        }
        Ok(())
    }

    fn request(&mut self, state: &mut State, id: u32, ends: bool, lines: Lines) -> Result<(), Ended> {
        if id.is_multiple_of(2) {
            return Err(Offence::protocol("a client opens a stream with an even number").into());
        }
        if id > state.accept_up_to {
            // We have said goodbye; it goes elsewhere.
            state.last = id;
            state.opened += 1;
            return Ok(());
        }
        if state.open >= state.rules.streams {
            state.last = id;
            state.opened += 1;
            state.refuse(id);
            return state.spend(Deed::Excess);
        }
        state.open(id);
        let head = lines.request(ends);
        if let Some(stream) = state.streams.get_mut(&id) {
            stream.incoming.ended = ends;
            stream.incoming.left = head.as_ref().ok().and_then(|head| head.content);
            stream.incoming.wanted = head.is_ok();
            stream.incoming.continue_due = !ends && head.as_ref().is_ok_and(RequestHead::expects_continue);
        }
        if let Err(Refusal::Malformed(what)) = &head {
            state.offend(id, Offence::protocol(what))?;
        }
        self.arrived.push_back(Arrived { stream: id, head });
        Ok(())
    }
}

const TOO_LARGE: Offence = Offence { code: Code::ENHANCE_YOUR_CALM, what: "a header block is too large" };

/// Nobody has opened it, so nothing but HEADERS can come on it (RFC 9113 §5.1).
fn is_idle(state: &State, id: u32) -> bool {
    id > state.last || id.is_multiple_of(2)
}

/// Frames that carry neither content nor fields. What they are charged as; all but RST_STREAM are already.
fn control(state: &mut State, head: &Head, payload: &[u8], pongs: &mut Vec<[u8; 8]>) -> Result<Deed, Ended> {
    let mut deed = Deed::control(head.kind);
    let on_connection = head.stream == 0;
    let right_place = match head.kind {
        kind::SETTINGS | kind::PING | kind::GOAWAY => on_connection,
        kind::PRIORITY | kind::RST_STREAM => !on_connection,
        _ => true,
    };
    if !right_place {
        return Err(Offence::protocol("a frame of the connection on a stream, or the reverse").into());
    }
    if head.kind != kind::RST_STREAM {
        state.spend(deed)?;
    }
    match head.kind {
        kind::SETTINGS if head.has(flag::ACK) && !payload.is_empty() => {
            return Err(Offence { code: Code::FRAME_SIZE_ERROR, what: "an acknowledgement with settings" }.into());
        }
        kind::SETTINGS if head.has(flag::ACK) => {}
        kind::SETTINGS => {
            let mut result = Ok(());
            frame::settings(payload, |id, value| {
                if result.is_ok() {
                    result = state.set(id, value);
                }
            })?;
            result?;
            state.queue_frames(|out, _| frame::write_settings_ack(&mut out.tail));
        }
        kind::PING => {
            let Ok(payload) = <[u8; 8]>::try_from(payload) else {
                return Err(Offence { code: Code::FRAME_SIZE_ERROR, what: "PING is not eight bytes" }.into());
            };
            if head.has(flag::ACK) {
                pongs.push(payload);
            } else {
                state.queue_frames(|out, _| frame::write_ping(&mut out.tail, true, payload));
            }
        }
        kind::WINDOW_UPDATE => {
            if !on_connection && is_idle(state, head.stream) {
                return Err(Offence::protocol("WINDOW_UPDATE on a stream that was never opened").into());
            }
            let bytes = frame::four_bytes(payload)? & frame::MAX_WINDOW;
            state.widen(head.stream, bytes)?;
        }
        kind::RST_STREAM => {
            let code = Code(frame::four_bytes(payload)?);
            if is_idle(state, head.stream) {
                return Err(Offence::protocol("RST_STREAM on a stream that was never opened").into());
            }
            let begun = state.streams.get(&head.stream).is_some_and(|stream| stream.work.is_some() && !stream.answered);
            state.lose(head.stream, Lost::Reset(code));
            if begun {
                deed = Deed::ResetInWork;
            }
        }
        kind::GOAWAY => {
            let (last, code) = frame::goaway(payload)?;
            state.goodbye = true;
            if state.role == Role::Client {
                let unseen: Vec<u32> = state.streams.keys().copied().filter(|id| *id > last).collect();
                for id in unseen {
                    state.lose(id, Lost::NotSeen);
                }
            }
            if code != Code::NO_ERROR {
                state.end(Ended::Goodbye(code));
                return Err(Ended::Goodbye(code));
            }
            // Whoever waits for a place here has to look elsewhere.
            state.wake_driver();
        }
        kind::PRIORITY => {
            if payload.len() != 5 {
                let what = "PRIORITY is not five bytes";
                state.offend(head.stream, Offence { code: Code::FRAME_SIZE_ERROR, what })?;
                return Ok(deed);
            }
            if frame::depends_on(payload) == Some(head.stream) {
                return Err(Offence::protocol("a stream depends on itself").into());
            }
        }
        kind::PUSH_PROMISE => return Err(Offence::protocol("a push that nobody asked for").into()),
        // RFC 9113 §5.5: unknown frames are passed over.
        _ => {}
    }
    Ok(deed)
}

impl Refusal {
    /// What a stream with it is reset with.
    pub(super) const fn offence(self) -> Offence {
        match self {
            Self::Malformed(what) => Offence::protocol(what),
            Self::Answer(_) => Offence::protocol("fields that are too large"),
        }
    }
}
