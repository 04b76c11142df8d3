//! HTTP/2 with prior knowledge, through two sidecars.

use futures_util::future::join_all;
use http::{Method, Request, Version};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::{
    http1::megabyte,
    mesh::http::{collect, connect_http2},
    world,
};

#[test]
fn many_requests_share_a_connection_and_calls_stay_http2() {
    // A client of HTTP/2 multiplexes; an application that needs HTTP/2 must see it.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    world.on_web(async move {
        let sender = connect_http2(address).await.unwrap();
        let asked = (0..50).map(|number| {
            let mut sender = sender.clone();
            async move {
                // Calls of gRPC are HTTP/2 everywhere; the port is declared as plain HTTP, so everything else gets HTTP/1.1.
                let (kind, version) =
                    if number % 2 == 0 { ("application/grpc", "HTTP/2.0") } else { ("text/plain", "HTTP/1.1") };
                let uri = format!("http://api-v1/{number}");
                let request = Request::get(uri).header("content-type", kind).body(Full::default()).unwrap();
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.version(), Version::HTTP_2);
                let seen: Value = serde_json::from_slice(collect(answer).await.unwrap().body()).unwrap();
                assert_eq!((&seen["path"], &seen["version"]), (&format!("/{number}").into(), &version.into()));
            }
        });
        join_all(asked).await;
    });
}

#[test]
fn large_bodies_and_trailers_survive() {
    // Flow control on three connections in a row must neither stall nor lose the end.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    world.on_web(async move {
        let mut sender = connect_http2(address).await.unwrap();
        let body = megabyte();
        let uploads = (0..3).map(|_| {
            let request =
                Request::builder().method(Method::POST).uri("http://api-v1/echo").body(Full::new(body.clone()));
            let (mut sender, body) = (sender.clone(), body.clone());
            async move {
                let answer = collect(sender.send_request(request.unwrap()).await.unwrap()).await.unwrap();
                assert!(*answer.body() == body, "{} bytes came back", answer.body().len());
            }
        });
        join_all(uploads).await;
        let request = Request::get("http://api-v1/chunks").header("te", "trailers").body(Full::default()).unwrap();
        let collected = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-sum"], "6");
        assert_eq!(collected.to_bytes(), "onetwothree");
    });
}
