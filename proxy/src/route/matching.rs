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
fn query_value<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
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
