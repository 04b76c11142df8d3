//! When a certificate ends. Pure.
//!
//! Reads just far enough into the DER (RFC 5280 §4.1) of our own leaf to plan its renewal. It decides nothing about
//! trust: peers' certificates are judged by webpki.

use std::time::{Duration, SystemTime};

/// The `notAfter` of a certificate; `None` when it cannot be read or lies before 1970.
pub(super) fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version OPTIONAL, serialNumber, signature, issuer,
    //     validity SEQUENCE { notBefore, notAfter }, .. }, .. }
    let (tbs, _) = expect(SEQUENCE, certificate)?;
    let (mut rest, _) = expect(SEQUENCE, tbs)?;
    if let Some((_, after)) = expect(VERSION, rest) {
        rest = after;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        rest = expect(tag, rest)?.1;
    }
    let (validity, _) = expect(SEQUENCE, rest)?;
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    let seconds = match tag {
        UTC_TIME => {
            // RFC 5280 §4.1.2.5.1: 50 and later means 19xx.
            let (year, rest) = digits(text, 2)?;
            seconds(if year >= 50 { 1900 + year } else { 2000 + year }, rest)?
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits(text, 4)?;
            seconds(year, rest)?
        }
        _ => return None,
    };
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// Tag, content and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, short], rest) = der.split_first_chunk()?;
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        0x81 => rest.split_first().map(|(byte, rest)| (usize::from(*byte), rest))?,
        0x82 => rest.split_first_chunk().map(|(bytes, rest)| (usize::from(u16::from_be_bytes(*bytes)), rest))?,
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn expect(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    element(der).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

fn digits(text: &[u8], count: usize) -> Option<(u64, &[u8])> {
    let (digits, rest) = text.split_at_checked(count)?;
    let number = digits
        .iter()
        .try_fold(0, |number: u64, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))?;
    Some((number, rest))
}

/// Seconds since 1970 of "MMDDHHMMSSZ" in a year; RFC 5280 allows no other form.
fn seconds(year: u64, text: &[u8]) -> Option<u64> {
    let (month, text) = digits(text, 2)?;
    let (day, text) = digits(text, 2)?;
    let (hour, text) = digits(text, 2)?;
    let (minute, text) = digits(text, 2)?;
    let (second, text) = digits(text, 2)?;
    if text != b"Z" || !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years that begin in March put the leap day last: days before a month are then one formula.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_to_year = year * 365 + year / 4 - year / 100 + year / 400;
    let days = days_to_year + (153 * month + 2) / 5 + day - 1;
    let days_to_1970 = 719_468;
    Some(((days - days_to_1970) * 24 + hour) * 3600 + minute * 60 + second)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(year: i32, month: u8, day: u8) -> Vec<u8> {
        let mut parameters = rcgen::CertificateParams::new(vec!["a.test".into()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, month, day);
        let key = rcgen::KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_exactly() {
        // The certificate would be renewed too late, and every peer refuse us for a while.
        for (year, month, day, expected) in [
            (2026, 11, 20, 1_795_132_800),
            (2000, 2, 29, 951_782_400),
            (2024, 2, 29, 1_709_164_800),
            (2024, 3, 1, 1_709_251_200),
            (2049, 12, 31, 2_524_521_600),
            (2050, 1, 1, 2_524_608_000),
            (2100, 3, 1, 4_107_542_400),
        ] {
            let found = not_after(&certificate(year, month, day)).unwrap();
            let found = found.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            assert_eq!(found, expected, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        // A damaged file would stop the process instead of giving a message.
        let whole = certificate(2030, 1, 1);
        for end in 0..whole.len() {
            assert_eq!(not_after(&whole[..end]), None, "{end}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(position in 0usize..400, byte: u8, noise: Vec<u8>) {
            // The same, for damage in the middle.
            let _ = not_after(&noise);
            let mut der = certificate(2030, 1, 1);
            if let Some(place) = der.get_mut(position) {
                *place = byte;
            }
            let _ = not_after(&der);
        }
    }
}
