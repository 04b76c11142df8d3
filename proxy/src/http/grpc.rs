//! gRPC's fields: what a proxy must understand of them. Pure.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md> and `doc/http-grpc-status-mapping.md`
//! beside it. Messages themselves are never looked at.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode, header::CONTENT_TYPE};

pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The codes a proxy answers with.
pub mod code {
    pub const CANCELLED: u32 = 1;
    pub const UNKNOWN: u32 = 2;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
    pub const UNAVAILABLE: u32 = 14;
    pub const UNAUTHENTICATED: u32 = 16;
}

/// Whether the message is gRPC: its content type is `application/grpc`, alone or with a suffix (`+proto`) or parameter.
///
/// gRPC-Web is not: its clients want HTTP errors.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const BASE: &[u8] = b"application/grpc";
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value.as_bytes().split_at_checked(BASE.len()).is_some_and(|(base, rest)| {
            base.eq_ignore_ascii_case(BASE) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        })
    })
}

const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long the caller waits; at most an hour. `None`: not said, or not readable (then it does not count).
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    // Timeout -> "grpc-timeout" TimeoutValue TimeoutUnit; TimeoutValue -> positive integer of at most 8 digits.
    let (unit, value) = headers.get(GRPC_TIMEOUT)?.as_bytes().split_last()?;
    if !(1..=8).contains(&value.len()) || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = value.iter().fold(0, |value: u64, digit| value * 10 + u64::from(digit - b'0'));
    let timeout = match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    };
    Some(timeout.min(LONGEST_TIMEOUT))
}

/// The status in headers (trailers-only) or trailers; `None`: not there. One that is no number is UNKNOWN.
pub fn status(headers: &HeaderMap) -> Option<u32> {
    let value = headers.get(GRPC_STATUS)?;
    Some(value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(code::UNKNOWN))
}

/// The code that stands for an HTTP status when a response carries no gRPC status.
pub fn http_to_grpc(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => code::INTERNAL,
        401 => code::UNAUTHENTICATED,
        403 => code::PERMISSION_DENIED,
        404 => code::UNIMPLEMENTED,
        429 | 502..=504 => code::UNAVAILABLE,
        _ => code::UNKNOWN,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(name: HeaderName, value: &[u8]) -> HeaderMap {
        [(name, value.try_into().unwrap())].into_iter().collect()
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        // Clients of gRPC would get an HTTP error page, or others a gRPC one.
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/GRPC;charset=x", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("application/grp", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc(&with(CONTENT_TYPE, value.as_bytes())), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn timeouts_are_read_and_bounded() {
        // A call would be cut early, or a crafted value overflow.
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("250u", Some(Duration::from_micros(250))),
            ("0n", Some(Duration::ZERO)),
            ("123456789S", None),
            ("-1S", None),
            ("+1S", None),
            ("S", None),
            ("x", None),
            ("1", None),
            ("1s", None),
            ("1 S", None),
            ("", None),
        ] {
            assert_eq!(timeout(&with(GRPC_TIMEOUT, value.as_bytes())), expected, "{value}");
        }
    }

    #[test]
    fn a_status_is_a_number_or_unknown() {
        // Failed calls would be counted as successes.
        for (value, expected) in [("0", 0), ("14", 14), ("x", 2), ("", 2), ("-1", 2), ("99999999999", 2)] {
            assert_eq!(status(&with(GRPC_STATUS, value.as_bytes())), Some(expected), "{value}");
        }
        assert_eq!(status(&HeaderMap::new()), None);
    }

    #[test]
    fn http_statuses_have_their_documented_codes() {
        // Clients decide by the code whether to try again.
        for (http, grpc) in
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (418, 2), (500, 2)]
        {
            assert_eq!(http_to_grpc(StatusCode::from_u16(http).unwrap()), grpc, "{http}");
        }
    }

    proptest! {
        #[test]
        fn nothing_readable_panics(value in "[ -~]{0,20}") {
            // A crafted header would stop the proxy.
            let bytes = value.as_bytes();
            let _ = (timeout(&with(GRPC_TIMEOUT, bytes)), status(&with(GRPC_STATUS, bytes)), is_grpc(&with(CONTENT_TYPE, bytes)));
        }
    }
}
