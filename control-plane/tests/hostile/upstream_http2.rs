//! R: what a hostile or broken HTTP/2 upstream says. It stands where another sidecar would: behind mutual TLS, with the right
//! certificate, so that everything it says is listened to.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{
    certificates::{self, Leaf},
    frames::{
        self, DATA, END_HEADERS, END_STREAM, Event, Frame, GOAWAY, HEADERS, NO_ERROR, PREFACE, PROTOCOL_ERROR,
        PUSH_PROMISE, REFUSED_STREAM, RST_STREAM, SETTINGS,
    },
    sidecar::{Service, Sidecar, Stage},
    wire::{self, Message, ask, listen},
};

const POST: &str = "POST / HTTP/1.1\r\nhost: app.shop\r\ncontent-length: 0\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n";

/// One connection's side of the conversation: connection number and what happened, to the bytes to say; `None` hangs up.
type Script = Arc<dyn Fn(usize, Event) -> Option<Vec<u8>> + Send + Sync>;

struct Scene {
    sidecar: Sidecar,
    local: SocketAddr,
    connections: Arc<AtomicUsize>,
}

fn scene(script: impl Fn(usize, Event) -> Option<Vec<u8>> + Send + Sync + 'static) -> Scene {
    let stage = Stage::new();
    let leaf = stage.authority.leaf("spiffe://cluster.local/ns/shop/sa/app");
    let connections = Arc::new(AtomicUsize::new(0));
    let endpoint = sidecar_that(leaf, Arc::clone(&connections), Arc::new(script));
    let mut stage = stage;
    stage.service("app", &Service { port_name: "http", endpoint, mesh: true });
    let (sidecar, local) = stage.client(&[]);
    Scene { sidecar, local, connections }
}

/// Something that proves to be a sidecar and then says what the script wants.
fn sidecar_that(leaf: Leaf, connections: Arc<AtomicUsize>, script: Script) -> SocketAddr {
    let config = certificates::server(&leaf, &[b"istio-h2"]);
    listen(move |_, io| {
        let Ok(mut io) = certificates::accept(io, &config) else { return };
        let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
        let _ = frames::serve(&mut io, |event| script(number, event));
        io.conn.send_close_notify();
        let _ = io.flush();
    })
}

/// A script that answers each request, by its number from 1, once it has ended.
fn answers(answer: impl Fn(usize, u32) -> Vec<u8> + Send + Sync + 'static) -> impl Fn(usize, Event) -> Option<Vec<u8>> {
    let asked = AtomicUsize::new(0);
    move |_, event| {
        Some(match event {
            Event::Request(stream, true) => answer(asked.fetch_add(1, Ordering::SeqCst) + 1, stream),
            _ => Vec::new(),
        })
    }
}

impl Scene {
    fn ask(&self, request: &str) -> Message {
        ask(self.local, request).expect("an answer")
    }

    fn next_is_good(&self) {
        let answer = self.ask(GET);
        assert_eq!((answer.status(), answer.text()), (200, "good".to_owned()));
    }
}

type Fields = &'static [(&'static str, &'static str)];

/// Each answer made of such fields is refused, nothing of it reaches the client, and the next request is answered.
fn refused(cases: &[Fields]) {
    let mut wrong = Vec::new();
    for fields in cases.iter().copied() {
        let scene = scene(answers(move |number, stream| {
            if number == 1 { frames::headers(stream, fields, true) } else { frames::answer(stream, "good") }
        }));
        let answer = scene.ask(POST);
        if answer.status() != 502 || answer.field("x-evil").is_some() || answer.text().contains("evil") {
            wrong.push(format!("{fields:?}: {answer:?}"));
        }
        scene.next_is_good();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn r09_plaintext_around_a_handshake_never_surfaces() {
    // Whoever sits on the way to an endpoint could put words into its mouth before the encryption begins.
    let evil: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    for moment in ["instead of the handshake", "before the handshake", "behind the handshake"] {
        let mut stage = Stage::new();
        let leaf = stage.authority.leaf("spiffe://cluster.local/ns/shop/sa/app");
        let config = certificates::server(&leaf, &[b"istio-h2"]);
        let endpoint = listen(move |_, mut io| {
            let mut some = [0; 1024];
            match moment {
                "instead of the handshake" => {
                    let _ = io.read(&mut some);
                    let _ = io.write_all(evil);
                }
                "before the handshake" => {
                    let _ = io.write_all(evil);
                    let _ = certificates::accept(io, &config).map(|mut io| io.read(&mut some));
                }
                _ => {
                    let Ok(mut io) = certificates::accept(io, &config) else { return };
                    let _ = io.read(&mut some);
                    let _ = io.sock.write_all(evil);
                    let _ = io.sock.read(&mut some);
                }
            }
        });
        stage.service("app", &Service { port_name: "http", endpoint, mesh: true });
        let (_sidecar, local) = stage.client(&[]);
        let answer = ask(local, POST).unwrap();
        assert!((502..=503).contains(&answer.status()), "{moment}: {answer:?}");
        assert!(!answer.text().contains("evil"), "{moment}: {answer:?}");
    }
}

#[test]
fn r12_line_ends_in_values_are_refused() {
    // Written as HTTP/1, one field would become two, or a whole answer.
    refused(&[
        &[(":status", "200"), ("x-a", "1\r\nx-evil: 1")],
        &[(":status", "200"), ("x-a", "1\nx-evil: 1")],
        &[(":status", "200"), ("x-a", "1\rx")],
        &[(":status", "200"), ("x-a", "1\0x")],
        &[(":status", "200"), ("x-a\r\nx-evil", "1")],
    ]);
}

#[test]
fn r13_a_malformed_head_is_refused() {
    // RFC 9113 §8.2, §8.3: what is malformed means different things to different readers.
    refused(&[
        &[("x-a", "1")],
        &[(":status", "200"), (":path", "/evil")],
        &[(":status", "200"), ("connection", "close")],
        &[(":status", "200"), ("transfer-encoding", "chunked")],
        &[(":status", "200"), (":status", "500")],
        &[("x-a", "1"), (":status", "200")],
        &[(":status", "200"), ("X-Evil", "1")],
        &[(":status", "20")],
        &[(":status", "evil")],
        &[(":status", "200"), ("content-length", "4")],
    ]);
}

#[test]
fn r14_a_pushed_answer_is_a_protocol_error() {
    // We said that nothing may be pushed; an answer that nobody asked for would be given to somebody.
    let said: Arc<Mutex<Vec<Frame>>> = Arc::default();
    let heard = Arc::clone(&said);
    let scene = scene(move |connection, event| {
        Some(match event {
            Event::Request(stream, _) if connection == 1 => {
                let mut promise = 2_u32.to_be_bytes().to_vec();
                let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/next"), (":authority", "app.shop")];
                promise.extend(frames::block(&fields));
                let mut bytes = frames::frame(PUSH_PROMISE, END_HEADERS, stream, &promise);
                bytes.extend(frames::answer(2, "evil"));
                bytes.extend(frames::answer(stream, "late"));
                bytes
            }
            Event::Request(stream, _) => frames::answer(stream, "good"),
            Event::Other(frame) => {
                heard.lock().push(frame);
                Vec::new()
            }
        })
    });
    let answer = scene.ask(POST);
    assert!((502..=503).contains(&answer.status()), "{answer:?}");
    scene.next_is_good();
    let said = said.lock();
    let goodbye = said.iter().find(|frame| frame.kind == GOAWAY);
    assert_eq!(goodbye.map(Frame::code), Some(PROTOCOL_ERROR), "{said:?}");
}

#[test]
fn r15_a_whole_answer_before_the_request_has_ended_is_delivered() {
    // RFC 9113 §8.1: a server may answer early and ask the client to stop. The answer says why; losing it makes it a riddle.
    let long = "x".repeat(40_000);
    let text = long.clone();
    let scene = scene(move |_, event| {
        Some(match event {
            Event::Request(stream, false) => {
                let mut bytes = frames::headers(stream, &[(":status", "413")], false);
                for part in text.as_bytes().chunks(10_000) {
                    bytes.extend(frames::data(stream, part, false));
                }
                bytes.extend(frames::data(stream, b"", true));
                bytes.extend(frames::reset(stream, NO_ERROR));
                bytes
            }
            Event::Request(stream, true) => frames::answer(stream, "good"),
            Event::Other(_) => Vec::new(),
        })
    });
    let mut io = wire::connect(scene.local);
    io.write_all(b"POST /upload HTTP/1.1\r\nhost: app.shop\r\ncontent-length: 50000000\r\n\r\n").unwrap();
    let mut upload = io.try_clone().unwrap();
    let uploading = std::thread::spawn(move || {
        let part = [b'u'; 64 * 1024];
        // The end of the sending is part of the case: it stops, long before all is sent, or the connection ends.
        (0..50_000_000 / part.len()).all(|_| upload.write_all(&part).is_ok())
    });
    let answer = wire::final_answer(&mut io, false).unwrap();
    assert_eq!((answer.status(), answer.body.len()), (413, long.len()));
    drop(io);
    let _ = uploading.join().unwrap();
    scene.next_is_good();
}

#[test]
fn r18_what_a_goodbye_left_unprocessed_is_sent_elsewhere() {
    // RFC 9113 §6.8: above the last stream nothing was processed, so even a POST may be sent again, and must not fail.
    let first = scene(|connection, event| {
        Some(match event {
            Event::Request(_, _) if connection == 1 => frames::goaway(0, NO_ERROR),
            Event::Request(stream, _) => frames::answer(stream, "good"),
            _ => Vec::new(),
        })
    });
    let answer = first.ask("POST / HTTP/1.1\r\nhost: app.shop\r\ncontent-length: 4\r\n\r\nonce");
    assert_eq!((answer.status(), answer.text()), (200, "good".to_owned()));
    assert_eq!(first.connections.load(Ordering::SeqCst), 2);

    // A server that only ever says goodbye, a thousand times each: it ends, and with an error.
    let always = scene(|_, event| {
        Some(match event {
            Event::Request(_, _) => frames::goaway(0, NO_ERROR).repeat(1000),
            Event::Other(_) => Vec::new(),
        })
    });
    let answer = always.ask(POST);
    assert!((502..=503).contains(&answer.status()), "{answer:?}");
    let connections = always.connections.load(Ordering::SeqCst);
    assert!(connections <= 12, "{connections} connections for one request");
}

#[test]
fn r19_streams_that_are_always_refused_are_not_tried_for_ever() {
    // A server that is full would be asked again and again by everybody.
    let tried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tried);
    let scene = scene(move |_, event| {
        Some(match event {
            Event::Request(stream, _) => {
                count.fetch_add(1, Ordering::SeqCst);
                frames::reset(stream, REFUSED_STREAM)
            }
            Event::Other(_) => Vec::new(),
        })
    });
    let answer = scene.ask(POST);
    assert_eq!(answer.status(), 503, "{answer:?}");
    // The default policy: two tries after the first.
    assert_eq!(tried.load(Ordering::SeqCst), 3);
    // The budget: a fifth of the requests, and ten a second over ten seconds, however few there are. Without it there would be two each.
    tried.store(0, Ordering::SeqCst);
    let began = Instant::now();
    for _ in 0..200 {
        assert_eq!(scene.ask(POST).status(), 503);
    }
    let allowed = 0.2 * 201.0 + 10.0 * (began.elapsed().as_secs_f64() + 10.0);
    let retries = tried.load(Ordering::SeqCst) as f64 - 200.0;
    assert!(retries <= allowed, "{retries} retries, {allowed} allowed");
    let refused = scene.sidecar.metric("outrigger_retries_refused_total", &[]);
    assert!(retries + 2.0 * refused >= 400.0, "{retries} retries, {refused} refused: somebody gave up by himself");
}

#[test]
fn r20_who_asks_not_to_be_called_again_is_not() {
    // gRPC proposal A6: a negative pushback means "do not retry"; a server that is going under would be pushed further down.
    for (pushback, tries) in [(None, 3), (Some("-1"), 1), (Some("never"), 1)] {
        let tried = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tried);
        let scene = scene(move |_, event| {
            let Event::Request(stream, true) = event else { return Some(Vec::new()) };
            count.fetch_add(1, Ordering::SeqCst);
            let mut fields = vec![(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14")];
            fields.extend(pushback.map(|wait| ("grpc-retry-pushback-ms", wait)));
            Some(frames::headers(stream, &fields, true))
        });
        let answer = scene.ask(
            "POST /notes.Notes/Get HTTP/1.1\r\nhost: app.shop\r\ncontent-type: application/grpc\r\nte: trailers\r\nidempotency-key: \
             1\r\ncontent-length: 0\r\n\r\n",
        );
        assert_eq!((answer.status(), answer.field("grpc-status")), (200, Some("14")), "{answer:?}");
        assert_eq!(tried.load(Ordering::SeqCst), tries, "{pushback:?}");
    }
}

#[test]
fn r17_a_broken_answer_of_http2_is_seen_as_broken() {
    // As over HTTP/1: the client must not take half for the whole.
    for ending in ["too short", "too long"] {
        let said = move |stream| {
            let mut bytes = frames::headers(stream, &[(":status", "200"), ("content-length", "10")], false);
            bytes.extend(frames::data(
                stream,
                if ending == "too long" { b"hello, hello" } else { b"hello" },
                ending == "too short",
            ));
            bytes
        };
        // From a sidecar, to a client of HTTP/1.
        let scene = scene(move |_, event| match event {
            Event::Request(stream, true) => Some(said(stream)),
            _ => Some(Vec::new()),
        });
        let mut io = wire::connect(scene.local);
        io.write_all(POST.as_bytes()).unwrap();
        if let Ok(Some(message)) = wire::try_read_message(&mut io, false) {
            assert_eq!(message.status(), 502, "{ending}: looks whole: {message:?}");
        }
        // From an application, to a client of HTTP/2.
        let endpoint = listen(move |_, mut io| {
            let _ = frames::serve(&mut io, |event| match event {
                Event::Request(stream, _) => Some(said(stream)),
                Event::Other(_) => Some(Vec::new()),
            });
        });
        let mut stage = Stage::new();
        stage.service("app", &Service { port_name: "http2", endpoint, mesh: false });
        let (_sidecar, local) = stage.client(&[]);
        let mut io = wire::connect(local);
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frames::frame(SETTINGS, 0, 0, &[]));
        let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "app.shop")];
        bytes.extend(frames::headers(1, &fields, true));
        io.write_all(&bytes).unwrap();
        let last = loop {
            let frame = frames::read(&mut io).expect("the stream ends before the connection");
            let ends = matches!(frame.kind, DATA | HEADERS) && frame.has(END_STREAM) || frame.kind == RST_STREAM;
            if frame.stream == 1 && ends {
                break frame;
            }
        };
        let refused = last.kind == HEADERS && frames::status(&last.payload) == 502;
        assert!(last.kind == RST_STREAM || refused, "{ending}: ends with {last:?}");
    }
}

#[test]
fn r17_an_answer_that_is_reset_is_seen_as_broken() {
    // The head and a part have come, then RST_STREAM: what has come is not all.
    for known in [true, false] {
        let scene = scene(move |_, event| {
            let Event::Request(stream, true) = event else { return Some(Vec::new()) };
            let mut fields = vec![(":status", "200")];
            fields.extend(known.then_some(("content-length", "10")));
            let mut bytes = frames::headers(stream, &fields, false);
            bytes.extend(frames::data(stream, b"hello", false));
            bytes.extend(frames::reset(stream, 8));
            Some(bytes)
        });
        let mut io = wire::connect(scene.local);
        io.write_all(POST.as_bytes()).unwrap();
        if let Ok(Some(message)) = wire::try_read_message(&mut io, false) {
            assert_eq!(message.status(), 502, "looks whole: {message:?}");
        }
    }
}

#[test]
fn r13_content_before_a_head_is_refused() {
    // RFC 9113 §8.1: DATA before HEADERS is no answer, whatever follows.
    let scene = scene(answers(|number, stream| {
        if number == 1 {
            [frames::data(stream, b"evil", false), frames::answer(stream, "evil")].concat()
        } else {
            frames::answer(stream, "good")
        }
    }));
    let answer = scene.ask(POST);
    assert!((502..=503).contains(&answer.status()) && !answer.text().contains("evil"), "{answer:?}");
    scene.next_is_good();
}
