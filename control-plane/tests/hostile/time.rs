//! T01 to T06: clients that take their time. Limits are set short, so that nobody waits for the defaults; what is asserted is that a
//! connection ends, and never before its limit. The codec's own half of these cases, in virtual time: `proxy/src/http/http1/server/tests.rs`,
//! `proxy/src/http/body.rs`, `proxy/src/detect/mod.rs`.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::{
    certificates,
    frames::{self, END_HEADERS, HEADERS, PREFACE, SETTINGS},
    sidecar::{Service, Sidecar, Stage},
    wire::{self, PATIENCE, application, final_answer, listen, ok, read_head, read_to_end, says},
};

/// Sends pieces with a pause before each until the other side ends; what it said, and after how long it ended.
fn trickle(io: &mut TcpStream, pieces: impl Iterator<Item = Vec<u8>>, pause: Duration) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let mut reader = io.try_clone().unwrap();
    let listening = thread::spawn(move || read_to_end(&mut reader).0);
    for piece in pieces {
        assert!(began.elapsed() < PATIENCE, "nobody ended it");
        if listening.is_finished() || io.write_all(&piece).is_err() {
            break;
        }
        thread::sleep(pause);
    }
    (listening.join().unwrap(), began.elapsed())
}

/// The connection ends, not before `limit`, without a byte of an answer that would not be an error.
fn ends_after(mut io: impl Read, began: Instant, limit: Duration) -> String {
    let (said, _) = read_to_end(&mut io);
    assert!(began.elapsed() >= limit, "ended after {:?}", began.elapsed());
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(!said.contains(" 200 "), "{said}");
    said
}

/// A server's sidecar before an application; `mode` of its mutual TLS.
fn server(mode: &str, port_name: &str, application: SocketAddr, settings: &[&str]) -> (Stage, Sidecar, SocketAddr) {
    let mut stage = Stage::new();
    stage.mode(mode);
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let (sidecar, inbound) = stage.server(application, port_name, &arguments);
    (stage, sidecar, inbound)
}

const SHORT: Duration = Duration::from_millis(400);

#[test]
fn t01_a_connection_without_a_byte_ends() {
    // A few thousand of them would hold every place for nothing.
    let (endpoint, heard) = says("hello");
    for mode in ["STRICT", "PERMISSIVE"] {
        let (stage, _sidecar, inbound) = server(mode, "http", endpoint, &["timeouts.first_byte=400ms"]);
        let began = Instant::now();
        ends_after(wire::connect(inbound), began, SHORT);
        // Behind a handshake as well, for both versions of HTTP.
        for alpn in [b"istio-h2".as_slice(), b"istio-http/1.1"] {
            let leaf = stage.authority.leaf("spiffe://cluster.local/ns/shop/sa/client");
            let mut io = certificates::connect(inbound, &certificates::client(Some(&leaf), &[alpn])).unwrap();
            let began = Instant::now();
            io.flush().unwrap();
            let _ = io.read_to_end(&mut Vec::new());
            assert!(began.elapsed() < PATIENCE, "{alpn:?} was left open");
        }
    }
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint, mesh: false });
    let (_sidecar, local) = stage.client(&["--set", "timeouts.first_byte=400ms"]);
    let began = Instant::now();
    ends_after(wire::connect(local), began, SHORT);
    assert!(heard.lock().is_empty());
}

#[test]
fn t02_a_head_that_trickles_ends() {
    // A line a second for ever is the cheapest way to hold a server.
    let (endpoint, heard) = says("hello");
    let (_stage, _sidecar, inbound) = server("PERMISSIVE", "http", endpoint, &["timeouts.head=1s"]);
    let lines = std::iter::once(b"GET / HTTP/1.1\r\nhost: app.shop\r\n".to_vec())
        .chain((0..).map(|number| format!("x-{number}: y\r\n").into_bytes()));
    let (said, after) = trickle(&mut wire::connect(inbound), lines, Duration::from_millis(50));
    assert!(after >= Duration::from_secs(1), "{after:?}");
    assert!(said.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&said));
    assert!(heard.lock().is_empty());

    // A second head on a connection has no more time than the first.
    let mut io = wire::connect(inbound);
    io.write_all(b"GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
    assert_eq!(final_answer(&mut io, false).unwrap().status(), 200);
    let (said, after) = trickle(&mut io, std::iter::repeat_n(b"G".to_vec(), 2000), Duration::from_millis(50));
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&said));
    assert!(after < PATIENCE && heard.lock().len() == 1);
}

#[test]
fn t03_a_body_that_trickles_ends() {
    // A byte a second would hold a request, its connection to the application and a place in every limit for hours.
    let (endpoint, heard) = says("hello");
    let (_stage, sidecar, inbound) = server("PERMISSIVE", "http", endpoint, &["timeouts.body_grace=400ms"]);
    for (framing, piece) in [("content-length: 100000", "x"), ("transfer-encoding: chunked", "1\r\nx\r\n")] {
        let head = format!("POST / HTTP/1.1\r\nhost: app.shop\r\n{framing}\r\n\r\n").into_bytes();
        let pieces = std::iter::once(head).chain(std::iter::repeat(piece.as_bytes().to_vec()));
        let (said, after) = trickle(&mut wire::connect(inbound), pieces, Duration::from_millis(20));
        let said = String::from_utf8_lossy(&said);
        assert!(after >= SHORT, "{after:?}");
        assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("x-outrigger-error: downstream_body\r\n"), "{said}");
    }
    assert!(sidecar.metric("outrigger_failures_total", &["downstream_body"]) >= 2.0);
    assert!(heard.lock().is_empty(), "half a request reached the application as a whole one");
}

#[test]
fn t03_who_is_silent_for_a_reason_is_not_cut() {
    // Calls that stream, WebSockets, uploads to a slow application, and users who turned the rule off would all be cut by it.
    let late = Duration::from_millis(1500);
    let endpoint = listen(move |_, mut io| {
        while let Some(head) = read_head(&mut io) {
            if head.contains("upgrade: echo") {
                let agreed = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                io.write_all(agreed).unwrap();
                let mut word = [0; 4];
                io.read_exact(&mut word).unwrap();
                io.write_all(&word).unwrap();
                return;
            }
            // Takes nothing of the content for longer than any grace.
            thread::sleep(late);
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length: u64 = length.unwrap().parse().unwrap();
            let read = std::io::copy(&mut (&mut io).take(length), &mut std::io::sink()).unwrap();
            assert!(read == length && io.write_all(&ok("whole")).is_ok());
        }
    });
    let (_stage, _sidecar, inbound) = server("PERMISSIVE", "http", endpoint, &["timeouts.body_grace=400ms"]);
    let mut io = wire::connect(inbound);
    let length = 8 << 20;
    write!(io, "POST / HTTP/1.1\r\nhost: app.shop\r\ncontent-length: {length}\r\n\r\n").unwrap();
    io.write_all(&vec![b'x'; length]).unwrap();
    assert_eq!(final_answer(&mut io, false).unwrap().text(), "whole");

    let mut io = wire::connect(inbound);
    io.write_all(b"GET / HTTP/1.1\r\nhost: app.shop\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").unwrap();
    assert!(read_head(&mut io).unwrap().starts_with("HTTP/1.1 101 "));
    thread::sleep(late);
    io.write_all(b"word").unwrap();
    let mut word = [0; 4];
    io.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"word");

    let (endpoint, _) = says("hello");
    let off = ["timeouts.body_grace=400ms", "timeouts.body_min_bytes_per_second=0"];
    let (_stage, _sidecar, inbound) = server("PERMISSIVE", "http", endpoint, &off);
    let mut io = wire::connect(inbound);
    io.write_all(b"POST / HTTP/1.1\r\nhost: app.shop\r\ncontent-length: 3\r\n\r\n").unwrap();
    for _ in 0..3 {
        thread::sleep(SHORT * 2);
        io.write_all(b"x").unwrap();
    }
    assert_eq!(final_answer(&mut io, false).unwrap().status(), 200);
}

#[test]
fn t03_a_call_that_streams_may_be_silent() {
    // gRPC clients keep streams open for days and say something now and then.
    let endpoint = listen(|_, mut io| {
        let _ = frames::serve(&mut io, |event| match event {
            frames::Event::Other(frame) if frame.kind == frames::DATA && frame.has(frames::END_STREAM) => {
                Some(frames::answer(frame.stream, "hello"))
            }
            _ => Some(Vec::new()),
        });
    });
    let (_stage, _sidecar, inbound) = server("PERMISSIVE", "grpc", endpoint, &["timeouts.body_grace=400ms"]);
    let mut io = wire::connect(inbound);
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frames::frame(SETTINGS, 0, 0, &[]));
    let call = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "app.shop"),
        (":path", "/shop.App/Watch"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    bytes.extend(frames::headers(1, &call, false));
    io.write_all(&bytes).unwrap();
    thread::sleep(SHORT * 4);
    io.write_all(&frames::data(1, b"\0\0\0\0\0", true)).unwrap();
    loop {
        let frame = frames::read(&mut io).expect("the call was cut");
        if frame.kind == HEADERS && frame.stream == 1 {
            assert!(frame.has(END_HEADERS));
            assert_eq!(frames::status(&frame.payload), 200);
            break;
        }
        assert!(frame.kind != frames::RST_STREAM && frame.kind != frames::GOAWAY, "{frame:?}");
    }
}

/// An application with a response that is larger than any buffer.
fn endless() -> SocketAddr {
    application(|_, request| {
        let bytes = if request.start.contains(" /large ") { 64 << 20 } else { 5 };
        let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + bytes, b'x');
        Some(answer)
    })
    .0
}

#[test]
fn t04_clients_that_do_not_read_are_cut() {
    // Each would hold a response in our memory, and a connection to the application, for as long as it likes.
    let (_stage, sidecar, inbound) =
        server("PERMISSIVE", "http", endless(), &["timeouts.write_stall=500ms", "timeouts.tcp_user=3600s"]);
    assert_eq!(wire::ask(inbound, "GET /small HTTP/1.1\r\nhost: a\r\n\r\n").unwrap().status(), 200);
    let before = sidecar.metric("process_resident_memory_bytes", &[]);
    let stalled: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut io = wire::connect(inbound);
            io.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            assert!(read_head(&mut io).unwrap().starts_with("HTTP/1.1 200 "));
            io
        })
        .collect();
    let grown = sidecar.metric("process_resident_memory_bytes", &[]) - before;
    // Not a thousandth of what was asked for: 256 KiB for each, and what the allocator rounds up to.
    assert!(grown < f64::from(20 * 256 * 1024 + (8 << 20)), "{grown} bytes for 20 clients");
    sidecar.wait_metric("outrigger_connections_active", &["listener=\"inbound\""], |open| open == 0.0);
    for mut io in stalled {
        let mut sink = Vec::new();
        let _ = io.read_to_end(&mut sink);
        assert!(sink.len() < 64 << 20, "a response that nobody read was carried to its end");
    }
    // The place is free again.
    assert_eq!(wire::ask(inbound, "GET /small HTTP/1.1\r\nhost: a\r\n\r\n").unwrap().status(), 200);
}

#[test]
fn t04_clients_that_read_slowly_are_not_cut() {
    // A download over a slow line would never come to its end.
    let (_stage, _sidecar, inbound) = server("PERMISSIVE", "http", endless(), &["timeouts.write_stall=3s"]);
    let mut io = wire::connect(inbound);
    io.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    read_head(&mut io).unwrap();
    let began = Instant::now();
    let mut bytes = vec![0; 128 * 1024];
    while began.elapsed() < Duration::from_secs(8) {
        io.read_exact(&mut bytes).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    // What is left comes as fast as it can.
    let mut rest = 0;
    while let Ok(read @ 1..) = io.read(&mut bytes) {
        rest += read;
    }
    assert!(rest > 1 << 20, "only {rest} bytes came after that");
}

/// The first message of a handshake with a sidecar of the mesh, as bytes.
fn hello(config: &std::sync::Arc<rustls::ClientConfig>) -> Vec<u8> {
    let name = rustls::pki_types::ServerName::try_from("app.shop").unwrap();
    let mut client = rustls::ClientConnection::new(std::sync::Arc::clone(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn t05_a_handshake_that_stalls_ends() {
    // Half a handshake costs a client nothing and would hold its place for the whole time of a first byte, or longer.
    let (endpoint, _) = says("hello");
    let settings = ["timeouts.first_byte=3600s", "timeouts.head=3600s", "timeouts.handshake=400ms"];
    let (stage, _sidecar, inbound) = server("STRICT", "http", endpoint, &settings);
    let leaf = stage.authority.leaf("spiffe://cluster.local/ns/shop/sa/client");
    let hello = hello(&certificates::client(Some(&leaf), &[b"istio-h2"]));
    for said in [1, 5, hello.len() / 2, hello.len() - 1, hello.len()] {
        let mut io = wire::connect(inbound);
        let began = Instant::now();
        io.write_all(&hello[..said]).unwrap();
        ends_after(io, began, SHORT);
    }
    let bytes = hello.iter().map(|byte| vec![*byte]);
    let (said, after) = trickle(&mut wire::connect(inbound), bytes, Duration::from_millis(20));
    assert!(said.is_empty() && after >= SHORT, "{after:?}");
}

#[test]
fn t05_a_handshake_may_be_split_anywhere() {
    // Networks cut messages where they like; a reader that loses its place there refuses good peers, or dies.
    let (endpoint, _) = says("hello");
    let (stage, _sidecar, inbound) = server("STRICT", "http", endpoint, &[]);
    let leaf = stage.authority.leaf("spiffe://cluster.local/ns/shop/sa/client");
    let config = certificates::client(Some(&leaf), &[b"istio-http/1.1"]);
    let length = hello(&config).len();
    // Each byte as a segment of its own, then every place at which two segments can meet.
    for cut in 0..length {
        let name = rustls::pki_types::ServerName::try_from("app.shop").unwrap();
        let mut client = rustls::ClientConnection::new(std::sync::Arc::clone(&config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        let mut io = wire::connect(inbound);
        if cut == 0 {
            for byte in bytes {
                io.write_all(&[byte]).unwrap();
            }
        } else {
            let (first, second) = bytes.split_at(cut.min(bytes.len() - 1));
            io.write_all(first).unwrap();
            thread::sleep(Duration::from_micros(300));
            io.write_all(second).unwrap();
        }
        while client.is_handshaking() {
            client.complete_io(&mut io).unwrap_or_else(|error| panic!("cut at {cut} of {length}: {error}"));
        }
        if cut % 100 == 0 {
            let mut io = rustls::StreamOwned::new(client, io);
            io.write_all(b"GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
            assert_eq!(final_answer(&mut io, false).unwrap().text(), "hello");
        }
    }
}

#[test]
fn t06_a_preface_that_stalls_ends() {
    // Half of the preface is neither version of HTTP; waiting for the rest would have no end.
    let (endpoint, heard) = says("hello");
    let settings = ["timeouts.first_byte=3600s", "timeouts.head=400ms"];
    let (stage, _sidecar, inbound) = server("PERMISSIVE", "http", endpoint, &settings);
    for said in [1, b"PRI * HTTP/2.0\r\n".len(), PREFACE.len() - 1] {
        let mut io = wire::connect(inbound);
        let began = Instant::now();
        io.write_all(&PREFACE[..said]).unwrap();
        ends_after(io, began, SHORT);
    }
    let mut clients = Stage::new();
    clients.service("app", &Service { port_name: "http", endpoint, mesh: false });
    let (_client, local) = clients.client(&["--set", "timeouts.first_byte=3600s", "--set", "timeouts.head=400ms"]);
    let mut io = wire::connect(local);
    let began = Instant::now();
    io.write_all(b"PRI * HTTP/2.0\r\n").unwrap();
    ends_after(io, began, SHORT);

    // Behind a handshake nothing has to be found out, and the preface is still awaited no longer.
    let leaf = stage.authority.leaf("spiffe://cluster.local/ns/shop/sa/client");
    let mut io = certificates::connect(inbound, &certificates::client(Some(&leaf), &[b"istio-h2"])).unwrap();
    let began = Instant::now();
    io.write_all(b"PRI * HTTP/2.0\r\n").unwrap();
    let mut said = Vec::new();
    let _ = io.read_to_end(&mut said);
    assert!(began.elapsed() >= SHORT && began.elapsed() < PATIENCE, "{:?}", began.elapsed());

    // As a method it belongs to no version: HTTP/1 refuses it.
    let mut io = certificates::connect(inbound, &certificates::client(Some(&leaf), &[b"istio-http/1.1"])).unwrap();
    io.write_all(PREFACE).unwrap();
    let answer = final_answer(&mut io, false).unwrap();
    assert!(matches!(answer.status(), 400 | 505), "{answer:?}");
    assert!(heard.lock().is_empty());
}
