//! A client's sidecar as a process before some applications that say their names; and questions to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Longest wait for anything that must come; far above what any of it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// One endpoint of `app.shop`: an application that answers with its name.
pub struct Application {
    pub name: String,
    /// Answers 503 while set.
    broken: Arc<AtomicBool>,
    /// Takes a while for each answer while set.
    slow: Arc<AtomicBool>,
    address: SocketAddr,
    /// What its WorkloadEntry says beside that: "weight: 3, locality: eu/west".
    further: String,
    /// Its labels beside `app: app`.
    labels: String,
}

/// Ends the sidecar with the test.
pub struct Client {
    child: Child,
    folder: tempfile::TempDir,
    /// Where `app.shop:80` is reached.
    pub http: SocketAddr,
    /// And its opaque port 90.
    pub tcp: SocketAddr,
    admin: SocketAddr,
}

/// What came back.
pub struct Answer {
    pub fields: String,
    /// Name of the application.
    pub name: String,
}

/// So many applications, `app-0` and so on.
pub fn applications(count: usize) -> Vec<Application> {
    (0..count).map(|index| Application::start(&format!("app-{index}"), "", "")).collect()
}

impl Application {
    pub fn start(name: &str, further: &str, labels: &str) -> Self {
        let (broken, slow) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (is_broken, is_slow) = (Arc::clone(&broken), Arc::clone(&slow));
        let address = listener.local_addr().unwrap();
        let own = name.to_owned();
        thread::spawn(move || {
            for io in listener.incoming().map_while(Result::ok) {
                let (own, is_broken, is_slow) = (own.clone(), Arc::clone(&is_broken), Arc::clone(&is_slow));
                thread::spawn(move || serve(io, &own, &is_broken, &is_slow));
            }
        });
        Self { name: name.to_owned(), broken, slow, address, further: further.to_owned(), labels: labels.to_owned() }
    }

    /// One that the test serves itself.
    pub fn at(name: &str, address: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            broken: Arc::default(),
            slow: Arc::default(),
            address,
            further: String::new(),
            labels: String::new(),
        }
    }

    pub fn is_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }

    pub fn is_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
    }

    fn document(&self) -> String {
        let port = self.address.port();
        let further = if self.further.is_empty() { String::new() } else { format!(", {}", self.further) };
        let labels = if self.labels.is_empty() { String::new() } else { format!(", {}", self.labels) };
        format!(
            "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {}, namespace: shop}}
spec: {{address: {}, ports: {{http: {port}, tcp: {port}}}, labels: {{app: app{labels}}}{further}}}
---
",
            self.name,
            self.address.ip()
        )
    }
}

/// Answers requests with the name; what is no HTTP gets the name as a line.
fn serve(mut io: TcpStream, name: &str, is_broken: &AtomicBool, is_slow: &AtomicBool) {
    let mut received = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = io.read(&mut bytes) {
        received.extend_from_slice(&bytes[..read]);
        if !received.starts_with(b"GET ") {
            let _ = io.write_all(format!("{name}\n").as_bytes());
            return;
        }
        while let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            received.drain(..end + 4);
            if is_slow.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(200));
            }
            let status = if is_broken.load(Ordering::Relaxed) { "503 Service Unavailable" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            if io.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// A DestinationRule for `app` with this traffic policy.
pub fn policy(traffic_policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: app, namespace: shop}}
spec: {{host: app, trafficPolicy: {{{traffic_policy}}}}}
---
"
    )
}

impl Client {
    /// A sidecar of `shop/client` that knows these applications and documents; `arguments` are further ones of the sidecar.
    pub fn start(applications: &[Application], documents: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut text = applications.iter().map(Application::document).collect::<String>();
        let _ = write!(
            text,
            "{documents}apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: shop}}
spec: {{address: 127.0.0.1, labels: {{app: client}}, serviceAccount: client}}
---
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: shop}}
spec:
  selector: {{app: app}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: tcp, port: 90, targetPort: 9090}}]
"
        );
        fs::write(folder.path().join("mesh.yaml"), text).unwrap();
        let [http, tcp, admin] = free();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["proxy", "--static", "mesh.yaml", "--as", "shop/client", "--dev-ca", "ca", "--workers", "2"])
            .args(["--local", &format!("{http}=app.shop:80"), "--local", &format!("{tcp}=app.shop:90")])
            .args(["--admin", &admin.to_string()])
            .args(arguments)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let client = Self { child, folder, http, tcp, admin };
        client.wait(http);
        client
    }

    fn wait(&self, address: SocketAddr) -> TcpStream {
        let began = Instant::now();
        loop {
            match TcpStream::connect(address) {
                Ok(io) => {
                    io.set_read_timeout(Some(PATIENCE)).unwrap();
                    return io;
                }
                Err(_) if began.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
                Err(error) => panic!("{address} never listened: {error}\n{}", self.log()),
            }
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// One request on a connection of its own; `fields` end with a line end each.
    pub fn ask(&self, path: &str, fields: &str) -> Answer {
        let mut io = self.wait(self.http);
        let request = format!("GET {path} HTTP/1.1\r\nhost: app.shop\r\n{fields}connection: close\r\n\r\n");
        io.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}\n{}", self.log()));
        Answer { fields: head.to_ascii_lowercase(), name: body.to_owned() }
    }

    /// Who answers so many of the same requests, and how many each.
    pub fn counts(&self, requests: usize, fields: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..requests {
            *counts.entry(self.ask("/", fields).name).or_default() += 1;
        }
        counts
    }

    /// Who answers.
    pub fn reached(&self, requests: usize, fields: &str) -> BTreeSet<String> {
        self.counts(requests, fields).into_keys().collect()
    }

    /// Who answers an opaque connection.
    pub fn ask_opaque(&self) -> String {
        let mut io = self.wait(self.tcp);
        io.write_all(b"hello").unwrap();
        let mut name = String::new();
        io.read_to_string(&mut name).unwrap();
        name.trim_end().to_owned()
    }

    /// What the admin port says, as JSON.
    pub fn admin(&self, path: &str) -> serde_json::Value {
        let mut io = self.wait(self.admin);
        io.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let (start, end) = (body.find('{').unwrap(), body.rfind('}').unwrap());
        serde_json::from_str(&body[start..=end]).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// What `/clusters` says of this backend.
    pub fn backend(&self, name: &str) -> serde_json::Value {
        let all = self.admin("/clusters");
        let backends = all["backends"].as_array().unwrap();
        backends.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} in {all}")).clone()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !thread::panicking() {
            assert!(!self.log().contains("panicked"), "{}", self.log());
        }
    }
}

/// Addresses that were free a moment ago, held together so that none is given twice.
fn free() -> [SocketAddr; 3] {
    let held: [TcpListener; 3] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|one| one.local_addr().unwrap())
}
