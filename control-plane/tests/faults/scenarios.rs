//! The faults, one function each. Where the processes run is the plan's matter.

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    control::{NAMESPACE, admin_get, generation},
    ledger::Ledger,
    load::Load,
    mesh::{API, CONTROL_PLANE, Mesh, Plan, SERVICE_PORT, application_of},
    streams::{Streams, exchange, talk},
};

/// Clients of the usual load: HTTP/1.1 connections, and streams of one HTTP/2 connection.
const HTTP1: usize = 8;
const HTTP2: usize = 4;
/// Between an answer and the next request of one client.
const PAUSE: Duration = Duration::from_millis(5);

fn load(mesh: &Mesh) -> Load {
    Load::start(&mesh.ledger, &mesh.plan.front, HTTP1, HTTP2, PAUSE)
}

async fn wait(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// Until there are enough answers to requests that began at `since` or later to say who answers now.
async fn answers_since(mesh: &Mesh, since: Instant) {
    let end = Instant::now() + Duration::from_secs(20);
    while mesh.ledger.shares_of_begun(since).values().sum::<usize>() < 100 {
        assert!(Instant::now() < end, "too few answers: {}", mesh.ledger.verdict());
        wait(20).await;
    }
}

/// Until the ledger has `count` answers: how long the fault itself lasts says nothing of how many a busy machine has given.
async fn answers(mesh: &Mesh, count: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    while mesh.ledger.answered() < count {
        assert!(Instant::now() < end, "too few answers: {}", mesh.ledger.verdict());
        wait(20).await;
    }
}

/// A route of `api` to both versions; `number` makes it a change each time.
fn split(weight: u32, number: usize) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: api, namespace: {NAMESPACE}}}
spec:
  parentRefs:
  - {{group: \"\", kind: Service, name: api, port: {SERVICE_PORT}}}
  rules:
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{set: [{{name: x-swap, value: \"{number}\"}}]}}
    backendRefs:
    - {{name: api-v1, port: {SERVICE_PORT}, weight: {}}}
    - {{name: api-v2, port: {SERVICE_PORT}, weight: {weight}}}
",
        100 - weight
    )
}

/// More than 200 swaps a second, with keep-alive clients, WebSockets and a gRPC stream open over all of them.
pub async fn hot_swap(plan: Plan) {
    const SWAPS: usize = 1000;
    /// Between two changes: two thirds more of them than must take effect. Those that a proxy is too busy for become one.
    const INTERVAL: Duration = Duration::from_millis(3);
    /// Where the machine is too busy for the rate, fewer swaps must do.
    const LONGEST: Duration = Duration::from_secs(8);
    let mut mesh = Mesh::start(plan, &split(30, 0)).await;
    let caller = mesh.place("caller").admin.clone();
    let streams = Streams::open(&mesh.plan.front, 4, PAUSE).await;
    let load = load(&mesh);
    let (before, began) = (generation(&caller).await, Instant::now());
    let mut tick = tokio::time::interval(INTERVAL);
    let (mut revision, mut swaps) = (0, 0);
    for number in 1..=SWAPS {
        tick.tick().await;
        // Weights from 1 to 99: both versions always get something.
        revision = mesh.control.apply(&split(u32::try_from(number % 99).unwrap() + 1, number)).await;
        swaps = number;
        if began.elapsed() > LONGEST {
            break;
        }
    }
    let rate = |count: usize| count as f64 / began.elapsed().as_secs_f64();
    let applied = rate(swaps);
    mesh.control.in_effect(revision).await;
    let effective = usize::try_from(generation(&caller).await - before).unwrap();
    let in_effect = rate(effective);
    load.stop().await;
    let echoes = streams.stop().await.unwrap();
    let verdict = mesh.ledger.verdict();
    println!(
        "hot swap: {swaps} revisions applied at {applied:.0}/s, {effective} of them in effect one by one at {in_effect:.0}/s, \
         {echoes} echoes on streams that stayed open\n{verdict}"
    );
    verdict.assert_spotless(200);
    assert!(echoes > 100, "{echoes} echoes");
    assert!(effective * 2 > swaps, "{effective} of {swaps} swaps took effect one by one");
    // A debug build may be slower. Where it is not one, or where speed is to be proved, it must be fast enough.
    let asked = std::env::var("OUTRIGGER_REQUIRE_SWAP_RATE").ok().map(|rate| rate.parse().unwrap());
    if let Some(wanted) = asked.or((!cfg!(debug_assertions)).then_some(200.0)) {
        assert!(in_effect >= wanted, "{in_effect:.0} swaps a second in effect, {wanted} are required");
    }
}

/// Nothing grows with the number of swaps: memory, open files, connections.
pub async fn no_growth(plan: Plan) {
    let mut mesh = Mesh::start(plan, &split(30, 0)).await;
    let caller = mesh.place("caller").admin.clone();
    let streams = Streams::open(&mesh.plan.front, 2, Duration::from_millis(20)).await;
    // Little load: what is measured here is what swaps leave behind, and a thousand of them take long on a busy machine.
    let load = Load::start(&mesh.ledger, &mesh.plan.front, 2, 1, Duration::from_millis(20));
    let mut samples = Vec::new();
    for number in 1..=1100_usize {
        let revision = mesh.control.apply(&split(u32::try_from(number % 99).unwrap() + 1, number)).await;
        if number % 100 == 0 {
            mesh.control.in_effect(revision).await;
            wait(50).await;
            let sample: BTreeMap<&str, Usage> =
                ["caller", "api-1", CONTROL_PLANE].into_iter().map(|name| (name, usage(&mesh, name))).collect();
            let metrics = admin_get(&caller, "/metrics").await.unwrap();
            samples.push((sample, sum(&metrics, "outrigger_upstream_connections_opened_total")));
        }
    }
    load.stop().await;
    streams.stop().await.unwrap();
    println!("no growth: {samples:#?}\n{}", mesh.ledger.verdict());
    mesh.ledger.verdict().assert_spotless(200);
    // What the first hundred warmed up stays; the thousand after them may add nothing to speak of.
    let ((early, opened), (late, opened_in_all)) = (&samples[0], &samples[samples.len() - 1]);
    assert!(opened_in_all <= &(opened + 4.0), "swaps opened connections: {opened} -> {opened_in_all}");
    for (name, before) in early {
        let after = &late[name];
        assert!(after.files <= before.files + 8, "{name}: open files {before:?} -> {after:?}");
        assert!(after.threads <= before.threads + 2, "{name}: threads {before:?} -> {after:?}");
        // The control plane keeps the history, in its store; sidecars keep nothing.
        let room = if *name == CONTROL_PLANE { 48 << 10 } else { 8 << 10 };
        assert!(after.resident_kib <= before.resident_kib + room, "{name}: memory {before:?} -> {after:?}");
    }
}

/// The sum of all series of one metric.
fn sum(metrics: &str, name: &str) -> f64 {
    let series = metrics.lines().filter(|line| line.starts_with(name));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[derive(Debug)]
struct Usage {
    resident_kib: usize,
    files: usize,
    threads: usize,
}

fn usage(mesh: &Mesh, process: &str) -> Usage {
    let folder = format!("/proc/{}", mesh.process_id(process));
    let status = fs::read_to_string(format!("{folder}/status")).unwrap();
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    Usage {
        resident_kib: number("VmRSS:"),
        files: fs::read_dir(format!("{folder}/fd")).unwrap().count(),
        threads: number("Threads:"),
    }
}

/// The application of one replica is killed, again and again.
pub async fn application_killed(plan: Plan) {
    let mut mesh = Mesh::start(plan, "").await;
    let load = load(&mesh);
    wait(300).await;
    for _ in 0..3 {
        mesh.kill(&application_of("api-1"));
        wait(700).await;
        mesh.start_application("api-1", Duration::ZERO);
        mesh.control.ready(&API).await;
        wait(200).await;
    }
    answers(&mesh, 200).await;
    load.stop().await;
    assert_outage(&mesh, "application killed", 3);
}

/// One replica is killed whole: application and sidecar.
pub async fn replica_killed(plan: Plan) {
    let mut mesh = Mesh::start(plan, "").await;
    let load = load(&mesh);
    wait(300).await;
    for _ in 0..3 {
        mesh.kill("api-1");
        mesh.kill(&application_of("api-1"));
        wait(700).await;
        mesh.start_application("api-1", Duration::ZERO);
        mesh.start_sidecar("api-1");
        mesh.sidecar_ready("api-1").await;
        mesh.control.ready(&API).await;
        wait(200).await;
    }
    answers(&mesh, 200).await;
    load.stop().await;
    assert_outage(&mesh, "replica killed", 3);
}

/// Whatever an endpoint takes with it when it dies was under way there: at most one request of each client.
fn assert_outage(mesh: &Mesh, what: &str, outages: usize) {
    let verdict = mesh.ledger.verdict();
    println!("{what}: {verdict}");
    verdict.assert_safe(200);
    let most = outages * (HTTP1 + HTTP2);
    assert!(
        verdict.failed_posts.len() <= most && verdict.truncated.len() <= most && verdict.not_sent == 0,
        "{verdict}"
    );
}

/// Three replicas are replaced one after the other, each with its sidecar: the sidecar first, as where it is told first, or
/// both at once.
pub async fn rolling_restart(plan: Plan, at_once: bool) {
    let mut mesh = Mesh::start(plan, "").await;
    let load = load(&mesh);
    wait(300).await;
    for name in API {
        mesh.signal(name, Signal::TERM);
        if at_once {
            mesh.signal(&application_of(name), Signal::TERM);
        }
        assert!(mesh.ended(name, Duration::from_secs(10)).await.success());
        if !at_once {
            mesh.signal(&application_of(name), Signal::TERM);
        }
        assert!(mesh.ended(&application_of(name), Duration::from_secs(5)).await.success());
        mesh.start_application(name, Duration::ZERO);
        mesh.start_sidecar(name);
        mesh.sidecar_ready(name).await;
        mesh.control.ready(&API).await;
        let back = Instant::now();
        while !mesh.ledger.shares(back).contains_key(name) {
            assert!(back.elapsed() < Duration::from_secs(5), "{name} is back and gets nothing");
            wait(20).await;
        }
    }
    wait(300).await;
    load.stop().await;
    let verdict = mesh.ledger.verdict();
    println!("rolling restart (at once: {at_once}): {verdict}");
    if !at_once {
        return verdict.assert_spotless(200);
    }
    // An application that is told to stop closes its idle connections, also one that a request has just been written to. A
    // POST then ends without an answer, nobody can know whether it was read, and RFC 9110 §9.2.2 forbids to repeat it.
    verdict.assert_safe(200);
    assert!(verdict.truncated.is_empty() && verdict.not_sent == 0, "{verdict}");
    assert!(verdict.failed_posts.len() <= API.len(), "{verdict}");
    assert!(verdict.failed_posts.iter().all(|post| post.ends_with("records: []")), "{verdict}");
}

/// The control plane is killed and comes back; traffic does not notice, and later changes arrive.
pub async fn control_plane_killed(plan: Plan, outage: Duration) {
    let mut mesh = Mesh::start(plan, &split(50, 0)).await;
    let streams = Streams::open(&mesh.plan.front, 2, PAUSE).await;
    let load = load(&mesh);
    wait(300).await;
    mesh.kill(CONTROL_PLANE);
    tokio::time::sleep(outage).await;
    mesh.start_control_plane().await;
    let names: Vec<_> = mesh.plan.places.iter().map(|place| place.name).collect();
    mesh.control.ready(&names).await;
    let revision = mesh.control.apply(&split(100, 1)).await;
    mesh.control.in_effect(revision).await;
    let changed = Instant::now();
    answers_since(&mesh, changed).await;
    load.stop().await;
    streams.stop().await.unwrap();
    let verdict = mesh.ledger.verdict();
    println!("control plane killed: {verdict}");
    verdict.assert_spotless(200);
    let after = mesh.ledger.shares_of_begun(changed);
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        ["api-3"],
        "the change that came after did not take effect: {after:?}"
    );
}

/// Sidecars are restarted while the control plane is away: first one of a replica, then the caller's own.
pub async fn restarts_without_control_plane(plan: Plan, outage: Duration) {
    let mut mesh = Mesh::start(plan, &split(50, 0)).await;
    // Configuration is saved two seconds after it came, as one write.
    wait(2500).await;
    let traffic = load(&mesh);
    wait(300).await;
    mesh.kill(CONTROL_PLANE);
    let away = Instant::now();
    // Orderly and by force; the application stays.
    for signal in [Signal::TERM, Signal::KILL] {
        mesh.signal("api-1", signal);
        mesh.ended("api-1", Duration::from_secs(12)).await;
        wait(300).await;
        mesh.start_sidecar("api-1");
        mesh.sidecar_ready("api-1").await;
        let back = Instant::now();
        let end = back + Duration::from_secs(12);
        while !mesh.ledger.shares(back).contains_key("api-1") {
            assert!(
                Instant::now() < end,
                "the restarted sidecar of api-1 gets nothing: {:?}",
                mesh.ledger.shares(back)
            );
            wait(50).await;
        }
    }
    let verdict = mesh.ledger.verdict();
    println!("a replica's sidecar restarted without control plane: {verdict}");
    verdict.assert_safe(200);
    assert!(verdict.not_sent == 0, "{verdict}");
    // A client whose own sidecar goes cannot be served meanwhile, so the load pauses; what was asked before is answered.
    traffic.stop().await;
    mesh.ledger.verdict().assert_safe(200);
    mesh.kill("caller");
    mesh.start_sidecar("caller");
    let started = Instant::now();
    mesh.sidecar_ready("caller").await;
    println!("the caller's sidecar serves {:.0?} after its start", started.elapsed());
    let answered = mesh.ledger.answered();
    let traffic = load(&mesh);
    tokio::time::sleep(outage.saturating_sub(away.elapsed()).max(Duration::from_secs(1))).await;
    assert!(mesh.ledger.answered() > answered + 50, "the restarted caller gets no answers");
    mesh.start_control_plane().await;
    let names: Vec<_> = mesh.plan.places.iter().map(|place| place.name).collect();
    mesh.control.ready(&names).await;
    let revision = mesh.control.apply(&split(100, 1)).await;
    mesh.control.in_effect(revision).await;
    let changed = Instant::now();
    answers_since(&mesh, changed).await;
    traffic.stop().await;
    let verdict = mesh.ledger.verdict();
    println!("restarts without control plane: {verdict}");
    verdict.assert_safe(200);
    let after = mesh.ledger.shares_of_begun(changed);
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        ["api-3"],
        "the change that came after did not take effect: {after:?}"
    );
}

const PATIENCE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: api, namespace: shop}
spec:
  parentRefs:
  - {group: \"\", kind: Service, name: api, port: 9080}
  rules:
  - timeouts: {request: 8s, backendRequest: 500ms}
    retry: {codes: [503, 504], attempts: 3, backoff: 10ms}
    backendRefs:
    - {name: api, port: 9080}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api, namespace: shop}
spec:
  host: api.shop.svc.cluster.local
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 50}
";

/// The application of one replica hangs and comes back.
pub async fn application_hangs(plan: Plan) {
    hang(plan, PATIENCE).await;
}

/// The same without a rule about ejection: the sidecar's own settings put the endpoint aside.
pub async fn application_hangs_without_a_rule(mut plan: Plan) {
    let (route, _) = PATIENCE.split_once("---").unwrap();
    let caller = plan.places.iter_mut().find(|place| place.name == "caller").unwrap();
    for setting in ["ejection.consecutive_failures=2", "ejection.base_time=1s"] {
        caller.flags.extend(["--set", setting].map(str::to_owned));
    }
    hang(plan, route).await;
}

async fn hang(plan: Plan, rules: &str) {
    let mesh = Mesh::start(plan, rules).await;
    let caller = mesh.place("caller").admin.clone();
    let load = load(&mesh);
    wait(500).await;
    mesh.signal(&application_of("api-1"), Signal::STOP);
    wait(3000).await;
    let metrics = admin_get(&caller, "/metrics").await.unwrap();
    mesh.signal(&application_of("api-1"), Signal::CONT);
    let back = Instant::now();
    let end = back + Duration::from_secs(10);
    while !mesh.ledger.shares(back + Duration::from_millis(500)).contains_key("api-1") {
        assert!(Instant::now() < end, "the endpoint that works again gets nothing");
        wait(50).await;
    }
    load.stop().await;
    let verdict = mesh.ledger.verdict();
    println!("application hangs: {verdict}");
    verdict.assert_safe(200);
    let ejections: Vec<&str> =
        metrics.lines().filter(|line| line.contains("eject") && !line.starts_with('#')).collect();
    println!("{}", ejections.join("\n"));
    assert!(
        ejections.iter().any(|line| line.ends_with(|c: char| ('1'..='9').contains(&c))),
        "never ejected: {ejections:?}"
    );
}

/// One replica is much slower than the others: it gets less.
pub async fn slow_endpoint(plan: Plan) {
    let mut mesh = Mesh::start(plan, "").await;
    mesh.kill(&application_of("api-2"));
    mesh.start_application("api-2", Duration::from_millis(200));
    mesh.control.ready(&API).await;
    let load = load(&mesh);
    wait(1000).await;
    let measured = Instant::now();
    wait(3000).await;
    let shares = mesh.ledger.shares(measured);
    load.stop().await;
    let verdict = mesh.ledger.verdict();
    println!("slow endpoint: {shares:?} {verdict}");
    verdict.assert_spotless(200);
    let all: usize = shares.values().sum();
    let slow = shares.get("api-2").copied().unwrap_or(0);
    assert!(slow * 6 < all, "the slow one of three got {slow} of {all}");
}

/// Updates that are wrong change nothing.
pub async fn invalid_updates(plan: Plan) {
    let mut mesh = Mesh::start(plan, &split(50, 0)).await;
    let caller = mesh.place("caller").admin.clone();
    let load = load(&mesh);
    wait(200).await;
    let before = admin_get(&caller, "/config_dump").await.unwrap();
    let good = split(0, 7);
    let wrong = [
        "{ not: yaml".to_owned(),
        "just text".to_owned(),
        "apiVersion: v1\nkind: Service\nmetadata: {name: \"a b\"}\nspec: {}\n".to_owned(),
        good.replace("weight: 100", "weight: -1"),
        good.replace("weight: 100", "weight: 100000000000"),
        good.replace("port: 9080, weight", "port: 90800, weight"),
        good.replace("backendRefs:", "backendRefz:"),
        good.replace("RequestHeaderModifier\n", "RequestHeaderMangler\n"),
        good.replace("x-swap", "x swap"),
        good.replace("kind: HTTPRoute", "kind: HTTPRout"),
        good.replace("  - filters:", "  - matches: [{path: {type: RegularExpression, value: \"(\"}}]\n    filters:"),
        // The good document in front of a bad one: all or nothing.
        format!("{good}---\n{}", good.replace("weight: 100", "weight: many")),
    ];
    for document in &wrong {
        assert_ne!(document, &good, "the change that makes it wrong did not apply");
        match mesh.control.send(document).await {
            Ok(answer) => {
                let found: Vec<_> = answer.problems.iter().map(|problem| &problem.message).collect();
                assert!(answer.refused, "{document}\nwas accepted, with {found:?}");
                assert!(answer.problems.iter().any(|problem| problem.severity == "error"), "{found:?}");
            }
            Err(status) => panic!("{document}\nbroke the call: {status}"),
        }
        wait(50).await;
    }
    assert_eq!(admin_get(&caller, "/config_dump").await.unwrap(), before, "a refused update changed the configuration");
    answers(&mesh, 100).await;
    load.stop().await;
    let verdict = mesh.ledger.verdict();
    println!("invalid updates: {verdict}");
    verdict.assert_spotless(100);
}

/// A sidecar is told to stop while a stream is open and its application calls out; another one is told twice.
pub async fn drain(plan: Plan) {
    let mut mesh = Mesh::start(plan, "").await;
    let load = load(&mesh);
    let (says, mut heard) = talk_with(&mesh, "api-1").await;
    let outgoing = Arc::new(Ledger::new(&mesh.folder().join("outgoing"), "out"));
    // The applications write to the mesh's ledger, so this one counts the clients' side only.
    let calls = Load::start(&outgoing, &mesh.plan.way_out, 2, 1, PAUSE);
    wait(300).await;
    mesh.signal("api-1", Signal::TERM);
    let told = Instant::now();
    for turn in 0..30 {
        exchange(&says, &mut heard, &format!("after-{turn}")).await.unwrap();
        wait(50).await;
    }
    let late = mesh.ledger.shares_of_begun(told + Duration::from_secs(1));
    assert!(!late.contains_key("api-1") && late.len() == 2, "a draining endpoint still gets requests: {late:?}");
    let called = outgoing.answered();
    wait(100).await;
    assert!(outgoing.answered() > called, "the application of a draining sidecar cannot call out");
    calls.stop().await;
    drop(says);
    assert_eq!(heard.message().await.unwrap(), None, "the stream of a draining sidecar ends as the application says");
    mesh.signal(&application_of("api-1"), Signal::TERM);
    assert!(mesh.ended("api-1", Duration::from_secs(5)).await.success());
    let outgoing = outgoing.failures();
    assert!(outgoing.is_empty(), "calls out of a draining sidecar failed: {outgoing:#?}");

    let (says, mut heard) = talk_with(&mesh, "api-2").await;
    mesh.signal("api-2", Signal::TERM);
    wait(300).await;
    exchange(&says, &mut heard, "still there").await.unwrap();
    let again = Instant::now();
    mesh.signal("api-2", Signal::TERM);
    mesh.ended("api-2", Duration::from_secs(2)).await;
    println!("drain: the second signal ended it within {:.1?}", again.elapsed());
    load.stop().await;
    let verdict = mesh.ledger.verdict();
    println!("drain: {verdict}");
    verdict.assert_safe(200);
    assert!(verdict.failed_posts.is_empty() && verdict.truncated.len() <= HTTP1 + HTTP2, "{verdict}");
}

/// A gRPC stream that a certain replica serves.
async fn talk_with(mesh: &Mesh, workload: &str) -> (tokio::sync::mpsc::Sender<String>, tonic::Streaming<String>) {
    for _ in 0..100 {
        let (says, mut heard) = talk(&mesh.plan.front).await;
        says.send("who".to_owned()).await.unwrap();
        let answer = heard.message().await.unwrap().unwrap();
        if answer.split_once(' ').is_some_and(|(name, _)| name == workload) {
            return (says, heard);
        }
    }
    panic!("no stream ever went to {workload}");
}
