//! What single steps of the data path cost: match, pick, normalise, and taking a change in.
//!
//! `cargo bench -p outrigger-proxy`. Numbers to look at, not to pass: whole chains are measured by `outrigger-bench`.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
};

use bytes::Bytes;
use divan::{Bencher, black_box};
use http::{Request, Version, request::Parts};
use outrigger_proto::{kind::Kind, mesh};
use outrigger_proxy::{
    balance::{Algorithm, Candidate, Cost, PickContext, Standing, pick, pick_equal},
    config::apply::{Assembler, Held},
    host,
    http::{normalize::normalize, seen::Seen},
    resilience::retry::RetryPolicy,
    route::{Action, Arm, HeaderEdit, HttpRule, Leg, PathMatch, RequestMatch, RouteTable, Split},
    settings::Limits,
};

fn main() {
    divan::main();
}

const SIZES: [u32; 3] = [1, 100, 10_000];

fn rule(number: u32, prefix: &str) -> HttpRule<u32> {
    let arm = Arm {
        weight: 1,
        leg: Leg::To(number),
        request_edit: HeaderEdit::default(),
        response_edit: HeaderEdit::default(),
    };
    let path = Some(PathMatch::segment_prefix(prefix));
    HttpRule {
        name: format!("bench/route/{number}").into(),
        matches: vec![RequestMatch { path, ..RequestMatch::default() }],
        request_edit: HeaderEdit::default(),
        response_edit: HeaderEdit::default(),
        rewrite: None,
        action: Action::Split(Split::new(vec![arm])),
        timeout: None,
        try_timeout: None,
        retry: Arc::new(RetryPolicy::default()),
        breaker: None,
    }
}

fn parts(path: &str) -> Parts {
    Request::builder().uri(path).header("host", "app.bench").body(()).unwrap().into_parts().0
}

/// The last of so many rules matches.
#[divan::bench(args = SIZES)]
fn match_last_rule(bencher: Bencher<'_, '_>, rules: u32) {
    let table =
        RouteTable::new((0..rules).map(|number| rule(number, &format!("/rule/{number}"))).collect(), Vec::new());
    let request = parts(&format!("/rule/{}/x", rules - 1));
    assert!(table.choose(&request).is_some());
    bencher.bench_local(|| table.choose(black_box(&request)).is_some());
}

/// None of so many rules matches.
#[divan::bench(args = SIZES)]
fn match_no_rule(bencher: Bencher<'_, '_>, rules: u32) {
    let table =
        RouteTable::new((0..rules).map(|number| rule(number, &format!("/rule/{number}"))).collect(), Vec::new());
    let request = parts("/other/x");
    assert!(table.choose(&request).is_none());
    bencher.bench_local(|| table.choose(black_box(&request)).is_some());
}

struct Endpoint(f64);

impl Candidate for Endpoint {
    fn weight(&self) -> u32 {
        1
    }

    fn cost(&self) -> Cost {
        Cost { latency: self.0, in_flight: 1 }
    }

    fn part_cost(&self, _part: u32) -> Cost {
        self.cost()
    }

    fn standing(&self) -> Standing {
        Standing::Ready
    }
}

fn endpoints(count: u32) -> Vec<Endpoint> {
    (0..count).map(|number| Endpoint(f64::from(number % 7))).collect()
}

/// The default algorithm, equal weights known: what most backends have.
#[divan::bench(args = SIZES)]
fn pick_least_request(bencher: Bencher<'_, '_>, count: u32) {
    let (endpoints, cursor) = (endpoints(count), AtomicU64::new(0));
    let context = PickContext {
        algorithm: Algorithm::LeastRequest,
        cursor: &cursor,
        panic_percent: 0,
        avoid: None,
        warming: None,
    };
    bencher.bench_local(|| pick_equal(black_box(&endpoints), &context, |bound| fastrand::u64(..bound)).unwrap());
}

/// Weights may differ, so every endpoint is looked at.
#[divan::bench(args = [1, 100])]
fn pick_weighted(bencher: Bencher<'_, '_>, count: u32) {
    let (endpoints, cursor) = (endpoints(count), AtomicU64::new(0));
    let context =
        PickContext { algorithm: Algorithm::RoundRobin, cursor: &cursor, panic_percent: 0, avoid: None, warming: None };
    bencher.bench_local(|| pick(black_box(&endpoints), &context, |bound| fastrand::u64(..bound)).unwrap());
}

/// What a browser or a service sends.
#[divan::bench]
fn normalise(bencher: Bencher<'_, '_>) {
    let limits = Limits::default();
    let request = || {
        let mut request = Request::builder().version(Version::HTTP_11).uri("/products/17/reviews?page=2");
        for (name, value) in [
            ("host", "reviews.shop:80"),
            ("user-agent", "bench/1"),
            ("accept", "application/json"),
            ("accept-encoding", "gzip"),
            ("cookie", "session=0123456789abcdef"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ] {
            request = request.header(name, value);
        }
        request.body(()).unwrap().into_parts().0
    };
    bencher.with_inputs(request).bench_local_values(|mut request| {
        let seen = Seen::of(&request.headers);
        normalize(&mut request, false, seen, &limits).unwrap();
        request
    });
}

fn encoded<M: prost::Message>(message: &M) -> Bytes {
    message.encode_to_vec().into()
}

fn service(number: u32) -> (Arc<str>, Bytes) {
    let host = format!("s{number}.bench.svc.cluster.local");
    let routes = [(String::new(), format!("bench/{host}:80@"))].into();
    let service = mesh::Service {
        namespace: "bench".to_owned(),
        host: host.clone(),
        name: format!("s{number}"),
        ports: vec![mesh::ServicePort {
            port: 80,
            name: "http".to_owned(),
            protocol: mesh::Protocol::Http.into(),
            routes,
            ..Default::default()
        }],
        ..Default::default()
    };
    (format!("bench/{host}").into(), encoded(&service))
}

fn routes(number: u32, timeout_seconds: i64) -> (Arc<str>, Bytes) {
    let target =
        mesh::Target { service: format!("bench/s{number}.bench.svc.cluster.local"), port: 80, ..Default::default() };
    let arm = mesh::Arm { weight: 1, to: Some(mesh::arm::To::Target(target)), ..Default::default() };
    let rule = mesh::HttpRule {
        name: format!("bench/s{number}/0"),
        timeout: Some(prost_types::Duration { seconds: timeout_seconds, nanos: 0 }),
        action: Some(mesh::http_rule::Action::Split(mesh::Split { arms: vec![arm], sticky: None })),
        ..Default::default()
    };
    let table = mesh::RouteTable { http: vec![rule], ..Default::default() };
    (format!("bench/s{number}.bench.svc.cluster.local:80@").into(), encoded(&table))
}

/// One routing table changes among so many services: decode it, and make the next view.
#[divan::bench(args = [1, 100, 1000])]
fn apply_one_change(bencher: Bencher<'_, '_>, services: u32) {
    let mut held = Held::default();
    let mut accept = |kind, (name, bytes): (Arc<str>, Bytes), version: &str| {
        held.accept(kind, &name, &version.into(), Vec::new(), bytes).unwrap();
        name
    };
    let roots: BTreeSet<Arc<str>> = (0..services).map(|number| accept(Kind::Service, service(number), "1")).collect();
    for number in 0..services {
        accept(Kind::RouteTable, routes(number, 1), "1");
    }
    let node = mesh::Node {
        namespace: "bench".to_owned(),
        workload: "me".to_owned(),
        service_account: "me".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        default_peer_mode: mesh::PeerMode::Permissive.into(),
        outbound_mode: mesh::OutboundMode::AllowAny.into(),
        domain_suffix: "cluster.local".to_owned(),
        ..Default::default()
    };
    accept(Kind::Node, ("bench/me".into(), encoded(&node)), "1");
    let mut assembler = Assembler::new("bench", "me", "cluster.local", 0);
    let now = host::now();
    let first = assembler.step(&mut held, &roots, now);
    assert_eq!(first.view.map(|view| view.services.len()), Some(services as usize));
    let mut number = 1_i64;
    bencher.bench_local(|| {
        number += 1;
        let (name, bytes) = routes(0, number % 1000 + 1);
        held.accept(Kind::RouteTable, &name, &number.to_string().into(), Vec::new(), bytes).unwrap();
        let step = assembler.step(&mut held, &roots, now);
        assert!(step.view.is_some());
        step
    });
}
