//! What consistent hashing keeps over swaps of the view, and which key a request has.

use http::{HeaderMap, Method, uri::Authority};

use super::*;
use crate::{
    balance::{
        Algorithm, Candidate as _,
        key::{CookieKey, HashPolicy, KeySource},
        keyed::{Table, TableKind},
        locality::LocalityPolicy,
        warmup::Warmup,
    },
    host,
    upstream::exchange::Head,
};

fn hashing(key: KeySource) -> Policy {
    let table = TableKind::Maglev { size: 1009 };
    Policy { hash: Some(Arc::new(HashPolicy { key, table })), ..Policy::default() }
}

fn by_header() -> KeySource {
    KeySource::Header(HeaderName::from_static("x-user"))
}

fn named(name: &str, address: &str) -> view::Endpoint {
    view::Endpoint { uid: name.into(), ..endpoint(address, "v1") }
}

fn three() -> Vec<view::Endpoint> {
    vec![named("a", "10.0.0.1"), named("b", "10.0.0.2"), named("c", "10.0.0.3")]
}

fn head(fields: &[(&'static str, &'static str)]) -> Head {
    let fields = fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    Head {
        method: Method::GET,
        path: "/".parse().unwrap(),
        authority: Authority::from_static("api.shop"),
        headers: HeaderMap::from_iter(fields),
        grpc: false,
        speaks: Speaks::Http1,
        interim: None,
    }
}

fn table(mesh: &Mesh) -> Arc<Table> {
    Arc::clone(&backend(mesh, "api").affinity.as_ref().unwrap().table)
}

#[test]
fn a_table_is_made_anew_only_when_its_endpoints_changed() {
    // Tables of large services take milliseconds; made for every change of the mesh, they would be most of its work.
    let upstreams = upstreams(None);
    let join = |service: Service, last: Option<&Mesh>| upstreams.join(view(&[Arc::new(service)]), last);
    let service = |endpoints| with_policy(service("api", endpoints), hashing(by_header()));
    let first = join(service(three()), None);
    let mut unready = three();
    unready[1].health = Health::Unready;
    let (mut heavier, mut other_policy) = (three(), service(three()));
    let mut further = service(three());
    further.hosts.push("api.example".into());
    for (same, what) in [(service(unready), "health"), (further, "a name")] {
        let next = join(same, Some(&first));
        assert!(Arc::ptr_eq(&table(&first), &table(&next)), "{what}");
        drop(next);
        drop(join(service(three()), Some(&first)));
    }
    heavier[1].weight = 2;
    let fewer = three().split_off(1);
    let ring = HashPolicy { key: by_header(), table: TableKind::default() };
    let ring = Policy { hash: Some(Arc::new(ring)), ..Policy::default() };
    other_policy = with_policy(other_policy, ring);
    for (other, what) in [(service(heavier), "weight"), (service(fewer), "removal"), (other_policy, "policy")] {
        let next = join(other, Some(&first));
        assert!(!Arc::ptr_eq(&table(&first), &table(&next)), "{what}");
    }
}

#[test]
fn p15_two_sidecars_send_one_key_to_one_endpoint() {
    // A cache behind two gateways would hold everything twice. They know the endpoints in different orders.
    let mut turned = three();
    turned.reverse();
    let (one, other) = (
        backend(&mesh(vec![with_policy(service("api", three()), hashing(by_header()))]), "api"),
        backend(&mesh(vec![with_policy(service("api", turned), hashing(by_header()))]), "api"),
    );
    let mut reached = std::collections::BTreeSet::new();
    for key in 0..500_u64 {
        let key = crate::balance::stable_hash::hash(&key.to_le_bytes(), 0);
        let address = |backend: &Backend| backend.pick(None, Some(key)).unwrap().1.address;
        assert_eq!(address(&one), address(&other));
        reached.insert(address(&one));
    }
    assert_eq!(reached.len(), 3);
    // Without a key any of them.
    let without: std::collections::BTreeSet<_> = (0..200).map(|_| one.pick(None, None).unwrap().0).collect();
    assert_eq!(without.len(), 3);
}

#[test]
fn a_key_comes_from_the_request_or_is_made() {
    // A cookie that is set though the client has one would log people out; one that is not set makes nothing sticky.
    let cookie = |ttl| KeySource::Cookie(CookieKey { name: "user".into(), path: "/".into(), ttl });
    let of = |key, fields: &[(&'static str, &'static str)], source: Option<&str>| {
        let backend = backend(&mesh(vec![with_policy(service("api", three()), hashing(key))]), "api");
        let affinity = backend.affinity.clone().unwrap();
        affinity.of_request(&head(fields), source.map(|source| source.parse().unwrap()))
    };
    assert!(matches!(of(by_header(), &[("x-user", "ann")], None), (Some(_), None)));
    assert!(matches!(of(by_header(), &[], Some("10.0.0.9")), (None, None)));
    assert!(matches!(of(cookie(None), &[], None), (None, None)));
    assert!(matches!(of(cookie(Some(Duration::ZERO)), &[("cookie", "user=ann")], None), (Some(_), None)));
    let (key, field) = of(cookie(Some(Duration::ZERO)), &[], None);
    assert!(key.is_some() && field.unwrap().to_str().unwrap().starts_with("user="));
    // Over the loopback every application would have the same address; it is the workload then that counts.
    let loopback = of(KeySource::SourceIp, &[], Some("127.0.0.1"));
    assert_eq!(loopback, of(KeySource::SourceIp, &[], Some("::1")));
    assert_eq!(loopback, of(KeySource::SourceIp, &[], None));
    assert_ne!(loopback, of(KeySource::SourceIp, &[], Some("10.0.0.9")));
}

#[test]
fn an_endpoint_that_was_dialled_is_not_looked_up_in_a_table() {
    // The table knows the endpoints of the whole backend; here there is one.
    let mesh = mesh(vec![with_policy(service("api", three()), hashing(by_header()))]);
    let direct = mesh.toward_address("10.0.0.3:8080".parse().unwrap()).unwrap();
    for key in 0..20 {
        let (_, endpoint) = direct.own().backend.pick(None, Some(key)).unwrap();
        assert_eq!(endpoint.address, "10.0.0.3:8080".parse().unwrap());
    }
}

#[test]
fn near_is_where_this_sidecar_is() {
    // A sidecar that was moved, or learns its place late, would go on sending everything to where it was.
    let policy = LocalityPolicy::Failover { regions: BTreeMap::new(), labels: Vec::new() };
    let policy = Policy { locality: Some(Arc::new(policy)), ..Policy::default() };
    let mut endpoints = three();
    for (endpoint, locality) in endpoints.iter_mut().zip(["eu/a", "eu/b", "us/a"]) {
        endpoint.locality = locality.into();
    }
    let service = Arc::new(with_policy(service("api", endpoints), policy));
    let at = |locality: &str| {
        let mut view = Arc::into_inner(view(&[Arc::clone(&service)])).unwrap();
        view.node = Arc::new(Node { locality: locality.into(), ..Node::clone(&view.node) });
        Arc::new(view)
    };
    let upstreams = upstreams(None);
    let mut last = None;
    for (locality, expected) in [("eu/b", vec![1]), ("us", vec![2]), ("", vec![0, 1, 2]), ("eu/a", vec![0])] {
        let mesh = upstreams.join(at(locality), last.as_ref());
        let backend = backend(&mesh, "api");
        let reached: std::collections::BTreeSet<_> = (0..100).map(|_| backend.pick(None, None).unwrap().0).collect();
        assert_eq!(reached.into_iter().collect::<Vec<_>>(), expected, "{locality:?}");
        last = Some(mesh);
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_out_is_new_again() {
    // Its caches are as cold as those of an endpoint that nobody has ever seen.
    let upstreams = upstreams(None);
    let join = |health, last: Option<&Mesh>| {
        let mut endpoints = three();
        endpoints[0].health = health;
        upstreams.join(view(&[Arc::new(service("api", endpoints))]), last)
    };
    let age = |mesh: &Mesh| backend(mesh, "api").endpoints[0].age(host::now()).unwrap().as_secs();
    let first = join(Health::Ready, None);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(age(&first), 60);
    let out = join(Health::Unready, Some(&first));
    assert_eq!(age(&out), 60);
    tokio::time::advance(Duration::from_secs(60)).await;
    let back = join(Health::Ready, Some(&out));
    assert_eq!(age(&back), 0);
    assert_eq!(backend(&back, "api").endpoints[1].age(host::now()).unwrap().as_secs(), 120);
    // And so is one whose ejection is over.
    tokio::time::advance(Duration::from_secs(60)).await;
    let policy = EjectionPolicy { consecutive_5xx: 1, ..EjectionPolicy::default() };
    let endpoint = Arc::clone(&backend(&back, "api").endpoints[0]);
    assert!(endpoint.state.note(&policy, Fault::ServerError, || (3, 0)));
    tokio::time::advance(policy.base_ejection_time).await;
    assert!(!endpoint.state.is_ejected());
    assert_eq!(endpoint.age(host::now()).unwrap(), Duration::ZERO);
}

#[test]
fn p11_nobody_is_picked_after_it_left() {
    // A pod that is gone and still gets requests is an error for a user each time.
    let hash = |table| {
        let hash = HashPolicy { key: by_header(), table };
        Policy { hash: Some(Arc::new(hash)), ..Policy::default() }
    };
    let near = LocalityPolicy::Failover { regions: BTreeMap::new(), labels: Vec::new() };
    let warmup = Warmup { duration: Duration::from_secs(3600), minimum_percent: 10.0, aggression: 1.0 };
    let policies = [
        Policy::default(),
        Policy { algorithm: Algorithm::LeastInFlight, warmup: Some(warmup), ..Policy::default() },
        Policy { algorithm: Algorithm::RoundRobin, ..Policy::default() },
        hash(TableKind::Ring { minimum_size: 64 }),
        hash(TableKind::Maglev { size: 101 }),
        Policy { locality: Some(Arc::new(near.clone())), ..Policy::default() },
        Policy { locality: Some(Arc::new(near)), ..hash(TableKind::Maglev { size: 101 }) },
    ];
    let mut random = fastrand::Rng::with_seed(11);
    for policy in policies {
        let upstreams = upstreams(None);
        let mut last: Option<Mesh> = None;
        for _ in 0..150 {
            let endpoints: Vec<_> = (1..=random.usize(1..12))
                .filter_map(|number| {
                    let mut one = named(&format!("pod-{number}"), &format!("10.0.0.{number}"));
                    one.locality = ["eu/a", "eu/b", "us", ""][random.usize(..4)].into();
                    one.weight = random.u32(1..4);
                    one.health = [Health::Ready, Health::Ready, Health::Draining, Health::Unready][random.usize(..4)];
                    random.bool().then_some(one)
                })
                .collect();
            let any = |health| endpoints.iter().any(|one: &view::Endpoint| one.health == health);
            let usable = if any(Health::Ready) { Health::Ready } else { Health::Draining };
            let nobody = if endpoints.is_empty() { Reason::NoEndpoints } else { Reason::NoHealthyEndpoint };
            let expected: std::collections::BTreeSet<_> =
                endpoints.iter().filter(|one| one.health == usable).map(|one| one.address).collect();
            let service = Arc::new(with_policy(service("api", endpoints), policy.clone()));
            let mesh = upstreams.join(view(&[service]), last.as_ref());
            let backend = backend(&mesh, "api");
            for _ in 0..100 {
                let key = random.bool().then(|| random.u64(..));
                match backend.pick(None, key) {
                    Ok((_, endpoint)) => assert!(expected.contains(&endpoint.address.ip()), "{policy:?}"),
                    Err(reason) => assert!(expected.is_empty() && reason == nobody, "{policy:?}: {reason:?}"),
                }
            }
            last = Some(mesh);
        }
    }
}
