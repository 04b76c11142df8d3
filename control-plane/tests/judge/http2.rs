//! HTTP/2 conversations: frames written byte by byte, and what is to be said of what became of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Mutex,
    thread,
    time::Duration,
};

use super::{
    case::{Must, replace},
    lanes::{Lane, Mesh},
    origin::Heard,
};
use crate::{
    frames::{self, DATA, END_HEADERS, END_STREAM, Frames, HEADERS},
    strict::{self, hpack},
};

/// What a client says. Lines of a head stand as `name value`, with `|` between them.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A head; more comes on the stream.
    Head(&'static str),
    /// A head, or trailers, that end the stream.
    Last(&'static str),
    Data(&'static str),
    LastData(&'static str),
    /// What follows is said on this stream.
    On(u32),
    /// Any frame: kind, flags, payload.
    Frame(u8, u8, &'static [u8]),
    /// The same for the connection.
    Whole(u8, u8, &'static [u8]),
    /// A head over several frames of this many bytes.
    Split(usize, &'static str),
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub must: Must,
    pub says: Vec<Piece>,
}

struct Conversation<'a> {
    number: usize,
    way: Way<'a>,
    case: &'a Case,
    cut: Option<usize>,
    said: Vec<u8>,
    heard: Vec<u8>,
}

/// A lane, and whether requests carry the mark by which a second sidecar writes them as HTTP/1.
#[derive(Clone, Copy)]
struct Way<'a> {
    lane: &'a Lane,
    host: &'static str,
    marked: bool,
}

impl Way<'_> {
    fn name(&self) -> String {
        format!("{}{}", self.lane.name, if self.marked { ", to an origin of HTTP/1" } else { "" })
    }
}

const AT_ONCE: usize = 24;
const CUTS: usize = 3;

fn ways(mesh: &Mesh) -> Vec<Way<'_>> {
    let mut ways: Vec<Way<'_>> = mesh
        .lanes
        .iter()
        .map(|lane| {
            let host = match lane.name {
                name if name.contains("inbound") => "a.test",
                name if name.contains("plaintext") => "plain.shop",
                _ => "app.shop",
            };
            Way { lane, host, marked: false }
        })
        .collect();
    ways.push(Way { lane: &mesh.peer, host: "a.test", marked: false });
    ways.push(Way { lane: &mesh.peer, host: "a.test", marked: true });
    ways
}

fn bytes(case: &Case, way: Way<'_>, number: usize) -> Vec<u8> {
    let block = |text: &str| {
        let text = replace(text.as_bytes(), b"<N>", format!("n{number}n").as_bytes());
        let text = replace(&text, b"<A>", way.host.as_bytes());
        let mut block = Vec::new();
        for line in text.split(|byte| *byte == b'|') {
            let at = line.iter().skip(1).position(|byte| *byte == b' ').map_or(line.len(), |at| at + 1);
            frames::literal(&mut block, &line[..at], line.get(at + 1..).unwrap_or_default());
        }
        if way.marked && text.starts_with(b":") {
            frames::literal(&mut block, b"x-outrigger-orig-proto", b"HTTP/1.1");
        }
        block
    };
    let mut said = frames::hello();
    let mut stream = 1;
    for piece in &case.says {
        match piece {
            Piece::On(number) => stream = *number,
            Piece::Head(text) => frames::frame(&mut said, HEADERS, END_HEADERS, stream, &block(text)),
            Piece::Last(text) => frames::frame(&mut said, HEADERS, END_HEADERS | END_STREAM, stream, &block(text)),
            Piece::Data(text) => frames::frame(&mut said, DATA, 0, stream, text.as_bytes()),
            Piece::LastData(text) => frames::frame(&mut said, DATA, END_STREAM, stream, text.as_bytes()),
            Piece::Frame(kind, flags, payload) => frames::frame(&mut said, *kind, *flags, stream, payload),
            Piece::Whole(kind, flags, payload) => frames::frame(&mut said, *kind, *flags, 0, payload),
            Piece::Split(size, text) => {
                let block = block(text);
                let count = block.len().div_ceil(*size);
                for (place, part) in block.chunks(*size).enumerate() {
                    let ends = if place + 1 == count { END_HEADERS } else { 0 };
                    let (kind, flags) = if place == 0 { (HEADERS, END_STREAM) } else { (frames::CONTINUATION, 0) };
                    frames::frame(&mut said, kind, flags | ends, stream, part);
                }
            }
        }
    }
    said
}

/// Holds every conversation of every case in every way, and judges them.
pub fn judge(mesh: &Mesh, cases: &[Case]) {
    let ways = ways(mesh);
    let mut conversations = Vec::new();
    for (way, case) in ways.iter().flat_map(|way| cases.iter().map(move |case| (*way, case))) {
        for cut in 0..=CUTS {
            let number = conversations.len();
            let said = bytes(case, way, number);
            // Not within the preface: how versions are told apart has tests of its own.
            let behind = said.len() - frames::PREFACE.len();
            let at = frames::PREFACE.len() + (behind * cut / (CUTS + 1) + number * 5) % behind;
            conversations.push(Conversation {
                number,
                way,
                case,
                cut: (cut > 0).then_some(at),
                said,
                heard: Vec::new(),
            });
        }
    }
    let count = conversations.len();
    let (waiting, held) = (Mutex::new(conversations), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(mut conversation) = waiting.lock().unwrap().pop() else { return };
                    conversation.heard = converse(&conversation);
                    held.lock().unwrap().push(conversation);
                }
            });
        }
    });
    let wrong = verdicts(mesh, &held.into_inner().unwrap());
    assert!(wrong.is_empty(), "{} of {count} conversations went wrong:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{count} conversations of {} cases", cases.len());
}

/// Says everything, answers what the far side asks of a living client, and hears all there is until it closes.
fn converse(conversation: &Conversation<'_>) -> Vec<u8> {
    let mut io = TcpStream::connect(conversation.way.lane.address).unwrap();
    io.set_nodelay(true).unwrap();
    // Some connections have every right to stay open, with a stream that was never ended.
    io.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let (first, second) = conversation.said.split_at(conversation.cut.unwrap_or(conversation.said.len()));
    let _ = io.write_all(first);
    if !second.is_empty() {
        thread::sleep(Duration::from_millis(3));
        let _ = io.write_all(second);
    }
    let (mut heard, mut frames, mut bytes) = (Vec::new(), Frames::default(), [0; 16 * 1024]);
    while let Ok(read @ 1..) = io.read(&mut bytes) {
        heard.extend_from_slice(&bytes[..read]);
        frames.received.extend_from_slice(&bytes[..read]);
        while let Some((kind, flags, _, payload)) = frames.next() {
            let mut said = Vec::new();
            match kind {
                frames::PING if flags & 1 == 0 => frames::frame(&mut said, frames::PING, 1, 0, &payload),
                frames::SETTINGS if flags & 1 == 0 => frames::frame(&mut said, frames::SETTINGS, 1, 0, &[]),
                _ => {}
            }
            let _ = io.write_all(&said);
        }
    }
    heard
}

fn verdicts(mesh: &Mesh, held: &[Conversation<'_>]) -> Vec<String> {
    let Heard { requests, wrong: unsafes } = mesh.origin.take();
    let mut wrong: Vec<String> =
        unsafes.iter().map(|(why, bytes)| format!("UNSAFE at the origin, {why}: {}", bytes.escape_ascii())).collect();
    let mut stood: BTreeMap<usize, Vec<&(usize, strict::Request)>> = BTreeMap::new();
    for request in &requests {
        let marked = |text: &str| text.split('n').find_map(|part| part.parse::<usize>().ok());
        let field = strict::values(&request.1.fields, "x-case")
            .first()
            .map(|value| String::from_utf8_lossy(value).into_owned());
        match marked(&request.1.target).or_else(|| marked(&field?)) {
            Some(number) => stood.entry(number).or_default().push(request),
            None => wrong.push(format!("nobody sent what stands at the origin: {:?}", request.1)),
        }
    }
    for conversation in held {
        let stood = stood.remove(&conversation.number).unwrap_or_default();
        if let Err(why) = verdict(conversation, &stood) {
            let cut = conversation.cut.map(|at| format!(", cut at {at}")).unwrap_or_default();
            let shown: Vec<_> =
                stood.iter().map(|(_, it)| format!("{} {} [{}]", it.method, it.target, it.content.len())).collect();
            wrong.push(format!(
                "{} | {}{cut} | {why}\n    stood {shown:?}",
                conversation.case.name,
                conversation.way.name()
            ));
        }
    }
    wrong
}

fn verdict(conversation: &Conversation<'_>, stood: &[&(usize, strict::Request)]) -> Result<(), String> {
    let mut frames = Frames { received: conversation.heard.clone() };
    let mut table = hpack::Table::default();
    let (mut answered, mut own) = (Vec::new(), Vec::new());
    while let Some((kind, flags, _, payload)) = frames.next() {
        if kind != HEADERS {
            continue;
        }
        let lines = table.read(frames::unpadded(flags, &payload, true)).map_err(|why| why.to_string())?;
        let value = |name: &[u8]| {
            lines.iter().find(|(found, _)| found == name).map(|(_, value)| String::from_utf8_lossy(value))
        };
        match (value(b"x-number"), value(b":status")) {
            (Some(number), _) => answered.push(number.parse::<usize>().map_err(|error| error.to_string())?),
            (None, Some(status)) if !status.starts_with('1') => own.push(status.into_owned()),
            _ => {}
        }
    }
    let numbers: BTreeSet<usize> = stood.iter().map(|(number, _)| *number).collect();
    if answered.iter().collect::<BTreeSet<_>>().len() != answered.len() {
        return Err(format!("answers {answered:?} came twice"));
    }
    if !answered.iter().all(|number| numbers.contains(number)) {
        return Err(format!("answers {answered:?} to requests {numbers:?}"));
    }
    if let Some((_, request)) = stood.iter().find(|(_, request)| request.target.contains("smug")) {
        return Err(format!("smuggled: {} {}", request.method, request.target));
    }
    if own.iter().any(|status| status.starts_with('2')) && conversation.case.must != Must::Either {
        return Err(format!("we said {own:?} ourselves"));
    }
    match conversation.case.must {
        Must::Refuse if stood.is_empty() => Ok(()),
        Must::Refuse => Err(format!("{} requests instead of none", stood.len())),
        Must::Forward(count) if stood.len() == count && answered.len() == count => Ok(()),
        Must::Forward(count) => {
            Err(format!("{} requests and {} answers instead of {count}; we said {own:?}", stood.len(), answered.len()))
        }
        Must::Until(count) if stood.len() <= count => Ok(()),
        Must::Until(count) => Err(format!("{} requests instead of {count}", stood.len())),
        Must::Either => Ok(()),
    }
}
