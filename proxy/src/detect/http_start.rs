//! HTTP/1 request line or HTTP/2 preface, from the first bytes. Pure.
//!
//! Called by `detect` for every connection whose protocol nobody declared. Says as early as possible, because every byte
//! waited for is a delay for protocols that are neither. Does not check the request: `http/normalize.rs` does.

/// What a stream begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Http1,
    Http2,
    Neither,
    /// So far it could still be HTTP.
    More,
}

/// Looks at the bytes read so far; a longer prefix never contradicts an answer other than [`Start::More`].
///
/// HTTP/2: RFC 9113 §3.4, the whole 24-byte preface. HTTP/1: RFC 9112 §3, `method SP request-target`. A known method and the
/// space after it are decisive; an unknown one (1 to 32 token characters, no lower case) needs a target after it: a path,
/// "*", or an http URI.
pub fn parse(bytes: &[u8]) -> Start {
    if bytes.starts_with(PREFACE) {
        return Start::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Start::More;
    }
    // RFC 9112 §2.2: "a server that is expecting to receive and parse a request-line SHOULD ignore at least one
    // empty line (CRLF) received prior to the request-line". hyper does as well.
    let line = bytes.strip_prefix(b"\r\n").unwrap_or(if bytes == b"\r" { b"" } else { bytes });
    let Some(end) = line.iter().take(MAX_METHOD_BYTES + 1).position(|byte| !is_method_byte(*byte)) else {
        return if line.len() <= MAX_METHOD_BYTES { Start::More } else { Start::Neither };
    };
    let (method, rest) = line.split_at(end);
    if method.is_empty() || method == b"PRI" {
        // "PRI" was reserved so that no HTTP/1 server would take a broken HTTP/2 preface for a request.
        return Start::Neither;
    }
    match rest {
        [b' ', ..] if KNOWN_METHODS.contains(&method) => Start::Http1,
        // origin-form and asterisk-form; authority-form belongs to CONNECT alone.
        [b' ', b'/' | b'*', ..] => Start::Http1,
        [b' ', target @ ..] => absolute_form(target),
        _ => Start::Neither,
    }
}

/// RFC 9112 §3.2.2, for the two schemes a proxy can be asked for.
fn absolute_form(target: &[u8]) -> Start {
    for scheme in [b"http://".as_slice(), b"https://"] {
        let length = scheme.len().min(target.len());
        let same = target.iter().zip(scheme).all(|(byte, expected)| byte.eq_ignore_ascii_case(expected));
        if same {
            return if length == scheme.len() { Start::Http1 } else { Start::More };
        }
    }
    Start::Neither
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MAX_METHOD_BYTES: usize = 32;
const KNOWN_METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// RFC 9110 §5.6.2 token characters without lower case: nobody uses it in methods, and many text protocols begin with it.
const fn is_method_byte(byte: u8) -> bool {
    matches!(
        byte,
        b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CASES: &[(&[u8], Start)] = &[
        (b"GET / HTTP/1.1\r\n", Start::Http1),
        (b"GET ", Start::Http1),
        (b"\r\nGET / HTTP/1.1\r\n", Start::Http1),
        (b"POST http://a.test/x HTTP/1.1\r\n", Start::Http1),
        (b"CONNECT a.test:443 HTTP/1.1\r\n", Start::Http1),
        (b"OPTIONS * HTTP/1.1\r\n", Start::Http1),
        (b"PROPFIND /dav HTTP/1.1\r\n", Start::Http1),
        (b"M-SEARCH * HTTP/1.1\r\n", Start::Http1),
        (b"PRIVATE /x HTTP/1.1\r\n", Start::Http1),
        (b"PURGE http://a.test/ HTTP/1.1\r\n", Start::Http1),
        (b"PURGE HTTPS://a.test/ HTTP/1.1\r\n", Start::Http1),
        (b"PURGE htt", Start::More),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04", Start::Http2),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Start::Neither),
        (b"PRI * HTTP/1.1\r\n", Start::Neither),
        (b"\x16\x03\x01\x02\0", Start::Neither),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Start::Neither),
        (b"EHLO mail.test\r\n", Start::Neither),
        (b"HELO h\r\n", Start::Neither),
        (b"USER anonymous\r\n", Start::Neither),
        (b"*1\r\n$4\r\nPING\r\n", Start::Neither),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Start::Neither),
        (b"get / HTTP/1.1\r\n", Start::Neither),
        (b"PING\r\n", Start::Neither),
        (b"GET\t/", Start::Neither),
        (b" GET /", Start::Neither),
        (b"\n", Start::Neither),
        (b"A", Start::More),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Start::More),
        (b"", Start::More),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Start::More),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Start::Neither),
    ];

    #[test]
    fn every_split_gives_the_same_answer() {
        // Whether a request is routed would depend on how the network cut it.
        for (bytes, expected) in CASES {
            for end in 0..=bytes.len() {
                let answer = parse(&bytes[..end]);
                assert!(answer == Start::More || answer == *expected, "{end}: {answer:?}: {}", bytes.escape_ascii());
            }
            assert_eq!(parse(bytes), *expected, "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn an_answer_holds_for_every_longer_prefix(bytes: Vec<u8>, text in "[A-Z*/ \r\n.0-9]{0,40}") {
            // Any client could stop the proxy, or be judged by half of what it said.
            for bytes in [&bytes, text.as_bytes()] {
                let mut last = Start::More;
                for end in 0..=bytes.len() {
                    let answer = parse(&bytes[..end]);
                    prop_assert!(last == Start::More || answer == last);
                    last = answer;
                }
            }
        }
    }
}
