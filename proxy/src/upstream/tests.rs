//! What is decided without a socket: names and addresses, which rule and backend, what outlives a view, who may be picked.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, request::Parts};

use super::{
    backend::{Backend, RouteBackend},
    destination::Toward,
    dial::Transport,
    exchange::Speaks,
    mesh::{Mesh, Upstreams},
    rule::{self, Chosen},
};
use crate::{
    config::view::{
        self, EndpointPort, Health, Map, Node, OutboundMode, PeerKind, PeerMode, Policy, PolicySet, Protocol, Service,
        ServicePort, Subset, TlsMode, View,
    },
    failure::Reason,
    http::seen::Seen,
    resilience::{
        breaker::BreakerPolicy,
        ejection::{EjectionPolicy, Fault},
        limits::{LimitPolicy, Slot},
        retry::RetryPolicy,
    },
    route::{
        Action, Arm, HeaderEdit, HttpRule, Leg, PathMatch, PathRewrite, Redirect, RequestMatch, Rewrite, RouteTable,
        Split, Target,
    },
    settings::{EjectionSettings, TelemetrySettings},
    telemetry::{LabelSet, Telemetry},
    tls::Expected,
};

mod balancing;

fn target(name: &str, subset: &str) -> Target {
    Target { service: resource(name), port: 80, subset: subset.into() }
}

fn resource(name: &str) -> Arc<str> {
    format!("shop/{name}.shop.svc.cluster.local").into()
}

fn endpoint(address: &str, version: &str) -> view::Endpoint {
    let address: IpAddr = address.parse().unwrap();
    view::Endpoint {
        ports: vec![EndpointPort { service_port: 80, port: 8080, peer: PeerKind::Outrigger }],
        identity: Some("spiffe://cluster.local/ns/shop/sa/api".into()),
        labels: BTreeMap::from([("version".to_owned(), version.to_owned())]),
        ..view::Endpoint::bare(SocketAddr::new(address, 0))
    }
}

/// A service of namespace `shop` with port 80, ready to be changed.
fn service(name: &str, endpoints: Vec<view::Endpoint>) -> Service {
    let host: Arc<str> = format!("{name}.shop.svc.cluster.local").into();
    Service {
        resource: resource(name),
        namespace: "shop".into(),
        hosts: vec![format!("{name}.shop").into()],
        host,
        name: name.into(),
        addresses: Vec::new(),
        ports: vec![ServicePort {
            port: 80,
            name: "http".into(),
            protocol: Protocol::Http,
            routes: None,
            policies: Arc::default(),
        }],
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
        external: false,
    }
}

fn with_policy(mut service: Service, policy: Policy) -> Service {
    service.ports[0].policies = Arc::new(PolicySet { base: Arc::new(policy), subsets: Vec::new() });
    service
}

fn with_rules(mut service: Service, rules: Vec<HttpRule<Target>>) -> Service {
    service.ports[0].routes = Some(Arc::new(RouteTable::new(rules, Vec::new())));
    service
}

fn arm(weight: u32, to: Target) -> Arm<Target> {
    Arm { weight, leg: Leg::To(to), request_edit: HeaderEdit::default(), response_edit: HeaderEdit::default() }
}

fn rule(path: &str, action: Action<Target>) -> HttpRule<Target> {
    HttpRule {
        name: format!("shop/route{path}").into(),
        matches: vec![RequestMatch { path: Some(PathMatch::segment_prefix(path)), ..RequestMatch::default() }],
        request_edit: HeaderEdit::default(),
        response_edit: HeaderEdit::default(),
        rewrite: None,
        action,
        timeout: None,
        try_timeout: None,
        retry: Arc::default(),
        breaker: None,
    }
}

fn view(services: &[Arc<Service>]) -> Arc<View> {
    let node = Node {
        namespace: "shop".into(),
        workload: "caller".into(),
        service_account: "caller".into(),
        trust_domain: "cluster.local".into(),
        labels: BTreeMap::new(),
        default_peer_mode: PeerMode::Strict,
        inbound: Map::default(),
        preload: Vec::new(),
        outbound_mode: OutboundMode::AllowAny,
        domain_suffix: "cluster.local".into(),
        connect_timeout: Duration::from_secs(3),
        locality: "eu/a".into(),
    };
    let services = services.iter().map(|service| (Arc::clone(&service.resource), Arc::clone(service))).collect();
    Arc::new(View { generation: 1, node: Arc::new(node), services })
}

fn upstreams(ejection: Option<EjectionPolicy>) -> Upstreams {
    let telemetry = Telemetry::new(&TelemetrySettings::default(), LabelSet::default(), 1);
    Upstreams::new(1, telemetry, Some("10.0.0.99".parse().unwrap()), ejection)
}

fn mesh(services: Vec<Service>) -> Mesh {
    let services: Vec<_> = services.into_iter().map(Arc::new).collect();
    upstreams(EjectionSettings::default().policy()).join(view(&services), None)
}

fn backend(mesh: &Mesh, name: &str) -> Arc<Backend> {
    Arc::clone(&mesh.service_by_host(&format!("{name}.shop")).unwrap().port(80).unwrap().own.backend)
}

fn toward(mesh: &Mesh, name: &str) -> Toward {
    mesh.toward_name(&format!("{name}.shop"), 80).unwrap()
}

fn request(path: &str) -> Parts {
    Request::builder().uri(path).header("host", "api.shop").body(()).unwrap().into_parts().0
}

fn edit(name: &'static str, value: &'static str) -> HeaderEdit {
    let set = vec![(HeaderName::from_static(name), HeaderValue::from_static(value))];
    HeaderEdit { set, ..HeaderEdit::default() }
}

mod names {
    use super::*;

    /// What a name leads to: "service", "endpoint" or nothing.
    fn kind(toward: Option<Toward>) -> &'static str {
        match toward {
            Some(Toward::Service(_)) => "service",
            Some(Toward::Endpoint(..)) => "endpoint",
            Some(Toward::Outside(_)) => "outside",
            None => "nothing",
        }
    }

    #[test]
    fn names_and_addresses_lead_where_they_should() {
        // A name that falls through goes to the outside world, in plaintext.
        let mut api = service("api", vec![endpoint("10.0.0.1", "v1")]);
        api.addresses = vec!["240.240.0.1".parse().unwrap()];
        let mut six = service("six", vec![endpoint("2001:db8::1", "v1")]);
        six.namespace = "elsewhere".into();
        let mesh = mesh(vec![api, six]);
        for (host, port, expected) in [
            ("api", 80, "service"),
            ("api.shop", 80, "service"),
            ("API.Shop", 80, "service"),
            ("api.shop.svc.cluster.local.", 80, "service"),
            ("api", 81, "nothing"),
            ("six", 80, "nothing"),
            ("six.shop", 80, "service"),
            ("240.240.0.1", 80, "service"),
            ("240.240.0.1", 81, "nothing"),
            ("10.0.0.1", 8080, "endpoint"),
            ("10.0.0.1", 80, "nothing"),
            ("[2001:db8::1]", 8080, "endpoint"),
            ("2001:db8::1", 8080, "endpoint"),
            ("[2001:db8::1", 8080, "nothing"),
            ("example.org", 80, "nothing"),
        ] {
            assert_eq!(kind(mesh.toward_name(host, port)), expected, "{host}:{port}");
        }
    }

    #[test]
    fn two_services_that_claim_one_name_have_one_winner() {
        // Otherwise the same name would lead to different services in different sidecars.
        for order in [["first", "second"], ["second", "first"]] {
            let services = order.map(|name| {
                let mut service = service(name, Vec::new());
                service.hosts.push("shared.example".into());
                service.addresses = vec!["240.240.0.7".parse().unwrap()];
                service
            });
            let mesh = mesh(services.into());
            assert_eq!(*mesh.service_by_host("shared.example").unwrap().config.name, *"first");
            assert_eq!(*mesh.service_by_address("240.240.0.7".parse().unwrap()).unwrap().config.name, *"first");
        }
    }

    #[test]
    fn what_a_destination_says_of_itself() {
        // Labels and records name the service; who dials an address names none.
        let mesh = mesh(vec![service("api", vec![endpoint("10.0.0.1", "v1")])]);
        let by_name = toward(&mesh, "api");
        assert_eq!((by_name.service(), by_name.service_port()), (Some(&resource("api")), Some(80)));
        assert_eq!(by_name.protocol(), Protocol::Http);
        assert_eq!(*by_name.own().backend.name, *"api.shop.svc.cluster.local:80");
        let direct = mesh.toward_address("10.0.0.1:8080".parse().unwrap()).unwrap();
        assert_eq!((direct.service(), direct.service_port(), direct.protocol()), (None, None, Protocol::Detect));
        let outside = Toward::Outside(direct.own().clone());
        assert_eq!((outside.service(), outside.protocol()), (None, Protocol::Detect));
        assert_eq!(outside.labels(), direct.labels());
    }
}

mod joining {
    use super::*;

    #[test]
    fn what_did_not_change_stays_and_what_lives_is_carried_over() {
        // A swap that forgot pools, limits or ejections would reset connections and forgive bad endpoints.
        let upstreams = upstreams(None);
        let api = Arc::new(service("api", vec![endpoint("10.0.0.1", "v1")]));
        let split = Action::Split(Split::new(vec![arm(1, target("api", ""))]));
        let front = Arc::new(with_rules(service("front", Vec::new()), vec![rule("/", split)]));
        let other = Arc::new(service("other", Vec::new()));
        let before = upstreams.join(view(&[Arc::clone(&api), Arc::clone(&front), Arc::clone(&other)]), None);
        let live = |mesh: &Mesh, name: &str| Arc::clone(mesh.service_by_host(&format!("{name}.shop")).unwrap());

        let mut moved = endpoint("10.0.0.1", "v1");
        moved.identity = Some("spiffe://cluster.local/ns/shop/sa/else".into());
        let grown = vec![endpoint("10.0.0.1", "v1"), endpoint("10.0.0.2", "v1"), moved];
        let new_api = Arc::new(service("api", grown));
        let after = upstreams.join(view(&[new_api, front, Arc::clone(&other)]), Some(&before));
        assert!(Arc::ptr_eq(&live(&before, "other"), &live(&after, "other")), "nothing of it changed");
        assert!(!Arc::ptr_eq(&live(&before, "front"), &live(&after, "front")), "what its rule leads to has changed");
        let (old, new) = (backend(&before, "api"), backend(&after, "api"));
        assert!(Arc::ptr_eq(&old.state, &new.state));
        assert!(Arc::ptr_eq(&old.endpoints[0].state, &new.endpoints[0].state));
        assert!(!Arc::ptr_eq(&old.endpoints[0].state, &new.endpoints[2].state), "another identity is another endpoint");
        let toward = toward(&after, "front");
        let Ok(Chosen::Forward(forward)) = rule::choose(&toward, &request("/"), Seen::default()) else {
            panic!("no way")
        };
        assert!(Arc::ptr_eq(&forward.route.backend, &new), "the rule sees the new endpoints and shares the backend");
    }

    #[test]
    fn a17_what_is_counted_for_one_is_not_counted_for_another() {
        // Two services behind one address, or one address under two names, would share limits, breakers and connections.
        let breaker = || Some(Arc::new(BreakerPolicy::named("shop/api")));
        let mut services: Vec<_> = ["api", "web"]
            .map(|name| {
                let policy = Policy { breaker: breaker(), ..Policy::default() };
                with_policy(service(name, vec![endpoint("10.0.0.1", "v1")]), policy)
            })
            .into();
        // The same address as somebody else, and in plaintext.
        let mut other = endpoint("10.0.0.1", "v1");
        other.identity = Some("spiffe://cluster.local/ns/shop/sa/other".into());
        let mut plain = endpoint("10.0.0.1", "v1");
        plain.ports[0].peer = PeerKind::Plain;
        plain.identity = None;
        let more = [Arc::new(other), Arc::new(plain)];
        services[0].endpoints = services[0].endpoints.iter().cloned().chain(more).collect();
        let mesh = mesh(services);
        let (api, web) = (backend(&mesh, "api"), backend(&mesh, "web"));
        assert!(!Arc::ptr_eq(&api.state, &web.state), "limits and budget");
        let states: Vec<_> = api.endpoints.iter().chain(&web.endpoints).map(|endpoint| &endpoint.state).collect();
        assert_eq!(states.len(), 4);
        for (at, one) in states.iter().enumerate() {
            assert!(states[at + 1..].iter().all(|other| !Arc::ptr_eq(one, other)), "connections of endpoint {at}");
        }
        let _full = api.hold(Slot::Request).unwrap();
        assert!(web.hold(Slot::Request).is_ok());
    }

    #[test]
    fn m13_a_thousand_services_go_at_once() {
        // Freed one inside the other, they would use up the stack of the thread that happened to hold the last one.
        let upstreams = upstreams(None);
        let services: Vec<Arc<Service>> = (0..1000)
            .map(|number| {
                // Each leads to the next, as chains of fallbacks and routes do.
                let next = target(&format!("s{}", (number + 1) % 1000), "");
                let split = Action::Split(Split::new(vec![arm(1, next)]));
                let own = service(&format!("s{number}"), vec![endpoint("10.0.0.1", "v1")]);
                Arc::new(with_rules(own, vec![rule("/", split)]))
            })
            .collect();
        let before = upstreams.join(view(&services), None);
        assert!(before.service_by_host("s999.shop").is_some());
        drop(services);
        let gone = std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || {
                let after = upstreams.join(view(&[]), Some(&before));
                drop(before);
                after.service_by_host("s0.shop").is_none() && upstreams.breakers().is_empty()
            })
            .unwrap();
        assert!(gone.join().unwrap());
    }

    #[test]
    fn an_unused_state_is_not_kept() {
        // A mesh whose services come and go all day would grow for ever.
        let upstreams = upstreams(None);
        let breaker = Some(Arc::new(BreakerPolicy::named("shop/api")));
        let breaking = Policy { breaker, ..Policy::default() };
        let first = upstreams.join(view(&[Arc::new(with_policy(service("api", Vec::new()), breaking))]), None);
        assert_eq!(upstreams.breakers().len(), 1);
        let state = Arc::downgrade(&backend(&first, "api").state);
        let second = upstreams.join(view(&[]), Some(&first));
        drop(first);
        assert!(state.upgrade().is_none() && upstreams.breakers().is_empty());
        drop(second);
    }

    #[test]
    fn how_an_endpoint_is_spoken_to() {
        // One row wrong is plaintext where there should be mutual TLS, or the other way round.
        let exactly = |multiplex| format!("{:?}", (true, multiplex));
        let plain = "plain".to_owned();
        for (tls, peer, address, expected) in [
            (TlsMode::Auto, PeerKind::Plain, "10.0.0.1", plain.clone()),
            (TlsMode::Auto, PeerKind::Mesh, "10.0.0.1", exactly(false)),
            (TlsMode::Auto, PeerKind::Outrigger, "10.0.0.1", exactly(true)),
            (TlsMode::Disable, PeerKind::Outrigger, "10.0.0.1", plain.clone()),
            (TlsMode::Mesh, PeerKind::Plain, "10.0.0.1", exactly(false)),
            (TlsMode::Mesh, PeerKind::Outrigger, "10.0.0.1", exactly(true)),
            // The application beside us.
            (TlsMode::Mesh, PeerKind::Outrigger, "10.0.0.99", plain),
        ] {
            let mut one = endpoint(address, "v1");
            one.ports[0].peer = peer;
            let mesh = mesh(vec![with_policy(service("api", vec![one]), Policy { tls, ..Policy::default() })]);
            let found = match &backend(&mesh, "api").endpoints[0].transport {
                Transport::Plain => "plain".to_owned(),
                Transport::Mesh { expected, multiplex } => {
                    format!("{:?}", (matches!(expected, Expected::Exactly(_)), *multiplex))
                }
            };
            assert_eq!(found, expected, "{tls:?} to {peer:?} at {address}");
        }
    }

    #[test]
    fn a_subset_has_its_own_endpoints_and_policy() {
        // A canary that reaches the other version is no canary.
        let mut api = service("api", vec![endpoint("10.0.0.1", "v1"), endpoint("10.0.0.2", "v2")]);
        let strict = Policy { connect_timeout: Some(Duration::from_secs(1)), ..Policy::default() };
        let subset = Subset {
            name: "v2".into(),
            labels: BTreeMap::from([("version".to_owned(), "v2".to_owned())]),
            policy: Arc::new(strict),
        };
        api.ports[0].policies = Arc::new(PolicySet { base: Arc::default(), subsets: vec![subset] });
        let to = |path, subset| rule(path, Action::Split(Split::new(vec![arm(1, target("api", subset))])));
        let api = with_rules(api, vec![to("/v2", "v2"), to("/none", "v3"), to("/all", "")]);
        let mesh = mesh(vec![api]);
        let toward = toward(&mesh, "api");
        let chosen = |path: &str| match rule::choose(&toward, &request(path), Seen::default()) {
            Ok(Chosen::Forward(forward)) => {
                let backend = &forward.route.backend;
                let addresses: Vec<_> = backend.endpoints.iter().map(|one| one.address.ip().to_string()).collect();
                (addresses.join(" "), backend.connect_timeout.as_secs())
            }
            Ok(Chosen::Redirect(_)) => ("redirect".to_owned(), 0),
            Err(failure) => (format!("{:?}", failure.reason), 0),
        };
        assert_eq!(chosen("/v2"), ("10.0.0.2".to_owned(), 1));
        assert_eq!(
            chosen("/all"),
            ("10.0.0.1 10.0.0.2".to_owned(), 3),
            "the node's connect timeout where none is given"
        );
        assert_eq!(chosen("/none"), ("BadBackend".to_owned(), 0));
        assert_eq!(chosen("/"), ("NoRoute".to_owned(), 0));
    }
}

mod rules {
    use super::*;

    fn only(rule: HttpRule<Target>) -> Mesh {
        mesh(vec![with_rules(service("api", vec![endpoint("10.0.0.1", "v1")]), vec![rule])])
    }

    fn to_api() -> Action<Target> {
        Action::Split(Split::new(vec![arm(1, target("api", ""))]))
    }

    #[test]
    fn a_share_without_weight_gets_nothing_and_says_so() {
        // "weight: 0" everywhere is a drained route, not a route to anybody.
        let mesh = only(rule("/", Action::Split(Split::new(vec![arm(0, target("api", ""))]))));
        let toward = toward(&mesh, "api");
        let Err(failure) = rule::choose(&toward, &request("/"), Seen::default()) else { panic!("somebody was chosen") };
        assert_eq!(failure.reason, Reason::BadBackend);
        assert!(failure.to_string().contains("weight"), "{failure}");
    }

    #[test]
    fn a_redirect_is_answered_without_a_backend() {
        // It must carry the right place and the rule's own headers.
        let redirect =
            Redirect { status: StatusCode::FOUND, scheme: Some("https".into()), host: None, port: None, path: None };
        let mut moved = rule("/old", Action::Redirect(redirect));
        moved.response_edit = edit("x-moved", "yes");
        let mesh = only(moved);
        let toward = toward(&mesh, "api");
        let Ok(Chosen::Redirect(response)) = rule::choose(&toward, &request("/old/page?x=1"), Seen::default()) else {
            panic!("no redirect")
        };
        assert_eq!(response.status(), StatusCode::FOUND);
        assert_eq!(response.headers()["location"], "https://api.shop/old/page?x=1");
        assert_eq!(response.headers()["x-moved"], "yes");
    }

    #[test]
    fn the_head_is_edited_and_leaves_its_connection_behind() {
        // Fields of the client's connection that travel on are how requests are smuggled.
        let mut api = rule("/a", to_api());
        api.request_edit = edit("x-rule", "1");
        let path = Some(PathRewrite::Prefix("/b".into()));
        api.rewrite = Some(Rewrite { host: Some(HeaderValue::from_static("other.example")), path });
        let mesh = only(api);
        let toward = toward(&mesh, "api");
        let mut parts = request("/a/c?d=e");
        for (name, value) in
            [("connection", "keep-alive, x-secret"), ("x-secret", "1"), ("te", "trailers"), ("x-mine", "2")]
        {
            parts.headers.insert(name, HeaderValue::from_static(value));
        }
        let Ok(Chosen::Forward(forward)) = rule::choose(&toward, &parts, Seen::of(&parts.headers)) else {
            panic!("no way")
        };
        let seen = Seen::of(&parts.headers);
        let head = forward.head(parts, seen, None, "api.shop".parse().unwrap(), None).unwrap();
        assert_eq!((head.path.as_str(), head.authority.as_str()), ("/b/c?d=e", "other.example"));
        assert_eq!(head.speaks, Speaks::Http1);
        for gone in ["connection", "x-secret", "host"] {
            assert!(!head.headers.contains_key(gone), "{gone}");
        }
        assert!(head.headers["x-rule"] == "1" && head.headers["x-mine"] == "2", "{:?}", head.headers);
        assert_eq!(forward.rule_name().map(|name| &**name), Some("shop/route/a"));
    }

    #[test]
    fn without_a_rule_everything_goes_straight() {
        // A service without routes has the default retries and no timeout.
        let mesh = mesh(vec![service("api", vec![endpoint("10.0.0.1", "v1")])]);
        let toward = toward(&mesh, "api");
        let Ok(Chosen::Forward(forward)) = rule::choose(&toward, &request("/x"), Seen::default()) else {
            panic!("no way")
        };
        assert_eq!((forward.rule_name(), forward.timeout()), (None, None));
        let default = RetryPolicy { attempts: 7, ..RetryPolicy::default() };
        assert_eq!(forward.plan(crate::resilience::deadline::Deadline { at: None }, &default).retry.attempts, 7);
        let mut parts = request("/x");
        parts.uri = Uri::from_static("api.shop:80");
        parts.version = http::Version::HTTP_2;
        let seen = Seen::of(&parts.headers);
        let head = forward.head(parts, seen, None, "api.shop".parse().unwrap(), None).unwrap();
        assert_eq!((head.path.as_str(), head.speaks), ("/", Speaks::Http2));
    }
}

mod picking {
    use super::*;

    /// A backend of so many endpoints under this default, as "R", "D" and "U" say how they are.
    fn backend_of(health: &str, default: EjectionSettings, own: Option<EjectionPolicy>) -> Arc<Backend> {
        let endpoints = health.chars().enumerate().map(|(index, letter)| {
            let mut one = endpoint(&format!("10.0.0.{}", index + 1), "v1");
            one.health = match letter {
                'R' => Health::Ready,
                'D' => Health::Draining,
                _ => Health::Unready,
            };
            one
        });
        let policy = Policy { ejection: own.map(Arc::new), ..Policy::default() };
        let api = Arc::new(with_policy(service("api", endpoints.collect()), policy));
        backend(&upstreams(default.policy()).join(view(&[api]), None), "api")
    }

    /// Which endpoints are put aside after so many failures of each of `failing`.
    fn aside(backend: &Backend, failing: &[usize], fault: Fault, times: usize) -> Vec<usize> {
        for &index in failing {
            for _ in 0..times {
                backend.note(&backend.endpoints[index], fault);
            }
        }
        let all = backend.endpoints.iter().enumerate();
        all.filter(|(_, endpoint)| endpoint.state.is_ejected()).map(|(index, _)| index).collect()
    }

    fn reached(backend: &Backend) -> Result<Vec<usize>, Reason> {
        let mut reached =
            (0..200).map(|_| backend.pick(None, None).map(|(index, _)| index)).collect::<Result<Vec<_>, _>>()?;
        reached.sort_unstable();
        reached.dedup();
        Ok(reached)
    }

    #[test]
    fn every_backend_has_the_default_ejection_unless_it_says_otherwise() {
        // Most services have no DestinationRule; without a default none of them would leave a broken endpoint alone.
        let default = EjectionSettings::default();
        let off = EjectionSettings { consecutive_failures: 0, ..default };
        let three = EjectionSettings { consecutive_failures: 3, ..default };
        let own_off = EjectionPolicy { consecutive_5xx: 0, ..EjectionPolicy::default() };
        let own = EjectionPolicy { consecutive_5xx: 1, ..EjectionPolicy::default() };
        type Case = (&'static str, EjectionSettings, Option<EjectionPolicy>, Fault, usize, &'static [usize]);
        let cases: [Case; 12] = [
            ("RRR", default, None, Fault::Local, 4, &[]),
            ("RRR", default, None, Fault::Local, 5, &[0]),
            ("RRR", default, None, Fault::GatewayError, 5, &[0]),
            // The application's own words: a bug in one path must not take endpoint after endpoint.
            ("RRR", default, None, Fault::ServerError, 50, &[]),
            ("RRR", off, None, Fault::Local, 50, &[]),
            ("RRR", three, None, Fault::Local, 3, &[0]),
            // A rule replaces the default as a whole.
            ("RRR", default, Some(own_off), Fault::Local, 50, &[]),
            ("RRR", off, Some(own), Fault::ServerError, 1, &[0]),
            // At most half, and the only one never.
            ("RRRR", default, None, Fault::Local, 5, &[0, 1]),
            ("RR", default, None, Fault::Local, 5, &[0]),
            ("R", default, None, Fault::Local, 50, &[]),
            ("RRR", EjectionSettings { max_percent: 0, ..default }, None, Fault::Local, 50, &[]),
        ];
        for (health, settings, own, fault, times, expected) in cases {
            let backend = backend_of(health, settings, own);
            // All fail, the first ones first.
            let failing: Vec<usize> = (0..health.len()).collect();
            assert_eq!(
                aside(&backend, &failing, fault, times),
                expected,
                "{health} {settings:?} {own:?} {fault:?} {times}"
            );
            assert_eq!(backend.state.ejections(), expected.len() as u64);
        }
    }

    #[test]
    fn panic_brings_back_what_was_put_aside() {
        // When most of a service is out, the rest cannot carry it all, and the fault is likely elsewhere.
        let default = EjectionSettings::default();
        for (health, settings, failing, expected) in [
            ("RRRR", default, vec![0, 1], Ok(vec![2, 3])),
            ("RRUU", default, vec![0], Ok(vec![0, 1])),
            ("RRUU", EjectionSettings { panic_percent: 0, ..default }, vec![0], Ok(vec![1])),
            ("RRUU", EjectionSettings { panic_percent: 25, ..default }, vec![0], Ok(vec![1])),
            ("RRRR", EjectionSettings { panic_percent: 100, ..default }, vec![0], Ok(vec![0, 1, 2, 3])),
            ("UU", default, vec![], Err(Reason::NoHealthyEndpoint)),
            ("DU", default, vec![], Ok(vec![0])),
            ("", default, vec![], Err(Reason::NoEndpoints)),
        ] {
            let backend = backend_of(health, settings, None);
            assert_eq!(aside(&backend, &failing, Fault::Local, 5), failing, "{health}");
            assert_eq!(reached(&backend), expected, "{health} without {failing:?}, {settings:?}");
        }
    }

    #[test]
    fn an_endpoint_that_is_ready_again_is_not_aside_any_more() {
        // A restarted replica would get nothing for the rest of its predecessor's punishment.
        let upstreams = upstreams(EjectionSettings::default().policy());
        let mesh_of = |health: Health, previous: Option<&Mesh>| {
            let mut first = endpoint("10.0.0.1", "v1");
            first.health = health;
            let api = service("api", vec![first, endpoint("10.0.0.2", "v1"), endpoint("10.0.0.3", "v1")]);
            upstreams.join(view(&[Arc::new(api)]), previous)
        };
        let before = mesh_of(Health::Ready, None);
        assert_eq!(aside(&backend(&before, "api"), &[0], Fault::Local, 5), [0]);
        let down = mesh_of(Health::Unready, Some(&before));
        let back = mesh_of(Health::Ready, Some(&down));
        assert_eq!(aside(&backend(&back, "api"), &[], Fault::Local, 0), Vec::<usize>::new());
    }

    #[test]
    fn who_dials_an_endpoint_gets_it_whatever_others_saw() {
        // Nobody can be chosen instead, so putting it aside would only be an outage.
        let api = service("api", vec![endpoint("10.0.0.1", "v1"), endpoint("10.0.0.2", "v1")]);
        let mesh = mesh(vec![api]);
        let all = backend(&mesh, "api");
        assert_eq!(aside(&all, &[0], Fault::Local, 5), [0]);
        let direct = mesh.toward_address("10.0.0.1:8080".parse().unwrap()).unwrap();
        let RouteBackend { backend: one, .. } = direct.own();
        assert_eq!(reached(one), Ok(vec![0]));
        assert_eq!(aside(one, &[0], Fault::Local, 50), [0], "and its failures punish nobody further");
        assert_eq!(all.state.ejections(), 1);
    }

    #[test]
    fn full_limits_say_which() {
        // "Overflow" without the kind of limit sends people to the wrong field of their DestinationRule.
        let limits = LimitPolicy { max_connections: 1, max_pending_requests: 1, max_requests: 1, max_retries: 1 };
        let api = with_policy(service("api", Vec::new()), Policy { limits, ..Policy::default() });
        let backend = backend(&mesh(vec![api]), "api");
        for (slot, reason) in [
            (Slot::Connection, Reason::ConnectionOverflow),
            (Slot::Pending, Reason::UpstreamOverflow),
            (Slot::Request, Reason::UpstreamOverflow),
            (Slot::Retry, Reason::UpstreamOverflow),
        ] {
            let held = backend.hold(slot);
            assert!(held.is_ok(), "{slot:?}");
            assert_eq!(backend.hold(slot).err(), Some(reason), "{slot:?}");
            drop(held);
            assert!(backend.hold(slot).is_ok(), "{slot:?} is free again");
        }
    }
}
