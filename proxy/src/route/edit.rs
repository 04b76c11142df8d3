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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{Request, StatusCode};
    use proptest::prelude::*;

    use super::*;

    fn name(name: &'static str) -> HeaderName {
        HeaderName::from_static(name)
    }

    fn value(value: &'static str) -> HeaderValue {
        HeaderValue::from_static(value)
    }

    fn lines(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn edits_remove_then_set_then_add() {
        // `add` that replaced, or `set` that left a second line, would show the application a value the user took away.
        let mut headers = HeaderMap::new();
        for line in ["1", "2"] {
            for header in ["removed", "set", "added", "kept"] {
                headers.append(name(header), value(line));
            }
        }
        let edit = HeaderEdit {
            remove: vec![name("removed"), name("both"), name("absent")],
            set: vec![(name("set"), value("new")), (name("both"), value("set"))],
            add: vec![(name("added"), value("3")), (name("both"), value("added")), (name("fresh"), value("x"))],
        };
        headers.insert(name("both"), value("old"));
        edit.apply(&mut headers);
        for (header, expected) in [
            ("removed", &[][..]),
            ("set", &["new"]),
            ("added", &["1", "2", "3"]),
            ("kept", &["1", "2"]),
            ("both", &["set", "added"]),
            ("fresh", &["x"]),
        ] {
            assert_eq!(lines(&headers, header), expected, "{header}");
        }
        assert!(!edit.is_empty() && HeaderEdit::default().is_empty());
    }

    #[test]
    fn prefixes_are_replaced_as_gateway_api_says() {
        // The table of `HTTPPathModifier.replacePrefixMatch`; a wrong slash is a 404 at the application.
        let cases = [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo//bar", "/foo", "/", "/bar"),
            ("/a", "", "/xyz", "/xyz/a"),
            ("/", "", "/xyz", "/xyz/"),
        ];
        for (path, prefix, replacement, expected) in cases {
            let rewrite = Rewrite { host: None, path: Some(PathRewrite::prefix(replacement).unwrap()) };
            let uri: Uri = format!("{path}?q=%20&r").parse().unwrap();
            let case = format!("{path} with {prefix} -> {replacement}");
            assert_eq!(rewrite.apply(&uri, Some(prefix)).to_string(), format!("{expected}?q=%20&r"), "{case}");
            assert_eq!(rewrite.apply(&path.parse().unwrap(), Some(prefix)).to_string(), expected, "{case}");
        }
    }

    #[test]
    fn a_rewrite_that_does_not_fit_changes_nothing() {
        // A prefix that is not there must not cut something else off the path.
        let rewrite = Rewrite { host: None, path: Some(PathRewrite::prefix("/new").unwrap()) };
        for (uri, prefix) in [("/foo?q", None), ("/foo?q", Some("/bar")), ("/foobar", Some("/foo")), ("*", Some(""))] {
            assert_eq!(rewrite.apply(&uri.parse().unwrap(), prefix).to_string(), uri, "{prefix:?}");
        }
    }

    #[test]
    fn full_paths_and_hosts_are_rewritten() {
        // The query belongs to the client and must survive.
        let rewrite =
            Rewrite { host: Some(value("new.example:81")), path: Some(PathRewrite::full("/one/two").unwrap()) };
        for (before, after) in [
            ("/foo?a=1", "/one/two?a=1"),
            ("/foo", "/one/two"),
            ("http://old.example/foo?a", "http://new.example:81/one/two?a"),
        ] {
            assert_eq!(rewrite.apply(&before.parse().unwrap(), None).to_string(), after);
        }
        let with_query = Rewrite { host: None, path: Some(PathRewrite::full("/one?x=1").unwrap()) };
        assert_eq!(with_query.apply(&"/foo?a".parse().unwrap(), None).to_string(), "/one?x=1&a");
    }

    #[test]
    fn paths_that_cannot_be_sent_are_refused() {
        // They would otherwise fail request by request instead of once, when configured.
        for path in ["", "a", "/a b", "//evil.example", "/a\r\nx: y", "http://a/b"] {
            assert_eq!(PathRewrite::full(path).unwrap_err(), InvalidPath { path: path.into() });
        }
        assert!(PathRewrite::prefix("").is_ok());
        assert!(PathRewrite::prefix("a").is_err());
    }

    fn location(redirect: &Redirect, uri: &str, host: Option<&str>, port: u16) -> Option<String> {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        redirect.location(&parts, Some("/foo"), port).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn redirects_follow_the_port_rule() {
        // A wrong port sends every browser to a closed door.
        let cases = [
            // scheme, host, port of the rule; service port; expected for "/foo/x?q" at Host a.example:9000
            (None, None, None, 80, "http://a.example/foo/x?q"),
            (None, None, None, 8080, "http://a.example:8080/foo/x?q"),
            (None, None, None, 443, "http://a.example:443/foo/x?q"),
            (Some("https"), None, None, 8080, "https://a.example/foo/x?q"),
            (Some("http"), None, None, 8080, "http://a.example/foo/x?q"),
            (Some("https"), None, Some(443), 80, "https://a.example/foo/x?q"),
            (Some("https"), None, Some(8443), 80, "https://a.example:8443/foo/x?q"),
            (Some("http"), None, Some(443), 80, "http://a.example:443/foo/x?q"),
            (None, None, Some(80), 8080, "http://a.example/foo/x?q"),
            (None, None, Some(8083), 80, "http://a.example:8083/foo/x?q"),
            (None, Some("b.example"), None, 80, "http://b.example/foo/x?q"),
            (None, Some("b.example"), None, 8080, "http://b.example:8080/foo/x?q"),
        ];
        for (scheme, host, port, service_port, expected) in cases {
            let redirect = Redirect {
                status: StatusCode::FOUND,
                scheme: scheme.map(Into::into),
                host: host.map(Into::into),
                port,
                path: None,
            };
            let got = location(&redirect, "/foo/x?q", Some("a.example:9000"), service_port);
            assert_eq!(got.as_deref(), Some(expected), "{redirect:?} on {service_port}");
        }
    }

    #[test]
    fn redirects_change_the_path_and_keep_the_query() {
        // The other half of Gateway API's redirect tables.
        let mut redirect =
            Redirect { status: StatusCode::MOVED_PERMANENTLY, scheme: None, host: None, port: None, path: None };
        let at = |redirect: &Redirect, uri: &str, host| location(redirect, uri, host, 80);
        redirect.path = Some(PathRewrite::full("/new").unwrap());
        assert_eq!(at(&redirect, "/foo/x?q=1", Some("a")).as_deref(), Some("http://a/new?q=1"));
        redirect.path = Some(PathRewrite::prefix("/bar").unwrap());
        assert_eq!(at(&redirect, "/foo/x?q=1", Some("a")).as_deref(), Some("http://a/bar/x?q=1"));
        redirect.path = Some(PathRewrite::prefix("/").unwrap());
        assert_eq!(at(&redirect, "/foo", Some("a")).as_deref(), Some("http://a/"));
        assert_eq!(at(&redirect, "*", Some("a")).as_deref(), Some("http://a/"));
        // Where the host comes from.
        redirect.path = None;
        assert_eq!(at(&redirect, "/x", Some("[::1]:8080")).as_deref(), Some("http://[::1]/x"));
        assert_eq!(at(&redirect, "/x", Some("[::1]")).as_deref(), Some("http://[::1]/x"));
        assert_eq!(at(&redirect, "https://b:99/x", Some("a")).as_deref(), Some("https://b:80/x"));
        assert_eq!(at(&redirect, "/x", None), None);
        assert_eq!(at(&redirect, "/x", Some(":80")), None);
    }

    proptest! {
        #[test]
        fn rewriting_never_panics_and_stays_a_path(
            path in "/[a-z/%0-9]{0,20}", prefix in "(/[a-z]{0,3}){0,3}", replacement in "(/[a-z]{0,3}){0,3}"
        ) {
            // Whatever stands in the request, what goes upstream begins with one slash.
            let Ok(replacement) = PathRewrite::prefix(&replacement) else { return Ok(()) };
            let uri: Uri = path.parse().unwrap();
            let rewritten = Rewrite { host: None, path: Some(replacement) }.apply(&uri, Some(&prefix));
            prop_assert!(rewritten.path().starts_with('/'));
            prop_assert!(rewritten.path() == uri.path() || !rewritten.path().starts_with("//"));
        }
    }
}
