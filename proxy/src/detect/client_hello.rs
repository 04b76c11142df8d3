//! SNI and ALPN out of a TLS ClientHello. Pure.
//!
//! Called by `detect` on bytes from strangers, before anything is verified: what it finds chooses a path and is never a
//! reason to trust. RFC 8446 §4.1.2 is the message, §5.1 the records that carry it (also in fragments), RFC 6066 §3 the
//! server name, RFC 7301 §3.1 the protocols. Reads a whole ClientHello or none; it does not complain about
//! contradictions inside, rustls does that later.

/// What a client says before anything is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// As sent, lower-cased; `None`: not sent, or not a host name.
    pub server_name: Option<Box<str>>,
    /// Protocols in the client's order, at most 32.
    pub alpn: Vec<Box<[u8]>>,
}

/// What a prefix of a stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parse<T> {
    Complete(T),
    /// So far it could be one.
    More,
    /// It is something else.
    Neither,
}

/// Longest prefix of a stream that is searched for a whole ClientHello; with all headers of the records that carry it.
pub const MAX_BYTES: usize = 16 * 1024;

/// Looks at the bytes read so far; a longer prefix never contradicts an answer other than [`Parse::More`].
///
/// A message that does not fit into [`MAX_BYTES`] is [`Parse::Neither`].
pub fn parse(bytes: &[u8]) -> Parse<ClientHello> {
    let mut head = [0; MESSAGE_HEADER];
    let mut total = 0;
    let mut rest = bytes;
    loop {
        let (fragment, next) = match record(rest) {
            Record::Whole(fragment, next) => (fragment, Some(next)),
            Record::Part(fragment) => (fragment, None),
            Record::Neither => return Parse::Neither,
        };
        for (place, byte) in head.iter_mut().skip(total).zip(fragment) {
            *place = *byte;
        }
        total = total.saturating_add(fragment.len());
        // The message names its kind and length early; saying no then is better than reading to the end.
        let [kind, high, middle, low] = head;
        if total > 0 && kind != MESSAGE_CLIENT_HELLO {
            return Parse::Neither;
        }
        let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
        if total >= MESSAGE_HEADER && length > MAX_BYTES - MESSAGE_HEADER {
            return Parse::Neither;
        }
        // Without the rest of its record a whole message still waits: rustls would want the record.
        let Some(next) = next else {
            return if bytes.len() < MAX_BYTES { Parse::More } else { Parse::Neither };
        };
        if total.checked_sub(MESSAGE_HEADER).is_some_and(|body| body >= length) {
            let body: Vec<u8> = fragments(bytes).flatten().copied().skip(MESSAGE_HEADER).take(length).collect();
            return hello(&body).map_or(Parse::Neither, Parse::Complete);
        }
        rest = next;
    }
}

pub(super) const RECORD_HANDSHAKE: u8 = 0x16;
const VERSION_MAJOR: u8 = 0x03;
const MAX_VERSION_MINOR: u8 = 0x04;
const MAX_FRAGMENT: usize = 1 << 14;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const MESSAGE_HEADER: usize = 4;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const NAME_TYPE_HOST: u8 = 0;
const MAX_PROTOCOLS: usize = 32;
const MAX_NAME_BYTES: usize = 255;

enum Record<'a> {
    /// Its content, and what follows.
    Whole(&'a [u8], &'a [u8]),
    /// What is there of its content.
    Part(&'a [u8]),
    Neither,
}

/// The first handshake record.
fn record(bytes: &[u8]) -> Record<'_> {
    // RFC 8446 §5.1 has 0x0301 or 0x0303 for the version, of which clients have made 0x0300 to 0x0304.
    let plausible = bytes.iter().zip([RECORD_HANDSHAKE, VERSION_MAJOR]).all(|(byte, expected)| *byte == expected)
        && bytes.get(2).is_none_or(|minor| *minor <= MAX_VERSION_MINOR);
    if !plausible {
        return Record::Neither;
    }
    let Some(([_, _, _, high, low], content)) = bytes.split_first_chunk() else {
        return Record::Part(&[]);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    // RFC 8446 §5.1: "Implementations MUST NOT send zero-length fragments of Handshake types".
    if length == 0 || length > MAX_FRAGMENT {
        return Record::Neither;
    }
    match content.split_at_checked(length) {
        Some((fragment, next)) => Record::Whole(fragment, next),
        None => Record::Part(content),
    }
}

/// The contents of the whole records at the start.
fn fragments(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || match record(rest) {
        Record::Whole(fragment, next) => {
            rest = next;
            Some(fragment)
        }
        Record::Part(_) | Record::Neither => None,
    })
}

/// Reads the message; `None` when its lengths do not add up.
fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    body.take(2 + 32)?; // legacy_version, random
    body.vector8()?; // legacy_session_id
    body.vector16()?; // cipher_suites
    body.vector8()?; // legacy_compression_methods
    let mut found = ClientHello::default();
    if body.0.is_empty() {
        // TLS 1.2 and older may end here.
        return Some(found);
    }
    let mut extensions = body.vector16()?;
    if !body.0.is_empty() {
        return None;
    }
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let content = extensions.vector16()?;
        match kind {
            EXTENSION_SERVER_NAME => found.server_name = server_name(content)?,
            EXTENSION_ALPN => found.alpn = protocols(content)?,
            _ => (),
        }
    }
    Some(found)
}

fn server_name(mut content: Reader<'_>) -> Option<Option<Box<str>>> {
    let mut names = content.vector16()?;
    while !names.0.is_empty() {
        let kind = names.take(1)?;
        let name = names.vector16()?.0;
        if kind == [NAME_TYPE_HOST] {
            return Some(host_name(name));
        }
    }
    Some(None)
}

/// RFC 6066 §3: an ASCII DNS name without a trailing dot. Anything else is as good as no name.
fn host_name(bytes: &[u8]) -> Option<Box<str>> {
    let is_host = (1..=MAX_NAME_BYTES).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    let name = std::str::from_utf8(bytes).ok().filter(|_| is_host)?;
    Some(name.to_ascii_lowercase().into())
}

fn protocols(mut content: Reader<'_>) -> Option<Vec<Box<[u8]>>> {
    let mut list = content.vector16()?;
    let mut found = Vec::new();
    while !list.0.is_empty() {
        let name = list.vector8()?.0;
        // RFC 7301 §3.1: "Empty strings MUST NOT be included".
        if name.is_empty() {
            return None;
        }
        if found.len() < MAX_PROTOCOLS {
            found.push(name.into());
        }
    }
    Some(found)
}

/// TLS presentation language: numbers and length-prefixed vectors.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    fn vector8(&mut self) -> Option<Self> {
        let (length, rest) = self.0.split_first()?;
        self.0 = rest;
        self.take(usize::from(*length)).map(Self)
    }

    fn vector16(&mut self) -> Option<Self> {
        let length = self.number16()?;
        self.take(usize::from(length)).map(Self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// What rustls, an implementation of somebody else, says first.
    pub(in crate::detect) fn hello_of_rustls(name: &'static str, alpn: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|token| token.as_bytes().to_vec()).collect();
        let mut session = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        session.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of at most `size` bytes.
    pub(in crate::detect) fn fragmented(record: &[u8], size: usize) -> Vec<u8> {
        record[5..]
            .chunks(size)
            .flat_map(|chunk| {
                let mut record = vec![0x16, 3, 1];
                record.extend(u16::try_from(chunk.len()).unwrap().to_be_bytes());
                record.extend(chunk);
                record
            })
            .collect()
    }

    fn expected() -> ClientHello {
        let alpn = [b"istio-h2".as_slice(), b"istio-http/1.1"].map(Into::into).into();
        ClientHello { server_name: Some("reviews.shop".into()), alpn }
    }

    #[test]
    fn s12_a_real_hello_is_read_at_every_split_and_fragmentation() {
        // Mesh connections would be taken for the application's own TLS, depending on how the network cut them.
        let whole = hello_of_rustls("Reviews.shop", &["istio-h2", "istio-http/1.1"]);
        for size in [1, 2, 3, 5, 64, 300, whole.len()] {
            let bytes = fragmented(&whole, size);
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Parse::More, "{size} {end}");
            }
            assert_eq!(parse(&bytes), Parse::Complete(expected()), "{size}");
        }
        // What follows (early data, garbage) changes nothing.
        let mut longer = whole;
        longer.extend([0xff; 100]);
        assert_eq!(parse(&longer), Parse::Complete(expected()));
    }

    /// A hello with these extensions before the name and protocols that [`expected`] has.
    fn with_extensions(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let vector16 = |content: &[u8]| [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat();
        let extension = |kind: u16, content: &[u8]| [&kind.to_be_bytes()[..], &vector16(content)].concat();
        let name = vector16(&[&[0], &vector16(b"reviews.shop")[..]].concat());
        let alpn = vector16(b"\x08istio-h2\x0eistio-http/1.1");
        let mut all: Vec<u8> = extensions.iter().flat_map(|(kind, content)| extension(*kind, content)).collect();
        all.extend(extension(0, &name));
        all.extend(extension(16, &alpn));
        let body = [&[3, 3][..], &[0; 32], &[0, 0, 4, 0x0a, 0x0a, 0x13, 0x01, 1, 0], &vector16(&all)].concat();
        let message = [&[1][..], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], &body].concat();
        message
            .chunks(1 << 14)
            .flat_map(|part| [&[0x16, 3, 1][..], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat())
            .collect()
    }

    #[test]
    fn s12_old_new_and_unknown_hellos_are_read_alike() {
        // Which rules apply would depend on the version of somebody's library (CVE-2020-8660).
        let versions = |list: &[u8]| (43, [&[u8::try_from(list.len()).unwrap()], list].concat());
        // RFC 8701: values that mean nothing, so that nobody gets used to knowing all.
        let grease = [(0x0a0a, Vec::new()), (0xfafa, vec![0]), (0x1a1a, vec![7; 100])];
        for extensions in [
            vec![],
            vec![versions(&[3, 3])],
            vec![versions(&[3, 4])],
            vec![versions(&[0x0a, 0x0a, 3, 4, 3, 3])],
            grease.to_vec(),
            [&grease[..], &[versions(&[3, 4])]].concat(),
            // Early data, a ticket, padding up to what is looked at.
            vec![(42, Vec::new()), (41, vec![0; 300]), (21, vec![0; 15_000])],
        ] {
            assert_eq!(parse(&with_extensions(&extensions)), Parse::Complete(expected()), "{extensions:?}");
        }
        // Beyond that it is nobody's that we know, whoever sent it and however much of it has come.
        let long = with_extensions(&[(21, vec![0; 17_000])]);
        assert_eq!(parse(&long), Parse::Neither);
        for end in [100, 1000, 10_000, MAX_BYTES, long.len()] {
            assert_ne!(parse(&long[..end]), Parse::Complete(expected()), "{end}");
        }
    }

    #[test]
    fn a_hello_without_names_is_still_one() {
        // Clients that connect to addresses, and old ones without extensions, could not be told from opaque bytes.
        let bytes = hello_of_rustls("10.0.0.1", &[]);
        assert_eq!(parse(&bytes), Parse::Complete(ClientHello::default()));
        let mut old = vec![3, 3];
        old.extend([0; 32]);
        old.extend([0, 0, 2, 0, 0x2f, 1, 0]);
        assert_eq!(parse(&message_of(&old)), Parse::Complete(ClientHello::default()));
    }

    fn message_of(body: &[u8]) -> Vec<u8> {
        let length = u8::try_from(body.len()).unwrap();
        let mut bytes = vec![0x16, 3, 1, 0, length + 4, 1, 0, 0, length];
        bytes.extend(body);
        bytes
    }

    #[test]
    fn what_only_looks_like_tls_is_refused_early() {
        // A connection would wait for the detection timeout before it is carried.
        for bytes in [
            b"GET / HTTP/1.1".as_slice(),
            b"\x16\x02",
            b"\x16\x03\x05",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\0\x04\x02",
            b"\x16\x03\x01\x40\0\x01\x00\x40\x00",
            b"\x16\x03\x01\x40\0\x01\xff\xff\xff",
            b"\x17\x03\x03",
            b"\x16\x03\x01\0\x01\x01\x17",
            // Lengths inside that do not add up.
            b"\x16\x03\x01\0\x06\x01\0\0\x02\x03\x03",
        ] {
            assert_eq!(parse(bytes), Parse::Neither, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn an_endless_hello_ends_at_the_limit() {
        // One client could make the proxy keep bytes without end.
        let mut bytes = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xf0];
        assert_eq!(parse(&bytes), Parse::More);
        bytes.resize(MAX_BYTES - 1, 0);
        assert_eq!(parse(&bytes), Parse::More);
        bytes.push(0);
        assert_eq!(parse(&bytes), Parse::Neither);
    }

    #[test]
    fn odd_names_are_no_names() {
        // Bytes from outside would get into the log and into lookups as a name.
        for (name, found) in [
            (b"a.test".as_slice(), Some("a.test")),
            (b"A.Test", Some("a.test")),
            (b"", None),
            (b"a test", None),
            (b"a\0", None),
            (b"\xff\xfe", None),
            (&[b'a'; 256], None),
        ] {
            assert_eq!(host_name(name).as_deref(), found);
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics_and_answers_hold(
            noise: Vec<u8>,
            damage in proptest::collection::vec((0usize..600, any::<u8>()), 0..6),
            size in 1usize..400,
        ) {
            // Any client could stop the proxy.
            let _ = parse(&noise);
            let mut bytes = fragmented(&hello_of_rustls("a.test", &["h2"]), size);
            for (place, byte) in damage {
                if let Some(target) = bytes.get_mut(place) {
                    *target = byte;
                }
            }
            let mut last = Parse::More;
            for end in (0..=bytes.len()).step_by(7) {
                let answer = parse(&bytes[..end]);
                prop_assert!(last == Parse::More || answer == last);
                last = answer;
            }
        }
    }
}
