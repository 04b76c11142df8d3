//! Field lines to header blocks, as we send them. Pure.
//!
//! What is said again becomes one byte or two. What is said once (paths, lengths, ids) would only push useful lines out of the table
//! and is written as it is; what is secret never enters it (RFC 7541 §7.1.3).

use std::{collections::HashMap, hash::BuildHasher};

use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{
    TABLE_BYTES,
    table::{Dynamic, STATIC_ENTRIES, entry_bytes},
};

/// Lines beyond this are not worth a place.
const MOST_BYTES: usize = TABLE_BYTES / 4;

/// Writes the header blocks of one direction of a connection.
#[derive(Debug)]
pub struct Encoder {
    table: Dynamic<Entry>,
    /// Where a line stands: its number, by the hash of name and value.
    places: HashMap<u64, u64, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    /// Lines added so far.
    added: u64,
    /// The peer has changed the size of its table, and must be told that we know.
    resized: Option<usize>,
}

#[derive(Debug)]
struct Entry {
    /// `None`: the authority.
    name: Option<HeaderName>,
    value: HeaderValue,
    hash: u64,
    number: u64,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            table: Dynamic::new(TABLE_BYTES),
            places: HashMap::default(),
            hasher: foldhash::fast::RandomState::default(),
            added: 0,
            resized: None,
        }
    }
}

/// Static indexes (RFC 7541 Appendix A).
mod index {
    pub const AUTHORITY: usize = 1;
    pub const GET: usize = 2;
    pub const POST: usize = 3;
    pub const ROOT: usize = 4;
    pub const SCHEME_HTTP: usize = 6;
    pub const SCHEME_HTTPS: usize = 7;
    pub const STATUS: usize = 8;
    pub const CONTENT_LENGTH: usize = 28;
}

impl Encoder {
    /// Bytes in the table, as RFC 7541 §4.1 counts them.
    pub const fn table_bytes(&self) -> usize {
        self.table.bytes()
    }

    /// The peer's limit for the table; ours does not grow beyond [`TABLE_BYTES`].
    pub fn resize(&mut self, limit: usize) {
        let limit = limit.min(TABLE_BYTES);
        if limit != self.table.limit() {
            // Several changes between two blocks: the smallest must be told too (RFC 7541 §4.2). Emptying the table does that.
            self.table.resize(0, drop);
            self.places.clear();
            self.table.resize(limit, drop);
            self.resized = Some(limit);
        }
    }

    /// To be called before the first line of every block.
    pub fn begin(&mut self, out: &mut BytesMut) {
        if let Some(limit) = self.resized.take() {
            number(out, 0x20, 5, 0);
            number(out, 0x20, 5, limit);
        }
    }

    pub fn method(&mut self, out: &mut BytesMut, method: &Method) {
        match *method {
            Method::GET => number(out, 0x80, 7, index::GET),
            Method::POST => number(out, 0x80, 7, index::POST),
            _ => {
                number(out, 0x00, 4, index::GET);
                string(out, method.as_str().as_bytes());
            }
        }
    }

    pub fn scheme(&mut self, out: &mut BytesMut, https: bool) {
        number(out, 0x80, 7, if https { index::SCHEME_HTTPS } else { index::SCHEME_HTTP });
    }

    pub fn path(&mut self, out: &mut BytesMut, path: &str) {
        if path == "/" {
            number(out, 0x80, 7, index::ROOT);
        } else {
            number(out, 0x00, 4, index::ROOT);
            string(out, path.as_bytes());
        }
    }

    pub fn authority(&mut self, out: &mut BytesMut, authority: &str) {
        let Ok(value) = HeaderValue::from_str(authority) else {
            // An authority is a valid value; only its type does not say so.
            return;
        };
        self.line(out, None, &value);
    }

    pub fn status(&mut self, out: &mut BytesMut, status: StatusCode) {
        let known = match status.as_u16() {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => {
                number(out, 0x00, 4, index::STATUS);
                return string(out, status.as_str().as_bytes());
            }
        };
        number(out, 0x80, 7, known);
    }

    pub fn content_length(&mut self, out: &mut BytesMut, bytes: u64) {
        number(out, 0x00, 4, index::CONTENT_LENGTH);
        string(out, itoa::Buffer::new().format(bytes).as_bytes());
    }

    pub fn field(&mut self, out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
        if value.is_sensitive() || is_secret(name) {
            return literal(out, 0x10, name, value);
        }
        if changes_every_time(name) || entry_bytes(name.as_str().len(), value.len()) > MOST_BYTES {
            return literal(out, 0x00, name, value);
        }
        self.line(out, Some(name), value);
    }

    /// A line that will come again; `None`: the authority.
    fn line(&mut self, out: &mut BytesMut, name: Option<&HeaderName>, value: &HeaderValue) {
        let text = name.map_or(":authority", HeaderName::as_str);
        let hash = self.hasher.hash_one((text, value.as_bytes()));
        if let Some(place) = self.places.get(&hash) {
            let age = self.added.saturating_sub(*place).saturating_sub(1) as usize;
            if self.table.get(age).is_some_and(|entry| entry.name.as_ref() == name && entry.value == *value) {
                return number(out, 0x80, 7, age.saturating_add(STATIC_ENTRIES + 1));
            }
        }
        match name {
            None => number(out, 0x40, 6, index::AUTHORITY),
            Some(name) => named(out, 0x40, 6, name),
        }
        string(out, value.as_bytes());
        let places = &mut self.places;
        // A copy: what came in is a piece of a whole head, and would keep it.
        let kept = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
        let kept_name =
            name.map(|name| HeaderName::from_lowercase(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone()));
        let number = self.added;
        let entry = Entry { name: kept_name, value: kept, hash, number };
        let stays = self.table.add(entry, entry_bytes(text.len(), value.len()), |old| {
            if places.get(&old.hash) == Some(&old.number) {
                places.remove(&old.hash);
            }
        });
        if stays {
            places.insert(hash, number);
            self.added = self.added.saturating_add(1);
        }
    }
}

/// A line that is not remembered.
fn literal(out: &mut BytesMut, pattern: u8, name: &HeaderName, value: &HeaderValue) {
    named(out, pattern, 4, name);
    string(out, value.as_bytes());
}

fn named(out: &mut BytesMut, pattern: u8, bits: u32, name: &HeaderName) {
    let index = static_name(name);
    number(out, pattern, bits, index);
    if index == 0 {
        string(out, name.as_str().as_bytes());
    }
}

/// RFC 7541 §5.1.
fn number(out: &mut BytesMut, pattern: u8, bits: u32, number: usize) {
    let mask = !usize::MAX.unbounded_shl(bits);
    let Some(mut rest) = number.checked_sub(mask) else { return out.put_u8(pattern | number as u8) };
    out.put_u8(pattern | mask as u8);
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// RFC 7541 §5.2, plain.
fn string(out: &mut BytesMut, text: &[u8]) {
    number(out, 0x00, 7, text.len());
    out.put_slice(text);
}

/// Beside what a caller marks as sensitive.
fn is_secret(name: &HeaderName) -> bool {
    matches!(name.as_str(), "authorization" | "proxy-authorization" | "cookie" | "set-cookie")
}

/// Values that hardly ever come again.
fn changes_every_time(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "age"
            | "content-range"
            | "etag"
            | "if-match"
            | "if-modified-since"
            | "if-none-match"
            | "last-modified"
            | "location"
            | "range"
            | "traceparent"
            | "x-request-id"
    )
}

/// The first entry with this name in the table that everybody knows; 0: none.
fn static_name(name: &HeaderName) -> usize {
    match name.as_str() {
        "accept-charset" => 15,
        "accept-encoding" => 16,
        "accept-language" => 17,
        "accept-ranges" => 18,
        "accept" => 19,
        "access-control-allow-origin" => 20,
        "age" => 21,
        "allow" => 22,
        "authorization" => 23,
        "cache-control" => 24,
        "content-disposition" => 25,
        "content-encoding" => 26,
        "content-language" => 27,
        "content-length" => 28,
        "content-location" => 29,
        "content-range" => 30,
        "content-type" => 31,
        "cookie" => 32,
        "date" => 33,
        "etag" => 34,
        "expect" => 35,
        "expires" => 36,
        "from" => 37,
        "host" => 38,
        "if-match" => 39,
        "if-modified-since" => 40,
        "if-none-match" => 41,
        "if-range" => 42,
        "if-unmodified-since" => 43,
        "last-modified" => 44,
        "link" => 45,
        "location" => 46,
        "max-forwards" => 47,
        "proxy-authenticate" => 48,
        "proxy-authorization" => 49,
        "range" => 50,
        "referer" => 51,
        "refresh" => 52,
        "retry-after" => 53,
        "server" => 54,
        "set-cookie" => 55,
        "strict-transport-security" => 56,
        "transfer-encoding" => 57,
        "user-agent" => 58,
        "vary" => 59,
        "via" => 60,
        "www-authenticate" => 61,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            decode::Decoder,
            table::{Name, STATIC},
        },
        *,
    };

    fn block(encoder: &mut Encoder, fields: &[(&str, &str)]) -> BytesMut {
        let mut out = BytesMut::new();
        encoder.begin(&mut out);
        for (name, value) in fields {
            let value = value.parse().unwrap();
            encoder.field(&mut out, &name.parse().unwrap(), &value);
        }
        out
    }

    #[test]
    fn names_stand_where_the_standard_has_them() {
        for (at, field) in STATIC.iter().enumerate() {
            if let Name::Field(name) = &field.name {
                assert_eq!(static_name(name), at + 1, "{name}");
            }
        }
    }

    #[test]
    fn what_is_said_again_is_short() {
        let mut encoder = Encoder::default();
        let fields = [("user-agent", "x/1"), ("x-outrigger-peer", "a long introduction of a workload")];
        let first = block(&mut encoder, &fields).len();
        assert_eq!((first > 40, block(&mut encoder, &fields).len()), (true, 2));
    }

    #[test]
    fn secrets_and_what_never_comes_again_are_not_remembered() {
        let mut encoder = Encoder::default();
        let fields = [("authorization", "Bearer s"), ("cookie", "a=b"), ("x-request-id", "1"), ("etag", "2")];
        let first = block(&mut encoder, &fields);
        assert_eq!(block(&mut encoder, &fields), first);
        // RFC 7541 §6.2.3: never indexed, by anybody on the way.
        assert_eq!(first.first(), Some(&0x1f));
    }

    #[test]
    fn the_peer_decides_how_large_its_table_is() {
        let mut encoder = Encoder::default();
        let mut decoder = Decoder::default();
        for limit in [4096, 64, 0, 4096, 70] {
            encoder.resize(limit);
            for turn in 0..3 {
                let text = format!("value-{turn}");
                let fields = [("x-a", "same"), ("x-b", text.as_str())];
                let bytes = block(&mut encoder, &fields);
                let mut lines = Vec::new();
                decoder.decode(&bytes, |field, _| lines.push(field.value)).unwrap();
                assert_eq!(lines, ["same", text.as_str()], "{limit}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_the_same(
            blocks in proptest::collection::vec(
                proptest::collection::vec(("[a-e]{1,3}|accept|cookie|date|etag", "[ -~]{0,8}|[a-b]{200}|[x]{900}"), 0..12),
                1..12,
            ),
        ) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            for fields in blocks {
                let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&**name, value.trim())).collect();
                let bytes = block(&mut encoder, &fields);
                let mut lines = Vec::new();
                decoder.decode(&bytes, |field, _| match field.name {
                    Name::Field(name) => lines.push((name, field.value)),
                    other => panic!("{other:?}"),
                }).unwrap();
                let lines: Vec<(&str, &str)> =
                    lines.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
                prop_assert_eq!(lines, fields);
            }
        }
    }
}
