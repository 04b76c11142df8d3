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
///
/// What some lenient server would read as a request is HTTP/1 as well: known methods in other letters, after whitespace or before a wrong
/// separator, and lines without a method, when the line holds a version. Carried as opaque bytes it would go past every rule; as HTTP/1 it
/// is refused. Other text does not wait for the end of its line.
pub fn parse(bytes: &[u8]) -> Start {
    if bytes.starts_with(PREFACE) {
        return Start::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Start::More;
    }
    // RFC 9112 §2.2: "a server that is expecting to receive and parse a request-line SHOULD ignore at least one
    // empty line (CRLF) received prior to the request-line"; some ignore any whitespace.
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n' | b' ' | b'\t')).count();
    let line = bytes.get(blank..).unwrap_or_default();
    let (line, quoted) = match line {
        _ if blank > MAX_BLANK_BYTES => return Start::Neither,
        [] => return Start::More,
        [b'(' | b'[' | b'<', rest @ ..] => (rest, true),
        line => (line, false),
    };
    let end = line.iter().take(MAX_METHOD_BYTES + 1).position(|byte| !is_token_byte(*byte)).unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    let method =
        !quoted && !word.is_empty() && word.len() <= MAX_METHOD_BYTES && word.iter().all(|b| is_method_byte(*b));
    let known = KNOWN_METHODS.iter().any(|known| known.eq_ignore_ascii_case(word));
    match rest {
        [] if word.len() > MAX_METHOD_BYTES => Start::Neither,
        [] if method || word.is_empty() || begins_known_method(word) => Start::More,
        [b' ', ..] if method && known => Start::Http1,
        // origin-form and asterisk-form; authority-form belongs to CONNECT alone.
        [b' ', b'/' | b'*', ..] if method => Start::Http1,
        [b' ', target @ ..] if method => absolute_form(target),
        [next, ..] if method && known && !matches!(next, b'\r' | b'\n') => Start::Http1,
        [_, ..] if known => first_line(rest),
        [b'\t' | 0x0b | 0x0c | b'!'..=b'~' | 0x80.., ..] if method => first_line(rest),
        [b'/', ..] if word.is_empty() && !quoted => first_line(rest),
        _ => Start::Neither,
    }
}

fn begins_known_method(word: &[u8]) -> bool {
    KNOWN_METHODS.iter().any(|known| known.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word)))
}

/// Whether the line that this is the rest of, no good request line, holds a version of HTTP.
fn first_line(line: &[u8]) -> Start {
    // A byte that no text holds decides early: binary protocols do not wait for the end of a line.
    let is_text = |byte: u8| byte >= b' ' && byte != 0x7f || matches!(byte, b'\t' | 0x0b | 0x0c | b'\r');
    let end = line.iter().take(MAX_LINE_BYTES).position(|byte| !is_text(*byte));
    let text = line.get(..end.unwrap_or(line.len().min(MAX_LINE_BYTES))).unwrap_or_default();
    let is_version = |window: &[u8]| {
        window.split_first().is_some_and(|(before, name)| {
            (before.is_ascii_whitespace() || *before == 0x0b) && name.eq_ignore_ascii_case(b"HTTP/")
        })
    };
    if text.windows(6).any(is_version) {
        Start::Http1
    } else if end.is_some() || line.len() >= MAX_LINE_BYTES {
        Start::Neither
    } else {
        Start::More
    }
}

/// Whitespace that a lenient server would skip.
const MAX_BLANK_BYTES: usize = 64;
/// How far a version is looked for; as long as the longest target (`limits.uri_bytes`) with something around.
const MAX_LINE_BYTES: usize = 12 * 1024;

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

/// RFC 9110 §5.6.2.
const fn is_token_byte(byte: u8) -> bool {
    is_method_byte(byte) || byte.is_ascii_lowercase()
}

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
        (b"PRI * HTTP/2.0\r\n\r\nXX", Start::Http1),
        (b"PRI * HTTP/1.1\r\n", Start::Http1),
        (b"PRI x\r\n", Start::Neither),
        (b"\x16\x03\x01\x02\0", Start::Neither),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Start::Neither),
        (b"EHLO mail.test\r\n", Start::Neither),
        (b"HELO h\r\n", Start::Neither),
        (b"USER anonymous\r\n", Start::Neither),
        (b"*1\r\n$4\r\nPING\r\n", Start::Neither),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Start::Neither),
        (b"get / HTTP/1.1\r\n", Start::Http1),
        (b"PING\r\n", Start::Neither),
        (b"get key\r\n", Start::Neither),
        (b"see http/1.1\r\n", Start::Neither),
        (b"hello", Start::Neither),
        (b"{\"method\": \"GET\"}", Start::Neither),
        (b"<?xml version=\"1.0\"?>", Start::Neither),
        (b"GET\t/", Start::Http1),
        (b"GET\0/", Start::Http1),
        (b"GET\r\n", Start::Neither),
        (b" GET /", Start::Http1),
        (b"\n\n \r\nGET /", Start::Http1),
        (b"(GET) / HTTP/1.1\r\n", Start::Http1),
        (b"G\xc3\x89T / HTTP/1.0\n", Start::Http1),
        (b"/ HTTP/1.1\r\n", Start::Http1),
        (b"G(T / HTTP/1.1\r\n", Start::Http1),
        (b"AB/d=\r\n", Start::Neither),
        (b"GET:\x0bHTTP/9", Start::Http1),
        (b"/xHTTP/1.1\r\n", Start::Neither),
        (b"a\0 HTTP/1.1\r\n", Start::Neither),
        (b"\n", Start::More),
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
