//! Two sidecars without a control plane, as processes, with a network between them that takes its time.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Ends a sidecar with the test.
struct Sidecar(Child);

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sidecar(folder: &std::path::Path, account: &str, arguments: &[String]) -> Sidecar {
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
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Sidecar(command.spawn().unwrap())
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Accepts for as long as the test runs; `serve` has a thread for each connection.
fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for io in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(io));
        }
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// A network on which everything the client says arrives this much after the connection.
fn slow_network(to: SocketAddr, late: Duration) -> SocketAddr {
    listen(move |client| {
        let Ok(server) = TcpStream::connect(to) else { return };
        let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let answers = thread::spawn(move || carry(back, forth));
        thread::sleep(late);
        carry(client, server);
        let _ = answers.join();
    })
}

/// Says what it hears, and to HTTP what is HTTP.
fn echo(mut io: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = io.read(&mut bytes) {
        let said = &bytes[..read];
        let answer: &[u8] =
            if said.starts_with(b"GET ") { b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello" } else { said };
        if io.write_all(answer).is_err() {
            return;
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let began = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(io) => {
                io.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                return io;
            }
            Err(_) if began.elapsed() < Duration::from_secs(60) => thread::sleep(Duration::from_millis(20)),
            Err(error) => panic!("{address} never listened: {error}"),
        }
    }
}

#[test]
fn a_handshake_that_comes_late_is_still_a_handshake() {
    // PERMISSIVE gives servers that speak first their chance. Over a network of more than a few milliseconds the application would be sent
    // the bytes of a peer's handshake, as if they were plaintext.
    for (port, said, expected) in [
        ("tcp", "hello", "hello"),
        ("http", "GET / HTTP/1.1\r\nhost: app.shop\r\nconnection: close\r\n\r\n", "hello"),
        ("undeclared", "hello", "hello"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (application, inbound, local) = (listen(echo), free(), free());
        let network = slow_network(inbound, Duration::from_millis(100));
        let documents = format!(
            r"apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app, namespace: shop, annotations: {{outrigger.mesh/peer: outrigger}}}}
spec: {{address: 127.0.0.1, ports: {{{port}: {}}}, labels: {{app: app}}, serviceAccount: app}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: shop}}
spec: {{address: 127.0.0.1, labels: {{app: client}}, serviceAccount: client}}
---
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: shop}}
spec: {{selector: {{app: app}}, ports: [{{name: {port}, port: 80, targetPort: 8080}}]}}
",
            network.port()
        );
        fs::write(folder.path().join("mesh.yaml"), documents).unwrap();
        let listens = format!("{inbound}={application},port=8080,name={port}");
        let _server = sidecar(folder.path(), "app", &["--inbound".to_owned(), listens]);
        connect(inbound);
        let _client = sidecar(folder.path(), "client", &["--local".to_owned(), format!("{local}=app.shop:80")]);
        let mut io = connect(local);
        io.write_all(said.as_bytes()).unwrap();
        let mut heard = String::new();
        let mut bytes = [0; 4096];
        while !heard.ends_with(expected) {
            let read = io.read(&mut bytes).unwrap();
            assert!(read > 0, "{port}: only {heard:?} came");
            heard.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        assert!(port != "http" || heard.starts_with("HTTP/1.1 200 OK\r\n"), "{heard}");
    }
}
