//! Single values as users write them: durations, names, hosts, paths, header names, regular expressions. Pure.

use std::time::Duration;

/// Longest duration that is accepted: about 31 years, so that no sum of them overflows.
const LONGEST: Duration = Duration::from_secs(1_000_000_000);

/// How a field writes durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DurationStyle {
    /// GEP-2257: up to four whole numbers of at most five digits with h, m, s or ms.
    Gateway,
    /// Go's: fractions, and also us and ns.
    Go,
}

impl DurationStyle {
    /// Reads a duration.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(crate) fn parse(self, text: &str) -> Result<Duration, &'static str> {
        match self {
            Self::Gateway => gateway_duration(text),
            Self::Go => go_duration(text),
        }
    }
}

fn gateway_duration(text: &str) -> Result<Duration, &'static str> {
    // GEP-2257: "^([0-9]{1,5}(h|m|s|ms)){1,4}$"
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        parts += 1;
        if parts > 4 {
            return Err("it has more than four parts");
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        if digits == 0 {
            return Err("a whole number is missing");
        }
        if digits > 5 {
            return Err("a number has more than five digits");
        }
        let number: u64 = number.parse().map_err(|_| "a number is too large")?;
        let (unit_ms, tail) = if let Some(tail) = tail.strip_prefix("ms") {
            (1, tail)
        } else if let Some(tail) = tail.strip_prefix('s') {
            (1_000, tail)
        } else if let Some(tail) = tail.strip_prefix('m') {
            (60_000, tail)
        } else if let Some(tail) = tail.strip_prefix('h') {
            (3_600_000, tail)
        } else {
            return Err("a unit is missing (h, m, s, ms)");
        };
        total = total.saturating_add(Duration::from_millis(number.saturating_mul(unit_ms)));
        rest = tail;
    }
    if parts == 0 { Err("it is empty") } else { Ok(total) }
}

fn go_duration(text: &str) -> Result<Duration, &'static str> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.starts_with('-') {
        return Err("it is negative");
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err("it is empty");
    }
    let mut total_ns: u128 = 0;
    while !rest.is_empty() {
        let length = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, tail) = rest.split_at(length);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err("a number is missing");
        }
        if whole.len() > 12 {
            return Err("a number is too large");
        }
        let units: [(&str, u128); 7] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let unit = units.iter().find_map(|(unit, ns)| tail.strip_prefix(unit).map(|tail| (*ns, tail)));
        let Some((unit_ns, tail)) = unit else { return Err("a unit is missing (h, m, s, ms, us, ns)") };
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| "a number is too large")? };
        total_ns += whole * unit_ns;
        let mut place = unit_ns;
        for digit in fraction.bytes() {
            place /= 10;
            total_ns += u128::from(digit - b'0') * place;
        }
        rest = tail;
    }
    if total_ns > LONGEST.as_nanos() {
        return Err("it is too long");
    }
    u64::try_from(total_ns).map(Duration::from_nanos).map_err(|_| "it is too long")
}

/// The same duration on the wire.
pub(crate) fn to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// Milliseconds of a duration read here, for comparisons.
pub(crate) fn millis(duration: &prost_types::Duration) -> i64 {
    duration.seconds.saturating_mul(1000).saturating_add(i64::from(duration.nanos) / 1_000_000)
}

/// A DNS label (RFC 1123): at most 63 of a-z, 0-9 and `-`, not at the ends.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(legal) && !text.starts_with('-') && !text.ends_with('-')
}

/// Labels joined by dots, at most 253 bytes.
pub(crate) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// The value of a Kubernetes label; may be empty.
pub(crate) fn is_label_value(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
}

/// The name of a Kubernetes label, with or without a prefix.
pub(crate) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns_name)
}

/// A header name (RFC 9110 §5.1: a token).
pub(crate) fn is_header_name(text: &str) -> bool {
    text.len() <= 256 && http::header::HeaderName::from_bytes(text.as_bytes()).is_ok()
}

/// A header value: visible ASCII characters, blanks and tabs (RFC 9110 §5.5 without obs-text).
pub(crate) fn is_header_value(text: &str) -> bool {
    text.len() <= 4096 && http::HeaderValue::from_str(text).is_ok()
}

/// Whether a header frames the message or belongs to one connection, so that no rule may touch it
/// (RFC 9110 §7.6.1, RFC 9112 §6).
pub(crate) fn is_framing(lower_case_name: &str) -> bool {
    matches!(
        lower_case_name,
        "connection"
            | "content-length"
            | "http2-settings"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Whether text can replace a path: absolute, and without query or fragment.
pub(crate) fn is_plain_path(text: &str) -> bool {
    let parsed = http::uri::PathAndQuery::try_from(text);
    text.starts_with('/') && text.len() <= 1024 && !text.contains(['#', '?']) && parsed.is_ok()
}

/// Whether text names whose certificate an endpoint shows: `account`, `namespace/account`, or a SPIFFE id of the form
/// `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
pub(crate) fn is_account(text: &str) -> bool {
    if let Some(id) = text.strip_prefix("spiffe://") {
        let parts: Vec<&str> = id.split('/').collect();
        return matches!(parts.as_slice(), [domain, "ns", namespace, "sa", account]
            if is_dns_name(domain) && is_dns_label(namespace) && is_dns_name(account));
    }
    match text.split_once('/') {
        Some((namespace, account)) => is_dns_label(namespace) && is_dns_name(account),
        None => is_dns_name(text),
    }
}

/// What makes a path one that no canonical request can have; `None` for good ones.
pub(crate) fn path_fault(path: &str) -> Option<&'static str> {
    // httproute_types.go: the same list as the validation rules of HTTPPathMatch.
    let lower = path.to_ascii_lowercase();
    if !path.starts_with('/') {
        Some("it does not start with \"/\"")
    } else if path.contains("//") {
        Some("it contains \"//\"")
    } else if path.split('/').any(|segment| segment == "." || segment == "..") {
        Some("it contains \"/./\" or \"/../\"")
    } else if lower.contains("%2f") {
        Some("it contains an encoded slash")
    } else if path.contains('#') {
        Some("it contains \"#\"")
    } else if path.contains('?') {
        Some("it contains \"?\"; queries are matched by queryParams")
    } else if path.len() > 1024 {
        Some("it is longer than 1024 bytes")
    } else if path.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        Some("it contains a character that must be percent-encoded")
    } else {
        None
    }
}

/// Why a regular expression is refused; `None` for good ones. The sidecar's own answer: it never refuses what passed here.
pub(crate) fn regex_fault(pattern: &str) -> Option<String> {
    outrigger_proxy::route::check_regex(pattern).err().map(|error| error.reason())
}

/// `snake_case` to `lowerCamel`.
pub(crate) fn camel(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    let mut upper = false;
    for letter in name.chars() {
        if letter == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            text.push(letter.to_ascii_uppercase());
        } else {
            text.push(letter);
        }
    }
    text
}

/// The candidate that was probably meant: same but for case, at most a third of its letters wrong, or its beginning missing.
pub(crate) fn nearest<'a>(written: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if written.len() > 64 {
        return None;
    }
    let written = written.to_ascii_lowercase();
    let within = |candidate: &&str| written.len() >= 4 && candidate.to_ascii_lowercase().ends_with(&written);
    let candidates: Vec<&str> = candidates.collect();
    let near = candidates
        .iter()
        .map(|candidate| (distance(&written, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(written.len()) / 3).max(1))
        .min()
        .map(|(_, candidate)| *candidate);
    near.or_else(|| candidates.into_iter().find(within))
}

/// Edits between two texts, where swapping neighbours is one edit.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (row, from) in left.iter().enumerate() {
        let mut next = vec![row + 1];
        for (column, to) in right.iter().enumerate() {
            let mut best = (last[column] + usize::from(from != to)).min(last[column + 1] + 1).min(next[column] + 1);
            if row > 0 && column > 0 && left[row - 1] == *to && right[column - 1] == *from {
                best = best.min(before[column - 1] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut last, next);
    }
    last[right.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_gateway_api() {
        // A timeout that is read wrongly cuts or never cuts a user's requests.
        for (text, ms) in
            [("0s", 0), ("10s", 10_000), ("1h", 3_600_000), ("1m30s", 90_000), ("500ms", 500), ("1h2m3s4ms", 3_723_004)]
        {
            assert_eq!(DurationStyle::Gateway.parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "1.5s", "-1s", "100000s", "1d", "1s1s1s1s1s", " 1s", "1us", "٣s"] {
            assert!(DurationStyle::Gateway.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_of_go() {
        // Istio's fields take fractions and more units.
        for (text, ns) in [
            ("0", 0),
            ("1.5s", 1_500_000_000_u64),
            (".5s", 500_000_000),
            ("100us", 100_000),
            ("7µs", 7_000),
            ("3ns", 3),
            ("1h0.001s", 3_600_001_000_000),
            ("+2m", 120_000_000_000),
        ] {
            assert_eq!(DurationStyle::Go.parse(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
        for text in ["", "1", ".s", "1..5s", "-1s", "9999999999999s", "500000h", "1x"] {
            assert!(DurationStyle::Go.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn near_misses_are_found_and_far_ones_not() {
        // A wrong suggestion is worse than none.
        let words = ["backendRefs", "matches", "filters", "timeouts", "name"];
        for (written, near) in [
            ("backendRef", Some("backendRefs")),
            ("backendrefs", Some("backendRefs")),
            ("match", Some("matches")),
            ("filtres", Some("filters")),
            ("nmae", Some("name")),
            ("retry", None),
            ("x", None),
        ] {
            assert_eq!(nearest(written, words.into_iter()), near, "{written}");
        }
    }

    #[test]
    fn paths_that_no_request_can_have_are_refused() {
        // A rule for such a path would silently never match.
        for good in ["/", "/a", "/a/", "/a.b/c..d", "/%20"] {
            assert_eq!(path_fault(good), None, "{good}");
        }
        for bad in ["", "a", "//", "/a/../b", "/a/.", "/a%2Fb", "/a#b", "/a?b", "/a b", "/é"] {
            assert!(path_fault(bad).is_some(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in ".{0,40}") {
            let _ = DurationStyle::Go.parse(&text);
            let _ = DurationStyle::Gateway.parse(&text);
            let _ = nearest(&text, ["name", "kind"].into_iter());
            let _ = path_fault(&text);
            let _ = regex_fault(&text);
            let _ = camel(&text);
        }
    }
}
