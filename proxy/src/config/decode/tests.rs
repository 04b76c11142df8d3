//! Every way in which a resource can be wrong, and what a refusal says of it.
#![allow(clippy::unwrap_used)]

use outrigger_proto::mesh::{
    self, Arm, BackendPolicy, Breaker, Endpoint, EndpointPort, EndpointShard, Fallback, FallbackTarget, HeaderEdit,
    HeaderValue, HttpRule, NamedMatch, Node, OutlierDetection, PathMatch, PathRewrite, Policy, Redirect, RequestMatch,
    Retry, RetryBudget, RouteTable, Service, ServicePort, Split, StaticReply, StringMatch, Subset, Target, TcpRule,
    TrustBundle, UrlRewrite,
    arm::To,
    consistent_hash::{Key, Table},
    fallback,
    http_rule::Action,
    path_match, path_rewrite, string_match,
};
use proptest::prelude::*;

use super::*;

fn endpoint() -> Endpoint {
    Endpoint {
        uid: "shop/a-1".to_owned(),
        address: vec![10, 0, 0, 1].into(),
        ports: vec![EndpointPort { service_port: 80, port: 8080, peer: mesh::PeerKind::Mesh as i32 }],
        identity: "spiffe://mesh.local/ns/shop/sa/a".to_owned(),
        health: mesh::Health::Ready as i32,
        ..Endpoint::default()
    }
}

fn shard(change: impl FnOnce(&mut Endpoint)) -> EndpointShard {
    let mut endpoint = endpoint();
    change(&mut endpoint);
    EndpointShard { endpoints: vec![endpoint] }
}

fn service(change: impl FnOnce(&mut Service)) -> Service {
    let mut service = Service {
        namespace: "shop".to_owned(),
        host: "a".to_owned(),
        ports: vec![ServicePort { port: 80, protocol: mesh::Protocol::Http as i32, ..ServicePort::default() }],
        ..Service::default()
    };
    change(&mut service);
    service
}

fn node(change: impl FnOnce(&mut Node)) -> Node {
    let mut node = Node {
        namespace: "shop".to_owned(),
        workload: "a".to_owned(),
        service_account: "a".to_owned(),
        trust_domain: "mesh.local".to_owned(),
        default_peer_mode: mesh::PeerMode::Strict as i32,
        outbound_mode: mesh::OutboundMode::RegistryOnly as i32,
        ..Node::default()
    };
    change(&mut node);
    node
}

fn rule(change: impl FnOnce(&mut HttpRule)) -> RouteTable {
    let action = Some(Action::Split(Split::default()));
    let mut rule = HttpRule { name: "r".to_owned(), action, ..HttpRule::default() };
    change(&mut rule);
    RouteTable { http: vec![rule], ..RouteTable::default() }
}

fn matching(change: impl FnOnce(&mut RequestMatch)) -> RouteTable {
    let mut wanted = RequestMatch::default();
    change(&mut wanted);
    rule(|rule| rule.matches = vec![wanted])
}

fn header(value: Option<string_match::Kind>) -> RouteTable {
    let value = Some(StringMatch { kind: value });
    matching(|wanted| wanted.headers = vec![NamedMatch { name: "x-a".to_owned(), value }])
}

fn path(kind: Option<path_match::Kind>) -> RouteTable {
    matching(|wanted| wanted.path = Some(PathMatch { kind }))
}

fn setting(name: &str, value: &str) -> RouteTable {
    let header = HeaderValue { name: name.to_owned(), value: value.to_owned() };
    rule(|rule| rule.request_headers = Some(HeaderEdit { set: vec![header], ..HeaderEdit::default() }))
}

fn arms(arms: Vec<Arm>) -> RouteTable {
    rule(|rule| rule.action = Some(Action::Split(Split { arms, sticky: None })))
}

fn target(service: &str, port: u32) -> Arm {
    let target = Target { service: service.to_owned(), port, subset: String::new() };
    Arm { weight: u32::MAX, to: Some(To::Target(target)), ..Arm::default() }
}

fn redirect(change: impl FnOnce(&mut Redirect)) -> RouteTable {
    let mut redirect = Redirect::default();
    change(&mut redirect);
    rule(|rule| rule.action = Some(Action::Redirect(redirect)))
}

fn rewriting(kind: Option<path_rewrite::Kind>) -> RouteTable {
    rule(|rule| rule.rewrite = Some(UrlRewrite { path: Some(PathRewrite { kind }), ..UrlRewrite::default() }))
}

fn base(change: impl FnOnce(&mut Policy)) -> BackendPolicy {
    let mut policy = Policy::default();
    change(&mut policy);
    BackendPolicy { base: Some(policy), ..BackendPolicy::default() }
}

fn hashing(change: impl FnOnce(&mut mesh::ConsistentHash)) -> BackendPolicy {
    let mut hash = mesh::ConsistentHash { key: Some(Key::Header("x-user".into())), table: None };
    change(&mut hash);
    base(|policy| policy.consistent_hash = Some(hash))
}

fn distributing(from: &str, to: &str, label: Option<&str>) -> BackendPolicy {
    let entry = mesh::LocalityShares { from: from.into(), to: [(to.to_owned(), 100)].into() };
    let failover_priority = label.map(Into::into).into_iter().collect();
    let locality = mesh::LocalityPreference { distribute: vec![entry], failover_priority, ..Default::default() };
    base(|policy| policy.locality = Some(locality))
}

fn warming(duration: i64, minimum_percent: f64, aggression: f64) -> BackendPolicy {
    base(|policy| policy.warmup = Some(mesh::Warmup { duration: seconds(duration), minimum_percent, aggression }))
}

fn staying(key: Option<mesh::sticky::Key>) -> RouteTable {
    let sticky = Some(mesh::Sticky { key, seed: String::new() });
    rule(|rule| rule.action = Some(Action::Split(Split { arms: vec![target("s", 80)], sticky })))
}

fn cookie(name: &str, path: &str, ttl: i64) -> Option<Key> {
    Some(Key::Cookie(mesh::HashCookie { name: name.into(), path: path.into(), ttl: seconds(ttl) }))
}

fn breaker(change: impl FnOnce(&mut Breaker)) -> BackendPolicy {
    let mut breaker = Breaker { name: "shop/b".to_owned(), ..Breaker::default() };
    change(&mut breaker);
    base(|policy| policy.breaker = Some(breaker))
}

fn falling_back(kind: Option<fallback::Kind>) -> BackendPolicy {
    breaker(|breaker| breaker.fallback = Some(Fallback { kind, max_concurrent: 0 }))
}

#[allow(clippy::unnecessary_wraps, reason = "the messages hold options")]
fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Kind, name, content, and the path of the refusal.
type Case = (Kind, &'static str, Vec<u8>, &'static str);

fn shards(content: EndpointShard, path: &'static str) -> Case {
    (Kind::EndpointShard, "s", content.encode_to_vec(), path)
}

fn services(content: Service, path: &'static str) -> Case {
    (Kind::Service, "shop/a", content.encode_to_vec(), path)
}

fn nodes(content: Node, path: &'static str) -> Case {
    (Kind::Node, "shop/a", content.encode_to_vec(), path)
}

fn tables(content: RouteTable, path: &'static str) -> Case {
    (Kind::RouteTable, "t", content.encode_to_vec(), path)
}

fn policies(content: BackendPolicy, path: &'static str) -> Case {
    (Kind::BackendPolicy, "p", content.encode_to_vec(), path)
}

fn wrong() -> Vec<Case> {
    let text = str::to_owned;
    let port = |port| ServicePort { port, protocol: 2, ..ServicePort::default() };
    let inbound = |port, protocol| mesh::InboundPort { port, protocol, ..mesh::InboundPort::default() };
    let reply = |status, content_type: &str| StaticReply { status, content_type: text(content_type), body: "".into() };
    vec![
        // No message at all.
        (Kind::Service, "shop/a", vec![0xff; 3], ""),
        (Kind::Service, "", Vec::new(), "name"),
        (Kind::Service, "a\nb", Vec::new(), "name"),
        // Shards.
        shards(
            EndpointShard { endpoints: (0..65).map(|n| Endpoint { uid: n.to_string(), ..endpoint() }).collect() },
            "endpoints",
        ),
        shards(EndpointShard { endpoints: vec![endpoint(), endpoint()] }, "endpoints[1].uid"),
        shards(shard(|e| e.uid.clear()), "endpoints[0].uid"),
        shards(shard(|e| e.address = vec![1, 2, 3].into()), "endpoints[0].address"),
        shards(shard(|e| e.address = vec![].into()), "endpoints[0].address"),
        shards(shard(|e| e.ports[0].port = 65_536), "endpoints[0].ports[0].port"),
        shards(shard(|e| e.ports[0].port = 0), "endpoints[0].ports[0].port"),
        shards(shard(|e| e.ports[0].service_port = 70_000), "endpoints[0].ports[0].service_port"),
        shards(shard(|e| e.ports[0].peer = 0), "endpoints[0].ports[0].peer"),
        shards(shard(|e| e.ports[0].peer = 9), "endpoints[0].ports[0].peer"),
        shards(shard(|e| e.health = 0), "endpoints[0].health"),
        shards(shard(|e| e.health = 9), "endpoints[0].health"),
        shards(shard(|e| e.identity = text("a")), "endpoints[0].identity"),
        // Services.
        services(service(|s| s.namespace.clear()), "namespace"),
        services(service(|s| s.host.clear()), "host"),
        services(service(|s| s.host = text("b")), "name"),
        services(service(|s| s.addresses = vec![vec![0; 5].into()]), "addresses[0]"),
        services(service(|s| s.ports[0].port = 0), "ports[0].port"),
        services(service(|s| s.ports[0].protocol = 0), "ports[0].protocol"),
        services(service(|s| s.ports[0].protocol = 99), "ports[0].protocol"),
        services(service(|s| s.ports = vec![port(80), port(80)]), "ports[1]"),
        services(service(|s| drop(s.ports[0].routes.insert(text("x"), String::new()))), "ports[0].routes[\"x\"]"),
        services(service(|s| s.endpoint_shards = vec![String::new()]), "endpoint_shards[0]"),
        // Nodes.
        nodes(node(|n| n.workload = text("b")), "name"),
        nodes(node(|n| n.service_account.clear()), "service_account"),
        nodes(node(|n| n.trust_domain.clear()), "trust_domain"),
        nodes(node(|n| n.default_peer_mode = 0), "default_peer_mode"),
        nodes(node(|n| n.default_peer_mode = 8), "default_peer_mode"),
        nodes(node(|n| n.outbound_mode = 0), "outbound_mode"),
        nodes(node(|n| n.inbound = vec![inbound(0, 2)]), "inbound[0].port"),
        nodes(node(|n| n.inbound = vec![inbound(80, 0)]), "inbound[0].protocol"),
        nodes(node(|n| n.inbound = vec![inbound(80, 2), inbound(80, 2)]), "inbound[1]"),
        nodes(node(|n| n.connect_timeout = seconds(-1)), "connect_timeout"),
        // Routes.
        tables(rule(|r| r.name.clear()), "http[0].name"),
        tables(rule(|r| r.action = None), "http[0]"),
        tables(rule(|r| r.timeout = seconds(-1)), "http[0].timeout"),
        tables(rule(|r| r.try_timeout = seconds(i64::MAX)), "http[0].try_timeout"),
        tables(matching(|m| m.method = text("G T")), "http[0].matches[0].method"),
        tables(path(None), "http[0].matches[0].path"),
        tables(path(Some(path_match::Kind::Exact(text("a")))), "http[0].matches[0].path.exact"),
        tables(path(Some(path_match::Kind::SegmentPrefix(text("")))), "http[0].matches[0].path.segment_prefix"),
        tables(path(Some(path_match::Kind::Regex(text("(")))), "http[0].matches[0].path.regex"),
        tables(header(None), "http[0].matches[0].headers[0].value"),
        tables(header(Some(string_match::Kind::Regex(text("[")))), "http[0].matches[0].headers[0].value.regex"),
        tables(header(Some(string_match::Kind::Present(false))), "http[0].matches[0].headers[0].value.present"),
        tables(setting("a b", "c"), "http[0].request_headers.set[0].name"),
        tables(setting(":path", "c"), "http[0].request_headers.set[0].name"),
        tables(setting("Transfer-Encoding", "chunked"), "http[0].request_headers.set[0].name"),
        tables(setting("Content-Length", "0"), "http[0].request_headers.set[0].name"),
        tables(setting("x-a", "c\r\nx-b: d"), "http[0].request_headers.set[0].value"),
        tables(arms(vec![Arm::default()]), "http[0].split.arms[0]"),
        tables(arms(vec![target("", 80)]), "http[0].split.arms[0].target.service"),
        tables(arms(vec![target("shop/a", 0)]), "http[0].split.arms[0].target.port"),
        tables(arms(vec![target("shop/a", 80), target("shop/b", 80)]), "http[0].split.arms"),
        tables(redirect(|r| r.status = 200), "http[0].redirect.status"),
        tables(redirect(|r| r.scheme = text("ftp")), "http[0].redirect.scheme"),
        tables(redirect(|r| r.host = text("a/b")), "http[0].redirect.host"),
        tables(redirect(|r| r.host = text("user@a")), "http[0].redirect.host"),
        tables(redirect(|r| r.port = 65_536), "http[0].redirect.port"),
        tables(rewriting(None), "http[0].rewrite.path"),
        tables(rewriting(Some(path_rewrite::Kind::Full(text("/a?b")))), "http[0].rewrite.path.full"),
        tables(rewriting(Some(path_rewrite::Kind::Full(text("/a b")))), "http[0].rewrite.path.full"),
        tables(rewriting(Some(path_rewrite::Kind::Prefix(text("a")))), "http[0].rewrite.path.prefix"),
        tables(rule(|r| r.retry = Some(Retry { codes: vec![70_000], ..Retry::default() })), "http[0].retry.codes[0]"),
        tables(
            rule(|r| r.retry = Some(Retry { conditions: vec![text("often")], ..Retry::default() })),
            "http[0].retry.conditions",
        ),
        tables(rule(|r| r.retry = Some(Retry { backoff: seconds(-1), ..Retry::default() })), "http[0].retry.backoff"),
        tables(
            RouteTable { tcp: vec![TcpRule { name: text("t"), ..TcpRule::default() }], ..RouteTable::default() },
            "tcp[0].split",
        ),
        // Policies.
        policies(base(|p| p.load_balancer = 77), "base.load_balancer"),
        policies(base(|p| p.tls = 77), "base.tls"),
        policies(
            base(|p| p.retry_budget = Some(RetryBudget { percent: f64::NAN, ..RetryBudget::default() })),
            "base.retry_budget.percent",
        ),
        policies(
            base(|p| p.retry_budget = Some(RetryBudget { percent: 100.5, ..RetryBudget::default() })),
            "base.retry_budget.percent",
        ),
        policies(
            base(|p| {
                p.outlier_detection =
                    Some(OutlierDetection { max_ejection_percent: 101, ..OutlierDetection::default() })
            }),
            "base.outlier_detection.max_ejection_percent",
        ),
        policies(
            base(|p| p.pool = Some(mesh::ConnectionPool { connect_timeout: seconds(-5), ..Default::default() })),
            "base.pool.connect_timeout",
        ),
        policies(distributing("eu//a", "eu", None), "base.locality.distribute[0].from"),
        policies(distributing("eu", "*/a", None), "base.locality.distribute[0].to"),
        policies(distributing("eu", "us", Some("zone")), "base.locality.distribute"),
        policies(
            base(|p| {
                p.locality =
                    Some(mesh::LocalityPreference { failover_priority: vec!["=v1".into()], ..Default::default() })
            }),
            "base.locality.failover_priority[0]",
        ),
        policies(warming(0, 0.0, 0.0), "base.warmup.duration"),
        policies(warming(-1, 0.0, 0.0), "base.warmup.duration"),
        policies(warming(1, 101.0, 0.0), "base.warmup.minimum_percent"),
        policies(warming(1, 10.0, 0.5), "base.warmup.aggression"),
        policies(warming(1, 10.0, f64::NAN), "base.warmup.aggression"),
        tables(staying(None), "http[0].split.sticky"),
        tables(staying(Some(mesh::sticky::Key::Header(String::new()))), "http[0].split.sticky.header"),
        tables(
            staying(Some(mesh::sticky::Key::Cookie(mesh::HashCookie::default()))),
            "http[0].split.sticky.cookie.name",
        ),
        policies(hashing(|hash| hash.key = None), "base.consistent_hash"),
        policies(hashing(|hash| hash.key = Some(Key::Header("a b".into()))), "base.consistent_hash.header"),
        policies(hashing(|hash| hash.key = Some(Key::SourceIp(false))), "base.consistent_hash.source_ip"),
        policies(
            hashing(|hash| hash.key = Some(Key::QueryParameter(String::new()))),
            "base.consistent_hash.query_parameter",
        ),
        policies(hashing(|hash| hash.key = cookie("a=b", "", 1)), "base.consistent_hash.cookie.name"),
        policies(hashing(|hash| hash.key = cookie("a", "/; Domain=x", 1)), "base.consistent_hash.cookie.path"),
        policies(hashing(|hash| hash.key = cookie("a", "", -1)), "base.consistent_hash.cookie.ttl"),
        policies(
            hashing(|hash| hash.table = Some(Table::MinimumRingSize(1 << 19))),
            "base.consistent_hash.minimum_ring_size",
        ),
        policies(hashing(|hash| hash.table = Some(Table::MaglevSize(65_536))), "base.consistent_hash.maglev_size"),
        policies(BackendPolicy { subsets: vec![Subset::default()], ..BackendPolicy::default() }, "subsets[0].name"),
        policies(breaker(|b| b.name.clear()), "base.breaker.name"),
        policies(breaker(|b| b.failure_percent = -1.0), "base.breaker.failure_percent"),
        policies(breaker(|b| b.max_open = seconds(1)), "base.breaker.max_open"),
        policies(falling_back(None), "base.breaker.fallback"),
        policies(falling_back(Some(fallback::Kind::Reply(reply(600, "")))), "base.breaker.fallback.reply.status"),
        policies(falling_back(Some(fallback::Kind::Reply(reply(100, "")))), "base.breaker.fallback.reply.status"),
        policies(
            falling_back(Some(fallback::Kind::Reply(reply(0, "a\nb")))),
            "base.breaker.fallback.reply.content_type",
        ),
        policies(
            falling_back(Some(fallback::Kind::Backend(FallbackTarget::default()))),
            "base.breaker.fallback.backend.service",
        ),
        // Roots.
        (Kind::TrustBundle, "mesh.local", TrustBundle::default().encode_to_vec(), "roots"),
        (Kind::TrustBundle, "mesh.local", TrustBundle { roots: vec!["no pem".into()] }.encode_to_vec(), "roots[0]"),
    ]
}

#[test]
fn a13_whatever_is_wrong_is_refused_with_its_path() {
    // A wrong rule that slips through steers traffic; one refused without its path cannot be found.
    for (kind, name, encoded, path) in wrong() {
        let rejected = decode(kind, name, &encoded).expect_err(path);
        assert_eq!(rejected.path, path, "{rejected}");
        assert_eq!(rejected.resource, name);
        assert!(!rejected.reason.is_empty());
    }
}

#[test]
fn defaults_are_filled_in() {
    // The data path asks nobody for defaults: a zero left here would be a breaker that trips at once.
    let Ok(Resource::BackendPolicy(set)) = decode(Kind::BackendPolicy, "p", &breaker(|_| {}).encode_to_vec()) else {
        panic!("refused")
    };
    let breaker = set.base.breaker.as_ref().unwrap();
    assert_eq!((breaker.window.as_secs(), breaker.minimum_requests), (10, 20));
    assert!(
        (breaker.failure_percent - 50.0).abs() < f64::EPSILON && (breaker.slow_percent - 100.0).abs() < f64::EPSILON
    );
    assert_eq!((breaker.open.as_secs(), breaker.max_open.as_secs()), (5, 60));
    assert_eq!((breaker.half_open_requests, breaker.half_open_successes), (1, 3));
    assert_eq!((set.base.retry_budget.min_retries_per_second, set.base.retry_budget.window.as_secs()), (10, 10));
    let Ok(Resource::Node(node)) = decode(Kind::Node, "shop/a", &node(|_| {}).encode_to_vec()) else {
        panic!("refused")
    };
    assert_eq!((&*node.domain_suffix, node.connect_timeout.as_secs()), ("cluster.local", 10));
    let Ok(Resource::EndpointShard(shard)) = decode(Kind::EndpointShard, "s", &shard(|_| {}).encode_to_vec()) else {
        panic!("refused")
    };
    assert_eq!(shard.first().unwrap().weight, 1);
}

#[test]
fn routes_and_policies_are_chosen_by_the_clients_namespace() {
    // A consumer's own rules must hold for that namespace only.
    let names =
        |names: &[(&str, &str)]| names.iter().map(|(scope, name)| ((*scope).to_owned(), (*name).to_owned())).collect();
    let content = service(|service| {
        service.ports[0].routes = names(&[("", "all"), ("shop", "own")]);
        service.ports[0].policies = names(&[("shop", "own")]);
    });
    let Ok(Resource::Service(definition)) = decode(Kind::Service, "shop/a", &content.encode_to_vec()) else {
        panic!("refused")
    };
    let port = definition.ports.first().unwrap();
    assert_eq!(port.routes_for("shop").unwrap().as_ref(), "own");
    assert_eq!(port.routes_for("bank").unwrap().as_ref(), "all");
    assert_eq!(port.policy_for("bank"), None);
}

#[test]
fn m11_depth_and_numbers_of_a_message_are_bounded() {
    // Ten thousand levels would use up the stack, and a message of a few megabytes many times its size.
    for kind in Kind::ALL {
        // An unknown field that holds groups in groups (wire type 3), and one that claims to be endless.
        let deep = [0xc3, 0x3e].repeat(10_000);
        assert!(decode(kind, "shop/a", &deep).is_err(), "{kind:?}");
        assert!(decode(kind, "shop/a", &[0xc2, 0x3e, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err(), "{kind:?}");
    }
    // A hundred thousand endpoints in a shard, a million empty ports, a map of half a million entries: refused with a reason.
    let endpoints = (0..100_000).map(|number| Endpoint { uid: number.to_string(), ..endpoint() });
    let shard = EndpointShard { endpoints: endpoints.collect() };
    assert!(decode(Kind::EndpointShard, "shop/a/0", &shard.encode_to_vec()).is_err());
    let ports = service(|service| service.ports = vec![service.ports[0].clone(); 100_000]);
    assert!(decode(Kind::Service, "shop/a", &ports.encode_to_vec()).is_err());
    let routes = service(|service| {
        service.ports[0].routes = (0..500_000).map(|number| (number.to_string(), String::new())).collect();
    });
    assert!(decode(Kind::Service, "shop/a", &routes.encode_to_vec()).is_err());
}

proptest! {
    /// Whatever the bytes, the proxy must answer with a refusal, never with a panic.
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..Kind::ALL.len()) {
        let _ = decode(Kind::ALL[kind], "shop/a", &bytes);
    }

    /// The same for almost right ones, which reach deeper.
    #[test]
    fn no_damage_panics(case in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let cases = wrong();
        let (kind, name, mut bytes, _) = cases[case.index(cases.len())].clone();
        if !bytes.is_empty() {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = decode(kind, name, &bytes);
    }
}
