//! Fields that concern a hop, and those we add: never the meaning of a request.
//!
//! Called by the journeys after `normalize`. Order matters: [`strip_hop_by_hop`] first, because a client may list any
//! field in `Connection` and must not be able to remove one of ours.

use http::{
    HeaderMap, HeaderValue, Version,
    header::{self, HeaderName},
};

use super::{
    seen::{Field, Seen},
    upgrade::{Upgrade, has_token, tokens},
};
use crate::{host, identity::spiffe_id::SpiffeId, tls::Peer};

/// Marks HTTP/1 carried as HTTP/2 between two sidecars; never leaves the mesh.
pub const ORIG_PROTO: HeaderName = HeaderName::from_static("x-outrigger-orig-proto");
/// What a sidecar says of the workload beside it, for the labels of the other's metrics; believed only over mutual TLS.
pub const PEER: HeaderName = HeaderName::from_static("x-outrigger-peer");
/// Sidecars that have passed a request on so far; applications that pass headers on keep it going. See [`pass_on`].
pub const HOPS: HeaderName = HeaderName::from_static("x-outrigger-hops");
/// What the mesh's own fields begin with.
pub const OWN_PREFIX: &str = "x-outrigger-";
/// Envoy's count of tries, from 1.
pub const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// Envoy's request id: one per request through the whole mesh.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Who called, as the verifying proxies saw it.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Beside Connection, which names others, and TE, of which a part stays.
const HOP_BY_HOP: [HeaderName; 7] = [
    KEEP_ALIVE,
    PROXY_CONNECTION,
    HTTP2_SETTINGS,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes what concerns only the connection a message came over; for requests and responses.
///
/// RFC 9110 §7.6.1: "Intermediaries MUST parse a received Connection header field before a message is forwarded and, for each
/// connection-option in this field, remove any header or trailer field(s) from the message with the same name". `TE: trailers`
/// stays, because it says what the far end can read (gRPC insists on it). With `keep_upgrade` of an HTTP/1.1 upgrade, exactly
/// `Connection: upgrade` and its protocols are left. Transfer-Encoding goes: the next message is framed by its body.
/// `seen` is what the message came with.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, seen: Seen, keep_upgrade: Option<&Upgrade>) {
    if seen.has(Field::Connection) {
        let listed: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .filter(|name| !is_kept(name))
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    if seen.has(Field::HopByHop) || seen.has(Field::TransferEncoding) || seen.has(Field::Upgrade) {
        for name in HOP_BY_HOP {
            headers.remove(name);
        }
    }
    if seen.has(Field::Te) {
        if has_token(headers, &header::TE, "trailers") {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
    if let Some(Upgrade::Http1 { protocol }) = keep_upgrade
        && let Ok(protocol) = HeaderValue::from_str(protocol)
    {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// What `Connection` cannot remove: framing, where the message goes, who sent it, and our own fields.
///
/// Proxies that let clients remove such fields have been talked past their access rules (CVE-2022-31813, CVE-2024-45410).
fn is_kept(name: &HeaderName) -> bool {
    const KEPT: [HeaderName; 7] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::TRANSFER_ENCODING,
        // Reduced to "trailers" below.
        header::TE,
        header::AUTHORIZATION,
        header::COOKIE,
    ];
    const KEPT_PREFIXES: [&str; 4] = ["x-outrigger-", "x-forwarded-", "x-envoy-", "x-request-id"];
    KEPT.contains(name) || KEPT_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// Sidecars that one request may pass: ten calls from workload to workload, each through two of them. More is taken for a circle.
const MAX_HOPS: u32 = 20;

/// Whether a request has passed so many sidecars that it goes in a circle. A count that cannot be read is none.
pub fn goes_in_circles(headers: &HeaderMap, seen: Seen) -> bool {
    hops(headers, seen) >= MAX_HOPS
}

/// Counts one more sidecar.
pub fn pass_on(headers: &mut HeaderMap, seen: Seen) {
    let hops = hops(headers, seen).saturating_add(1);
    // Nearly all: a number would be formatted into new memory.
    let value = match hops {
        1 => HeaderValue::from_static("1"),
        2 => HeaderValue::from_static("2"),
        _ => HeaderValue::from(hops),
    };
    headers.insert(HOPS, value);
}

fn hops(headers: &HeaderMap, seen: Seen) -> u32 {
    if !seen.has(Field::Hops) {
        return 0;
    }
    let counts = headers.get_all(HOPS).into_iter().filter_map(|count| count.to_str().ok()?.parse().ok());
    // Whoever doubles the field must not make the count start over.
    counts.max().unwrap_or(0)
}

/// Whether a name from HTTP/2 can stand in HTTP/1: `HeaderName::from_lowercase` takes a quotation mark for a token character.
pub fn is_token(name: &str) -> bool {
    memchr::memchr(b'"', name.as_bytes()).is_none()
}

/// Whether a field may come as a trailer.
///
/// RFC 9110 §6.5.1: not when it frames, routes, modifies, authenticates or describes a message. Receivers are allowed to merge
/// trailers into the head, and then the same goes for who called and what the mesh says of a request.
pub fn may_trail(name: &HeaderName) -> bool {
    const KEPT_BACK_PREFIXES: [&str; 4] = ["x-outrigger-", "x-forwarded-", "x-envoy-", "if-"];
    let name = name.as_str();
    is_token(name)
        && !KEPT_BACK_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && !matches!(
            name,
            "age"
                | "authorization"
                | "cache-control"
                | "connection"
                | "content-encoding"
                | "content-length"
                | "content-range"
                | "content-type"
                | "cookie"
                | "date"
                | "expect"
                | "expires"
                | "forwarded"
                | "host"
                | "http2-settings"
                | "keep-alive"
                | "location"
                | "max-forwards"
                | "pragma"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "proxy-connection"
                | "range"
                | "retry-after"
                | "set-cookie"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "vary"
                | "via"
                | "www-authenticate"
                | "x-real-ip"
                | "x-request-id"
        )
}

const MAX_REQUEST_ID_BYTES: usize = 256;

/// The request's id; a new random one is set when there is none, several, or one that nobody could log.
pub fn request_id(headers: &mut HeaderMap, seen: Seen) -> HeaderValue {
    let mut ids = seen.has(Field::RequestId).then(|| headers.get_all(REQUEST_ID).into_iter()).into_iter().flatten();
    if let (Some(id), None) = (ids.next(), ids.next())
        && (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    let id = uuid_v4(host::random_u128());
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// RFC 9562 §5.4.
fn uuid_v4(random: u128) -> HeaderValue {
    let bits = random & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let bytes = bits.to_be_bytes();
    let mut text = [b'-'; 36];
    // One pair of digits for each byte; the first digits of the five groups stand at 0, 9, 14, 19 and 24.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    for (at, byte) in PLACES.into_iter().zip(bytes) {
        if let Some(pair) = text.get_mut(at..at + 2) {
            pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 0xf)]);
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

const fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// Longest chain of earlier hops that is kept.
const MAX_CLIENT_CERT_BYTES: usize = 8 * 1024;

/// Who called, in Envoy's form: `By=<us>;URI=<peer>`. Made once for a connection.
pub fn client_cert(peer: &Peer, own: &SpiffeId) -> Option<HeaderValue> {
    // SPIFFE ids hold no character that would need quotes here.
    HeaderValue::try_from(format!("By={own};URI={}", peer.identity)).ok()
}

/// Says who called: `caller` is the [`client_cert`] of a verified peer.
///
/// Without one the field is removed, whatever it said: anybody can write it (Envoy's SANITIZE). With one, the
/// chain that the peer's sidecar vouches for is kept and our element appended (APPEND_FORWARD).
/// Outbound calls it without a caller, so that applications cannot vouch for anybody.
pub fn set_client_cert(headers: &mut HeaderMap, seen: Seen, caller: Option<&HeaderValue>) {
    let Some(caller) = caller else {
        if seen.has(Field::ClientCert) {
            headers.remove(CLIENT_CERT);
        }
        return;
    };
    if !seen.has(Field::ClientCert) {
        headers.insert(CLIENT_CERT, caller.clone());
        return;
    }
    let element = caller.to_str().unwrap_or_default();
    let earlier: Vec<&str> = headers.get_all(CLIENT_CERT).into_iter().filter_map(|value| value.to_str().ok()).collect();
    let mut chain = earlier.join(",");
    if chain.is_empty() || chain.len() > MAX_CLIENT_CERT_BYTES {
        element.clone_into(&mut chain);
    } else {
        chain.push(',');
        chain.push_str(element);
    }
    match HeaderValue::try_from(chain) {
        Ok(value) => drop(headers.insert(CLIENT_CERT, value)),
        Err(_) => drop(headers.remove(CLIENT_CERT)),
    }
}

/// The value of [`ATTEMPT_COUNT`]: the number of this try, from 1.
pub fn attempt_count(attempt: u32) -> HeaderValue {
    // Nearly all: a number would be formatted into new memory.
    if attempt == 1 { HeaderValue::from_static("1") } else { HeaderValue::from(attempt) }
}

/// The mark of a message that came as HTTP/1 and travels as HTTP/2.
pub const HTTP_11: HeaderValue = HeaderValue::from_static("HTTP/1.1");

/// Removes the mark; the version to restore, if there was exactly one that we know.
///
/// Only a mesh peer's answer counts; for anybody else the caller takes it too and ignores it.
pub fn take_orig_proto(headers: &mut HeaderMap, seen: &mut Seen) -> Option<Version> {
    if !seen.has(Field::OrigProto) {
        return None;
    }
    seen.forget(Field::OrigProto);
    let mut marks = headers.get_all(ORIG_PROTO).into_iter();
    let version = match (marks.next().map(HeaderValue::as_bytes), marks.next()) {
        (Some(b"HTTP/1.0"), None) => Some(Version::HTTP_10),
        (Some(b"HTTP/1.1"), None) => Some(Version::HTTP_11),
        _ => None,
    };
    headers.remove(ORIG_PROTO);
    version
}

/// Removes what a sidecar says of the workload beside it; from anybody but a mesh peer it means nothing.
pub fn take_introduction(headers: &mut HeaderMap, seen: &mut Seen) -> Option<HeaderValue> {
    if !seen.has(Field::Peer) {
        return None;
    }
    seen.forget(Field::Peer);
    headers.remove(PEER)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a10_only_fields_of_the_hop_are_removed() {
        // Connections would be kept or closed by the wrong side, or clients remove what access rules look at.
        let websocket = Upgrade::Http1 { protocol: "websocket".into() };
        for (given, keep, expected) in [
            (
                vec![("connection", "close, x-hop"), ("x-hop", "1"), ("x-end", "2"), ("keep-alive", "5")],
                None,
                vec![("x-end", "2")],
            ),
            (
                vec![
                    ("connection", "host, content-length, authorization, x-forwarded-for, x-outrigger-a, x-request-id"),
                    ("host", "a"),
                    ("content-length", "1"),
                    ("authorization", "b"),
                    ("x-forwarded-for", "c"),
                    ("x-outrigger-a", "d"),
                    ("x-request-id", "e"),
                ],
                None,
                vec![
                    ("host", "a"),
                    ("content-length", "1"),
                    ("authorization", "b"),
                    ("x-forwarded-for", "c"),
                    ("x-outrigger-a", "d"),
                    ("x-request-id", "e"),
                ],
            ),
            (vec![("connection", "te"), ("te", "gzip, Trailers;q=1, trailers")], None, vec![("te", "trailers")]),
            (vec![("te", "gzip")], None, vec![]),
            (
                vec![("connection", "upgrade, x"), ("upgrade", "websocket"), ("x", "1"), ("sec-websocket-key", "k")],
                Some(&websocket),
                vec![("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")],
            ),
            (
                vec![("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "x")],
                None,
                vec![],
            ),
            (
                vec![
                    ("transfer-encoding", "chunked"),
                    ("proxy-connection", "x"),
                    ("proxy-authorization", "y"),
                    ("trailer", "z"),
                ],
                None,
                vec![("trailer", "z")],
            ),
            (vec![("connection", "@, ,\t x-a ,"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "1")], None, vec![]),
        ] {
            let mut headers = fields(&given);
            let seen = Seen::of(&headers);
            strip_hop_by_hop(&mut headers, seen, keep);
            assert_eq!(headers, fields(&expected), "{given:?}");
        }
    }

    #[test]
    fn m03_circles_are_counted_whatever_the_field_says() {
        // Two services that call each other for ever would take both down.
        let mut headers = HeaderMap::new();
        for passed in 1..=MAX_HOPS {
            let seen = Seen::of(&headers);
            assert!(!goes_in_circles(&headers, seen));
            pass_on(&mut headers, seen);
            assert_eq!(headers.get_all(HOPS).into_iter().collect::<Vec<_>>(), [passed.to_string().as_str()]);
        }
        assert!(goes_in_circles(&headers, Seen::of(&headers)));
        for (given, expected) in [
            (vec!["0", "20"], true),
            (vec!["4294967295"], true),
            (vec!["99999999999"], false),
            (vec!["-1"], false),
            (vec!["x"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in &given {
                headers.append(HOPS, value.parse().unwrap());
            }
            let seen = Seen::of(&headers);
            assert_eq!(goes_in_circles(&headers, seen), expected, "{given:?}");
            pass_on(&mut headers, seen);
            assert_eq!(headers.get_all(HOPS).into_iter().count(), 1);
        }
    }

    #[test]
    fn a_request_has_one_usable_id() {
        // Logs of two proxies could not be joined, or be forged by a client.
        for given in [vec![], vec!["a", "b"], vec![""], vec!["a b"], vec!["é"]] {
            let mut headers = HeaderMap::new();
            for value in &given {
                headers.append(REQUEST_ID, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            let seen = Seen::of(&headers);
            let id = request_id(&mut headers, seen);
            assert_eq!(headers.get_all(REQUEST_ID).into_iter().collect::<Vec<_>>(), [&id]);
            let text = id.to_str().unwrap();
            assert_eq!(text.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{given:?} {text}");
            assert_eq!(text.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&text.as_bytes()[19]));
        }
        let mut headers = fields(&[("x-request-id", "mine-1")]);
        let seen = Seen::of(&headers);
        assert_eq!(request_id(&mut headers, seen), "mine-1");
        assert_eq!(uuid_v4(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_v4(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn only_verified_callers_are_named() {
        // An application that trusts the field could be told any caller.
        let own = SpiffeId::new("td", "shop", "reviews").unwrap();
        let peer = Peer { identity: SpiffeId::new("td", "shop", "front").unwrap(), alpn: None, server_name: None };
        let element = "By=spiffe://td/ns/shop/sa/reviews;URI=spiffe://td/ns/shop/sa/front";
        let long = "x".repeat(MAX_CLIENT_CERT_BYTES + 1);
        for (given, peer, expected) in [
            (vec![], None, None),
            (vec!["URI=spiffe://td/ns/a/sa/admin"], None, None),
            (vec![], Some(&peer), Some(element.to_owned())),
            (vec!["By=a;URI=b", "By=c;URI=d"], Some(&peer), Some(format!("By=a;URI=b,By=c;URI=d,{element}"))),
            (vec![&*long], Some(&peer), Some(element.to_owned())),
        ] {
            let mut headers = HeaderMap::new();
            for value in &given {
                headers.append(CLIENT_CERT, value.parse().unwrap());
            }
            let caller = peer.and_then(|peer| client_cert(peer, &own));
            let seen = Seen::of(&headers);
            set_client_cert(&mut headers, seen, caller.as_ref());
            let found: Vec<_> = headers.get_all(CLIENT_CERT).into_iter().collect();
            assert_eq!(found, expected.iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_original_version_travels_and_is_taken_off() {
        // HTTP/1 clients would get answers they cannot read, or the mark leak to an application.
        for (mark, version) in [(HTTP_11, Version::HTTP_11), (HeaderValue::from_static("HTTP/1.0"), Version::HTTP_10)] {
            let mut headers = HeaderMap::from_iter([(ORIG_PROTO, mark)]);
            let mut seen = Seen::of(&headers);
            assert_eq!(take_orig_proto(&mut headers, &mut seen), Some(version));
            assert!(headers.is_empty());
        }
        for given in [vec!["HTTP/2"], vec!["http/1.1"], vec!["HTTP/1.1", "HTTP/1.1"]] {
            let mut headers = HeaderMap::new();
            for value in &given {
                headers.append(ORIG_PROTO, value.parse().unwrap());
            }
            let mut seen = Seen::of(&headers);
            assert_eq!(take_orig_proto(&mut headers, &mut seen), None, "{given:?}");
            assert!(headers.is_empty());
        }
    }

    proptest! {
        #[test]
        fn stripping_never_panics_and_leaves_nothing_of_the_hop(connection in "[ -~]{0,60}", te in "[ -~]{0,20}") {
            // A crafted field would stop the proxy.
            let mut headers = fields(&[("connection", &connection), ("te", &te), ("host", "a"), ("upgrade", "x")]);
            let seen = Seen::of(&headers);
            strip_hop_by_hop(&mut headers, seen, None);
            prop_assert!(!headers.contains_key("connection") && !headers.contains_key("upgrade"));
            prop_assert_eq!(&headers["host"], "a");
            prop_assert!(headers.get("te").is_none_or(|te| te == "trailers"));
        }
    }
}
