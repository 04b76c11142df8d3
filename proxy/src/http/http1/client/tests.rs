//! Connections over in-memory pipes, with a raw server at the other end, in virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use http::{HeaderMap, uri::PathAndQuery};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::http::{
    body::tests::{data, fed},
    http1::write::Target,
};

const RULES: Rules = Rules {
    head: HeadLimits { bytes: 4096, fields: 16, target_bytes: 1024 },
    chunks: ChunkLimits { extension_bytes: 64, trailers: HeadLimits { bytes: 1024, fields: 8, target_bytes: 0 } },
    interim: 3,
};

fn connected() -> (Connection<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(64 * 1024);
    (Connection::new(near, RULES), far)
}

fn ask(connection: &Connection<DuplexStream>, method: &Method, body: Body) -> Answering<DuplexStream> {
    ask_for(connection, method, body, None)
}

fn ask_for(
    connection: &Connection<DuplexStream>,
    method: &Method,
    body: Body,
    upgrade: Option<&http::HeaderValue>,
) -> Answering<DuplexStream> {
    let (path, host) = (PathAndQuery::from_static("/x"), "a.test".parse().unwrap());
    let headers = HeaderMap::new();
    let request = Outgoing { method, target: Target::Origin(&path), host: &host, headers: &headers, own: &[], upgrade };
    connection.send(&request, body, None)
}

/// Reads until the text has come.
async fn heard(io: &mut DuplexStream, until: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(until.as_bytes()) {
        text.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_connection_carries_many_exchanges() {
    // A connection for each request would cost a handshake each time.
    let (connection, mut far) = connected();
    let server = tokio::spawn(async move {
        for (request, response) in [
            ("GET /x HTTP/1.1\r\nhost: a.test\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"),
            (
                "POST /x HTTP/1.1\r\nhost: a.test\r\ncontent-length: 3\r\n\r\nabc",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x\r\nh\r\n1\r\ni\r\n0\r\nt: v\r\n\r\n",
            ),
            ("PUT /x HTTP/1.1\r\nhost: a.test\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"),
            ("HEAD /x HTTP/1.1\r\nhost: a.test\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"),
        ] {
            assert_eq!(heard(&mut far, &request[request.len() - 8..]).await, request);
            // In pieces: what is read must not depend on how the network cut it.
            for byte in response.as_bytes() {
                far.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        far
    });
    for (method, body, expected) in [("GET", "", "hi"), ("POST", "abc", "hi"), ("PUT", "", ""), ("HEAD", "", "")] {
        assert!(connection.is_ready());
        let response = ask(&connection, &method.parse().unwrap(), Body::full(body)).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().is_some(), method == "POST");
        assert_eq!(collected.to_bytes(), expected, "{method}");
    }
    assert!(connection.is_ready());
    drop(server.await.unwrap());
    assert!(!connection.is_ready(), "the far side has closed");
}

#[tokio::test(start_paused = true)]
async fn uploads_stream_in_chunks_with_their_trailers() {
    // A stream of unknown length would have to be kept until its end.
    let (connection, mut far) = connected();
    let (feed, body) = fed();
    let answering = tokio::spawn(ask(&connection, &Method::POST, body));
    assert!(heard(&mut far, "\r\n\r\n").await.contains("transfer-encoding: chunked"));
    feed.send(data("hello")).await.unwrap();
    assert_eq!(heard(&mut far, "hello\r\n").await, "5\r\nhello\r\n");
    let mut trailers = HeaderMap::new();
    trailers.insert("t", "v".parse().unwrap());
    feed.send(Ok(Frame::trailers(trailers))).await.unwrap();
    assert_eq!(heard(&mut far, "\r\n\r\n").await, "0\r\nt: v\r\n\r\n");
    far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert_eq!(answering.await.unwrap().unwrap().status(), StatusCode::OK);
    assert!(connection.is_ready());
}

#[tokio::test(start_paused = true)]
async fn hostile_answers_are_failures_and_end_the_connection() {
    // What a broken or hostile endpoint says would reach a client as something else, or the next client altogether.
    for (id, method, said, fault) in [
        ("R01", "GET", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "Framing"),
        ("R02", "GET", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "ContentLength"),
        ("R03", "GET", "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n", "ContentLength"),
        (
            "R04",
            "GET",
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 A\r\n\r\nHTTP/1.1 102 B\r\n\r\n",
            "TooManyInterim",
        ),
        ("R05", "GET", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "UnaskedSwitch"),
        ("R10", "GET", &format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(5000)), "HeadTooLong"),
        ("bare line feed", "GET", "HTTP/1.1 200 OK\ncontent-length: 0\n\n", "BareLineFeed"),
        ("HTTP/1.0 chunked", "GET", "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "TransferEncoding"),
    ] {
        let (connection, mut far) = connected();
        let answering = ask(&connection, &method.parse().unwrap(), Body::empty());
        far.write_all(said.as_bytes()).await.unwrap();
        let unanswered = answering.await.unwrap_err();
        let Broken::Fault(found) = unanswered.broken else { panic!("{id}: {:?}", unanswered.broken) };
        assert!(format!("{found:?}").starts_with(fault), "{id}: {found:?}");
        assert!(!unanswered.untouched && !connection.is_ready(), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_behind_an_answer_never_reach_the_next_request() {
    // R07, R08: a second answer on the connection would be given to somebody else.
    for said in [
        "HTTP/1.1 204 No Content\r\n\r\nextra",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\nextra",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    ] {
        let (connection, mut far) = connected();
        let answering = ask(&connection, &Method::GET, Body::empty());
        far.write_all(said.as_bytes()).await.unwrap();
        answering.await.unwrap().into_body().collect().await.unwrap();
        assert!(!connection.is_ready(), "{said}");
    }
    let (connection, mut far) = connected();
    let answering = ask(&connection, &Method::GET, Body::empty());
    far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    answering.await.unwrap();
    assert!(connection.is_ready());
    far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").await.unwrap();
    assert!(!connection.is_ready(), "something came unasked");
}

#[tokio::test(start_paused = true)]
async fn a_broken_answer_is_seen_as_broken() {
    // R17: half a file would be taken for the whole.
    for said in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloX",
    ] {
        let (connection, mut far) = connected();
        let answering = ask(&connection, &Method::GET, Body::empty());
        far.write_all(said.as_bytes()).await.unwrap();
        drop(far);
        assert!(answering.await.unwrap().into_body().collect().await.is_err(), "{said}");
        assert!(!connection.is_ready(), "{said}");
    }
    // Without a length the end of the connection is the end of the answer.
    let (connection, mut far) = connected();
    let answering = ask(&connection, &Method::GET, Body::empty());
    far.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await.unwrap();
    drop(far);
    assert_eq!(answering.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "hello");
    assert!(!connection.is_ready());
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_is_passed_on_and_the_connection_ends() {
    // R16: an upload that was refused would hang, or its rest be read as the next request.
    let (connection, mut far) = connected();
    let (feed, body) = fed();
    let answering = ask(&connection, &Method::POST, body);
    feed.send(data("first")).await.unwrap();
    far.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig").await.unwrap();
    let response = answering.await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "big");
    assert!(!connection.is_ready());
    tokio::time::timeout(Duration::from_secs(1), feed.closed()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_is_known_whether_anything_left() {
    // A POST would be repeated although it may have been processed, or not although it cannot have been.
    let (connection, far) = connected();
    drop(far);
    let unanswered = ask(&connection, &Method::POST, Body::full("x")).await.unwrap_err();
    assert!(unanswered.untouched);

    let (connection, mut far) = connected();
    let answering = tokio::spawn(ask(&connection, &Method::POST, Body::full("x")));
    heard(&mut far, "\r\n\r\nx").await;
    drop(far);
    assert!(!answering.await.unwrap().unwrap_err().untouched);

    let (connection, _far) = connected();
    let (feed, body) = fed();
    feed.send(Err(BodyError::TooSlow)).await.unwrap();
    let unanswered = ask(&connection, &Method::POST, body).await.unwrap_err();
    assert!(unanswered.upload_failed && !connection.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_ends_the_connection() {
    // Its answer would be taken for that of the next request.
    let (connection, _far) = connected();
    let mut answering = Box::pin(ask(&connection, &Method::GET, Body::empty()));
    assert!(std::future::poll_fn(|cx| Poll::Ready(answering.as_mut().poll(cx).is_pending())).await);
    drop(answering);
    assert!(!connection.is_ready());

    let (connection, _) = connected();
    drop(ask(&connection, &Method::GET, Body::empty()));
    assert!(!connection.is_ready());

    let (connection, mut far) = connected();
    let answering = ask(&connection, &Method::GET, Body::empty());
    far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello").await.unwrap();
    drop(answering.await.unwrap());
    assert!(!connection.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_leaves_http_keeps_what_came_behind_the_head() {
    // The first words of a WebSocket server often come in the packet of its agreement.
    let (connection, mut far) = connected();
    let protocol = http::HeaderValue::from_static("websocket");
    let answering = ask_for(&connection, &Method::GET, Body::empty(), Some(&protocol));
    far.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\nwelcome").await.unwrap();
    assert_eq!(answering.await.unwrap().status(), StatusCode::SWITCHING_PROTOCOLS);
    assert!(!connection.is_ready());
    let mut stream = connection.part().unwrap();
    assert!(connection.part().is_none());
    let mut first = [0; 7];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"welcome");
    stream.write_all(b"x").await.unwrap();
    assert!(heard(&mut far, "\r\n\r\nx").await.contains("upgrade: websocket\r\n"));
}
