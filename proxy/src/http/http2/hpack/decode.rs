//! Header blocks as a peer sends them, to field lines. Pure.

use http::{HeaderName, HeaderValue};

use super::{
    HpackFault, TABLE_BYTES, huffman,
    table::{Dynamic, Field, Name, STATIC, STATIC_ENTRIES, entry_bytes},
};

/// Reads the header blocks of one direction of a connection, in the order they come.
#[derive(Debug)]
pub struct Decoder {
    table: Dynamic<Entry>,
    /// For strings that have to be decoded.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: Dynamic::new(TABLE_BYTES), name: Vec::new(), value: Vec::new() }
    }
}

/// A line that is remembered.
///
/// Names and values that HTTP does not allow stand for nothing, but count as long as they were: what falls out of the table when must
/// be the same at both ends.
#[derive(Clone, Debug)]
struct Entry {
    name: Name,
    name_bytes: usize,
    /// `None`: not one that HTTP allows.
    value: Option<HeaderValue>,
    bytes: usize,
}

/// What is left of a block.
struct Rest<'a>(&'a [u8]);

impl Decoder {
    /// Bytes in the table, as RFC 7541 §4.1 counts them.
    pub const fn table_bytes(&self) -> usize {
        self.table.bytes()
    }

    /// Reads a whole block and hands its lines on, each with its size as RFC 9113 §6.5.2 counts it for the limit of a header list.
    ///
    /// # Errors
    /// Where it breaks RFC 7541. Lines that only break HTTP are handed on as [`Name::Malformed`].
    pub fn decode(&mut self, block: &[u8], mut take: impl FnMut(Field, usize)) -> Result<(), HpackFault> {
        let mut rest = Rest(block);
        let mut begun = false;
        while let Some(first) = rest.peek() {
            if first & 0x80 != 0 {
                // §6.1: a line that is known.
                let index = rest.number(7)?;
                let (field, bytes) = self.known(index)?;
                take(field, bytes);
            } else if first & 0xe0 == 0x20 {
                // §6.3: the table changes its size; §4.2: at the beginning of a block.
                let limit = rest.number(5)?;
                if begun || limit > TABLE_BYTES {
                    return Err(HpackFault::TableSize);
                }
                self.table.resize(limit, drop);
                continue;
            } else {
                // §6.2: a line of its own, to be remembered (6.2.1) or not (6.2.2, 6.2.3).
                let remember = first & 0x40 != 0;
                let index = rest.number(if remember { 6 } else { 4 })?;
                let entry = self.literal(&mut rest, index)?;
                let bytes = entry.bytes;
                if remember {
                    self.table.add(entry.clone(), bytes, drop);
                }
                take(entry.field(), bytes);
            }
            begun = true;
        }
        Ok(())
    }

    fn known(&self, index: usize) -> Result<(Field, usize), HpackFault> {
        let behind = index.checked_sub(1).ok_or(HpackFault::Index)?;
        if let Some(field) = STATIC.get(behind) {
            return Ok((field.clone(), entry_bytes(name_bytes(&field.name), field.value.len())));
        }
        let entry = behind.checked_sub(STATIC_ENTRIES).and_then(|age| self.table.get(age)).ok_or(HpackFault::Index)?;
        Ok((entry.clone().field(), entry.bytes))
    }

    /// A name that is known, and its length.
    fn known_name(&self, index: usize) -> Result<(Name, usize), HpackFault> {
        let behind = index.checked_sub(1).ok_or(HpackFault::Index)?;
        if let Some(field) = STATIC.get(behind) {
            return Ok((field.name.clone(), name_bytes(&field.name)));
        }
        let entry = behind.checked_sub(STATIC_ENTRIES).and_then(|age| self.table.get(age)).ok_or(HpackFault::Index)?;
        Ok((entry.name.clone(), entry.name_bytes))
    }

    fn literal(&mut self, rest: &mut Rest<'_>, index: usize) -> Result<Entry, HpackFault> {
        let (name, name_bytes) = if index == 0 {
            let name = rest.string(&mut self.name)?;
            (read_name(name), name.len())
        } else {
            self.known_name(index)?
        };
        let value = rest.string(&mut self.value)?;
        Ok(Entry { name, name_bytes, value: read_value(value), bytes: entry_bytes(name_bytes, value.len()) })
    }
}

impl Entry {
    fn field(self) -> Field {
        match self.value {
            Some(value) => Field { name: self.name, value },
            None => Field { name: Name::Malformed, value: HeaderValue::from_static("") },
        }
    }
}

fn name_bytes(name: &Name) -> usize {
    match name {
        Name::Authority => ":authority".len(),
        Name::Method => ":method".len(),
        Name::Path => ":path".len(),
        Name::Protocol => ":protocol".len(),
        Name::Scheme => ":scheme".len(),
        Name::Status => ":status".len(),
        Name::Field(name) => name.as_str().len(),
        // The static table has none.
        Name::Malformed => 0,
    }
}

fn read_name(name: &[u8]) -> Name {
    match name {
        b":authority" => Name::Authority,
        b":method" => Name::Method,
        b":path" => Name::Path,
        b":protocol" => Name::Protocol,
        b":scheme" => Name::Scheme,
        b":status" => Name::Status,
        // RFC 9113 §8.2: "Field names MUST be converted to lowercase".
        // It also lets a quotation mark pass, which is no token to HTTP/1.
        _ if memchr::memchr(b'"', name).is_some() => Name::Malformed,
        _ => HeaderName::from_lowercase(name).map_or(Name::Malformed, Name::Field),
    }
}

/// RFC 9113 §8.2.1: no NUL, CR or LF, no space or tab at either end; beyond that, no control characters, as in HTTP/1.
fn read_value(value: &[u8]) -> Option<HeaderValue> {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if is_space(value.first()) || is_space(value.last()) {
        return None;
    }
    HeaderValue::from_bytes(value).ok()
}

impl<'a> Rest<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn byte(&mut self) -> Result<u8, HpackFault> {
        let (first, rest) = self.0.split_first().ok_or(HpackFault::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number that begins in the low `bits` of the next byte (§5.1).
    fn number(&mut self, bits: u32) -> Result<usize, HpackFault> {
        /// Nothing that we would ever take needs more.
        const MOST_BITS: u32 = 28;
        let mask = !u8::MAX.unbounded_shl(bits);
        let first = self.byte()? & mask;
        let mut number = usize::from(first);
        if first < mask {
            return Ok(number);
        }
        for shift in (0..MOST_BITS).step_by(7) {
            let byte = self.byte()?;
            number = number.saturating_add(usize::from(byte & 0x7f).unbounded_shl(shift));
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(HpackFault::Number)
    }

    /// A string (§5.2), decoded into `plain` if need be.
    fn string<'b>(&mut self, plain: &'b mut Vec<u8>) -> Result<&'b [u8], HpackFault>
    where
        'a: 'b,
    {
        let coded = self.peek().ok_or(HpackFault::Truncated)? & 0x80 != 0;
        let length = self.number(7)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(HpackFault::Truncated)?;
        self.0 = rest;
        if !coded {
            return Ok(bytes);
        }
        plain.clear();
        huffman::decode(bytes, plain)?;
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, HpackFault> {
        let mut lines = Vec::new();
        decoder.decode(block, |field, _| {
            let name = match &field.name {
                Name::Field(name) => name.to_string(),
                other => format!("{other:?}"),
            };
            lines.push((name, field.value.to_str().unwrap().to_owned()));
        })?;
        Ok(lines)
    }

    fn hex(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn owned(lines: &[(&str, &str)]) -> Vec<(String, String)> {
        lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // RFC 7541 Appendix C.3 and C.4: three requests on one connection, plain and with Huffman code.
        let expected = [
            owned(&[("Method", "GET"), ("Scheme", "http"), ("Path", "/"), ("Authority", "www.example.com")]),
            owned(&[
                ("Method", "GET"),
                ("Scheme", "http"),
                ("Path", "/"),
                ("Authority", "www.example.com"),
                ("cache-control", "no-cache"),
            ]),
            owned(&[
                ("Method", "GET"),
                ("Scheme", "https"),
                ("Path", "/index.html"),
                ("Authority", "www.example.com"),
                ("custom-key", "custom-value"),
            ]),
        ];
        for blocks in [
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
        ] {
            let mut decoder = Decoder::default();
            for (block, expected) in blocks.iter().zip(&expected) {
                assert_eq!(read(&mut decoder, &hex(block)).as_ref(), Ok(expected));
            }
        }
    }

    #[test]
    fn a_small_table_forgets_the_oldest() {
        // RFC 7541 Appendix C.5: responses with a table of 256 bytes; a decoder that forgets otherwise mixes fields up.
        let mut decoder = Decoder::default();
        let mut first = hex("3fe101");
        first
            .extend(hex("4803333032 580770726976617465 611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54
             6e1768747470733a2f2f7777772e6578616d706c652e636f6d"));
        assert_eq!(read(&mut decoder, &first).unwrap().len(), 4);
        let second = read(&mut decoder, &hex("4803333037c1c0bf")).unwrap();
        assert_eq!(second[0], ("Status".to_owned(), "307".to_owned()));
        assert_eq!(second[3], ("location".to_owned(), "https://www.example.com".to_owned()));
        // ":status: 302" was the oldest and is gone: index 65 is now cache-control.
        assert_eq!(read(&mut decoder, &hex("c1")), Ok(owned(&[("cache-control", "private")])));
    }

    #[test]
    fn blocks_that_break_the_rules_are_refused() {
        for (block, fault) in [
            ("80", HpackFault::Index),
            ("be", HpackFault::Index),
            ("ffffffffff0f", HpackFault::Number),
            ("ff", HpackFault::Truncated),
            ("40", HpackFault::Truncated),
            ("4003616263", HpackFault::Truncated),
            ("400361626305", HpackFault::Truncated),
            ("4081ff00", HpackFault::Huffman),
            ("3fe21f", HpackFault::TableSize),
            ("8220", HpackFault::TableSize),
        ] {
            assert_eq!(read(&mut Decoder::default(), &hex(block)), Err(fault), "{block}");
        }
    }

    #[test]
    fn lines_that_http_does_not_allow_are_marked_and_remembered() {
        // The tables of both ends must stay the same, or the next request on the connection gets fields of another.
        for (name, value) in [
            (&b"Upper"[..], &b"x"[..]),
            (b"sp ace", b"x"),
            (b"quo\"te", b"x"),
            (b":unknown", b"x"),
            (b"", b"x"),
            (b"ok", b"cr\rlf"),
            (b"ok", b"lf\n"),
            (b"ok", b"nul\0"),
            (b"ok", b" led"),
            (b"ok", b"trailed\t"),
        ] {
            let mut block = vec![0x40, u8::try_from(name.len()).unwrap()];
            block.extend_from_slice(name);
            block.push(u8::try_from(value.len()).unwrap());
            block.extend_from_slice(value);
            let mut decoder = Decoder::default();
            for block in [block, hex("be")] {
                let lines = read(&mut decoder, &block).unwrap();
                assert_eq!((lines.len(), lines[0].0.as_str()), (1, "Malformed"), "{name:?} {value:?}");
            }
        }
    }

    #[test]
    fn a_malformed_line_counts_as_long_as_it_is() {
        // Entries would stay that the far side has dropped: every later line on the connection could be one of another request.
        let mut decoder = Decoder::default();
        let mut block = vec![0x40, 20];
        block.extend_from_slice(&[b'N'; 20]);
        block.extend_from_slice(&[1, b'v']);
        // The same name again, and a value that is malformed behind a name that is not.
        block.extend_from_slice(&[0x7e, 2, b'a', b'b', 0x40, 2, b'o', b'k', 1, b'\n']);
        let lines = read(&mut decoder, &block).unwrap();
        assert!(lines.iter().all(|(name, _)| name == "Malformed"), "{lines:?}");
        assert_eq!(decoder.table_bytes(), (20 + 1 + 32) + (20 + 2 + 32) + (2 + 1 + 32));
        // Its name is as good as any.
        assert_eq!(read(&mut decoder, &[0x7e, 1, b'v']), Ok(owned(&[("ok", "v")])));
    }

    proptest! {
        #[test]
        fn no_block_panics(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..4)) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = decoder.decode(&block, |_, _| {});
            }
        }
    }
}
