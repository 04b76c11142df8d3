//! M: circles, ways to the operator's port, and connections that end at the wrong moment.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    certificates,
    frames::{self, PREFACE, SETTINGS},
    sidecar::{Service, Sidecar, Stage, free},
    wire::{self, Message, application, ask, listen, ok, read_to_end, says},
};

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")
}

#[test]
fn m03_a_request_that_goes_in_a_circle_ends() {
    // Two workloads that route to each other would keep one request, and then all descriptors, for ever.
    let mut stage = Stage::new();
    stage.mode("PERMISSIVE");
    let (local, inbound) = (free(), free());
    stage.service("app", &Service { port_name: "http", endpoint: inbound, mesh: true });
    // The application of the server is the way out of the client, whose endpoint is the server.
    let listens = format!("{inbound}={local},port=8080,name=http");
    let server = stage.start("server", "app", &["--inbound".to_owned(), listens]);
    let client = stage.start("client", "client", &["--local".to_owned(), format!("{local}=app.shop:80")]);
    let answer = ask(local, get("app.shop", "/round")).unwrap();
    assert_eq!(answer.status(), 508, "{answer:?}");
    for sidecar in [&server, &client] {
        let rounds = sidecar.wait_log("the round", |log| log.contains("/round")).matches("\"/round\"").count();
        assert!(rounds <= 12, "{rounds} rounds");
    }
    // A request to one's own name is no circle.
    let (app, _) = says("good");
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint: app, mesh: false });
    let (_sidecar, local) = stage.client(&[]);
    assert_eq!(ask(local, "GET / HTTP/1.1\r\nhost: app.shop\r\nx-outrigger-hops: 19\r\n\r\n").unwrap().status(), 200);
}

#[test]
fn m04_no_authority_leads_past_the_destination() {
    // A tunnel whose target the client may name would lead into the host: here every way in ends at the application beside us, and what
    // it makes of CONNECT is its own decision.
    let reached = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reached);
    let secret = listen(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let (app, heard) = application(|_, _| Some(b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n".to_vec()));
    let mut stage = Stage::new();
    stage.mode("PERMISSIVE");
    let (sidecar, inbound) = stage.server(app, "http", &[]);
    for request in [
        format!("CONNECT {secret} HTTP/1.1\r\nhost: {secret}\r\n\r\n"),
        format!("GET http://{secret}/ HTTP/1.1\r\nhost: {secret}\r\n\r\n"),
        format!("CONNECT {0} HTTP/1.1\r\nhost: {0}\r\n\r\n", sidecar.admin),
    ] {
        assert_eq!(ask(inbound, &request).unwrap().status(), 405, "{request}");
    }
    let differs = format!("CONNECT {secret} HTTP/1.1\r\nhost: app.shop:80\r\n\r\n");
    assert_eq!(ask(inbound, differs).unwrap().status(), 400);
    assert_eq!((heard.lock().len(), reached.load(Ordering::SeqCst)), (3, 0));
}

#[test]
fn m05_nobody_reaches_the_operators_port_through_us() {
    // From loopback everything is allowed there; through the sidecar everybody would come from loopback.
    let mut stage = Stage::new();
    let ready = free();
    stage.service("app", &Service { port_name: "http", endpoint: ready, mesh: false });
    let (proxy, local) = (free(), free());
    let arguments =
        ["--outbound", &proxy.to_string(), "--ready", &ready.to_string(), "--local", &format!("{local}=app.shop:80")]
            .map(str::to_owned);
    let sidecar = stage.start("client", "client", &arguments);
    for own in [sidecar.admin, ready, proxy, local] {
        let port = own.port();
        for host in ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "[::]"] {
            for (method, path) in [("GET", "/config_dump"), ("GET", "/ready"), ("POST", "/quitquitquit")] {
                let request = format!(
                    "{method} http://{host}:{port}{path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                );
                let answer = ask(proxy, &request).unwrap();
                assert!(answer.status() >= 500 || answer.status() == 400, "{request}: {answer:?}");
                assert!(!answer.text().contains("generation") && !answer.text().contains("ready\n"), "{answer:?}");
            }
            // The same as bytes.
            let mut io = wire::connect(proxy);
            io.write_all(format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n").as_bytes()).unwrap();
            let _ = io.write_all(b"GET /config_dump HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            let (said, _) = read_to_end(&mut io);
            assert!(!String::from_utf8_lossy(&said).contains("generation"), "{host}:{port}");
        }
    }
    // Nor does a document that says an endpoint is there.
    let answer = ask(local, get("app.shop", "/ready")).unwrap();
    assert_eq!((answer.status(), answer.field("x-outrigger-error")), (508, Some("loop")));
    assert!(sidecar.admin("/ready").starts_with("HTTP/1.1 200"), "it must not have been told to quit");
}

#[test]
fn m06_the_operators_port_answers_operators_only() {
    // Any page in a browser on the same machine could stop the sidecar or read its configuration.
    let stage = Stage::new();
    let (sidecar, _) = {
        let mut stage = stage;
        stage.service("app", &Service { port_name: "http", endpoint: free(), mesh: false });
        stage.client(&[])
    };
    let admin = sidecar.admin;
    for (request, expected) in [
        ("GET /config_dump HTTP/1.1\r\nhost: evil.test\r\n\r\n".to_owned(), 403),
        (format!("GET /config_dump HTTP/1.1\r\nhost: 127.0.0.1.evil.test:{}\r\n\r\n", admin.port()), 403),
        (format!("GET http://evil.test/config_dump HTTP/1.1\r\nhost: {admin}\r\n\r\n"), 403),
        (
            format!(
                "POST /quitquitquit HTTP/1.1\r\nhost: {admin}\r\norigin: http://evil.test\r\ncontent-length: 0\r\n\r\n"
            ),
            403,
        ),
        (
            format!("POST /drain HTTP/1.1\r\nhost: {admin}\r\nsec-fetch-site: cross-site\r\ncontent-length: 0\r\n\r\n"),
            403,
        ),
        (format!("GET /quitquitquit HTTP/1.1\r\nhost: {admin}\r\n\r\n"), 405),
        (format!("GET /drain HTTP/1.1\r\nhost: {admin}\r\n\r\n"), 405),
        (format!("PUT /drain HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\n\r\n"), 405),
        (format!("GET /config_dump HTTP/1.1\r\nhost: {admin}\r\n\r\n"), 200),
    ] {
        assert_eq!(ask(admin, &request).unwrap().status(), expected, "{request}");
    }
    let key = fs::read_to_string(sidecar.folder().join("certificates/tls.key")).unwrap();
    let secret = key.lines().nth(1).unwrap().to_owned();
    for path in ["/config_dump", "/certs", "/server_info", "/clusters", "/metrics", "/"] {
        let shown = sidecar.admin(path);
        assert!(!shown.contains("PRIVATE KEY") && !shown.contains(&secret), "{path} shows a key");
    }
    assert!(sidecar.admin("/ready").starts_with("HTTP/1.1 200"));
}

#[test]
fn m09_whatever_clients_say_the_number_of_series_is_bounded() {
    // Names, paths and agents that clients make up would fill the memory of sidecar and Prometheus.
    let (app, _) = says("app");
    let mut stage = Stage::new();
    stage.mode("PERMISSIVE");
    let (sidecar, inbound) = stage.server(app, "http", &["--set", "telemetry.series=40"]);
    let mut io = wire::connect(inbound);
    for number in 0..2000 {
        let request = format!(
            "GET /{number} HTTP/1.1\r\nhost: h{number}.test\r\nuser-agent: {number}\r\nx-outrigger-peer: w{number}\r\n\r\n"
        );
        io.write_all(request.as_bytes()).unwrap();
        assert_eq!(wire::final_answer(&mut io, false).unwrap().status(), 200);
    }
    let metrics = sidecar.admin("/metrics");
    let series = metrics.lines().filter(|line| line.starts_with("istio_requests_total{")).count();
    assert!((1..=40).contains(&series), "{series} series");
    assert_eq!(sidecar.metric("istio_requests_total", &[]), 2000.0);
}

/// The client's side of HTTP/2, by hand.
fn http2(address: SocketAddr) -> TcpStream {
    let mut io = wire::connect(address);
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frames::frame(SETTINGS, 0, 0, &[]));
    io.write_all(&bytes).unwrap();
    io
}

fn request(stream: u32, path: &str, end: bool) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "app.shop")];
    frames::headers(stream, &fields, end)
}

/// Everything that was begun for a client has ended.
fn nothing_is_left(sidecar: &Sidecar) {
    for name in ["outrigger_connections_active", "outrigger_upstream_connections_active"] {
        sidecar.wait_metric(name, &["direction=\"outbound\""], |open| open == 0.0);
    }
    sidecar.wait_metric("outrigger_connections_active", &["listener=\"local\""], |open| open == 0.0);
}

#[test]
fn m10_strangers_bytes_reach_nothing_in_the_control_plane() {
    // Whoever reaches the port of the control plane would stop the mesh, or be understood before they have proved anything.
    let folder = tempfile::tempdir().unwrap();
    let (discovery, admin) = (free(), free());
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["serve", "--data-dir", "data", "--monitoring", "off"])
        .args(["--discovery", &discovery.to_string(), "--admin", &admin.to_string()])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let head = |path: &str| {
        let fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "control-plane"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        frames::headers(1, &fields, false)
    };
    let discover = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let settings = frames::frame(SETTINGS, 0, 0, &[]);
    // A message that says it has 4 GiB, one that is no protobuf, frames that are none.
    let huge = frames::data(1, &[0, 0xff, 0xff, 0xff, 0xff], false);
    let nonsense = frames::data(1, &[&[0, 0, 0, 0, 200][..], &[0xff; 200]].concat(), true);
    let mut seeds = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        [PREFACE, &settings, &head(discover), &huge].concat(),
        [PREFACE, &settings, &head(discover), &nonsense].concat(),
        [PREFACE, &settings, &head("/"), &nonsense].concat(),
        [PREFACE, &frames::frame(SETTINGS, 0, 0, &[0; 5])].concat(),
        [PREFACE, &settings, &frames::frame(frames::HEADERS, 4, 1, &[0xff; 1000])].concat(),
        [PREFACE, &settings, &frames::frame(9, 4, 1, &[0x80; 100])].concat(),
    ];
    let mut random = fastrand::Rng::with_seed(10);
    for _ in 0..200 {
        let mut bytes = seeds[random.usize(3..9)].clone();
        for _ in 0..random.usize(1..8) {
            let place = random.usize(0..bytes.len());
            bytes[place] = random.u8(..);
        }
        seeds.push(bytes);
    }
    let config = certificates::client(None, &[b"h2"]);
    for bytes in &seeds {
        // As they are, and inside of a handshake by nobody.
        let mut io = wire::connect(discovery);
        let _ = io.write_all(bytes);
        let _ = io.shutdown(Shutdown::Write);
        drop(io);
        if let Ok(mut io) = certificates::connect(discovery, &config) {
            let _ = io.write_all(bytes).and_then(|()| io.flush());
            io.conn.send_close_notify();
            let _ = io.flush();
            let _ = io.sock.shutdown(Shutdown::Write);
            let (said, _) = read_to_end(&mut io);
            assert!(!String::from_utf8_lossy(&said).contains("type.googleapis.com"), "{}", bytes.escape_ascii());
        }
    }
    let alive = child.try_wait().unwrap().is_none() && certificates::connect(discovery, &config).is_ok();
    let _ = child.kill();
    let _ = child.wait();
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(alive && !log.contains("panicked at"), "{log}");
}

#[test]
fn m14_a_client_that_goes_at_any_moment_leaves_nothing_behind() {
    // Whatever waits for a client that is gone (a connect, a wait between tries, an answer, a body) must notice, and nothing may panic.
    let silent = listen(|_, mut io| {
        let _ = io.read_to_end(&mut Vec::new());
    });
    let half = listen(|_, mut io| {
        wire::read_head(&mut io);
        let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
        let _ = io.read_to_end(&mut Vec::new());
    });
    let (failing, _) = application(|_, _| Some(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n".to_vec()));
    let refusing = free();
    // Nobody answers here; RFC 5737.
    let unreachable: SocketAddr = "192.0.2.1:80".parse().unwrap();
    for endpoint in [silent, half, failing, refusing, unreachable] {
        let mut stage = Stage::new();
        stage.service("app", &Service { port_name: "http", endpoint, mesh: false });
        let (sidecar, local) =
            stage.client(&["--set", "timeouts.pool_idle=200ms", "--set", "timeouts.mesh_idle=200ms"]);
        for pause in [0, 1, 5, 30] {
            for _ in 0..10 {
                // Over HTTP/1 by going, over HTTP/2 by saying so.
                let mut io = wire::connect(local);
                io.write_all(get("app.shop", "/").as_bytes()).unwrap();
                let mut streams = http2(local);
                for stream in [1, 3, 5] {
                    let _ = streams.write_all(&request(stream, "/", stream != 3));
                }
                thread::sleep(Duration::from_millis(pause));
                for stream in [1, 3, 5] {
                    let _ = streams.write_all(&frames::reset(stream, 8));
                }
            }
        }
        nothing_is_left(&sidecar);
    }
}

#[test]
fn m15_an_overload_reply_to_a_stream_that_is_gone_is_harmless() {
    // The answer to nobody has crashed proxies (CVE-2024-53270).
    let silent = listen(|_, mut io| {
        let _ = io.read_to_end(&mut Vec::new());
    });
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint: silent, mesh: false });
    stage.apply(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: app, namespace: shop}
spec:
  host: app.shop.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1, http1MaxPendingRequests: 1}}}",
    );
    let (sidecar, local) = stage.client(&[]);
    for _ in 0..10 {
        let mut io = http2(local);
        for stream in (1..60).step_by(2) {
            let burst = [request(stream, "/", true), frames::reset(stream, 8)].concat();
            if io.write_all(&burst).is_err() {
                break;
            }
        }
    }
    sidecar.wait_metric("outrigger_connections_active", &["listener=\"local\""], |open| open == 0.0);
    assert!(sidecar.admin("/ready").starts_with("HTTP/1.1 200"));
}

#[test]
fn m16_bytes_before_the_switch_wait_for_it() {
    // Sent on at once, they would be read as a request by an upstream that does not switch.
    for accepts in [true, false] {
        let early_seen = Arc::new(AtomicUsize::new(0));
        let (early, after) = (Arc::clone(&early_seen), Arc::new(AtomicUsize::new(0)));
        let later = Arc::clone(&after);
        let endpoint = listen(move |_, mut io| {
            if wire::read_head(&mut io).is_none() {
                return;
            }
            let mut some = [0; 1024];
            io.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            match io.read(&mut some) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                _ => drop(early.fetch_add(1, Ordering::SeqCst)),
            }
            io.set_read_timeout(Some(wire::PATIENCE)).unwrap();
            if accepts {
                let _ = io.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
                let (all, _) = read_to_end(&mut io);
                later.fetch_add(all.len(), Ordering::SeqCst);
                let _ = io.write_all(b"bye");
            } else {
                let _ = io.write_all(&ok("no"));
                let (all, _) = read_to_end(&mut io);
                later.fetch_add(all.len(), Ordering::SeqCst);
            }
        });
        let mut stage = Stage::new();
        stage.service("app", &Service { port_name: "http", endpoint, mesh: false });
        let (sidecar, local) = stage.client(&[]);
        let mut io = wire::connect(local);
        let early = vec![b'e'; 50_000];
        let head = "GET / HTTP/1.1\r\nhost: app.shop\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        io.write_all(head.as_bytes()).unwrap();
        io.write_all(&early).unwrap();
        let head = wire::read_head(&mut io).unwrap();
        assert!(head.starts_with(if accepts { "HTTP/1.1 101" } else { "HTTP/1.1 200" }), "{head}");
        io.shutdown(Shutdown::Write).unwrap();
        let (rest, _) = read_to_end(&mut io);
        if accepts {
            assert_eq!((after.load(Ordering::SeqCst), rest.as_slice()), (early.len(), b"bye".as_slice()));
        } else {
            // What follows is no request that we could read: the client is told so, and nothing of it goes on.
            sidecar.wait_metric("outrigger_connections_active", &["listener=\"local\""], |open| open == 0.0);
            assert_eq!(after.load(Ordering::SeqCst), 0);
        }
        assert_eq!(early_seen.load(Ordering::SeqCst), 0, "bytes came before the switch");
    }
}

#[test]
fn m17_who_has_said_all_still_gets_the_answer() {
    // Clients close their half when they have nothing more to say: answers would be lost, or a loop eat a CPU.
    let (send, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(parking_lot::Mutex::new(wait));
    let (app, _) = application(move |_, _| {
        let _ = wait.lock().recv();
        Some(ok("after the end"))
    });
    let tcp = listen(|_, mut io| {
        let (all, _) = read_to_end(&mut io);
        let _ = io.write_all(format!("{} bytes", all.len()).as_bytes());
    });
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint: app, mesh: false });
    stage.service("bytes", &Service { port_name: "tcp", endpoint: tcp, mesh: false });
    let bytes = free();
    let (sidecar, local) = stage.client(&["--local", &format!("{bytes}=bytes.shop:80")]);
    let mut io = wire::connect(local);
    // Without the announcement an end is somebody leaving; see `State::poll_gone` in `http/http1/server.rs`.
    io.write_all(b"GET / HTTP/1.1\r\nhost: app.shop\r\nconnection: close\r\n\r\n").unwrap();
    io.shutdown(Shutdown::Write).unwrap();
    let ticks = |sidecar: &Sidecar| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", sidecar.process_id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // A loop would use all hundred ticks of this second.
    let before = ticks(&sidecar);
    thread::sleep(Duration::from_secs(1));
    let used = ticks(&sidecar) - before;
    assert!(used < 50, "{used} ticks for a connection that is half closed");
    send.send(()).unwrap();
    assert_eq!(
        wire::final_answer(&mut io, false).map(|answer: Message| answer.text()).as_deref(),
        Some("after the end")
    );

    let mut io = wire::connect(bytes);
    io.write_all(b"hello").unwrap();
    io.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut io), (b"5 bytes".to_vec(), true));
}

#[test]
fn m18_traces_end_where_they_ask_to() {
    // RFC 9110 §7.6.2: with Max-Forwards 0 the application would answer for us.
    let (app, heard) = says("app");
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint: app, mesh: false });
    let (_sidecar, local) = stage.client(&[]);
    for method in ["TRACE", "OPTIONS"] {
        let with = |count: &str| {
            ask(local, format!("{method} / HTTP/1.1\r\nhost: app.shop\r\nmax-forwards: {count}\r\n\r\n")).unwrap()
        };
        assert_eq!((with("0").status(), with("x").status(), with("5").status()), (501, 400, 200), "{method}");
    }
    let counts: Vec<_> =
        heard.lock().iter().map(|(_, request)| request.field("max-forwards").map(str::to_owned)).collect();
    assert_eq!(counts, [Some("4".to_owned()), Some("4".to_owned())]);
}
