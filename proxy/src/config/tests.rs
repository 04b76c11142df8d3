//! The client's side of delta xDS against a server in this process, over in-memory pipes and virtual time.
//!
//! One test for each of the twelve behaviours that the protocol demands of a client, and the promises of our own:
//! acknowledged means in effect, nothing needs the control plane to keep running.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    kind::Kind,
    mesh::{self, Refusal, Registration},
};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status as Code, Streaming};

use super::{
    Options,
    connect::handshake,
    demand::{Answer, Demand, DemandName, channel},
    follow,
    status::Status,
    view::View,
};
use crate::{
    host,
    identity::Identity,
    route::{Action, Leg},
    settings::{ControlPlane, Limits, NodeSettings, Timeouts},
};

const WAIT: Duration = Duration::from_millis(250);

/// Gives every accepted stream to the test.
struct Server(mpsc::Sender<Stream>);

struct Stream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Code>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Code>>;

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Code> {
        let (responses, stream) = mpsc::channel(64);
        let _ = self.0.send(Stream { requests: request.into_inner(), responses }).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Stream {
    async fn next(&mut self) -> DeltaDiscoveryRequest {
        self.requests.message().await.unwrap().expect("the client ended the stream")
    }

    /// The next request of a kind; others must not matter and are passed over.
    async fn next_of(&mut self, kind: Kind) -> DeltaDiscoveryRequest {
        loop {
            let request = self.next().await;
            if request.type_url == kind.type_url() {
                return request;
            }
        }
    }

    /// Whether the client says nothing for a while.
    async fn is_silent(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.requests.message() => false,
            () = host::sleep(Duration::from_millis(1500)) => true,
        }
    }

    async fn send(&self, kind: Kind, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        let response = DeltaDiscoveryResponse {
            system_version_info: format!("r{nonce}"),
            resources,
            type_url: kind.type_url().to_owned(),
            nonce: nonce.to_owned(),
            removed_resources: removed.iter().map(ToString::to_string).collect(),
        };
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// Sends and waits for the acknowledgement.
    async fn put(&mut self, kind: Kind, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        self.send(kind, nonce, resources, removed).await;
        loop {
            let request = self.next().await;
            if request.response_nonce == nonce {
                assert_eq!(request.error_detail, None);
                return;
            }
        }
    }
}

/// A proxy under test.
struct Proxy {
    streams: mpsc::Receiver<Stream>,
    demand: Demand,
    registration: watch::Sender<Registration>,
    views: Arc<Mutex<Vec<Arc<View>>>>,
    status: Arc<Status>,
    identity: Arc<Identity>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    reachable: watch::Sender<bool>,
}

impl Proxy {
    fn start(state_dir: Option<&std::path::Path>) -> Self {
        let (accepted, streams) = mpsc::channel(8);
        let (reachable, may_connect) = watch::channel(true);
        let dial = move || -> super::Dialling {
            let server = AggregatedDiscoveryServiceServer::new(Server(accepted.clone()));
            let may_connect = *may_connect.borrow();
            Box::pin(async move {
                if !may_connect {
                    return Err("refused".to_owned());
                }
                let (near, far) = tokio::io::duplex(64 * 1024);
                host::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let mut server = server.clone();
                        async move { tonic::codegen::Service::call(&mut server, request).await }
                    });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(far), service).await;
                });
                handshake(near).await.map_err(|error| error.to_string())
            })
        };
        let options = Options {
            control_plane: ControlPlane { address: "control-plane:15012".to_owned(), token: None, root_file: None },
            node: NodeSettings {
                namespace: "shop".to_owned(),
                workload: "front-1".to_owned(),
                service_account: "front".to_owned(),
                trust_domain: "mesh.local".to_owned(),
                labels: BTreeMap::new(),
                locality: String::new(),
            },
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            state_dir: state_dir.map(Into::into),
            mark: None,
        };
        let (demand, requests) = channel(&options.limits);
        let (registration, registered) = watch::channel(Registration::default());
        let views: Arc<Mutex<Vec<Arc<View>>>> = Arc::default();
        let published = Arc::clone(&views);
        let (status, identity, stop) = (Status::new(), Identity::new(), CancellationToken::new());
        let task = host::spawn(follow(
            options,
            Arc::clone(&identity),
            registered,
            requests,
            Arc::clone(&status),
            move |view| published.lock().push(view),
            dial,
            stop.clone(),
        ));
        Self { streams, demand, registration, views, status, identity, stop, task, reachable }
    }

    async fn stream(&mut self) -> Stream {
        self.streams.recv().await.unwrap()
    }

    /// A proxy with its node and no services.
    async fn joined() -> (Self, Stream) {
        let mut proxy = Self::start(None);
        let mut stream = proxy.stream().await;
        stream.put(Kind::Node, "n", vec![node(&[])], &[]).await;
        (proxy, stream)
    }

    /// A proxy that uses shop/a, which is complete with a route to itself.
    async fn using_a() -> (Self, Stream) {
        let (proxy, mut stream) = Self::joined().await;
        let answer = proxy.want("a");
        assert_eq!(stream.next_of(Kind::Service).await.resource_names_subscribe, [name("a")]);
        stream.send(Kind::EndpointShard, "e", vec![shard("a", 1)], &[]).await;
        stream.send(Kind::Service, "s", vec![service("a", true)], &[]).await;
        stream.next_of(Kind::EndpointShard).await;
        stream.send(Kind::EndpointShard, "e2", vec![shard("a", 1)], &[]).await;
        stream.put(Kind::RouteTable, "r", vec![table("a", &["a"])], &[]).await;
        assert_eq!(answer.await.unwrap(), Answer::Found);
        // What is still under way must not disturb the test that follows.
        while !stream.is_silent().await {}
        (proxy, stream)
    }

    fn want(&self, host: &str) -> tokio::task::JoinHandle<Answer> {
        let (demand, host) = (self.demand.clone(), host.to_owned());
        host::spawn(async move { demand.want(DemandName::Host(host), Duration::from_secs(30)).await })
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(self.views.lock().last().expect("no view was published"))
    }

    fn has(&self, service: &str) -> bool {
        self.view().services.contains_key(name(service).as_str())
    }

    /// Where the first rule of a service leads: names of services, or "!" and the reason.
    fn legs(&self, service: &str) -> Vec<String> {
        let view = self.view();
        let table = view.services[name(service).as_str()].ports[0].routes.clone().expect("no routes");
        let Action::Split(split) = &table.http[0].action else { panic!("no split") };
        split
            .arms
            .iter()
            .map(|arm| match &arm.leg {
                Leg::To(target) => target.service.to_string(),
                Leg::Bad(reason) => format!("!{reason}"),
            })
            .collect()
    }
}

fn name(service: &str) -> String {
    format!("shop/{service}.shop.svc.cluster.local")
}

fn resource(kind: Kind, name: &str, content: &impl Message) -> Resource {
    let value: bytes::Bytes = content.encode_to_vec().into();
    let version =
        format!("{:x}", value.iter().fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(*byte))));
    let any = prost_types::Any { type_url: kind.type_url().to_owned(), value: value.into() };
    Resource { version, resource: Some(any), name: name.to_owned(), aliases: Vec::new() }
}

pub(super) fn node(preload: &[&str]) -> Resource {
    let content = mesh::Node {
        namespace: "shop".to_owned(),
        workload: "front-1".to_owned(),
        service_account: "front".to_owned(),
        trust_domain: "mesh.local".to_owned(),
        default_peer_mode: mesh::PeerMode::Strict as i32,
        outbound_mode: mesh::OutboundMode::AllowAny as i32,
        preload: preload.iter().map(|service| name(service)).collect(),
        ..mesh::Node::default()
    };
    resource(Kind::Node, "shop/front-1", &content)
}

fn service(short: &str, routed: bool) -> Resource {
    let scope = String::new();
    let routes = if routed { BTreeMap::from([(scope, format!("{}:80", name(short)))]) } else { BTreeMap::new() };
    let content = mesh::Service {
        namespace: "shop".to_owned(),
        host: format!("{short}.shop.svc.cluster.local"),
        name: short.to_owned(),
        addresses: vec![vec![10, 0, 0, 1].into()],
        ports: vec![mesh::ServicePort {
            port: 80,
            protocol: mesh::Protocol::Http1 as i32,
            routes,
            ..mesh::ServicePort::default()
        }],
        endpoint_shards: vec![format!("{}/0", name(short))],
        ..mesh::Service::default()
    };
    resource(Kind::Service, &name(short), &content)
}

fn shard(short: &str, endpoints: u8) -> Resource {
    let endpoints = (0..endpoints).map(|number| mesh::Endpoint {
        uid: format!("shop/{short}-{number}"),
        address: vec![10, 1, 0, number].into(),
        ports: vec![mesh::EndpointPort { service_port: 80, port: 8080, peer: mesh::PeerKind::Outrigger as i32 }],
        health: mesh::Health::Ready as i32,
        ..mesh::Endpoint::default()
    });
    let content = mesh::EndpointShard { endpoints: endpoints.collect() };
    resource(Kind::EndpointShard, &format!("{}/0", name(short)), &content)
}

fn table(short: &str, targets: &[&str]) -> Resource {
    let arms = targets.iter().map(|target| mesh::Arm {
        weight: 1,
        to: Some(mesh::arm::To::Target(mesh::Target { service: name(target), port: 80, subset: String::new() })),
        ..mesh::Arm::default()
    });
    let content = mesh::RouteTable {
        http: vec![mesh::HttpRule {
            name: "shop/route/0".to_owned(),
            action: Some(mesh::http_rule::Action::Split(mesh::Split { arms: arms.collect(), sticky: None })),
            ..mesh::HttpRule::default()
        }],
        ..mesh::RouteTable::default()
    };
    resource(Kind::RouteTable, &format!("{}:80", name(short)), &content)
}

/// Valid as a message, refused for its content.
fn bad_table(short: &str) -> Resource {
    let content = mesh::RouteTable {
        http: vec![mesh::HttpRule { name: "shop/route/0".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    resource(Kind::RouteTable, &format!("{}:80", name(short)), &content)
}

fn refusals(request: &DeltaDiscoveryRequest) -> Vec<Refusal> {
    let details = &request.error_detail.as_ref().expect("not refused").details;
    details.iter().map(|any| Refusal::decode(&*any.value).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn m11_a_message_too_large_is_not_read_and_the_last_state_stays() {
    // A control plane that is broken, or not ours, would fill the memory of every sidecar.
    let (mut proxy, stream) = Proxy::using_a().await;
    let before = proxy.view();
    let mut huge = service("a", false);
    huge.resource = huge.resource.map(|any| prost_types::Any { value: vec![0; 64 << 20], ..any });
    stream.send(Kind::Service, "huge", vec![huge], &[]).await;
    // The stream ends; the next one says that everything is held as before.
    let mut next = proxy.stream().await;
    let restated = next.next_of(Kind::Service).await;
    assert_eq!(restated.initial_resource_versions.len(), 1, "{restated:?}");
    assert!(proxy.has("a") && !proxy.legs("a").is_empty());
    assert_eq!(proxy.view().generation, before.generation);
}

#[tokio::test(start_paused = true)]
async fn behaviour_1_kinds_do_not_wait_for_each_other() {
    // A service whose endpoints are slow must not hold up the certificate roots or another service.
    let (proxy, mut stream) = Proxy::joined().await;
    let _waits = proxy.want("a");
    stream.next_of(Kind::Service).await;
    stream.send(Kind::Service, "1", vec![service("a", false)], &[]).await;
    assert_eq!(stream.next_of(Kind::EndpointShard).await.response_nonce, "");
    // "1" is not acknowledged yet, for its endpoints are missing; a node with the same nonce is.
    stream.send(Kind::Node, "1", vec![node(&["z"])], &[]).await;
    let acknowledged = stream.next_of(Kind::Node).await;
    assert_eq!((acknowledged.response_nonce.as_str(), acknowledged.error_detail), ("1", None));
}

#[tokio::test(start_paused = true)]
async fn behaviour_2_a_new_stream_restates_interest_and_versions() {
    // Without it every reconnect would send the world again, or lose what changed meanwhile.
    let mut proxy = Proxy::start(None);
    let mut stream = proxy.stream().await;
    let mut first = BTreeMap::new();
    for _ in 0..2 {
        let request = stream.next().await;
        assert_eq!(request.node.as_ref().unwrap().id, "shop/front-1");
        assert!(request.node.unwrap().client_features.contains(&"core/v1".to_owned()));
        assert!(request.initial_resource_versions.is_empty() && request.response_nonce.is_empty());
        first.insert(request.type_url, request.resource_names_subscribe);
    }
    assert_eq!(first[Kind::Node.type_url()], ["shop/front-1"]);
    assert_eq!(first[Kind::TrustBundle.type_url()], ["mesh.local"]);
    drop((proxy, stream));

    let (mut proxy, stream) = Proxy::using_a().await;
    drop(stream);
    let mut stream = proxy.stream().await;
    let mut again = BTreeMap::new();
    for _ in 0..5 {
        let request = stream.next().await;
        assert!(request.node.is_some());
        again.insert(request.type_url, (request.resource_names_subscribe, request.initial_resource_versions));
    }
    let services = &again[Kind::Service.type_url()];
    assert_eq!(services.0, [name("a")]);
    assert_eq!(services.1, BTreeMap::from([(name("a"), service("a", true).version)]));
    let tables = &again[Kind::RouteTable.type_url()];
    assert_eq!(tables.1, BTreeMap::from([(format!("{}:80", name("a")), table("a", &["a"]).version)]));
    // The server has nothing new to say: the next generation is the same one.
    let generation = proxy.view().generation;
    assert!(stream.is_silent().await);
    assert_eq!(proxy.view().generation, generation);
}

#[tokio::test(start_paused = true)]
async fn behaviour_3_a_refusal_names_what_is_wrong_and_the_previous_stays() {
    // A bad route must change nothing, and its author must learn which field it was.
    let (mut proxy, mut stream) = Proxy::using_a().await;
    let generation = proxy.view().generation;
    stream.send(Kind::RouteTable, "9", vec![bad_table("a")], &[]).await;
    let refused = stream.next().await;
    assert_eq!(refused.response_nonce, "9");
    let refusals = refusals(&refused);
    assert_eq!(
        (refusals[0].resource_name.clone(), refusals[0].path.as_str()),
        (format!("{}:80", name("a")), "http[0]")
    );
    assert_eq!(proxy.legs("a"), [name("a")]);
    assert_eq!(proxy.view().generation, generation);
    assert_eq!(proxy.status.report().refused, 1);
    drop(stream);
    let versions = proxy.stream().await.next_of(Kind::RouteTable).await.initial_resource_versions;
    assert_eq!(versions.into_values().collect::<Vec<_>>(), [table("a", &["a"]).version]);
}

#[tokio::test(start_paused = true)]
async fn behaviour_4_interest_changes_without_waiting_for_anything() {
    // A connection to a new service must not wait until an earlier response is acknowledged.
    let (proxy, mut stream) = Proxy::joined().await;
    let _waits = proxy.want("a");
    stream.next_of(Kind::Service).await;
    stream.send(Kind::Service, "1", vec![service("a", false)], &[]).await;
    stream.next_of(Kind::EndpointShard).await;
    let _waits = proxy.want("b");
    let request = stream.next_of(Kind::Service).await;
    assert_eq!(request.resource_names_subscribe, [name("b")]);
    assert!(
        request.response_nonce.is_empty() && request.node.is_none() && request.initial_resource_versions.is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn behaviour_5_every_name_gets_an_answer_and_absence_is_remembered() {
    // A name that does not exist must fail at once, not after a timeout, and work as soon as it is created.
    let (proxy, mut stream) = Proxy::joined().await;
    let answer = proxy.want("none");
    stream.next_of(Kind::Service).await;
    stream.put(Kind::Service, "1", vec![], &[&name("none")]).await;
    assert_eq!(answer.await.unwrap(), Answer::Absent);
    // Known by now: no second request, and an answer in no time.
    let before = host::now();
    assert_eq!(proxy.want("NONE.").await.unwrap(), Answer::Absent);
    assert_eq!(host::now(), before);
    // Created later: pushed without being asked for again.
    stream.send(Kind::Service, "2", vec![service("none", false)], &[]).await;
    stream.next_of(Kind::EndpointShard).await;
    stream.put(Kind::EndpointShard, "3", vec![shard("none", 1)], &[]).await;
    assert_eq!(proxy.want("none").await.unwrap(), Answer::Found);

    // A server that forgets to answer: after 15 s the name counts as absent.
    let before = host::now();
    assert_eq!(proxy.want("forgotten").await.unwrap(), Answer::Absent);
    assert_eq!((host::now() - before).as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn behaviours_6_and_7_nothing_ever_asks_for_everything() {
    // An empty first subscription means "everything": a sidecar would hold the whole mesh.
    let (proxy, mut stream) = Proxy::joined().await;
    assert!(stream.is_silent().await, "kinds without interest must not be opened");
    // What was not asked for is not kept.
    stream.put(Kind::Service, "1", vec![service("stranger", false)], &[]).await;
    assert!(!proxy.has("stranger"));
    assert_eq!(proxy.status.report().held, 1);
    assert!(!proxy.want("a").is_finished());
    let request = stream.next_of(Kind::Service).await;
    assert_eq!(request.resource_names_subscribe, [name("a")]);
}

#[tokio::test(start_paused = true)]
async fn behaviour_8_doubles_are_refused_and_the_rest_of_the_response_applies() {
    // Two contents under one name: whichever won, half of the mesh would disagree.
    let (proxy, mut stream) = Proxy::joined().await;
    let waits = proxy.want("a");
    stream.next_of(Kind::Service).await;
    let (_b, mut double) = (proxy.want("b"), service("b", false));
    stream.next_of(Kind::Service).await;
    double.version.push('x');
    stream.send(Kind::Service, "1", vec![service("b", false), service("a", false), double], &[]).await;
    let mut shards = stream.next_of(Kind::EndpointShard).await.resource_names_subscribe;
    assert_eq!(shards.pop(), Some(format!("{}/0", name("a"))));
    assert!(shards.is_empty());
    stream.send(Kind::EndpointShard, "2", vec![shard("a", 1)], &[]).await;
    let refused = loop {
        let request = stream.next_of(Kind::Service).await;
        if request.response_nonce == "1" {
            break request;
        }
    };
    let refused: Vec<String> = refusals(&refused).into_iter().map(|refusal| refusal.resource_name).collect();
    assert_eq!(refused, [name("b")]);
    assert_eq!(waits.await.unwrap(), Answer::Found);
    assert!(!proxy.has("b"));
}

#[tokio::test(start_paused = true)]
async fn behaviour_9_a_heartbeat_without_content_changes_nothing() {
    // Taken for an empty resource it would wipe a service out.
    let (proxy, mut stream) = Proxy::using_a().await;
    let generation = proxy.view().generation;
    let heartbeat = Resource { resource: None, ..service("a", true) };
    stream.put(Kind::Service, "1", vec![heartbeat.clone()], &[]).await;
    assert_eq!(proxy.view().generation, generation);
    let other = Resource { version: "other".to_owned(), ..heartbeat };
    stream.send(Kind::Service, "2", vec![other], &[]).await;
    assert_eq!(refusals(&stream.next().await).len(), 1);
    assert!(proxy.has("a"));
}

#[tokio::test(start_paused = true)]
async fn behaviour_10_a_route_changes_when_what_it_leads_to_is_there() {
    // A canary must never send requests to a version that the proxy does not know yet.
    let (proxy, mut stream) = Proxy::using_a().await;
    stream.send(Kind::RouteTable, "1", vec![table("a", &["b"])], &[]).await;
    assert_eq!(stream.next().await.resource_names_subscribe, [name("b")]);
    assert_eq!(proxy.legs("a"), [name("a")], "the old route stays");
    stream.send(Kind::Service, "2", vec![service("b", false)], &[]).await;
    assert_eq!(stream.next().await.resource_names_subscribe, [format!("{}/0", name("b"))]);
    assert_eq!(proxy.legs("a"), [name("a")], "no endpoints yet");
    stream.send(Kind::EndpointShard, "3", vec![shard("b", 1)], &[]).await;
    // Acknowledged, all of them, once it is in effect.
    let mut nonces = Vec::new();
    for _ in 0..3 {
        nonces.push(stream.next().await.response_nonce);
        assert_eq!(proxy.legs("a"), [name("b")]);
    }
    nonces.sort();
    assert_eq!(nonces, ["1", "2", "3"]);
    assert!(proxy.has("b"));

    // Back again: what only the old route used goes after the new one is in force, not before.
    stream.send(Kind::RouteTable, "4", vec![table("a", &["a"])], &[]).await;
    let mut gone = Vec::new();
    for _ in 0..3 {
        let request = stream.next().await;
        gone.extend(request.resource_names_unsubscribe);
    }
    gone.sort();
    assert_eq!(gone, [name("b"), format!("{}/0", name("b"))]);
    assert_eq!(proxy.legs("a"), [name("a")]);
    assert!(!proxy.has("b"));
}

#[tokio::test(start_paused = true)]
async fn behaviour_10_what_never_comes_holds_a_change_for_two_seconds() {
    // A lost answer must not freeze a route for ever; the missing share answers with an error of its own.
    let (proxy, mut stream) = Proxy::using_a().await;
    let before = host::now();
    stream.send(Kind::RouteTable, "1", vec![table("a", &["a", "b"])], &[]).await;
    assert_eq!(stream.next().await.resource_names_subscribe, [name("b")]);
    let acknowledged = stream.next().await;
    assert_eq!((acknowledged.response_nonce.as_str(), acknowledged.error_detail), ("1", None));
    assert_eq!((host::now() - before).as_secs(), 2);
    assert_eq!(proxy.legs("a"), [name("a"), format!("!service \"{}\" does not exist", name("b"))]);
    // And when it comes after all, the share goes there.
    stream.send(Kind::Service, "2", vec![service("b", false)], &[]).await;
    stream.next().await;
    stream.send(Kind::EndpointShard, "3", vec![shard("b", 1)], &[]).await;
    stream.next().await;
    assert_eq!(proxy.legs("a"), [name("a"), name("b")]);
}

#[tokio::test(start_paused = true)]
async fn behaviour_11_every_response_is_acknowledged_once_and_bursts_become_few_views() {
    // A burst of a thousand updates must not become a thousand swaps, nor lose an acknowledgement.
    let (proxy, mut stream) = Proxy::using_a().await;
    let views = proxy.views.lock().len();
    let sender = stream.responses.clone();
    let send = async {
        for number in 0..500_u32 {
            let endpoints = if number == 499 { 7 } else { u8::try_from(number % 5).unwrap() + 1 };
            let response = DeltaDiscoveryResponse {
                resources: vec![shard("a", endpoints)],
                type_url: Kind::EndpointShard.type_url().to_owned(),
                nonce: format!("burst-{number}"),
                ..DeltaDiscoveryResponse::default()
            };
            sender.send(Ok(response)).await.unwrap();
        }
    };
    let receive = async {
        for number in 0..500 {
            let request = stream.next().await;
            assert_eq!((request.response_nonce, request.error_detail), (format!("burst-{number}"), None));
        }
    };
    tokio::join!(send, receive);
    assert_eq!(proxy.view().services[name("a").as_str()].endpoints.len(), 7);
    assert!(proxy.views.lock().len() - views < 400);
    assert!(stream.is_silent().await);
}

#[tokio::test(start_paused = true)]
async fn behaviour_12_the_last_state_serves_while_the_server_is_away() {
    // The control plane may vanish for as long as it likes.
    let (mut proxy, stream) = Proxy::using_a().await;
    proxy.reachable.send_replace(false);
    drop(stream);
    host::sleep(Duration::from_secs(600)).await;
    assert!(proxy.has("a"));
    assert_eq!(proxy.want("a").await.unwrap(), Answer::Found);
    let report = proxy.status.report();
    assert!(report.connected_since.is_none() && report.disconnected_since.is_some());
    assert_eq!(report.last_error.as_deref(), Some("refused"));
    proxy.reachable.send_replace(true);
    let back = host::now();
    let mut stream = proxy.stream().await;
    assert!(host::now() - back <= Duration::from_secs(15));
    // An empty answer is no order to delete.
    stream.put(Kind::Service, "1", vec![], &[]).await;
    assert!(proxy.has("a"));
    // An order to delete is one.
    stream.put(Kind::Service, "2", vec![], &[&name("a")]).await;
    assert!(!proxy.has("a"));
}

#[tokio::test(start_paused = true)]
async fn s17_nothing_is_published_before_the_node_and_what_it_preloads() {
    // An application that starts too early would see its first requests fail.
    let mut proxy = Proxy::start(None);
    let mut stream = proxy.stream().await;
    stream.send(Kind::Node, "1", vec![node(&["a"])], &[]).await;
    assert_eq!(stream.next_of(Kind::Service).await.resource_names_subscribe, [name("a")]);
    assert!(proxy.views.lock().is_empty());
    stream.send(Kind::Service, "2", vec![service("a", false)], &[]).await;
    stream.next_of(Kind::EndpointShard).await;
    assert!(proxy.views.lock().is_empty());
    stream.put(Kind::EndpointShard, "3", vec![shard("a", 1)], &[]).await;
    assert_eq!(proxy.views.lock().len(), 1);
    assert!(proxy.has("a"));
    // A server that lost the node does not take the proxy down.
    stream.put(Kind::Node, "4", vec![], &["shop/front-1"]).await;
    assert!(proxy.has("a"));
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_control_plane_starts_from_disk() {
    // A node that reboots during an outage of the control plane must serve.
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::start(Some(folder.path()));
    let mut stream = proxy.stream().await;
    stream.send(Kind::Node, "1", vec![node(&[])], &[]).await;
    let answer = proxy.want("a");
    stream.next_of(Kind::Service).await;
    stream.send(Kind::Service, "2", vec![service("a", true)], &[]).await;
    stream.next_of(Kind::EndpointShard).await;
    stream.send(Kind::EndpointShard, "3", vec![shard("a", 1)], &[]).await;
    stream.send(Kind::RouteTable, "4", vec![], &[&format!("{}:80", name("a"))]).await;
    assert_eq!(answer.await.unwrap(), Answer::Found);
    proxy.stop.cancel();
    proxy.task.await.unwrap();

    let mut proxy = Proxy::start(Some(folder.path()));
    proxy.reachable.send_replace(false);
    assert_eq!(proxy.want("a").await.unwrap(), Answer::Found);
    assert_eq!(proxy.view().services[name("a").as_str()].endpoints.len(), 1);
    assert!(proxy.status.report().from_disk);
    proxy.reachable.send_replace(true);
    let mut stream = proxy.stream().await;
    let versions = stream.next_of(Kind::Service).await.initial_resource_versions;
    assert_eq!(versions, BTreeMap::from([(name("a"), service("a", true).version)]));
    stream.put(Kind::Node, "1", vec![node(&[])], &[]).await;
    assert!(!proxy.status.report().from_disk);
}

#[tokio::test(start_paused = true)]
async fn what_the_workload_says_of_itself_reaches_the_server_at_once() {
    // A pod that is going away keeps getting requests until the server has heard of it.
    let (proxy, mut stream) = Proxy::joined().await;
    proxy.registration.send_modify(|registration| registration.ready = true);
    let request = stream.next().await;
    assert_eq!(request.type_url, Kind::Node.type_url());
    assert!(request.node.unwrap().registration.unwrap().ready && request.response_nonce.is_empty());
    stream.put(Kind::Node, "1", vec![], &[]).await;
    assert!(!proxy.status.confirmed_draining(Duration::ZERO).await, "that was no answer to draining");
    proxy.registration.send_modify(|registration| registration.draining = true);
    assert!(stream.next().await.node.unwrap().registration.unwrap().draining);
    stream.put(Kind::Node, "2", vec![node(&["z"])], &[]).await;
    assert!(!proxy.status.confirmed_draining(Duration::from_secs(1)).await, "a change is no answer");
    stream.send(Kind::Node, "3", vec![], &[]).await;
    assert!(proxy.status.confirmed_draining(Duration::from_secs(1)).await);
}

#[tokio::test(start_paused = true)]
async fn addresses_are_found_by_alias_and_forgotten_when_unused() {
    // Memory follows use; an address that is in use must not be forgotten.
    let (proxy, mut stream) = Proxy::joined().await;
    let demand = proxy.demand.clone();
    let answer = host::spawn(async move { demand.want(DemandName::Vip([10, 0, 0, 1].into()), WAIT * 10).await });
    assert_eq!(stream.next_of(Kind::Service).await.resource_names_subscribe, ["vip/10.0.0.1"]);
    let aliased = Resource { aliases: vec!["vip/10.0.0.1".to_owned()], ..service("a", false) };
    stream.send(Kind::Service, "1", vec![aliased], &[]).await;
    stream.next_of(Kind::EndpointShard).await;
    stream.put(Kind::EndpointShard, "2", vec![shard("a", 1)], &[]).await;
    assert_eq!(answer.await.unwrap(), Answer::Found);
    let used: Arc<str> = name("a").into();
    for _ in 0..4 {
        proxy.demand.used(&used);
        host::sleep(Duration::from_secs(1200)).await;
    }
    assert!(proxy.has("a"));
    host::sleep(Duration::from_secs(2000)).await;
    assert!(!proxy.has("a"));
    let mut gone = stream.next_of(Kind::Service).await.resource_names_unsubscribe;
    while gone.is_empty() {
        gone = stream.next_of(Kind::Service).await.resource_names_unsubscribe;
    }
    assert_eq!(gone, ["vip/10.0.0.1"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_asked_for() {
    // A control plane that does not answer may cost a new destination 250 ms, not more.
    let (proxy, _stream) = Proxy::joined().await;
    let before = host::now();
    assert_eq!(proxy.demand.want(DemandName::Host("slow".to_owned()), WAIT).await, Answer::TimedOut);
    assert_eq!(host::now() - before, WAIT);
    for nonsense in ["", "a..b", "a b", "ü", "-/", &"x".repeat(300)] {
        assert_eq!(proxy.demand.want(DemandName::Host(nonsense.to_owned()), WAIT).await, Answer::Absent, "{nonsense}");
    }
}

#[tokio::test(start_paused = true)]
async fn s23_announced_roots_reach_the_identity_and_are_never_taken_away() {
    // A lost trust bundle would refuse every peer.
    let (proxy, mut stream) = Proxy::joined().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let bundle = mesh::TrustBundle { roots: vec![pem.into_bytes().into()] };
    stream.put(Kind::TrustBundle, "1", vec![resource(Kind::TrustBundle, "mesh.local", &bundle)], &[]).await;
    stream.put(Kind::TrustBundle, "2", vec![], &["mesh.local"]).await;
    stream
        .send(
            Kind::TrustBundle,
            "3",
            vec![resource(Kind::TrustBundle, "mesh.local", &mesh::TrustBundle::default())],
            &[],
        )
        .await;
    assert_eq!(refusals(&stream.next().await)[0].path, "roots");
    assert_eq!(proxy.status.report().held, 2);
    assert!(proxy.identity.current().is_none(), "roots alone are no identity");
}
