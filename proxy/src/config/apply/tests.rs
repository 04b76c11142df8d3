//! Order, refusals and removals: whatever arrives when, the same resources make the same view.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use outrigger_proto::mesh::{self, arm::To, fallback, http_rule::Action};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{config::fixed, host};

type Resources = BTreeMap<(Kind, String), Vec<u8>>;

fn service_name(service: usize) -> String {
    format!("shop/s{service}")
}

/// A mesh of four services, each with a shard, a policy that may fall back to another, and a route to some.
/// `links` are bits: who leads to whom.
fn mesh_of(links: u16, version: u32) -> Resources {
    let mut resources = Resources::new();
    let node = mesh::Node {
        namespace: "shop".to_owned(),
        workload: "me".to_owned(),
        service_account: "me".to_owned(),
        trust_domain: "mesh.local".to_owned(),
        default_peer_mode: 2,
        outbound_mode: 1,
        preload: vec![service_name(0)],
        ..mesh::Node::default()
    };
    resources.insert((Kind::Node, "shop/me".to_owned()), node.encode_to_vec());
    for service in 0..4_usize {
        let name = service_name(service);
        let scoped = |suffix: &str| BTreeMap::from([(String::new(), format!("{name}{suffix}"))]);
        let definition = mesh::Service {
            namespace: "shop".to_owned(),
            host: format!("s{service}"),
            ports: vec![mesh::ServicePort {
                port: 80,
                protocol: 4,
                routes: scoped("/table"),
                policies: scoped("/policy"),
                ..mesh::ServicePort::default()
            }],
            endpoint_shards: vec![format!("{name}/shard")],
            ..mesh::Service::default()
        };
        resources.insert((Kind::Service, name.clone()), definition.encode_to_vec());
        let endpoint = mesh::Endpoint {
            uid: format!("shop/s{service}-{version}"),
            address: vec![10, 0, 0, 1].into(),
            health: 1,
            ..mesh::Endpoint::default()
        };
        let shard = mesh::EndpointShard { endpoints: vec![endpoint] };
        resources.insert((Kind::EndpointShard, format!("{name}/shard")), shard.encode_to_vec());
        let linked = (0..4_usize).filter(|to| links >> (service * 4 + to) & 1 == 1);
        let arms = linked.map(|to| mesh::Arm {
            weight: version,
            // One more than there are: a name that does not exist.
            to: Some(To::Target(mesh::Target { service: service_name(to + 1), port: 80, subset: String::new() })),
            ..mesh::Arm::default()
        });
        let table = mesh::RouteTable {
            http: vec![mesh::HttpRule {
                name: "r".to_owned(),
                action: Some(Action::Split(mesh::Split { arms: arms.collect(), sticky: None })),
                ..mesh::HttpRule::default()
            }],
            ..mesh::RouteTable::default()
        };
        resources.insert((Kind::RouteTable, format!("{name}/table")), table.encode_to_vec());
        let backend =
            mesh::FallbackTarget { service: service_name((service + 2) % 4), port: 80, subset: String::new() };
        let fallback = mesh::Fallback { kind: Some(fallback::Kind::Backend(backend)), max_concurrent: 0 };
        let breaker = mesh::Breaker { name: "b".to_owned(), fallback: Some(fallback), ..mesh::Breaker::default() };
        let base = mesh::Policy { breaker: Some(breaker), ..mesh::Policy::default() };
        let policy = mesh::BackendPolicy { base: Some(base), ..mesh::BackendPolicy::default() };
        if links >> service & 1 == 1 {
            resources.insert((Kind::BackendPolicy, format!("{name}/policy")), policy.encode_to_vec());
        }
    }
    resources
}

fn accept(held: &mut Held, kind: Kind, name: &str, encoded: &[u8]) -> Result<(), Rejected> {
    let version = format!("{encoded:?}");
    held.accept(kind, &name.into(), &version.into(), Vec::new(), Bytes::copy_from_slice(encoded))
}

fn assembler() -> Assembler {
    Assembler::new("shop", "me", "mesh.local", 0)
}

/// The services of a view in words, in order.
fn shown(view: &View) -> Vec<String> {
    let services: BTreeMap<_, _> = view.services.iter().collect();
    services.values().map(|service| format!("{service:?}")).collect()
}

/// Nothing in a view leads to a service that is not in it.
fn assert_whole(view: &View) {
    for port in view.services.values().flat_map(|service| &service.ports) {
        for target in port.routes.iter().flat_map(|table| targets(table)) {
            assert!(view.services.contains_key(&target.service), "a leg leads to {target:?}, which is not there");
        }
    }
}

/// Answers what is wanted, one at a time in the order that `order` gives, until everything is known.
fn deliver(
    (assembler, held): (&mut Assembler, &mut Held),
    source: &Resources,
    stale: &mut BTreeSet<(Kind, String)>,
    order: &mut impl Iterator<Item = prop::sample::Index>,
    mut last: Option<Arc<View>>,
) -> Option<Arc<View>> {
    let now = host::now();
    loop {
        let step = assembler.step(held, &BTreeSet::new(), now);
        if let Some(view) = step.view {
            assert_whole(&view);
            last = Some(view);
        }
        let wanted = Kind::ALL.into_iter().flat_map(|kind| step.wanted.of(kind).iter().map(move |name| (kind, name)));
        let open: Vec<(Kind, Arc<str>)> = wanted
            .filter(|(kind, name)| {
                held.known(*kind, name) == Known::Missing || stale.contains(&(*kind, name.to_string()))
            })
            .map(|(kind, name)| (kind, Arc::clone(name)))
            .collect();
        if open.is_empty() {
            return last;
        }
        let index = order.next().map_or(0, |index| index.index(open.len()));
        let (kind, name) = open[index].clone();
        stale.remove(&(kind, name.to_string()));
        match source.get(&(kind, name.to_string())) {
            Some(encoded) => accept(held, kind, &name, encoded).unwrap(),
            None => held.remove(kind, &name),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    /// Messages of different kinds overtake each other: no order may lead to another mesh, nor through a broken one.
    #[test]
    fn order_of_arrival_does_not_matter(
        links: u16,
        changed_links: u16,
        order in proptest::collection::vec(any::<prop::sample::Index>(), 80),
    ) {
        let mut order = order.into_iter();
        let (mut one, mut held) = (assembler(), Held::default());
        let first = mesh_of(links, 1);
        let last = deliver((&mut one, &mut held), &first, &mut BTreeSet::new(), &mut order, None).unwrap();

        let (mut other, mut other_held) = (assembler(), Held::default());
        let expected = deliver((&mut other, &mut other_held), &first, &mut BTreeSet::new(), &mut std::iter::empty(), None);
        prop_assert_eq!(shown(&last), shown(&expected.unwrap()));

        // And from one mesh to the next, compared with one that never knew the first.
        let second = mesh_of(changed_links, 2);
        let mut stale = first.keys().chain(second.keys()).cloned().collect();
        let last = deliver((&mut one, &mut held), &second, &mut stale, &mut order, Some(last)).unwrap();
        let (mut fresh, mut fresh_held) = (assembler(), Held::default());
        let expected = deliver((&mut fresh, &mut fresh_held), &second, &mut BTreeSet::new(), &mut std::iter::empty(), None);
        prop_assert_eq!(shown(&last), shown(&expected.unwrap()));
        prop_assert_eq!(held.len(), fresh_held.len(), "nothing of the first mesh is left behind");
    }

    /// A refused update must leave no trace, wherever among the good ones it stands.
    #[test]
    fn refused_updates_leave_no_trace(updates in proptest::collection::vec((any::<u16>(), any::<bool>()), 1..12)) {
        let (mut with, mut without) = (Held::default(), Held::default());
        for (links, valid) in updates {
            for ((kind, name), mut encoded) in mesh_of(links, 1) {
                if valid {
                    accept(&mut without, kind, &name, &encoded).unwrap();
                } else {
                    // A field that ends before it should.
                    encoded.extend([0x0a, 0x7f]);
                }
                prop_assert_eq!(accept(&mut with, kind, &name, &encoded).is_ok(), valid);
            }
        }
        for kind in Kind::ALL {
            prop_assert_eq!(with.versions(kind), without.versions(kind));
        }
    }

    /// The same update twice is the update once.
    #[test]
    fn repetition_changes_nothing(links: u16) {
        let (mut one, mut held) = (assembler(), Held::default());
        let mesh = mesh_of(links, 1);
        deliver((&mut one, &mut held), &mesh, &mut BTreeSet::new(), &mut std::iter::empty(), None).unwrap();
        let generation = one.generation();
        let mut stale = mesh.keys().cloned().collect();
        let view = deliver((&mut one, &mut held), &mesh, &mut stale, &mut std::iter::empty(), None);
        prop_assert!(view.is_none() && one.generation() == generation);
    }
}

#[test]
fn an_unchanged_part_is_shared_with_the_view_before() {
    // Pools, breakers and balancers compare by pointer: a new shard must not look like a new route.
    let (mut one, mut held) = (assembler(), Held::default());
    let mesh = mesh_of(0b1, 1);
    let before = deliver((&mut one, &mut held), &mesh, &mut BTreeSet::new(), &mut std::iter::empty(), None).unwrap();
    let shard = &mesh_of(0b1, 2)[&(Kind::EndpointShard, "shop/s0/shard".to_owned())];
    accept(&mut held, Kind::EndpointShard, "shop/s0/shard", shard).unwrap();
    let after = one.step(&mut held, &BTreeSet::new(), host::now()).view.unwrap();
    let (old, new) = (&before.services["shop/s0"], &after.services["shop/s0"]);
    assert_ne!(old.endpoints, new.endpoints);
    assert!(Arc::ptr_eq(old.ports[0].routes.as_ref().unwrap(), new.ports[0].routes.as_ref().unwrap()));
    assert!(Arc::ptr_eq(&old.ports[0].policies, &new.ports[0].policies));
    assert!(Arc::ptr_eq(&before.services["shop/s1"], &after.services["shop/s1"]));
}

#[test]
fn a_fixed_set_makes_one_view_or_none() {
    // A typing error in a static file must not take away what runs.
    let mesh = mesh_of(0xffff, 1);
    let set = |mesh: &Resources| {
        mesh.iter().map(|((kind, name), encoded)| (*kind, name.clone(), encoded.clone())).collect::<Vec<_>>()
    };
    let view = fixed::view(set(&mesh), 7, None).unwrap();
    assert_eq!((view.generation, view.services.len()), (7, 4));
    assert_whole(&view);
    let again = fixed::view(set(&mesh), 8, Some(&view)).unwrap();
    assert!(Arc::ptr_eq(&view.services["shop/s0"].endpoints, &again.services["shop/s0"].endpoints));

    let mut wrong = mesh.clone();
    wrong.insert((Kind::Service, "shop/s1".to_owned()), vec![0xff]);
    assert_eq!(fixed::view(set(&wrong), 8, Some(&view)).unwrap_err()[0].resource, "shop/s1");
    let mut twice = set(&mesh);
    twice.extend(set(&mesh));
    assert_eq!(fixed::view(twice, 8, None).unwrap_err().len(), mesh.len());
    let without_node = mesh.iter().filter(|((kind, _), _)| *kind != Kind::Node);
    let without_node = without_node.map(|((kind, name), encoded)| (*kind, name.clone(), encoded.clone()));
    assert!(fixed::view(without_node, 8, None).is_err());
}
