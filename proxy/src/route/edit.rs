//! What a rule changes in a request or a response. Pure.
//!
//! Applied by the journeys after a rule is chosen: header edits of the rule, then of the arm; the rewrite before the
//! request goes upstream; the redirect instead of that. Meaning: Gateway API's filters (`HTTPRouteFilter`). Whether an edit may
//! touch a header at all (Connection, Content-Length and their like) is decided when configuration is compiled.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, header,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

/// Changes to headers: remove, then set, then add.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdit {
    /// Replaces every line of that name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// A further line; what is there stays.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Every line of that name.
    pub remove: Vec<HeaderName>,
}

impl HeaderEdit {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        // Both fail only beyond 32,768 fields, far above the limit on header fields, and must not panic there.
        for (name, value) in &self.set {
            let _ = headers.try_insert(name, value.clone());
        }
        for (name, value) in &self.add {
            let _ = headers.try_append(name, value.clone());
        }
    }
}

/// A new path.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    Full(Box<str>),
    /// Replaces the prefix that the rule matched.
    Prefix(Box<str>),
}

/// A replacement that would not make a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {path:?} cannot be sent (hint: begin with \"/\" and percent-encode spaces and other special characters)")]
pub struct InvalidPath {
    pub path: Box<str>,
}

impl PathRewrite {
    /// A whole path, checked.
    ///
    /// # Errors
    /// It does not begin with "/" or holds characters that a path may not hold.
    pub fn full(path: &str) -> Result<Self, InvalidPath> {
        checked(path).map(Self::Full)
    }

    /// What a prefix becomes, checked; empty or "/" takes the prefix away.
    ///
    /// # Errors
    /// As [`PathRewrite::full`].
    pub fn prefix(path: &str) -> Result<Self, InvalidPath> {
        if path.is_empty() { Ok(Self::Prefix(path.into())) } else { checked(path).map(Self::Prefix) }
    }

    /// The new path and query; the query stays as it was. `None` when there is no prefix to replace.
    fn apply(&self, path: &str, query: Option<&str>, prefix: Option<&str>) -> Option<String> {
        let mut changed = match self {
            Self::Full(full) => full.to_string(),
            Self::Prefix(replacement) => replace_prefix(path, prefix?, replacement)?,
        };
        if let Some(query) = query {
            // Istio lets a rewritten path bring a query of its own.
            changed.push(if changed.contains('?') { '&' } else { '?' });
            changed.push_str(query);
        }
        Some(changed)
    }
}

fn checked(path: &str) -> Result<Box<str>, InvalidPath> {
    if path.starts_with('/') && !path.starts_with("//") && path.parse::<PathAndQuery>().is_ok() {
        Ok(path.into())
    } else {
        Err(InvalidPath { path: path.into() })
    }
}

/// "/foo/bar" with "/foo" replaced; a trailing slash of the replacement means nothing. Never begins with two slashes,
/// which would read as the beginning of a host.
fn replace_prefix(path: &str, prefix: &str, replacement: &str) -> Option<String> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    if !rest.is_empty() && !rest.starts_with('/') {
        return None;
    }
    let replacement = replacement.trim_end_matches('/');
    let rest = if replacement.is_empty() { rest.trim_start_matches('/') } else { rest };
    Some(match (replacement, rest) {
        ("", rest) => format!("/{rest}"),
        (replacement, rest) => format!("{replacement}{rest}"),
    })
}

/// Changes to host and path before the request goes upstream.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    /// The new Host; whoever writes the request puts it there.
    pub host: Option<HeaderValue>,
    pub path: Option<PathRewrite>,
}

impl Rewrite {
    /// The new URI; `prefix` as for [`Redirect::location`].
    ///
    /// Where there is nothing to replace (a prefix rewrite after an exact path or a regex, a replacement that does not make
    /// a path), the path stays. A host in the URI becomes the new host; the Host header is not touched here.
    pub fn apply(&self, uri: &Uri, prefix: Option<&str>) -> Uri {
        let mut parts = uri.clone().into_parts();
        let path = self.path.as_ref().and_then(|path| path.apply(uri.path(), uri.query(), prefix));
        if let Some(path) = path.and_then(|path| PathAndQuery::try_from(path).ok()) {
            parts.path_and_query = Some(path);
        }
        let host = self.host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
        if let (Some(authority), Some(host)) = (&mut parts.authority, host) {
            *authority = host;
        }
        Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
    }
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub status: http::StatusCode,
    /// `None`: the request's.
    pub scheme: Option<Box<str>>,
    /// `None`: the request's.
    pub host: Option<Box<str>>,
    /// `None`: the well-known port of `scheme` if that is set, else the service port.
    pub port: Option<u16>,
    /// `None`: the request's.
    pub path: Option<PathRewrite>,
}

impl Redirect {
    /// The Location value for a request; `prefix` is what the rule's path match matched, `port` the service port.
    ///
    /// Gateway API, `HTTPRequestRedirectFilter`: port 80 of http and 443 of https are left out. A request without a scheme in
    /// its URI came as http. `None` when neither the rule nor the request names a host, or the result cannot stand in a header.
    pub fn location(&self, request: &Parts, prefix: Option<&str>, port: u16) -> Option<HeaderValue> {
        let scheme = self.scheme.as_deref().or_else(|| request.uri.scheme_str()).unwrap_or("http");
        let host = match &self.host {
            Some(host) => host,
            None => requested_host(request)?,
        };
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => Some(port),
            (None, Some(scheme)) => well_known_port(scheme),
            (None, None) => Some(port),
        };
        let path = self.path.as_ref().and_then(|path| path.apply(request.uri.path(), request.uri.query(), prefix));
        let path = match &path {
            Some(path) => path,
            // "*" and the authority of CONNECT are no paths.
            None => request
                .uri
                .path_and_query()
                .map(PathAndQuery::as_str)
                .filter(|path| path.starts_with('/'))
                .unwrap_or("/"),
        };
        let location = match port.filter(|&port| well_known_port(scheme) != Some(port)) {
            Some(port) => format!("{scheme}://{host}:{port}{path}"),
            None => format!("{scheme}://{host}{path}"),
        };
        HeaderValue::try_from(location).ok()
    }
}

/// The host that the client asked for, without the port; an IPv6 address keeps its brackets.
fn requested_host(request: &Parts) -> Option<&str> {
    if let Some(host) = request.uri.host() {
        return Some(host);
    }
    let host = request.headers.get(header::HOST)?.to_str().ok()?;
    let end = match host.rfind(']') {
        Some(bracket) => bracket + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    host.get(..end).filter(|host| !host.is_empty())
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}
