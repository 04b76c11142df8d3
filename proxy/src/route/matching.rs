//! Does one request match? Pure.
//!
//! Asked by `table` for each rule that may decide, always with the normalised request. Meaning: Gateway API
//! (`HTTPRouteMatch`) and Istio's `StringMatch`. The compiled forms are built once, when configuration is decoded;
//! matching never fails and takes time linear in the request, whatever the pattern.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method, request::Parts};
use regex_automata::{meta, util::syntax};

/// One way to look at a value.
#[derive(Clone, Debug)]
pub enum StringMatch {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    /// Whole value, RE2 syntax. Made by [`StringMatch::regex`], which anchors it.
    Regex(Box<meta::Regex>),
    /// Any value.
    Present,
}

/// One way to look at a normalised path (query excluded).
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// Case-sensitive; "/a" and "/a/" are two paths.
    Exact(Box<str>),
    /// Whole segments; stored without a trailing slash ("/" is stored as ""). Made by [`PathMatch::segment_prefix`].
    SegmentPrefix(Box<str>),
    /// Whole path. Made by [`PathMatch::regex`], which anchors it.
    Regex(Box<meta::Regex>),
}

/// All that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct RequestMatch {
    pub path: Option<PathMatch>,
    pub method: Option<Method>,
    pub headers: Vec<(HeaderName, StringMatch)>,
    pub query: Vec<(Box<str>, StringMatch)>,
}

impl RequestMatch {
    /// Whether the request matches.
    pub fn matches(&self, request: &Parts) -> bool {
        self.path.as_ref().is_none_or(|path| path.matches(request.uri.path()))
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.headers.iter().all(|(name, value)| value.matches_header(&request.headers, name))
            && (self.query.is_empty() || self.matches_query(request.uri.query().unwrap_or_default()))
    }

    fn matches_query(&self, query: &str) -> bool {
        self.query
            .iter()
            .all(|(name, value)| query_value(query, name).is_some_and(|found| value.matches(found.as_ref())))
    }
}

impl StringMatch {
    /// A pattern for the whole value.
    ///
    /// # Errors
    /// The pattern is not valid, or larger than a proxy is willing to hold; see [`RegexError`].
    pub fn regex(pattern: &str) -> Result<Self, RegexError> {
        whole_value(pattern).map(|regex| Self::Regex(Box::new(regex)))
    }

    /// Whether one value matches; bytes, because a header need not be text.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => value == exact.as_bytes(),
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_bytes()),
            Self::Regex(regex) => regex.is_match(value),
            Self::Present => true,
        }
    }

    /// Whether a header matches. An absent header never does, not even an empty prefix.
    ///
    /// Several lines of one header are one value, joined by "," without a space, as Envoy joins them
    /// (RFC 9110 §5.3 lets a recipient combine them; it makes white space after the comma optional).
    fn matches_header(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let mut lines = headers.get_all(name).iter();
        let Some(first) = lines.next() else { return false };
        let mut value = Cow::Borrowed(first.as_bytes());
        for line in lines {
            let joined = value.to_mut();
            joined.push(b',');
            joined.extend_from_slice(line.as_bytes());
        }
        self.matches(&value)
    }
}

impl PathMatch {
    /// A pattern for the whole path.
    ///
    /// # Errors
    /// As [`StringMatch::regex`].
    pub fn regex(pattern: &str) -> Result<Self, RegexError> {
        whole_value(pattern).map(|regex| Self::Regex(Box::new(regex)))
    }

    /// A prefix of whole segments; a trailing slash means nothing (Gateway API: "`/abc/` is equal to `/abc`").
    pub fn segment_prefix(prefix: &str) -> Self {
        Self::SegmentPrefix(prefix.strip_suffix('/').unwrap_or(prefix).into())
    }

    /// Whether a path (query excluded) matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::SegmentPrefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// The value of a query parameter, percent-decoded; the first occurrence decides, and "name" is "name=".
///
/// Names are decoded too and compared case-sensitively, so that "%61=1" cannot slip past a rule about "a". A "+" stays a
/// "+" (RFC 3986; only HTML forms read it as a space).
pub(crate) fn query_value<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(key).as_ref() == name.as_bytes()).then(|| percent_decoded(value))
    })
}

/// Undoes percent encoding; what is not "%" and two hexadecimal digits stays as it is.
fn percent_decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escape = match (byte, after) {
            (b'%', [high, low, after @ ..]) => hex_digit(*high).zip(hex_digit(*low)).map(|digits| (digits, after)),
            _ => None,
        };
        rest = if let Some(((high, low), after)) = escape {
            decoded.push(high << 4 | low);
            after
        } else {
            decoded.push(byte);
            after
        };
    }
    Cow::Owned(decoded)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Longest pattern accepted, in bytes. Gateway API allows 1024 for paths and 4096 for header values.
pub const PATTERN_LIMIT_BYTES: usize = 4096;
/// Largest compiled pattern, in bytes: a dozen Unicode classes fit, `\w{1000}` does not.
pub const REGEX_LIMIT_BYTES: usize = 1 << 20;
/// Scratch space that one thread may keep for one pattern, in bytes.
const REGEX_CACHE_BYTES: usize = 256 * 1024;

/// Why a pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    #[error("regex of {length} bytes is too long (hint: at most {PATTERN_LIMIT_BYTES})")]
    TooLong { length: usize },
    #[error("regex {pattern:?} needs more than {REGEX_LIMIT_BYTES} bytes of memory (hint: use smaller repetitions)")]
    TooLarge { pattern: Box<str> },
    #[error("regex {pattern:?} is not valid: {reason} (hint: RE2 syntax; no look-around, no back-references)")]
    Invalid { pattern: Box<str>, reason: Box<str> },
}

impl RegexError {
    /// What is wrong with the pattern, without the pattern: for messages that show it already.
    pub fn reason(&self) -> String {
        match self {
            Self::TooLong { length } => format!("it has {length} bytes, and {PATTERN_LIMIT_BYTES} are allowed"),
            Self::TooLarge { .. } => {
                format!("it needs more than {REGEX_LIMIT_BYTES} bytes of memory (hint: use smaller repetitions)")
            }
            Self::Invalid { reason, .. } => reason.to_string(),
        }
    }
}

/// Whether a sidecar takes this pattern: the one answer, which validation of the user's objects asks for too, so that nothing
/// passes there and is refused here.
///
/// # Errors
/// [`RegexError`].
pub fn check_regex(pattern: &str) -> Result<(), RegexError> {
    whole_value(pattern).map(drop)
}

/// Compiles a pattern for a whole value.
fn whole_value(pattern: &str) -> Result<meta::Regex, RegexError> {
    if pattern.len() > PATTERN_LIMIT_BYTES {
        return Err(RegexError::TooLong { length: pattern.len() });
    }
    let invalid = |reason: String| RegexError::Invalid { pattern: pattern.into(), reason: reason.into() };
    // On its own first: "a)|(b" would be valid between our parentheses and escape the anchors.
    if let Err(error) = syntax::parse(pattern) {
        // The parser's message is a drawing of several lines; its last line says what is wrong.
        let drawing = error.to_string();
        let reason = drawing.lines().last().unwrap_or_default();
        return Err(invalid(reason.strip_prefix("error: ").unwrap_or(reason).to_owned()));
    }
    let mut anchored = format!(r"\A(?:{pattern})\z");
    if syntax::parse(&anchored).is_err() {
        // A comment in verbose mode runs to the end of the line and has swallowed the parenthesis.
        anchored = format!("\\A(?:{pattern}\n)\\z");
    }
    let limits = meta::Config::new()
        .nfa_size_limit(Some(REGEX_LIMIT_BYTES))
        .onepass_size_limit(Some(REGEX_CACHE_BYTES))
        .hybrid_cache_capacity(REGEX_CACHE_BYTES);
    meta::Builder::new().configure(limits).build(&anchored).map_err(|error| match error.size_limit() {
        Some(_) => RegexError::TooLarge { pattern: pattern.into() },
        None => invalid(error.to_string()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{HeaderValue, Request};
    use proptest::prelude::*;

    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn paths_match_as_gateway_api_says() {
        // Reading "/a" as a raw prefix would open "/abc" to whoever may see "/a".
        let prefix = PathMatch::segment_prefix;
        let exact = |path: &str| PathMatch::Exact(path.into());
        let regex = |pattern: &str| PathMatch::regex(pattern).unwrap();
        let cases: [(PathMatch, &[&str], &[&str]); 8] = [
            (exact("/a"), &["/a"], &["/a/", "/A", "/a/b", "/", "/ab"]),
            (exact("/a/"), &["/a/"], &["/a", "/a//"]),
            (prefix("/a"), &["/a", "/a/", "/a/b", "/a//b"], &["/ab", "/A", "/", "/b/a"]),
            (prefix("/a/"), &["/a", "/a/", "/a/b"], &["/ab", "/"]),
            (prefix("/a/b"), &["/a/b", "/a/b/c"], &["/a", "/a/bc", "/a//b"]),
            (prefix("/"), &["/", "/a", "//"], &["*"]),
            (regex("/v[12]"), &["/v1", "/v2"], &["/v3", "/v1/", "x/v1"]),
            (regex("/a|/b/.*"), &["/a", "/b/x"], &["/a/x", "/b", "x/a"]),
        ];
        for (path_match, yes, no) in cases {
            for path in yes {
                assert!(path_match.matches(path), "{path_match:?} should match {path}");
            }
            for path in no {
                assert!(!path_match.matches(path), "{path_match:?} should not match {path}");
            }
        }
    }

    /// What matches and what does not.
    type ValueCase = (StringMatch, &'static [&'static [u8]], &'static [&'static [u8]]);

    #[test]
    fn values_match_whole_and_as_bytes() {
        // A regex that matched anywhere in the value would let "not-admin" pass for "admin".
        let cases: [ValueCase; 6] = [
            (StringMatch::Exact("v1".into()), &[b"v1"], &[b"V1", b"v1 ", b""]),
            (StringMatch::Prefix("v".into()), &[b"v", b"v1"], &[b"1v", b""]),
            (StringMatch::Suffix("1".into()), &[b"1", b"v1"], &[b"1v", b""]),
            (StringMatch::Present, &[b"", b"\xff"], &[]),
            (StringMatch::regex("admin").unwrap(), &[b"admin"], &[b"not-admin", b"admin\n", b"admin2", b""]),
            (StringMatch::regex("a|ab").unwrap(), &[b"a", b"ab"], &[b"b", b"abb", b"a\xff"]),
        ];
        for (string_match, yes, no) in cases {
            for value in yes {
                assert!(string_match.matches(value), "{string_match:?} should match {value:?}");
            }
            for value in no {
                assert!(!string_match.matches(value), "{string_match:?} should not match {value:?}");
            }
        }
    }

    #[test]
    fn a04_header_lines_are_one_value() {
        // Looking at the first line only would let a client hide a value in the second.
        let header = |name: &'static str, value| RequestMatch {
            headers: vec![(HeaderName::from_static(name), value)],
            ..RequestMatch::default()
        };
        let two_lines = request("/", &[("X-Version", "v1"), ("x-version", "v2")]);
        assert!(header("x-version", StringMatch::Exact("v1,v2".into())).matches(&two_lines));
        assert!(!header("x-version", StringMatch::Exact("v1".into())).matches(&two_lines));
        assert!(header("x-version", StringMatch::Suffix("v2".into())).matches(&two_lines));
        assert!(header("x-version", StringMatch::Present).matches(&two_lines));
        assert!(!header("x-other", StringMatch::Present).matches(&two_lines));
        assert!(!header("x-other", StringMatch::Prefix("".into())).matches(&two_lines), "absent is not empty");

        let mut not_text = request("/", &[]);
        not_text.headers.insert("x-raw", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        assert!(!header("x-raw", StringMatch::regex(".*").unwrap()).matches(&not_text), "no text, no pattern");
        assert!(header("x-raw", StringMatch::Present).matches(&not_text));
    }

    #[test]
    fn query_parameters_match_decoded_and_first() {
        // An undecoded comparison could be passed by writing "%61dmin".
        let cases = [
            ("/?a=1", "a", "1", true),
            ("/?A=1", "a", "1", false),
            ("/?b=2&a=1", "a", "1", true),
            ("/?a=2&a=1", "a", "1", false),
            ("/?a=1&a=2", "a", "1", true),
            ("/?a=%31", "a", "1", true),
            ("/?%61=1", "a", "1", true),
            ("/?a=x%20y", "a", "x y", true),
            ("/?a=x+y", "a", "x+y", true),
            ("/?a=%zz%4", "a", "%zz%4", true),
            ("/?a=b=c", "a", "b=c", true),
            ("/?a", "a", "", true),
            ("/?ab=1", "a", "1", false),
            ("/", "a", "", false),
            ("/?", "a", "", false),
        ];
        for (uri, name, value, expected) in cases {
            let query = vec![(name.into(), StringMatch::Exact(value.into()))];
            let request_match = RequestMatch { query, ..RequestMatch::default() };
            assert_eq!(request_match.matches(&request(uri, &[])), expected, "{uri} {name}={value}");
        }
    }

    #[test]
    fn all_that_is_set_must_hold() {
        // A match with method and path that held for either would route every POST to the admin backend.
        let request_match = RequestMatch {
            path: Some(PathMatch::segment_prefix("/a")),
            method: Some(Method::GET),
            headers: vec![
                (HeaderName::from_static("one"), StringMatch::Exact("1".into())),
                (HeaderName::from_static("two"), StringMatch::Present),
            ],
            query: vec![("q".into(), StringMatch::Present)],
        };
        let both = [("one", "1"), ("two", "2")];
        assert!(request_match.matches(&request("/a/b?q", &both)));
        assert!(!request_match.matches(&request("/b?q", &both)));
        assert!(!request_match.matches(&request("/a", &both)));
        assert!(!request_match.matches(&request("/a?q", &both[..1])));
        let mut post = request("/a?q", &both);
        post.method = Method::POST;
        assert!(!request_match.matches(&post));
        assert!(RequestMatch::default().matches(&post), "nothing set matches everything");
    }

    #[test]
    fn bad_patterns_are_refused_with_the_reason() {
        // A pattern that eats the memory of every proxy, or crashes it, must stop at the control plane's nack.
        let too_long = "a".repeat(PATTERN_LIMIT_BYTES + 1);
        assert!(matches!(PathMatch::regex(&too_long), Err(RegexError::TooLong { length: 4097 })));
        for pattern in ["(?:a{1000}){1000}", r"\w{1000}", "(((a{100}){100}){100}){100}"] {
            assert!(matches!(StringMatch::regex(pattern), Err(RegexError::TooLarge { .. })), "{pattern}");
        }
        for pattern in ["(", "a)|(b", "a)", "(?<=a)b", r"(a)\1", r"\p{NoSuchScript}", "[z-a]", &"(".repeat(4000)] {
            assert!(matches!(StringMatch::regex(pattern), Err(RegexError::Invalid { .. })), "{pattern}");
        }
        let message = StringMatch::regex("[z-a]").unwrap_err().to_string();
        assert!(message.starts_with(r#"regex "[z-a]" is not valid: invalid character class range"#), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn flags_and_comments_cannot_undo_the_anchors() {
        // Multi-line mode or a comment in the user's pattern must not turn a whole-value match into a search.
        let multi_line = StringMatch::regex("(?m)^a$").unwrap();
        assert!(multi_line.matches(b"a") && !multi_line.matches(b"b\na\nb"));
        let commented = StringMatch::regex("(?x) a # the letter").unwrap();
        assert!(commented.matches(b"a") && !commented.matches(b"aa") && !commented.matches(b"a\n"));
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in ".{0,40}") {
            // Clients write what they like into a query.
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(percent_decoded(&encoded).into_owned(), bytes);
            prop_assert!(percent_decoded(&text).len() <= text.len());
        }

        #[test]
        fn any_pattern_is_compiled_or_refused(pattern in r"[(){}\[\]|*+?\\^$.a-c0-9#x: ]{0,30}", value in "[a-c]{0,10}") {
            // Patterns are user input; nothing may panic, and what compiles must still be anchored.
            if let Ok(StringMatch::Regex(regex)) = StringMatch::regex(&pattern)
                && let Some(found) = regex.find(value.as_bytes())
            {
                prop_assert_eq!(found.range(), 0..value.len());
            }
        }
    }
}
