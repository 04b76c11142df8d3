//! HTTP/2 by hand: frames and header blocks as bytes, without any opinion on whether they are allowed.

use std::io::{self, Read, Write};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// RFC 9113 §7.
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 7;

#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The error code of RST_STREAM and GOAWAY.
    pub fn code(&self) -> u32 {
        let code = match self.kind {
            RST_STREAM => &self.payload[..4],
            GOAWAY => &self.payload[4..8],
            _ => panic!("no error in {self:?}"),
        };
        u32::from_be_bytes(code.try_into().unwrap())
    }
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block: every field literal, without indexing, without Huffman (RFC 7541 §6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(&mut bytes, text.len());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// RFC 7541 §5.1, with a prefix of seven bits.
fn integer(bytes: &mut Vec<u8>, value: usize) {
    let Some(mut rest) = value.checked_sub(127) else {
        bytes.push(u8::try_from(value).unwrap());
        return;
    };
    bytes.push(127);
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128 + 128).unwrap());
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
}

/// HEADERS with all its fields in one frame.
pub fn headers(stream: u32, fields: &[(&str, &str)], end: bool) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | u8::from(end), stream, &block(fields))
}

pub fn data(stream: u32, bytes: &[u8], end: bool) -> Vec<u8> {
    frame(DATA, u8::from(end), stream, bytes)
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A whole good answer.
pub fn answer(stream: u32, text: &str) -> Vec<u8> {
    let length = text.len().to_string();
    let mut bytes = headers(stream, &[(":status", "200"), ("content-length", &length)], false);
    bytes.extend(data(stream, text.as_bytes(), true));
    bytes
}

/// The next frame; `None`: the connection ended.
pub fn read(io: &mut impl Read) -> Option<Frame> {
    let mut head = [0; 9];
    io.read_exact(&mut head).ok()?;
    let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).ok()?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
    Some(Frame { kind: head[3], flags: head[4], stream, payload })
}

/// What a server does with what it gets.
pub enum Event {
    /// A request's head is whole, on this stream; the second: so is the request.
    Request(u32, bool),
    /// Any other frame.
    Other(Frame),
}

/// The server's side of one connection: preface and settings, then `react` for every event; the bytes it gives are written. Ends with
/// the connection, or when `react` gives `None`. Windows are opened wide and pings answered.
pub fn serve(io: &mut (impl Read + Write), mut react: impl FnMut(Event) -> Option<Vec<u8>>) -> io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    io.read_exact(&mut preface)?;
    assert_eq!(preface, PREFACE);
    io.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    io.flush()?;
    while let Some(frame) = read(io) {
        let bytes = match frame.kind {
            SETTINGS if frame.has(ACK) => Vec::new(),
            SETTINGS => self::frame(SETTINGS, ACK, 0, &[]),
            PING if !frame.has(ACK) => self::frame(PING, ACK, 0, &frame.payload),
            DATA => {
                let mut bytes = Vec::new();
                if let Ok(length @ 1..) = u32::try_from(frame.payload.len()) {
                    bytes.extend(self::frame(WINDOW_UPDATE, 0, 0, &length.to_be_bytes()));
                }
                let Some(more) = react(Event::Other(frame)) else { return Ok(()) };
                bytes.extend(more);
                bytes
            }
            HEADERS => {
                assert!(frame.has(END_HEADERS), "the tests' requests are small");
                let Some(bytes) = react(Event::Request(frame.stream, frame.has(END_STREAM))) else { return Ok(()) };
                bytes
            }
            _ => {
                let Some(bytes) = react(Event::Other(frame)) else { return Ok(()) };
                bytes
            }
        };
        io.write_all(&bytes)?;
        io.flush()?;
    }
    Ok(())
}

/// The client's side: preface, settings, and one request with these fields; what the far side said about stream 1.
pub fn ask(io: &mut (impl Read + Write), fields: &[(&str, &str)]) -> Answered {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(headers(1, fields, true));
    let _ = io.write_all(&bytes).and_then(|()| io.flush());
    loop {
        let Some(frame) = read(io) else { return Answered::Nothing };
        match frame.kind {
            HEADERS if frame.stream == 1 => return Answered::Status(status(&frame.payload)),
            RST_STREAM if frame.stream == 1 => return Answered::Reset(frame.code()),
            GOAWAY if frame.code() != NO_ERROR => return Answered::Gone(frame.code()),
            _ => {}
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Status(u16),
    Reset(u32),
    Gone(u32),
    /// The connection ended.
    Nothing,
}

impl Answered {
    /// Neither a success nor an answer of an application.
    pub fn is_refusal(self) -> bool {
        !matches!(self, Self::Status(100..=399))
    }
}

/// The status in a header block: RFC 7541 names it first, from the static table, or as three digits with the name from there.
pub fn status(block: &[u8]) -> u16 {
    let mut rest = block;
    // A change of the table's size may stand before it (§6.3).
    while rest.first().is_some_and(|byte| byte & 0xe0 == 0x20) {
        rest = &rest[1..];
    }
    match rest {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(*indexed) - 0x88],
        [_, 0x03, digits @ ..] => std::str::from_utf8(&digits[..3]).unwrap().parse().unwrap(),
        [_, length @ 0x81..=0x83, coded @ ..] => huffman(&coded[..usize::from(*length & 0x7f)]),
        _ => panic!("no status at the start of {block:x?}"),
    }
}

/// Three Huffman-coded digits (RFC 7541, appendix B): "0" to "2" have five bits, the others six.
fn huffman(bytes: &[u8]) -> u16 {
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let mut rest = bits.as_str();
    let mut number = 0;
    for _ in 0..3 {
        let short = u16::from_str_radix(&rest[..5], 2).unwrap();
        let (digit, length) =
            if short <= 2 { (short, 5) } else { (u16::from_str_radix(&rest[..6], 2).unwrap() - 0x16, 6) };
        number = number * 10 + digit;
        rest = &rest[length..];
    }
    number
}
