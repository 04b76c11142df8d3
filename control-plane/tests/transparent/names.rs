//! Applications call each other by plain names, which only the sidecar's DNS knows.

use futures_util::{SinkExt, StreamExt};
use hickory_proto::rr::RecordType;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::{SOON, mesh::http, world};

/// What the hosts' own name server knows, and the mesh does not.
pub const OUTSIDE: &str = "pay.example";

/// Set for the process that plays the application inside a host.
const INSIDE: &str = "OUTRIGGER_TEST_INSIDE";

#[test]
fn plain_names_lead_to_services() {
    // An application's own resolver, search domains and all: a process of its own, with the host's resolv.conf.
    let Some(world) = world() else { return };
    let test = std::env::current_exe().unwrap();
    let args = [
        &format!("{INSIDE}=1"),
        test.to_str().unwrap(),
        "--exact",
        "names::application_inside_a_host",
        "--ignored",
        "--nocapture",
    ];
    let printed = world.mesh.run_process("web", "application-by-names", "env".as_ref(), args);
    assert!(printed.contains("every name was found"), "{printed}");
}

#[test]
#[ignore = "runs inside a host, started by plain_names_lead_to_services"]
fn application_inside_a_host() {
    // The other half of the test above.
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for name in ["api", "api.shop", "api.shop.svc.cluster.local", "safe.vault", "API.Shop.svc"] {
            let found: Vec<_> = tokio::net::lookup_host((name, 80)).await.unwrap().collect();
            let answer = http::get(found[0], name, "/").await;
            assert_eq!(answer.status(), 200, "{name} at {found:?}");
        }
        let (mut socket, _) = connect_async("ws://chat/talk").await.unwrap();
        socket.send(Message::text("hello")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
        let mut stream = TcpStream::connect("echo.shop:7000").await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "hello");
        // What the mesh does not know is asked of the host's own name server.
        let found: Vec<_> = tokio::net::lookup_host((OUTSIDE, 8080)).await.unwrap().collect();
        assert_eq!(http::get(found[0], OUTSIDE, "/").await.status(), 200, "{found:?}");
        let unknown = tokio::time::timeout(SOON, tokio::net::lookup_host("nobody.shop:80")).await;
        assert!(unknown.expect("an answer that there is none").is_err());
    });
    println!("every name was found");
}

#[test]
fn names_have_virtual_addresses_or_none() {
    // An application asks for IPv6 as well; a failure there would make it give up or wait.
    let Some(world) = world() else { return };
    let web = world.mesh.host("web");
    let found = web.lookup("api.shop.svc.cluster.local.", RecordType::A);
    assert!(
        matches!(found.as_slice(), [std::net::IpAddr::V4(address)] if address.octets()[..2] == [240, 240]),
        "{found:?}"
    );
    assert!(web.lookup("api.shop.svc.cluster.local.", RecordType::AAAA).is_empty());
    // The same name from another namespace of the mesh is the same service.
    let safe = world.mesh.host("safe");
    assert_eq!(safe.lookup("api.shop.svc.cluster.local.", RecordType::A), found);
}
