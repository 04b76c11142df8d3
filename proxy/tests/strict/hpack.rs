//! Header blocks of HTTP/2 (RFC 7541): a reader with its own tables, for what our proxies write.

use std::collections::VecDeque;

use super::{Unsafe, no};

/// Name and value as they stand in the block.
pub type Line = (Vec<u8>, Vec<u8>);

/// What the blocks of one connection have put into the table, newest first.
#[derive(Debug)]
pub struct Table {
    lines: VecDeque<Line>,
    limit: usize,
}

/// RFC 7541 §4.2; a reader that asks for nothing else gets no more.
const GREATEST_TABLE: usize = 4096;

impl Default for Table {
    fn default() -> Self {
        Self { lines: VecDeque::new(), limit: GREATEST_TABLE }
    }
}

impl Table {
    /// All lines of one block.
    pub fn read(&mut self, mut block: &[u8]) -> Result<Vec<Line>, Unsafe> {
        let mut lines = Vec::new();
        while let Some(first) = block.first().copied() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                lines.push(self.line(index)?);
            } else if first & 0xe0 == 0x20 {
                self.limit = integer(&mut block, 5)?;
                if self.limit > GREATEST_TABLE || !lines.is_empty() {
                    return no("a table size that must not be there");
                }
                self.shrink();
            } else {
                let keeps = first & 0x40 != 0;
                let index = integer(&mut block, if keeps { 6 } else { 4 })?;
                let name = if index == 0 { text(&mut block)? } else { self.line(index)?.0 };
                let line = (name, text(&mut block)?);
                if keeps {
                    self.lines.push_front(line.clone());
                    self.shrink();
                }
                lines.push(line);
            }
        }
        Ok(lines)
    }

    fn line(&self, index: usize) -> Result<Line, Unsafe> {
        let known = index.checked_sub(1).and_then(|place| STATIC.get(place));
        let known = known.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        match known.or_else(|| self.lines.get(index.checked_sub(STATIC.len() + 1)?).cloned()) {
            Some(line) => Ok(line),
            None => no(format!("index {index} is not in the table")),
        }
    }

    fn shrink(&mut self) {
        while self.lines.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>() > self.limit {
            self.lines.pop_back();
        }
    }
}

fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Unsafe> {
    let mask = (1_usize << bits) - 1;
    let mut take = || match block.split_first() {
        Some((byte, rest)) => {
            *block = rest;
            Ok(usize::from(*byte))
        }
        None => no("a header block that breaks off"),
    };
    let mut value = take()? & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = take()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    no("a number that is too long")
}

fn text(block: &mut &[u8]) -> Result<Vec<u8>, Unsafe> {
    let coded = block.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = integer(block, 7)?;
    let Some((text, rest)) = block.split_at_checked(length) else { return no("a text that breaks off") };
    *block = rest;
    if coded { huffman(text) } else { Ok(text.to_vec()) }
}

/// RFC 7541 §5.2: the code is canonical, so its lengths say it all.
fn huffman(coded: &[u8]) -> Result<Vec<u8>, Unsafe> {
    let mut symbols: Vec<usize> = (0..LENGTHS.len()).collect();
    symbols.sort_by_key(|symbol| LENGTHS[*symbol]);
    let mut text = Vec::new();
    let (mut code, mut length) = (0_u32, 0_u8);
    for bit in coded.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        code = code << 1 | u32::from(bit);
        length += 1;
        if length > 30 {
            return no("a code that is too long");
        }
        let (mut next, mut at) = (0_u32, 0_u8);
        for symbol in &symbols {
            next <<= LENGTHS[*symbol] - at;
            at = LENGTHS[*symbol];
            if at == length && next == code {
                text.push(u8::try_from(*symbol).unwrap_or_default());
                (code, length) = (0, 0);
                break;
            }
            if at > length {
                break;
            }
            next += 1;
        }
    }
    if length > 7 || code != (1 << length) - 1 {
        return no("a padding that is none");
    }
    Ok(text)
}

/// RFC 7541 appendix B: bits of each byte's code.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// RFC 7541 appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
