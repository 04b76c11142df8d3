//! What of a request decides about its endpoint, under consistent hashing. Pure.
//!
//! Asked by `upstream` once per request or connection, and only where the policy hashes. Field names follow Istio's `consistentHash`. A
//! request without the key goes to a random endpoint, as with Envoy; one without the cookie gets one, where the policy gives it a lifetime.

use std::{fmt, fmt::Write as _, net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header::COOKIE, uri::PathAndQuery};

use super::{keyed::TableKind, stable_hash::hash};
use crate::route::query_value;

/// Istio's `consistentHash`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    pub key: KeySource,
    pub table: TableKind,
}

/// Where the key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    Header(HeaderName),
    Cookie(CookieKey),
    /// The address that the connection to us came from.
    SourceIp,
    QueryParameter(Box<str>),
}

/// A cookie, and what to do for clients without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieKey {
    pub name: Box<str>,
    /// "/" where nothing is said.
    pub path: Box<str>,
    /// Lifetime of a generated cookie; zero: until the browser ends. `None`: none is generated.
    pub ttl: Option<Duration>,
}

/// The key of one request.
#[derive(Debug, PartialEq, Eq)]
pub enum Key {
    Is(u64),
    /// Any endpoint will do.
    Missing,
    /// It is to get this cookie, with a value that the caller draws.
    Generate,
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(cookie) => write!(f, "cookie {}", cookie.name),
            Self::SourceIp => f.write_str("source address"),
            Self::QueryParameter(name) => write!(f, "query parameter {name}"),
        }
    }
}

impl KeySource {
    /// The key of a request.
    pub fn of_request(&self, headers: &HeaderMap, path: &PathAndQuery, source: Option<IpAddr>) -> Key {
        let key = match self {
            // The first line decides; a client that sends the field twice has no one key.
            Self::Header(name) => headers.get(name).map(|value| hash(value.as_bytes(), 0)),
            Self::QueryParameter(name) => {
                query_value(path.query().unwrap_or_default(), name).map(|value| hash(&value, 0))
            }
            Self::SourceIp => return self.of_connection(source),
            Self::Cookie(cookie) => match cookie_value(headers, &cookie.name) {
                Some(value) => Some(hash(value, 0)),
                None if cookie.ttl.is_some() => return Key::Generate,
                None => None,
            },
        };
        key.map_or(Key::Missing, Key::Is)
    }

    /// The key of a connection that carries no requests: only its source is known.
    pub fn of_connection(&self, source: Option<IpAddr>) -> Key {
        match (self, source) {
            (Self::SourceIp, Some(IpAddr::V4(address))) => Key::Is(hash(&address.octets(), 0)),
            (Self::SourceIp, Some(IpAddr::V6(address))) => Key::Is(hash(&address.octets(), 0)),
            _ => Key::Missing,
        }
    }
}

impl CookieKey {
    /// A new cookie: the key it will give, and the Set-Cookie field that the client is to get.
    ///
    /// RFC 6265 §4.1.1. HttpOnly, because no script needs it.
    pub fn generate(&self, random: u128) -> (u64, Option<HeaderValue>) {
        let value = format!("{random:032x}");
        let mut field = format!("{}={value}", self.name);
        if let Some(ttl) = self.ttl.filter(|ttl| !ttl.is_zero()) {
            // Max-Age counts seconds, and 0 would mean: forget it.
            let _ = write!(field, "; Max-Age={}", ttl.as_secs().max(1));
        }
        let _ = write!(field, "; Path={}; HttpOnly", self.path);
        (hash(value.as_bytes(), 0), HeaderValue::try_from(field).ok())
    }
}

/// The value of the first cookie of this name, without quotes (RFC 6265 §5.4: one or more Cookie lines on HTTP/2).
pub(crate) fn cookie_value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs
        .filter_map(|pair| {
            let pair = pair.trim_ascii();
            let (key, value) = pair.split_at_checked(pair.iter().position(|byte| *byte == b'=')?)?;
            let value = value.strip_prefix(b"=")?;
            let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
            (key == name.as_bytes()).then_some(bare)
        })
        .next()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_key_is_what_the_policy_names() {
        // A key read from the wrong place sends a user's requests to other endpoints each time.
        let user = Key::Is(hash(b"ann", 0));
        let cookie = |ttl| KeySource::Cookie(CookieKey { name: "user".into(), path: "/".into(), ttl });
        let header = || KeySource::Header(HeaderName::from_static("x-user"));
        let query = || KeySource::QueryParameter("user".into());
        let source = Some(IpAddr::from([10, 0, 0, 1]));
        for (from, fields, path, expected) in [
            (header(), &[("x-user", "ann")][..], "/", &user),
            (header(), &[("x-user", "ann"), ("x-user", "bob")], "/", &user),
            (header(), &[("user", "ann")], "/?user=ann", &Key::Missing),
            (query(), &[], "/?a=b&user=ann", &user),
            (query(), &[], "/?user=%61nn&user=bob", &user),
            (query(), &[("x-user", "ann")], "/", &Key::Missing),
            (cookie(None), &[("cookie", "a=b; user=ann")], "/", &user),
            (cookie(None), &[("cookie", "a=b"), ("cookie", "user=\"ann\";c=d")], "/", &user),
            (cookie(None), &[("cookie", "xuser=bob; user ; user=ann; user=bob")], "/", &user),
            (cookie(None), &[("cookie", "User=ann")], "/", &Key::Missing),
            (cookie(Some(Duration::ZERO)), &[], "/", &Key::Generate),
            (cookie(Some(Duration::ZERO)), &[("cookie", "user=ann")], "/", &user),
            (KeySource::SourceIp, &[("x-user", "ann")], "/", &Key::Is(hash(&[10, 0, 0, 1], 0))),
        ] {
            let path = PathAndQuery::from_static(path);
            assert_eq!(&from.of_request(&headers(fields), &path, source), expected, "{from:?} {fields:?} {path}");
        }
        assert_eq!(KeySource::SourceIp.of_connection(None), Key::Missing);
        assert_eq!(header().of_connection(source), Key::Missing);
    }

    #[test]
    fn a_generated_cookie_leads_back_to_where_it_came_from() {
        // The first answer would come from one endpoint and everything after it from another.
        let name = "session";
        for (ttl, expected) in [
            (Duration::ZERO, "; Path=/shop; HttpOnly"),
            (Duration::from_secs(90), "; Max-Age=90; Path=/shop; HttpOnly"),
            (Duration::from_millis(1), "; Max-Age=1; Path=/shop; HttpOnly"),
        ] {
            let cookie = CookieKey { name: name.into(), path: "/shop".into(), ttl: Some(ttl) };
            let (key, field) = cookie.generate(7);
            let field = field.unwrap();
            let (pair, attributes) = field.to_str().unwrap().split_at("session=".len() + 32);
            assert_eq!(attributes, expected);
            let sent = HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(pair).unwrap())]);
            let path = PathAndQuery::from_static("/");
            assert_eq!(KeySource::Cookie(cookie).of_request(&sent, &path, None), Key::Is(key));
        }
    }
}
