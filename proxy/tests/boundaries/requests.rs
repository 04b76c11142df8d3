//! The canonical form of a request, from typed values that any codec may produce.

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use outrigger_proxy::http::{headers, normalize::normalize, seen::Seen};

use super::conversation::SETTINGS;

/// `version method target`, then `name value` lines: what is accepted once is accepted again, and means the same.
pub fn request_normalize(text: &[u8]) {
    let mut lines = text.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let mut words = first.splitn(3, |byte| *byte == b' ');
    let version = match words.next() {
        Some(b"1.0") => Version::HTTP_10,
        Some(b"2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let Ok(method) = Method::from_bytes(words.next().unwrap_or_default()) else { return };
    let Ok(uri) = Uri::try_from(words.next().unwrap_or_default()) else { return };
    let (mut request, ()) = Request::new(()).into_parts();
    (request.method, request.uri, request.version) = (method, uri, version);
    for line in lines.take(32) {
        let at = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
        let name = HeaderName::from_bytes(&line[..at]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(line.get(at + 1..).unwrap_or_default())) {
            request.headers.append(name, value);
        }
    }
    let seen = Seen::of(&request.headers);
    let Ok(target) = normalize(&mut request, false, seen, &SETTINGS.limits) else { return };
    headers::strip_hop_by_hop(&mut request.headers, seen, None);
    let once = (request.uri.clone(), target.authority, request.headers.clone());
    assert!(once.2.get_all("host").iter().count() <= 1);
    if let Some(authority) = &once.1 {
        assert!(!authority.as_str().contains('@') && !authority.as_str().contains(char::is_whitespace), "{authority}");
        assert_eq!(authority.as_str(), authority.as_str().to_ascii_lowercase());
    }
    let is_tunnel = request.method == Method::CONNECT;
    assert!(is_tunnel || once.0.authority().is_none(), "{}", once.0);
    let seen = Seen::of(&request.headers);
    let target = normalize(&mut request, false, seen, &SETTINGS.limits)
        .unwrap_or_else(|failure| panic!("refused what was accepted: {failure}"));
    headers::strip_hop_by_hop(&mut request.headers, seen, None);
    assert_eq!((request.uri.clone(), target.authority, request.headers.clone()), once);
}
