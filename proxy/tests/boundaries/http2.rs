//! HTTP/2 from a client, to HTTP/1 at the origin. Written against bytes: whichever codec serves, these hold.

use outrigger_proxy::http::serve::Version;

use super::{
    conversation::{Origin, forward, in_virtual_time, served, speak},
    http2_frames::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, frame, hello, literal},
    strict,
};

fn converse(said: &[u8], piece: usize) -> (Vec<strict::Request>, Vec<u8>) {
    let origin = Origin::default();
    let heard = in_virtual_time(async {
        let toward = origin.clone();
        let io = served(Version::Http2, move |request, downstream| forward(request, downstream, toward.clone()));
        speak(io, said.chunks(piece.max(1))).await
    });
    (origin.requests(), heard)
}

/// Whatever frames a client sends, the origin gets safe requests, and the client gets frames.
pub fn h2_server_frames(frames: &[u8]) {
    let mut said = if frames.starts_with(b"PRI") { Vec::new() } else { hello() };
    said.extend_from_slice(frames);
    for piece in [said.len(), 9] {
        let (_, mut heard) = converse(&said, piece);
        while heard.len() >= 9 {
            let length = usize::from(heard[0]) << 16 | usize::from(heard[1]) << 8 | usize::from(heard[2]);
            if heard.len() < 9 + length {
                break;
            }
            assert_eq!(heard[5] & 0x80, 0, "reserved bit");
            heard.drain(..9 + length);
        }
    }
}

/// Requests written as text (`name value` lines, an empty line, content; 0x1d before trailers, 0x1e before the next request) arrive as
/// they are or not at all: one at the origin for each at most, with the content that was sent.
pub fn h2_to_h1_translate(text: &[u8]) {
    let mut said = hello();
    let mut streams = 0;
    let mut contents = Vec::new();
    for (place, request) in text.split(|byte| *byte == 0x1e).take(8).enumerate() {
        let stream = u32::try_from(place * 2 + 1).expect("few streams");
        let (message, trailers) = match request.iter().position(|byte| *byte == 0x1d) {
            Some(at) => (&request[..at], Some(&request[at + 1..])),
            None => (request, None),
        };
        let (lines, content) = match message.windows(2).position(|pair| pair == b"\n\n") {
            Some(at) => (&message[..at], &message[at + 2..]),
            None => (message, &[][..]),
        };
        let content = &content[..content.len().min(8000)];
        let head = block(lines);
        let ends = content.is_empty() && trailers.is_none();
        frame(&mut said, HEADERS, END_HEADERS | if ends { END_STREAM } else { 0 }, stream, &head);
        if !content.is_empty() {
            frame(&mut said, DATA, if trailers.is_none() { END_STREAM } else { 0 }, stream, content);
        }
        if let Some(trailers) = trailers {
            frame(&mut said, HEADERS, END_HEADERS | END_STREAM, stream, &block(trailers));
        }
        streams += 1;
        contents.push(content.to_vec());
    }
    let (requests, _) = converse(&said, said.len());
    assert!(requests.len() <= streams, "{} requests of {streams} streams", requests.len());
    for request in &requests {
        // What follows CONNECT belongs to the tunnel (RFC 9110 §9.3.6), which the origin refused.
        let known =
            if request.method == "CONNECT" { request.content.is_empty() } else { contents.contains(&request.content) };
        assert!(known, "content that nobody sent: {request:?}");
    }
    assert!(said.starts_with(PREFACE));
}

fn block(lines: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).take(64) {
        let at = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
        literal(&mut block, &line[..at], line.get(at + 1..).unwrap_or_default());
    }
    block.truncate(16_000);
    block
}
