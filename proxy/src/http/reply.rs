//! Every response we write ourselves: the whole table from [`Reason`] to status, fields and text.
//!
//! The journeys come here with whatever went wrong; nothing else in the proxy invents a response. What the cause was goes to
//! the log, never into the response: it would tell callers about the inside.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::{
    Body, BodyError,
    grpc::{self, code},
    http1::Fault,
    normalize::Violation,
};
use crate::failure::{Failure, Reason};

/// Carries the reason's word, so that a caller can tell our response from the application's.
pub const ERROR: HeaderName = HeaderName::from_static("x-outrigger-error");
/// Envoy's mark for a request refused at a limit; clients that know it do not try again.
pub const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// What a client gets that sends the first head on a connection too slowly. Raw, because no request exists to answer.
pub const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// The status a reason is answered with.
///
/// Where Envoy and Istio have the case, theirs; a request timeout is 504, an unusable backend reference 500 (Gateway API).
pub const fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::BadRequest | Reason::DownstreamBody => StatusCode::BAD_REQUEST,
        Reason::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::PlaintextRefused => StatusCode::FORBIDDEN,
        Reason::NoRoute => StatusCode::NOT_FOUND,
        // Nobody will read it; the access log shows it as nginx does.
        Reason::DownstreamClosed => match StatusCode::from_u16(499) {
            Ok(status) => status,
            Err(_) => StatusCode::BAD_REQUEST,
        },
        Reason::BadBackend | Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Reason::UnknownDestination | Reason::UpstreamResetBody | Reason::UpstreamProtocol => StatusCode::BAD_GATEWAY,
        Reason::NoEndpoints
        | Reason::NoHealthyEndpoint
        | Reason::UpstreamOverflow
        | Reason::ConnectionOverflow
        | Reason::BreakerOpen
        | Reason::UpstreamConnectRefused
        | Reason::UpstreamConnectTimeout
        | Reason::UpstreamTlsFailed
        | Reason::UpstreamIdentityMismatch
        | Reason::UpstreamReset
        | Reason::UpstreamRefusedStream
        | Reason::NotReady
        | Reason::Draining
        | Reason::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        Reason::TryTimeout | Reason::RequestTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::Loop => StatusCode::LOOP_DETECTED,
    }
}

/// The code a gRPC caller gets: the one its library would treat the same way.
pub const fn grpc_status(reason: Reason) -> u32 {
    match reason {
        Reason::BadRequest | Reason::DownstreamBody | Reason::Internal | Reason::Loop => code::INTERNAL,
        Reason::HeadTooLarge => code::RESOURCE_EXHAUSTED,
        Reason::PlaintextRefused => code::PERMISSION_DENIED,
        Reason::NoRoute => code::UNIMPLEMENTED,
        Reason::DownstreamClosed => code::CANCELLED,
        Reason::TryTimeout | Reason::RequestTimeout => code::DEADLINE_EXCEEDED,
        Reason::UnknownDestination
        | Reason::BadBackend
        | Reason::NoEndpoints
        | Reason::NoHealthyEndpoint
        | Reason::UpstreamOverflow
        | Reason::ConnectionOverflow
        | Reason::BreakerOpen
        | Reason::UpstreamConnectRefused
        | Reason::UpstreamConnectTimeout
        | Reason::UpstreamTlsFailed
        | Reason::UpstreamIdentityMismatch
        | Reason::UpstreamReset
        | Reason::UpstreamRefusedStream
        | Reason::UpstreamResetBody
        | Reason::UpstreamProtocol
        | Reason::NotReady
        | Reason::Draining
        | Reason::Overloaded => code::UNAVAILABLE,
    }
}

/// Whether the connection should not be used again: what follows on it cannot be trusted, or it should go elsewhere.
const fn closes(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::BadRequest
            | Reason::HeadTooLarge
            | Reason::DownstreamBody
            | Reason::PlaintextRefused
            | Reason::Draining
            | Reason::Overloaded
    )
}

/// The response for a failure; `grpc`: the request was a gRPC call, which gets a trailers-only response.
pub fn reply(failure: &Failure, grpc: bool) -> Response<Body> {
    let reason = failure.reason;
    let word = reason.word();
    let violation = failure.source.as_ref().and_then(|source| source.downcast_ref::<Violation>());
    let fault = failure.source.as_ref().and_then(|source| source.downcast_ref::<Fault>());
    let sentence: &dyn std::fmt::Display = match (violation, fault) {
        (Some(violation), _) => violation,
        // One in a response says nothing to this client.
        (None, Some(fault)) if matches!(reason, Reason::BadRequest | Reason::HeadTooLarge) => fault,
        _ => &reason.meaning(),
    };
    let text = format!("{word}: {sentence}");
    let mut response = if grpc {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(grpc::GRPC_STATUS, HeaderValue::from(grpc_status(reason)));
        // Plain ASCII without "%", so nothing needs the escapes of grpc-message.
        if let Ok(message) = HeaderValue::try_from(text) {
            headers.insert(grpc::GRPC_MESSAGE, message);
        }
        response
    } else {
        let mut response = Response::new(Body::full(text + "\n"));
        let too_slow = failure
            .source
            .as_ref()
            .is_some_and(|source| matches!(source.downcast_ref::<BodyError>(), Some(BodyError::TooSlow)));
        *response.status_mut() = match (violation, fault) {
            (Some(violation), _) => violation.status(),
            (None, Some(fault)) if matches!(reason, Reason::BadRequest | Reason::HeadTooLarge) => fault.status(),
            _ if too_slow => StatusCode::REQUEST_TIMEOUT,
            _ => status(reason),
        };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    };
    let headers = response.headers_mut();
    headers.insert(ERROR, HeaderValue::from_static(word));
    if matches!(reason, Reason::UpstreamOverflow | Reason::ConnectionOverflow) {
        headers.insert(OVERLOADED, HeaderValue::from_static("true"));
    }
    if closes(reason) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// The published table; a change here is a change for users.
    const TABLE: [(&str, u16, u32); 28] = [
        ("bad_request", 400, 13),
        ("head_too_large", 431, 8),
        ("unknown_destination", 502, 14),
        ("no_route", 404, 12),
        ("bad_backend", 500, 14),
        ("no_endpoints", 503, 14),
        ("no_healthy_endpoint", 503, 14),
        ("upstream_overflow", 503, 14),
        ("connection_overflow", 503, 14),
        ("breaker_open", 503, 14),
        ("upstream_connect_refused", 503, 14),
        ("upstream_connect_timeout", 503, 14),
        ("upstream_tls_failed", 503, 14),
        ("upstream_identity_mismatch", 503, 14),
        ("upstream_reset", 503, 14),
        ("upstream_refused_stream", 503, 14),
        ("upstream_reset_body", 502, 14),
        ("upstream_protocol", 502, 14),
        ("try_timeout", 504, 4),
        ("request_timeout", 504, 4),
        ("downstream_closed", 499, 1),
        ("downstream_body", 400, 13),
        ("plaintext_refused", 403, 7),
        ("loop", 508, 13),
        ("not_ready", 503, 14),
        ("draining", 503, 14),
        ("overloaded", 503, 14),
        ("internal", 500, 13),
    ];

    #[tokio::test]
    async fn every_reason_has_its_row() {
        // Dashboards, clients and documentation rely on each of these words and statuses.
        for (reason, (word, http, grpc)) in Reason::ALL.into_iter().zip(TABLE) {
            assert_eq!(reason.word(), word);
            let failure = Failure::new(reason).because("secret");

            let response = reply(&failure, false);
            assert_eq!(response.status().as_u16(), http, "{word}");
            assert_eq!(response.headers()[ERROR], word);
            assert_eq!(response.headers()["content-type"], "text/plain");
            let overloaded = response.headers().contains_key(OVERLOADED);
            assert_eq!(overloaded, ["upstream_overflow", "connection_overflow"].contains(&word), "{word}");
            let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
            assert_eq!(text, format!("{word}: {}\n", reason.meaning()));
            assert!(!text.contains("secret"));

            let response = reply(&failure, true);
            assert_eq!(response.status(), 200, "{word}");
            assert_eq!(response.headers()[ERROR], word);
            assert_eq!(response.headers()["content-type"], "application/grpc");
            assert_eq!(response.headers()["grpc-status"], grpc.to_string(), "{word}");
            let message = response.headers()["grpc-message"].to_str().unwrap().to_owned();
            assert_eq!(message, format!("{word}: {}", reason.meaning()));
            assert!(!message.contains('%') && message.is_ascii());
            assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        }
    }

    #[tokio::test]
    async fn a_broken_rule_is_named_with_its_own_status() {
        // Whoever wrote the client could not find out what is wrong with it.
        for (violation, status, text) in [
            (Violation::HostMissing, 400, "bad_request: host is missing\n"),
            (Violation::Expectation, 417, "bad_request: only the expectation 100-continue is supported\n"),
            (Violation::TargetTooLong, 414, "bad_request: request target is too long\n"),
        ] {
            let response = reply(&Failure::new(Reason::BadRequest).because(violation), false);
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()["connection"], "close");
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), text);
        }
        let slow = Failure::new(Reason::DownstreamBody).because(BodyError::TooSlow);
        assert_eq!(reply(&slow, false).status(), 408);
    }
}
