//! Sidecars as processes, from static documents: started, looked at, and ended with the test.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    certificates::{Authority, Leaf},
    wire::{self, PATIENCE},
};

/// Where a service is said to be, and how it is to be spoken to.
pub struct Service {
    /// "name" of the port, which declares its protocol.
    pub port_name: &'static str,
    pub endpoint: SocketAddr,
    /// Mutual TLS with `spiffe://cluster.local/ns/shop/sa/app` is expected.
    pub mesh: bool,
}

/// A running sidecar. Ended with the test; a test that passed also fails here when the process has panicked.
pub struct Sidecar {
    child: Child,
    folder: PathBuf,
    _stage: Arc<tempfile::TempDir>,
    pub admin: SocketAddr,
}

/// The place of one test: documents, certificates, logs.
pub struct Stage {
    folder: Arc<tempfile::TempDir>,
    pub authority: Authority,
    documents: String,
    /// What a shell does before it becomes the sidecar.
    before: Option<String>,
}

impl Stage {
    pub fn new() -> Self {
        let documents = workload("client", "client") + &workload("server", "app");
        Self { folder: Arc::new(tempfile::tempdir().unwrap()), authority: Authority::new(), documents, before: None }
    }

    /// Sidecars are started from a shell that has done this: a limit set, a cgroup entered.
    pub fn before(&mut self, command: &str) -> &mut Self {
        self.before = Some(command.to_owned());
        self
    }

    /// Adds documents.
    pub fn apply(&mut self, yaml: &str) -> &mut Self {
        write!(self.documents, "---\n{yaml}\n").unwrap();
        self
    }

    /// Adds service `NAME.shop:80` with its one endpoint.
    pub fn service(&mut self, name: &str, service: &Service) -> &mut Self {
        let peer = if service.mesh { "annotations: {outrigger.mesh/peer: outrigger}, " } else { "" };
        let (port_name, endpoint) = (service.port_name, service.endpoint);
        self.apply(&format!(
            "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{{peer}name: {name}, namespace: shop}}
spec: {{address: {}, ports: {{{port_name}: {}}}, labels: {{app: {name}}}, serviceAccount: app}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{{name: {port_name}, port: 80, targetPort: 8080}}]}}",
            endpoint.ip(),
            endpoint.port()
        ))
    }

    /// Adds a PeerAuthentication for the whole namespace.
    pub fn mode(&mut self, mode: &str) -> &mut Self {
        self.apply(&peer_authentication(mode))
    }

    /// Starts a sidecar of workload `shop/WORKLOAD` with a good certificate of account `account`.
    pub fn start(&self, workload: &str, account: &str, arguments: &[String]) -> Sidecar {
        let leaf = self.authority.leaf(&format!("spiffe://cluster.local/ns/shop/sa/{account}"));
        self.start_with(workload, &leaf, &[&self.authority], arguments)
    }

    /// The same with a certificate and roots of the test's choice.
    pub fn start_with(&self, workload: &str, leaf: &Leaf, roots: &[&Authority], arguments: &[String]) -> Sidecar {
        let folder = self.folder.path().join(workload);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("mesh.yaml"), &self.documents).unwrap();
        let certificates = folder.join("certificates");
        fs::create_dir_all(&certificates).unwrap();
        leaf.write(&certificates, roots);
        let admin = free();
        let log = File::create(folder.join("log")).unwrap();
        let program = env!("CARGO_BIN_EXE_outrigger");
        let mut command = match &self.before {
            None => Command::new(program),
            Some(before) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{before} && exec \"$0\" \"$@\""), program]);
                shell
            }
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTRIGGER_")) {
            command.env_remove(name);
        }
        let child = command
            .args(["proxy", "--static", "mesh.yaml", "--as", &format!("shop/{workload}")])
            .args(["--cert-dir", "certificates", "--workers", "1", "--access-log", "json"])
            .args(["--admin", &admin.to_string()])
            .args(arguments)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut sidecar = Sidecar { child, folder, _stage: Arc::clone(&self.folder), admin };
        sidecar.wait_ready();
        sidecar
    }

    /// A sidecar that carries what comes to the returned address to `app.shop:80`.
    pub fn client(&self, arguments: &[&str]) -> (Sidecar, SocketAddr) {
        let local = free();
        let mut all = vec!["--local".to_owned(), format!("{local}=app.shop:80")];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        (self.start("client", "client", &all), local)
    }

    /// A sidecar that carries what comes to the returned address to the application at `application`, port 8080.
    pub fn server(&self, application: SocketAddr, port_name: &str, arguments: &[&str]) -> (Sidecar, SocketAddr) {
        let inbound = free();
        let mut all = vec!["--inbound".to_owned(), format!("{inbound}={application},port=8080,name={port_name}")];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        (self.start("server", "app", &all), inbound)
    }
}

fn workload(name: &str, account: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{address: 127.0.0.1, labels: {{workload: {name}}}, serviceAccount: {account}}}
"
    )
}

pub fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: {mode}}}}}"
    )
}

impl Sidecar {
    fn wait_ready(&mut self) {
        let began = Instant::now();
        while !wire::try_get(self.admin, "localhost", "/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{ended:?}\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Everything the process wrote, access log included.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until the process has written something that satisfies.
    pub fn wait_log(&self, what: &str, satisfies: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let log = self.log();
            if satisfies(&log) {
                return log;
            }
            assert!(began.elapsed() < PATIENCE, "{what} was never written:\n{log}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// An answer of the operator's port, head and body.
    pub fn admin(&self, path: &str) -> String {
        wire::try_get(self.admin, "localhost", path).unwrap()
    }

    /// Sum of a metric's series whose labels contain all these texts.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin("/metrics");
        let of_name =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        of_name
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// Waits until a metric has at least (`up`) or at most this value.
    pub fn wait_metric(&self, name: &str, labels: &[&str], satisfies: impl Fn(f64) -> bool) {
        let began = Instant::now();
        while !satisfies(self.metric(name, labels)) {
            assert!(began.elapsed() < PATIENCE, "{name}{labels:?} stays {}\n{}", self.metric(name, labels), self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Writes new documents and waits until they are in force.
    pub fn rewrite(&self, change: impl FnOnce(String) -> String) {
        let generation = || self.metric("outrigger_config_generation", &[]);
        let (path, before) = (self.folder.join("mesh.yaml"), generation());
        let text = change(fs::read_to_string(&path).unwrap());
        let mut next = tempfile::NamedTempFile::new_in(&self.folder).unwrap();
        next.write_all(text.as_bytes()).unwrap();
        next.persist(&path).unwrap();
        let began = Instant::now();
        while generation() <= before {
            assert!(began.elapsed() < PATIENCE, "the documents were not taken\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- sidecar\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
            return;
        }
        assert!(matches!(ended, Ok(None)), "the sidecar had ended: {ended:?}\n{log}");
        assert!(!log.contains("panicked at"), "{log}");
    }
}

/// An address that was free a moment ago; below the range that the kernel gives to outgoing connections. The same one is not given
/// to another test before all have been given.
pub fn free() -> SocketAddr {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..12_000)));
    loop {
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 12_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() && TcpStream::connect(address).is_err() {
            return address;
        }
    }
}
