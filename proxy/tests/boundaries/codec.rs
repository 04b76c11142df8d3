//! The pure readers of HTTP/1.

use bytes::{Bytes, BytesMut};
use http::Method;
use outrigger_proxy::http::http1::{
    Fault,
    chunked::{ChunkLimits, Chunked, Step},
    framing::Framing,
    head::{self, HeadLimits, RequestHead, Scan},
};

use super::strict;

const HEAD: HeadLimits = HeadLimits { bytes: 4096, fields: 32, target_bytes: 1024 };
const CHUNKS: ChunkLimits =
    ChunkLimits { extension_bytes: 64, trailers: HeadLimits { bytes: 512, fields: 8, target_bytes: 0 } };

/// Where the head ends, looked for in pieces that end at `cut`.
fn find(bytes: &[u8], cut: usize) -> Result<Option<usize>, Fault> {
    let mut scan = Scan::default();
    if let Some(end) = head::find_end(&bytes[..cut], &mut scan, &HEAD)? {
        return Ok(Some(end));
    }
    head::find_end(bytes, &mut scan, &HEAD)
}

fn read_request(bytes: &[u8]) -> Option<(RequestHead, usize)> {
    let end = find(bytes, bytes.len()).ok()??;
    Some((head::request(&Bytes::copy_from_slice(&bytes[..end]), &HEAD).ok()?, end))
}

/// The end of a head is the same wherever the network cuts it. What the strict reader reads, ours reads in the same way, and a head that ours
/// lets through holds nothing that ends a line elsewhere.
pub fn h1_request_head(bytes: &[u8]) {
    let whole = find(bytes, bytes.len());
    for cut in 0..bytes.len().min(300) {
        let split = find(bytes, cut);
        // A fault behind the end of the head is only seen when it has come.
        assert!(
            split == whole || matches!((&split, &whole), (Ok(Some(_)), Err(_))),
            "{split:?} at {cut}, {whole:?} whole"
        );
    }
    let Some((read, end)) = read_request(bytes) else { return };
    let head = &bytes[..end];
    assert!(head.iter().all(|byte| *byte >= b' ' || matches!(byte, b'\r' | b'\n' | b'\t')), "{head:?}");
    assert!(head.ends_with(b"\r\n\r\n"));
    let carriages = head.iter().filter(|byte| **byte == b'\r').count();
    assert_eq!(carriages, head.windows(2).filter(|pair| pair == b"\r\n").count());
    if let Ok(Some(strictly)) = strict::request(bytes) {
        assert_eq!(read.parts.method.as_str(), strictly.method);
        assert_eq!(read.parts.headers.len(), strictly.fields.len());
        let length = match read.framing {
            Framing::Empty => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        assert!(length.is_none_or(|length| length == strictly.content.len() as u64), "{length:?}");
        assert_eq!(length.is_none(), !strict::values(&strictly.fields, "transfer-encoding").is_empty());
    }
}

/// A response has one length, and none where its request or status allows none.
pub fn h1_response_head(bytes: &[u8]) {
    let Ok(Some(end)) = find(bytes, bytes.len()) else { return };
    let text = Bytes::copy_from_slice(&bytes[..end]);
    for method in [Method::GET, Method::HEAD, Method::CONNECT] {
        let Ok(read) = head::response(&text, &method, &HEAD) else { continue };
        let status = read.parts.status.as_u16();
        let bodiless = method == Method::HEAD || matches!(status, 100..200 | 204 | 304);
        assert!(!bodiless || read.framing == Framing::Empty, "{method} {status} {:?}", read.framing);
        assert!(!(200..300).contains(&status) || method != Method::CONNECT || read.framing == Framing::Empty);
        if method != Method::GET {
            continue;
        }
        if let Ok(Some(strictly)) = strict::response(bytes, "GET", false) {
            assert_eq!(strictly.status, status);
            match read.framing {
                Framing::Length(length) => assert_eq!(length, strictly.content.len() as u64),
                Framing::Empty => assert_eq!(strictly.content.len(), 0),
                Framing::Chunked => assert!(!strict::values(&strictly.fields, "transfer-encoding").is_empty()),
                Framing::UntilClose => panic!("the strict reader found an end, ours did not"),
            }
        }
    }
}

type Content = (Vec<u8>, usize, usize);

/// Content, number of trailers, bytes left; `None`: more must come.
fn read_chunks(bytes: &[u8], piece: usize) -> Result<Option<Content>, Fault> {
    let mut reader = Chunked::start();
    let (mut received, mut content, mut trailers) = (BytesMut::new(), Vec::new(), 0);
    let mut pieces = bytes.chunks(piece.max(1));
    loop {
        match reader.step(&mut received, &CHUNKS)? {
            Step::Data(data) => content.extend_from_slice(&data),
            Step::Trailers(fields) => trailers = fields.len(),
            Step::Over => {
                assert!(reader.is_over());
                return Ok(Some((content, trailers, received.len() + pieces.map(<[u8]>::len).sum::<usize>())));
            }
            Step::Starved => match pieces.next() {
                Some(more) => received.extend_from_slice(more),
                None => return Ok(None),
            },
        }
    }
}

/// Chunked content is the same in whatever pieces it comes, and the same as a strict reader finds.
pub fn h1_chunked_body(bytes: &[u8]) {
    let whole = read_chunks(bytes, bytes.len());
    for piece in [1, 2, 3, 7] {
        let cut = read_chunks(bytes, piece);
        // Of two faults, one may be seen earlier than the other.
        assert!(cut == whole || cut.is_err() && whole.is_err(), "in pieces of {piece}: {cut:?} and {whole:?}");
    }
    let mut request = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let head = request.len();
    request.extend_from_slice(bytes);
    if let Ok(Some(strictly)) = strict::request(&request) {
        match whole {
            Ok(Some((content, trailers, left))) => {
                assert_eq!(content, strictly.content);
                assert_eq!(trailers, strictly.trailers.len());
                assert_eq!(left, request.len() - strictly.length);
            }
            Ok(None) => panic!("a strict reader finds an end in {} bytes, ours does not", strictly.length - head),
            // Bounds are ours alone.
            Err(fault) => assert!(matches!(fault, Fault::TrailersTooLarge | Fault::ChunkExtensions), "{fault}"),
        }
    }
}
