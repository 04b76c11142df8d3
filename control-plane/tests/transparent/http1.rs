//! HTTP/1.1: what clients and servers of it rely on, through two sidecars.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    mesh::http::{collect, connect, exchange, request},
    world,
};

/// A megabyte in which no part looks like another.
pub fn megabyte() -> Bytes {
    let mut random = fastrand::Rng::with_seed(7);
    (0..1 << 20).map(|_| random.u8(..)).collect()
}

/// Reads until `end` has come; panics when the connection ends before.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).await.unwrap();
        assert!(length > 0, "ended after {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_connection_is_kept_and_requests_arrive_as_they_were_sent() {
    // A client that reuses connections would break, or the application would see another request than was sent.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    world.on_web(async move {
        let mut sender = connect(address).await.unwrap();
        for round in 0..20 {
            let mut request = request(Method::POST, "api-v1", &format!("/a%20b?round={round}"), "body");
            request.headers_mut().insert("x-mine", "as it was".parse().unwrap());
            let answer = exchange(&mut sender, request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let seen: Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(
                (&seen["name"], &seen["method"], &seen["version"]),
                (&"api-1".into(), &"POST".into(), &"HTTP/1.1".into())
            );
            assert_eq!((&seen["path"], &seen["body_bytes"]), (&"/a%20b".into(), &4.into()));
            assert_eq!((&seen["headers"]["host"], &seen["headers"]["x-mine"]), (&"api-v1".into(), &"as it was".into()));
        }
    });
}

#[test]
fn bodies_of_a_megabyte_go_both_ways_unchanged() {
    // Uploads and downloads larger than any buffer of the way.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    world.on_web(async move {
        let body = megabyte();
        let mut sender = connect(address).await.unwrap();
        for _ in 0..3 {
            let answer = exchange(&mut sender, request(Method::POST, "api-v1", "/echo", body.clone())).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(*answer.body() == body, "{} bytes came back", answer.body().len());
        }
    });
}

#[test]
fn chunks_and_trailers_go_both_ways() {
    // Streaming clients send and get bodies of unknown length, and trailers at their end.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    world.on_web(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The answer comes while the request is still being sent: nothing on the way waits for the whole body.
        let head = "POST /echo HTTP/1.1\r\nhost: api-v1\r\ntransfer-encoding: chunked\r\nte: trailers\r\ntrailer: x-end\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"5\r\nfirst\r\n").await.unwrap();
        let answer = read_until(&mut stream, "first\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("transfer-encoding: chunked"), "{answer}");
        stream.write_all(b"6\r\nsecond\r\n").await.unwrap();
        assert!(read_until(&mut stream, "second\r\n").await.ends_with("6\r\nsecond\r\n"));
        stream.write_all(b"0\r\nx-end: sent\r\n\r\n").await.unwrap();
        assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "0\r\nx-end: sent\r\n\r\n");
        // And the connection is where it should be: the next request is understood.
        stream.write_all(b"GET /chunks HTTP/1.1\r\nhost: api-v1\r\nte: trailers\r\n\r\n").await.unwrap();
        let answer = read_until(&mut stream, "x-sum: 6\r\n\r\n").await;
        assert!(answer.contains("3\r\none\r\n") && answer.contains("5\r\nthree\r\n"), "{answer}");
    });
}

#[test]
fn answers_without_a_body_have_none() {
    // A body after HEAD or 204, or a missing length, would be read as the start of the next answer.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    world.on_web(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"HEAD / HTTP/1.1\r\nhost: api-v1\r\n\r\n").await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: "), "{head}");
        stream.write_all(b"GET /empty HTTP/1.1\r\nhost: api-v1\r\n\r\n").await.unwrap();
        let empty = read_until(&mut stream, "\r\n\r\n").await;
        assert!(empty.starts_with("HTTP/1.1 204 "), "{empty}");
        assert!(!empty.contains("content-length") && !empty.contains("transfer-encoding"), "{empty}");
        stream.write_all(b"GET /last HTTP/1.1\r\nhost: api-v1\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut last = String::new();
        stream.read_to_string(&mut last).await.unwrap();
        assert!(last.starts_with("HTTP/1.1 200 ") && last.contains(r#""path":"/last""#), "{last}");
    });
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    // curl and many others send large bodies only after it; without it each upload stalls.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    world.on_web(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = "POST / HTTP/1.1\r\nhost: api-v1\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let interim = read_until(&mut stream, "\r\n\r\n").await;
        assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
        stream.write_all(b"body").await.unwrap();
        let answer = read_until(&mut stream, "}").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""body_bytes":4"#), "{answer}");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    // RFC 9112 §9.3.2: a client may send without waiting; answers in another order would go to the wrong requests.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    world.on_web(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut requests = String::new();
        for number in 0..5 {
            let close = if number == 4 { "connection: close\r\n" } else { "" };
            requests += &format!("GET /{number} HTTP/1.1\r\nhost: api-v1\r\n{close}\r\n");
        }
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        let places: Vec<_> = (0..5).map(|number| answers.find(&format!(r#""path":"/{number}""#))).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{answers}");
    });
}

#[test]
fn http_is_found_where_nothing_is_declared() {
    // A port without a telling name must still be carried request by request.
    let Some(world) = world() else { return };
    let address = world.service("found.shop", 8085);
    world.on_web(async move {
        let mut sender = connect(address).await.unwrap();
        let answer = exchange(&mut sender, request(Method::GET, "found:8085", "/", "")).await.unwrap();
        let seen: Value = serde_json::from_slice(answer.body()).unwrap();
        // Only who understands the request could have added this.
        assert!(seen["headers"]["x-forwarded-client-cert"].is_string(), "{seen}");
    });
}

#[test]
fn connect_opens_a_tunnel() {
    // To an application that is a proxy itself, and through the sidecar as the application's forward proxy.
    let Some(world) = world() else { return };
    let tunnel = world.service("tunnel.shop", 80);
    world.on_web(async move {
        let mut stream = TcpStream::connect(tunnel).await.unwrap();
        stream.write_all(b"CONNECT far.example:443 HTTP/1.1\r\nhost: far.example:443\r\n\r\n").await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        stream.write_all(b"anything at all").await.unwrap();
        assert_eq!(read_until(&mut stream, "at all").await, "anything at all");

        let mut stream = TcpStream::connect(crate::loopback(15080)).await.unwrap();
        stream.write_all(b"CONNECT api-v1.shop:80 HTTP/1.1\r\nhost: api-v1.shop:80\r\n\r\n").await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let answer = sender.send_request(request(Method::GET, "api-v1", "/inside", "")).await.unwrap();
        let seen: Value = serde_json::from_slice(collect(answer).await.unwrap().body()).unwrap();
        assert_eq!((&seen["name"], &seen["path"]), (&"api-1".into(), &"/inside".into()));
    });
}
