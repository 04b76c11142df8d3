//! Whole connections of HTTP/2 against a far side that says arbitrary bytes, in pieces of arbitrary sizes.
//!
//! The first two bytes of the input decide how it is cut, and the first bit whether memory is bounded. Small limits, so that short inputs reach
//! them.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, LazyLock},
    task,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, uri::Authority};
use http_body::Frame;
use http_body_util::BodyExt as _;
use outrigger_proxy::{
    drain::drain,
    http::{
        Body, BodyError,
        http2::{
            Patience, RequestLine, Rules,
            client::{self, Pings},
            server::{self, Lifetime},
        },
        upgrade,
    },
    resilience::growth::Growth,
    settings::Limits,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{
    conversation::{SETTINGS, in_virtual_time},
    hpack_reader::Reader,
    http2_frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM,
        SETTINGS as SETTINGS_FRAME, WINDOW_UPDATE,
    },
};

static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
    http2_header_list_bytes: 2048,
    http2_control_frames: 60,
    http2_pending_resets: 6,
    http2_local_resets: 12,
    http2_stream_window_bytes: 1000,
    connection_buffer_bytes: 4096,
    interim_responses: 3,
    ..SETTINGS.limits.clone()
});
const STREAMS: u32 = 5;
/// Bytes between the two ends; less than one frame, so that both have to wait for each other.
const PIPE_BYTES: usize = 700;
/// Longer than every limit of time.
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

/// For connections in a process with a limit of memory: more than a connection has in any case, and not enough for two.
static MEMORY: Growth = Growth::unbounded();

/// What a connection is held to, by the first bit of the input.
fn rules(bytes: &[u8], streams: u32) -> Rules {
    let mut rules = Rules::new(&LIMITS, streams);
    if bytes.first().is_some_and(|first| first & 0x80 != 0) {
        MEMORY.set_limit(40_000);
        rules.memory = &MEMORY;
        // More than any connection has without asking.
        rules.buffer_bytes = 64 * 1024;
    }
    rules
}

/// The input in pieces.
fn pieces(bytes: &[u8]) -> Vec<Vec<u8>> {
    let Some((seed, mut rest)) = bytes.split_first_chunk::<2>() else { return vec![bytes.to_vec()] };
    let mut state = u32::from_be_bytes([1, 0, seed[0], seed[1]]);
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        // A xorshift; a seed of zero says it all at once.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let most = if *seed == [0, 0] { rest.len() } else { 1 + (state % (4 + 3 * u32::from(seed[1]))) as usize };
        let (piece, behind) = rest.split_at(most.min(rest.len()));
        pieces.push(piece.to_vec());
        rest = behind;
    }
    pieces
}

/// Says the pieces, each after what the one before has caused, and hears all there is until the other side closes.
async fn speak(io: DuplexStream, pieces: Vec<Vec<u8>>) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(io);
    let said = tokio::spawn(async move {
        for piece in pieces {
            if write.write_all(&piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        // Longer than the other side goes on without us; then it hears that nothing comes any more.
        tokio::time::sleep(FOR_EVER / 4).await;
        let _ = write.shutdown().await;
    });
    let mut heard = Vec::new();
    let read = tokio::time::timeout(FOR_EVER, read.read_to_end(&mut heard)).await;
    assert!(read.is_ok(), "the connection never ended");
    said.abort();
    heard
}

/// What one side may be sent at most, by all that it ever said.
#[derive(Default)]
struct Windows {
    connection: i64,
    first: i64,
    streams: BTreeMap<u32, i64>,
}

impl Windows {
    fn of(said: &[u8]) -> Self {
        let mut windows = Self { connection: 65_535, first: 65_535, ..Self::default() };
        let mut frames = Frames { received: said.strip_prefix(PREFACE).unwrap_or(said).to_vec() };
        while let Some((kind, flags, stream, payload)) = frames.next() {
            match (kind, <[u8; 4]>::try_from(&payload[..])) {
                (WINDOW_UPDATE, Ok(bytes)) => {
                    let bytes = i64::from(u32::from_be_bytes(bytes) & 0x7fff_ffff);
                    if stream == 0 {
                        windows.connection += bytes;
                    } else {
                        *windows.streams.entry(stream).or_default() += bytes;
                    }
                }
                (SETTINGS_FRAME, _) if flags & 1 == 0 => {
                    for setting in payload.chunks_exact(6).filter(|setting| setting.starts_with(&[0, 4])) {
                        let value = setting.last_chunk::<4>().map_or(0, |value| u32::from_be_bytes(*value));
                        windows.first = windows.first.max(i64::from(value));
                    }
                }
                _ => {}
            }
        }
        windows
    }
}

/// Reads what our side said as the far side would, and panics where it breaks RFC 9113.
fn is_sound(heard: &[u8], said: &[u8], server: bool) {
    let mut frames = Frames { received: heard.to_vec() };
    if !server && !heard.is_empty() {
        assert!(heard.starts_with(&PREFACE[..heard.len().min(PREFACE.len())]));
        frames.received.drain(..heard.len().min(PREFACE.len()));
    }
    let windows = Windows::of(said);
    let mut table = Reader::default();
    let mut sent = 0;
    let mut on_stream = BTreeMap::<u32, i64>::new();
    let mut over = BTreeSet::new();
    let mut goaway = u32::MAX;
    let mut block: Option<(u32, Vec<u8>)> = None;
    let mut first = true;
    while frames.received.len() >= 9 {
        assert_eq!(frames.received[5] & 0x80, 0, "reserved bit");
        let Some((kind, flags, stream, payload)) = frames.next() else { break };
        assert!(payload.len() <= 16_384);
        assert!(!std::mem::take(&mut first) || kind == SETTINGS_FRAME, "the first frame is {kind}");
        assert!(block.is_none() || kind == CONTINUATION, "a header block is interrupted");
        let on_connection = matches!(kind, SETTINGS_FRAME | PING | GOAWAY);
        assert!(kind == WINDOW_UPDATE || on_connection == (stream == 0), "frame {kind} on stream {stream}");
        assert!(stream.is_multiple_of(2) == (stream == 0) || kind == RST_STREAM, "frame {kind} on stream {stream}");
        match kind {
            DATA => {
                assert!(!over.contains(&stream), "DATA on {stream}, which has ended");
                let length = payload.len() as i64;
                sent += length;
                assert!(sent <= windows.connection, "{sent} bytes on the connection");
                let on_stream = on_stream.entry(stream).or_default();
                *on_stream += length;
                let most = windows.first + windows.streams.get(&stream).copied().unwrap_or(0);
                assert!(*on_stream <= most, "{on_stream} bytes on {stream}");
            }
            HEADERS => {
                assert!(!over.contains(&stream), "HEADERS on {stream}, which has ended");
                block = Some((stream, payload.clone()));
            }
            CONTINUATION => {
                let (of, block) = block.as_mut().expect("a header block goes on");
                assert_eq!(*of, stream);
                block.extend_from_slice(&payload);
            }
            RST_STREAM => assert_eq!(payload.len(), 4),
            PING => assert_eq!(payload.len(), 8),
            WINDOW_UPDATE => assert!(payload.len() == 4 && payload != [0; 4]),
            GOAWAY => {
                let last = u32::from_be_bytes(*payload.first_chunk().expect("a last stream"));
                assert!(last <= goaway, "GOAWAY takes streams back that it gave up");
                goaway = last;
            }
            SETTINGS_FRAME => assert!(payload.len().is_multiple_of(6) && (flags & 1 == 0 || payload.is_empty())),
            other => panic!("frame {other}"),
        }
        if matches!(kind, HEADERS | CONTINUATION)
            && flags & END_HEADERS != 0
            && let Some((_, block)) = block.take()
        {
            let (lines, sound) = table.read(&block);
            assert!(sound && !lines.is_empty(), "a header block that cannot be read");
            let clean = |byte: &u8| !matches!(byte, b'\r' | b'\n' | 0);
            assert!(lines.iter().all(|(name, value)| name.iter().chain(value).all(clean)), "{lines:?}");
        }
        if kind == RST_STREAM || (matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0) {
            over.insert(stream);
        }
    }
}

/// A body that comes in steps.
struct Steps(Vec<Result<Frame<Bytes>, ()>>);

impl http_body::Body for Steps {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        task::Poll::Ready(self.0.pop().map(|step| step.map_err(|()| BodyError::Cancelled)))
    }
}

/// A body in pieces, last first: content, and an end that is plain, has trailers or breaks.
fn steps(pieces: usize, bytes: usize, end: usize) -> Body {
    let mut steps = match end % 3 {
        0 => Vec::new(),
        1 => vec![Ok(Frame::trailers(HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )])))],
        _ => vec![Err(())],
    };
    steps.extend((0..pieces).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; bytes])))));
    Body::boxed(Steps(steps))
}

/// A handler that does with a request what its path says, as applications do.
async fn handle(request: Request<Body>) -> Response<Body> {
    let way = request.uri().path().bytes().map(usize::from).sum::<usize>();
    if request.method() == Method::CONNECT {
        let leaving = upgrade::take(&mut request.into_parts().0);
        tokio::spawn(async move {
            if let Ok(mut stream) = leaving.stream().await {
                let mut bytes = [0; 100];
                while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                    if stream.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown().await;
            }
        });
        return Response::new(Body::empty());
    }
    let status = if way % 7 == 6 { StatusCode::NO_CONTENT } else { StatusCode::OK };
    let body = match way % 5 {
        // Echo, as it comes.
        0 => request.into_body(),
        1 => Body::full(Bytes::from(vec![b'y'; way])),
        2 => {
            let collected = request.into_body().collect().await;
            Body::full(collected.map(|all| all.to_bytes()).unwrap_or_default())
        }
        // Without having read anything.
        3 => steps(way % 4, 600, way),
        _ => {
            tokio::time::sleep(Duration::from_millis(way as u64 % 3000)).await;
            steps(3, way * 50, way)
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// Whatever a client says: the connection ends by its limits of time, and all that we say is HTTP/2 within the windows.
pub fn h2_server_connection(bytes: &[u8]) {
    let pieces = pieces(bytes);
    let said = pieces.concat();
    let rules = rules(bytes, STREAMS);
    let heard = in_virtual_time(async {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(async move {
            let (_trigger, watch) = drain();
            let times = &SETTINGS.timeouts;
            let life = Lifetime {
                requests: 20,
                first_byte: times.first_byte,
                head: times.head,
                idle: times.idle,
                age: times.connection_age,
                stall: Patience { silent: times.write_stall, alive: times.stream_stall },
            };
            let _ = server::serve(far, rules, life, watch, |request, _| handle(request), |_| (), |_| ()).await;
        });
        speak(near, pieces).await
    });
    is_sound(&heard, &said, true);
    assert_eq!(MEMORY.held(), 0, "memory that nobody gives back");
}

/// What became of a request.
#[derive(Debug)]
enum Outcome {
    Answered { status: StatusCode, announced: Option<usize>, got: usize, whole: bool },
    Failed,
}

async fn ask(connection: Arc<client::Connection>, number: usize) -> Outcome {
    let method = [Method::GET, Method::POST, Method::HEAD, Method::POST][number % 4].clone();
    let body = match method {
        Method::POST => steps(number, 400 * number, 3 + number / 4),
        _ => Body::empty(),
    };
    let authority = Authority::from_static("origin.test");
    let line = RequestLine { method: &method, authority: &authority, path: "/" };
    let request = client::Outgoing { line, headers: &HeaderMap::new(), own: &[] };
    let Some(answering) = connection.send(&request, body, None) else { return Outcome::Failed };
    let Ok(response) = answering.await else { return Outcome::Failed };
    let status = response.status();
    let announced =
        response.headers().get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if number == 3 {
        // Not read: the stream is given up.
        return Outcome::Answered { status, announced: None, got: 0, whole: false };
    }
    let mut body = response.into_body();
    let (mut got, mut whole) = (0, true);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => got += frame.data_ref().map_or(0, Bytes::len),
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    let bodiless = method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    assert!(!bodiless || got == 0, "{got} bytes in a response without content");
    let announced = announced.filter(|_| !bodiless);
    Outcome::Answered { status, announced, got, whole }
}

/// Whatever a server says: every request comes to an end, what it is answered with is what was announced, and all that we say is
/// HTTP/2 within the windows.
pub fn h2_client_connection(bytes: &[u8]) {
    let pieces = pieces(bytes);
    let said = pieces.concat();
    let rules = rules(bytes, 0);
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let heard = in_virtual_time(async {
        let (near, far) = duplex(PIPE_BYTES);
        let pings = Pings { interval: Duration::from_secs(20), timeout: Duration::from_secs(10) };
        let connection = Arc::new(client::open(far, rules, pings, |_| ()));
        let asking: Vec<_> = (0..5).map(|number| tokio::spawn(ask(Arc::clone(&connection), number))).collect();
        drop(connection);
        let heard = tokio::spawn(speak(near, pieces));
        for asked in asking {
            let outcome =
                tokio::time::timeout(FOR_EVER, asked).await.expect("a request never ended").expect("no panic");
            outcomes.lock().push(outcome);
        }
        heard.await.expect("no panic")
    });
    is_sound(&heard, &said, false);
    assert_eq!(MEMORY.held(), 0, "memory that nobody gives back");
    for outcome in outcomes.lock().iter() {
        if let Outcome::Answered { status, announced, got, whole } = outcome {
            assert!(!status.is_informational());
            if let Some(announced) = announced {
                assert!(got <= announced && (!whole || got == announced), "{outcome:?}");
            }
        }
    }
}
