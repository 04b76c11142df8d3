//! One canonical request: what routing, authorization and the endpoint see is the same. Pure.
//!
//! Called by the journeys first of all. Afterwards the path is origin-form and normalised, the authority stands in the
//! [`Target`] and in exactly one Host field, and framing fields are unambiguous. Everything that two
//! readers could understand differently is refused with 400 instead of repaired.
//! The bytes have passed `http1/head.rs` or `http2/head.rs`, which let nothing through that reads in two ways. TRACE passes, without
//! content: whether an application answers it is its own decision.

mod host;
mod path;

use std::borrow::Cow;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

use self::{
    host::{Host, is_plain},
    path::normalize_path,
};
use super::{
    grpc, headers,
    seen::{Field, Seen},
    upgrade::Protocol,
};
use crate::{
    failure::{Failure, Reason},
    settings::Limits,
};

/// Where a request wants to go, apart from its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Lower case, without a trailing dot; `None` only for HTTP/1.0 without Host.
    pub authority: Option<Authority>,
    /// What the client said (absolute-form, `:scheme`), else http.
    pub scheme: Scheme,
}

/// Which rule a request broke. The text is shown to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("host is missing")]
    HostMissing,
    #[error("host is given more than once")]
    HostRepeated,
    #[error("host is not a valid name or address with an optional port")]
    HostInvalid,
    #[error("host and request target name different authorities")]
    HostMismatch,
    #[error("request target has a form that this method does not allow")]
    TargetForm,
    #[error("scheme of the request target is neither http nor https")]
    TargetScheme,
    #[error("request target holds a byte outside of ASCII")]
    TargetNotAscii,
    #[error("path holds an encoded zero byte")]
    TargetNul,
    #[error("request target is too long")]
    TargetTooLong,
    #[error("request has too many header fields")]
    TooManyFields,
    #[error("content-length is not one number")]
    ContentLength,
    #[error("transfer-encoding is not exactly chunked, or stands where it must not")]
    TransferEncoding,
    #[error("content-length and transfer-encoding are both given")]
    FramingConflict,
    #[error("content is not allowed with this method")]
    UnexpectedContent,
    #[error("only the expectation 100-continue is supported")]
    Expectation,
    #[error("max-forwards is not one number")]
    MaxForwards,
    #[error("max-forwards says that this request goes no further")]
    LastForward,
    #[error("a field name is not a token")]
    FieldName,
}

impl Violation {
    /// What it is answered with.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            // RFC 9110 §7.6.2: at zero we would be the final recipient, and neither trace nor describe ourselves.
            Self::LastForward => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    const fn reason(self) -> Reason {
        match self {
            Self::TargetTooLong | Self::TooManyFields => Reason::HeadTooLarge,
            _ => Reason::BadRequest,
        }
    }
}

/// Gives the request its one meaning, or refuses it. `seen` is what it came with; `has_content`: it may have some.
///
/// # Errors
/// [`Reason::BadRequest`] or [`Reason::HeadTooLarge`], with the [`Violation`] as source, by which `reply` picks the status.
pub fn normalize(request: &mut Parts, has_content: bool, seen: Seen, limits: &Limits) -> Result<Target, Failure> {
    let target = check_size(request, seen, limits)
        .and_then(|()| check_framing(request, has_content, seen))
        .and_then(|()| settle_expectation(&mut request.headers, seen))
        .and_then(|()| count_forward(request, seen))
        .and_then(|()| settle_target(request))
        .map_err(|violation| Failure::new(violation.reason()).because(violation))?;
    drop_deceptive_fields(&mut request.headers, seen, limits.underscored_fields);
    if seen.has(Field::Cookie) {
        join_cookies(request);
    }
    Ok(target)
}

fn check_size(request: &Parts, seen: Seen, limits: &Limits) -> Result<(), Violation> {
    let uri = &request.uri;
    let bytes = uri.path_and_query().map_or(0, |path| path.as_str().len())
        + uri.authority().map_or(0, |authority| authority.as_str().len());
    if bytes > limits.uri_bytes {
        return Err(Violation::TargetTooLong);
    }
    if request.headers.len() > limits.header_fields {
        return Err(Violation::TooManyFields);
    }
    // What HTTP/2 brings has passed `HeaderName::from_lowercase`, which takes a quotation mark for a token character
    // (RFC 9110 §5.6.2: it is none).
    if request.version == Version::HTTP_2 && seen.has(Field::Quoted) {
        return Err(Violation::FieldName);
    }
    Ok(())
}

fn check_framing(request: &Parts, has_content: bool, seen: Seen) -> Result<(), Violation> {
    let headers = &request.headers;
    if seen.has(Field::TransferEncoding) {
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).into_iter();
        // RFC 9112 §6.1: codings other than chunked would have to be understood to find the end; and a Transfer-Encoding on
        // HTTP/1.0 or HTTP/2 is a sign of somebody smuggling.
        let coding = codings.next().map(HeaderValue::as_bytes).unwrap_or_default();
        let exactly_chunked = codings.next().is_none() && coding.eq_ignore_ascii_case(b"chunked");
        if !exactly_chunked || request.version != Version::HTTP_11 {
            return Err(Violation::TransferEncoding);
        }
        if seen.has(Field::ContentLength) {
            return Err(Violation::FramingConflict);
        }
    }
    if seen.has(Field::ContentLength) {
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).into_iter();
        let length = lengths.next().ok_or(Violation::ContentLength)?;
        // RFC 9110 §8.6 would let equal repetitions pass; then the next reader has to agree on that too.
        let digits = length.as_bytes();
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let fits = length.to_str().is_ok_and(|text| text.parse::<u64>().is_ok());
        if lengths.next().is_some() || !is_number || !fits {
            return Err(Violation::ContentLength);
        }
    }
    // RFC 9110 §9.3.8: "A client MUST NOT send content in a TRACE request".
    if request.method == Method::TRACE && has_content {
        return Err(Violation::UnexpectedContent);
    }
    Ok(())
}

/// RFC 9110 §7.6.2: TRACE and OPTIONS may say how many proxies they want to pass.
fn count_forward(request: &mut Parts, seen: Seen) -> Result<(), Violation> {
    if !seen.has(Field::MaxForwards) || !matches!(request.method, Method::TRACE | Method::OPTIONS) {
        return Ok(());
    }
    let mut counts = request.headers.get_all(header::MAX_FORWARDS).into_iter();
    let Some(count) = counts.next() else { return Ok(()) };
    let digits = count.as_bytes();
    let is_number = (1..=10).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    if !is_number || counts.next().is_some() {
        return Err(Violation::MaxForwards);
    }
    let left: u64 = count.to_str().ok().and_then(|text| text.parse().ok()).ok_or(Violation::MaxForwards)?;
    let left = left.checked_sub(1).ok_or(Violation::LastForward)?;
    request.headers.insert(header::MAX_FORWARDS, HeaderValue::from(left));
    Ok(())
}

/// Removes fields that the next reader could take for somebody else's word: our own, which only sidecars may send and which have been
/// taken off by now, and names with "_", which CGI and its heirs cannot tell from names with "-".
fn drop_deceptive_fields(fields: &mut HeaderMap, seen: Seen, underscored: bool) {
    if ![Field::Deceptive, Field::Peer, Field::OrigProto].into_iter().any(|field| seen.has(field)) {
        return;
    }
    let ours = |name: &str| name.starts_with(headers::OWN_PREFIX) && name != headers::HOPS.as_str();
    let deceives = |name: &HeaderName, underscored: bool| {
        let name = name.as_str();
        (!underscored && memchr::memchr(b'_', name.as_bytes()).is_some()) || ours(name)
    };
    let underscored = underscored || grpc::is_grpc(fields);
    let found: Vec<HeaderName> = fields.keys().filter(|name| deceives(name, underscored)).cloned().collect();
    for name in found {
        fields.remove(name);
    }
}

/// The codec asks for the content itself as soon as somebody reads it, so the next hop must not be asked again.
fn settle_expectation(headers: &mut HeaderMap, seen: Seen) -> Result<(), Violation> {
    if seen.has(Field::Expect) {
        let known = headers
            .get_all(header::EXPECT)
            .into_iter()
            .all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !known {
            return Err(Violation::Expectation);
        }
        headers.remove(header::EXPECT);
    }
    Ok(())
}

fn settle_target(request: &mut Parts) -> Result<Target, Violation> {
    let uri = &request.uri;
    let is_tunnel = request.method == Method::CONNECT && request.extensions.get::<Protocol>().is_none();
    let scheme = match uri.scheme() {
        None => Scheme::HTTP,
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => scheme.clone(),
        Some(_) => return Err(Violation::TargetScheme),
    };
    let origin = if is_tunnel { None } else { Some(settle_path(request)?) };
    if !is_tunnel && let Some(authority) = plain_authority(request) {
        // What nearly all requests have needs no second spelling.
        if request.uri.authority().is_some() {
            set_host(&mut request.headers, &authority)?;
        }
        if let Some(Some(origin)) = origin {
            request.uri = origin;
        }
        return Ok(Target { authority: Some(authority), scheme });
    }
    let named = uri.authority().map(|authority| Host::parse(authority.as_str().as_bytes())).transpose()?;
    if is_tunnel && named.as_ref().is_none_or(|host| host.port.is_none()) {
        // RFC 9112 §3.2.3: "There is no default port; a client MUST send the port number".
        return Err(Violation::TargetForm);
    }
    let written = host_field(&request.headers)?;
    // RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message that lacks a
    // Host header field"; HTTP/2 has :authority instead (RFC 9113 §8.3.1).
    if written.is_none()
        && (request.version == Version::HTTP_11 || named.is_none())
        && request.version > Version::HTTP_10
    {
        return Err(Violation::HostMissing);
    }
    if let (Some(named), Some(written)) = (&named, &written)
        && !(named.is_same(written, &scheme) || is_tunnel && written.port.is_none() && named.name == written.name)
    {
        return Err(Violation::HostMismatch);
    }
    // RFC 9112 §3.2.2: the absolute form decides; here both say the same.
    let authority = match named.or(written) {
        Some(host) => Some(host.authority()?),
        None => None,
    };
    // Rules that look at Host see what routing sees: one spelling, and the port that the target named.
    if let Some(authority) = &authority
        && request.headers.get(header::HOST).is_none_or(|field| field.as_bytes() != authority.as_str().as_bytes())
    {
        set_host(&mut request.headers, authority)?;
    }
    if let Some(Some(origin)) = origin {
        request.uri = origin;
    }
    Ok(Target { authority, scheme })
}

fn set_host(headers: &mut HeaderMap, authority: &Authority) -> Result<(), Violation> {
    let field = HeaderValue::from_str(authority.as_str()).map_err(|_| Violation::HostInvalid)?;
    headers.insert(header::HOST, field);
    Ok(())
}

/// The authority of a request that names it exactly once, where its version does, and spells it as it is spelled here.
fn plain_authority(request: &Parts) -> Option<Authority> {
    let mut hosts = request.headers.get_all(header::HOST).into_iter();
    if let Some(authority) = request.uri.authority() {
        let plain =
            request.version == Version::HTTP_2 && hosts.next().is_none() && is_plain(authority.as_str().as_bytes());
        return plain.then(|| authority.clone());
    }
    let host = hosts.next().filter(|host| is_plain(host.as_bytes()))?;
    if hosts.next().is_some() {
        return None;
    }
    Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok()
}

/// The one Host field; `None` when there is none.
fn host_field(headers: &HeaderMap) -> Result<Option<Host>, Violation> {
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let Some(host) = hosts.next() else {
        return Ok(None);
    };
    if hosts.next().is_some() {
        return Err(Violation::HostRepeated);
    }
    Host::parse(host.as_bytes()).map(Some)
}

/// The target as path and query; `None`: it is that already.
fn settle_path(request: &Parts) -> Result<Option<Uri>, Violation> {
    let uri = &request.uri;
    let Some(target) = uri.path_and_query() else {
        // "GET name" is read as authority-form, which only CONNECT may have.
        return Err(Violation::TargetForm);
    };
    if !target.as_str().is_ascii() {
        return Err(Violation::TargetNotAscii);
    }
    let path = target.path();
    if path == "*" {
        // RFC 9112 §3.2.4: "only used for a server-wide OPTIONS request".
        return if request.method == Method::OPTIONS { Ok(None) } else { Err(Violation::TargetForm) };
    }
    if !path.starts_with('/') {
        return Err(Violation::TargetForm);
    }
    // What reads as "/" may have been nothing, with a query behind. RFC 9113 §8.3.1: ":path" must start with a slash;
    // RFC 9112 §3.2.1: in an absolute-form of HTTP/1 the missing slash is put in.
    let slash_missing = !target.as_str().starts_with('/');
    if slash_missing && (request.version == Version::HTTP_2 || uri.authority().is_none()) {
        return Err(Violation::TargetForm);
    }
    let normal = normalize_path(path)?;
    if matches!(normal, Cow::Borrowed(_)) && uri.authority().is_none() && uri.scheme().is_none() {
        return Ok(None);
    }
    let target = match (normal, target.query()) {
        (Cow::Borrowed(path), query) if slash_missing => {
            let text = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
            PathAndQuery::try_from(text).map_err(|_| Violation::TargetForm)?
        }
        (Cow::Borrowed(_), _) => target.clone(),
        (Cow::Owned(path), None) => PathAndQuery::try_from(path).map_err(|_| Violation::TargetForm)?,
        (Cow::Owned(path), Some(query)) => {
            PathAndQuery::try_from(format!("{path}?{query}")).map_err(|_| Violation::TargetForm)?
        }
    };
    Ok(Some(Uri::from(target)))
}

/// RFC 9113 §8.2.3: crumbs "MUST be concatenated into a single octet string using the two-octet delimiter" before they go on
/// over HTTP/1.1; rules should see the same cookie either way.
fn join_cookies(request: &mut Parts) {
    if request.version < Version::HTTP_2 || request.headers.get_all(header::COOKIE).into_iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = request.headers.get_all(header::COOKIE).into_iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(b"; ".as_slice())) {
        request.headers.insert(header::COOKIE, cookie);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::Request;
    use http_body::Body as _;
    use proptest::prelude::*;

    use super::*;
    use crate::http::Body;

    const H1: Version = Version::HTTP_11;
    const H2: Version = Version::HTTP_2;

    fn request(version: Version, method: &str, target: &str, fields: &[(&'static str, &str)]) -> Request<Body> {
        let mut request = Request::builder().version(version).method(method).uri(target).body(Body::empty()).unwrap();
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request
    }

    fn normalize(request: &mut Request<Body>, limits: &Limits) -> Result<Target, Failure> {
        let (mut parts, body) = std::mem::take(request).into_parts();
        let seen = Seen::of(&parts.headers);
        let target = super::normalize(&mut parts, !body.is_end_stream(), seen, limits);
        *request = Request::from_parts(parts, body);
        target
    }

    fn violation(mut request: Request<Body>) -> Option<Violation> {
        let failure = normalize(&mut request, &Limits::default()).err()?;
        let violation = *failure.source.as_ref().unwrap().downcast_ref::<Violation>().unwrap();
        assert_eq!(failure.reason, violation.reason());
        Some(violation)
    }

    #[test]
    fn accepted_requests_have_one_meaning() {
        // Rules would look at another host or path than the endpoint.
        for (version, method, target, host, uri, authority) in [
            (H1, "GET", "/a?b=%2e", Some("A.Test"), "/a?b=%2e", "a.test"),
            (H1, "GET", "/", Some("a.test.:8080"), "/", "a.test:8080"),
            (H1, "GET", "http://a.test/x?y", Some("a.test"), "/x?y", "a.test"),
            (H1, "GET", "http://A.test:80/x", Some("a.test"), "/x", "a.test:80"),
            (H1, "GET", "https://a.test/x", Some("a.test:443"), "/x", "a.test"),
            (H1, "GET", "http://a.test", Some("a.test"), "/", "a.test"),
            (H1, "GET", "http://a.test?x", Some("a.test"), "/?x", "a.test"),
            (H1, "OPTIONS", "*", Some("a.test"), "*", "a.test"),
            (H1, "CONNECT", "a.test:443", Some("a.test:443"), "a.test:443", "a.test:443"),
            (H1, "CONNECT", "a.test:443", Some("a.test"), "a.test:443", "a.test:443"),
            (H1, "GET", "/", Some("[FD00:0::1]:80"), "/", "[fd00::1]:80"),
            (H1, "GET", "/", Some("10.0.0.1"), "/", "10.0.0.1"),
            (H1, "TRACE", "/", Some("a_b-c"), "/", "a_b-c"),
            (H2, "GET", "http://a.test/x", None, "/x", "a.test"),
            (H2, "GET", "http://a.test/x", Some("A.TEST:80"), "/x", "a.test"),
            (H2, "GET", "/x", Some("a.test"), "/x", "a.test"),
            (H2, "CONNECT", "a.test:1", None, "a.test:1", "a.test:1"),
        ] {
            let mut request =
                request(version, method, target, &host.map(|host| ("host", host)).into_iter().collect::<Vec<_>>());
            let found = normalize(&mut request, &Limits::default())
                .unwrap_or_else(|failure| panic!("{target} {host:?}: {failure}"));
            assert_eq!(request.uri().to_string(), uri, "{target}");
            let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
            assert!(path.starts_with('/') || path == "*", "{target}: {path}");
            assert_eq!(found.authority.unwrap(), authority, "{target}");
            let hosts: Vec<_> = request.headers().get_all("host").into_iter().collect();
            assert_eq!(hosts, [authority], "{target}");
        }
        let mut old = request(Version::HTTP_10, "GET", "/", &[]);
        assert_eq!(normalize(&mut old, &Limits::default()).unwrap().authority, None);
    }

    #[test]
    fn names_that_are_no_tokens_do_not_pass_from_http2() {
        // Over HTTP/1 the next reader would find a broken line.
        let mut quoted = request(H2, "GET", "http://a.test/", &[]);
        quoted.headers_mut().insert(HeaderName::from_lowercase(b"a\"b").unwrap(), HeaderValue::from_static("c"));
        assert_eq!(violation(quoted), Some(Violation::FieldName));
    }

    #[test]
    fn requests_with_two_meanings_are_refused() {
        // Each row has been used to get a request past a proxy's rules, or one client's answer to another.
        use Violation as V;
        let long = format!("/{}", "x".repeat(8 * 1024));
        let huge = "9".repeat(30);
        for (version, method, target, fields, expected) in [
            (H1, "GET", "/", vec![], V::HostMissing),
            (H1, "GET", "http://a.test/", vec![], V::HostMissing),
            (H2, "GET", "/", vec![], V::HostMissing),
            (H2, "GET", "http://a.test?x", vec![], V::TargetForm),
            (H1, "GET", "/", vec![("host", "a"), ("host", "a")], V::HostRepeated),
            (H1, "GET", "/", vec![("host", "")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a b")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a,b")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a/b")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "u@a")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a..b")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", ".")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a:")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a:0")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a:65536")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a:+80")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a:80:80")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "::1")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "[::1")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "[::1]x")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "[a]")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "a%2fb")], V::HostInvalid),
            (H1, "GET", "/", vec![("host", "ä")], V::HostInvalid),
            (H1, "GET", "http://u@a/", vec![("host", "a")], V::HostInvalid),
            (H2, "GET", "http://u@a/", vec![], V::HostInvalid),
            (H1, "GET", "http://a/", vec![("host", "b")], V::HostMismatch),
            (H1, "GET", "http://a/", vec![("host", "a:81")], V::HostMismatch),
            (H1, "GET", "https://a/", vec![("host", "a:80")], V::HostMismatch),
            (H2, "GET", "http://a/", vec![("host", "b")], V::HostMismatch),
            (H1, "CONNECT", "a:1", vec![("host", "a:2")], V::HostMismatch),
            (H1, "CONNECT", "a:1", vec![("host", "b")], V::HostMismatch),
            (H1, "CONNECT", "a", vec![("host", "a")], V::TargetForm),
            (H1, "CONNECT", "/", vec![("host", "a")], V::TargetForm),
            (H1, "GET", "a", vec![("host", "a")], V::TargetForm),
            (H1, "GET", "a:80", vec![("host", "a:80")], V::TargetForm),
            (H1, "GET", "*", vec![("host", "a")], V::TargetForm),
            (H1, "GET", "ftp://a/", vec![("host", "a")], V::TargetScheme),
            (H1, "GET", "/é", vec![("host", "a")], V::TargetNotAscii),
            (H1, "GET", "/?é", vec![("host", "a")], V::TargetNotAscii),
            (H1, "GET", "/a%00", vec![("host", "a")], V::TargetNul),
            (H1, "GET", &long, vec![("host", "a")], V::TargetTooLong),
            (H1, "POST", "/", vec![("host", "a"), ("content-length", "1"), ("content-length", "1")], V::ContentLength),
            (H1, "POST", "/", vec![("host", "a"), ("content-length", "1, 1")], V::ContentLength),
            (H1, "POST", "/", vec![("host", "a"), ("content-length", "+1")], V::ContentLength),
            (H1, "POST", "/", vec![("host", "a"), ("content-length", "")], V::ContentLength),
            (H1, "POST", "/", vec![("host", "a"), ("content-length", &huge)], V::ContentLength),
            (H2, "POST", "http://a/", vec![("content-length", "1"), ("content-length", "1")], V::ContentLength),
            (H1, "POST", "/", vec![("host", "a"), ("transfer-encoding", "gzip, chunked")], V::TransferEncoding),
            (H1, "POST", "/", vec![("host", "a"), ("transfer-encoding", "chunked, chunked")], V::TransferEncoding),
            (H1, "POST", "/", vec![("host", "a"), ("transfer-encoding", "xchunked")], V::TransferEncoding),
            (
                H1,
                "POST",
                "/",
                vec![("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                V::TransferEncoding,
            ),
            (Version::HTTP_10, "POST", "/", vec![("transfer-encoding", "chunked")], V::TransferEncoding),
            (
                H1,
                "POST",
                "/",
                vec![("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "1")],
                V::FramingConflict,
            ),
            (H1, "POST", "/", vec![("host", "a"), ("expect", "200-ok")], V::Expectation),
            (H1, "POST", "/", vec![("host", "a"), ("expect", "100-continue"), ("expect", "x")], V::Expectation),
            (H1, "GET", "/", vec![("host", "a"); 101], V::TooManyFields),
        ] {
            let text = format!("{version:?} {method} {} {:?}", &target[..target.len().min(40)], fields.first());
            assert_eq!(violation(request(version, method, target, &fields)), Some(expected), "{text}");
        }
        let mut trace = request(H1, "TRACE", "/", &[("host", "a")]);
        *trace.body_mut() = Body::full("x");
        assert_eq!(violation(trace), Some(V::UnexpectedContent));
    }

    #[test]
    fn a01_paths_have_one_spelling() {
        // A rule for /admin would be passed with another spelling of it.
        for (given, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/b/../", "/a/"),
            ("/x/%2e%2E/admin", "/admin"),
            ("/x/.%2e/admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/\\admin", "//admin"),
            ("/x\\..\\admin", "/admin"),
            ("//admin", "//admin"),
            ("/a//../b", "/a/b"),
            ("/a%2fb", "/a%2fb"),
            ("/a%2F..%2Fb", "/a%2F..%2Fb"),
            ("/a%5cb", "/a%5cb"),
            ("/a;x=1/b", "/a;x=1/b"),
            ("/100%", "/100%"),
            ("/%zz", "/%zz"),
            ("/%2%65", "/%2%65"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a.b/.c", "/a.b/.c"),
        ] {
            assert_eq!(normalize_path(given).unwrap(), expected, "{given}");
        }
        for nul in ["/%00", "/a%00b", "/%2e%00"] {
            assert_eq!(normalize_path(nul), Err(Violation::TargetNul));
        }
    }

    #[test]
    fn a11_the_scheme_has_one_spelling() {
        // A rule for https would be passed with another spelling of it (CVE-2023-35944).
        for (target, expected) in
            [("HtTpS://a/", Scheme::HTTPS), ("HTTP://a/", Scheme::HTTP), ("https://a/", Scheme::HTTPS)]
        {
            for version in [H1, H2] {
                let mut request = request(version, "GET", target, &[("host", "a")]);
                let scheme = normalize(&mut request, &Limits::default()).unwrap().scheme;
                assert_eq!((&scheme, scheme.as_str()), (&expected, expected.as_str()), "{target}");
            }
        }
    }

    #[test]
    fn m18_max_forwards_is_counted_and_ends() {
        // RFC 9110 §7.6.2: whoever traces a path would be answered by somebody further on than asked for.
        for (method, given, expected) in [
            ("TRACE", vec!["2"], Ok(Some("1"))),
            ("TRACE", vec!["1"], Ok(Some("0"))),
            ("TRACE", vec!["0"], Err(Violation::LastForward)),
            ("OPTIONS", vec!["0"], Err(Violation::LastForward)),
            ("OPTIONS", vec!["0000000001"], Ok(Some("0"))),
            ("OPTIONS", vec!["-1"], Err(Violation::MaxForwards)),
            ("OPTIONS", vec![""], Err(Violation::MaxForwards)),
            ("OPTIONS", vec!["99999999999"], Err(Violation::MaxForwards)),
            ("OPTIONS", vec!["5", "5"], Err(Violation::MaxForwards)),
            ("OPTIONS", vec![], Ok(None)),
            // Other methods: "a recipient MAY ignore a Max-Forwards header field".
            ("GET", vec!["0"], Ok(Some("0"))),
        ] {
            let mut fields = vec![("host", "a")];
            fields.extend(given.iter().map(|count| ("max-forwards", *count)));
            let mut request = request(H1, method, "/", &fields);
            let found = match normalize(&mut request, &Limits::default()) {
                Ok(_) => Ok(request.headers().get("max-forwards").map(|count| count.to_str().unwrap())),
                Err(failure) => Err(*failure.source.as_ref().unwrap().downcast_ref::<Violation>().unwrap()),
            };
            assert_eq!(found, expected, "{method} {given:?}");
        }
    }

    #[test]
    fn a07_a09_names_that_pass_for_others_are_dropped() {
        // `X_Forwarded_Proto` and `X-Forwarded-Proto` are one variable to many servers, and no rule sees the former.
        let given = [
            ("host", "a"),
            ("x_forwarded_proto", "https"),
            ("x_auth_user", "root"),
            ("x-auth_user", "root"),
            ("x-outrigger-peer", "forged"),
            ("x-outrigger-anything", "forged"),
            ("x-outrigger-hops", "3"),
            ("x-auth-user", "me"),
        ];
        let kept = |more: &[(&'static str, &'static str)], limits: &Limits| {
            let mut request = request(H1, "GET", "/", &[&given[..], more].concat());
            normalize(&mut request, limits).unwrap();
            let mut names: Vec<String> = request.headers().keys().map(ToString::to_string).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(kept(&[], &Limits::default()), "host x-auth-user x-outrigger-hops");
        let grpc = [("content-type", "application/grpc")];
        let underscored = "x-auth_user x-outrigger-hops x_auth_user x_forwarded_proto";
        assert_eq!(kept(&grpc, &Limits::default()), format!("content-type host x-auth-user {underscored}"));
        let asked = Limits { underscored_fields: true, ..Limits::default() };
        assert_eq!(kept(&[], &asked), format!("host x-auth-user {underscored}"));
    }

    #[test]
    fn an_expectation_is_answered_here_and_cookies_are_whole() {
        // Uploads would wait for two answers of 100, and rules see half of a cookie.
        let mut given =
            request(H2, "POST", "http://a/", &[("expect", "100-Continue"), ("cookie", "a=1"), ("cookie", "b=2")]);
        normalize(&mut given, &Limits::default()).unwrap();
        assert!(!given.headers().contains_key("expect"));
        assert_eq!(given.headers().get_all("cookie").into_iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!(given.headers()["host"], "a");
    }

    #[test]
    fn extended_connect_has_a_path_like_any_request() {
        // WebSockets over HTTP/2 would miss every route.
        let mut given = request(H2, "CONNECT", "https://A.test/x/../chat?y", &[]);
        given.extensions_mut().insert(Protocol("websocket".into()));
        let target = normalize(&mut given, &Limits::default()).unwrap();
        assert_eq!(given.uri(), "/chat?y");
        assert_eq!((target.authority.as_ref().unwrap().as_str(), &target.scheme), ("a.test", &Scheme::HTTPS));
    }

    proptest! {
        #[test]
        fn no_host_panics(host in "[ -~]{0,40}", target in "[!-~]{1,40}") {
            // A crafted request would stop the proxy.
            let parsed = Host::parse(host.as_bytes());
            if is_plain(host.as_bytes()) {
                prop_assert!(parsed.is_ok(), "{}", host);
            }
            if let Ok(parsed) = parsed {
                prop_assert!(parsed.authority().is_ok());
            }
            if let Ok(uri) = target.parse::<Uri>() {
                let mut request = request(H1, "GET", "/", &[("host", "a")]);
                *request.uri_mut() = uri;
                let _ = normalize(&mut request, &Limits::default());
            }
        }
    }
}
