//! The twelve behaviours of the stream, seen from the server, and what else a session promises.

use bytes::Bytes;
use outrigger_proto::rpc;
use proptest::prelude::*;

use super::*;
use crate::api::ObjectKey;

const SMALL: usize = 1 << 20;
const MAX_NAMES: usize = 5000;

fn resource(kind: Kind, name: &str, version: &str, aliases: &[&str], bytes: usize) -> Arc<Resource> {
    Arc::new(Resource {
        kind,
        name: name.into(),
        aliases: aliases.iter().map(|a| (*a).into()).collect(),
        version: version.into(),
        bytes: Bytes::from(vec![0; bytes]),
        origins: vec![ObjectKey { kind: "Service".into(), namespace: "shop".into(), name: name.into() }],
    })
}

/// One proxy "shop/me" and the world around it.
struct World {
    session: Session,
    resources: BTreeMap<(Kind, String), Arc<Resource>>,
    revision: u64,
    catalogue: Arc<Catalogue>,
}

impl World {
    fn new() -> Self {
        Self::with(SMALL, &["core/v1"])
    }

    fn with(response_bytes: usize, features: &[&str]) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        let features = features.iter().map(|f| (*f).to_owned()).collect();
        let session = Session::new("shop/me", features, Arc::clone(&catalogue), response_bytes, MAX_NAMES);
        Self { session, resources: BTreeMap::new(), revision: 0, catalogue }
    }

    fn put(&mut self, kind: Kind, name: &str, version: &str) -> &mut Self {
        self.put_resource(resource(kind, name, version, &[], 10))
    }

    fn put_resource(&mut self, resource: Arc<Resource>) -> &mut Self {
        self.resources.insert((resource.kind, resource.name.to_string()), resource);
        self
    }

    fn delete(&mut self, kind: Kind, name: &str) -> &mut Self {
        self.resources.remove(&(kind, name.to_owned()));
        self
    }

    fn publish(&mut self) -> &mut Self {
        self.revision += 1;
        let next = Catalogue::next(&self.catalogue, self.resources.values().cloned(), self.revision, 0);
        self.catalogue = Arc::new(next);
        self.session.set_catalogue(Arc::clone(&self.catalogue));
        self
    }

    fn ask(&mut self, request: &DeltaDiscoveryRequest) -> Outcome {
        self.session.request(request).expect("a good request")
    }

    fn subscribe(&mut self, kind: Kind, names: &[&str]) -> Outcome {
        self.ask(&request(kind, names, &[]))
    }

    fn next(&mut self) -> Option<Seen> {
        self.session.next_response(Instant::now()).map(|r| Seen {
            kind: Kind::from_type_url(&r.type_url).expect("our kind"),
            resources: r.resources.iter().map(|r| format!("{}={}", r.name, r.version)).collect(),
            removed: r.removed_resources.clone(),
            nonce: r.nonce,
            revision: r.system_version_info,
        })
    }

    fn ack(&mut self, seen: &Seen) -> Outcome {
        let mut ack = request(seen.kind, &[], &[]);
        ack.response_nonce.clone_from(&seen.nonce);
        self.ask(&ack)
    }

    fn nack(&mut self, seen: &Seen, message: &str, refused: &[(&str, &str, &str)]) -> Outcome {
        let mut nack = request(seen.kind, &[], &[]);
        nack.response_nonce.clone_from(&seen.nonce);
        let details = refused.iter().map(|(name, path, reason)| prost_types::Any {
            type_url: REFUSAL_TYPE_URL.to_owned(),
            value: mesh::Refusal { resource_name: (*name).into(), path: (*path).into(), reason: (*reason).into() }
                .encode_to_vec(),
        });
        nack.error_detail = Some(rpc::Status { code: 3, message: message.to_owned(), details: details.collect() });
        self.ask(&nack)
    }

    /// Takes and acks everything; what was seen, in order.
    fn drain(&mut self) -> Vec<Seen> {
        let mut all = Vec::new();
        while let Some(seen) = self.next() {
            self.ack(&seen);
            all.push(seen);
            assert!(all.len() < 1000, "never ends: {all:?}");
        }
        all
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    kind: Kind,
    resources: Vec<String>,
    removed: Vec<String>,
    nonce: String,
    revision: String,
}

fn request(kind: Kind, subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..Default::default()
    }
}

#[test]
fn b01_kinds_are_independent_and_nonces_unique() {
    // An ack of one kind must not be taken for another's.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").put(Kind::RouteTable, "a", "1").publish();
    w.subscribe(Kind::Service, &["a"]);
    let service = w.next().unwrap();
    assert!(w.next().is_none(), "nobody asked for the route table");
    w.subscribe(Kind::RouteTable, &["a"]);
    let route = w.next().unwrap();
    assert_eq!((service.kind, route.kind), (Kind::Service, Kind::RouteTable));
    assert_ne!(service.nonce, route.nonce);
    // A nonce of the other kind settles nothing.
    let mut wrong = request(Kind::Service, &[], &[]);
    wrong.response_nonce.clone_from(&route.nonce);
    w.ask(&wrong);
    assert!(w.session.held().all(|(_, _, held)| held.acked.is_none()));
}

#[test]
fn b02_resume_sends_only_what_differs() {
    // After a reconnect of a thousand proxies, nothing that they hold may travel again.
    let mut w = World::new();
    w.put(Kind::Service, "same", "1").put(Kind::Service, "newer", "2").publish();
    let mut first = request(Kind::Service, &["same", "newer", "vanished"], &[]);
    first.initial_resource_versions =
        [("same", "1"), ("newer", "1"), ("vanished", "1")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    w.ask(&first);
    let seen = w.next().unwrap();
    assert_eq!(seen.resources, ["newer=2"]);
    assert_eq!(seen.removed, ["vanished"]);
    assert!(w.next().is_none());
    // Equal in everything: still an answer, so that the proxy knows that it is up to date.
    let mut w = World::new();
    w.put(Kind::Service, "same", "1").publish();
    let mut first = request(Kind::Service, &["same"], &[]);
    first.initial_resource_versions = [("same".to_owned(), "1".to_owned())].into();
    w.ask(&first);
    let seen = w.next().unwrap();
    assert!(seen.resources.is_empty() && seen.removed.is_empty());
    // A later change of it is an ordinary push.
    w.put(Kind::Service, "same", "2").publish();
    assert_eq!(w.next().unwrap().resources, ["same=2"]);
}

#[test]
fn b03_an_ack_settles_and_a_refusal_keeps_the_previous_version() {
    // `apply --wait` counts acks; a refused version must not be sent in a loop.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").publish();
    w.subscribe(Kind::Service, &["a"]);
    let seen = w.next().unwrap();
    w.ack(&seen);
    assert!(w.next().is_none());
    assert_eq!(w.session.in_effect(), 1);
    w.put(Kind::Service, "a", "2").publish();
    let seen = w.next().unwrap();
    let outcome = w.nack(&seen, "bad", &[("a", "ports[0].protocol", "unknown protocol 99")]);
    assert_eq!(outcome.refused.len(), 1);
    assert!(w.next().is_none(), "sent again although refused");
    assert_eq!(w.session.in_effect(), 1);
    let refused = w.session.refused();
    assert_eq!((&*refused[0].name, &*refused[0].refusal.path), ("a", "ports[0].protocol"));
    let held = w.session.held().next().unwrap().2.clone();
    assert_eq!((held.sent.as_ref(), held.acked.as_deref()), ("2", Some("1")));
    // The user's fix goes out and clears it.
    w.put(Kind::Service, "a", "3").publish();
    let seen = w.next().unwrap();
    w.ack(&seen);
    assert!(w.next().is_none() && w.session.refused().is_empty());
    assert_eq!(w.session.in_effect(), 3);
}

#[test]
fn b04_names_count_whatever_the_nonce() {
    // Dropping a request with an old nonce would lose subscriptions for ever.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").put(Kind::Service, "b", "1").publish();
    w.subscribe(Kind::Service, &["a"]);
    let first = w.next().unwrap();
    w.ack(&first);
    for (nonce, name) in [(first.nonce.as_str(), "b"), ("never-existed", "c")] {
        let mut late = request(Kind::Service, &[name], &[]);
        late.response_nonce = nonce.to_owned();
        w.ask(&late);
        let seen = w.next().unwrap();
        assert_eq!(seen.resources.len() + seen.removed.len(), 1, "{name}");
        w.ack(&seen);
    }
}

#[test]
fn b05_every_name_is_answered_and_interest_stays() {
    // A proxy holds a connection until its question is answered; a later creation must reach it by itself.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").publish();
    w.subscribe(Kind::Service, &["a", "missing"]);
    let seen = w.next().unwrap();
    assert_eq!(
        (seen.resources.as_slice(), seen.removed.as_slice()),
        (&["a=1".to_owned()][..], &["missing".to_owned()][..])
    );
    w.ack(&seen);
    // Asking again for what is held, and for what is known to be absent.
    w.subscribe(Kind::Service, &["a", "missing"]);
    let again = w.next().unwrap();
    assert_eq!((again.resources.len(), again.removed.len()), (1, 1));
    w.ack(&again);
    w.put(Kind::Service, "missing", "1").publish();
    assert_eq!(w.next().unwrap().resources, ["missing=1"]);
    // Aliases are names too; the answer carries the resource's own name.
    w.put_resource(resource(Kind::Service, "shop/b", "1", &["vip/240.240.0.1"], 10)).publish();
    w.subscribe(Kind::Service, &["vip/240.240.0.1", "vip/240.240.0.9"]);
    let seen = w.next().unwrap();
    assert_eq!(
        (seen.resources.as_slice(), seen.removed.as_slice()),
        (&["shop/b=1".to_owned()][..], &["vip/240.240.0.9".to_owned()][..])
    );
}

#[test]
fn b06_wildcards_explicit_and_by_silence() {
    // Tools subscribe to everything, in both ways that the protocol knows.
    for subscribe in [&["*"][..], &[]] {
        let mut w = World::new();
        w.put(Kind::Service, "a", "1").publish();
        w.subscribe(Kind::Service, subscribe);
        let seen = w.next().unwrap();
        assert_eq!(seen.resources, ["a=1"]);
        w.ack(&seen);
        w.put(Kind::Service, "b", "1").publish();
        let seen = w.next().unwrap();
        assert_eq!(seen.resources, ["b=1"]);
        w.ack(&seen);
        w.delete(Kind::Service, "a").publish();
        assert_eq!(w.drain()[0].removed, ["a"]);
    }
    // A name taken back under a wildcard is sent again; one that does not exist is removed.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").publish();
    w.subscribe(Kind::Service, &["*", "a", "gone"]);
    w.drain();
    w.ask(&request(Kind::Service, &[], &["a", "gone"]));
    let seen = w.next().unwrap();
    assert_eq!(
        (seen.resources.as_slice(), seen.removed.as_slice()),
        (&["a=1".to_owned()][..], &["gone".to_owned()][..])
    );
    w.ack(&seen);
    w.ask(&request(Kind::Service, &[], &["*"]));
    w.put(Kind::Service, "a", "2").publish();
    assert!(w.next().is_none());
    // The wildcard by silence ends with the first name.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").put(Kind::Service, "b", "1").publish();
    w.subscribe(Kind::Service, &[]);
    w.drain();
    w.subscribe(Kind::Service, &["a"]);
    w.drain();
    w.put(Kind::Service, "b", "2").publish();
    assert!(w.drain().is_empty());
}

#[test]
fn b07_subscribing_and_unsubscribing_everything_starts_on_demand() {
    // An on-demand proxy must not be flooded with the whole mesh.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").publish();
    w.ask(&request(Kind::Service, &["*"], &["*"]));
    let seen = w.next().unwrap();
    assert!(seen.resources.is_empty() && seen.removed.is_empty());
    w.ack(&seen);
    w.put(Kind::Service, "a", "2").publish();
    assert!(w.next().is_none());
    w.subscribe(Kind::Service, &["a"]);
    assert_eq!(w.next().unwrap().resources, ["a=2"]);
}

#[test]
fn b08_part_of_a_response_can_be_refused() {
    // One bad route must not keep the good ones out, and must be attributed to the right object.
    let mut w = World::new();
    w.put(Kind::RouteTable, "good", "1").put(Kind::RouteTable, "bad", "1").publish();
    w.subscribe(Kind::RouteTable, &["good", "bad"]);
    let seen = w.next().unwrap();
    assert_eq!(seen.resources, ["bad=1", "good=1"], "each name once");
    let outcome = w.nack(&seen, "1 of 2", &[("bad", "http[0]", "no"), ("of-another-response", "", "")]);
    assert_eq!(outcome.refused.len(), 1);
    let acked: Vec<bool> = w.session.held().map(|(_, _, held)| held.acked.is_some()).collect();
    assert_eq!(acked, [false, true]);
    // Without details everything in it is refused.
    let mut w = World::new();
    w.put(Kind::RouteTable, "a", "1").put(Kind::RouteTable, "b", "1").publish();
    w.subscribe(Kind::RouteTable, &["a", "b", "a", "b"]);
    let seen = w.next().unwrap();
    assert_eq!(seen.resources.len(), 2);
    assert_eq!(w.nack(&seen, "cannot read it", &[]).refused.len(), 2);
}

#[test]
fn b09_resources_never_expire_by_themselves() {
    // Proxies must work for ever without a control plane: no time to live is ever set, and silence sends nothing.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").publish();
    w.subscribe(Kind::Service, &["a"]);
    let response = w.session.next_response(Instant::now()).unwrap();
    assert!(response.resources.iter().all(|r| r.resource.is_some() && !r.version.is_empty()));
    for _ in 0..10 {
        w.publish();
        assert!(w.next().is_none());
    }
}

#[test]
fn b10_make_before_break() {
    // A route must never point to what is not there yet, or not there any more.
    let mut w = World::new();
    for kind in [Kind::EndpointShard, Kind::BackendPolicy, Kind::Service, Kind::RouteTable] {
        w.put(kind, "old", "1");
    }
    w.publish();
    for kind in [Kind::EndpointShard, Kind::BackendPolicy, Kind::Service, Kind::RouteTable] {
        w.subscribe(kind, &["old", "new", "x"]);
    }
    w.drain();
    for kind in [Kind::RouteTable, Kind::Service, Kind::EndpointShard, Kind::BackendPolicy] {
        w.delete(kind, "old").put(kind, "new", "1");
    }
    w.publish();
    let mut adds = Vec::new();
    while let Some(seen) = w.next() {
        assert!(seen.removed.is_empty(), "removed before everything new was acked: {seen:?}");
        adds.push(seen);
    }
    assert_eq!(
        adds.iter().map(|s| s.kind).collect::<Vec<_>>(),
        [Kind::EndpointShard, Kind::BackendPolicy, Kind::Service, Kind::RouteTable]
    );
    for seen in &adds[..3] {
        w.ack(seen);
        assert!(w.next().is_none(), "a removal while {:?} is unacked", Kind::RouteTable);
    }
    w.ack(&adds[3]);
    let removals = w.drain();
    assert_eq!(
        removals.iter().map(|s| s.kind).collect::<Vec<_>>(),
        [Kind::RouteTable, Kind::Service, Kind::BackendPolicy, Kind::EndpointShard]
    );
    // A proxy that refused the new route still uses the old backend: that stays.
    w.put(Kind::RouteTable, "new", "2").delete(Kind::Service, "new").publish();
    let seen = w.next().unwrap();
    w.nack(&seen, "no", &[]);
    assert!(w.next().is_none());
    w.put(Kind::RouteTable, "new", "3").publish();
    let seen = w.next().unwrap();
    w.ack(&seen);
    assert_eq!(w.drain()[0].removed, ["new"]);
}

#[test]
fn deleting_what_was_refused_ends_the_refusal() {
    // The user takes the bad object back: the proxy must let go of what it kept of it, and rollouts must end again.
    let mut w = World::new();
    w.put(Kind::RouteTable, "bad", "1").put(Kind::RouteTable, "good", "1").put(Kind::Service, "old", "1").publish();
    w.subscribe(Kind::RouteTable, &["bad", "good"]);
    w.subscribe(Kind::Service, &["old"]);
    w.drain();
    w.put(Kind::RouteTable, "bad", "2").publish();
    let seen = w.next().unwrap();
    w.nack(&seen, "no", &[]);
    w.delete(Kind::Service, "old").publish();
    assert!(w.next().is_none(), "version 1 of the table may still refer to the service");
    w.delete(Kind::RouteTable, "bad").publish();
    let table = w.next().unwrap();
    assert_eq!((table.kind, table.removed.as_slice()), (Kind::RouteTable, &["bad".to_owned()][..]));
    assert!(w.next().is_none(), "the service goes after what referred to it");
    w.ack(&table);
    let service = w.next().unwrap();
    assert_eq!((service.kind, service.removed.as_slice()), (Kind::Service, &["old".to_owned()][..]));
    w.ack(&service);
    assert!(w.next().is_none() && w.session.refused().is_empty());
    assert_eq!(w.session.in_effect(), w.revision);
    // Not while something else is refused that exists.
    w.put(Kind::RouteTable, "bad", "3").put(Kind::RouteTable, "good", "2").publish();
    let seen = w.next().unwrap();
    assert_eq!(seen.resources, ["bad=3", "good=2"]);
    w.nack(&seen, "no", &[]);
    w.delete(Kind::RouteTable, "bad").publish();
    assert!(w.next().is_none());
    w.put(Kind::RouteTable, "good", "3").publish();
    let seen: Vec<Seen> = w.drain();
    assert_eq!((&seen[0].resources[..], &seen[1].removed[..]), (&["good=3".to_owned()][..], &["bad".to_owned()][..]));
    assert_eq!(w.session.in_effect(), w.revision);
}

#[test]
fn the_last_word_about_a_version_counts() {
    // A name asked for twice is answered twice: an old refusal must not hold up removals for ever.
    let mut w = World::new();
    w.put(Kind::EndpointShard, "a", "1").put(Kind::EndpointShard, "b", "1").publish();
    w.subscribe(Kind::EndpointShard, &["a", "b"]);
    w.drain();
    w.put(Kind::EndpointShard, "a", "2").publish();
    let push = w.next().unwrap();
    w.subscribe(Kind::EndpointShard, &["a"]);
    let answer = w.next().unwrap();
    assert_eq!((&push.resources, &answer.resources), (&vec!["a=2".to_owned()], &vec!["a=2".to_owned()]));
    w.nack(&push, "no", &[]);
    w.ack(&answer);
    assert!(w.session.refused().is_empty());
    w.delete(Kind::EndpointShard, "b").publish();
    assert_eq!(w.drain()[0].removed, ["b"]);
    assert_eq!(w.session.in_effect(), w.revision);
    // The other way round it is refused, whatever was said before.
    w.put(Kind::EndpointShard, "a", "3").publish();
    let push = w.next().unwrap();
    w.subscribe(Kind::EndpointShard, &["a"]);
    let answer = w.next().unwrap();
    w.ack(&push);
    w.nack(&answer, "no", &[]);
    assert_eq!(w.session.refused().len(), 1);
    // An ack of an older version takes no refusal away.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").publish();
    w.subscribe(Kind::Service, &["a"]);
    let first = w.next().unwrap();
    w.put(Kind::Service, "a", "2").publish();
    let second = w.next().unwrap();
    w.nack(&second, "no", &[]);
    w.ack(&first);
    assert_eq!(w.session.refused().len(), 1);
}

#[test]
fn b11_one_push_at_a_time_and_what_comes_meanwhile_becomes_one() {
    // A slow proxy gets the newest state, not every state in between.
    let mut w = World::new();
    w.put(Kind::EndpointShard, "a", "0").put(Kind::Service, "a", "0").publish();
    w.subscribe(Kind::EndpointShard, &["a"]);
    w.subscribe(Kind::Service, &["a"]);
    w.drain();
    w.put(Kind::EndpointShard, "a", "1").publish();
    let push = w.next().unwrap();
    for version in 2..100 {
        w.put(Kind::EndpointShard, "a", &version.to_string()).put(Kind::Service, "a", &version.to_string()).publish();
        assert!(w.next().is_none(), "a second push while one is unacked, or a later kind overtook an earlier one");
    }
    // A new question is answered at once all the same.
    w.subscribe(Kind::Service, &["missing"]);
    assert_eq!(w.next().unwrap().removed, ["missing"]);
    w.ack(&push);
    let (shard, service) = (w.next().unwrap(), w.next().unwrap());
    assert_eq!((shard.resources, service.resources), (vec!["a=99".to_owned()], vec!["a=99".to_owned()]));
    assert_eq!(shard.revision, w.revision.to_string());
}

#[test]
fn b11_large_sets_come_in_parts() {
    // A message above the client's limit would break the stream for ever.
    let mut w = World::with(1000, &[]);
    for name in ["a", "b", "c", "d", "e"] {
        w.put_resource(resource(Kind::Service, name, "1", &[], 300));
    }
    w.put_resource(resource(Kind::Service, "huge", "1", &[], 5000)).publish();
    w.subscribe(Kind::Service, &["a", "b", "c", "d", "e", "huge", "missing"]);
    let answers = w.drain();
    let names: Vec<String> = answers.iter().flat_map(|s| s.resources.clone()).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    assert!(answers.iter().all(|s| s.resources.len() <= 2));
    assert_eq!(answers.last().unwrap().removed, ["missing"]);
    for name in ["a", "b", "c", "d", "e"] {
        w.put_resource(resource(Kind::Service, name, "2", &[], 300));
    }
    w.publish();
    let first = w.next().unwrap();
    assert_eq!(first.resources.len(), 2);
    assert!(w.next().is_none(), "the second part waits for the first one's ack");
    w.ack(&first);
    assert_eq!(w.session.in_effect(), 1, "not before the last part");
    w.drain();
    assert_eq!(w.session.in_effect(), 2);
}

#[test]
fn b12_mandatory_kinds_are_answered_even_when_there_is_nothing() {
    // Readiness waits for the first answer of each mandatory kind.
    let mut w = World::new();
    w.publish();
    w.subscribe(Kind::Node, &["shop/me"]);
    w.subscribe(Kind::TrustBundle, &["cluster.local"]);
    let answers = w.drain();
    assert_eq!(answers.iter().map(|s| s.kind).collect::<Vec<_>>(), [Kind::TrustBundle, Kind::Node]);
    assert_eq!(answers[1].removed, ["shop/me"]);
}

#[test]
fn only_its_own_node_exists() {
    // A proxy must not read what another one is told of itself.
    let mut w = World::new();
    w.put(Kind::Node, "shop/me", "1").put(Kind::Node, "bank/vault", "1").publish();
    w.subscribe(Kind::Node, &["*", "bank/vault"]);
    let seen = w.next().unwrap();
    assert_eq!(
        (seen.resources.as_slice(), seen.removed.as_slice()),
        (&["shop/me=1".to_owned()][..], &["bank/vault".to_owned()][..])
    );
}

#[test]
fn a13_resources_with_unknown_features_are_withheld() {
    // An old proxy would run without the breaker and nobody would know.
    let breaker = mesh::BackendPolicy {
        base: Some(mesh::Policy { breaker: Some(mesh::Breaker::default()), ..Default::default() }),
        ..Default::default()
    };
    let policy = |version: &str, bytes: Vec<u8>| {
        let plain = resource(Kind::BackendPolicy, "p", version, &[], 0);
        Arc::new(Resource { bytes: Bytes::from(bytes), ..(*plain).clone() })
    };
    let mut w = World::with(SMALL, &["core/v1"]);
    w.put_resource(policy("1", Vec::new())).publish();
    w.subscribe(Kind::BackendPolicy, &["p"]);
    w.drain();
    w.put_resource(policy("2", breaker.encode_to_vec())).publish();
    assert!(w.drain().is_empty(), "the old version stays");
    assert!(w.session.refused()[0].refusal.reason.contains("breaker/v1"));
    assert_eq!(w.session.in_effect(), 1);
    let mut able = World::with(SMALL, &["core/v1", "breaker/v1"]);
    able.put_resource(policy("2", breaker.encode_to_vec())).publish();
    able.subscribe(Kind::BackendPolicy, &["p"]);
    assert_eq!(able.drain()[0].resources, ["p=2"]);
    assert_eq!(able.session.in_effect(), 1);
}

#[test]
fn a_proxy_that_never_answers_gets_a_bounded_number_of_messages() {
    // One stuck proxy must not eat the control plane.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").publish();
    let mut sent = 0;
    for round in 0..MAX_UNACKED_ANSWERS + 100 {
        w.subscribe(Kind::Service, &["a", &format!("name-{round}")]);
        w.put(Kind::Service, "a", &round.to_string()).publish();
        while w.next().is_some() {
            sent += 1;
        }
    }
    assert!((100..=MAX_UNACKED_ANSWERS + 1).contains(&sent), "{sent}");
    let too_many: Vec<String> = (0..MAX_NAMES).map(|n| format!("more-{n}")).collect();
    let names: Vec<&str> = too_many.iter().map(String::as_str).collect();
    assert_eq!(w.session.request(&request(Kind::Service, &names, &[])), Err(BadRequest::TooManyNames(MAX_NAMES)));
}

#[test]
fn a_revision_that_changes_nothing_for_a_proxy_is_in_effect_at_once() {
    // Otherwise `apply --wait` would hang on proxies that are not concerned.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").publish();
    w.subscribe(Kind::Service, &["a"]);
    w.drain();
    w.put(Kind::Service, "b", "1").publish();
    assert!(w.next().is_none());
    assert_eq!(w.session.in_effect(), 2);
    assert!(w.session.in_effect_since(2).is_some() && w.session.in_effect_since(3).is_none());
}

#[test]
fn churn_of_endpoints_does_not_hide_that_a_revision_is_in_effect() {
    // Endpoints change all the time; a rollout must end nevertheless.
    let mut w = World::new();
    w.put(Kind::EndpointShard, "a", "0").publish();
    w.subscribe(Kind::EndpointShard, &["a"]);
    w.drain();
    let mut unacked = None;
    for version in 1..20 {
        w.put(Kind::EndpointShard, "a", &version.to_string()).publish();
        if let Some(seen) = unacked.take() {
            w.ack(&seen);
        }
        unacked = w.next();
        assert!(unacked.is_some());
        assert!(w.session.in_effect() + 1 >= w.revision, "{} of {}", w.session.in_effect(), w.revision);
    }
}

#[test]
fn an_alias_that_moves_takes_the_old_resource_away() {
    // The virtual address now means another service: the proxy must not keep sending to the old one.
    let mut w = World::new();
    w.put_resource(resource(Kind::Service, "old", "1", &["vip/1"], 10)).publish();
    w.subscribe(Kind::Service, &["vip/1"]);
    w.drain();
    w.put_resource(resource(Kind::Service, "old", "2", &[], 10));
    w.put_resource(resource(Kind::Service, "new", "1", &["vip/1"], 10)).publish();
    let seen = w.drain();
    assert_eq!(seen[0].resources, ["new=1"]);
    assert_eq!(seen[1].removed, ["old"]);
    // The service goes: both its name and the alias are gone.
    w.delete(Kind::Service, "new").publish();
    let mut removed = w.drain()[0].removed.clone();
    removed.sort();
    assert_eq!(removed, ["new", "vip/1"]);
}

#[test]
fn acks_may_come_in_any_order_and_count_for_their_own_response_only() {
    // A proxy acks when something is in effect: an answer may be ready long before an earlier push.
    let mut w = World::new();
    w.put(Kind::Service, "a", "1").put(Kind::Service, "b", "1").publish();
    w.subscribe(Kind::Service, &["a"]);
    w.drain();
    w.put(Kind::Service, "a", "2").publish();
    let push = w.next().unwrap();
    w.subscribe(Kind::Service, &["b"]);
    let answer = w.next().unwrap();
    w.ack(&answer);
    assert!(w.next().is_none());
    assert_eq!(w.session.in_effect(), 1, "the push is not in effect yet");
    w.ack(&push);
    assert!(w.next().is_none());
    assert_eq!(w.session.in_effect(), 2);
}

#[test]
fn a_first_node_answer_never_looks_like_a_confirmed_drain() {
    // A draining sidecar that reconnects would stop accepting while its peers still send.
    let mut w = World::new();
    w.put(Kind::Node, "shop/me", "1").publish();
    let mut first = request(Kind::Node, &["shop/me"], &[]);
    first.initial_resource_versions = [("shop/me".to_owned(), "1".to_owned())].into();
    w.ask(&first);
    assert_eq!(w.next().unwrap().resources, ["shop/me=1"]);
}

#[test]
fn a_drain_is_confirmed_by_an_empty_node_response() {
    // The sidecar waits for exactly this before it stops accepting.
    let mut w = World::new();
    w.put(Kind::Node, "shop/me", "1").publish();
    w.subscribe(Kind::Node, &["shop/me"]);
    w.drain();
    w.session.confirm_drain();
    let seen = w.next().unwrap();
    assert_eq!(seen.kind, Kind::Node);
    assert!(seen.resources.is_empty() && seen.removed.is_empty() && !seen.nonce.is_empty());
    assert!(w.next().is_none());
}

proptest! {
    #[test]
    fn a_client_that_follows_the_stream_ends_with_the_truth(
        steps in proptest::collection::vec((0..6_u8, 0..4_u8, 0..4_u8, any::<bool>()), 1..60),
    ) {
        // Whatever the order of changes, questions, acks and refusals: in the end the proxy holds what exists.
        let mut w = World::with(400, &[]);
        let kinds = [Kind::EndpointShard, Kind::Service, Kind::RouteTable, Kind::BackendPolicy];
        let mut client: BTreeMap<(Kind, String), String> = BTreeMap::new();
        let mut wanted: std::collections::BTreeSet<(Kind, String)> = Default::default();
        let mut unacked: VecDeque<Seen> = VecDeque::new();
        let mut version = 0;
        let take = |seen: &Seen, client: &mut BTreeMap<(Kind, String), String>| {
            for r in &seen.resources {
                let (name, version) = r.split_once('=').unwrap();
                client.insert((seen.kind, name.to_owned()), version.to_owned());
            }
            for name in &seen.removed { client.remove(&(seen.kind, name.clone())); }
        };
        for (what, kind, name, flag) in steps {
            let kind = kinds[usize::from(kind)];
            let name = format!("n{name}");
            match what {
                0 => { version += 1; w.put(kind, &name, &version.to_string()).publish(); }
                1 => { w.delete(kind, &name).publish(); }
                2 => { w.subscribe(kind, &[&name]); wanted.insert((kind, name)); }
                3 => {
                    w.ask(&request(kind, &[], &[&name]));
                    if wanted.remove(&(kind, name.clone())) { client.remove(&(kind, name)); }
                }
                4 => if let Some(seen) = w.next() { unacked.push_back(seen); }
                _ => if let Some(seen) = unacked.pop_front() {
                    if flag {
                        // Only content can be refused: what is gone is gone, also beside something bad.
                        for name in &seen.removed { client.remove(&(seen.kind, name.clone())); }
                        w.nack(&seen, "no", &[]);
                    } else {
                        take(&seen, &mut client);
                        w.ack(&seen);
                    }
                }
            }
        }
        // Refusals end when the objects are fixed: every resource gets a new version. Deleted ones end by themselves.
        while let Some(seen) = unacked.pop_front() { take(&seen, &mut client); w.ack(&seen); }
        let present: Vec<(Kind, String)> = w.resources.keys().cloned().collect();
        for (kind, name) in present { version += 1; w.put(kind, &name, &version.to_string()); }
        w.publish();
        for seen in w.drain() { take(&seen, &mut client); }
        client.retain(|key, _| wanted.contains(key));
        let truth: BTreeMap<(Kind, String), String> = w.resources.iter()
            .filter(|(key, _)| wanted.contains(*key))
            .map(|(key, r)| (key.clone(), r.version.to_string())).collect();
        prop_assert_eq!(client, truth);
    }
}
