//! The one spelling of a path. Pure.

use std::borrow::Cow;

use super::Violation;

/// Istio's BASE: backslash is a slash, unreserved characters are not escaped, dot segments are resolved. Slashes are not merged,
/// and escapes of reserved characters and broken escapes stay as they are. Doing it twice changes nothing.
pub(super) fn normalize_path(path: &str) -> Result<Cow<'_, str>, Violation> {
    if !path.contains(['%', '\\']) && !path.contains("/.") {
        return Ok(Cow::Borrowed(path));
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(character) = rest.chars().next() {
        let after = rest.get(character.len_utf8()..).unwrap_or_default();
        match (character, escaped(after)) {
            ('%', Some(0)) => return Err(Violation::TargetNul),
            // RFC 3986 §6.2.2.2: escapes of unreserved characters mean the character. Behind a broken escape it stays,
            // or it would make a whole one of it.
            ('%', Some(byte)) if is_unreserved(byte) && !ends_in_broken_escape(&decoded) => {
                decoded.push(char::from(byte));
                rest = after.get(2..).unwrap_or_default();
                continue;
            }
            ('\\', _) => decoded.push('/'),
            (other, _) => decoded.push(other),
        }
        rest = after;
    }
    let normal = remove_dot_segments(&decoded);
    Ok(if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) })
}

/// The byte that two hex digits at the start stand for.
fn escaped(text: &str) -> Option<u8> {
    let digits = text.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
    u8::from_str_radix(digits, 16).ok()
}

fn ends_in_broken_escape(text: &str) -> bool {
    match text.as_bytes() {
        [.., b'%'] => true,
        [.., b'%', digit] => digit.is_ascii_hexdigit(),
        _ => false,
    }
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §5.2.4, for a path that begins with a slash.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in kept {
        normal.push('/');
        normal.push_str(segment);
    }
    normal
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a01_normalising_twice_changes_nothing(path in "/[a./%\\\\2eE50;-]{0,24}") {
            // The next sidecar, which normalises again, would see another path than the rules here did.
            if let Ok(once) = normalize_path(&path) {
                prop_assert!(once.starts_with('/'));
                let segments: Vec<_> = once.split('/').collect();
                prop_assert!(!segments.contains(&".") && !segments.contains(&".."), "{once}");
                let twice = normalize_path(&once).unwrap();
                prop_assert_eq!(&*twice, &*once);
            }
        }
    }
}
