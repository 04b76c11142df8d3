//! A reader of header blocks as RFC 7541 is written: slow, plain, and without a line of the proxy's but its Huffman code.

use outrigger_proxy::http::http2::hpack::{huffman, table};

/// The entry overhead of §4.1, and the greatest table that we agree to.
const OVERHEAD: usize = 32;
const MOST: usize = 4096;

pub type Line = (Vec<u8>, Vec<u8>);

/// The table of one direction, the newest entry first.
#[derive(Clone)]
pub struct Reader {
    entries: Vec<Line>,
    limit: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self { entries: Vec::new(), limit: MOST }
    }
}

impl Reader {
    /// Bytes in the table, as both ends count them.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD).sum()
    }

    /// The lines before a fault, and whether there is one.
    pub fn read(&mut self, mut block: &[u8]) -> (Vec<Line>, bool) {
        let mut lines = Vec::new();
        let mut begun = false;
        while let Some(first) = block.first().copied() {
            let Some(line) = self.step(first, &mut block, begun) else { return (lines, false) };
            begun |= line.is_some();
            lines.extend(line);
        }
        (lines, true)
    }

    /// `None`: a fault; inside, nothing: the table changed its size.
    fn step(&mut self, first: u8, block: &mut &[u8], begun: bool) -> Option<Option<Line>> {
        if first >= 0x80 {
            let index = number(block, 7)?;
            return Some(Some(self.entry(index)?));
        }
        if first >> 5 == 1 {
            let limit = number(block, 5)?;
            if begun || limit > MOST {
                return None;
            }
            self.limit = limit;
            self.evict(0);
            return Some(None);
        }
        let remember = first >> 6 == 1;
        let index = number(block, if remember { 6 } else { 4 })?;
        let name = if index == 0 { string(block)? } else { self.entry(index)?.0 };
        let value = string(block)?;
        if remember {
            let bytes = name.len() + value.len() + OVERHEAD;
            self.evict(bytes);
            if bytes <= self.limit {
                self.entries.insert(0, (name.clone(), value.clone()));
            }
        }
        Some(Some((name, value)))
    }

    /// Makes room for so many bytes, or as much as there can be.
    fn evict(&mut self, bytes: usize) {
        while !self.entries.is_empty() && self.bytes() + bytes > self.limit {
            self.entries.pop();
        }
    }

    fn entry(&self, index: usize) -> Option<Line> {
        let known = table::STATIC.get(index.checked_sub(1)?).map(|field| {
            let name = match &field.name {
                table::Name::Authority => ":authority",
                table::Name::Method => ":method",
                table::Name::Path => ":path",
                table::Name::Scheme => ":scheme",
                table::Name::Status => ":status",
                table::Name::Field(name) => name.as_str(),
                other => panic!("{other:?} in the static table"),
            };
            (name.as_bytes().to_vec(), field.value.as_bytes().to_vec())
        });
        known.or_else(|| self.entries.get(index - 1 - table::STATIC_ENTRIES).cloned())
    }
}

/// §5.1. Nobody needs more than four further bytes.
fn number(block: &mut &[u8], bits: u32) -> Option<usize> {
    let mut bytes = block.iter();
    let most = (1_u64 << bits) - 1;
    let mut value = u64::from(*bytes.next()?) & most;
    if value == most {
        for further in 0.. {
            let byte = *bytes.next()?;
            value += u64::from(byte & 0x7f) << (7 * further);
            if byte < 0x80 {
                break;
            }
            if further == 3 {
                return None;
            }
        }
    }
    *block = bytes.as_slice();
    usize::try_from(value).ok()
}

/// §5.2.
fn string(block: &mut &[u8]) -> Option<Vec<u8>> {
    let coded = *block.first()? >= 0x80;
    let length = number(block, 7)?;
    let bytes = block.get(..length)?;
    *block = &block[length..];
    if !coded {
        return Some(bytes.to_vec());
    }
    let mut plain = Vec::new();
    huffman::decode(bytes, &mut plain).ok()?;
    Some(plain)
}
