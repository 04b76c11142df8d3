//! T03, T04 and T07 where HTTP/2 is spoken: to a client, and between sidecars. By bytes, like everything here.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::{
    frames::{self, ACK, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame},
    sidecar::{Service, Stage},
    wire::{self, PATIENCE, read_to_end, says},
};

/// An HTTP/2 application whose answer never ends, and whose beginning is larger than what the kernel holds: as much as the window allows that
/// a sidecar opens by default.
fn endless() -> SocketAddr {
    wire::listen(|_, mut io| {
        let _ = frames::serve(&mut io, |event| {
            let frames::Event::Request(stream, _) = event else { return Some(Vec::new()) };
            let mut bytes = frames::headers(stream, &[(":status", "200")], false);
            for _ in 0..60 {
                bytes.extend(frames::data(stream, &[b'x'; 16 * 1024], false));
            }
            Some(bytes)
        });
    })
}

/// One that answers.
fn hello() -> SocketAddr {
    wire::listen(|_, mut io| {
        let _ = frames::serve(&mut io, |event| match event {
            frames::Event::Request(stream, true) => Some(frames::answer(stream, "hello")),
            _ => Some(Vec::new()),
        });
    })
}

/// Preface, settings with this window for every stream, as much for the connection, and one GET.
fn get(path: &str, window: u32) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    let initial_window: u16 = 4;
    bytes.extend(frame(SETTINGS, 0, 0, &[&initial_window.to_be_bytes()[..], &window.to_be_bytes()].concat()));
    if let Some(more @ 1..) = window.checked_sub(65_535) {
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes()));
    }
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "app.shop"), (":path", path)];
    bytes.extend(frames::headers(1, &fields, true));
    bytes
}

/// Reads frames until the head of the answer on this stream.
fn answered(io: &mut TcpStream, stream: u32) -> u16 {
    loop {
        let frame = frames::read(io).expect("the connection ended");
        if frame.kind == HEADERS && frame.stream == stream {
            return frames::status(&frame.payload);
        }
        if frame.kind == SETTINGS && !frame.has(ACK) {
            io.write_all(&self::frame(SETTINGS, ACK, 0, &[])).unwrap();
        }
    }
}

#[test]
fn t03_a_body_that_trickles_between_sidecars_ends() {
    // Between sidecars HTTP/1 travels as HTTP/2; the client must be told the same as without a mesh.
    let (endpoint, heard) = says("hello");
    let mut stage = Stage::new();
    let (_server, inbound) = stage.server(endpoint, "http", &[]);
    stage.service("app", &Service { port_name: "http", endpoint: inbound, mesh: true });
    let (sidecar, local) = stage.client(&["--set", "timeouts.body_grace=400ms"]);
    let mut io = wire::connect(local);
    let began = Instant::now();
    io.write_all(b"POST / HTTP/1.1\r\nhost: app.shop\r\ncontent-length: 100000\r\n\r\n").unwrap();
    let mut reader = io.try_clone().unwrap();
    let listening = thread::spawn(move || read_to_end(&mut reader).0);
    while !listening.is_finished() && io.write_all(b"x").is_ok() {
        assert!(began.elapsed() < PATIENCE, "nobody ended it");
        thread::sleep(Duration::from_millis(20));
    }
    let said = String::from_utf8(listening.join().unwrap()).unwrap();
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("x-outrigger-error: downstream_body\r\n"), "{said}");
    assert!(sidecar.metric("outrigger_failures_total", &["downstream_body"]) >= 1.0);
    assert!(heard.lock().is_empty());
}

#[test]
fn t04_an_http2_client_that_does_not_read_is_cut() {
    // With all windows open it is the connection that stands still: nothing else says that nobody reads.
    let arguments = ["--set", "timeouts.write_stall=500ms", "--set", "timeouts.tcp_user=3600s"];
    let (sidecar, inbound) = Stage::new().server(endless(), "http2", &arguments);
    let mut io = wire::connect(inbound);
    io.write_all(&get("/", (1 << 31) - 1)).unwrap();
    assert_eq!(answered(&mut io, 1), 200);
    sidecar.wait_metric("outrigger_connections_active", &["listener=\"inbound\""], |open| open == 0.0);
}

#[test]
fn t04_an_http2_stream_that_is_never_read_is_cut() {
    // With its window shut a stream holds its place, and a connection to the application, for as long as the client likes.
    let arguments = ["--set", "timeouts.write_stall=500ms", "--set", "timeouts.tcp_user=3600s"];
    let (sidecar, inbound) = Stage::new().server(endless(), "http2", &arguments);
    let mut io = wire::connect(inbound);
    io.write_all(&get("/", 1000)).unwrap();
    assert_eq!(answered(&mut io, 1), 200);
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    let reset = std::iter::from_fn(|| frames::read(&mut io)).find(|frame| frame.kind == RST_STREAM);
    assert_eq!(reset.map(|frame| frame.stream), Some(1), "the stream is still held");
    drop(sidecar);
}

#[test]
fn t07_idle_http2_connections_make_room() {
    // Whoever opens connections and holds them would keep everybody else out, in either version.
    let arguments = ["--set", "limits.connections=20", "--set", "timeouts.idle=3600s"];
    let (sidecar, inbound) = Stage::new().server(hello(), "http2", &arguments);
    let open = || {
        let mut io = wire::connect(inbound);
        io.write_all(&get("/", 65_535)).unwrap();
        assert_eq!(answered(&mut io, 1), 200);
        io
    };
    let old: Vec<TcpStream> = (0..8).map(|_| open()).collect();
    thread::sleep(Duration::from_secs(4));
    let _young: Vec<TcpStream> = (0..9).map(|_| open()).collect();
    sidecar.wait_metric("outrigger_overload_measures_begun_total", &["end_idle"], |begun| begun >= 1.0);
    sidecar.wait_metric("outrigger_overload_measures", &["end_idle"], |active| active == 0.0);
    // As many of them as it takes; the others may stay once there is room.
    let mut goodbyes = 0;
    for mut io in old {
        io.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while let Some(frame) = frames::read(&mut io) {
            goodbyes += usize::from(frame.kind == GOAWAY);
        }
    }
    assert!(goodbyes >= 1, "there is room, and nobody was told");
}
