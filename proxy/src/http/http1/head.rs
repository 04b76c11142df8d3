//! The head of a message: grammar of RFC 9112 §2 to §5, without any of its leniencies. Pure.
//!
//! [`find_end`] looks for the end of a head in what has come so far, [`request()`] and [`response()`] read a whole one. A head that any
//! other reader could understand differently does not pass: line feeds alone, folded fields, space around names, control characters,
//! bytes in the target that must be escaped, fragments. Values are slices of the head's own bytes.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request, response};

use super::{
    fault::Fault,
    framing::{self, Framing},
};
use crate::http::seen::{Field, Seen};

/// Greatest head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// First line and fields, with their line ends.
    pub bytes: usize,
    pub fields: usize,
    /// The request target.
    pub target_bytes: usize,
}

/// How far [`find_end`] has looked; one per message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    at: usize,
    line: usize,
}

/// A request without its content.
#[derive(Debug)]
pub struct RequestHead {
    pub parts: request::Parts,
    pub seen: Seen,
    pub framing: Framing,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    /// Whether the client waits to be asked for the content.
    pub expects_continue: bool,
}

/// A response without its content.
#[derive(Debug)]
pub struct ResponseHead {
    pub parts: response::Parts,
    pub framing: Framing,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
}

/// The length of the first head in `received`, its empty line included; `None`: not all of it has come yet.
///
/// # Errors
/// A line feed without a carriage return, or more bytes than allowed; found as soon as they come, not when the head is complete.
pub fn find_end(received: &[u8], scan: &mut Scan, limits: &HeadLimits) -> Result<Option<usize>, Fault> {
    while let Some(offset) = memchr::memchr(b'\n', received.get(scan.at..).unwrap_or_default()) {
        let feed = scan.at + offset;
        let Some(carriage) = feed.checked_sub(1).filter(|at| received.get(*at) == Some(&b'\r')) else {
            return Err(Fault::BareLineFeed);
        };
        if feed >= limits.bytes {
            return Err(Fault::HeadTooLong);
        }
        let empty = carriage == scan.line;
        scan.at = feed + 1;
        scan.line = feed + 1;
        if empty {
            return Ok(Some(feed + 1));
        }
    }
    scan.at = received.len();
    if received.len() >= limits.bytes { Err(Fault::HeadTooLong) } else { Ok(None) }
}

/// Reads a whole head, as [`find_end`] delimits it.
///
/// # Errors
/// The first rule it breaks.
pub fn request(head: &Bytes, limits: &HeadLimits) -> Result<RequestHead, Fault> {
    let (line, fields) = split_line(head).ok_or(Fault::RequestLine)?;
    let method_end = memchr::memchr(b' ', line).ok_or(Fault::RequestLine)?;
    let (method, rest) = line.split_at(method_end);
    let rest = rest.get(1..).unwrap_or_default();
    let target_end = memchr::memchr(b' ', rest).ok_or(Fault::RequestLine)?;
    let (target, version) = rest.split_at(target_end);
    let version = version.get(1..).unwrap_or_default();
    if target.is_empty() || memchr::memchr(b' ', version).is_some() {
        return Err(Fault::RequestLine);
    }
    let version = self::version(version)?;
    let method = Method::from_bytes(method).map_err(|_| Fault::Method)?;
    if target.len() > limits.target_bytes {
        return Err(Fault::TargetTooLong);
    }
    let uri = self::target(&method, head.slice_ref(target))?;
    let (headers, seen) = self::fields(head, fields, limits)?;
    let framing = framing::of_request(&method, version, &headers, seen)?;
    let keep_alive = keeps_alive(version, &headers, seen);
    let expects_continue = version == Version::HTTP_11
        && framing != Framing::Empty
        && seen.has(Field::Expect)
        && headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = method;
    parts.uri = uri;
    parts.version = version;
    parts.headers = headers;
    Ok(RequestHead { parts, seen, framing, keep_alive, expects_continue })
}

/// Reads a whole head, as [`find_end`] delimits it; `asked` is the method of the request it answers.
///
/// # Errors
/// The first rule it breaks.
pub fn response(head: &Bytes, asked: &Method, limits: &HeadLimits) -> Result<ResponseHead, Fault> {
    let (line, fields) = split_line(head).ok_or(Fault::StatusLine)?;
    let (version, rest) = line.split_at_checked(9).ok_or(Fault::StatusLine)?;
    let version = self::version(version.strip_suffix(b" ").ok_or(Fault::StatusLine)?)?;
    let (status, reason) = rest.split_at_checked(3).ok_or(Fault::StatusLine)?;
    // RFC 9112 §4: the space stays even without a reason; servers that leave it out are common, and it changes nothing.
    let well_formed = match reason {
        [] => true,
        [b' ', text @ ..] => text.iter().all(|byte| is_text(*byte)),
        _ => false,
    };
    if !well_formed {
        return Err(Fault::StatusLine);
    }
    // RFC 9110 §15: "Values outside the range 100..599 are invalid"; the next reader may take one for success.
    let status = StatusCode::from_bytes(status)
        .ok()
        .filter(|status| (100..600).contains(&status.as_u16()))
        .ok_or(Fault::StatusLine)?;
    let (headers, seen) = self::fields(head, fields, limits)?;
    let framing = framing::of_response(asked, status, version, &headers, seen)?;
    let keep_alive = keeps_alive(version, &headers, seen);
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    parts.version = version;
    parts.headers = headers;
    Ok(ResponseHead { parts, framing, keep_alive })
}

/// Field lines up to and including the empty one, and which of the fields that matter they have; for trailers as well.
///
/// # Errors
/// The first rule they break.
pub fn fields(head: &Bytes, mut lines: &[u8], limits: &HeadLimits) -> Result<(HeaderMap, Seen), Fault> {
    // Most messages have about a dozen; a small map is one that the allocator has at hand.
    let small = memchr::memchr_iter(b'\n', lines).take(SMALL_FIELDS).count() <= SMALL_FIELDS - ADDED_FIELDS;
    let mut headers = HeaderMap::with_capacity(if small { SMALL_FIELDS } else { USUAL_FIELDS });
    let mut seen = Seen::default();
    let mut count = 0;
    while let Some((line, rest)) = split_line(lines) {
        lines = rest;
        if line.is_empty() {
            return Ok((headers, seen));
        }
        count += 1;
        if count > limits.fields {
            return Err(Fault::TooManyFields);
        }
        let colon = memchr::memchr(b':', line).ok_or(Fault::FieldName)?;
        let (name, value) = line.split_at(colon);
        if matches!(name.first(), Some(b' ' | b'\t')) {
            return Err(Fault::FoldedField);
        }
        let name = HeaderName::from_bytes(name).map_err(|_| Fault::FieldName)?;
        let value = trim(value.get(1..).unwrap_or_default());
        // Refuses control characters but the tab, among them a carriage return alone and NUL.
        let value = HeaderValue::from_maybe_shared(head.slice_ref(value)).map_err(|_| Fault::FieldValue)?;
        seen.add(&name);
        headers.try_append(name, value).map_err(|_| Fault::TooManyFields)?;
    }
    Err(Fault::FieldName)
}

/// What a map has room for before it grows, in a small size and in a usual one.
const SMALL_FIELDS: usize = 6;
const USUAL_FIELDS: usize = 12;
/// What the stages after this add: an id, a count, a date.
const ADDED_FIELDS: usize = 2;

/// The bytes before the next CRLF, and those behind.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let feed = memchr::memchr(b'\n', bytes)?;
    let (line, rest) = bytes.split_at_checked(feed + 1)?;
    Some((line.strip_suffix(b"\r\n")?, rest))
}

/// Without optional whitespace at both ends (RFC 9110 §5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// RFC 9112 §2.3: the name is case-sensitive.
fn version(bytes: &[u8]) -> Result<Version, Fault> {
    match bytes {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        _ => Err(Fault::Version),
    }
}

/// RFC 9112 §3.2; which form a method may have is `normalize`'s matter, except where the bytes do not tell the forms apart.
fn target(method: &Method, target: Bytes) -> Result<Uri, Fault> {
    if !is_sound_target(&target) {
        return Err(Fault::Target);
    }
    let absolute = target.first() != Some(&b'/');
    if absolute && target.as_ref() == b"*" && method != Method::OPTIONS {
        return Err(Fault::Target);
    }
    let uri = Uri::from_maybe_shared(target).map_err(|_| Fault::Target)?;
    // RFC 9110 §4.2.4: userinfo is an error; whoever takes it for the host goes elsewhere.
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(Fault::Target);
    }
    // RFC 9112 §3.2.3: authority-form is for CONNECT, and CONNECT has no other.
    let authority_form = uri.authority().is_some() && uri.scheme().is_none();
    if authority_form != (method == Method::CONNECT) {
        return Err(Fault::Target);
    }
    Ok(uri)
}

/// Whether every reader sees the same target in these bytes, also in the `:path` of HTTP/2.
pub(in crate::http) fn is_sound_target(target: &[u8]) -> bool {
    // "#" would start a fragment, which is never sent (RFC 9110 §7.1): readers that cut it off and readers that keep it see two targets.
    // In the path, "\\" is a separator to some. Beyond that, RFC 3986 §2 wants more escaped than clients in use do ("{", "|" in queries);
    // what means the same to everybody passes.
    let path_end = memchr::memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at_checked(path_end).unwrap_or_default();
    let visible = |byte: u8| (0x21..0x7f).contains(&byte) && byte != b'#';
    let in_path = |byte: u8| visible(byte) && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'`');
    path.iter().all(|byte| in_path(*byte)) && query.iter().all(|byte| visible(*byte))
}

/// RFC 9112 §9.3.
fn keeps_alive(version: Version, headers: &HeaderMap, seen: Seen) -> bool {
    if !seen.has(Field::Connection) {
        return version == Version::HTTP_11;
    }
    let said = |token: &str| {
        headers
            .get_all(header::CONNECTION)
            .into_iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|line| line.split(','))
            .any(|found| found.trim_matches([' ', '\t']).eq_ignore_ascii_case(token))
    };
    match version {
        Version::HTTP_11 => !said("close"),
        _ => said("keep-alive") && !said("close"),
    }
}

/// `field-content` and the reason phrase: visible bytes, space, tab, and what RFC 9110 §5.5 calls obs-text.
const fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 8, target_bytes: 64 };

    fn read(text: &[u8]) -> Result<RequestHead, Fault> {
        let mut scan = Scan::default();
        let end = find_end(text, &mut scan, &LIMITS)?.expect("a whole head");
        assert_eq!(end, text.len(), "{}", String::from_utf8_lossy(text));
        request(&Bytes::copy_from_slice(text), &LIMITS)
    }

    #[test]
    fn an_ordinary_request_is_read_as_it_is() {
        let head = read(
            b"POST /a/b?c=d HTTP/1.1\r\nHost: x.test\r\nContent-Length: 3\r\nX-A:\t b  \r\nx-a: c\r\nEmpty:\r\n\r\n",
        )
        .unwrap();
        assert_eq!((head.parts.method.as_str(), head.parts.uri.to_string().as_str()), ("POST", "/a/b?c=d"));
        assert_eq!((head.framing, head.keep_alive, head.expects_continue), (Framing::Length(3), true, false));
        let fields: Vec<_> =
            head.parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(fields, [("host", "x.test"), ("content-length", "3"), ("x-a", "b"), ("x-a", "c"), ("empty", "")]);
    }

    #[test]
    fn every_doubtful_head_is_refused() {
        // Each of these is read in two ways by servers in use, or lets bytes through that end a line somewhere else.
        for (text, fault) in [
            (b"GET / HTTP/1.1\nHost: a\r\n\r\n".as_slice(), Fault::BareLineFeed),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n", Fault::BareLineFeed),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\n", Fault::BareLineFeed),
            (b"GET  / HTTP/1.1\r\n\r\n", Fault::RequestLine),
            (b"GET /  HTTP/1.1\r\n\r\n", Fault::RequestLine),
            (b"GET / HTTP/1.1 \r\n\r\n", Fault::RequestLine),
            (b" GET / HTTP/1.1\r\n\r\n", Fault::RequestLine),
            (b"GET /\r\n\r\n", Fault::RequestLine),
            (b"GET\r\n\r\n", Fault::RequestLine),
            (b"GET\t/\tHTTP/1.1\r\n\r\n", Fault::RequestLine),
            (b"G\x00T / HTTP/1.1\r\n\r\n", Fault::Method),
            (b"GE(T / HTTP/1.1\r\n\r\n", Fault::Method),
            (b"GET / HTTP/1.2\r\n\r\n", Fault::Version),
            (b"GET / HTTP/2.0\r\n\r\n", Fault::Version),
            (b"GET / http/1.1\r\n\r\n", Fault::Version),
            (b"GET / HTTP/01.1\r\n\r\n", Fault::Version),
            (b"GET / HTTP/1.1\r\r\n\r\n", Fault::Version),
            (b"GET /a#b HTTP/1.1\r\n\r\n", Fault::Target),
            (b"GET /a\\b HTTP/1.1\r\n\r\n", Fault::Target),
            (b"GET /a\x00b HTTP/1.1\r\n\r\n", Fault::Target),
            (b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", Fault::Target),
            (b"GET /\"a HTTP/1.1\r\n\r\n", Fault::Target),
            (b"GET * HTTP/1.1\r\n\r\n", Fault::Target),
            (b"GET a.test HTTP/1.1\r\n\r\n", Fault::Target),
            (b"CONNECT /a HTTP/1.1\r\n\r\n", Fault::Target),
            (b"CONNECT u@a:1 HTTP/1.1\r\n\r\n", Fault::Target),
            (b"GET http://u:p@a/ HTTP/1.1\r\n\r\n", Fault::Target),
            (b"CONNECT http://a/ HTTP/1.1\r\n\r\n", Fault::Target),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", Fault::FieldName),
            (b"GET / HTTP/1.1\r\nHost\r\n\r\n", Fault::FieldName),
            (b"GET / HTTP/1.1\r\n: a\r\n\r\n", Fault::FieldName),
            (b"GET / HTTP/1.1\r\nHo st: a\r\n\r\n", Fault::FieldName),
            (b"GET / HTTP/1.1\r\nH\xc3\xb6st: a\r\n\r\n", Fault::FieldName),
            (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Fault::FoldedField),
            (b"GET / HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n", Fault::FoldedField),
            (b"GET / HTTP/1.1\r\nA: b\r\n\tc\r\n\r\n", Fault::FieldName),
            (b"GET / HTTP/1.1\r\nA: b\x00\r\n\r\n", Fault::FieldValue),
            (b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", Fault::FieldValue),
            (b"GET / HTTP/1.1\r\nA: b\r\r\n\r\n", Fault::FieldValue),
            (b"GET / HTTP/1.1\r\nA: b\x7f\r\n\r\n", Fault::FieldValue),
            (
                b"GET / HTTP/1.1\r\na:1\r\na:2\r\na:3\r\na:4\r\na:5\r\na:6\r\na:7\r\na:8\r\na:9\r\n\r\n",
                Fault::TooManyFields,
            ),
            (
                b"GET /0123456789012345678901234567890123456789012345678901234567890123456789 HTTP/1.1\r\n\r\n",
                Fault::TargetTooLong,
            ),
        ] {
            assert_eq!(read(text).err(), Some(fault), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn the_end_is_found_wherever_the_bytes_are_cut() {
        // A head in two packets would be read differently from the same head in one.
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next";
        let end = text.len() - b"GET /next".len();
        for cut in 0..text.len() {
            let mut scan = Scan::default();
            let early = find_end(&text[..cut], &mut scan, &LIMITS).unwrap();
            assert_eq!(early, (cut >= end).then_some(end), "{cut}");
            if early.is_none() {
                assert_eq!(find_end(text, &mut scan, &LIMITS).unwrap(), Some(end), "{cut}");
            }
        }
        let endless = vec![b'a'; LIMITS.bytes];
        assert_eq!(find_end(&endless, &mut Scan::default(), &LIMITS), Err(Fault::HeadTooLong));
    }

    #[test]
    fn forms_of_the_target() {
        for (line, expected) in [
            ("GET / HTTP/1.1", true),
            ("GET /a;b=c/%2F?d=%00&e:@!$'()*,;=/? HTTP/1.1", true),
            ("GET http://a.test:80/x HTTP/1.1", true),
            ("OPTIONS * HTTP/1.1", true),
            ("CONNECT a.test:443 HTTP/1.1", true),
            ("CONNECT [::1]:443 HTTP/1.1", true),
            ("GET http:///x HTTP/1.1", false),
        ] {
            let text = format!("{line}\r\n\r\n");
            assert_eq!(read(text.as_bytes()).is_ok(), expected, "{line}");
        }
    }

    #[test]
    fn connections_end_when_either_version_says_so() {
        for (version, connection, expected) in [
            ("HTTP/1.1", "", true),
            ("HTTP/1.1", "Connection: close\r\n", false),
            ("HTTP/1.1", "Connection: x, Close\r\n", false),
            ("HTTP/1.1", "Connection: x\r\nConnection: close\r\n", false),
            ("HTTP/1.1", "Connection: keep-alive\r\n", true),
            ("HTTP/1.0", "", false),
            ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
            ("HTTP/1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let text = format!("GET / {version}\r\n{connection}\r\n");
            assert_eq!(read(text.as_bytes()).unwrap().keep_alive, expected, "{version} {connection}");
        }
    }

    #[test]
    fn responses_are_read_as_strictly() {
        let read = |text: &str| response(&Bytes::copy_from_slice(text.as_bytes()), &Method::GET, &LIMITS);
        let ok = read("HTTP/1.1 200 Very well\r\ncontent-length: 2\r\n\r\n").unwrap();
        assert_eq!((ok.parts.status, ok.framing, ok.keep_alive), (StatusCode::OK, Framing::Length(2), true));
        assert_eq!(read("HTTP/1.0 404\r\n\r\n").unwrap().framing, Framing::UntilClose);
        for (text, fault) in [
            ("HTTP/1.1  200 OK\r\n\r\n", Fault::StatusLine),
            ("HTTP/1.1 20 OK\r\n\r\n", Fault::StatusLine),
            ("HTTP/1.1 2000 OK\r\n\r\n", Fault::StatusLine),
            ("HTTP/1.1 099 OK\r\n\r\n", Fault::StatusLine),
            ("HTTP/1.1 200 O\rK\r\n\r\n", Fault::StatusLine),
            ("HTTP/2.0 200 OK\r\n\r\n", Fault::Version),
            ("ICY 200 OK\r\n\r\n", Fault::StatusLine),
            ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", Fault::FieldName),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Fault::ContentLength),
        ] {
            assert_eq!(read(text).err(), Some(fault), "{text}");
        }
    }
}
