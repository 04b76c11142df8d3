//! The table that everybody knows (RFC 7541 Appendix A), and the one that a connection builds up (§2.3.2).

use std::collections::VecDeque;

use http::{HeaderName, HeaderValue, header};

/// The name of a field on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Authority,
    Method,
    Path,
    Protocol,
    Scheme,
    Status,
    Field(HeaderName),
    /// Not a name that HTTP knows, or one whose value HTTP does not allow. It is kept, because the tables of both ends must stay the
    /// same.
    Malformed,
}

/// A field line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: Name,
    pub value: HeaderValue,
}

/// Entries of the table that everybody knows.
pub const STATIC_ENTRIES: usize = 61;

macro_rules! table {
    ($($name:expr, $value:literal;)+) => {
        [$(Field { name: $name, value: HeaderValue::from_static($value) }),+]
    };
}

use Name::{Authority, Field as F, Method, Path, Scheme, Status};

/// RFC 7541 Appendix A; the first stands for index 1.
pub static STATIC: [Field; STATIC_ENTRIES] = table! {
    Authority, "";
    Method, "GET";
    Method, "POST";
    Path, "/";
    Path, "/index.html";
    Scheme, "http";
    Scheme, "https";
    Status, "200";
    Status, "204";
    Status, "206";
    Status, "304";
    Status, "400";
    Status, "404";
    Status, "500";
    F(header::ACCEPT_CHARSET), "";
    F(header::ACCEPT_ENCODING), "gzip, deflate";
    F(header::ACCEPT_LANGUAGE), "";
    F(header::ACCEPT_RANGES), "";
    F(header::ACCEPT), "";
    F(header::ACCESS_CONTROL_ALLOW_ORIGIN), "";
    F(header::AGE), "";
    F(header::ALLOW), "";
    F(header::AUTHORIZATION), "";
    F(header::CACHE_CONTROL), "";
    F(header::CONTENT_DISPOSITION), "";
    F(header::CONTENT_ENCODING), "";
    F(header::CONTENT_LANGUAGE), "";
    F(header::CONTENT_LENGTH), "";
    F(header::CONTENT_LOCATION), "";
    F(header::CONTENT_RANGE), "";
    F(header::CONTENT_TYPE), "";
    F(header::COOKIE), "";
    F(header::DATE), "";
    F(header::ETAG), "";
    F(header::EXPECT), "";
    F(header::EXPIRES), "";
    F(header::FROM), "";
    F(header::HOST), "";
    F(header::IF_MATCH), "";
    F(header::IF_MODIFIED_SINCE), "";
    F(header::IF_NONE_MATCH), "";
    F(header::IF_RANGE), "";
    F(header::IF_UNMODIFIED_SINCE), "";
    F(header::LAST_MODIFIED), "";
    F(header::LINK), "";
    F(header::LOCATION), "";
    F(header::MAX_FORWARDS), "";
    F(header::PROXY_AUTHENTICATE), "";
    F(header::PROXY_AUTHORIZATION), "";
    F(header::RANGE), "";
    F(header::REFERER), "";
    F(header::REFRESH), "";
    F(header::RETRY_AFTER), "";
    F(header::SERVER), "";
    F(header::SET_COOKIE), "";
    F(header::STRICT_TRANSPORT_SECURITY), "";
    F(header::TRANSFER_ENCODING), "";
    F(header::USER_AGENT), "";
    F(header::VARY), "";
    F(header::VIA), "";
    F(header::WWW_AUTHENTICATE), "";
};

/// What RFC 7541 §4.1 adds to name and value.
const ENTRY_OVERHEAD: usize = 32;

/// The size of an entry, as both ends count it.
pub const fn entry_bytes(name: usize, value: usize) -> usize {
    name.saturating_add(value).saturating_add(ENTRY_OVERHEAD)
}

/// The entries of a connection, the newest first.
#[derive(Debug)]
pub struct Dynamic<T> {
    entries: VecDeque<(T, usize)>,
    bytes: usize,
    limit: usize,
}

impl<T> Dynamic<T> {
    pub const fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, limit }
    }

    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes in all entries, as both ends count them; never above the limit.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entry that was added as the last but `age`.
    pub fn get(&self, age: usize) -> Option<&T> {
        self.entries.get(age).map(|(entry, _)| entry)
    }

    /// Adds an entry and drops the oldest until it fits; one that never fits only empties the table (RFC 7541 §4.4). What was
    /// dropped is handed to `dropped`.
    pub fn add(&mut self, entry: T, bytes: usize, dropped: impl FnMut(T)) -> bool {
        self.make_room(self.limit.saturating_sub(bytes), dropped);
        if bytes > self.limit {
            return false;
        }
        self.entries.push_front((entry, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
        true
    }

    /// Another limit, from now on.
    pub fn resize(&mut self, limit: usize, dropped: impl FnMut(T)) {
        self.limit = limit;
        self.make_room(limit, dropped);
    }

    fn make_room(&mut self, most: usize, mut dropped: impl FnMut(T)) {
        while self.bytes > most
            && let Some((entry, bytes)) = self.entries.pop_back()
        {
            self.bytes = self.bytes.saturating_sub(bytes);
            dropped(entry);
        }
    }
}
