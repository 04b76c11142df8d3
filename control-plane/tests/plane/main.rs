//! A whole control plane in this process, with fake sidecars on real sockets: joining, certificates, configuration, rollout,
//! refusals, draining, loss and restart.

#![allow(clippy::unwrap_used)]

mod client;

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use client::{Stream, channel, csr, join, registration, sign, subscribe, svid};
use outrigger_control_plane::control_plane::{Running, Settings, StartError, start};
use outrigger_proto::{
    admin::{
        ApplyRequest, ApplyResponse, CreateTokenRequest, DeleteRequest, DiffRequest, Document, GetRequest,
        HistoryRequest, InfoRequest, ListProxiesRequest, ObjectKey, ProxyConfigRequest, RevokeTokenRequest,
        RollbackRequest, Rollout, WatchRolloutRequest, admin_client::AdminClient, admin_server::Admin as _,
    },
    kind::Kind,
    mesh::{self, EndpointShard, Health},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};

const REVIEWS: &str = "shop/reviews.shop.svc.cluster.local";

const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 80, targetPort: http}]
";

fn settings(folder: &Path) -> Settings {
    Settings::on_free_ports(folder)
}

async fn plane() -> (tempfile::TempDir, Running) {
    let folder = tempfile::tempdir().unwrap();
    let running = start(settings(folder.path())).await.unwrap();
    (folder, running)
}

async fn apply(plane: &Running, text: &str) -> ApplyResponse {
    let documents = vec![Document { file: "test.yaml".to_owned(), text: text.to_owned() }];
    let request = ApplyRequest { documents, message: "test".to_owned(), ..Default::default() };
    plane.admin().apply(Request::new(request)).await.unwrap().into_inner()
}

async fn last_report(plane: &Running, revision: u64, timeout_ms: u32) -> Rollout {
    let request = WatchRolloutRequest { revision, timeout_ms };
    let mut reports = plane.admin().watch_rollout(Request::new(request)).await.unwrap().into_inner();
    let mut last = None;
    while let Some(report) = reports.next().await {
        last = Some(report.unwrap());
    }
    last.expect("at least one report")
}

/// The last report, while the stream takes and acks what comes.
async fn rollout_with(plane: &Running, revision: u64, stream: &mut Stream) -> Rollout {
    let report = last_report(plane, revision, 10_000);
    let mut report = std::pin::pin!(report);
    loop {
        tokio::select! {
            report = &mut report => return report,
            _ = stream.take() => {}
        }
    }
}

/// Health of every endpoint in what the stream holds, by uid.
fn endpoints(stream: &Stream) -> Vec<(String, i32)> {
    let shards = stream.held.iter().filter(|((kind, _), _)| *kind == Kind::EndpointShard);
    let mut all: Vec<(String, i32)> = shards
        .flat_map(|((_, name), _)| stream.get::<EndpointShard>(Kind::EndpointShard, name).unwrap().endpoints)
        .map(|e| (e.uid, e.health))
        .collect();
    all.sort();
    all
}

/// Subscribes to the service and everything it names.
async fn follow_reviews(stream: &mut Stream) {
    stream.send(subscribe(Kind::Service, &[REVIEWS])).await;
    stream.until("the service", |held| held.contains_key(&(Kind::Service, REVIEWS.to_owned()))).await;
    let service: mesh::Service = stream.get(Kind::Service, REVIEWS).unwrap();
    let shards: Vec<&str> = service.endpoint_shards.iter().map(String::as_str).collect();
    stream.send(subscribe(Kind::EndpointShard, &shards)).await;
    let wanted = shards[0].to_owned();
    stream.until("its endpoints", |held| held.contains_key(&(Kind::EndpointShard, wanted.clone()))).await;
}

/// Takes responses in until the endpoints are these.
async fn until_endpoints(stream: &mut Stream, expected: &[(&str, Health)]) {
    let expected: Vec<(String, i32)> = expected.iter().map(|(uid, h)| ((*uid).to_owned(), i32::from(*h))).collect();
    let end = tokio::time::Instant::now() + client::PATIENCE;
    while endpoints(stream) != expected {
        assert!(tokio::time::Instant::now() < end, "{:?}, not {expected:?}", endpoints(stream));
        stream.take().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_token_to_a_finished_rollout() {
    // The main road: join, register, subscribe, apply, ack, and `apply --wait` says 1 of 1.
    let (_folder, plane) = plane().await;
    let me = join(&plane, "shop", "reviews").await;
    assert_eq!(me.chain.len(), 2, "leaf first, root last");
    let mut stream = Stream::open(&plane, &me, &registration("shop", "reviews", "reviews-1", 15006)).await.unwrap();
    stream.until("its node", |held| held.contains_key(&(Kind::Node, "shop/reviews-1".to_owned()))).await;
    let node: mesh::Node = stream.get(Kind::Node, "shop/reviews-1").unwrap();
    assert_eq!((node.namespace.as_str(), node.service_account.as_str()), ("shop", "reviews"));
    stream.send(subscribe(Kind::TrustBundle, &["cluster.local"])).await;
    stream.until("the roots", |held| held.keys().any(|(kind, _)| *kind == Kind::TrustBundle)).await;
    // Interest in something that does not exist yet: told so, and sent once it does.
    stream.send(subscribe(Kind::Service, &["host/reviews.shop"])).await;
    assert_eq!(stream.take().await.removed_resources, ["host/reviews.shop"]);
    let applied = apply(&plane, SERVICE).await;
    assert_eq!((applied.revision, applied.refused), (1, false), "{:?}", applied.problems);
    stream.until("the service", |held| held.contains_key(&(Kind::Service, REVIEWS.to_owned()))).await;
    let report = rollout_with(&plane, 1, &mut stream).await;
    assert_eq!((report.in_effect, report.total, report.done), (1, 1, true));
    assert!(report.elapsed_us > 0 && report.elapsed_us < 10_000_000, "{}", report.elapsed_us);
    follow_reviews(&mut stream).await;
    until_endpoints(&mut stream, &[("shop/reviews-1", Health::Ready)]).await;
    // What the admin side shows of it.
    let proxies = plane.admin().list_proxies(Request::new(ListProxiesRequest {})).await.unwrap().into_inner().proxies;
    assert_eq!(proxies.len(), 1);
    assert_eq!((proxies[0].id.as_str(), proxies[0].connected, proxies[0].ready), ("shop/reviews-1", true, true));
    let request = ProxyConfigRequest { proxy: "reviews-1".to_owned() };
    let json = plane.admin().proxy_config(Request::new(request)).await.unwrap().into_inner().json;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let service = &json[Kind::Service.type_url()][REVIEWS];
    assert_eq!((&service["acked"], &service["resource"]["name"]), (&true.into(), &"reviews".into()));
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m10_nobody_gets_in_without_proof() {
    // Whoever reaches the port must not get a certificate, a stream or the admin side.
    let (_folder, plane) = plane().await;
    let (address, root) = (plane.discovery_address, plane.root_pem().to_owned());
    let mine = "spiffe://cluster.local/ns/shop/sa/reviews";
    let token = plane.create_token("shop", "reviews", None, Some(2)).await.unwrap();
    let ask = async |bearer: Option<String>, uris: &[&str]| {
        let result = sign(channel(address, &root, None).await, bearer.as_deref(), &csr(uris).0, 0).await;
        result.map(|_| ()).map_err(|s| s.code())
    };
    assert_eq!(ask(None, &[mine]).await, Err(Code::Unauthenticated));
    assert_eq!(ask(Some("orj1.x.y".to_owned()), &[mine]).await, Err(Code::Unauthenticated));
    assert_eq!(ask(Some(format!("{token}x")), &[mine]).await, Err(Code::Unauthenticated));
    let other = "spiffe://cluster.local/ns/shop/sa/ratings";
    assert_eq!(ask(Some(token.clone()), &[other]).await, Err(Code::InvalidArgument));
    assert_eq!(ask(Some(token.clone()), &[mine, other]).await, Err(Code::InvalidArgument));
    // A refused request used nothing up: two good ones work, the third does not.
    let without_pin = token.rsplit_once('.').unwrap().0.to_owned();
    assert_eq!(ask(Some(without_pin), &[mine]).await, Ok(()));
    assert_eq!(ask(Some(token.clone()), &[mine]).await, Ok(()));
    assert_eq!(ask(Some(token), &[mine]).await, Err(Code::Unauthenticated));
    // Revoked before use.
    let request = CreateTokenRequest {
        namespace: "shop".to_owned(),
        service_account: "reviews".to_owned(),
        ..Default::default()
    };
    let made = plane.admin().create_token(Request::new(request)).await.unwrap().into_inner();
    assert!(made.token.ends_with(&plane.root_pin));
    let id = made.info.unwrap().id;
    plane.admin().revoke_token(Request::new(RevokeTokenRequest { id })).await.unwrap();
    assert_eq!(ask(Some(made.token), &[mine]).await, Err(Code::Unauthenticated));
    // Discovery takes certificates only.
    let mut anonymous =
        outrigger_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient::new(
            channel(address, &root, None).await,
        );
    let refused = anonymous.delta_aggregated_resources(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // The admin side takes the token of the file only.
    let token = fs::read_to_string(&plane.admin_token_path).unwrap();
    for (bearer, ok) in [(None, false), (Some("wrong"), false), (Some(token.trim()), true)] {
        let mut request = Request::new(InfoRequest {});
        if let Some(bearer) = bearer {
            request.metadata_mut().insert("authorization", format!("Bearer {bearer}").parse().unwrap());
        }
        let answer = AdminClient::new(channel(plane.admin_address, &root, None).await).info(request).await;
        assert_eq!(answer.is_ok(), ok, "{bearer:?}");
    }
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_renews_itself() {
    // Renewal needs no token, and nobody outlives the operator's lifetime.
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { leaf_ttl: Duration::from_secs(60), ..settings(folder.path()) };
    let plane = start(settings).await.unwrap();
    let first = join(&plane, "shop", "reviews").await;
    let mine = "spiffe://cluster.local/ns/shop/sa/reviews";
    let (request, key) = csr(&[mine]);
    let connection = channel(plane.discovery_address, plane.root_pem(), Some(&first)).await;
    let chain = sign(connection.clone(), None, &request, 86_400).await.unwrap();
    let second = svid(&chain, &key);
    let (_, leaf) = x509_parser::parse_x509_certificate(&second.chain[0]).unwrap();
    let left = leaf.validity().not_after.timestamp()
        - i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap();
    assert!((30..=60).contains(&left), "{left} s");
    assert!(!leaf.is_ca());
    let other = csr(&["spiffe://cluster.local/ns/shop/sa/ratings"]).0;
    assert_eq!(sign(connection, None, &other, 0).await.unwrap_err().code(), Code::InvalidArgument);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_speaks_for_its_own_workload_only() {
    // Otherwise one stolen certificate could empty or fill any service.
    let (_folder, plane) = plane().await;
    let me = join(&plane, "shop", "reviews").await;
    let outcome = async |registration: mesh::Registration| match Stream::open(&plane, &me, &registration).await {
        Err(status) => status.code(),
        Ok(mut stream) => stream.next().await.map_or_else(|s| s.code(), |_| Code::Ok),
    };
    assert_eq!(outcome(registration("bank", "reviews", "vault", 1)).await, Code::PermissionDenied);
    assert_eq!(outcome(registration("shop", "ratings", "ratings-1", 1)).await, Code::PermissionDenied);
    let mut first = Stream::open(&plane, &me, &registration("shop", "reviews", "reviews-1", 1)).await.unwrap();
    first.take().await;
    assert_eq!(outcome(registration("shop", "reviews", "reviews-1", 2)).await, Code::AlreadyExists);
    assert_eq!(outcome(registration("shop", "reviews", "reviews-2", 2)).await, Code::Ok);
    // The same instance on a new connection takes the place of its old stream.
    let mut again = Stream::open(&plane, &me, &registration("shop", "reviews", "reviews-1", 1)).await.unwrap();
    again.take().await;
    assert_eq!(first.next().await.unwrap_err().code(), Code::Aborted);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_reaches_the_object_and_the_rollout() {
    // The user must learn which object a proxy refused and why, and `apply --wait` must not hang.
    let (_folder, plane) = plane().await;
    let me = join(&plane, "shop", "reviews").await;
    let mut stream = Stream::open(&plane, &me, &registration("shop", "reviews", "reviews-1", 15006)).await.unwrap();
    stream.take().await;
    apply(&plane, SERVICE).await;
    stream.send(subscribe(Kind::Service, &[REVIEWS])).await;
    stream.until("the service", |held| held.contains_key(&(Kind::Service, REVIEWS.to_owned()))).await;
    assert!(rollout_with(&plane, 1, &mut stream).await.done);
    let changed = apply(&plane, &SERVICE.replace("port: 80,", "port: 81,")).await;
    assert_eq!(changed.revision, 2);
    let response = loop {
        let response = stream.next().await.unwrap();
        if response.type_url == Kind::Service.type_url() {
            break response;
        }
        stream.ack(&response).await;
    };
    stream.nack(&response, REVIEWS, "ports[0].port", "cannot use port 81").await;
    let report = last_report(&plane, 2, 10_000).await;
    assert_eq!((report.in_effect, report.total, report.done), (0, 1, false));
    assert_eq!(
        (report.refused[0].path.as_str(), report.refused[0].proxy.as_str()),
        ("ports[0].port", "shop/reviews-1")
    );
    let request = GetRequest { kind: "svc".to_owned(), name: "reviews".to_owned(), ..Default::default() };
    let found = plane.admin().get(Request::new(request)).await.unwrap().into_inner();
    let json: serde_json::Value = serde_json::from_str(&found.objects[0].json).unwrap();
    let conditions = json["status"]["conditions"].as_array().unwrap();
    let programmed = conditions.iter().find(|c| c["type"] == "Programmed").unwrap();
    assert_eq!(programmed["status"], "False");
    assert!(programmed["message"].as_str().unwrap().contains("cannot use port 81"), "{programmed}");
    // A wrong update changes nothing; the fix brings everybody up to date.
    let wrong = apply(&plane, &SERVICE.replace("port: 80,", "port: 99999,")).await;
    assert!(wrong.refused && wrong.revision == 2 && !wrong.problems.is_empty());
    let fixed = apply(&plane, SERVICE).await;
    assert!(rollout_with(&plane, fixed.revision, &mut stream).await.done);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_is_confirmed_once_peers_have_stopped() {
    // A sidecar that stops accepting too early resets requests of peers that have not heard of it.
    let (_folder, plane) = plane().await;
    apply(&plane, SERVICE).await;
    let (server, client) = (join(&plane, "shop", "reviews").await, join(&plane, "shop", "front").await);
    let mut going = Stream::open(&plane, &server, &registration("shop", "reviews", "reviews-1", 15006)).await.unwrap();
    going.take().await;
    let mut peer = Stream::open(&plane, &client, &registration("shop", "front", "front-1", 15007)).await.unwrap();
    follow_reviews(&mut peer).await;
    until_endpoints(&mut peer, &[("shop/reviews-1", Health::Ready)]).await;
    let draining = mesh::Registration { draining: true, ..registration("shop", "reviews", "reviews-1", 15006) };
    going.report(&draining).await;
    let update = peer.next().await.unwrap();
    assert_eq!(update.type_url, Kind::EndpointShard.type_url());
    // Not before the peer has it in effect.
    let early = tokio::time::timeout(Duration::from_millis(300), going.next()).await;
    assert!(early.is_err(), "confirmed while a peer had not acked: {early:?}");
    peer.ack(&update).await;
    let confirmation = going.next().await.unwrap();
    assert_eq!(confirmation.type_url, Kind::Node.type_url());
    assert!(confirmation.resources.is_empty() && !confirmation.nonce.is_empty());
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_outlive_the_control_plane_and_not_themselves() {
    // A restart of the control plane must not empty a service; a dead process must leave it.
    let folder = tempfile::tempdir().unwrap();
    let first = start(settings(folder.path())).await.unwrap();
    apply(&first, SERVICE).await;
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mine = registration("shop", "reviews", "reviews-1", port.local_addr().unwrap().port());
    let server = join(&first, "shop", "reviews").await;
    let mut registered = Stream::open(&first, &server, &mine).await.unwrap();
    registered.take().await;
    let pin = first.root_pin.clone();
    assert!(matches!(start(settings(folder.path())).await, Err(StartError::Store(_))), "one folder, one control plane");
    first.shutdown().await;
    drop(registered);
    let second = restart(folder.path()).await;
    assert_eq!(second.root_pin, pin);
    let client = join(&second, "shop", "front").await;
    let mut peer = Stream::open(&second, &client, &registration("shop", "front", "front-1", 15007)).await.unwrap();
    follow_reviews(&mut peer).await;
    until_endpoints(&mut peer, &[("shop/reviews-1", Health::Ready)]).await;
    drop(port);
    until_endpoints(&mut peer, &[]).await;
    second.shutdown().await;
}

/// The file lock of the store is released when the last task of the old one has ended.
async fn restart(folder: &Path) -> Running {
    let end = tokio::time::Instant::now() + client::PATIENCE;
    loop {
        match start(settings(folder)).await {
            Ok(running) => return running,
            Err(error) => assert!(tokio::time::Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_everybody() {
    // `apply --wait` counts every proxy, however many changes come at once.
    const PROXIES: usize = 60;
    let (_folder, plane) = plane().await;
    let me = join(&plane, "shop", "reviews").await;
    let mut tasks = Vec::new();
    for n in 0..PROXIES {
        let mine = registration("shop", "reviews", &format!("reviews-{n}"), 15006);
        let mut stream = Stream::open(&plane, &me, &mine).await.unwrap();
        stream.send(subscribe(Kind::Service, &[REVIEWS])).await;
        tasks.push(tokio::spawn(async move {
            loop {
                stream.take().await;
            }
        }));
    }
    let mut revision = 0;
    for port in 81..101 {
        revision = apply(&plane, &SERVICE.replace("port: 80,", &format!("port: {port},"))).await.revision;
    }
    assert_eq!(revision, 20);
    let report = last_report(&plane, revision, 30_000).await;
    assert_eq!((usize::try_from(report.total).unwrap(), report.in_effect, report.done), (PROXIES, report.total, true));
    println!("{PROXIES} proxies after {} us", report.elapsed_us);
    for task in tasks {
        task.abort();
    }
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_connections_end_and_their_streams_come_back() {
    // Connections must be spread again after a scale-out, without losing a workload on the way.
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.limits.connection_age = Duration::from_millis(300);
    let plane = start(settings).await.unwrap();
    let me = join(&plane, "shop", "reviews").await;
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mine = registration("shop", "reviews", "reviews-1", port.local_addr().unwrap().port());
    for _ in 0..2 {
        let mut stream = Stream::open(&plane, &me, &mine).await.unwrap();
        stream.take().await;
        assert_eq!(stream.next().await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(plane.admin().registry.workloads().1.len(), 1);
    }
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_have_a_history_that_can_be_undone() {
    // What the command line's diff, history, rollback and delete rest on.
    let (_folder, plane) = plane().await;
    let admin = plane.admin();
    let changed = SERVICE.replace("port: 80,", "port: 81,");
    let document = |text: &str| vec![Document { file: "x.yaml".to_owned(), text: text.to_owned() }];
    assert_eq!(apply(&plane, SERVICE).await.changes[0].action, "created");
    let same = apply(&plane, SERVICE).await;
    assert_eq!((same.revision, same.changes[0].action.as_str()), (1, "unchanged"));
    let dry = ApplyRequest { documents: document(&changed), dry_run: true, ..Default::default() };
    let dry = admin.apply(Request::new(dry)).await.unwrap().into_inner();
    assert_eq!((dry.revision, dry.changes[0].action.as_str()), (1, "configured"));
    let diff = DiffRequest { documents: document(&changed), ..Default::default() };
    let diff = admin.diff(Request::new(diff)).await.unwrap().into_inner().objects;
    assert!(diff[0].before.contains("port: 80") && diff[0].after.contains("port: 81"), "{diff:?}");
    assert!(!diff[0].before.contains("creationTimestamp"), "{diff:?}");
    assert_eq!(apply(&plane, &changed).await.revision, 2);
    let stale = ApplyRequest { documents: document(SERVICE), expected_revision: 1, ..Default::default() };
    assert_eq!(admin.apply(Request::new(stale)).await.unwrap_err().code(), Code::Aborted);
    let mut rollback = Request::new(RollbackRequest { to: 1, message: String::new() });
    rollback.metadata_mut().insert("outrigger-author", "ada".parse().unwrap());
    assert_eq!(admin.rollback(rollback).await.unwrap().into_inner().revision, 3);
    let diff = DiffRequest { from: 2, ..Default::default() };
    let diff = admin.diff(Request::new(diff)).await.unwrap().into_inner().objects;
    assert!(diff[0].before.contains("port: 81") && diff[0].after.contains("port: 80"), "{diff:?}");
    let key =
        |name: &str| ObjectKey { kind: "services".to_owned(), namespace: "shop".to_owned(), name: name.to_owned() };
    let both = DeleteRequest { objects: vec![key("reviews"), key("nobody")], ..Default::default() };
    let refused = admin.delete(Request::new(both)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("Service shop/nobody does not exist"), "{refused}");
    let one = DeleteRequest { objects: vec![key("reviews")], ..Default::default() };
    assert_eq!(admin.delete(Request::new(one)).await.unwrap().into_inner().changes[0].action, "deleted");
    let past = GetRequest { kind: "Service".to_owned(), revision: 2, ..Default::default() };
    let past = admin.get(Request::new(past)).await.unwrap().into_inner().objects;
    assert!(past[0].json.contains("\"port\":81"), "{past:?}");
    let history = HistoryRequest { limit: 0, object: Some(key("reviews")) };
    let history = admin.history(Request::new(history)).await.unwrap().into_inner().revisions;
    assert_eq!(history.iter().map(|r| r.revision).collect::<Vec<_>>(), [4, 3, 2, 1]);
    assert_eq!((history[1].author.as_str(), history[1].message.as_str()), ("ada", "rollback to revision 1"));
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_never_reads_holds_nobody_up() {
    // One stuck proxy must cost neither memory nor the others' time.
    let (_folder, plane) = plane().await;
    let me = join(&plane, "shop", "reviews").await;
    let stuck = Stream::open(&plane, &me, &registration("shop", "reviews", "stuck-1", 15006)).await.unwrap();
    stuck.send(subscribe(Kind::Service, &["*"])).await;
    let mut well = Stream::open(&plane, &me, &registration("shop", "reviews", "well-1", 15007)).await.unwrap();
    well.send(subscribe(Kind::Service, &[REVIEWS])).await;
    for port in 81..121 {
        apply(&plane, &SERVICE.replace("port: 80,", &format!("port: {port},"))).await;
    }
    let current = |held: &std::collections::BTreeMap<(Kind, String), Vec<u8>>| {
        let service = held.get(&(Kind::Service, REVIEWS.to_owned()));
        service.is_some_and(|b| <mesh::Service as prost::Message>::decode(&b[..]).unwrap().ports[0].port == 120)
    };
    well.until("the newest port", current).await;
    let proxies = plane.admin().list_proxies(Request::new(ListProxiesRequest {})).await.unwrap().into_inner().proxies;
    let stuck = proxies.iter().find(|p| p.id == "shop/stuck-1").unwrap();
    assert!(stuck.connected && stuck.revision < 40, "{stuck:?}");
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monitoring_answers_probes_and_scrapers() {
    // Dashboards and probes read these paths.
    let (_folder, plane) = plane().await;
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(plane.monitoring_address.unwrap()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    assert!(get("/ready").await.starts_with("HTTP/1.1 200"));
    assert!(get("/metrics").await.contains("pilot_xds{version="));
    assert!(get("/version").await.contains("\"version\""));
    assert!(get("/nothing").await.starts_with("HTTP/1.1 404"));
    plane.shutdown().await;
}
