//! What leaves: heads and chunks, serialised only from typed values. Pure.
//!
//! The typed values cannot hold a line end. Fields that frame a message or concern one connection are never copied: the framing
//! comes from the body that is really sent, `Connection` from what the connection does next.

use std::io::Write as _;

use bytes::{BufMut, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use crate::http::headers::{is_token, may_trail};

/// How the content of a message that leaves is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// None, and nothing says so.
    None,
    /// Exactly so many bytes; 0 says that there are none.
    Known(u64),
    Chunked,
    /// Until the connection closes; for responses only.
    UntilClose,
}

/// Where a request goes, as its first line says it.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    Origin(&'a PathAndQuery),
    /// CONNECT.
    Authority(&'a Authority),
}

/// A request that leaves.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub method: &'a Method,
    pub target: Target<'a>,
    pub host: &'a Authority,
    /// End-to-end fields; what frames the message or concerns the connection is left out.
    pub headers: &'a HeaderMap,
    /// Stand before `headers` and instead of fields there with the same name.
    pub own: &'a [(HeaderName, HeaderValue)],
    /// The protocols it wants to change to.
    pub upgrade: Option<&'a HeaderValue>,
}

/// What a response's `Connection` field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: HTTP/1.1 stays open by itself.
    Implied,
    /// To an HTTP/1.0 client that asked for it.
    KeepAlive,
    Close,
    /// 101: the protocols it changes to stand in `Upgrade`.
    Upgrade,
}

/// Serialises the head of a request.
pub fn request(out: &mut BytesMut, request: &Outgoing<'_>, length: Length) {
    out.reserve(256 + 48 * request.headers.len());
    out.put_slice(request.method.as_str().as_bytes());
    out.put_u8(b' ');
    match request.target {
        Target::Origin(path) => out.put_slice(path.as_str().as_bytes()),
        Target::Authority(authority) => out.put_slice(authority.as_str().as_bytes()),
    }
    out.put_slice(b" HTTP/1.1\r\nhost: ");
    out.put_slice(request.host.as_str().as_bytes());
    out.put_slice(b"\r\n");
    for (name, value) in request.own {
        field(out, name, value);
    }
    for (name, value) in request.headers {
        if !is_ours(name) && *name != header::HOST && !request.own.iter().any(|(own, _)| own == name) {
            field(out, name, value);
        }
    }
    if let Some(protocols) = request.upgrade {
        out.put_slice(b"connection: upgrade\r\n");
        field(out, &header::UPGRADE, protocols);
    }
    framing(out, length);
    out.put_slice(b"\r\n");
}

/// Serialises the head of a response; `date` is for one that has none.
pub fn response(
    out: &mut BytesMut,
    status: StatusCode,
    headers: &HeaderMap,
    length: Length,
    persistence: Persistence,
    date: Option<&HeaderValue>,
) {
    out.reserve(128 + 48 * headers.len());
    status_line(out, status);
    for (name, value) in headers {
        let ours = is_ours(name) && (persistence != Persistence::Upgrade || *name != header::UPGRADE);
        if !ours && is_token(name.as_str()) {
            field(out, name, value);
        }
    }
    // RFC 9110 §6.6.1: a proxy adds the date when it forwards a response without one.
    if let (false, Some(date)) = (status.is_informational(), date) {
        field(out, &header::DATE, date);
    }
    match persistence {
        Persistence::Implied => {}
        Persistence::KeepAlive => out.put_slice(b"connection: keep-alive\r\n"),
        Persistence::Close => out.put_slice(b"connection: close\r\n"),
        Persistence::Upgrade => out.put_slice(b"connection: upgrade\r\n"),
    }
    framing(out, length);
    out.put_slice(b"\r\n");
}

/// Serialises an interim response (1xx, RFC 9110 §15.2).
pub fn interim(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    status_line(out, status);
    for (name, value) in headers {
        if !is_ours(name) && is_token(name.as_str()) {
            field(out, name, value);
        }
    }
    out.put_slice(b"\r\n");
}

/// What goes before the content of one chunk; [`CHUNK_END`] goes behind it.
pub fn chunk_start(out: &mut BytesMut, bytes: usize) {
    // Writing to memory does not fail.
    let _ = write!(out.writer(), "{bytes:x}\r\n");
}

pub const CHUNK_END: &[u8] = b"\r\n";

/// The end of chunked content.
pub fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if may_trail(name) {
            field(out, name, value);
        }
    }
    out.put_slice(b"\r\n");
}

/// The status and the standard's phrase; a phrase that came from elsewhere carries nothing.
fn status_line(out: &mut BytesMut, status: StatusCode) {
    if status == StatusCode::OK {
        out.put_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
}

fn field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}

fn framing(out: &mut BytesMut, length: Length) {
    match length {
        Length::None | Length::UntilClose => {}
        Length::Known(bytes) => {
            out.put_slice(b"content-length: ");
            out.put_slice(itoa::Buffer::new().format(bytes).as_bytes());
            out.put_slice(b"\r\n");
        }
        Length::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
}

/// Fields that frame a message or concern its connection: they are written anew, in every version of HTTP.
pub(in crate::http) fn is_ours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "content-length" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::http::http1::{
        framing::Framing,
        head::{self, HeadLimits},
    };

    const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 32, target_bytes: 1024 };

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn nothing_that_frames_a_message_is_copied() {
        // A length or coding that came with one message would describe another.
        let headers = headers(&[
            ("content-length", "99"),
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("keep-alive", "9"),
            ("upgrade", "x"),
            ("host", "other"),
            ("x-own", "client"),
            ("x-a", "b"),
        ]);
        let host = "a.test:80".parse().unwrap();
        let path = "/x?y".parse().unwrap();
        let own = [(HeaderName::from_static("x-own"), HeaderValue::from_static("ours"))];
        let outgoing = Outgoing {
            method: &Method::POST,
            target: Target::Origin(&path),
            host: &host,
            headers: &headers,
            own: &own,
            upgrade: None,
        };
        let mut out = BytesMut::new();
        request(&mut out, &outgoing, Length::Known(5));
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "POST /x?y HTTP/1.1\r\nhost: a.test:80\r\nx-own: ours\r\nx-a: b\r\ncontent-length: 5\r\n\r\n"
        );
        let read = head::request(&Bytes::from(out), &LIMITS).unwrap();
        assert_eq!((read.framing, read.keep_alive), (Framing::Length(5), true));

        let mut out = BytesMut::new();
        let date = HeaderValue::from_static("now");
        response(&mut out, StatusCode::NOT_FOUND, &headers, Length::Chunked, Persistence::Close, Some(&date));
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "HTTP/1.1 404 Not Found\r\nhost: other\r\nx-own: client\r\nx-a: b\r\ndate: now\r\nconnection: close\r\n\
             transfer-encoding: chunked\r\n\r\n"
        );
    }

    #[test]
    fn trailers_say_nothing_of_the_message_before_them() {
        // Servers that merge trailers into the head would see another host, length or caller than the mesh did.
        let trailers = headers(&[
            ("host", "b"),
            ("content-length", "1"),
            ("connection", "close"),
            ("if-match", "a"),
            ("x-forwarded-client-cert", "By=a"),
            ("x-outrigger-peer", "a"),
            ("authorization", "a"),
            ("grpc-status", "0"),
            ("x-checksum", "a"),
        ]);
        let mut trailers = trailers;
        let quoted = HeaderName::from_lowercase(b"a\"b").unwrap();
        trailers.insert(quoted.clone(), HeaderValue::from_static("a"));
        let mut out = BytesMut::new();
        last_chunk(&mut out, Some(&trailers));
        assert_eq!(std::str::from_utf8(&out).unwrap(), "0\r\ngrpc-status: 0\r\nx-checksum: a\r\n\r\n");
        // A name that HTTP/2 lets through and HTTP/1 has no place for.
        let answer = HeaderMap::from_iter([(quoted, HeaderValue::from_static("a"))]);
        let mut out = BytesMut::new();
        response(&mut out, StatusCode::OK, &answer, Length::None, Persistence::Implied, None);
        assert_eq!(std::str::from_utf8(&out).unwrap(), "HTTP/1.1 200 OK\r\n\r\n");
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        // The strict reader is the judge of the writer.
        let values = ["", "b", "two words", "\u{00e4}\t!", "a,b;c=\"d\""];
        let mut fields = HeaderMap::new();
        for value in values {
            fields.append("x-a", HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let host = "a.test".parse().unwrap();
        let path = "/".parse().unwrap();
        let protocols = HeaderValue::from_static("websocket");
        let outgoing = Outgoing {
            method: &Method::GET,
            target: Target::Origin(&path),
            host: &host,
            headers: &fields,
            own: &[],
            upgrade: Some(&protocols),
        };
        let mut out = BytesMut::new();
        request(&mut out, &outgoing, Length::None);
        let read = head::request(&Bytes::from(out), &LIMITS).unwrap();
        let back: Vec<_> = read.parts.headers.get_all("x-a").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(back, values.map(str::as_bytes));
        assert_eq!(read.parts.headers[header::UPGRADE], "websocket");
    }
}
