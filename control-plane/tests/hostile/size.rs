//! T07 to T12: many, large and crafted. Numbers of connections and descriptors, times that overflow, fields and patterns that cost more than
//! they should. Nothing here is judged by how fast it is: what grows out of proportion never ends, or multiplies.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use outrigger_control_plane::api;

use super::{
    sidecar::{Service, Sidecar, Stage},
    wire::{self, PATIENCE, application, final_answer, ok, says},
};

fn server(application: SocketAddr, settings: &[&str]) -> (Sidecar, SocketAddr) {
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    Stage::new().server(application, "http", &arguments)
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n";

/// One more request on a connection; `None`: it was closed.
fn again(io: &mut TcpStream) -> Option<u16> {
    io.write_all(GET).ok()?;
    final_answer(io, false).map(|answer| answer.status())
}

#[test]
fn t07_idle_connections_make_room_oldest_first() {
    // Whoever opens connections and holds them would keep everybody else out.
    let (endpoint, _) = says("hello");
    let (sidecar, inbound) = server(endpoint, &["limits.connections=20", "timeouts.idle=3600s"]);
    let open = || {
        let mut io = wire::connect(inbound);
        assert_eq!(again(&mut io), Some(200));
        io
    };
    let mut old: Vec<TcpStream> = (0..8).map(|_| open()).collect();
    thread::sleep(Duration::from_secs(4));
    // 85 percent of the limit are 17 connections: the last one of these asks for room, and the oldest have been idle for four seconds.
    let mut young: Vec<TcpStream> = (0..9).map(|_| open()).collect();
    sidecar.wait_metric("outrigger_overload_measures_begun_total", &["end_idle"], |begun| begun >= 1.0);
    sidecar.wait_metric("outrigger_overload_measures", &["end_idle"], |active| active == 0.0);
    // As many of them as it takes; the others may stay once there is room.
    let mut ended = 0;
    for io in &mut old {
        io.set_nonblocking(true).unwrap();
        ended += usize::from(matches!(io.read(&mut [0]), Ok(0)));
    }
    assert!(ended >= 1, "there is room although nobody left");
    for io in &mut young {
        assert_eq!(again(io), Some(200), "a connection in use was closed before those that were idle");
    }
    assert_eq!(sidecar.metric("outrigger_overload_measures_begun_total", &["refuse_requests"]), 0.0);

    // Three times as many as there are places, all held: each finds one.
    let began = Instant::now();
    let mut held = Vec::new();
    while held.len() < 60 {
        assert!(began.elapsed() < PATIENCE, "only {} found a place", held.len());
        let mut io = wire::connect(inbound);
        match again(&mut io) {
            Some(status) => {
                assert_eq!(status, 200);
                held.push(io);
            }
            // At the limit in this moment, and told at once.
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A thousand sockets need more than the usual limit of a shell.
pub fn many_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let enough = limit.maximum.is_none_or(|most| most >= 4096);
    assert!(enough, "this test needs 4096 descriptors (hint: ulimit -Hn)");
}

#[test]
fn t08_descriptors_run_out_and_come_back() {
    // Out of descriptors a proxy would spin, fail the requests it has, lock the operator out, or never accept again.
    many_descriptors();
    let (endpoint, _) = says("hello");
    let mut stage = Stage::new();
    stage.before("ulimit -n 256");
    let (sidecar, inbound) = stage.server(endpoint, "http", &["--set", "timeouts.first_byte=3600s"]);
    // Traffic that is there already: a request every few milliseconds on one connection, from here to the end.
    let mut good = wire::connect(inbound);
    assert_eq!(again(&mut good), Some(200));
    let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let working = {
        let (over, served) = (Arc::clone(&over), Arc::clone(&served));
        thread::spawn(move || {
            while !over.load(Relaxed) {
                assert_eq!(again(&mut good), Some(200), "a connection in use was closed");
                served.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_millis(10));
            }
        })
    };

    let silent: Vec<TcpStream> = (0..1000).map(|_| wire::connect(inbound)).collect();
    let active = || sidecar.metric("outrigger_connections_active", &["listener=\"inbound\""]);
    sidecar.wait_metric("outrigger_overload_measures", &["end_idle"], |ends| ends == 1.0);
    // As many as have a descriptor for their endpoint too, and no more.
    let began = Instant::now();
    let (mut before, mut same) = (0.0, 0);
    while same < 5 {
        let now = active();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        assert!(began.elapsed() < PATIENCE, "{now} connections, and more");
        thread::sleep(Duration::from_millis(50));
    }
    assert!((50.0..=115.0).contains(&before), "{before} connections with 256 descriptors");

    let (processor, served_before) = (sidecar.metric("process_cpu_seconds_total", &[]), served.load(Relaxed));
    thread::sleep(Duration::from_secs(2));
    let processor = sidecar.metric("process_cpu_seconds_total", &[]) - processor;
    let requests = served.load(Relaxed) - served_before;
    println!("T08: {before} connections open of 1001; {processor:.2} s of CPU for {requests} requests in two seconds");
    assert!(requests > 0 && !working.is_finished(), "existing traffic stood still");
    assert!(processor < 1.5, "{processor} s of CPU in two seconds of waiting: it spins");
    assert!(sidecar.admin("/server_info").starts_with("HTTP/1.1 200"));
    assert!(!sidecar.log().contains("cannot accept"), "the reserve was used up:\n{}", sidecar.log());

    let began = Instant::now();
    drop(silent);
    // Behind a thousand connections that wait in the queue and have ended.
    let answer = wire::ask(inbound, GET).unwrap();
    println!("T08: served again after {:?}", began.elapsed());
    assert_eq!(answer.status(), 200);
    over.store(true, Relaxed);
    working.join().unwrap();
    sidecar.wait_metric("outrigger_overload_measures", &["end_idle"], |ends| ends == 0.0);
}

#[test]
fn t08_a_limit_without_reserve_is_survived_too() {
    // The reserve may be turned off, or another part of the process take it: then accept itself fails, and must go on.
    many_descriptors();
    let (endpoint, _) = says("hello");
    let mut stage = Stage::new();
    stage.before("ulimit -n 128");
    let off = ["overload.shed_percent=0", "overload.stop_percent=0", "overload.reserved_descriptors_percent=0"];
    let off: Vec<&str> = off.iter().flat_map(|setting| ["--set", setting]).collect();
    let (sidecar, inbound) = stage.server(endpoint, "http", &off);
    for _ in 0..3 {
        let silent: Vec<TcpStream> = (0..300).map(|_| wire::connect(inbound)).collect();
        thread::sleep(Duration::from_millis(300));
        drop(silent);
        let mut io = wire::connect(inbound);
        assert_eq!(again(&mut io), Some(200), "{}", sidecar.log());
    }
}

#[test]
fn t09_times_that_overflow_do_nothing() {
    // A crafted value would end calls at once, never, or the process.
    let (endpoint, _) = application(|_, request| {
        if request.start.contains(" /late ") {
            thread::sleep(Duration::from_secs(2));
        }
        Some(ok("hello"))
    });
    let (_sidecar, inbound) = server(endpoint, &[]);
    let digits = "9".repeat(100) + "S";
    let values = ["99999999H", "99999999M", "x", "-1S", "+1S", "1.5S", "", "S", "18446744073709551616n", &digits];
    for value in values {
        let request = format!("GET / HTTP/1.1\r\nhost: app.shop\r\ngrpc-timeout: {value}\r\n\r\n");
        assert_eq!(wire::ask(inbound, request).unwrap().status(), 200, "{value:?}");
    }
    // A sane one counts: the table above is not passed by ignoring the field.
    let answer = wire::ask(inbound, "GET /late HTTP/1.1\r\nhost: app.shop\r\ngrpc-timeout: 100m\r\n\r\n").unwrap();
    assert_eq!(answer.status(), 504);
}

#[test]
fn t10_fields_cost_in_proportion() {
    // A reader that walks over all fields for each one makes a head of a few thousand cost as much as all other traffic.
    let (endpoint, _) = says("hello");
    let large = ["limits.header_fields=5000", "limits.http1_head_bytes=1000000"];
    let (sidecar, inbound) = server(endpoint, &large);
    let spent = |fields: usize, requests: usize, name: &dyn Fn(usize) -> String| {
        let mut request = b"GET / HTTP/1.1\r\nhost: app.shop\r\n".to_vec();
        for number in 0..fields {
            write!(request, "{}: value\r\n", name(number)).unwrap();
        }
        request.extend(b"\r\n");
        let mut io = wire::connect(inbound);
        let before = sidecar.metric("process_cpu_seconds_total", &[]);
        for _ in 0..requests {
            io.write_all(&request).unwrap();
            assert_eq!(final_answer(&mut io, false).unwrap().status(), 200);
        }
        sidecar.metric("process_cpu_seconds_total", &[]) - before
    };
    // The same number of fields either way. What is quadratic costs the large heads a hundred times as much; what is linear, less.
    for (what, name) in [
        ("different names", &(|number: usize| format!("x-{number}")) as &dyn Fn(usize) -> String),
        ("the same name", &|_| "x-same".to_owned()),
    ] {
        let (small, large) = (spent(40, 400, name), spent(4000, 4, name));
        println!("T10: {what}: {small:.2} s of CPU for 400 heads of 40 fields, {large:.2} s for 4 of 4000");
        assert!(large < 10.0 * small + 0.5, "{what}: {large} s against {small} s");
    }
    let over = format!("GET / HTTP/1.1\r\nhost: app.shop\r\n{}\r\n", "x: y\r\n".repeat(5001));
    assert_eq!(wire::ask(inbound, over).unwrap().status(), 431);
}

#[test]
fn t11_chunk_extensions_have_a_bound() {
    // One byte of content in two hundred of extensions: work for us, and nothing for any limit on content.
    let (endpoint, heard) = says("hello");
    let (_sidecar, inbound) = server(endpoint, &[]);
    let post = |chunks: usize| {
        let mut request = b"POST / HTTP/1.1\r\nhost: app.shop\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..chunks {
            write!(request, "1;{}\r\nx\r\n", "e".repeat(200)).unwrap();
        }
        request.extend(b"0\r\n\r\n");
        wire::ask(inbound, request).unwrap()
    };
    assert_eq!(post(10).status(), 200);
    assert_eq!(heard.lock().last().unwrap().1.text(), "x".repeat(10));
    let before = heard.lock().len();
    assert_eq!(post(1000).status(), 400);
    assert_eq!(heard.lock().len(), before, "the request reached the application");
}

fn route(pattern: &str) -> String {
    let value = serde_json::to_string(pattern).unwrap();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: app, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: app}}]
  rules:
  - matches: [{{path: {{type: RegularExpression, value: {value}}}}}]
    backendRefs: [{{name: app, port: 80}}]"
    )
}

#[test]
fn t12_patterns_take_linear_time_and_bounded_room() {
    // One pattern of one tenant would stop every worker with a crafted path, or fill the memory of every sidecar.
    let refused = |pattern: &str| {
        let (_, problems) = api::parse("route.yaml", &route(pattern), "shop");
        problems.iter().any(|problem| problem.code == "ORG0114")
    };
    for bad in [&"a".repeat(1 << 20), "(?:a{1000}){1000}", &format!("{}a{}", "(".repeat(2000), ")".repeat(2000))] {
        assert!(refused(bad), "{} bytes", bad.len());
    }
    let nested = "(a+)+(a|aa)+(a|a?)+b";
    assert!(!refused(nested));

    let (endpoint, heard) = says("hello");
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint, mesh: false }).apply(&route(&format!("/{nested}")));
    let wide = ["--set", "limits.uri_bytes=70000", "--set", "limits.http1_head_bytes=100000"];
    let (_sidecar, local) = stage.client(&wide);
    let ask = |path: &str| wire::ask(local, format!("GET {path} HTTP/1.1\r\nhost: app.shop\r\n\r\n")).unwrap();
    // An engine that goes back tries more ways than there are atoms; this test would never end.
    let answer = ask(&format!("/{}", "a".repeat(65_000)));
    assert_eq!((answer.status(), answer.field("x-outrigger-error")), (404, Some("no_route")));
    assert_eq!(ask(&format!("/{}b", "a".repeat(65_000))).status(), 200);
    assert_eq!(heard.lock().len(), 1);
}
