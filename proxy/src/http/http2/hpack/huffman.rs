//! The Huffman code of header strings (RFC 7541 §5.2, Appendix B); reading only. Pure.
//!
//! We never write it: between two sidecars the bytes it saves cost more than they are worth. The code is canonical: sorted by length
//! and then by symbol, every code is the one before plus one. So the lengths say everything.

use super::HpackFault;

/// Length of each symbol's code in bits; the last symbol is the end of the string, which never stands in one.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
const END: usize = 256;
const LONGEST: usize = 30;

/// Codes up to this are found with one look.
const QUICK_BITS: u32 = 8;

struct Code {
    /// By the next eight bits: symbol and length; length 0: the code is longer.
    quick: [(u8, u8); 1 << QUICK_BITS],
    /// By length: the first code, how many there are, and where their symbols begin.
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    start: [u32; LONGEST + 1],
    /// Sorted by length and value.
    symbols: [u16; 257],
}

static CODE: Code = Code::new();

impl Code {
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "runs while compiling, where a mistake is an error"
    )]
    const fn new() -> Self {
        let mut code = Self {
            quick: [(0, 0); 1 << QUICK_BITS],
            first: [0; LONGEST + 1],
            count: [0; LONGEST + 1],
            start: [0; LONGEST + 1],
            symbols: [0; 257],
        };
        let (mut next, mut place, mut length) = (0_u32, 0_u32, 1);
        while length <= LONGEST {
            next <<= 1;
            code.first[length] = next;
            code.start[length] = place;
            let mut symbol = 0;
            while symbol <= END {
                if LENGTHS[symbol] as usize == length {
                    code.symbols[place as usize] = symbol as u16;
                    if length <= QUICK_BITS as usize {
                        let free = QUICK_BITS - length as u32;
                        let mut view = next << free;
                        while view < (next + 1) << free {
                            code.quick[view as usize] = (symbol as u8, length as u8);
                            view += 1;
                        }
                    }
                    next += 1;
                    place += 1;
                }
                symbol += 1;
            }
            code.count[length] = next - code.first[length];
            length += 1;
        }
        code
    }

    /// The symbol that the leading bits of `view` are, and its length.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "codes have 1 to 30 bits, the window at most 40, and a code is never longer than it"
    )]
    fn look(&self, view: u32) -> Option<(usize, u32)> {
        if let Some((symbol, length)) = self.quick.get((view >> (32 - QUICK_BITS)) as usize)
            && *length > 0
        {
            return Some((usize::from(*symbol), u32::from(*length)));
        }
        let lengths = self.first.iter().zip(&self.count).zip(&self.start).enumerate().skip(QUICK_BITS as usize + 1);
        for (length, ((first, count), start)) in lengths {
            let length = length as u32;
            let behind = (view >> (32 - length)).wrapping_sub(*first);
            if behind < *count {
                return self.symbols.get((start + behind) as usize).map(|symbol| (usize::from(*symbol), length));
            }
        }
        None
    }
}

/// Appends what `coded` means to `plain`.
///
/// # Errors
/// The end symbol, or padding that is longer than seven bits or not all ones.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "codes have 1 to 30 bits, the window at most 40, and a code is never longer than it"
)]
pub fn decode(coded: &[u8], plain: &mut Vec<u8>) -> Result<(), HpackFault> {
    let mut coded = coded.iter();
    let (mut window, mut bits) = (0_u64, 0_u32);
    loop {
        while bits <= 32
            && let Some(byte) = coded.next()
        {
            window = window << 8 | u64::from(*byte);
            bits += 8;
        }
        if bits == 0 {
            return Ok(());
        }
        // What lies behind the last byte reads as ones, like padding.
        let view =
            if bits >= 32 { (window >> (bits - 32)) as u32 } else { (window << (32 - bits)) as u32 | u32::MAX >> bits };
        match CODE.look(view) {
            Some((symbol, length)) if length <= bits && symbol != END => {
                plain.push(symbol as u8);
                bits -= length;
            }
            _ if bits < 8 && view == u32::MAX => return Ok(()),
            _ => return Err(HpackFault::Huffman),
        }
    }
}

#[cfg(test)]
pub(in crate::http::http2) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a peer would send for `plain`.
    pub(in crate::http::http2) fn encode(plain: &[u8]) -> Vec<u8> {
        let (mut bytes, mut window, mut bits) = (Vec::new(), 0_u64, 0);
        for symbol in plain {
            let length = usize::from(LENGTHS[usize::from(*symbol)]);
            let place = CODE.symbols.iter().position(|found| *found == u16::from(*symbol)).unwrap();
            let code = CODE.first[length] + u32::try_from(place).unwrap() - CODE.start[length];
            window = window << length | u64::from(code);
            bits += length;
            while bits >= 8 {
                bits -= 8;
                bytes.push((window >> bits & 0xff) as u8);
            }
        }
        if bits > 0 {
            bytes.push((window << (8 - bits) | 0xff >> bits) as u8);
        }
        bytes
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, HpackFault> {
        let mut plain = Vec::new();
        decode(coded, &mut plain).map(|()| plain)
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // RFC 7541 Appendix C.4 and C.6: with a wrong table every browser and gRPC client would be refused.
        for (coded, plain) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("aec3771a4b", "private"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
        ] {
            let bytes: Vec<u8> =
                (0..coded.len()).step_by(2).map(|at| u8::from_str_radix(&coded[at..at + 2], 16).unwrap()).collect();
            assert_eq!(decoded(&bytes), Ok(plain.as_bytes().to_vec()), "{plain}");
            assert_eq!(encode(plain.as_bytes()), bytes, "{plain}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        // RFC 7541 §5.2: padding longer than seven bits, padding that is not ones, the end symbol.
        for coded in [&[0xff][..], &[0x1f, 0xff], &[0x00], &[0xff, 0xff, 0xff, 0xff], &[0xff, 0xff, 0xff, 0xfc]] {
            assert_eq!(decoded(coded), Err(HpackFault::Huffman), "{coded:x?}");
        }
        assert_eq!(decoded(&[0x07]), Ok(b"0".to_vec()));
        assert_eq!(decoded(&[]), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn all_bytes_come_back(plain in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(decoded(&encode(&plain)), Ok(plain));
        }

        #[test]
        fn no_bytes_panic(coded in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decoded(&coded);
        }
    }
}
