//! `Expect: 100-continue` (RFC 9110 §10.1.1).

use super::*;

/// `:status: 100` as it stands in a block.
const CONTINUE: &[u8] = b"\x08\x03100";
const EXPECTING: [(&str, &str); 5] =
    [(":method", "POST"), (":scheme", "http"), (":authority", "a.test"), (":path", "/p"), ("expect", "100-Continue")];

#[tokio::test(start_paused = true)]
async fn who_waits_to_be_asked_for_content_is_asked() {
    // The client would wait for ever, or for its second of patience with every upload.
    let upload = |request: Request<Body>| async {
        let content = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(Body::full(content))
    };
    let mut raw = Raw::with(&limits(), upload).await;
    raw.headers(1, flag::END_HEADERS, &EXPECTING).await;
    let asked = raw.until(kind::HEADERS).await;
    assert_eq!((asked.head.stream, asked.head.has(flag::END_STREAM)), (1, false));
    assert_eq!(asked.payload, CONTINUE);
    raw.send(kind::DATA, flag::END_STREAM, 1, b"content").await;
    let head = raw.until(kind::HEADERS).await;
    assert_eq!(head.payload.first(), Some(&0x88), "once is enough");
    assert_eq!(raw.until(kind::DATA).await.payload, b"content");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_for_what_nobody_wants() {
    // A client that was asked sends all of its content, only to be told that it was refused.
    let refuse = |_: Request<Body>| async {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        response
    };
    let mut raw = Raw::with(&limits(), refuse).await;
    raw.headers(1, flag::END_HEADERS, &EXPECTING).await;
    let head = raw.until(kind::HEADERS).await;
    assert!(head.payload.starts_with(b"\x08\x03413"), "{head:?}");
    assert_eq!(raw.verdict().await, (1, Code::NO_ERROR));

    // Neither is one whose content has come already, or that sends none, or whose message is a tunnel.
    let connect = [(":method", "CONNECT"), (":authority", "a.test:1"), ("expect", "100-continue")];
    for (fields, flags, content) in
        [(&EXPECTING[..], 0, Some(&b"all"[..])), (&EXPECTING, flag::END_STREAM, None), (&connect, 0, None)]
    {
        let mut raw = Raw::with(&limits(), echo).await;
        let block = block(&mut raw.encoder, fields);
        let mut bytes = raw_frame(kind::HEADERS, flag::END_HEADERS | flags, 1, &block);
        if let Some(content) = content {
            bytes.extend(raw_frame(kind::DATA, flag::END_STREAM, 1, content));
        }
        raw.io.write_all(&bytes).await.unwrap();
        assert_eq!(raw.until(kind::HEADERS).await.payload.first(), Some(&0x88), "{fields:?}");
    }
}
