//! Frames and header blocks of HTTP/2 below any connection.

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use outrigger_proxy::http::http2::{
    fault::Code,
    frame::{self, HEAD_BYTES, Head, MAX_PAYLOAD, flag, kind},
    hpack::{
        TABLE_BYTES,
        decode::Decoder,
        encode::Encoder,
        table::{Field, Name},
    },
};

use super::{
    hpack_reader::{Line, Reader},
    http2_frames,
};

/// Every frame that stands in the bytes is read as a plain reader reads it; and what we write of what was read is read the same.
pub fn h2_frame_codec(bytes: &[u8]) {
    let mut plain = http2_frames::Frames { received: bytes.to_vec() };
    let mut rest = bytes;
    while let Some(head) = Head::read(rest) {
        let Some(payload) = rest.get(HEAD_BYTES..HEAD_BYTES + head.length) else { break };
        rest = &rest[HEAD_BYTES + head.length..];
        let (kind, flags, stream, content) = plain.next().expect("the plain reader found a whole frame too");
        assert_eq!((head.kind, head.flags, head.stream, payload), (kind, flags, stream, &content[..]));
        read_payload(&head, payload);
    }
    assert!(plain.next().is_none(), "the plain reader found one more");
    // As a header block of any length, cut into frames and put together.
    let block = bytes.repeat(bytes.first().map_or(1, |first| usize::from(*first) + 1));
    let mut out = BytesMut::new();
    frame::write_headers(&mut out, 5, true, |out| out.extend_from_slice(&block));
    let mut written = http2_frames::Frames { received: out.to_vec() };
    let mut joined = Vec::new();
    let mut last = false;
    while let Some((kind, flags, stream, payload)) = written.next() {
        assert!(!last && stream == 5 && payload.len() <= MAX_PAYLOAD);
        assert_eq!(kind, if joined.is_empty() { http2_frames::HEADERS } else { http2_frames::CONTINUATION });
        last = flags & http2_frames::END_HEADERS != 0;
        joined.extend_from_slice(&payload);
    }
    assert!(last && joined == block && written.received.is_empty());
}

fn read_payload(head: &Head, payload: &[u8]) {
    if let Ok(content) = frame::unpad(head, payload) {
        assert_eq!(content, http2_frames::unpadded(head.flags & flag::PADDED, payload, false));
        if let Ok((block, _)) = frame::without_priority(head, content) {
            assert_eq!(block, http2_frames::unpadded(head.flags, payload, true));
        }
    } else {
        assert!(head.has(flag::PADDED) && payload.first().is_none_or(|pad| usize::from(*pad) >= payload.len()));
    }
    let mut out = BytesMut::new();
    match head.kind {
        kind::SETTINGS => {
            let mut settings = Vec::new();
            if frame::settings(payload, |id, value| settings.push((id, value))).is_ok() {
                frame::write_settings(&mut out, &settings);
                assert_eq!(&out[HEAD_BYTES..], payload);
            }
        }
        kind::GOAWAY => {
            if let Ok((last, code)) = frame::goaway(payload) {
                frame::write_goaway(&mut out, last, code);
                assert_eq!(frame::goaway(&out[HEAD_BYTES..]), Ok((last, code)));
                assert!(last <= frame::MAX_WINDOW && payload.len() >= 8);
            }
        }
        kind::RST_STREAM | kind::WINDOW_UPDATE => match frame::four_bytes(payload) {
            Ok(value) if head.kind == kind::RST_STREAM => {
                frame::write_reset(&mut out, head.stream, Code(value));
                assert_eq!(&out[HEAD_BYTES..], payload);
                let _ = Code(value).to_string();
            }
            Ok(value) => {
                frame::write_window_update(&mut out, head.stream, value);
                assert_eq!(&out[HEAD_BYTES..], payload);
            }
            Err(_) => assert_ne!(payload.len(), 4),
        },
        kind::PRIORITY => assert_eq!(frame::depends_on(payload).is_some(), payload.len() >= 4),
        _ => {}
    }
}

/// Blocks in sequence into one table: the length of each in a byte before it. They mean what a plain reader finds in them, a block cut
/// short means the beginning of the whole one, and the table stays within its size and the same as the other end's.
pub fn hpack_decode(bytes: &[u8]) {
    let mut decoder = Decoder::default();
    let mut reader = Reader::default();
    let mut before: Vec<&[u8]> = Vec::new();
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first() {
        let (block, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = behind;
        let (lines, faulty) = decode(&mut decoder, block);
        let (expected, sound) = reader.read(block);
        assert_eq!(faulty, !sound, "{block:02x?}");
        assert_eq!(lines.len(), expected.len());
        for ((field, counted), (name, value)) in lines.iter().zip(&expected) {
            assert_eq!(*counted, name.len() + value.len() + 32, "{name:02x?}");
            match field {
                Field { name: Name::Malformed, .. } => assert!(!is_allowed(name, value), "{name:02x?}: {value:02x?}"),
                Field { name: known, value: ours } => {
                    assert_eq!((spelled(known), ours.as_bytes()), (&name[..], &value[..]));
                }
            }
        }
        assert!(decoder.table_bytes() <= TABLE_BYTES);
        if before.len() < 4 {
            cut_short(&before, block, &lines);
        }
        before.push(block);
        if faulty {
            // RFC 9113 §4.3: the connection ends.
            return;
        }
        assert_eq!(decoder.table_bytes(), reader.bytes(), "the tables of both ends differ");
    }
}

/// RFC 9113 §8.2.1 and §8.3, and what HTTP/1 could not carry.
fn is_allowed(name: &[u8], value: &[u8]) -> bool {
    const PSEUDO: [&[u8]; 6] = [b":authority", b":method", b":path", b":protocol", b":scheme", b":status"];
    let token = |byte: &u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || b"!#$%&'*+-.^_`|~".contains(byte);
    let sound = (!name.is_empty() && name.iter().all(token)) || PSEUDO.contains(&name);
    let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    sound
        && !space(value.first())
        && !space(value.last())
        && value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

type Decoded = (Vec<(Field, usize)>, bool);

fn decode(decoder: &mut Decoder, block: &[u8]) -> Decoded {
    let mut lines = Vec::new();
    let faulty = decoder.decode(block, |field, bytes| lines.push((field, bytes))).is_err();
    (lines, faulty)
}

fn cut_short(before: &[&[u8]], block: &[u8], whole: &[(Field, usize)]) {
    for at in (0..block.len()).step_by(block.len() / 8 + 1) {
        let mut decoder = Decoder::default();
        for block in before {
            decode(&mut decoder, block);
        }
        let (lines, _) = decode(&mut decoder, &block[..at]);
        assert!(whole.starts_with(&lines), "{block:02x?} cut at {at}");
    }
}

fn spelled(name: &Name) -> &[u8] {
    match name {
        Name::Authority => b":authority",
        Name::Method => b":method",
        Name::Path => b":path",
        Name::Protocol => b":protocol",
        Name::Scheme => b":scheme",
        Name::Status => b":status",
        Name::Field(name) => name.as_str().as_bytes(),
        Name::Malformed => b"",
    }
}

/// Lines of text, an empty one between two blocks: `name value`, or `=bytes` for a table of another size. What our encoder writes is read
/// as what was said, by our decoder and by a plain reader, and neither end keeps more than was agreed.
pub fn hpack_round_trip(text: &[u8]) {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::default();
    let mut reader = Reader::default();
    let mut out = BytesMut::new();
    let mut said: Vec<Line> = Vec::new();
    let mut agreed = TABLE_BYTES;
    encoder.begin(&mut out);
    for line in text.split(|byte| *byte == b'\n').chain([&[][..]]) {
        if line.is_empty() {
            let (lines, faulty) = decode(&mut decoder, &out);
            assert!(!faulty, "{out:02x?}");
            let ours: Vec<Line> = lines
                .iter()
                .map(|(field, _)| (spelled(&field.name).to_vec(), field.value.as_bytes().to_vec()))
                .collect();
            assert_eq!(ours, said);
            assert_eq!(reader.read(&out), (said, true));
            assert!(encoder.table_bytes() <= agreed && decoder.table_bytes() <= agreed);
            assert_eq!(encoder.table_bytes(), reader.bytes());
            said = Vec::new();
            out.clear();
            encoder.begin(&mut out);
            continue;
        }
        if let Some(limit) = line.strip_prefix(b"=") {
            // The peer's settings come between two blocks.
            if said.is_empty() {
                let digits = limit.iter().take(6).take_while(|byte| byte.is_ascii_digit());
                let limit = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
                encoder.resize(limit);
                agreed = limit.min(TABLE_BYTES);
                encoder.begin(&mut out);
            }
            continue;
        }
        let at = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
        let (name, value) = (&line[..at], line.get(at + 1..).unwrap_or_default());
        said.extend(say(&mut encoder, &mut out, name, value));
    }
}

/// Writes a line, if it is one that could be written at all.
fn say(encoder: &mut Encoder, out: &mut BytesMut, name: &[u8], value: &[u8]) -> Option<Line> {
    let trimmed = value.trim_ascii();
    match name {
        b":method" => encoder.method(out, &Method::from_bytes(trimmed).ok()?),
        b":status" => encoder.status(out, StatusCode::from_bytes(trimmed).ok()?),
        b":path" => encoder.path(
            out,
            std::str::from_utf8(trimmed)
                .ok()
                .filter(|path| path.is_ascii() && !path.contains(|c: char| c.is_ascii_control()))?,
        ),
        b":authority" => encoder.authority(
            out,
            std::str::from_utf8(trimmed).ok().filter(|text| text.chars().all(|c| c.is_ascii_graphic()))?,
        ),
        b":length" => {
            let length = u64::try_from(trimmed.len()).ok()? << (trimmed.len() % 60);
            encoder.content_length(out, length);
            return Some((b"content-length".to_vec(), length.to_string().into_bytes()));
        }
        _ => {
            let name = HeaderName::from_bytes(name).ok().filter(|name| !name.as_str().contains('"'))?;
            let value = HeaderValue::from_bytes(trimmed).ok()?;
            encoder.field(out, &name, &value);
            return Some((name.as_str().as_bytes().to_vec(), trimmed.to_vec()));
        }
    }
    Some((name.to_vec(), trimmed.to_vec()))
}
