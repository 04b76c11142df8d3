//! The server against raw frames over in-memory pipes, in virtual time.
#![allow(clippy::unwrap_used)]

mod expect;
mod memory;
mod stall;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;
use http::HeaderValue;
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinHandle,
};

use super::{
    super::{
        budget::Deed,
        client,
        frame::{FIRST_WINDOW, HEAD_BYTES, Head, MAX_PAYLOAD, PREFACE, flag, kind},
        hpack::encode::Encoder,
        link::RequestLine,
    },
    *,
};
use crate::{
    drain::{DrainTrigger, drain},
    http::body::tests::{data, fed},
    settings::Limits,
};

const LIFE: Lifetime = Lifetime {
    requests: 1_000_000,
    first_byte: Duration::from_secs(10),
    head: Duration::from_secs(10),
    idle: Duration::from_secs(3600),
    age: Duration::from_secs(36_000),
    stall: Patience { silent: Duration::from_secs(30), alive: Duration::from_secs(300) },
};

struct Raw {
    io: DuplexStream,
    received: BytesMut,
    encoder: Encoder,
    task: JoinHandle<Result<(), Ended>>,
    drain: DrainTrigger,
}

/// One frame as it came.
#[derive(Debug)]
struct Frame {
    head: Head,
    payload: Vec<u8>,
}

impl Frame {
    fn code(&self) -> Option<Code> {
        let at = match self.head.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        self.payload.get(at..at + 4).map(|bytes| Code(u32::from_be_bytes(bytes.try_into().unwrap())))
    }
}

fn limits() -> Limits {
    Limits { http2_streams: 4, http2_control_frames: 100, ..Limits::default() }
}

impl Raw {
    /// A server and a client that has sent nothing.
    fn silent<H, F>(limits: &Limits, handler: H) -> Self
    where
        H: Fn(Request<Body>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let (near, far) = duplex(1 << 20);
        let (trigger, watch) = drain();
        let rules = Rules::new(limits, limits.http2_streams);
        let task = tokio::spawn(async move {
            serve(far, rules, LIFE, watch, move |request, _| handler(request), |_| {}, |_| {}).await
        });
        Self { io: near, received: BytesMut::new(), encoder: Encoder::default(), task, drain: trigger }
    }

    async fn with<H, F>(limits: &Limits, handler: H) -> Self
    where
        H: Fn(Request<Body>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut raw = Self::silent(limits, handler);
        raw.io.write_all(PREFACE).await.unwrap();
        raw.send(kind::SETTINGS, 0, 0, &[]).await;
        raw
    }

    /// The usual: answers with the request's content.
    async fn echo() -> Self {
        Self::with(&limits(), echo).await
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        // The server may have closed already; what it said is what counts.
        let _ = self.io.write_all(&raw_frame(kind, flags, stream, payload)).await;
    }

    async fn headers(&mut self, stream: u32, flags: u8, fields: &[(&str, &str)]) {
        let block = block(&mut self.encoder, fields);
        self.send(kind::HEADERS, flags, stream, &block).await;
    }

    async fn get(&mut self, stream: u32) {
        self.headers(stream, flag::END_HEADERS | flag::END_STREAM, &GET).await;
    }

    /// The next frame; `None`: the server closed.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(head) = Head::read(&self.received)
                && self.received.len() >= HEAD_BYTES + head.length
            {
                let whole = self.received.split_to(HEAD_BYTES + head.length);
                return Some(Frame { head, payload: whole[HEAD_BYTES..].to_vec() });
            }
            if self.io.read_buf(&mut self.received).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// The first frame of this kind.
    async fn until(&mut self, wanted: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("closed before a frame of kind {wanted}"));
            if frame.head.kind == wanted && !(wanted == kind::SETTINGS && frame.head.has(flag::ACK)) {
                return frame;
            }
        }
    }

    /// What the server does about something: the stream it resets or 0 for the connection, and why.
    async fn verdict(&mut self) -> (u32, Code) {
        loop {
            let frame = self.next().await.expect("the server closed without a word");
            if let Some(code) = frame.code() {
                return (if frame.head.kind == kind::GOAWAY { 0 } else { frame.head.stream }, code);
            }
        }
    }
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/p")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":authority", "a.test"), (":path", "/p")];

async fn echo(request: Request<Body>) -> Response<Body> {
    Response::new(request.into_body())
}

fn raw_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header block, pseudo-header fields as literals, in the order given.
fn block(encoder: &mut Encoder, fields: &[(&str, &str)]) -> BytesMut {
    let mut out = BytesMut::new();
    encoder.begin(&mut out);
    for (name, value) in fields {
        if name.starts_with(':') || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            out.extend_from_slice(&[0, u8::try_from(name.len()).unwrap()]);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&[u8::try_from(value.len()).unwrap()]);
            out.extend_from_slice(value.as_bytes());
        } else {
            encoder.field(&mut out, &name.parse().unwrap(), &value.parse::<HeaderValue>().unwrap());
        }
    }
    out
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_and_its_content_comes_back() {
    let mut raw = Raw::echo().await;
    raw.headers(1, flag::END_HEADERS, &POST).await;
    raw.send(kind::DATA, flag::PADDED, 1, b"\x02hel\0\0").await;
    raw.send(kind::DATA, flag::END_STREAM, 1, b"lo").await;
    let head = raw.until(kind::HEADERS).await;
    assert_eq!((head.head.stream, head.payload.first()), (1, Some(&0x88)));
    let mut content = Vec::new();
    loop {
        let frame = raw.until(kind::DATA).await;
        content.extend_from_slice(&frame.payload);
        if frame.head.has(flag::END_STREAM) {
            break;
        }
    }
    assert_eq!(content, b"hello");
}

#[tokio::test(start_paused = true)]
async fn the_length_of_content_counts_what_has_come_already() {
    // The next hop is told the length: told the rest only, it would take the end for another message.
    let mut raw = Raw::echo().await;
    raw.headers(1, flag::END_HEADERS, &[&POST[..], &[("content-length", "6")]].concat()).await;
    raw.send(kind::DATA, 0, 1, b"four").await;
    let head = raw.until(kind::HEADERS).await;
    assert!(head.payload.windows(3).any(|field| field == b"\x0d\x016"), "{:x?}", head.payload);
    raw.send(kind::DATA, flag::END_STREAM, 1, b"ty").await;
    assert_eq!(
        (raw.until(kind::DATA).await.payload, raw.until(kind::DATA).await.payload),
        (b"four".to_vec(), b"ty".to_vec())
    );
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_connection_ends_it() {
    // RFC 9113, the section behind each; a server that lets one pass disagrees with the next reader about what follows.
    let window = (1_u32 << 31) - 1;
    let large = window.to_be_bytes();
    for (name, kind, flags, stream, payload, code) in [
        ("§6.1 DATA on no stream", kind::DATA, 0, 0, &b"x"[..], Code::PROTOCOL_ERROR),
        ("§5.1 DATA on an idle stream", kind::DATA, 0, 1, b"x", Code::PROTOCOL_ERROR),
        ("§6.1 padding", kind::HEADERS, flag::PADDED | flag::END_HEADERS, 1, b"\x09\x82", Code::PROTOCOL_ERROR),
        ("§6.2 HEADERS on no stream", kind::HEADERS, flag::END_HEADERS, 0, b"\x82", Code::PROTOCOL_ERROR),
        ("§5.1.1 even stream", kind::HEADERS, flag::END_HEADERS, 2, b"\x82", Code::PROTOCOL_ERROR),
        ("§4.3 compression", kind::HEADERS, flag::END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff", Code::COMPRESSION_ERROR),
        ("§6.3 PRIORITY on no stream", kind::PRIORITY, 0, 0, &[0; 5], Code::PROTOCOL_ERROR),
        ("§6.4 RST_STREAM on no stream", kind::RST_STREAM, 0, 0, &[0; 4], Code::PROTOCOL_ERROR),
        ("§6.4 RST_STREAM on an idle stream", kind::RST_STREAM, 0, 1, &[0; 4], Code::PROTOCOL_ERROR),
        ("§6.4 length", kind::RST_STREAM, 0, 1, &[0; 3], Code::FRAME_SIZE_ERROR),
        ("§6.5 SETTINGS on a stream", kind::SETTINGS, 0, 1, &[], Code::PROTOCOL_ERROR),
        ("§6.5 ACK with payload", kind::SETTINGS, flag::ACK, 0, &[0; 6], Code::FRAME_SIZE_ERROR),
        ("§6.5 length", kind::SETTINGS, 0, 0, &[0; 5], Code::FRAME_SIZE_ERROR),
        ("§6.5.2 window", kind::SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0], Code::FLOW_CONTROL_ERROR),
        ("§6.5.2 push", kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2], Code::PROTOCOL_ERROR),
        ("§6.6 PUSH_PROMISE", kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[0, 0, 0, 2, 0x82], Code::PROTOCOL_ERROR),
        ("§6.7 PING on a stream", kind::PING, 0, 1, &[0; 8], Code::PROTOCOL_ERROR),
        ("§6.7 length", kind::PING, 0, 0, &[0; 7], Code::FRAME_SIZE_ERROR),
        ("§6.8 GOAWAY on a stream", kind::GOAWAY, 0, 1, &[0; 8], Code::PROTOCOL_ERROR),
        ("§6.9 nothing", kind::WINDOW_UPDATE, 0, 0, &[0; 4], Code::PROTOCOL_ERROR),
        ("§6.9 idle stream", kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1], Code::PROTOCOL_ERROR),
        ("§6.9.1 too much", kind::WINDOW_UPDATE, 0, 0, &large, Code::FLOW_CONTROL_ERROR),
        ("§6.10 CONTINUATION of nothing", kind::CONTINUATION, flag::END_HEADERS, 1, b"\x82", Code::PROTOCOL_ERROR),
    ] {
        let mut raw = Raw::echo().await;
        raw.send(kind, flags, stream, payload).await;
        assert_eq!(raw.verdict().await, (0, code), "{name}");
        raw.task.await.unwrap().expect_err(name);
    }
    let mut raw = Raw::echo().await;
    raw.send(kind::PING, 0, 0, &vec![0; MAX_PAYLOAD + 1]).await;
    assert_eq!(raw.verdict().await, (0, Code::FRAME_SIZE_ERROR));
    let mut raw = Raw::echo().await;
    raw.send(kind::HEADERS, 0, 1, b"\x82").await;
    raw.send(kind::PING, 0, 0, &[0; 8]).await;
    assert_eq!(raw.verdict().await, (0, Code::PROTOCOL_ERROR));
    let mut raw = Raw::silent(&limits(), echo);
    raw.io.write_all(PREFACE).await.unwrap();
    raw.send(kind::PING, 0, 0, &[0; 8]).await;
    assert_eq!(raw.verdict().await, (0, Code::PROTOCOL_ERROR));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_a_stream_ends_only_that() {
    let seen = Arc::new(AtomicUsize::new(0));
    for (name, fields, ends, then, code) in [
        ("uppercase", [&GET[..], &[("X-Upper", "1")]].concat(), true, None, Code::PROTOCOL_ERROR),
        ("connection", [&GET[..], &[("connection", "close")]].concat(), true, None, Code::PROTOCOL_ERROR),
        ("pseudo last", [&[("x-a", "1")], &GET[..]].concat(), true, None, Code::PROTOCOL_ERROR),
        ("no method", GET[1..].to_vec(), true, None, Code::PROTOCOL_ERROR),
        ("length and end", [&POST[..], &[("content-length", "3")]].concat(), true, None, Code::PROTOCOL_ERROR),
        (
            "more than content-length",
            [&POST[..], &[("content-length", "3")]].concat(),
            false,
            Some(raw_frame(kind::DATA, 0, 1, b"four")),
            Code::PROTOCOL_ERROR,
        ),
        (
            "less than content-length",
            [&POST[..], &[("content-length", "3")]].concat(),
            false,
            Some(raw_frame(kind::DATA, flag::END_STREAM, 1, b"tw")),
            Code::PROTOCOL_ERROR,
        ),
        (
            "pseudo-header in trailers",
            POST.to_vec(),
            false,
            Some(raw_frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, b"\x82")),
            Code::PROTOCOL_ERROR,
        ),
        (
            "trailers that do not end",
            POST.to_vec(),
            false,
            Some(raw_frame(kind::HEADERS, flag::END_HEADERS, 1, b"\0\x01a\x01b")),
            Code::PROTOCOL_ERROR,
        ),
        (
            "stream window",
            POST.to_vec(),
            false,
            Some(raw_frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4])),
            Code::PROTOCOL_ERROR,
        ),
    ] {
        let count = Arc::clone(&seen);
        let mut raw = Raw::with(&limits(), move |request: Request<Body>| {
            let count = Arc::clone(&count);
            async move {
                let whole = request.into_body().collect().await.is_ok();
                count.fetch_add(usize::from(whole), Ordering::Relaxed);
                Response::new(Body::empty())
            }
        })
        .await;
        raw.headers(1, flag::END_HEADERS | if ends { flag::END_STREAM } else { 0 }, &fields).await;
        if let Some(then) = then {
            raw.io.write_all(&then).await.unwrap();
        }
        assert_eq!(raw.verdict().await, (1, code), "{name}");
        assert_eq!(seen.load(Ordering::Relaxed), 0, "{name}: a handler took it for whole");
        raw.get(3).await;
        assert_eq!(raw.until(kind::HEADERS).await.head.stream, 3, "{name}: the connection is lost");
        seen.store(0, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn frames_behind_the_end_of_a_stream_are_refused() {
    let mut raw = Raw::echo().await;
    raw.get(1).await;
    raw.until(kind::HEADERS).await;
    raw.send(kind::DATA, 0, 1, b"x").await;
    assert_eq!(raw.verdict().await, (1, Code::STREAM_CLOSED));
    let mut raw = Raw::echo().await;
    raw.get(1).await;
    raw.until(kind::HEADERS).await;
    raw.get(1).await;
    assert_eq!(raw.verdict().await, (0, Code::STREAM_CLOSED));
    let mut raw = Raw::echo().await;
    raw.get(5).await;
    raw.get(3).await;
    assert_eq!(raw.verdict().await, (0, Code::PROTOCOL_ERROR));
}

#[tokio::test(start_paused = true)]
async fn more_streams_than_allowed_are_refused_and_the_others_go_on() {
    // RFC 9113 §5.1.2; whoever is refused may try again elsewhere.
    let mut raw = Raw::echo().await;
    for stream in [1, 3, 5, 7] {
        raw.headers(stream, flag::END_HEADERS, &POST).await;
    }
    raw.headers(9, flag::END_HEADERS, &POST).await;
    assert_eq!(raw.verdict().await, (9, Code::REFUSED_STREAM));
    raw.send(kind::DATA, flag::END_STREAM, 3, b"x").await;
    assert_eq!(raw.until(kind::DATA).await.payload, b"x");
    raw.headers(11, flag::END_HEADERS | flag::END_STREAM, &GET).await;
    assert_eq!(raw.until(kind::HEADERS).await.head.stream, 11);
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_to_a_stream_that_was_turned_away_is_no_offence() {
    // Clients learn of a refusal or a goodbye only after they have sent content; the requests beside it would be lost.
    let mut raw = Raw::echo().await;
    for stream in [1, 3, 5, 7] {
        raw.headers(stream, flag::END_HEADERS, &POST).await;
    }
    for stream in (9..25).step_by(2) {
        raw.headers(stream, flag::END_HEADERS, &POST).await;
        raw.send(kind::DATA, 0, stream, &[b'x'; 2000]).await;
        raw.headers(stream, flag::END_HEADERS | flag::END_STREAM, &[("x-sum", "1")]).await;
        assert_eq!(raw.verdict().await, (stream, Code::REFUSED_STREAM));
    }
    raw.drain.fire();
    let ping = raw.until(kind::PING).await;
    raw.send(kind::PING, flag::ACK, 0, &ping.payload).await;
    raw.until(kind::GOAWAY).await;
    for stream in (25..41).step_by(2) {
        raw.headers(stream, flag::END_HEADERS, &POST).await;
        raw.send(kind::DATA, 0, stream, &[b'x'; 2000]).await;
        raw.headers(stream, flag::END_HEADERS | flag::END_STREAM, &[("x-sum", "1")]).await;
    }
    raw.send(kind::DATA, flag::END_STREAM, 3, b"still here").await;
    assert_eq!(raw.until(kind::DATA).await.payload, b"still here");
}

#[tokio::test(start_paused = true)]
async fn floods_end_the_connection() {
    // Each costs a client next to nothing and us a frame, an allocation or a task (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316).
    let open = raw_frame(kind::HEADERS, flag::END_HEADERS, 1, &block(&mut Encoder::default(), &POST));
    for (name, first, flood) in [
        ("PING", None, raw_frame(kind::PING, 0, 0, &[0; 8])),
        ("SETTINGS", None, raw_frame(kind::SETTINGS, 0, 0, &[])),
        ("PRIORITY", None, raw_frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 0])),
        ("WINDOW_UPDATE", None, raw_frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown", None, raw_frame(0xfe, 0, 0, &[0; 20])),
        ("empty DATA", Some(open.clone()), raw_frame(kind::DATA, 0, 1, &[])),
        ("padding only", Some(open.clone()), raw_frame(kind::DATA, flag::PADDED, 1, &[0])),
        ("empty CONTINUATION", Some(raw_frame(kind::HEADERS, 0, 1, &[])), raw_frame(kind::CONTINUATION, 0, 1, &[])),
    ] {
        let mut raw = Raw::echo().await;
        if let Some(first) = first {
            raw.io.write_all(&first).await.unwrap();
        }
        for _ in 0..200 {
            let _ = raw.io.write_all(&flood).await;
        }
        // At three quarters of the account it says goodbye; at its end, why.
        let verdict = async {
            loop {
                let (stream, code) = raw.verdict().await;
                if (stream, code) != (0, Code::NO_ERROR) {
                    return (stream, code);
                }
            }
        };
        assert_eq!(verdict.await, (0, Code::ENHANCE_YOUR_CALM), "{name}");
        assert!(matches!(raw.task.await.unwrap(), Err(Ended::Flood { limit: 100, .. })), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_reset_at_once_are_never_worked_on() {
    // Rapid reset (CVE-2023-44487): what arrives opened and reset costs no task, and soon the connection ends.
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let mut raw = Raw::with(&Limits { http2_streams: 100, ..limits() }, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Response::new(Body::empty()) }
    })
    .await;
    let mut pairs = Vec::new();
    for stream in (1..2000).step_by(2) {
        let block = block(&mut raw.encoder, &GET);
        pairs.extend(raw_frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &block));
        pairs.extend(raw_frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let _ = raw.io.write_all(&pairs).await;
    assert!(matches!(raw.task.await.unwrap(), Err(Ended::Flood { deed: Deed::ResetAtOnce, .. })));
    assert_eq!(seen.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn header_blocks_are_bounded_however_they_come() {
    // Larger than a list may be, smaller than would be read at all: answered, and the connection goes on.
    let value = "x".repeat(100);
    let many: Vec<_> = GET.into_iter().chain((0..90).map(|_| ("x-a", value.as_str()))).collect();
    let small = Limits { http2_header_list_bytes: 8192, ..limits() };
    let mut raw = Raw::with(&small, echo).await;
    raw.headers(1, flag::END_HEADERS | flag::END_STREAM, &many).await;
    let head = raw.until(kind::HEADERS).await;
    assert_eq!(&head.payload[..5], b"\x08\x03431");
    raw.get(3).await;
    assert_eq!(raw.until(kind::HEADERS).await.head.stream, 3);
    // One byte on the wire can stand for a line of 4 KiB (the "HTTP/2 bomb"): counted, not built up.
    let mut raw = Raw::with(&small, echo).await;
    let mut bomb = block(&mut Encoder::default(), &GET);
    bomb.extend_from_slice(b"\x40\x01a\x7f\xa9\x1e");
    bomb.extend_from_slice(&[b'v'; 4008]);
    bomb.extend_from_slice(&[0xbe; 4000]);
    raw.send(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &bomb).await;
    assert_eq!(&raw.until(kind::HEADERS).await.payload[..5], b"\x08\x03431");
    // Without an end.
    let mut raw = Raw::with(&small, echo).await;
    raw.send(kind::HEADERS, 0, 1, &[0x82]).await;
    for _ in 0..8 {
        raw.send(kind::CONTINUATION, 0, 1, &[0x82; 4096]).await;
    }
    assert_eq!(raw.verdict().await, (0, Code::ENHANCE_YOUR_CALM));
}

#[tokio::test(start_paused = true)]
async fn no_more_is_sent_than_the_windows_allow() {
    let (feed, body) = fed();
    let body = Arc::new(parking_lot::Mutex::new(Some(body)));
    let mut raw = Raw::with(&limits(), move |_| {
        let body = body.lock().take().unwrap();
        async move { Response::new(body) }
    })
    .await;
    raw.send(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]).await;
    raw.get(1).await;
    feed.send(data("0123456789abcdef")).await.unwrap();
    drop(feed);
    assert_eq!(raw.until(kind::DATA).await.payload, b"0123456789");
    raw.send(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 3]).await;
    assert_eq!(raw.until(kind::DATA).await.payload, b"abc");
    // RFC 9113 §6.9.2: a smaller first window makes windows negative; they must be earned back.
    raw.send(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 5]).await;
    raw.send(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 6]).await;
    assert_eq!(raw.until(kind::DATA).await.payload, b"d");
    raw.send(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 50]).await;
    let last = raw.until(kind::DATA).await;
    assert_eq!(last.payload, b"ef");
}

#[tokio::test(start_paused = true)]
async fn many_large_answers_share_the_connection() {
    // One stream that takes all would starve the others; a lost wake-up would stop all of them.
    const BYTES: usize = 200_000;
    let mut raw = Raw::with(&Limits { connection_buffer_bytes: 20_000, ..limits() }, |_| async {
        Response::new(Body::full(vec![b'x'; BYTES]))
    })
    .await;
    for stream in [1, 3, 5, 7] {
        raw.get(stream).await;
    }
    let mut left = [BYTES; 4];
    let mut ended = 0;
    while ended < 4 {
        let frame = raw.until(kind::DATA).await;
        let place = (frame.head.stream as usize - 1) / 2;
        left[place] -= frame.payload.len();
        ended += usize::from(frame.head.has(flag::END_STREAM));
        let most = *left.iter().max().unwrap();
        let least = *left.iter().min().unwrap();
        assert!(most - least <= FIRST_WINDOW as usize + MAX_PAYLOAD, "{left:?}");
        let update = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
        for stream in [0, frame.head.stream] {
            if !frame.payload.is_empty() {
                raw.send(kind::WINDOW_UPDATE, 0, stream, &update).await;
            }
        }
    }
    assert_eq!(left, [0; 4]);
}

#[tokio::test(start_paused = true)]
async fn two_ends_that_are_full_do_not_wait_for_each_other() {
    // Uploads that come back as they go fill both directions of a connection; if neither end read on, both would stand still.
    const BYTES: usize = 400_000;
    let (near, far) = duplex(4096);
    let (_trigger, watch) = drain();
    let limits = Limits { connection_buffer_bytes: 20_000, ..limits() };
    let rules = Rules::new(&limits, 4);
    tokio::spawn(async move { serve(far, rules, LIFE, watch, |request, _| echo(request), |_| {}, |_| {}).await });
    let pings = client::Pings { interval: Duration::from_secs(600), timeout: Duration::from_secs(600) };
    let connection = client::open(near, Rules::new(&limits, 0), pings, |_| {});
    let authority = http::uri::Authority::from_static("a.test");
    let line = RequestLine { method: &Method::POST, authority: &authority, path: "/" };
    let request = client::Outgoing { line, headers: &HeaderMap::new(), own: &[] };
    let answers: Vec<_> = (0..4)
        .map(|_| {
            let (feed, body) = fed();
            tokio::spawn(async move {
                for _ in 0..BYTES / 10_000 {
                    let _ = feed.send(Ok(http_body::Frame::data(vec![b'x'; 10_000].into()))).await;
                }
            });
            let answering = connection.send(&request, body, None).unwrap();
            tokio::spawn(async move { answering.await.unwrap().into_body().collect().await.unwrap().to_bytes().len() })
        })
        .collect();
    for answer in answers {
        let bytes = tokio::time::timeout(Duration::from_secs(60), answer).await.expect("both stand still").unwrap();
        assert_eq!(bytes, BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_stream_leaves_of_the_connection_goes_to_the_next() {
    // Otherwise all stand still: the client widens its window only once it has read enough, and nobody sends.
    let mut raw = Raw::with(&limits(), |request: Request<Body>| async move {
        let bytes = if request.uri().path() == "/p" { 4000 } else { FIRST_WINDOW as usize };
        Response::new(Body::full(vec![b'x'; bytes]))
    })
    .await;
    let all = GET.map(|(name, value)| (name, if name == ":path" { "/all" } else { value }));
    raw.headers(1, flag::END_HEADERS | flag::END_STREAM, &all).await;
    while !raw.until(kind::DATA).await.head.has(flag::END_STREAM) {}
    for stream in [3, 5, 7] {
        raw.get(stream).await;
    }
    for _ in 0..3 {
        raw.until(kind::HEADERS).await;
    }
    raw.send(kind::WINDOW_UPDATE, 0, 0, &16_000_u32.to_be_bytes()).await;
    for _ in 0..3 {
        assert_eq!(raw.until(kind::DATA).await.payload.len(), 4000);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_never_a_clean_end() {
    // R17: a client would take half an answer for the whole.
    let (feed, body) = fed();
    let body = Arc::new(parking_lot::Mutex::new(Some(body)));
    let mut raw = Raw::with(&limits(), move |_| {
        let body = body.lock().take().unwrap();
        async move { Response::new(body) }
    })
    .await;
    raw.get(1).await;
    feed.send(data("half")).await.unwrap();
    feed.send(Err(crate::http::BodyError::TooSlow)).await.unwrap();
    assert_eq!(raw.verdict().await, (1, Code::INTERNAL_ERROR));
}

#[tokio::test(start_paused = true)]
async fn a_reset_stops_the_work() {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<()>(1);
    let mut raw = Raw::with(&limits(), move |_| {
        let sender = sender.clone();
        async move {
            let _held = sender;
            std::future::pending::<Response<Body>>().await
        }
    })
    .await;
    raw.get(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    raw.send(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes()).await;
    // The handler's own clone is dropped with the connection only; the work's must go before.
    drop(raw.task);
    raw.drain.fire();
    assert_eq!(receiver.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_drain_says_goodbye_twice_and_answers_what_came_between() {
    let mut raw = Raw::echo().await;
    raw.get(1).await;
    raw.until(kind::HEADERS).await;
    raw.drain.fire();
    let first = raw.until(kind::GOAWAY).await;
    assert_eq!(first.payload[..4], [0x7f, 0xff, 0xff, 0xff]);
    let ping = raw.until(kind::PING).await;
    raw.get(3).await;
    raw.send(kind::PING, flag::ACK, 0, &ping.payload).await;
    let (mut answered, mut last) = (false, None);
    while let Some(frame) = raw.next().await {
        answered |= frame.head.kind == kind::HEADERS && frame.head.stream == 3;
        if frame.head.kind == kind::GOAWAY {
            last = Some((frame.payload[..4].to_vec(), frame.code()));
        }
    }
    assert_eq!((answered, last), (true, Some((vec![0, 0, 0, 3], Some(Code::NO_ERROR)))));
    drop(raw.io);
    raw.task.await.unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(64), ..ProptestConfig::default() })]

    #[test]
    fn no_frames_panic_and_every_cut_reads_the_same(
        frames in proptest::collection::vec((0..11_u8, any::<u8>(), 0..6_u32, proptest::collection::vec(any::<u8>(), 0..24)), 0..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let mut bytes = PREFACE.to_vec();
        bytes.extend(raw_frame(kind::SETTINGS, 0, 0, &[]));
        for (kind, flags, stream, payload) in &frames {
            bytes.extend(raw_frame(*kind, *flags, *stream, payload));
        }
        let cut = cut.index(bytes.len());
        let said = |pieces: Vec<&[u8]>| runtime.block_on(async {
            let mut raw = Raw::silent(&limits(), echo);
            for piece in pieces {
                let _ = raw.io.write_all(piece).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            raw.io.shutdown().await.unwrap();
            let mut said = Vec::new();
            raw.io.read_to_end(&mut said).await.unwrap();
            raw.task.await.unwrap().map_err(|ended| ended.to_string())
        });
        let whole = said(vec![&bytes]);
        let (before, behind) = bytes.split_at(cut);
        prop_assert_eq!(said(vec![before, behind]), whole);
    }
}
