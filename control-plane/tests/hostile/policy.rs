//! A: what decides about a request, and who can talk it out of its decision.

use std::{collections::BTreeMap, io::Write, net::SocketAddr};

use super::{
    frames::{self, Answered},
    sidecar::{Service, Sidecar, Stage, free},
    wire::{self, Heard, Message, application, ask, says},
};

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: app.shop\r\n{fields}\r\n")
}

/// A client's sidecar with these rules for `app.shop`, before the applications `app` and `guarded`, which say their names.
fn routed(rules: &str) -> (Sidecar, SocketAddr, Heard, Heard) {
    let ((app, heard), (guarded, guarded_heard)) = (says("app"), says("guarded"));
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint: app, mesh: false });
    stage.service("guarded", &Service { port_name: "http", endpoint: guarded, mesh: false });
    stage.apply(&route("shop", rules));
    let (sidecar, local) = stage.client(&[]);
    (sidecar, local, heard, guarded_heard)
}

fn route(namespace: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: app, namespace: {namespace}}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: app, namespace: shop}}]
  rules:
{rules}"
    )
}

#[test]
fn a01_the_backend_gets_the_path_that_was_matched() {
    // A rule for /admin is worth nothing if the application reads another spelling as /admin after the rule did not.
    let (_sidecar, local, app, guarded) = routed(
        "  - matches: [{path: {type: PathPrefix, value: /admin}}]
    backendRefs: [{name: guarded, port: 80}]
  - backendRefs: [{name: app, port: 80}]
",
    );
    let guards = |path: &str| path == "/admin" || path.starts_with("/admin/") || path.starts_with("/admin?");
    for (path, expected) in [
        ("/admin", Some("guarded /admin")),
        ("/admin/", Some("guarded /admin/")),
        ("/admin/x", Some("guarded /admin/x")),
        ("/admin?x=/y", Some("guarded /admin?x=/y")),
        ("/x/../admin", Some("guarded /admin")),
        ("/./admin", Some("guarded /admin")),
        ("/%61dmin", Some("guarded /admin")),
        ("/%61%64%6D%69%6e", Some("guarded /admin")),
        ("/x/%2e%2e/admin", Some("guarded /admin")),
        ("/%2e%2e/admin", Some("guarded /admin")),
        ("/admin/../public", Some("app /public")),
        ("/admin;x", Some("app /admin;x")),
        ("/ADMIN", Some("app /ADMIN")),
        ("//admin", Some("app //admin")),
        ("/x%2f..%2fadmin", Some("app /x%2f..%2fadmin")),
        ("/%5cadmin", Some("app /%5cadmin")),
        ("/admin%20", Some("app /admin%20")),
        ("/admin%", Some("app /admin%")),
        ("/%2561dmin", Some("app /%2561dmin")),
        ("/\\admin", None),
        ("/admin%00", None),
        ("/x\\..\\admin", None),
    ] {
        app.lock().clear();
        guarded.lock().clear();
        let answer = ask(local, get(path, "")).unwrap();
        let arrived = |heard: &Heard| heard.lock().first().map(|(_, request)| target(request));
        let (by_app, by_guarded) = (arrived(&app), arrived(&guarded));
        let found = match (&by_app, &by_guarded) {
            (Some(path), None) => Some(format!("app {path}")),
            (None, Some(path)) => Some(format!("guarded {path}")),
            (None, None) => None,
            both => panic!("{path}: {both:?}"),
        };
        assert_eq!(found.as_deref(), expected, "{path}: {answer:?}");
        assert_eq!(answer.status(), if found.is_some() { 200 } else { 400 }, "{path}: {answer:?}");
        // The rule, read by somebody who sees only what arrived, gives the same.
        if let Some(arrived) = by_app.as_deref().or(by_guarded.as_deref()) {
            assert_eq!(guards(arrived), by_guarded.is_some(), "{path} arrived as {arrived}");
        }
    }
}

fn target(request: &Message) -> String {
    request.start.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn a02_a_fragment_in_a_target_is_refused() {
    // Cut off by one reader and kept by another, it makes two paths of one.
    let (_sidecar, local, heard, _) = routed("  - backendRefs: [{name: app, port: 80}]\n");
    for path in ["/admin#x", "/#", "/x?y#z", "/x#/../admin"] {
        assert_eq!(ask(local, get(path, "")).unwrap().status(), 400, "{path}");
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "app.shop")];
        let answered = frames::ask(&mut wire::connect(local), &fields);
        assert!(answered.is_refusal() && answered != Answered::Nothing, "{path} over HTTP/2: {answered:?}");
    }
    assert!(heard.lock().is_empty());
}

#[test]
fn a03_one_host_has_one_policy_however_it_is_written() {
    // A rule for a name would be passed by writing the name in capitals, with a dot, or with its port.
    let (app, heard) = says("app");
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint: app, mesh: false });
    stage.apply(&route(
        "shop",
        "  - matches: [{path: {type: PathPrefix, value: /open}}]
    backendRefs: [{name: app, port: 80}]
",
    ));
    let proxy = free();
    let _sidecar = stage.start("client", "client", &["--outbound".to_owned(), proxy.to_string()]);
    for host in
        ["app.shop", "APP.Shop", "app.shop.", "App.Shop.:80", "app.shop:80", "APP.shop.svc.cluster.local", "app"]
    {
        for target in ["", &format!("http://{host}")] {
            let ask = |path: &str| ask(proxy, format!("GET {target}{path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).unwrap();
            assert_eq!(ask("/open").status(), 200, "{host} {target:?}");
            assert_eq!(ask("/secret").status(), 404, "{host} {target:?}");
        }
    }
    assert!(heard.lock().iter().all(|(_, request)| target(request) == "/open"));
}

#[test]
fn a05_a_zero_byte_in_a_value_is_refused() {
    // Readers in C end the value there, and see another one than the rule did.
    let (_sidecar, local, heard, _) = routed("  - backendRefs: [{name: app, port: 80}]\n");
    for field in ["x-user: root\0x\r\n", "x-user: \0\r\n", "cookie: a=\0\r\n"] {
        assert_eq!(ask(local, get("/", field)).unwrap().status(), 400, "{field:?}");
    }
    let fields =
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "app.shop"), ("x-user", "a\0b")];
    let answered = frames::ask(&mut wire::connect(local), &fields);
    assert!(answered.is_refusal() && answered != Answered::Nothing, "{answered:?}");
    assert!(heard.lock().is_empty());
}

/// A server's sidecar in front of an application; what arrives of a request made by a stranger.
fn arrives(request: &str) -> (Sidecar, Message, Message) {
    let (app, heard) = says("app");
    let mut stage = Stage::new();
    stage.mode("PERMISSIVE");
    let (sidecar, inbound) = stage.server(app, "http", &[]);
    let answer = ask(inbound, request).unwrap();
    let arrived = heard.lock().first().unwrap_or_else(|| panic!("nothing arrived: {answer:?}")).1.clone();
    (sidecar, arrived, answer)
}

#[test]
fn a07_names_that_pass_for_others_do_not_arrive() {
    // `X_Auth_User` is `X-Auth-User` to CGI and its heirs; rules and sidecars see only the latter.
    let (_sidecar, arrived, _) =
        arrives(&get("/", "X_Forwarded_Proto: https\r\nX_Auth_User: root\r\nX-Auth_User: root\r\nX-Auth-User: me\r\n"));
    assert!(arrived.fields.iter().all(|(name, _)| !name.contains('_')), "{arrived:?}");
    assert_eq!(arrived.field("x-auth-user"), Some("me"));
}

#[test]
fn a08_where_somebody_says_to_come_from_is_not_believed() {
    // "From loopback" or "from inside" would open what only the inside may have. It is passed on, and nothing is concluded from it.
    let claims =
        "x-forwarded-for: 127.0.0.1\r\nx-real-ip: 10.0.0.1\r\nforwarded: for=127.0.0.1\r\nx-envoy-internal: true\r\n";
    let (sidecar, arrived, _) = arrives(&get("/claims", claims));
    assert_eq!(arrived.field("x-forwarded-for"), Some("127.0.0.1"));
    assert!(arrived.field("x-forwarded-client-cert").is_none(), "{arrived:?}");
    let log = sidecar.wait_log("a line of the request", |log| log.contains("/claims"));
    let line: serde_json::Value =
        serde_json::from_str(log.lines().find(|line| line.contains("/claims")).unwrap()).unwrap();
    let remote: SocketAddr = line["downstream_remote_address"].as_str().unwrap().parse().unwrap();
    assert_ne!(remote.port(), 0, "{line}");
    assert_eq!(sidecar.metric("istio_requests_total", &["source_principal=\"unknown\""]), 1.0);
}

#[test]
fn a09_our_own_words_from_others_are_dropped() {
    // They would be taken for those of a sidecar: another caller in the metrics, another protocol for the answer, another count.
    let forged = "x-outrigger-peer: forged\r\nx-outrigger-orig-proto: HTTP/1.0\r\nx-outrigger-anything: forged\r\n\
                  x-outrigger-error: forged\r\nx-envoy-attempt-count: 7\r\nx-forwarded-client-cert: URI=spiffe://x\r\n";
    let ours = |message: &Message| {
        let ours =
            message.fields.iter().filter(|(name, _)| name.starts_with("x-outrigger-") || name.starts_with("x-envoy-"));
        ours.cloned().collect::<BTreeMap<_, _>>()
    };
    let expected = BTreeMap::from(
        [("x-envoy-attempt-count", "1"), ("x-outrigger-hops", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    // From a stranger on the way in, and from the application on the way out.
    let (_sidecar, arrived, _) = arrives(&get("/", forged));
    assert_eq!(ours(&arrived), expected);
    assert!(arrived.field("x-forwarded-client-cert").is_none());
    let (_sidecar, local, heard, _) = routed("  - backendRefs: [{name: app, port: 80}]\n");
    ask(local, get("/", forged)).unwrap();
    let sent = heard.lock()[0].1.clone();
    assert_eq!(ours(&sent), expected);
    // Behind it, the next sidecar would append its own word to the forged one.
    assert!(sent.field("x-forwarded-client-cert").is_none(), "{sent:?}");

    // And from an application in its answer: its sidecar would seem to say that the request never arrived.
    let (app, _) = application(|_, _| {
        Some(b"HTTP/1.1 503 X\r\nx-outrigger-error: upstream_connect_refused\r\ncontent-length: 0\r\n\r\n".to_vec())
    });
    let mut stage = Stage::new();
    stage.mode("PERMISSIVE");
    let (_sidecar, inbound) = stage.server(app, "http", &[]);
    let answer = ask(inbound, get("/", "")).unwrap();
    assert_eq!((answer.status(), answer.field("x-outrigger-error")), (503, None), "{answer:?}");
}

#[test]
fn a10_connection_removes_nothing_that_others_rely_on() {
    // A client would strip the fields that say who it is, or which host it asked for (CVE-2024-45410).
    let named = "connection: close, x-forwarded-host, authorization, host, cookie, content-length, x-request-id, x-outrigger-hops, x-hop\r\n\
                 x-forwarded-host: a\r\nauthorization: b\r\ncookie: c\r\nx-request-id: d\r\nx-hop: e\r\nx-end: f\r\n";
    let (_sidecar, arrived, _) = arrives(&get("/", named));
    for (name, value) in [
        ("x-forwarded-host", Some("a")),
        ("authorization", Some("b")),
        ("cookie", Some("c")),
        ("x-request-id", Some("d")),
        ("x-end", Some("f")),
        ("host", Some("app.shop")),
        ("x-outrigger-hops", Some("1")),
        ("x-hop", None),
    ] {
        assert_eq!(arrived.field(name), value, "{name}: {arrived:?}");
    }
}

#[test]
fn a14_redirects_are_the_clients_to_follow() {
    // Followed inside, one would lead where no rule was asked (CVE-2026-47221).
    let (endpoint, heard) = application(|_, _| {
        Some(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/internal\r\ncontent-length: 0\r\n\r\n".to_vec())
    });
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint, mesh: false });
    let (_sidecar, local) = stage.client(&[]);
    let answer = ask(local, get("/", "")).unwrap();
    assert_eq!((answer.status(), answer.field("location")), (302, Some("http://127.0.0.1:1/internal")));
    assert_eq!(heard.lock().len(), 1);
}

#[test]
fn a15_what_a_request_says_of_its_status_is_not_the_status() {
    // A client would write its own success into metrics and logs. And any path is only a path: nothing is looked up by it.
    let (endpoint, heard) = application(|_, _| {
        Some(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 13\r\ncontent-length: 0\r\n\r\n"
                .to_vec(),
        )
    });
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint, mesh: false });
    let (sidecar, local) = stage.client(&[]);
    for path in ["/notes.Notes/Get", "/", "/x", "//", "/a/b/c", "/%2f"] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: app.shop\r\ncontent-type: application/grpc\r\ngrpc-status: 0\r\ngrpc-message: fine\r\n\
             content-length: 0\r\n\r\n"
        );
        assert_eq!(ask(local, request).unwrap().field("grpc-status"), Some("13"), "{path}");
    }
    assert_eq!(heard.lock().len(), 6);
    let counted =
        |status: &str| sidecar.metric("istio_requests_total", &[&format!("grpc_response_status=\"{status}\"")]);
    assert_eq!((counted("13"), counted("0")), (6.0, 0.0));
}

#[test]
fn a18_a_namespace_decides_nothing_for_another() {
    // Anybody who may write routes would get everybody's traffic (ISTIO-SECURITY-2026-002).
    let ((app, heard), (thief, stolen)) = (says("app"), says("thief"));
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint: app, mesh: false });
    stage.apply(&route("evil", "  - backendRefs: [{name: thief, namespace: evil, port: 80}]\n"));
    stage.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: thief, namespace: evil}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: thief, namespace: evil, labels: {{kubernetes.io/service-name: thief}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [\"127.0.0.1\"]}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: thief, namespace: evil}}
spec:
  hosts: [app.shop.svc.cluster.local]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]",
        port = thief.port()
    ));
    let (_sidecar, local) = stage.client(&[]);
    for _ in 0..10 {
        assert_eq!(ask(local, get("/", "")).unwrap().text(), "app");
    }
    assert_eq!((heard.lock().len(), stolen.lock().len()), (10, 0));
}

#[test]
fn a19_methods_match_exactly() {
    // A rule for GET would let through, or leave out, what only looks like it.
    let (_sidecar, local, heard, _) = routed(
        "  - matches: [{method: GET}]
    backendRefs: [{name: app, port: 80}]
",
    );
    for method in ["HEAD", "POST", "OPTIONS", "PROPFIND", "get", "Get", "GETX", "GE", "M-SEARCH", "TRACE"] {
        let mut io = wire::connect(local);
        io.write_all(format!("{method} / HTTP/1.1\r\nhost: app.shop\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
        // What does not even look like a method of HTTP ends the connection.
        let status = wire::final_answer(&mut io, method == "HEAD").map(|answer| answer.status());
        assert!(matches!(status, None | Some(404)), "{method}: {status:?}");
        assert!(status.is_some() || method.starts_with(['g', 'G']), "{method}");
    }
    assert!(heard.lock().is_empty());
    assert_eq!(ask(local, get("/", "")).unwrap().status(), 200);
}
