//! Frames of HTTP/2 as bytes: just enough to say anything, right or wrong. HPACK without compression (RFC 7541 §6.2.2).

#![allow(dead_code, reason = "every test that includes this file uses another part of it")]

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    into.extend_from_slice(&u32::try_from(payload.len()).expect("a small frame").to_be_bytes()[1..]);
    into.extend_from_slice(&[kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    into.extend_from_slice(payload);
}

/// Preface and settings of a client that keeps no table.
pub fn hello() -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    bytes
}

pub fn literal(into: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    into.push(0);
    for text in [name, value] {
        integer(into, text.len());
        into.extend_from_slice(text);
    }
}

/// RFC 7541 §5.1 with a prefix of seven bits.
fn integer(into: &mut Vec<u8>, mut value: usize) {
    let byte = |value: usize| u8::try_from(value & 0x7f).unwrap_or_default();
    if value < 127 {
        into.push(byte(value));
        return;
    }
    into.push(127);
    value -= 127;
    while value >= 128 {
        into.push(byte(value) | 0x80);
        value >>= 7;
    }
    into.push(byte(value));
}

/// Frames out of bytes that come.
#[derive(Debug, Default)]
pub struct Frames {
    pub received: Vec<u8>,
}

impl Frames {
    /// Kind, flags, stream and payload of the next whole frame.
    pub fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let [high, middle, low, kind, flags, a, b, c, d] = *self.received.first_chunk::<9>()?;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let payload = self.received.get(9..9 + length)?.to_vec();
        self.received.drain(..9 + length);
        Some((kind, flags, u32::from_be_bytes([a & 0x7f, b, c, d]), payload))
    }
}

/// A payload without padding, and of HEADERS without priority.
pub fn unpadded(flags: u8, mut payload: &[u8], headers: bool) -> &[u8] {
    if flags & 8 != 0
        && let Some((pad, rest)) = payload.split_first()
    {
        payload = &rest[..rest.len().saturating_sub(usize::from(*pad))];
    }
    if headers && flags & 0x20 != 0 { payload.get(5..).unwrap_or_default() } else { payload }
}
