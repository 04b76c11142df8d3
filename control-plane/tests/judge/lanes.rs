//! A mesh of two sidecars beside one origin, and the ways into it.
//!
//! Limits of time are short: a conversation that leads nowhere ends with the proxy closing it, and not with a guess how long to wait.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::origin::Origin;

/// Ends a sidecar with the test.
struct Sidecar(Child);

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Mesh {
    pub origin: Arc<Origin>,
    pub lanes: Vec<Lane>,
    /// Straight to the inbound side of a sidecar, as another sidecar would: what is said here goes through mutual TLS.
    pub peer: Lane,
    _folder: tempfile::TempDir,
    _sidecars: Vec<Sidecar>,
}

/// One way in.
#[derive(Clone, Debug)]
pub struct Lane {
    pub name: &'static str,
    pub address: SocketAddr,
}

/// An address that was free a moment ago.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Mesh {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::listen();
        let (inbound, undeclared, mesh, plain, proxy) = (free(), free(), free(), free(), free());
        fs::write(folder.path().join("mesh.yaml"), documents(inbound.port(), origin.address.port())).unwrap();
        let behind = |listen: SocketAddr, name: &str| format!("{listen}={},port=8080{name}", origin.address);
        let server = start(folder.path(), "app", &["--inbound", &behind(inbound, ",name=http")]);
        let loose = start(folder.path(), "loose", &["--inbound", &behind(undeclared, "")]);
        listening(inbound);
        listening(undeclared);
        let client = start(
            folder.path(),
            "client",
            &[
                "--local",
                &format!("{mesh}=app.shop:80"),
                "--local",
                &format!("{plain}=plain.shop:80"),
                "--outbound",
                &proxy.to_string(),
            ],
        );
        let lanes = vec![
            Lane { name: "outbound to a plaintext service", address: plain },
            Lane { name: "outbound as an HTTP proxy", address: proxy },
            Lane { name: "inbound, plaintext on a declared port", address: inbound },
            Lane { name: "inbound, plaintext on an undeclared port", address: undeclared },
            Lane { name: "through both sidecars", address: mesh },
        ];
        lanes.iter().for_each(|lane| listening(lane.address));
        let peer = Lane {
            name: "inbound, as a peer over mutual TLS",
            address: super::peer::wrap(&folder.path().join("ca"), inbound),
        };
        Self { origin, lanes, peer, _folder: folder, _sidecars: vec![server, loose, client] }
    }
}

fn documents(inbound: u16, origin: u16) -> String {
    format!(
        r"apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app, namespace: shop, annotations: {{outrigger.mesh/peer: outrigger}}}}
spec: {{address: 127.0.0.1, ports: {{http: {inbound}}}, labels: {{app: app}}, serviceAccount: app}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: plain, namespace: shop}}
spec: {{address: 127.0.0.1, ports: {{http: {origin}}}, labels: {{app: plain}}, serviceAccount: plain}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: loose, namespace: shop}}
spec: {{address: 127.0.0.1, labels: {{app: loose}}, serviceAccount: loose}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: shop}}
spec: {{address: 127.0.0.1, labels: {{app: client}}, serviceAccount: client}}
---
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: shop}}
spec: {{selector: {{app: app}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: plain, namespace: shop}}
spec: {{selector: {{app: plain}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"
    )
}

fn start(folder: &Path, account: &str, arguments: &[&str]) -> Sidecar {
    let log = fs::File::create(folder.join(format!("{account}.log"))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command
        .args([
            "proxy",
            "--static",
            "mesh.yaml",
            "--as",
            &format!("shop/{account}"),
            "--dev-ca",
            "ca",
            "--workers",
            "1",
        ])
        .args(arguments)
        .arg("--set=timeouts.idle=400ms")
        // Longer: a busy machine takes its time for the second half of a message.
        .args(["first_byte", "head", "body_grace", "detect"].map(|time| format!("--set=timeouts.{time}=3s")))
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(log);
    Sidecar(command.spawn().unwrap())
}

/// Waits until somebody listens there.
pub fn listening(address: SocketAddr) {
    let began = Instant::now();
    while let Err(error) = TcpStream::connect(address) {
        assert!(began.elapsed() < Duration::from_secs(60), "{address} never listened: {error}");
        thread::sleep(Duration::from_millis(20));
    }
}
