//! S: who gets in. Real handshakes with the ports of real sidecars, by peers that are honest, crooked, or no peers at all.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rcgen::ExtendedKeyUsagePurpose;

use super::{
    certificates::{self, Authority, Leaf},
    frames,
    sidecar::{Sidecar, Stage, free, peer_authentication},
    wire::{self, listen, read_to_end},
};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const OPAQUE: &[&[u8]] = &[b"istio"];

/// An application of bytes that says "hello" to whoever has sent five bytes; and how many bytes came. Connections do not count: its
/// sidecar makes some to see whether it is there.
struct Application {
    address: SocketAddr,
    bytes: Arc<AtomicUsize>,
}

fn application() -> Application {
    let bytes = Arc::new(AtomicUsize::new(0));
    let volume = Arc::clone(&bytes);
    let address = listen(move |_, mut io| {
        let mut some = [0; 1024];
        let mut heard = 0;
        while let Ok(read @ 1..) = io.read(&mut some) {
            volume.fetch_add(read, Ordering::SeqCst);
            heard += read;
            if heard >= 5 && io.write_all(b"hello").is_err() {
                return;
            }
        }
    });
    Application { address, bytes }
}

impl Application {
    fn heard(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }
}

/// A sidecar in front of an application of bytes, with this mode.
fn guarded(mode: &str, port_name: &str, arguments: &[&str]) -> (Stage, Application, Sidecar, SocketAddr) {
    let application = application();
    let mut stage = Stage::new();
    stage.mode(mode);
    let (sidecar, inbound) = stage.server(application.address, port_name, arguments);
    (stage, application, sidecar, inbound)
}

/// Says five bytes; whether the application answered.
fn gets_through(io: &mut (impl Read + Write)) -> bool {
    let mut answer = [0; 5];
    io.write_all(b"12345").and_then(|()| io.flush()).is_ok()
        && io.read_exact(&mut answer).is_ok()
        && answer == *b"hello"
}

/// A mesh handshake and five bytes.
fn gets_in(address: SocketAddr, leaf: Option<&Leaf>, alpn: &[&[u8]]) -> bool {
    certificates::connect(address, &certificates::client(leaf, alpn)).is_ok_and(|mut io| gets_through(&mut io))
}

/// A stream that writes one byte at a time.
struct Drop1(TcpStream);

impl Read for Drop1 {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Drop1 {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        // Nagle is off: each is a segment of its own.
        let first = buffer.get(..1).unwrap_or_default();
        self.0.write(first)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn s12_a_hello_in_single_bytes_is_still_one() {
    // Cut as the network likes, a peer would be taken for a stranger, or a stranger for a peer (CVE-2020-8660).
    let (stage, application, _sidecar, inbound) = guarded("STRICT", "tcp", &[]);
    let leaf = stage.authority.leaf(CLIENT);
    let config = certificates::client(Some(&leaf), OPAQUE);
    let name = rustls::pki_types::ServerName::try_from("app.shop").unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut io = Drop1(wire::connect(inbound));
    while session.is_handshaking() {
        session.complete_io(&mut io).unwrap();
    }
    assert!(gets_through(&mut rustls::StreamOwned::new(session, io)));
    assert_eq!(application.heard(), 5);
    // A hello too large to be looked at is nobody's we know: not let in, rather than let through unseen.
    let long: Vec<Vec<u8>> = (0..250).map(|number| format!("{number:0>100}").into_bytes()).collect();
    let mut alpn: Vec<&[u8]> = vec![b"istio"];
    alpn.extend(long.iter().map(Vec::as_slice));
    assert!(!gets_in(inbound, Some(&leaf), &alpn));
    assert_eq!(application.heard(), 5);
}

#[test]
fn s13_what_was_agreed_on_is_what_is_spoken() {
    // Bytes of one protocol read as another are how ALPACA makes one server answer for another.
    let (stage, application, _sidecar, inbound) = guarded("STRICT", "http", &["--set", "timeouts.first_byte=500ms"]);
    let leaf = stage.authority.leaf(CLIENT);
    let speak = |alpn: &[&[u8]], said: &[u8]| {
        let Ok(mut io) = certificates::connect(inbound, &certificates::client(Some(&leaf), alpn)) else {
            return Vec::new();
        };
        let _ = io.write_all(said).and_then(|()| io.flush());
        let mut answer = Vec::new();
        let _ = io.read_to_end(&mut answer);
        answer
    };
    let http1 = b"GET / HTTP/1.1\r\nhost: app.shop\r\nconnection: close\r\n\r\n";
    // Agreed on HTTP/2, and speaks HTTP/1: never sniffed.
    let answer = speak(&[b"istio-h2"], http1);
    assert!(!answer.starts_with(b"HTTP/1"), "{}", answer.escape_ascii());
    // Agreed on HTTP/1, and speaks HTTP/2.
    let answer = speak(&[b"istio-http/1.1"], frames::PREFACE);
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 400") || answer.starts_with(b"HTTP/1.1 505"),
        "{}",
        answer.escape_ascii()
    );
    // Nothing of the mesh is offered: not our handshake to make, and STRICT lets nothing else in.
    for token in ["", "h2", "http/1.1", "http/1.0", "istio-http/1.0", "istio-h2c", "ISTIO-H2"] {
        let alpn: Vec<&[u8]> = Some(token.as_bytes()).filter(|token| !token.is_empty()).into_iter().collect();
        assert!(certificates::connect(inbound, &certificates::client(Some(&leaf), &alpn)).is_err(), "{token:?}");
    }
    // A long list has its known names in front, or is none of ours.
    let names: Vec<String> = (0..254).map(|number| format!("p{number}")).collect();
    let mut alpn: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    alpn.push(b"istio-http/1.1");
    assert!(certificates::connect(inbound, &certificates::client(Some(&leaf), &alpn)).is_err());
    alpn.rotate_right(1);
    assert!(certificates::connect(inbound, &certificates::client(Some(&leaf), &alpn)).is_ok());
    assert_eq!(application.heard(), 0);
}

#[test]
fn s16_strict_hands_on_no_byte_of_plaintext() {
    // One way in without a certificate, and STRICT means nothing.
    let (stage, application, sidecar, inbound) = guarded("STRICT", "tcp", &["--set", "timeouts.first_byte=500ms"]);
    let mut hello = Vec::new();
    let config = certificates::client(None, OPAQUE);
    let mut session = rustls::ClientConnection::new(config, "app.shop".try_into().unwrap()).unwrap();
    session.write_tls(&mut hello).unwrap();
    let proxy_v2 =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\0\x50\0\x50GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    for said in [
        &b"12345"[..],
        b"GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n",
        frames::PREFACE,
        b"\x16",
        b"\x16garbage that is no record at all",
        b"\x16\x03\x01\0\x05\x01\0\0\x01\0",
        b"\x16\x03\x01\xff\xff\x01",
        b"\x80\x2e\x01\0\x02",
        b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        proxy_v2,
        b"",
        &hello[..hello.len() / 2],
        // A whole hello, then plaintext.
        &[&hello[..], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"].concat(),
    ] {
        let mut io = wire::connect(inbound);
        let _ = io.write_all(said);
        let (answer, _) = read_to_end(&mut io);
        // An alert may be said, nothing else.
        assert!(
            answer.is_empty() || answer[0] == 21 || answer[0] == 22,
            "{}: {}",
            said.escape_ascii(),
            answer.escape_ascii()
        );
    }
    // TLS, but nobody who has proved anything.
    assert!(!gets_in(inbound, None, OPAQUE));
    assert_eq!(application.heard(), 0);
    assert_eq!(sidecar.metric("outrigger_connections_secured_total", &["security=\"none\""]), 0.0);
    assert!(gets_in(inbound, Some(&stage.authority.leaf(CLIENT)), OPAQUE), "a peer gets in");
}

#[test]
fn s16_plaintext_ends_when_strict_begins() {
    // Somebody who came before the door was shut would stay inside for hours.
    let (stage, application, sidecar, inbound) = guarded("PERMISSIVE", "tcp", &[]);
    let leaf = stage.authority.leaf(CLIENT);
    let mut plain = wire::connect(inbound);
    assert!(gets_through(&mut plain));
    let mut proved = certificates::connect(inbound, &certificates::client(Some(&leaf), OPAQUE)).unwrap();
    assert!(gets_through(&mut proved));
    sidecar.rewrite(|documents| documents.replace("PERMISSIVE", "STRICT"));
    let before = application.heard();
    // It is ended without being asked, within five seconds; here only that it is ended at all.
    plain.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let end = plain.read(&mut [0; 16]);
    let ended = match &end {
        Ok(read) => *read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(ended, "{end:?}");
    assert_eq!(application.heard(), before);
    assert!(gets_through(&mut proved), "a peer that conforms is not touched");
    assert!(!gets_through(&mut wire::connect(inbound)), "nor does anybody new get in");
}

#[test]
fn s17_nothing_listens_before_there_is_somebody_to_believe() {
    // A port that is open before the roots are there would let in nobody, or everybody (CVE-2020-8664).
    let silent = listen(|_, mut io| {
        let _ = io.read_to_end(&mut Vec::new());
    });
    let folder = tempfile::tempdir().unwrap();
    Authority::new().leaf(CLIENT).write(folder.path(), &[&Authority::new()]);
    let (inbound, local, admin) = (free(), free(), free());
    for control_plane in [silent, free()] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["proxy", "--control-plane", &control_plane.to_string(), "--root-file", "ca.crt"])
            .args([
                "--token",
                "orj1.abcdefgh.c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
                "--namespace",
                "shop",
                "--workload",
                "server",
            ])
            .args([
                "--inbound",
                &format!("{inbound}=127.0.0.1:1,port=8080"),
                "--local",
                &format!("{local}=app.shop:80"),
            ])
            .args(["--admin", &admin.to_string()])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let answer = loop {
            if let Some(answer) = wire::try_get(admin, "localhost", "/ready") {
                break Some(answer);
            }
            if began.elapsed() > wire::PATIENCE || child.try_wait().unwrap().is_some() {
                break None;
            }
            thread::sleep(Duration::from_millis(10));
        };
        let refused = [inbound, local].map(|address| TcpStream::connect(address).is_err());
        let _ = child.kill();
        let _ = child.wait();
        let answer = answer.expect("the operator's port answers");
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert_eq!(refused, [true, true]);
    }
}

#[test]
fn s24_handshakes_are_bounded_and_disturb_nobody() {
    // Handshakes are the dearest thing that strangers can ask for: they must not take the place of what is established.
    let (stage, _application, sidecar, inbound) = guarded("STRICT", "tcp", &["--set", "limits.handshakes=8"]);
    let leaf = stage.authority.leaf(CLIENT);
    let config = certificates::client(Some(&leaf), OPAQUE);
    let mut established = certificates::connect(inbound, &config).unwrap();
    assert!(gets_through(&mut established));
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::clone(&config), "app.shop".try_into().unwrap())
        .unwrap()
        .write_tls(&mut hello)
        .unwrap();
    // They send a whole hello and never go on; the ninth finds no room and is closed at once.
    let stalled: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut io = wire::connect(inbound);
            io.write_all(&hello).unwrap();
            io
        })
        .collect();
    let overload = ["reason=\"overload\""];
    sidecar.wait_metric("outrigger_handshake_failures_total", &overload, |refused| refused >= 32.0);
    assert!(gets_through(&mut established), "what is established is not touched");
    assert!(sidecar.metric("outrigger_limit_overflows_total", &["limit=\"handshakes\""]) >= 32.0);
    drop(stalled);
    // Room again, for whoever means it.
    let began = Instant::now();
    while !gets_in(inbound, Some(&leaf), OPAQUE) {
        assert!(began.elapsed() < wire::PATIENCE, "nobody gets in any more");
    }
}

/// What a client shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Plaintext,
    /// TLS of the mesh, without a certificate.
    Nothing,
    /// A certificate.
    Proof {
        by: Signer,
        name: Name,
        in_force: bool,
        for_clients: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signer {
    First,
    Second,
    Stranger,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Ours,
    ForeignDomain,
    Absent,
    Two,
    NoSpiffe,
}

/// Whether a client reaches the application: the whole rule.
fn specified(mode: &str, roots: &[Signer], shows: Shows) -> bool {
    match (mode, shows) {
        // Nobody looks: whatever it is, it is the application's.
        ("DISABLE", Shows::Plaintext) => true,
        ("PERMISSIVE", Shows::Plaintext) => true,
        (_, Shows::Plaintext) => false,
        // The bytes of a handshake reach the application as they are, and it does not answer them.
        ("DISABLE", _) => false,
        (_, Shows::Nothing) => false,
        (_, Shows::Proof { by, name, in_force, for_clients }) => {
            roots.contains(&by) && name == Name::Ours && in_force && for_clients
        }
    }
}

#[test]
fn p25_mode_certificate_name_and_roots_decide_together() {
    // Every combination against the rule in twenty lines: one cell that differs is a way in, or a workload locked out.
    let [first, second, stranger] = [(); 3].map(|()| Authority::new());
    let authority = |signer| match signer {
        Signer::First => &first,
        Signer::Second => &second,
        Signer::Stranger => &stranger,
    };
    let mut clients = vec![(Shows::Plaintext, None), (Shows::Nothing, Some(certificates::client(None, OPAQUE)))];
    for by in [Signer::First, Signer::Second, Signer::Stranger] {
        for name in [Name::Ours, Name::ForeignDomain, Name::Absent, Name::Two, Name::NoSpiffe] {
            for (in_force, for_clients) in [(true, true), (false, true), (true, false), (false, false)] {
                let uris: &[&str] = match name {
                    Name::Ours => &[CLIENT],
                    Name::ForeignDomain => &["spiffe://other/ns/shop/sa/client"],
                    Name::Absent => &[],
                    Name::Two => &[CLIENT, "spiffe://cluster.local/ns/shop/sa/admin"],
                    Name::NoSpiffe => &["https://cluster.local/ns/shop/sa/client"],
                };
                let leaf = authority(by).leaf_with(uris, |leaf| {
                    if !in_force {
                        (leaf.not_before, leaf.not_after) =
                            (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 2, 1));
                    }
                    if !for_clients {
                        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                    }
                });
                let shows = Shows::Proof { by, name, in_force, for_clients };
                clients.push((shows, Some(certificates::client(Some(&leaf), OPAQUE))));
            }
        }
    }
    let mut wrong = Vec::new();
    let mut cells = 0;
    for mode in ["STRICT", "PERMISSIVE", "DISABLE"] {
        for roots in [&[Signer::First][..], &[Signer::First, Signer::Second]] {
            let application = application();
            let mut stage = Stage::new();
            stage.apply(&peer_authentication(mode));
            let inbound = free();
            let own = first.leaf("spiffe://cluster.local/ns/shop/sa/app");
            let trusted: Vec<&Authority> = roots.iter().map(|signer| authority(*signer)).collect();
            let listens = format!("{inbound}={},port=8080,name=tcp", application.address);
            let _sidecar = stage.start_with("server", &own, &trusted, &["--inbound".to_owned(), listens]);
            for (shows, config) in &clients {
                // What is carried as bytes in DISABLE would wait for the application to speak TLS.
                if mode == "DISABLE" && config.is_some() {
                    continue;
                }
                let reached = match config {
                    None => gets_through(&mut wire::connect(inbound)),
                    Some(config) => certificates::connect(inbound, config).is_ok_and(|mut io| gets_through(&mut io)),
                };
                cells += 1;
                if reached != specified(mode, roots, *shows) {
                    wrong.push(format!("{mode} {roots:?} {shows:?}: {reached}"));
                }
            }
        }
    }
    assert!(cells > 200 && wrong.is_empty(), "{cells} cells, {wrong:#?}");
}
