//! How long a message's content is (RFC 9112 §6.3). Pure.
//!
//! Whatever two readers could understand differently is refused, not repaired: that is how requests are smuggled.

use http::{HeaderMap, Method, StatusCode, Version, header};

use super::fault::Fault;
use crate::http::seen::{Field, Seen};

/// Where the content of a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No content; also `Content-Length: 0`.
    Empty,
    /// So many bytes, at least 1.
    Length(u64),
    Chunked,
    /// A response that ends with its connection.
    UntilClose,
}

/// The content of a request; `seen` is what its head has.
///
/// # Errors
/// Every ambiguity: both framing fields, codings other than a single `chunked`, `Transfer-Encoding` from HTTP/1.0, lengths that are
/// repeated (even equal ones), signed, listed or too large; content on CONNECT.
pub fn of_request(method: &Method, version: Version, headers: &HeaderMap, seen: Seen) -> Result<Framing, Fault> {
    let framing = declared(version, headers, seen)?.unwrap_or(Framing::Empty);
    if method == Method::CONNECT && framing != Framing::Empty {
        return Err(Fault::UnexpectedContent);
    }
    Ok(framing)
}

/// The content of a final response to a request with this method.
///
/// # Errors
/// As [`of_request`]. With both framing fields too: RFC 9112 §6.3 would let `Transfer-Encoding` decide, but no honest server does it.
pub fn of_response(
    asked: &Method,
    status: StatusCode,
    version: Version,
    headers: &HeaderMap,
    seen: Seen,
) -> Result<Framing, Fault> {
    let declared = declared(version, headers, seen)?;
    let never = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if never || asked == Method::HEAD || (asked == Method::CONNECT && status.is_success()) {
        return Ok(Framing::Empty);
    }
    Ok(declared.unwrap_or(Framing::UntilClose))
}

/// What the framing fields say; `None` when there are none.
fn declared(version: Version, headers: &HeaderMap, seen: Seen) -> Result<Option<Framing>, Fault> {
    if !seen.has(Field::ContentLength) && !seen.has(Field::TransferEncoding) {
        return Ok(None);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).into_iter();
    let length = lengths.next();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).into_iter();
    if let Some(coding) = codings.next() {
        if length.is_some() {
            return Err(Fault::FramingConflict);
        }
        let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
        return if chunked && version == Version::HTTP_11 {
            Ok(Some(Framing::Chunked))
        } else {
            Err(Fault::TransferEncoding)
        };
    }
    let Some(length) = length else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(Fault::ContentLength);
    }
    match decimal(length.as_bytes()).ok_or(Fault::ContentLength)? {
        0 => Ok(Some(Framing::Empty)),
        length => Ok(Some(Framing::Length(length))),
    }
}

/// `1*DIGIT` that fits; nothing else is a length.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        digit.is_ascii_digit().then(|| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fields(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).fold(
            HeaderMap::new(),
            |mut headers, (name, value): (http::HeaderName, http::HeaderValue)| {
                headers.append(name, value);
                headers
            },
        )
    }

    #[test]
    fn a_request_has_one_length_or_none_is_accepted() {
        // Two readers that disagree on the end of a request are how a second one is smuggled past every rule.
        let cl = |value| ("content-length", value);
        let te = |value| ("transfer-encoding", value);
        for (lines, expected) in [
            (vec![], Ok(Framing::Empty)),
            (vec![cl("0")], Ok(Framing::Empty)),
            (vec![cl("5")], Ok(Framing::Length(5))),
            (vec![cl("0005")], Ok(Framing::Length(5))),
            (vec![cl("9223372036854775807")], Ok(Framing::Length(i64::MAX as u64))),
            (vec![cl("99999999999999999999")], Err(Fault::ContentLength)),
            (vec![cl("5"), cl("5")], Err(Fault::ContentLength)),
            (vec![cl("5"), cl("6")], Err(Fault::ContentLength)),
            (vec![cl("5, 5")], Err(Fault::ContentLength)),
            (vec![cl("+5")], Err(Fault::ContentLength)),
            (vec![cl("-5")], Err(Fault::ContentLength)),
            (vec![cl("5 5")], Err(Fault::ContentLength)),
            (vec![cl("0x5")], Err(Fault::ContentLength)),
            (vec![cl("")], Err(Fault::ContentLength)),
            (vec![te("chunked")], Ok(Framing::Chunked)),
            (vec![te("Chunked")], Ok(Framing::Chunked)),
            (vec![te("chunked"), cl("5")], Err(Fault::FramingConflict)),
            (vec![cl("5"), te("chunked")], Err(Fault::FramingConflict)),
            (vec![te("identity")], Err(Fault::TransferEncoding)),
            (vec![te("gzip, chunked")], Err(Fault::TransferEncoding)),
            (vec![te("chunked, chunked")], Err(Fault::TransferEncoding)),
            (vec![te("chunked"), te("chunked")], Err(Fault::TransferEncoding)),
            (vec![te("xchunked")], Err(Fault::TransferEncoding)),
            (vec![te("")], Err(Fault::TransferEncoding)),
        ] {
            let headers = fields(&lines);
            assert_eq!(
                of_request(&Method::POST, Version::HTTP_11, &headers, Seen::of(&headers)),
                expected,
                "{lines:?}"
            );
        }
        let chunked = fields(&[te("chunked")]);
        assert_eq!(
            of_request(&Method::POST, Version::HTTP_10, &chunked, Seen::of(&chunked)),
            Err(Fault::TransferEncoding)
        );
        assert_eq!(
            of_request(&Method::CONNECT, Version::HTTP_11, &chunked, Seen::of(&chunked)),
            Err(Fault::UnexpectedContent)
        );
    }

    #[test]
    fn a_response_without_content_has_none_whatever_it_says() {
        // The next response on the connection would be read as the content of this one, and given to somebody else.
        let five = fields(&[("content-length", "5")]);
        let none = fields(&[]);
        for (method, status, headers, expected) in [
            ("GET", 200, &five, Framing::Length(5)),
            ("GET", 200, &none, Framing::UntilClose),
            ("HEAD", 200, &five, Framing::Empty),
            ("HEAD", 200, &none, Framing::Empty),
            ("GET", 204, &five, Framing::Empty),
            ("GET", 304, &five, Framing::Empty),
            ("GET", 101, &five, Framing::Empty),
            ("CONNECT", 200, &five, Framing::Empty),
            ("CONNECT", 407, &five, Framing::Length(5)),
        ] {
            let asked = method.parse().unwrap();
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                of_response(&asked, status, Version::HTTP_11, headers, Seen::of(headers)),
                Ok(expected),
                "{method} {status}"
            );
        }
    }
}
