//! Which path gives what, and who may ask. The connection is in `server`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, Method, Request, Response, StatusCode, header, uri::Authority};
use serde_json::Value;

use super::AdminSource;
use crate::telemetry::log::LogControl;

/// What a listener offers.
pub(super) enum Port {
    Admin { source: Arc<dyn AdminSource>, log: Option<LogControl> },
    Ready { source: Arc<dyn AdminSource> },
}

/// Prometheus' own content type.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const INDEX: &str = "\
Outrigger sidecar, admin port

GET  /ready, /healthz/ready         whether traffic may come
GET  /metrics, /stats/prometheus    metrics
GET  /config_dump                   configuration in effect
GET  /clusters                      services and endpoints
GET  /certs                         certificates
GET  /server_info                   version and state
GET  /logging                       log level
POST /logging?level=debug           change it (also level=info,outrigger_proxy::http=debug)
POST /drain                         stop taking part, finish what is in flight
POST /quitquitquit                  drain, then exit
";

impl Port {
    /// Answers one request; its body is never read.
    pub(super) fn answer<Body>(&self, request: &Request<Body>, client: SocketAddr) -> Response<String> {
        let mut response = match self {
            Self::Admin { source, log } => match refusal(request.method(), request.headers(), request.uri(), client) {
                Some(refusal) => refusal,
                None => admin(source.as_ref(), log.as_ref(), request),
            },
            Self::Ready { source } => public(source.as_ref(), request),
        };
        let headers = response.headers_mut();
        // Nothing here is a page: a browser must not guess, and nobody may keep a copy.
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
        headers.insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
        response
    }
}

/// Keeps web pages and other machines away from the admin port.
fn refusal(method: &Method, headers: &HeaderMap, uri: &http::Uri, client: SocketAddr) -> Option<Response<String>> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    };
    // A name that was rebound to loopback carries the page's own Host; an address cannot be rebound.
    let is_ours = |host: &str| {
        host.parse::<Authority>().is_ok_and(|authority| {
            let host = authority.host().trim_start_matches('[').trim_end_matches(']');
            !authority.as_str().contains('@')
                && (host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok())
        })
    };
    let target = uri.authority().map(Authority::as_str);
    if !host.is_some_and(is_ours) || !target.is_none_or(is_ours) {
        return Some(text(
            StatusCode::FORBIDDEN,
            "the admin port answers only when Host is localhost or an address (use http://127.0.0.1)\n",
        ));
    }
    let cross_site = headers.get("sec-fetch-site").is_some_and(|site| site != "none" && site != "same-origin");
    if cross_site || headers.contains_key(header::ORIGIN) {
        return Some(text(StatusCode::FORBIDDEN, "the admin port does not answer web pages (use curl)\n"));
    }
    if method == Method::POST && !client.ip().to_canonical().is_loopback() {
        return Some(text(
            StatusCode::FORBIDDEN,
            "the admin port takes POST from this machine only (run it where the proxy runs)\n",
        ));
    }
    None
}

fn admin<Body>(source: &dyn AdminSource, log: Option<&LogControl>, request: &Request<Body>) -> Response<String> {
    let path = request.uri().path();
    let must_post = matches!(path, "/drain" | "/quitquitquit");
    let may_post = must_post || path == "/logging";
    match *request.method() {
        Method::GET if must_post => return not_allowed("POST"),
        Method::GET => {}
        Method::POST if may_post => {}
        _ => {
            return not_allowed(if must_post {
                "POST"
            } else if may_post {
                "GET, POST"
            } else {
                "GET"
            });
        }
    }
    match path {
        "/" => text(StatusCode::OK, INDEX),
        "/config_dump" => json(&source.config_dump()),
        "/clusters" => json(&source.upstreams()),
        "/certs" => json(&source.certificates()),
        "/server_info" => json(&source.server_info()),
        "/logging" => logging(log, request),
        "/drain" => {
            source.start_drain();
            text(StatusCode::OK, "draining\n")
        }
        "/quitquitquit" => {
            source.quit();
            text(StatusCode::OK, "draining, then exiting\n")
        }
        _ => public(source, request),
    }
}

fn public<Body>(source: &dyn AdminSource, request: &Request<Body>) -> Response<String> {
    if request.method() != Method::GET {
        return not_allowed("GET");
    }
    match request.uri().path() {
        "/ready" | "/healthz/ready" => match source.ready() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(missing) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")),
        },
        "/metrics" | "/stats/prometheus" => with_type(StatusCode::OK, METRICS_TYPE, source.metrics()),
        _ => text(StatusCode::NOT_FOUND, "no such path\n"),
    }
}

fn logging<Body>(log: Option<&LogControl>, request: &Request<Body>) -> Response<String> {
    let Some(log) = log else {
        return text(StatusCode::NOT_FOUND, "this process has no log to change\n");
    };
    if request.method() == Method::POST {
        let query = request.uri().query().unwrap_or("");
        let Some(level) = query.split('&').find_map(|pair| pair.strip_prefix("level=")) else {
            return text(StatusCode::BAD_REQUEST, "no level given (POST /logging?level=debug)\n");
        };
        let level = unescaped(level);
        if let Err(error) = log.set(&level) {
            return text(StatusCode::BAD_REQUEST, format!("{error}\n"));
        }
        tracing::info!(level, "log level changed");
    }
    text(StatusCode::OK, format!("{}\n", log.filter()))
}

/// Undoes percent-encoding, which some clients apply to ',' and '='; a broken escape stays as it is.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        match after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or("");
            }
            None => {
                bytes.push(b'%');
                rest = after;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<String> {
    with_type(status, "text/plain; charset=utf-8", body.into())
}

fn json(value: &Value) -> Response<String> {
    with_type(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn not_allowed(methods: &'static str) -> Response<String> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {methods}\n"));
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(methods));
    response
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    #[derive(Default)]
    pub(in crate::admin) struct Fake {
        pub(in crate::admin) drains: AtomicUsize,
        pub(in crate::admin) quits: AtomicUsize,
        pub(in crate::admin) not_ready: bool,
    }

    impl AdminSource for Fake {
        fn ready(&self) -> Result<(), String> {
            if self.not_ready { Err("no certificate yet".to_owned()) } else { Ok(()) }
        }
        fn config_dump(&self) -> Value {
            json!({"generation": 1})
        }
        fn upstreams(&self) -> Value {
            json!([])
        }
        fn certificates(&self) -> Value {
            json!([])
        }
        fn server_info(&self) -> Value {
            json!({"version": "0"})
        }
        fn start_drain(&self) {
            self.drains.fetch_add(1, Ordering::Relaxed);
        }
        fn quit(&self) {
            self.quits.fetch_add(1, Ordering::Relaxed);
        }
        fn metrics(&self) -> String {
            "x 1\n".to_owned()
        }
    }

    fn ask(port: &Port, method: &str, path: &str, headers: &[(&str, &str)], client: &str) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = port.answer(&request.body(()).unwrap(), client.parse().unwrap());
        (response.status().as_u16(), response.into_body())
    }

    const LOCAL: &str = "127.0.0.1:5555";
    const HOST: (&str, &str) = ("host", "localhost:15000");

    #[test]
    fn admin_paths() {
        // These paths are what kubectl plugins, probes and people type.
        let fake = Arc::new(Fake::default());
        let port = Port::Admin { source: fake.clone(), log: None };
        for (method, path, status, part) in [
            ("GET", "/", 200, "admin port"),
            ("GET", "/config_dump", 200, "generation"),
            ("GET", "/clusters", 200, "[]"),
            ("GET", "/certs", 200, "[]"),
            ("GET", "/server_info", 200, "version"),
            ("GET", "/metrics", 200, "x 1"),
            ("GET", "/stats/prometheus?x=y", 200, "x 1"),
            ("GET", "/ready", 200, "ready"),
            ("GET", "/healthz/ready", 200, "ready"),
            ("GET", "/drain", 405, "POST"),
            ("GET", "/quitquitquit", 405, "POST"),
            ("PUT", "/drain", 405, "POST"),
            ("DELETE", "/", 405, "GET"),
            ("POST", "/config_dump", 405, "GET"),
            ("GET", "/nothing", 404, "no such path"),
            ("GET", "/logging", 404, "no log"),
        ] {
            let (got, body) = ask(&port, method, path, &[HOST], LOCAL);
            assert_eq!(got, status, "{method} {path}");
            assert!(body.contains(part), "{method} {path}: {body}");
        }
        assert_eq!((fake.drains.load(Ordering::Relaxed), fake.quits.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(ask(&port, "POST", "/drain", &[HOST], LOCAL).0, 200);
        assert_eq!(ask(&port, "POST", "/quitquitquit", &[HOST], "[::1]:9").0, 200);
        assert_eq!((fake.drains.load(Ordering::Relaxed), fake.quits.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn m06_web_pages_and_other_machines_cannot_use_the_admin_port() {
        // A rebound name or a form on any page could otherwise stop the sidecar or read its configuration.
        let fake = Arc::new(Fake::default());
        let port = Port::Admin { source: fake.clone(), log: None };
        for (headers, client, status) in [
            (&[("host", "127.0.0.1")][..], LOCAL, 200),
            (&[("host", "127.0.0.1:15000")], LOCAL, 200),
            (&[("host", "[::1]:15000")], LOCAL, 200),
            (&[("host", "LOCALHOST")], LOCAL, 200),
            (&[("host", "10.0.0.7:15000")], LOCAL, 200),
            (&[], LOCAL, 403),
            (&[("host", "")], LOCAL, 403),
            (&[("host", "evil.test")], LOCAL, 403),
            (&[("host", "localhost.evil.test")], LOCAL, 403),
            (&[("host", "127.0.0.1.evil.test")], LOCAL, 403),
            (&[("host", "evil.test@localhost")], LOCAL, 403),
            (&[HOST, ("host", "evil.test")], LOCAL, 403),
            (&[HOST, ("origin", "http://evil.test")], LOCAL, 403),
            (&[HOST, ("origin", "null")], LOCAL, 403),
            (&[HOST, ("sec-fetch-site", "cross-site")], LOCAL, 403),
            (&[HOST, ("sec-fetch-site", "none")], LOCAL, 200),
            (&[HOST], "10.0.0.9:5555", 403),
            (&[HOST], "[::ffff:127.0.0.1]:5555", 200),
        ] {
            let drains = fake.drains.load(Ordering::Relaxed);
            assert_eq!(ask(&port, "POST", "/drain", headers, client).0, status, "{headers:?} {client}");
            let drained = fake.drains.load(Ordering::Relaxed) - drains;
            assert_eq!(drained, usize::from(status == 200), "{headers:?} {client}");
        }
        assert_eq!(ask(&port, "GET", "http://evil.test/config_dump", &[HOST], LOCAL).0, 403);
    }

    #[test]
    fn the_public_port_shows_readiness_and_metrics_only() {
        // Whoever can reach the pod can reach this port.
        let port = Port::Ready { source: Arc::new(Fake { not_ready: true, ..Fake::default() }) };
        for (method, path, status) in [
            ("GET", "/healthz/ready", 503),
            ("GET", "/metrics", 200),
            ("GET", "/stats/prometheus", 200),
            ("GET", "/config_dump", 404),
            ("GET", "/certs", 404),
            ("GET", "/", 404),
            ("POST", "/drain", 405),
            ("POST", "/quitquitquit", 405),
        ] {
            assert_eq!(ask(&port, method, path, &[("host", "10.1.2.3:15021")], "10.0.0.9:1").0, status, "{path}");
        }
        let (_, body) = ask(&port, "GET", "/healthz/ready", &[], "10.0.0.9:1");
        assert_eq!(body, "not ready: no certificate yet\n");
    }

    #[test]
    fn escapes_in_the_level_are_undone() {
        // curl leaves commas alone, browsers' tools and libraries do not.
        for (given, expected) in
            [("debug", "debug"), ("info%2Ca%3Ddebug", "info,a=debug"), ("50%", "50%"), ("%zz", "%zz"), ("%é", "%é")]
        {
            assert_eq!(unescaped(given), expected);
        }
    }
}
