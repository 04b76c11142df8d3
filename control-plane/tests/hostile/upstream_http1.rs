//! R: what a hostile or broken HTTP/1 upstream says, and what of it reaches a client. The codec's own half of these cases is
//! `proxy/src/http/http1/client/tests.rs`.

use std::{
    io::Write,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    sidecar::{Service, Sidecar, Stage},
    wire::{self, Heard, Message, application, ask, final_answer, listen, ok, read_to_end},
};

/// A client's sidecar before an upstream that answers the first request of `/hostile` on each connection with these bytes.
struct Scene {
    _sidecar: Sidecar,
    local: std::net::SocketAddr,
    heard: Heard,
}

fn scene(hostile: Vec<u8>) -> Scene {
    let (endpoint, heard) = application(move |_, request| {
        Some(if request.start.contains(" /hostile ") { hostile.clone() } else { ok("good") })
    });
    let (sidecar, local) = before(endpoint);
    Scene { _sidecar: sidecar, local, heard }
}

fn before(endpoint: std::net::SocketAddr) -> (Sidecar, std::net::SocketAddr) {
    let mut stage = Stage::new();
    stage.service("app", &Service { port_name: "http", endpoint, mesh: false });
    stage.client(&[])
}

impl Scene {
    /// POST, which is never repeated.
    fn provoke(&self) -> Option<Message> {
        ask(self.local, "POST /hostile HTTP/1.1\r\nhost: app.shop\r\ncontent-length: 0\r\n\r\n")
    }

    /// A request after it gets its own answer, over a connection that is not the hostile one.
    fn next_is_unaffected(&self) {
        let answer = ask(self.local, "GET /next HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
        assert_eq!((answer.status(), answer.text()), (200, "good".to_owned()));
        let heard = self.heard.lock();
        let (last, _) = heard.last().unwrap();
        let hostile = heard.iter().rfind(|(_, request)| request.start.contains("/hostile")).unwrap().0;
        assert_ne!(*last, hostile, "the connection was used again");
    }
}

/// The answer is refused with 502, and the connection it came on is not used again.
fn refused(said: &str) {
    let scene = scene(said.into());
    let answer = scene.provoke().unwrap();
    assert_eq!(answer.status(), 502, "{said:?}: {answer:?}");
    assert_eq!(answer.field("x-outrigger-error"), Some("upstream_protocol"), "{said:?}");
    scene.next_is_unaffected();
}

#[test]
fn r01_a_length_and_chunks_at_once_are_refused() {
    // Whoever reads the other of the two lengths takes content for the next answer.
    refused("HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n");
    refused("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n4\r\nevil\r\n0\r\n\r\n");
}

#[test]
fn r02_two_lengths_are_refused() {
    // The same, with two lengths of one kind.
    refused("HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 2\r\n\r\nevil");
    refused("HTTP/1.1 200 OK\r\ncontent-length: 4, 2\r\n\r\nevil");
}

#[test]
fn r03_a_length_that_is_no_number_is_refused() {
    // Readers that parse it differently end the answer at different places.
    for length in ["-1", "+5", "5a", "", "0x5", "5 5", "99999999999999999999999"] {
        refused(&format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\nevil!"));
    }
}

#[test]
fn r04_interim_answers_are_bounded() {
    // An upstream would keep a client, and our buffers, busy for ever with answers that are none.
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"] {
        let scene = scene(interim.repeat(10_000).into());
        let mut io = wire::connect(scene.local);
        io.write_all(b"POST /hostile HTTP/1.1\r\nhost: app.shop\r\ncontent-length: 0\r\n\r\n").unwrap();
        let mut passed = 0;
        let answer = loop {
            let message = wire::read_message(&mut io, false).unwrap();
            if message.status() >= 200 {
                break message;
            }
            passed += 1;
        };
        assert!(passed <= 32 && answer.status() == 502, "{passed} of {interim:?}, then {answer:?}");
        scene.next_is_unaffected();
    }
}

#[test]
fn r05_a_switch_that_nobody_asked_for_is_refused() {
    // The client would believe that the connection is not HTTP any more and pass on whatever comes.
    refused("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nevil");
    refused("HTTP/1.1 101 Switching Protocols\r\n\r\n");
}

#[test]
fn r06_an_upgrade_that_was_refused_stays_http() {
    // Early bytes of a client that only pretends to upgrade would go upstream past everything that looks at requests.
    let said = "HTTP/1.1 200 OK\r\nupgrade: x\r\nconnection: upgrade\r\ncontent-length: 4\r\n\r\nnope";
    let scene = scene(said.into());
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: app.shop\r\nx-outrigger-peer: forged\r\n\r\n";
    let mut io = wire::connect(scene.local);
    io.write_all(
        format!("GET /hostile HTTP/1.1\r\nhost: app.shop\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n{smuggled}")
            .as_bytes(),
    )
    .unwrap();
    let answer = final_answer(&mut io, false).unwrap();
    assert_eq!((answer.status(), answer.text()), (200, "nope".to_owned()));
    // Either it is a request like any other, read and written anew, or it never arrives.
    if let Some(second) = final_answer(&mut io, false) {
        assert_eq!((second.status(), second.text()), (200, "good".to_owned()));
    }
    for (_, request) in scene.heard.lock().iter().filter(|(_, request)| request.start.contains("/smuggled")) {
        assert!(request.field("x-request-id").is_some() && request.field("x-outrigger-peer").is_none(), "{request:?}");
    }
    assert_eq!(ask(scene.local, "GET /next HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap().text(), "good");
}

#[test]
fn r07_content_behind_an_answer_that_has_none_is_dropped() {
    // It would be the beginning of the next client's answer.
    let evil = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    for (method, said) in [
        ("HEAD", format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{evil}", evil.len())),
        ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{evil}")),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\ncontent-length: {}\r\n\r\n{evil}", evil.len())),
    ] {
        let scene = scene(said.into_bytes());
        let mut io = wire::connect(scene.local);
        // The next request is on the same connection of the client, where the confusion would show.
        io.write_all(format!("{method} /hostile HTTP/1.1\r\nhost: app.shop\r\n\r\n").as_bytes()).unwrap();
        let answer = final_answer(&mut io, method == "HEAD").unwrap();
        assert!(answer.body.is_empty() && answer.status() < 500, "{answer:?}");
        io.write_all(b"GET /next HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
        assert_eq!(final_answer(&mut io, false).unwrap().text(), "good");
        scene.next_is_unaffected();
    }
}

#[test]
fn r08_an_answer_without_a_question_is_given_to_nobody() {
    // A poisoned queue: one user gets the answer to another's request.
    let scene = scene([ok("first"), ok("evil")].concat());
    assert_eq!(scene.provoke().unwrap().text(), "first");
    for _ in 0..5 {
        scene.next_is_unaffected();
    }
}

#[test]
fn r10_a_head_without_end_is_ended() {
    // One upstream would fill the memory of the sidecar.
    let taken = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&taken);
    let endpoint = listen(move |_, mut io| {
        wire::read_head(&mut io);
        let _ = io.write_all(b"HTTP/1.1 200 OK\r\n");
        let line = format!("x-{}: {}\r\n", "n".repeat(50), "v".repeat(1000));
        for _ in 0..100_000 {
            if io.write_all(line.as_bytes()).is_err() {
                return;
            }
            counted.fetch_add(line.len() as u64, Ordering::SeqCst);
        }
    });
    let (sidecar, local) = before(endpoint);
    let answer = ask(local, "POST / HTTP/1.1\r\nhost: app.shop\r\ncontent-length: 0\r\n\r\n").unwrap();
    assert_eq!(answer.status(), 502, "{answer:?}");
    sidecar.wait_metric("outrigger_upstream_connections_active", &[], |open| open == 0.0);
    // What the kernel keeps for a socket is all that can be written beyond the limit of a head.
    assert!(taken.load(Ordering::SeqCst) < 16 << 20, "{taken:?} bytes were taken");
}

#[test]
fn r11_trailers_never_become_headers() {
    // A trailer that is merged into the head changes an answer after everybody has looked at it.
    let said = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n4\r\ngood\r\n0\r\nx-sum: 4\r\nset-cookie: evil\r\ncontent-length: 1\r\nhost: evil\r\n\r\n";
    for te in ["", "te: trailers\r\n"] {
        let scene = scene(said.into());
        let mut io = wire::connect(scene.local);
        let request = format!("GET /hostile HTTP/1.1\r\nhost: app.shop\r\n{te}\r\n");
        io.write_all(request.as_bytes()).unwrap();
        let answer = final_answer(&mut io, false).unwrap();
        for name in ["x-sum", "set-cookie", "content-length", "host"] {
            assert_eq!(answer.field(name), None, "{answer:?}");
        }
        assert_eq!(answer.text(), "good");
        assert!(answer.trailers.iter().all(|(name, _)| name == "x-sum"), "{:?}", answer.trailers);
        io.write_all(b"GET /next HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
        assert_eq!(final_answer(&mut io, false).unwrap().text(), "good");
    }
}

#[test]
fn r16_the_rest_of_a_refused_upload_is_never_a_request() {
    // The upstream has answered and reads on as if a new request began, in the middle of somebody's content.
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: app.shop\r\n\r\n";
    let starts = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&starts);
    let endpoint = listen(move |connection, mut io| {
        // An upstream as careless as they come: it answers each head at once and takes what follows for the next.
        while let Some(head) = wire::read_head(&mut io) {
            seen.lock().push((connection, head.lines().next().unwrap_or_default().to_owned()));
            let answer: &[u8] = if head.starts_with("POST ") {
                b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig"
            } else {
                b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
            };
            if io.write_all(answer).is_err() {
                return;
            }
        }
    });
    let (_sidecar, local) = before(endpoint);
    let mut io = wire::connect(local);
    let body = smuggled.repeat(20_000);
    io.write_all(
        format!("POST /upload HTTP/1.1\r\nhost: app.shop\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(),
    )
    .unwrap();
    let mut upload = io.try_clone().unwrap();
    let uploading = std::thread::spawn(move || {
        let _ = upload.write_all(body.as_bytes());
    });
    let answer = final_answer(&mut io, false).unwrap();
    assert_eq!((answer.status(), answer.text()), (413, "big".to_owned()));
    uploading.join().unwrap();
    // The connection has ended, or the rest was drained and nothing of it answered.
    let _ = io.write_all(b"GET /mine HTTP/1.1\r\nhost: app.shop\r\nconnection: close\r\n\r\n");
    if let Some(answer) = final_answer(&mut io, false) {
        assert_eq!((answer.status(), answer.text()), (200, "good".to_owned()));
        assert!(final_answer(&mut io, false).is_none(), "one answer too many");
    }
    let answer = ask(local, "GET /next HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
    assert_eq!((answer.status(), answer.text()), (200, "good".to_owned()));
    // What a careless upstream makes of bytes that it was sent as content is its own, and no answer to it has reached anybody. Nor may
    // anything else be sent over that connection.
    let starts = starts.lock();
    let on = |start: &str| starts.iter().find(|(_, line)| line.starts_with(start)).map(|(connection, _)| *connection);
    assert!(on("GET /next ").is_some() && on("GET /next ") != on("POST "), "{:?}", starts.last());
    assert_ne!(on("GET /mine "), on("POST "));
}

#[test]
fn r17_a_broken_answer_is_seen_as_broken() {
    // Half a file would be taken for the whole, and kept.
    for said in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nA\r\nhello",
    ] {
        let endpoint = listen(move |_, mut io: TcpStream| {
            wire::read_head(&mut io);
            let _ = io.write_all(said.as_bytes());
        });
        let (_sidecar, local) = before(endpoint);
        let mut io = wire::connect(local);
        io.write_all(b"GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
        let message = wire::try_read_message(&mut io, false);
        assert!(!matches!(message, Ok(Some(_))), "{said:?} looks whole: {message:?}");
        assert!(read_to_end(&mut io).0.is_empty());
    }
}
