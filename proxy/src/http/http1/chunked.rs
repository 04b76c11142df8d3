//! Chunked content (RFC 9112 §7.1), read as it arrives. Pure.
//!
//! Extensions are read and dropped: nobody uses them, and what is passed on is a way to say different things to different readers.
//! Line ends are CRLF only; sizes are hexadecimal digits and nothing else.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::{
    fault::Fault,
    head::{self, HeadLimits, Scan},
};

/// Bounds of what surrounds the content.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLimits {
    /// All extensions of one body together.
    pub extension_bytes: usize,
    pub trailers: HeadLimits,
}

/// Where in the content the reader is.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    extensions: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers(Scan),
    Over,
}

/// The next thing that could be read.
#[derive(Debug)]
pub enum Step {
    Data(Bytes),
    /// Only when there are some; the content is over after them.
    Trailers(HeaderMap),
    Over,
    /// More bytes must come first.
    Starved,
}

/// `chunk-size` has at most these digits: enough for 2^60 bytes, and never an overflow.
const SIZE_DIGITS: usize = 15;

impl Chunked {
    /// Before the first chunk.
    pub const fn start() -> Self {
        Self { state: State::Size, extensions: 0 }
    }

    /// Takes as much as can be taken at once from the front of `received`.
    ///
    /// # Errors
    /// The rule that was broken; nothing behind it can be trusted.
    pub fn step(&mut self, received: &mut BytesMut, limits: &ChunkLimits) -> Result<Step, Fault> {
        loop {
            match &mut self.state {
                State::Size => {
                    let Some(line_bytes) = self.size_line(received, limits)? else { return Ok(Step::Starved) };
                    let line = received.split_to(line_bytes);
                    let size = self.size(line.get(..line_bytes.saturating_sub(2)).unwrap_or_default(), limits)?;
                    self.state = if size == 0 { State::Trailers(Scan::default()) } else { State::Data(size) };
                }
                State::Data(left) => {
                    if received.is_empty() {
                        return Ok(Step::Starved);
                    }
                    let take = received.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= take as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    return Ok(Step::Data(received.split_to(take).freeze()));
                }
                State::DataEnd => match received.get(..2) {
                    Some(b"\r\n") => {
                        received.advance(2);
                        self.state = State::Size;
                    }
                    None if received.is_empty() || received.as_ref() == b"\r" => return Ok(Step::Starved),
                    _ => return Err(Fault::ChunkEnd),
                },
                State::Trailers(scan) => {
                    if received.starts_with(b"\r\n") {
                        received.advance(2);
                        self.state = State::Over;
                        return Ok(Step::Over);
                    }
                    let end = head::find_end(received, scan, &limits.trailers).map_err(trailer_fault)?;
                    let Some(end) = end else { return Ok(Step::Starved) };
                    let lines = received.split_to(end).freeze();
                    self.state = State::Over;
                    let (trailers, _) = head::fields(&lines, &lines, &limits.trailers).map_err(trailer_fault)?;
                    return Ok(Step::Trailers(trailers));
                }
                State::Over => return Ok(Step::Over),
            }
        }
    }

    /// Whether everything, trailers included, has been read.
    pub const fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The length of a whole size line with its CRLF.
    fn size_line(&self, received: &[u8], limits: &ChunkLimits) -> Result<Option<usize>, Fault> {
        let most = SIZE_DIGITS + limits.extension_bytes.saturating_sub(self.extensions) + 2;
        match memchr::memchr(b'\n', received.get(..received.len().min(most)).unwrap_or_default()) {
            Some(0) => Err(Fault::BareLineFeed),
            Some(feed) if received.get(feed - 1) != Some(&b'\r') => Err(Fault::BareLineFeed),
            Some(feed) => Ok(Some(feed + 1)),
            None if received.len() >= most => Err(Fault::ChunkExtensions),
            None => Ok(None),
        }
    }

    fn size(&mut self, line: &[u8], limits: &ChunkLimits) -> Result<u64, Fault> {
        let digits_end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let (digits, extension) = line.split_at_checked(digits_end).ok_or(Fault::ChunkSize)?;
        if digits.is_empty() || digits.len() > SIZE_DIGITS {
            return Err(Fault::ChunkSize);
        }
        match extension.first() {
            None => {}
            Some(b';') => {
                self.extensions += extension.len();
                if self.extensions > limits.extension_bytes {
                    return Err(Fault::ChunkExtensions);
                }
                if extension.iter().any(|byte| *byte != b'\t' && (*byte < b' ' || *byte == 0x7f)) {
                    return Err(Fault::ChunkSize);
                }
            }
            Some(_) => return Err(Fault::ChunkSize),
        }
        let text = std::str::from_utf8(digits).map_err(|_| Fault::ChunkSize)?;
        u64::from_str_radix(text, 16).map_err(|_| Fault::ChunkSize)
    }
}

const fn trailer_fault(fault: Fault) -> Fault {
    match fault {
        Fault::HeadTooLong | Fault::TooManyFields => Fault::TrailersTooLarge,
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: ChunkLimits =
        ChunkLimits { extension_bytes: 16, trailers: HeadLimits { bytes: 64, fields: 2, target_bytes: 0 } };

    /// Content, trailer lines, bytes left over; fed in pieces that end at `cuts`.
    fn read(text: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, usize, usize), Fault> {
        let mut reader = Chunked::start();
        let mut received = BytesMut::new();
        let (mut content, mut trailers) = (Vec::new(), 0);
        let mut from = 0;
        for to in cuts.iter().copied().chain([text.len()]) {
            received.extend_from_slice(&text[from..to.max(from)]);
            from = to.max(from);
            loop {
                match reader.step(&mut received, &LIMITS)? {
                    Step::Data(data) => content.extend_from_slice(&data),
                    Step::Trailers(fields) => trailers = fields.len(),
                    Step::Over | Step::Starved => break,
                }
            }
        }
        assert!(reader.is_over(), "not over: {}", String::from_utf8_lossy(text));
        Ok((content, trailers, received.len()))
    }

    #[test]
    fn content_comes_out_whole_wherever_it_is_cut() {
        // A chunk header in two packets would be read as content.
        let text = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\na: b\r\n\r\nnext";
        for cut in 0..text.len() {
            let (content, trailers, left) = read(text, &[cut]).unwrap();
            assert_eq!((content.as_slice(), trailers, left), (b"abc0123456789".as_slice(), 1, 4), "{cut}");
        }
        assert_eq!(read(b"0\r\n\r\n", &[]).unwrap(), (vec![], 0, 0));
    }

    #[test]
    fn every_doubtful_chunk_is_refused() {
        // What one reader takes for the end of a chunk, another takes for content: that is a smuggled request.
        for (text, fault) in [
            (b"3\nabc\r\n0\r\n\r\n".as_slice(), Fault::BareLineFeed),
            (b"3\r\nabc\n0\r\n\r\n", Fault::ChunkEnd),
            (b"3\r\nabcd\r\n0\r\n\r\n", Fault::ChunkEnd),
            (b"3\r\nabcX", Fault::ChunkEnd),
            (b"\r\n", Fault::ChunkSize),
            (b"\n", Fault::BareLineFeed),
            (b"x\r\n", Fault::ChunkSize),
            (b"0x3\r\nabc\r\n", Fault::ChunkSize),
            (b"+3\r\nabc\r\n", Fault::ChunkSize),
            (b" 3\r\nabc\r\n", Fault::ChunkSize),
            (b"3 \r\nabc\r\n", Fault::ChunkSize),
            (b"3 ;a\r\nabc\r\n", Fault::ChunkSize),
            (b"3_0\r\n", Fault::ChunkSize),
            (b"3;a\x00b\r\nabc\r\n", Fault::ChunkSize),
            (b"3;a\rb\r\nabc\r\n", Fault::ChunkSize),
            (b"1000000000000000\r\n", Fault::ChunkSize),
            (b"3;12345678901234567\r\nabc\r\n", Fault::ChunkExtensions),
            (b"3;123456789\r\nabc\r\n3;123456789\r\nabc\r\n", Fault::ChunkExtensions),
            (b"3;1234567890123456789012345678901234567890", Fault::ChunkExtensions),
            (b"0\r\na: b\n\r\n", Fault::BareLineFeed),
            (b"0\r\n a: b\r\n\r\n", Fault::FoldedField),
            (b"0\r\na:1\r\nb:2\r\nc:3\r\n\r\n", Fault::TrailersTooLarge),
            (
                b"0\r\na: 0123456789012345678901234567890123456789012345678901234567890123456789",
                Fault::TrailersTooLarge,
            ),
        ] {
            for cut in 0..text.len() {
                assert_eq!(read(text, &[cut]).err(), Some(fault), "{} at {cut}", String::from_utf8_lossy(text));
            }
        }
    }

    proptest! {
        /// Whatever the sizes and wherever the stream is cut: the same bytes come out, and nothing is taken from what follows.
        #[test]
        fn content_survives_chunking(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            mut cuts in prop::collection::vec(0_usize..200, 0..6),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\nrest");
            cuts.retain(|cut| *cut < text.len());
            cuts.sort_unstable();
            prop_assert_eq!(read(&text, &cuts).unwrap(), (chunks.concat(), 0, 4));
        }
    }
}
