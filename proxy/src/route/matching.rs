//! Does one request match? Pure.

use http::{HeaderName, Method, request::Parts};

/// One way to look at a value.
#[derive(Clone, Debug)]
pub enum StringMatch {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    /// Whole value, RE2 syntax.
    Regex(Box<regex_automata::meta::Regex>),
    /// Any value.
    Present,
}

/// One way to look at a normalised path (query excluded).
#[derive(Clone, Debug)]
pub enum PathMatch {
    Exact(Box<str>),
    /// Whole segments; stored without a trailing slash ("/" is stored as "").
    SegmentPrefix(Box<str>),
    Regex(Box<regex_automata::meta::Regex>),
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
    pub fn matches(&self, _request: &Parts) -> bool {
        false
    }
}
