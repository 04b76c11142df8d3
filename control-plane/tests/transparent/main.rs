//! Transparent mode end to end: real sidecars, real redirect rules, applications that know nothing of a mesh.
//!
//! One mesh serves all tests; each has services of its own, so that they run side by side:
//!
//! ```text
//!  web ───► api-1, api-2   namespace shop, PERMISSIVE
//!     └───► safe           namespace vault, STRICT
//!  stranger                no sidecar
//!  astray                  rules that get lost in one test
//! ```

#![allow(clippy::unwrap_used)]

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    sync::{Arc, LazyLock},
    time::Duration,
};

use mesh::{Member, Mesh, apps, apps::Behaviour, grpc};

#[path = "../mesh/mod.rs"]
mod mesh;

mod access_log;
mod http1;
mod http2;
mod names;
mod opaque;
mod remote_calls;
mod routing;
mod security;
mod websocket;

/// Long enough for anything; short beside the detection timeout of [`DETECT_TIMEOUT`].
const SOON: Duration = Duration::from_secs(10);
/// So long that nothing that waits for it would pass.
const DETECT_TIMEOUT: &str = "timeouts.detect=60s";

/// Ports of the applications. `post` declares no protocol, so that it is found out.
const PORTS: [(u16, &str); 13] = [
    (8080, "http"),
    (8081, "http-flaky"),
    (8082, "http-fragile"),
    (8083, "http-tunnel"),
    (8084, "http-chat"),
    (8085, "web"),
    (50051, "grpc-notes"),
    (7000, "tcp-echo"),
    (7001, "tcp-first"),
    (7002, "post"),
    (7003, "any-echo"),
    (7004, "any-first"),
    (7005, "tcp-resets"),
];

/// The mesh, and what the tests may ask of its applications.
struct World {
    mesh: Mesh,
    /// `api-1` on 8081 and 8082.
    flaky: Arc<Behaviour>,
    fragile: Arc<Behaviour>,
}

static WORLD: LazyLock<Option<World>> = LazyLock::new(World::start);

/// The shared mesh; `None`, said once, where there cannot be one.
fn world() -> Option<&'static World> {
    WORLD.as_ref()
}

impl World {
    fn start() -> Option<Self> {
        let quick = ["--set", DETECT_TIMEOUT];
        let mut api_1 = Member::new("api-1", "api").label("version", "v1").args(quick);
        // The first tool that works serves all others.
        if Command::new("nft").arg("--version").output().is_ok() {
            api_1 = api_1.rule_args(["--tool", "nft"]);
        }
        api_1.ports.extend(PORTS);
        let mesh = Mesh::start(vec![
            Member::new("web", "web").args(quick).args(["--outbound", "127.0.0.1:15080"]),
            api_1,
            Member::new("api-2", "api").label("version", "v2").port(8080, "http"),
            Member::new("safe", "safe").namespace("vault").port(8080, "http").port(7002, "post"),
            Member::new("astray", "astray").args(quick),
            Member::outside("stranger"),
        ])?;
        let everywhere = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let api_1 = mesh.host("api-1");
        apps::serve_http(api_1, everywhere(8080), "api-1");
        apps::serve_http(api_1, everywhere(8085), "api-1");
        let flaky = apps::serve_http(api_1, everywhere(8081), "api-1");
        let fragile = apps::serve_http(api_1, everywhere(8082), "api-1");
        apps::serve_tunnel(api_1, everywhere(8083));
        apps::serve_websocket(api_1, everywhere(8084));
        grpc::serve(api_1, everywhere(50051));
        for (port, closes_first) in [(7000, false), (7003, false), (7001, true), (7004, true)] {
            if closes_first {
                apps::serve_closes_first(api_1, everywhere(port));
            } else {
                apps::serve_echo(api_1, everywhere(port));
            }
        }
        apps::serve_banner(api_1, everywhere(7002), opaque::BANNER);
        apps::serve_resets(api_1, everywhere(7005));
        apps::serve_http(mesh.host("api-2"), everywhere(8080), "api-2");
        apps::serve_http(mesh.host("safe"), everywhere(8080), "safe");
        apps::serve_banner(mesh.host("safe"), everywhere(7002), opaque::BANNER);
        apps::serve_resets(mesh.host("stranger"), everywhere(7005));
        apps::serve_http(mesh.host("stranger"), everywhere(8080), "stranger");
        apps::serve_banner(mesh.host("stranger"), everywhere(7002), opaque::BANNER);
        let resolver = format!("{}/24", mesh.resolver());
        mesh.run_process("stranger", "resolver-address", "ip".as_ref(), ["addr", "add", &resolver, "dev", "eth0"]);
        let stranger = mesh.host("stranger");
        apps::serve_names(stranger, SocketAddr::from((mesh.resolver(), 53)), names::OUTSIDE, stranger.address);
        mesh.apply(&format!("{}---\n{}", documents(), security::documents(mesh.host("api-1"))));
        mesh.wait_ready();
        Some(Self { mesh, flaky, fragile })
    }

    /// Where an application on `web` finds a service.
    fn service(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.mesh.host("web").address_of(&format!("{name}.svc.cluster.local.")), port)
    }

    /// Runs a client on `web`.
    fn on_web<F>(&self, client: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        self.mesh.host("web").run(client)
    }
}

/// Loopback of any host.
const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn documents() -> String {
    let service = |name: &str, selector: &str, ports: &[(&str, u16, u16)]| {
        let (name, namespace) = name.split_once('.').unwrap_or((name, "shop"));
        let ports: String = ports
            .iter()
            .map(|(name, port, target)| format!("  - {{name: {name}, port: {port}, targetPort: {target}}}\n"))
            .collect();
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  selector: \
             {{{selector}}}\n  ports:\n{ports}"
        )
    };
    let v1 = "app: api, version: v1";
    let mode = |namespace: &str, mode: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: \
             {namespace}}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    [
        mode("shop", "PERMISSIVE"),
        mode("vault", "STRICT"),
        service("api", "app: api", &[("http", 80, 8080)]),
        service("api-v1", v1, &[("http", 80, 8080)]),
        service("api-v2", "app: api, version: v2", &[("http", 80, 8080)]),
        service("found", v1, &[("web", 8085, 8085)]),
        service("canary", "app: api", &[("http", 80, 8080)]),
        service("flaky", v1, &[("http", 80, 8081)]),
        service("fragile", v1, &[("http", 80, 8082)]),
        service("tunnel", v1, &[("http", 80, 8083)]),
        service("chat", v1, &[("http", 80, 8084)]),
        service("notes", v1, &[("grpc", 50051, 50051)]),
        service("echo", v1, &[("tcp", 7000, 7000), ("any", 7003, 7003)]),
        service("first", v1, &[("tcp", 7001, 7001), ("any", 7004, 7004)]),
        service("resets", v1, &[("tcp", 7005, 7005)]),
        service("post", v1, &[("post", 7002, 7002)]),
        service("safe.vault", "app: safe", &[("http", 80, 8080), ("post", 7002, 7002)]),
        routing::documents(),
    ]
    .join("---\n")
}
