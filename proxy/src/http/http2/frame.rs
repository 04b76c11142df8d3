//! Frames (RFC 9113 §4 and §6): their heads and the payloads that are not content. Pure.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bytes::{Buf, BufMut, BytesMut};

use super::fault::{Code, Offence};

/// What a client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const HEAD_BYTES: usize = 9;
/// Greatest payload that either side takes before it says otherwise; we never say otherwise.
pub const MAX_PAYLOAD: usize = 16_384;
/// Window of a new stream, and of the connection, before anybody says otherwise.
pub const FIRST_WINDOW: u32 = 65_535;
/// RFC 9113 §6.9.1.
pub const MAX_WINDOW: u32 = (1 << 31) - 1;

/// Types of frames (RFC 9113 §6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub mod flag {
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings (RFC 9113 §6.5.2, RFC 8441 §3).
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    /// The head at the beginning of `received`; `None`: not all of it has come.
    pub fn read(received: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, d, e, f, g] = *received.first_chunk::<HEAD_BYTES>()?;
        Some(Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            // The first bit means nothing.
            stream: u32::from_be_bytes([d & 0x7f, e, f, g]),
        })
    }

    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_uint(self.length as u64, 3);
        out.put_u8(self.kind);
        out.put_u8(self.flags);
        out.put_u32(self.stream);
    }
}

/// Takes the padding of DATA and HEADERS off.
///
/// # Errors
/// More padding than payload (RFC 9113 §6.1).
pub fn unpad<'a>(head: &Head, payload: &'a [u8]) -> Result<&'a [u8], Offence> {
    const TOO_LONG: Offence = Offence::protocol("padding is longer than the frame");
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(TOO_LONG)?;
    let length = rest.len().checked_sub(usize::from(*padding)).ok_or(TOO_LONG)?;
    Ok(rest.get(..length).unwrap_or_default())
}

/// Takes the priority of HEADERS off, which nobody uses any more (RFC 9113 §5.3.2).
///
/// # Errors
/// The frame is too short for it. Inside: a stream that depends on itself (RFC 7540 §5.3.1), which concerns only the stream.
pub fn without_priority<'a>(head: &Head, payload: &'a [u8]) -> Result<(&'a [u8], bool), Offence> {
    if !head.has(flag::PRIORITY) {
        return Ok((payload, false));
    }
    let (priority, rest) = payload
        .split_at_checked(5)
        .ok_or(Offence { code: Code::FRAME_SIZE_ERROR, what: "HEADERS is too short for its priority" })?;
    Ok((rest, depends_on(priority) == Some(head.stream)))
}

/// The stream that a priority names.
pub fn depends_on(priority: &[u8]) -> Option<u32> {
    priority.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) & MAX_WINDOW)
}

/// The settings of a payload, in their order.
///
/// # Errors
/// A length that is not a multiple of six, or a value out of range (RFC 9113 §6.5.2).
pub fn settings(mut payload: &[u8], mut take: impl FnMut(u16, u32)) -> Result<(), Offence> {
    if !payload.len().is_multiple_of(6) {
        return Err(Offence { code: Code::FRAME_SIZE_ERROR, what: "SETTINGS has a broken length" });
    }
    while payload.has_remaining() {
        let (id, value) = (payload.get_u16(), payload.get_u32());
        match id {
            setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL if value > 1 => {
                return Err(Offence::protocol("a setting is neither 0 nor 1"));
            }
            setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                return Err(Offence { code: Code::FLOW_CONTROL_ERROR, what: "the initial window is too large" });
            }
            setting::MAX_FRAME_SIZE if !(MAX_PAYLOAD as u32..1 << 24).contains(&value) => {
                return Err(Offence::protocol("the greatest frame is out of range"));
            }
            _ => take(id, value),
        }
    }
    Ok(())
}

/// A payload of four bytes: RST_STREAM and WINDOW_UPDATE.
///
/// # Errors
/// Any other length.
pub fn four_bytes(payload: &[u8]) -> Result<u32, Offence> {
    match payload {
        [a, b, c, d] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(Offence { code: Code::FRAME_SIZE_ERROR, what: "a frame of four bytes has another length" }),
    }
}

/// The last stream and the code of GOAWAY.
///
/// # Errors
/// The frame is too short.
pub fn goaway(payload: &[u8]) -> Result<(u32, Code), Offence> {
    match payload {
        [a, b, c, d, e, f, g, h, ..] => {
            Ok((u32::from_be_bytes([*a & 0x7f, *b, *c, *d]), Code(u32::from_be_bytes([*e, *f, *g, *h]))))
        }
        _ => Err(Offence { code: Code::FRAME_SIZE_ERROR, what: "GOAWAY is too short" }),
    }
}

/// The head of DATA; its content follows.
pub fn write_data_head(out: &mut BytesMut, stream: u32, length: usize, end: bool) {
    let flags = if end { flag::END_STREAM } else { 0 };
    Head { length, kind: kind::DATA, flags, stream }.write(out);
}

/// Writes HEADERS, and CONTINUATION where one frame is not enough. `write` appends the header block.
pub fn write_headers(out: &mut BytesMut, stream: u32, end: bool, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, HEAD_BYTES);
    write(out);
    let content = start.saturating_add(HEAD_BYTES);
    let length = out.len().saturating_sub(content);
    let ends = if end { flag::END_STREAM } else { 0 };
    if length <= MAX_PAYLOAD {
        let flags = flag::END_HEADERS | ends;
        write_head_at(out, start, &Head { length, kind: kind::HEADERS, flags, stream });
        return;
    }
    let block = out.split_off(content);
    write_head_at(out, start, &Head { length: MAX_PAYLOAD, kind: kind::HEADERS, flags: ends, stream });
    let mut pieces = block.chunks(MAX_PAYLOAD).peekable();
    out.extend_from_slice(pieces.next().unwrap_or_default());
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
        Head { length: piece.len(), kind: kind::CONTINUATION, flags, stream }.write(out);
        out.extend_from_slice(piece);
    }
}

fn write_head_at(out: &mut BytesMut, at: usize, head: &Head) {
    let mut place = out.get_mut(at..).unwrap_or_default();
    if place.len() >= HEAD_BYTES {
        place.put_uint(head.length as u64, 3);
        place.put_u8(head.kind);
        place.put_u8(head.flags);
        place.put_u32(head.stream);
    }
}

pub fn write_settings(out: &mut BytesMut, settings: &[(u16, u32)]) {
    Head { length: settings.len().saturating_mul(6), kind: kind::SETTINGS, flags: 0, stream: 0 }.write(out);
    for (id, value) in settings {
        out.put_u16(*id);
        out.put_u32(*value);
    }
}

pub fn write_settings_ack(out: &mut BytesMut) {
    Head { length: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 }.write(out);
}

pub fn write_ping(out: &mut BytesMut, ack: bool, payload: [u8; 8]) {
    let flags = if ack { flag::ACK } else { 0 };
    Head { length: 8, kind: kind::PING, flags, stream: 0 }.write(out);
    out.put_slice(&payload);
}

pub fn write_reset(out: &mut BytesMut, stream: u32, code: Code) {
    Head { length: 4, kind: kind::RST_STREAM, flags: 0, stream }.write(out);
    out.put_u32(code.0);
}

pub fn write_goaway(out: &mut BytesMut, last: u32, code: Code) {
    Head { length: 8, kind: kind::GOAWAY, flags: 0, stream: 0 }.write(out);
    out.put_u32(last);
    out.put_u32(code.0);
}

/// `stream` 0: the connection's.
pub fn write_window_update(out: &mut BytesMut, stream: u32, bytes: u32) {
    Head { length: 4, kind: kind::WINDOW_UPDATE, flags: 0, stream }.write(out);
    out.put_u32(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_header_block_goes_on_in_further_frames() {
        // RFC 9113 §6.10; a frame larger than the peer takes would end the connection.
        for length in [0, 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, 3 * MAX_PAYLOAD, 3 * MAX_PAYLOAD + 7] {
            let block: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut out = BytesMut::from(&b"before"[..]);
            write_headers(&mut out, 7, true, |out| out.extend_from_slice(&block));
            let mut rest = &out[6..];
            let mut joined = Vec::new();
            let mut kinds = Vec::new();
            while let Some(head) = Head::read(rest) {
                assert_eq!(head.stream, 7);
                joined.extend_from_slice(&rest[HEAD_BYTES..HEAD_BYTES + head.length]);
                rest = &rest[HEAD_BYTES + head.length..];
                assert_eq!(head.has(flag::END_HEADERS), rest.is_empty(), "{length}");
                kinds.push((head.kind, head.kind == kind::HEADERS && head.has(flag::END_STREAM)));
            }
            assert_eq!(joined, block);
            assert_eq!(kinds.first(), Some(&(kind::HEADERS, true)));
            assert!(kinds.iter().skip(1).all(|kind| *kind == (kind::CONTINUATION, false)), "{kinds:?}");
        }
    }

    #[test]
    fn padding_is_taken_off_and_never_more() {
        let head = Head { length: 0, kind: kind::DATA, flags: flag::PADDED, stream: 1 };
        for (payload, content) in [
            (&[0, 1, 2][..], Some(&[1, 2][..])),
            (&[2, 1, 0, 0], Some(&[1])),
            (&[1, 0], Some(&[])),
            (&[2, 0], None),
            (&[], None),
        ] {
            assert_eq!(unpad(&head, payload).ok(), content, "{payload:?}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for (id, value, code) in [
            (setting::ENABLE_PUSH, 2, Some(Code::PROTOCOL_ERROR)),
            (setting::INITIAL_WINDOW_SIZE, 1 << 31, Some(Code::FLOW_CONTROL_ERROR)),
            (setting::MAX_FRAME_SIZE, 16_383, Some(Code::PROTOCOL_ERROR)),
            (setting::MAX_FRAME_SIZE, 1 << 24, Some(Code::PROTOCOL_ERROR)),
            (setting::MAX_FRAME_SIZE, (1 << 24) - 1, None),
            (setting::ENABLE_CONNECT_PROTOCOL, 2, Some(Code::PROTOCOL_ERROR)),
            (0xbeef, 7, None),
        ] {
            let mut out = BytesMut::new();
            write_settings(&mut out, &[(id, value)]);
            let mut seen = Vec::new();
            let read = settings(&out[HEAD_BYTES..], |id, value| seen.push((id, value)));
            assert_eq!(read.err().map(|offence| offence.code), code, "{id} {value}");
            assert_eq!(seen.len(), usize::from(code.is_none()));
        }
        assert_eq!(settings(&[0; 5], |_, _| {}).unwrap_err().code, Code::FRAME_SIZE_ERROR);
    }
}
