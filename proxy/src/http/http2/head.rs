//! Header blocks to requests, responses and trailers: the grammar of RFC 9113 §8.2 and §8.3, without leniency. Pure.
//!
//! Only fields that HTTP/1 could carry to another reader unchanged pass. A block that is too large is read to its end all the same, because
//! the tables of both ends must stay the same; its fields are dropped as they come.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request, response,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    fault::Refusal,
    hpack::table::{Field, Name},
};
use crate::http::{
    http1::{Fault, framing, head::is_sound_target},
    upgrade::Protocol,
};

/// Greatest header section.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Names and values, and 32 bytes for each line (RFC 9113 §6.5.2).
    pub list_bytes: usize,
    pub fields: usize,
    /// `:path`.
    pub target_bytes: usize,
}

/// The lines of a header block, as they come.
#[derive(Debug)]
pub struct Lines {
    limits: HeadLimits,
    method: Option<HeaderValue>,
    scheme: Option<HeaderValue>,
    authority: Option<HeaderValue>,
    path: Option<HeaderValue>,
    protocol: Option<HeaderValue>,
    status: Option<HeaderValue>,
    headers: HeaderMap,
    fields: usize,
    bytes: usize,
    refusal: Option<Refusal>,
}

/// A request without its content.
#[derive(Debug)]
pub struct RequestHead {
    pub parts: request::Parts,
    /// What `content-length` says.
    pub content: Option<u64>,
}

impl RequestHead {
    /// Whether the client asks to be told that its content is wanted (RFC 9110 §10.1.1).
    pub fn expects_continue(&self) -> bool {
        let expects = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        self.parts.method != Method::CONNECT && self.parts.headers.get(header::EXPECT).is_some_and(expects)
    }
}

/// A response without its content.
#[derive(Debug)]
pub struct ResponseHead {
    pub parts: response::Parts,
    /// What `content-length` says.
    pub content: Option<u64>,
}

/// However many fields the last head had.
const MOST_EXPECTED: usize = 32;

impl Lines {
    /// With room for `usual` fields and what later stages add, before it grows.
    pub fn new(limits: HeadLimits, usual: usize) -> Self {
        Self {
            limits,
            method: None,
            scheme: None,
            authority: None,
            path: None,
            protocol: None,
            status: None,
            headers: HeaderMap::with_capacity(usual.min(MOST_EXPECTED).saturating_add(1)),
            fields: 0,
            bytes: 0,
            refusal: None,
        }
    }

    /// Fields so far, without pseudo-header fields.
    pub fn regular_fields(&self) -> usize {
        self.headers.len()
    }

    /// Takes one line in; the first rule that one breaks is remembered.
    pub fn add(&mut self, field: Field, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.fields = self.fields.saturating_add(1);
        if self.refusal.is_some() {
            return;
        }
        if self.bytes > self.limits.list_bytes {
            return self.refuse(Refusal::Answer(Fault::HeadTooLong));
        }
        let Field { name, value } = field;
        let place = match name {
            Name::Method => &mut self.method,
            Name::Scheme => &mut self.scheme,
            Name::Authority => &mut self.authority,
            Name::Path => &mut self.path,
            Name::Protocol => &mut self.protocol,
            Name::Status => &mut self.status,
            Name::Field(name) => return self.field(name, value),
            Name::Malformed => return self.refuse(Refusal::Malformed("a field that HTTP does not allow")),
        };
        if !self.headers.is_empty() {
            return self.refuse(Refusal::Malformed("a pseudo-header field behind a regular one"));
        }
        if place.replace(value).is_some() {
            self.refuse(Refusal::Malformed("a pseudo-header field twice"));
        }
    }

    fn field(&mut self, name: HeaderName, value: HeaderValue) {
        // RFC 9113 §8.2.2.
        let of_the_connection = match name.as_str() {
            "connection" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection" => true,
            "te" => !value.as_bytes().eq_ignore_ascii_case(b"trailers"),
            _ => false,
        };
        if of_the_connection {
            return self.refuse(Refusal::Malformed("a field of an HTTP/1 connection"));
        }
        if self.headers.len() >= self.limits.fields || self.headers.try_append(name, value).is_err() {
            self.refuse(Refusal::Answer(Fault::TooManyFields));
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.refusal = Some(refusal);
        // What was collected is not needed any more.
        self.headers = HeaderMap::new();
    }

    /// A request (RFC 9113 §8.3.1, RFC 8441 §4).
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn request(self, ends: bool) -> Result<RequestHead, Refusal> {
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        let malformed = Refusal::Malformed;
        if self.status.is_some() {
            return Err(malformed(":status in a request"));
        }
        let method = self.method.ok_or(malformed("a request without :method"))?;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| malformed(":method is not a token"))?;
        let tunnel = method == Method::CONNECT && self.protocol.is_none();
        let mut uri = http::uri::Parts::default();
        if tunnel {
            if self.scheme.is_some() || self.path.is_some() {
                return Err(malformed("CONNECT with :scheme or :path"));
            }
        } else {
            if self.protocol.is_some() && method != Method::CONNECT {
                return Err(malformed(":protocol without CONNECT"));
            }
            let scheme = self.scheme.ok_or(malformed("a request without :scheme"))?;
            uri.scheme = Some(match scheme.as_bytes() {
                b"http" => Scheme::HTTP,
                b"https" => Scheme::HTTPS,
                b"" => return Err(malformed(":scheme is empty")),
                other => Scheme::try_from(other).map_err(|_| malformed(":scheme is not one"))?,
            });
            uri.path_and_query = Some(path(self.path, &method, &self.limits)?);
        }
        uri.authority = match self.authority {
            // RFC 9113 §8.3.1: no user information.
            Some(authority) if memchr::memchr(b'@', authority.as_bytes()).is_some() => {
                return Err(malformed(":authority with user information"));
            }
            Some(authority) => Some(
                Authority::from_maybe_shared(Bytes::copy_from_slice(authority.as_bytes()))
                    .map_err(|_| malformed(":authority is not one"))?,
            ),
            None if method == Method::CONNECT => return Err(malformed("CONNECT without :authority")),
            // It may stand in the Host field.
            None => None,
        };
        if uri.authority.is_none() {
            // http has no URI with a scheme alone; what it was is http or https here, and the path remains.
            uri.scheme = None;
        }
        let content = content_length(&self.headers)?;
        if method == Method::CONNECT && content.is_some() {
            // RFC 9110 §9.3.6: what follows belongs to the tunnel.
            return Err(malformed("content-length with CONNECT"));
        }
        if ends && content.is_some_and(|bytes| bytes > 0) {
            return Err(malformed("content-length without content"));
        }
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = method;
        parts.uri = Uri::from_parts(uri).map_err(|_| malformed("the target is not one"))?;
        parts.version = Version::HTTP_2;
        parts.headers = self.headers;
        if let Some(protocol) = self.protocol {
            let protocol = protocol.to_str().map_err(|_| malformed(":protocol is not a token"))?;
            parts.extensions.insert(Protocol(protocol.into()));
        }
        Ok(RequestHead { parts, content })
    }

    /// A response, final or interim (RFC 9113 §8.3.2).
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn response(self) -> Result<ResponseHead, Refusal> {
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        if [&self.method, &self.scheme, &self.authority, &self.path, &self.protocol].into_iter().any(Option::is_some) {
            return Err(Refusal::Malformed("a pseudo-header field of requests in a response"));
        }
        let status = self.status.ok_or(Refusal::Malformed("a response without :status"))?;
        let status =
            StatusCode::from_bytes(status.as_bytes()).map_err(|_| Refusal::Malformed(":status is not a number"))?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            // RFC 9113 §8.6.
            return Err(Refusal::Malformed("101 on HTTP/2"));
        }
        let content = content_length(&self.headers)?;
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = status;
        parts.version = Version::HTTP_2;
        parts.headers = self.headers;
        Ok(ResponseHead { parts, content })
    }

    /// Trailers (RFC 9113 §8.1).
    ///
    /// # Errors
    /// The first rule they break.
    pub fn trailers(self) -> Result<HeaderMap, Refusal> {
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        if self.fields != self.headers.len() {
            return Err(Refusal::Malformed("a pseudo-header field in trailers"));
        }
        Ok(self.headers)
    }
}

fn path(path: Option<HeaderValue>, method: &Method, limits: &HeadLimits) -> Result<PathAndQuery, Refusal> {
    let path = path.ok_or(Refusal::Malformed("a request without :path"))?;
    if path.len() > limits.target_bytes {
        return Err(Refusal::Answer(Fault::TargetTooLong));
    }
    let is_origin = path.as_bytes().first() == Some(&b'/');
    let is_asterisk = path == "*" && *method == Method::OPTIONS;
    if !(is_origin || is_asterisk) || !is_sound_target(path.as_bytes()) {
        return Err(Refusal::Malformed(":path is not one"));
    }
    PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(path.as_bytes()))
        .map_err(|_| Refusal::Malformed(":path is not one"))
}

/// RFC 9113 §8.1.1 checks it against the content, so it must be one number.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).into_iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    match framing::decimal(length.as_bytes()) {
        Some(bytes) if lengths.next().is_none() => Ok(Some(bytes)),
        _ => Err(Refusal::Malformed("content-length is not one plain number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { list_bytes: 4096, fields: 8, target_bytes: 64 };

    fn lines(fields: &[(&str, &str)]) -> Lines {
        let mut lines = Lines::new(LIMITS, 0);
        for (name, value) in fields {
            let name = match *name {
                ":method" => Name::Method,
                ":scheme" => Name::Scheme,
                ":authority" => Name::Authority,
                ":path" => Name::Path,
                ":protocol" => Name::Protocol,
                ":status" => Name::Status,
                "malformed" => Name::Malformed,
                name => Name::Field(name.parse().unwrap()),
            };
            let value: HeaderValue = value.parse().unwrap();
            let bytes = 32 + 8 + value.len();
            lines.add(Field { name, value }, bytes);
        }
        lines
    }

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/p?q")];

    fn with(fields: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        GET.into_iter().chain(fields.iter().copied()).collect()
    }

    fn replaced(name: &str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        GET.into_iter().map(|(found, old)| (found, if found == name { value } else { old })).collect()
    }

    fn without(name: &str) -> Vec<(&'static str, &'static str)> {
        GET.into_iter().filter(|(found, _)| *found != name).collect()
    }

    #[test]
    fn an_ordinary_request_is_read_as_it_is() {
        let head = lines(&with(&[("x-a", "1"), ("x-a", "2"), ("te", "trailers"), ("content-length", "3")]));
        let head = head.request(false).unwrap();
        assert_eq!(head.parts.uri.to_string(), "http://a.test/p?q");
        assert_eq!((head.content, head.parts.headers.len()), (Some(3), 4));
        let connect = lines(&[(":method", "CONNECT"), (":authority", "a.test:443")]).request(false).unwrap();
        assert_eq!(connect.parts.uri.to_string(), "a.test:443");
        let websocket = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", "/chat"),
            (":authority", "a.test"),
        ];
        let websocket = lines(&websocket).request(false).unwrap();
        assert_eq!(websocket.parts.extensions.get::<Protocol>(), Some(&Protocol("websocket".into())));
    }

    #[test]
    fn every_doubtful_request_is_refused() {
        // What HTTP/1 endpoints behind us could read in another way (request smuggling by downgrade), or RFC 9113 forbids.
        for (fields, ends) in [
            (without(":method"), true),
            (without(":scheme"), true),
            (without(":path"), true),
            (replaced(":method", "GE T"), true),
            (replaced(":method", ""), true),
            (replaced(":path", ""), true),
            (replaced(":path", "p"), true),
            (replaced(":path", "*"), true),
            (replaced(":path", "http://b.test/"), true),
            (replaced(":path", "/a b"), true),
            (replaced(":path", "/a#b"), true),
            (replaced(":path", "/a\\b"), true),
            (replaced(":path", "/\u{e4}"), true),
            (replaced(":scheme", "ht tp"), true),
            (replaced(":scheme", ""), true),
            (replaced(":authority", "a b"), true),
            (replaced(":authority", ""), true),
            (replaced(":authority", "user@a.test"), true),
            (with(&[(":path", "/other")]), true),
            (with(&[("x-a", "1"), (":path", "/")]), true),
            (with(&[(":status", "200")]), true),
            (with(&[(":protocol", "websocket")]), true),
            (with(&[("malformed", "")]), true),
            (with(&[("connection", "close")]), true),
            (with(&[("keep-alive", "5")]), true),
            (with(&[("proxy-connection", "x")]), true),
            (with(&[("transfer-encoding", "chunked")]), true),
            (with(&[("upgrade", "h2c")]), true),
            (with(&[("te", "gzip")]), true),
            (with(&[("te", "trailers, gzip")]), true),
            (with(&[("content-length", "1")]), true),
            (with(&[("content-length", "1"), ("content-length", "1")]), false),
            (with(&[("content-length", "+1")]), false),
            (with(&[("content-length", "1, 1")]), false),
            (with(&[("content-length", "")]), false),
            (with(&[("content-length", "18446744073709551616")]), false),
            (vec![(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")], false),
            (vec![(":method", "CONNECT"), (":authority", "a:1"), (":scheme", "http")], false),
            (vec![(":method", "CONNECT")], false),
            (vec![(":method", "CONNECT"), (":authority", "a:1"), ("content-length", "0")], false),
            (vec![(":method", "CONNECT"), (":authority", "user@a:1")], false),
            (vec![], true),
        ] {
            let refusal = lines(&fields).request(ends).unwrap_err();
            assert!(matches!(refusal, Refusal::Malformed(_)), "{fields:?}: {refusal:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_answered() {
        let value = "x".repeat(1000);
        let many: Vec<_> = GET.into_iter().chain([("x-a", "1"); 9]).collect();
        let large: Vec<_> = GET.into_iter().chain([("x-a", value.as_str()); 5]).collect();
        let path = format!("/{}", "p".repeat(64));
        let long: Vec<_> =
            GET.iter().map(|(name, value)| (*name, if *name == ":path" { path.as_str() } else { value })).collect();
        for (fields, fault) in [(many, Fault::TooManyFields), (large, Fault::HeadTooLong), (long, Fault::TargetTooLong)]
        {
            assert_eq!(lines(&fields).request(true).unwrap_err(), Refusal::Answer(fault));
        }
    }

    #[test]
    fn responses_and_trailers_have_their_own_rules() {
        let ok = lines(&[(":status", "200"), ("content-length", "2")]).response().unwrap();
        assert_eq!((ok.parts.status, ok.content), (StatusCode::OK, Some(2)));
        for fields in [
            vec![],
            vec![(":status", "20")],
            vec![(":status", "2000")],
            vec![(":status", "101")],
            vec![(":status", "200"), (":status", "200")],
            vec![(":status", "200"), (":path", "/")],
            vec![("x-a", "1"), (":status", "200")],
            vec![(":status", "200"), ("connection", "close")],
            vec![(":status", "200"), ("content-length", "a")],
        ] {
            assert!(lines(&fields).response().is_err(), "{fields:?}");
        }
        assert_eq!(lines(&[("grpc-status", "0")]).trailers().unwrap().len(), 1);
        for fields in [[(":status", "200")], [(":path", "/")], [("connection", "x")]] {
            assert!(lines(&fields).trailers().is_err(), "{fields:?}");
        }
    }
}
