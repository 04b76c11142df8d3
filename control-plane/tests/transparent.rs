//! Transparent mode end to end: real sidecars, real redirect rules, applications that know nothing of a mesh.

#![allow(clippy::unwrap_used)]

use mesh::{Member, Mesh};

mod mesh;

#[test]
fn a_mesh_comes_up() {
    let Some(mesh) = Mesh::start(vec![
        Member::new("web", "web"),
        Member::new("api", "api").port(8080, "http"),
        Member::outside("stranger"),
    ]) else {
        return;
    };
    mesh.apply(
        "apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec:
  selector: {app: api}
  ports: [{name: http, port: 80, targetPort: 8080}]
",
    );
    mesh.host("api").spawn(async {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", 8080)).await.unwrap();
        loop {
            let _ = listener.accept().await;
        }
    });
    mesh.wait_ready();
    let address = mesh.host("web").address_of("api.shop.svc.cluster.local.");
    println!("{address}");
}
