//! How long a message is, and what it holds (RFC 9112 §6 and §7).

use super::{Field, Lines, Unsafe, fields, no, values};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    None,
    Known(usize),
    Chunked,
}

/// At most one of: one plain number, exactly `chunked`.
pub(super) fn declared(fields: &[Field]) -> Result<Length, Unsafe> {
    match (&values(fields, "content-length")[..], &values(fields, "transfer-encoding")[..]) {
        ([], []) => Ok(Length::None),
        ([digits], []) => match std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()) {
            Some(length) if digits.iter().all(u8::is_ascii_digit) => Ok(Length::Known(length)),
            _ => no(format!("content-length is {:?}", String::from_utf8_lossy(digits))),
        },
        ([], [b"chunked"]) => Ok(Length::Chunked),
        ([], codings) => no(format!("transfer-encoding is {codings:?}")),
        (lengths, codings) => no(format!("{} lengths and {} transfer codings", lengths.len(), codings.len())),
    }
}

/// Content, trailers and where they end.
type Found = (Vec<u8>, Vec<Field>, usize);

/// `None`: not all has come.
pub(super) fn read(bytes: &[u8], from: usize, length: Length) -> Result<Option<Found>, Unsafe> {
    match length {
        Length::None => Ok(Some((Vec::new(), Vec::new(), from))),
        Length::Known(length) => {
            let end = from.saturating_add(length);
            Ok(bytes.get(from..end).map(|content| (content.to_vec(), Vec::new(), end)))
        }
        Length::Chunked => chunked(bytes, from),
    }
}

fn chunked(bytes: &[u8], from: usize) -> Result<Option<Found>, Unsafe> {
    let mut content = Vec::new();
    let mut lines = Lines { bytes, at: from };
    loop {
        let Some(size) = lines.next()? else { return Ok(None) };
        if size.is_empty() || size.len() > 15 || !size.iter().all(u8::is_ascii_hexdigit) {
            return no(format!("chunk size is {:?}", String::from_utf8_lossy(size)));
        }
        let size = String::from_utf8_lossy(size);
        let Ok(size) = usize::from_str_radix(&size, 16) else { return no("chunk size is too large") };
        if size == 0 {
            break;
        }
        let end = lines.at + size;
        let Some(data) = bytes.get(lines.at..end) else { return Ok(None) };
        content.extend_from_slice(data);
        match bytes.get(end..) {
            Some([b'\r', b'\n', ..]) => lines.at = end + 2,
            Some([] | [b'\r']) | None => return Ok(None),
            Some(_) => return no("chunk does not end where its size says"),
        }
    }
    let Some(trailers) = fields(&mut lines)? else { return Ok(None) };
    for (name, _) in &trailers {
        if is_forbidden(name) {
            return no(format!("{name} as a trailer"));
        }
    }
    Ok(Some((content, trailers, lines.at)))
}

/// RFC 9110 §6.5.1: what frames, routes, modifies, authenticates or describes a message is of no use behind it; readers that merge trailers
/// into the head would be given another message. The same goes for who called, as the mesh says it.
pub(super) fn is_forbidden(name: &str) -> bool {
    const FORBIDDEN: &[&str] = &[
        "age",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "http2-settings",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "retry-after",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "via",
        "www-authenticate",
    ];
    FORBIDDEN.contains(&name)
        || ["x-forwarded-", "x-outrigger-", "x-envoy-"].iter().any(|prefix| name.starts_with(prefix))
}
