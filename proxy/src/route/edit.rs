//! What a rule changes in a request or a response. Pure.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, request::Parts};

/// Changes to headers: remove, then set, then add.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdit {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl HeaderEdit {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    pub fn apply(&self, _headers: &mut HeaderMap) {}
}

/// A new path.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    Full(Box<str>),
    /// Replaces the prefix that the rule matched.
    Prefix(Box<str>),
}

/// Changes to host and path before the request goes upstream.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    pub host: Option<HeaderValue>,
    pub path: Option<PathRewrite>,
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub status: http::StatusCode,
    pub scheme: Option<Box<str>>,
    pub host: Option<Box<str>>,
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
}

impl Redirect {
    /// The Location value for a request; `prefix` is what the rule's path match matched, `port` the service port.
    pub fn location(&self, _request: &Parts, _prefix: Option<&str>, _port: u16) -> Option<HeaderValue> {
        None
    }
}

impl Rewrite {
    /// The new URI; `prefix` as for [`Redirect::location`].
    pub fn apply(&self, uri: &Uri, _prefix: Option<&str>) -> Uri {
        uri.clone()
    }
}
