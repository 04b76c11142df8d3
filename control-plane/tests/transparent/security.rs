//! Mutual TLS as the network sees it, who may come in, who is told to be calling, and what is refused.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use http::{Method, StatusCode};
use outrigger_control_plane::demo::network;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    SOON, World,
    mesh::{
        host::Host,
        http::{connect, exchange, get, request},
        sidecar_name,
    },
    world,
};

/// Services whose endpoints are written down: `six` over IPv6, and `impostor`, where somebody else answers than is said.
pub fn documents(api: &Host) -> String {
    let listed = |name: &str, family: &str, address: IpAddr, account: &str| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  namespace: shop
  labels: {{kubernetes.io/service-name: {name}}}
  annotations: {{outrigger.mesh/peer: outrigger, outrigger.mesh/service-account: {account}}}
addressType: {family}
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [\"{address}\"]}}]
"
        )
    };
    let impostor = listed("impostor", "IPv4", api.address.into(), "billing");
    format!("{}---\n{impostor}", listed("six", "IPv6", api.address_v6.into(), "api"))
}

#[test]
fn sidecars_meet_over_ipv6() {
    // Dual-stack clusters: the address family must not decide whether traffic is protected.
    let Some(world) = world() else { return };
    if !network::has_ipv6() {
        return;
    }
    let address = world.service("six.shop", 80);
    let seen = world.on_web(report(address, "six", "/"));
    assert_eq!(
        seen["headers"]["x-forwarded-client-cert"],
        "By=spiffe://cluster.local/ns/shop/sa/api;URI=spiffe://cluster.local/ns/shop/sa/web"
    );
}

#[test]
fn who_is_not_who_was_expected_gets_no_request() {
    // A workload that took over an address must not be given what was meant for another one.
    let Some(world) = world() else { return };
    let address = world.service("impostor.shop", 80);
    let answer = world.on_web(get(address, "impostor", "/for-billing-only"));
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{:?}", answer.body());
    let log = world.mesh.log(&sidecar_name("api-1"));
    assert!(!log.contains("for-billing-only"), "the request arrived");
}

/// All protocols, in network byte order (linux/if_ether.h, ETH_P_ALL).
const EVERYTHING: u16 = 0x0003_u16.to_be();

/// Listens on every link between the hosts, and looks for words.
struct Wiretap {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<usize>>,
}

impl Wiretap {
    fn start(words: &'static [&'static str]) -> Self {
        let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(EVERYTHING)))).unwrap();
        socket.set_recv_buffer_size(16 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut heard = vec![0; words.len()];
            let mut frame = vec![0; 1 << 16];
            loop {
                // On a busy machine there is never silence; then the end is when the other word has been heard.
                if stopped.load(Ordering::SeqCst) && heard.last().is_some_and(|count| *count > 0) {
                    return heard;
                }
                match socket.read(&mut frame) {
                    Ok(length) => {
                        for (word, heard) in words.iter().zip(&mut heard) {
                            *heard +=
                                usize::from(frame[..length].windows(word.len()).any(|part| part == word.as_bytes()));
                        }
                    }
                    // Silence after the end: everything that was sent before it has been looked at.
                    Err(_) if stopped.load(Ordering::SeqCst) => return heard,
                    Err(_) => {}
                }
            }
        });
        Self { stop, thread }
    }

    /// How often each word was heard. The last word must be one that was sent last and can be heard.
    fn stop(self) -> Vec<usize> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

async fn report(address: SocketAddr, host: &'static str, path: &'static str) -> Value {
    let answer = get(address, host, path).await;
    assert_eq!(answer.status(), StatusCode::OK);
    serde_json::from_slice(answer.body()).unwrap()
}

#[test]
fn between_sidecars_nothing_can_be_read() {
    // The reason for a mesh: whoever sits on the wire learns nothing. The second word shows that we do hear.
    let Some(world) = world() else { return };
    const WORDS: &[&str] = &["secret-on-the-way-in-mesh", "secret-of-the-stranger"];
    let tap = Wiretap::start(WORDS);
    let mesh = world.service("api-v1.shop", 80);
    let opaque = world.service("echo.shop", 7000);
    world.on_web(async move {
        report(mesh, "api-v1", "/secret-on-the-way-in-mesh").await;
        let mut stream = TcpStream::connect(opaque).await.unwrap();
        stream.write_all(b"secret-on-the-way-in-mesh").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, WORDS[0]);
    });
    let open = world.mesh.host("api-1").at(8080);
    world.mesh.host("stranger").run(report(open, "x", "/secret-of-the-stranger"));
    let heard = tap.stop();
    assert!(heard[0] == 0 && heard[1] > 0, "{heard:?}");
}

#[test]
fn metrics_say_mutual_tls() {
    // Dashboards draw the lock from these labels.
    let Some(world) = world() else { return };
    let address = world.service("safe.vault", 80);
    let before = world.mesh.metrics("safe");
    for _ in 0..5 {
        world.on_web(report(address, "safe.vault", "/"));
    }
    let after = world.mesh.metrics("safe");
    let requests = |security| {
        let labels = [("reporter", "destination"), ("connection_security_policy", security)];
        after.sum("istio_requests_total", &labels) - before.sum("istio_requests_total", &labels)
    };
    assert!(requests("mutual_tls") >= 5.0, "{}", after.show("istio_requests_total"));
    let secured = |security| {
        after.sum("outrigger_connections_secured_total", &[("direction", "inbound"), ("security", security)])
    };
    assert!(secured("mutual_tls") >= 1.0, "{}", after.show("outrigger_connections_secured_total"));
    assert!(secured("none") == 0.0, "{}", after.show("outrigger_connections_secured_total"));
}

#[test]
fn the_application_is_told_who_calls() {
    // Applications decide by this header; what a stranger writes into it must not reach them.
    let Some(world) = world() else { return };
    let mesh = world.service("api-v1.shop", 80);
    let seen = world.on_web(report(mesh, "api-v1", "/"));
    assert_eq!(
        seen["headers"]["x-forwarded-client-cert"],
        "By=spiffe://cluster.local/ns/shop/sa/api;URI=spiffe://cluster.local/ns/shop/sa/web"
    );
    let safe = world.service("safe.vault", 80);
    let seen = world.on_web(report(safe, "safe.vault", "/"));
    assert_eq!(
        seen["headers"]["x-forwarded-client-cert"],
        "By=spiffe://cluster.local/ns/vault/sa/safe;URI=spiffe://cluster.local/ns/shop/sa/web"
    );
    let direct = world.mesh.host("api-1").at(8080);
    let seen = world.mesh.host("stranger").run(async move {
        let mut sender = connect(direct).await.unwrap();
        let mut forged = request(Method::GET, "api", "/", "");
        let claim = "By=x;URI=spiffe://cluster.local/ns/shop/sa/admin";
        forged.headers_mut().insert("x-forwarded-client-cert", claim.parse().unwrap());
        exchange(&mut sender, forged).await.unwrap()
    });
    let seen: Value = serde_json::from_slice(seen.body()).unwrap();
    assert!(seen["headers"]["x-forwarded-client-cert"].is_null(), "{seen}");
}

/// Both addresses of a host.
fn addresses(world: &World, host: &str) -> Vec<IpAddr> {
    let host = world.mesh.host(host);
    let six = network::has_ipv6().then_some(IpAddr::V6(host.address_v6));
    std::iter::once(IpAddr::V4(host.address)).chain(six).collect()
}

#[test]
fn m19_strict_refuses_plaintext_on_both_families() {
    // One way in without a certificate, and STRICT means nothing.
    let Some(world) = world() else { return };
    for address in addresses(world, "safe") {
        for bytes in ["GET / HTTP/1.1\r\nhost: safe\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "anything at all"] {
            world.mesh.host("stranger").run(async move {
                let mut stream = TcpStream::connect((address, 8080)).await.unwrap();
                stream.write_all(bytes.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                let end = stream.read_to_end(&mut answer).await.map_err(|error| error.kind());
                assert_eq!((end, answer.len()), (Err(std::io::ErrorKind::ConnectionReset), 0), "{address} {bytes:?}");
            });
        }
        // Nor does a server that would speak first: nothing is said to who has not proved anything.
        world.mesh.host("stranger").run(async move {
            let mut stream = TcpStream::connect((address, 7002)).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            let mut answer = Vec::new();
            assert!(stream.read_to_end(&mut answer).await.is_err());
            assert!(answer.is_empty(), "{answer:?}");
        });
    }
}

#[test]
fn a_workload_dialled_by_its_own_address_is_protected_as_well() {
    // Databases and brokers tell their clients addresses of single instances; STRICT must not lock those clients out.
    let Some(world) = world() else { return };
    let safe = world.mesh.host("safe");
    let seen = world.on_web(report(safe.at(8080), "safe", "/"));
    assert_eq!(
        seen["headers"]["x-forwarded-client-cert"],
        "By=spiffe://cluster.local/ns/vault/sa/safe;URI=spiffe://cluster.local/ns/shop/sa/web"
    );
    if network::has_ipv6() {
        // Nobody has said who is at this address: it is passed on as it is, and the answer says that it was refused.
        let six = SocketAddr::new(safe.address_v6.into(), 8080);
        let answer = world.on_web(get(six, "safe", "/"));
        assert!(answer.status().is_server_error(), "{}", answer.status());
    }
}

#[test]
fn permissive_takes_both_on_both_families() {
    // While a mesh is rolled out, half of the callers have no sidecar yet.
    let Some(world) = world() else { return };
    for address in addresses(world, "api-1") {
        // From outside the mesh, and from inside by an address that belongs to no service.
        for from in ["stranger", "web"] {
            let seen = world.mesh.host(from).run(report(SocketAddr::new(address, 8080), "direct", "/"));
            assert_eq!(seen["name"], "api-1", "from {from} to {address}");
        }
    }
    let mesh = world.service("api-v1.shop", 80);
    assert!(world.on_web(report(mesh, "api-v1", "/"))["headers"]["x-forwarded-client-cert"].is_string());
}

#[test]
fn what_is_outside_the_mesh_can_be_reached() {
    // Payment providers, databases without a sidecar: nothing was declared about them, and they must work.
    let Some(world) = world() else { return };
    for address in addresses(world, "stranger") {
        let seen = world.on_web(report(SocketAddr::new(address, 8080), "pay.example", "/charge"));
        assert_eq!((&seen["name"], &seen["path"]), (&"stranger".into(), &"/charge".into()));
        assert_eq!(seen["headers"]["host"], "pay.example");
    }
    // Nobody listens: the application gets an answer that says so, not silence.
    let closed = world.mesh.host("stranger").at(9);
    let answer = world.on_web(get(closed, "x", "/"));
    assert!(answer.status().is_server_error(), "{}", answer.status());
}

#[test]
fn an_application_reaches_itself() {
    // A service that calls its own name, or its own address, must not be sent in a circle or refused.
    let Some(world) = world() else { return };
    let api = world.mesh.host("api-1");
    let service = SocketAddr::new(api.address_of("api-v1.shop.svc.cluster.local."), 80);
    for address in [service, api.at(8080), crate::loopback(8080)] {
        let seen = api.run(report(address, "itself", "/"));
        assert_eq!(seen["name"], "api-1", "{address}");
    }
    // Under STRICT, too.
    let safe = world.mesh.host("safe");
    for address in [SocketAddr::new(safe.address_of("safe.vault.svc.cluster.local."), 80), safe.at(8080)] {
        assert_eq!(safe.run(report(address, "itself", "/"))["name"], "safe", "{address}");
    }
}

#[test]
fn m01_a_connection_to_the_sidecar_itself_goes_in_no_circle() {
    // One such connection, forwarded to itself again and again, would eat all descriptors of the host.
    let Some(world) = world() else { return };
    let accepted = || world.mesh.metrics("web").sum("outrigger_connections_accepted_total", &[]);
    let own = world.mesh.host("web").address;
    for (from, target) in [("web", IpAddr::from([127, 0, 0, 1])), ("web", own.into()), ("stranger", own.into())] {
        for port in [15001, 15006] {
            let before = accepted();
            world.mesh.host(from).run(async move {
                let ended = async {
                    let Ok(mut stream) = TcpStream::connect((target, port)).await else { return };
                    if stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.is_err() {
                        return;
                    }
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer).await;
                    let text = String::from_utf8_lossy(&answer);
                    assert!(!text.starts_with("HTTP/1.1 2"), "{from} to {target}:{port}: {text}");
                };
                tokio::time::timeout(SOON, ended).await.expect("it is refused, not left hanging");
            });
            // Other tests use this sidecar meanwhile; a circle would make thousands.
            let made = accepted() - before;
            assert!(made < 200.0, "{made} connections from {from} to {target}:{port}");
        }
    }
}

#[test]
fn m02_a_sidecar_that_catches_itself_ends_the_circle() {
    // Rules for another user: whatever the sidecar dials is handed to itself, which dials again, until nothing is left of the host.
    let Some(world) = world() else { return };
    let arguments = ["intercept", "apply", "--proxy-uid", "4242"];
    world.mesh.run_process("astray", "astray-rules-again", world.mesh.program(), arguments);
    let number = |name| world.mesh.metrics("astray").sum(name, &[]);
    let (accepted, descriptors) = (number("outrigger_connections_accepted_total"), number("process_open_fds"));
    // HTTP, whose circles are counted as well, and bytes that nobody can count.
    for (port, said) in [(8080, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"), (7000, "no protocol at all")]
    {
        let target = world.mesh.host("stranger").at(port);
        for _ in 0..10 {
            world.mesh.host("astray").run(async move {
                let ended = async {
                    let mut stream = TcpStream::connect(target).await.unwrap();
                    let _ = stream.write_all(said.as_bytes()).await;
                    let _ = stream.shutdown().await;
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer).await;
                    let text = String::from_utf8_lossy(&answer);
                    assert!(text.is_empty() || text.starts_with("HTTP/1.1 5"), "the circle leads out: {text}");
                };
                tokio::time::timeout(SOON, ended).await.expect("it is refused, not left hanging");
            });
        }
    }
    let made = number("outrigger_connections_accepted_total") - accepted;
    // One and its return each, some that came back before they were noted, and the further tries of requests.
    assert!(made < 150.0, "{made} connections for 20");
    let end = std::time::Instant::now() + SOON;
    while number("process_open_fds") > descriptors + 2.0 {
        assert!(std::time::Instant::now() < end, "descriptors stay open");
        thread::sleep(Duration::from_millis(50));
    }
}
