//! How often a sidecar allocates for one request, compared with what is on record.
//!
//! Real sidecars: this program starts itself as `outrigger proxy --static`, with an allocator that counts. Each tells its count on
//! request, so that client and origin count for nothing. The number is the lowest of several batches; what else a sidecar
//! does meanwhile only adds. `OUTRIGGER_REWRITE_COSTS=1 cargo test -p outrigger-control-plane --test allocations` records anew.

#![allow(clippy::unwrap_used)]

use std::{
    alloc::System,
    env,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// In the environment of a process that is a sidecar: its words, one a line, and who asks for its counts.
const SIDECAR: &str = "OUTRIGGER_TEST_SIDECAR";
const COUNTS: &str = "OUTRIGGER_TEST_COUNTS";
/// Set to write the record instead of comparing.
const REWRITE: &str = "OUTRIGGER_REWRITE_COSTS";

/// How much worse than on record is a failure.
const WORSE_PERCENT: f64 = 5.0;
const WARM_UP: u32 = 300;
const BATCHES: u32 = 5;
const REQUESTS: u32 = 200;

/// Everything that a mesh has on in production, as in the bench.
const MESH: &str = "---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: bench}
spec: {selector: {app: app}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client, namespace: bench}
spec: {address: 127.0.0.1, labels: {app: client}, serviceAccount: client}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: app, namespace: bench}
spec:
  host: app
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 1000}, http: {http2MaxRequests: 1000, maxRetries: 10}}
    outlierDetection: {consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 30s}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: app, namespace: bench}
spec:
  parentRefs: [{group: \"\", kind: Service, name: app, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{name: app, port: 80}]
    timeouts: {request: 10s, backendRequest: 3s}
    retry: {attempts: 2, codes: [502, 503], backoff: 25ms}
---
apiVersion: outrigger.mesh/v1alpha1
kind: CircuitBreaker
metadata: {name: app, namespace: bench}
spec:
  targetRefs: [{group: \"\", kind: Service, name: app}]
  window: 10s
  minimumRequests: 20
  failurePercent: 50
  openFor: 5s
";

/// A sidecar in a process of its own, and the way to ask what it allocated.
struct Sidecar {
    process: Child,
    counts: TcpStream,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Sidecar {
    fn start(folder: &Path, documents: &str, account: &str, words: &[String]) -> Self {
        let file = folder.join(format!("{account}.yaml"));
        fs::write(&file, documents).unwrap();
        let asks = TcpListener::bind("127.0.0.1:0").unwrap();
        let fixed = ["outrigger", "proxy", "--static", file.to_str().unwrap(), "--as", &format!("bench/{account}")];
        let authority = folder.join("ca");
        let rest = ["--dev-ca", authority.to_str().unwrap(), "--workers", "1", "--access-log", "off", "--log-level"];
        let words: Vec<&str> =
            fixed.into_iter().chain(rest).chain(["warn"]).chain(words.iter().map(|w| &**w)).collect();
        let process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_sidecar", "--nocapture"])
            .env(SIDECAR, words.join("\n"))
            .env(COUNTS, asks.local_addr().unwrap().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, counts: asks.accept().unwrap().0 }
    }

    fn allocations(&mut self) -> u64 {
        let mut answer = [0; 8];
        self.counts.write_all(&[0]).unwrap();
        self.counts.read_exact(&mut answer).unwrap();
        u64::from_le_bytes(answer)
    }
}

/// Not a test but the process of a sidecar, when another test starts it.
#[test]
fn a_sidecar() {
    let Ok(words) = env::var(SIDECAR) else { return };
    let mut asked = TcpStream::connect(env::var(COUNTS).unwrap()).unwrap();
    thread::spawn(move || {
        while asked.read_exact(&mut [0]).is_ok() {
            let stats = ALLOCATOR.stats();
            let count = (stats.allocations + stats.reallocations) as u64;
            if asked.write_all(&count.to_le_bytes()).is_err() {
                break;
            }
        }
        // Nobody is there any more.
        std::process::exit(0);
    });
    let _ = outrigger_control_plane::cli::run(words.lines().map(Into::into));
    panic!("the sidecar has ended");
}

/// Answers every request on every connection with so many bytes.
fn origin(bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut io in listener.incoming().map_while(Result::ok) {
            let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n").into_bytes();
            answer.resize(answer.len() + bytes, b'x');
            thread::spawn(move || {
                let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(read @ 1..) = io.read(&mut buffer) {
                    received.extend_from_slice(&buffer[..read]);
                    if received.ends_with(b"\r\n\r\n") {
                        received.clear();
                        if io.write_all(&answer).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let began = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(io) => {
                io.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                io.set_nodelay(true).unwrap();
                return io;
            }
            Err(_) if began.elapsed() < Duration::from_secs(60) => thread::sleep(Duration::from_millis(20)),
            Err(error) => panic!("{address} never listened: {error}"),
        }
    }
}

/// One request and its whole answer.
fn request(io: &mut TcpStream, received: &mut Vec<u8>, body_bytes: usize) {
    io.write_all(b"GET /products/17 HTTP/1.1\r\nhost: app.bench\r\nuser-agent: test/1\r\naccept: */*\r\n\r\n").unwrap();
    received.clear();
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = io.read(&mut buffer).unwrap();
        assert!(read > 0, "the connection ended after {}", String::from_utf8_lossy(received));
        received.extend_from_slice(&buffer[..read]);
        let head = received.windows(4).position(|four| four == b"\r\n\r\n");
        if head.is_some_and(|end| received.len() >= end + 4 + body_bytes) {
            break;
        }
    }
    assert!(received.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(received));
}

/// Allocations of each sidecar for one request, after a while.
fn measure(mut io: TcpStream, body_bytes: usize, sidecars: &mut [Sidecar]) -> Vec<f64> {
    let mut received = Vec::new();
    for _ in 0..WARM_UP {
        request(&mut io, &mut received, body_bytes);
    }
    let mut lowest = vec![u64::MAX; sidecars.len()];
    for _ in 0..BATCHES {
        let before: Vec<_> = sidecars.iter_mut().map(Sidecar::allocations).collect();
        for _ in 0..REQUESTS {
            request(&mut io, &mut received, body_bytes);
        }
        for ((lowest, sidecar), before) in lowest.iter_mut().zip(sidecars.iter_mut()).zip(before) {
            *lowest = (*lowest).min(sidecar.allocations() - before);
        }
    }
    lowest.into_iter().map(|count| count as f64 / f64::from(REQUESTS)).collect()
}

fn workload(address: SocketAddr, peer: &str) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app, namespace: bench, annotations: {{outrigger.mesh/peer: {peer}}}}}
spec: {{address: {ip}, ports: {{http: {port}}}, labels: {{app: app}}, serviceAccount: app}}
"
    )
}

/// Client, outbound sidecar, origin.
fn one_hop(body_bytes: usize) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let local = free();
    let documents = workload(origin(body_bytes), "plain") + MESH;
    let words = ["--local".to_owned(), format!("{local}=app.bench:80")];
    let client = Sidecar::start(folder.path(), &documents, "client", &words);
    measure(connect(local), body_bytes, &mut [client])
}

/// Client, outbound sidecar, mutual TLS, inbound sidecar, origin.
fn two_hops(body_bytes: usize) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let (inbound, local) = (free(), free());
    let documents = workload(inbound, "outrigger") + MESH;
    let words = ["--inbound".to_owned(), format!("{inbound}={},port=8080,name=http", origin(body_bytes))];
    let app = Sidecar::start(folder.path(), &documents, "app", &words);
    connect(inbound);
    let words = ["--local".to_owned(), format!("{local}=app.bench:80")];
    let client = Sidecar::start(folder.path(), &documents, "client", &words);
    measure(connect(local), body_bytes, &mut [client, app])
}

#[test]
fn requests_allocate_no_more_than_on_record() {
    // A copy here and a box there, and the sidecar costs a tenth more; no single change would show it.
    let mut measured = Vec::new();
    for (name, body_bytes) in [("empty", 0), ("64 KiB", 64 * 1024)] {
        for (side, count) in ["outbound"].iter().zip(one_hop(body_bytes)) {
            measured.push((format!("one hop, {name}, {side}"), count));
        }
        for (side, count) in ["outbound", "inbound"].iter().zip(two_hops(body_bytes)) {
            measured.push((format!("two hops, {name}, {side}"), count));
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/allocations.txt");
    if env::var_os(REWRITE).is_some() {
        let mut text =
            format!("# Allocations of a sidecar for one request. Written by {REWRITE}=1, see allocations.rs.\n");
        for (name, count) in &measured {
            let _ = writeln!(text, "{name}: {count:.2}");
        }
        fs::write(file, text).unwrap();
        return;
    }
    let text = fs::read_to_string(file).unwrap();
    let on_record = |wanted: &str| {
        let line = text.lines().find_map(|line| line.split_once(": ").filter(|(name, _)| *name == wanted));
        line.map(|(_, count)| count.parse::<f64>().unwrap())
    };
    let mut worse = String::new();
    for (name, count) in &measured {
        let record = on_record(name).unwrap_or_else(|| panic!("\"{name}\" is not on record (hint: {REWRITE}=1)"));
        println!("{name}: {count:.2}, on record {record:.2}");
        if *count > record * (1.0 + WORSE_PERCENT / 100.0) {
            let _ = writeln!(worse, "{name}: {count:.2} allocations, {record:.2} on record");
        }
    }
    assert!(worse.is_empty(), "\n{worse}(hint: {REWRITE}=1 records them, if that is what they have to be)");
}
