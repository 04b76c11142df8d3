//! Raw bytes over in-memory pipes, in virtual time. What a client library sees is tested in `http/serve/tests.rs`.
#![allow(clippy::unwrap_used)]

use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
};

use super::*;
use crate::drain::drain;

fn rules() -> Rules {
    Rules {
        head: HeadLimits { bytes: 4096, fields: 16, target_bytes: 1024 },
        chunks: ChunkLimits { extension_bytes: 64, trailers: HeadLimits { bytes: 1024, fields: 8, target_bytes: 0 } },
        requests: 100_000,
        first_byte: Duration::from_secs(10),
        head_time: Duration::from_secs(10),
        idle: Duration::from_secs(300),
        write_stall: Duration::from_secs(30),
        age: Duration::from_secs(3600),
    }
}

fn served<H, F>(handler: H) -> (DuplexStream, JoinHandle<Result<(), Broken>>)
where
    H: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (near, far) = duplex(64 * 1024);
    let (trigger, watch) = drain();
    let task = tokio::spawn(async move {
        let _trigger = trigger;
        serve(far, &rules(), watch, move |request, _| handler(request)).await
    });
    (near, task)
}

/// Method, path and content, so that a test sees what the handler saw.
async fn describe(request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let content = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    Response::new(Body::full(format!("{} {} [{content}]", parts.method, parts.uri.path())))
}

/// Sends everything, then reads until the server closes.
async fn conversation<H, F>(handler: H, said: &[u8]) -> String
where
    H: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (mut io, _task) = served(handler);
    io.write_all(said).await.unwrap();
    let mut heard = String::new();
    io.read_to_string(&mut heard).await.unwrap();
    heard
}

fn bodies(heard: &str) -> Vec<&str> {
    heard.split("HTTP/1.1 ").skip(1).map(|answer| answer.split("\r\n\r\n").nth(1).unwrap_or_default()).collect()
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_order_and_the_last_one_closes() {
    // Answers in another order would go to the wrong requests; a client that reads to the end would wait for ever.
    let said = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n\
        POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\r\n\
        POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n\
        GET /4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /5 HTTP/1.1\r\nhost: a\r\n\r\n";
    let heard = conversation(describe, said).await;
    assert_eq!(bodies(&heard), ["GET /1 []", "POST /2 [abc]", "POST /3 [de]", "GET /4 []"], "{heard}");
    assert_eq!(heard.matches("connection: close").count(), 1, "{heard}");
    assert_eq!(heard.matches("date: ").count(), 4, "{heard}");
}

#[tokio::test(start_paused = true)]
async fn requests_are_the_same_wherever_the_network_cuts_them() {
    // A request in two packets would be read as two.
    let said = b"POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\
        GET /4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    for cut in 1..said.len() {
        let (mut io, _task) = served(describe);
        io.write_all(&said[..cut]).await.unwrap();
        tokio::task::yield_now().await;
        io.write_all(&said[cut..]).await.unwrap();
        let mut heard = String::new();
        io.read_to_string(&mut heard).await.unwrap();
        assert_eq!(bodies(&heard), ["POST /2 [abc]", "GET /4 []"], "{cut}: {heard}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_rule_is_answered_once_and_ends_the_connection() {
    // What follows cannot be trusted: it may be the second half of an attack.
    for (said, status) in [
        ("GET / HTTP/1.1\nhost: a\n\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "400"),
        ("GET / HTTP/3.0\r\nhost: a\r\n\r\n", "505"),
        ("GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
    ] {
        let said = format!("{said}GET /next HTTP/1.1\r\nhost: a\r\n\r\n");
        let heard = conversation(describe, said.as_bytes()).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")) && bodies(&heard).len() == 1, "{heard}");
        assert!(heard.contains("connection: close\r\n") && heard.contains("x-outrigger-error: "), "{heard}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(2000));
    assert!(conversation(describe, long.as_bytes()).await.starts_with("HTTP/1.1 414 "));
    let chunk = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n";
    let (mut io, _task) = served(describe);
    io.write_all(chunk.as_bytes()).await.unwrap();
    let mut heard = String::new();
    io.read_to_string(&mut heard).await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 400 "), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn content_that_nobody_read_never_becomes_a_request() {
    // R16: the rest of a refused upload would be executed as a request of its own.
    let refuse = |_: Request<Body>| async {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        response
    };
    let small = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let heard = conversation(refuse, small.as_bytes()).await;
    assert_eq!(heard.matches("HTTP/1.1 413").count(), 1, "{heard}");

    let (mut io, _task) = served(describe_or_refuse);
    let content = "x".repeat(40_000);
    let first = format!("POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{content}", content.len());
    io.write_all(first.as_bytes()).await.unwrap();
    io.write_all(b"GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut heard = String::new();
    io.read_to_string(&mut heard).await.unwrap();
    assert_eq!(bodies(&heard), ["", "GET /next []"], "what was little is read and dropped: {heard}");
}

async fn describe_or_refuse(request: Request<Body>) -> Response<Body> {
    if request.uri().path() == "/refuse" {
        return Response::new(Body::empty());
    }
    describe(request).await
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_is_asked_for_its_content_only_when_somebody_wants_it() {
    // Uploads would stall, or be sent although they are refused.
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n";
    let (mut io, _task) = served(describe);
    io.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    io.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    io.write_all(b"body").await.unwrap();
    let mut answer = vec![0; 1024];
    let read = io.read(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer[..read]).ends_with("POST / [body]"));

    let heard = conversation(|_| async { Response::new(Body::full("no")) }, head.as_bytes()).await;
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\n") && heard.contains("connection: close"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn answers_fit_what_the_client_speaks() {
    // HTTP/1.0 knows no chunks, HEAD and 204 no content; a reader would wait for it, or take the next answer for it.
    let streamed = |_: Request<Body>| async {
        let (feed, body) = crate::http::body::tests::fed();
        feed.send(crate::http::body::tests::data("abc")).await.unwrap();
        Response::new(body)
    };
    let heard = conversation(streamed, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(heard.ends_with("\r\n\r\nabc") && !heard.contains("chunked"), "{heard}");
    let heard = conversation(streamed, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(
        heard.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n") && heard.contains("transfer-encoding: chunked"),
        "{heard}"
    );
    let known = |_: Request<Body>| async { Response::new(Body::full("abc")) };
    let heard = conversation(known, b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n").await;
    assert_eq!((bodies(&heard), heard.matches("connection: keep-alive").count()), (vec!["abc", "abc"], 1), "{heard}");
    let head = |_: Request<Body>| async {
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("1234"));
        response
    };
    let heard = conversation(head, b"HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(heard.contains("content-length: 1234\r\n") && heard.ends_with("\r\n\r\n"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_never_a_whole_one() {
    // R17: half a file would be taken for the whole.
    let broken = |_: Request<Body>| async {
        let (feed, body) = crate::http::body::tests::fed();
        feed.send(crate::http::body::tests::data("abc")).await.unwrap();
        feed.send(Err(BodyError::TooSlow)).await.unwrap();
        Response::new(body)
    };
    let heard = conversation(broken, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!heard.contains("0\r\n\r\n"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn interim_answers_go_ahead_of_the_final_one() {
    // Early hints would come too late to be of use.
    let hinting = |_request: Request<Body>, Downstream { interim, .. }: Downstream| async move {
        let mut hints = HeaderMap::new();
        hints.insert("link", HeaderValue::from_static("</x>"));
        interim.announce(StatusCode::EARLY_HINTS, &hints);
        interim.announce(StatusCode::CONTINUE, &HeaderMap::new());
        host::sleep(Duration::from_secs(1)).await;
        Response::new(Body::full("x"))
    };
    let converse = async |said: &[u8]| {
        let (mut io, far) = duplex(64 * 1024);
        let (_trigger, watch) = drain();
        tokio::spawn(async move { serve(far, &rules(), watch, hinting).await });
        io.write_all(said).await.unwrap();
        let mut heard = String::new();
        io.read_to_string(&mut heard).await.unwrap();
        heard
    };
    let heard = converse(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n"), "{heard}");
    let heard = converse(b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\n"), "{heard}");
}

/// As [`served`], with what makes room.
fn relieved<H, F>(
    handler: H,
    pipe_bytes: usize,
) -> (DuplexStream, crate::drain::DrainTrigger, JoinHandle<Result<(), Broken>>)
where
    H: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (near, far) = duplex(pipe_bytes);
    let (trigger, watch) = drain();
    let task = tokio::spawn(async move { serve(far, &rules(), watch, move |request, _| handler(request)).await });
    (near, trigger, task)
}

/// Reads until all of it has come.
async fn hear(io: &mut DuplexStream, end: &str) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(end.as_bytes()) {
        assert!(io.read_buf(&mut heard).await.unwrap() > 0, "only {:?} came", String::from_utf8_lossy(&heard));
    }
    String::from_utf8(heard).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_reading_is_cut_and_a_slow_one_is_not() {
    // A few clients that never read would hold their responses in memory for as long as they like.
    let large = |_| async { Response::new(Body::full(vec![b'x'; 1 << 20])) };
    let (mut io, _trigger, task) = relieved(large, 1024);
    let start = host::now();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    for _ in 0..5 {
        host::sleep(Duration::from_secs(29)).await;
        io.read_exact(&mut [0; 1024]).await.unwrap();
    }
    let error = task.await.unwrap().unwrap_err();
    assert!(matches!(&error, Broken::Io(error) if error.kind() == std::io::ErrorKind::TimedOut), "{error}");
    assert_eq!((host::now() - start).as_secs(), 5 * 29 + 30, "no byte was taken for thirty seconds");
}

#[tokio::test(start_paused = true)]
async fn while_others_wait_a_client_that_does_not_read_has_less_time() {
    // As many slow readers as there are places would keep everybody else out for as long as each of them may be slow.
    use crate::drain::Relief;
    let large = |_| async { Response::new(Body::full(vec![b'x'; 1 << 20])) };
    let (mut io, trigger, task) = relieved(large, 1024);
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    host::sleep(Duration::from_secs(10)).await;
    assert!(!task.is_finished());
    trigger.relieve(Relief { idle: Some(Duration::from_secs(1)), small_heads: false });
    let start = host::now();
    task.await.unwrap().unwrap_err();
    assert!(host::now() - start <= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_response_that_comes_slowly_is_not_the_clients_fault() {
    // Long polling and events would end whenever the application is silent.
    let (feed, body) = crate::http::body::tests::fed();
    let body = Mutex::new(Some(body));
    let handler = move |_| {
        let body = body.lock().take().unwrap();
        async { Response::new(body) }
    };
    let (mut io, _trigger, _task) = relieved(handler, 1024);
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    for _ in 0..3 {
        host::sleep(Duration::from_secs(200)).await;
        feed.send(crate::http::body::tests::data("event")).await.unwrap();
        hear(&mut io, "event\r\n").await;
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_make_room_when_asked() {
    // Ten thousand idle clients would keep new ones out for the five minutes that they may be idle.
    use crate::drain::Relief;
    let (mut old, trigger, old_task) = relieved(describe, 1024);
    old.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    hear(&mut old, "[]").await;
    host::sleep(Duration::from_secs(100)).await;
    let watch = trigger.watch();
    let (mut young, far) = duplex(1024);
    let young_task = tokio::spawn(async move { serve(far, &rules(), watch, |request, _| describe(request)).await });
    young.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    hear(&mut young, "[]").await;
    host::sleep(Duration::from_secs(100)).await;
    trigger.relieve(Relief { idle: Some(Duration::from_secs(150)), small_heads: false });
    let mut rest = Vec::new();
    old.read_to_end(&mut rest).await.unwrap();
    old_task.await.unwrap().unwrap();
    assert!(rest.is_empty() && !young_task.is_finished());
    trigger.relieve(Relief::default());
    host::sleep(Duration::from_secs(150)).await;
    young.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    hear(&mut young, "[]").await;
}

#[tokio::test(start_paused = true)]
async fn large_heads_are_refused_while_memory_is_short() {
    // Every connection may hold a head of 64 KiB before anybody has seen a request: ten thousand are more than any sidecar has.
    use crate::drain::Relief;
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n", "x".repeat(5000));
    let served = |relief: Relief| {
        let (near, far) = duplex(64 * 1024);
        let (trigger, watch) = drain();
        trigger.relieve(relief);
        let rules = Rules { head: HeadLimits { bytes: 64 * 1024, fields: 16, target_bytes: 1024 }, ..rules() };
        let task = tokio::spawn(async move {
            let _trigger = trigger;
            serve(far, &rules, watch, |request, _| describe(request)).await
        });
        (near, task)
    };
    let (mut io, task) = served(Relief { idle: None, small_heads: true });
    io.write_all(head.as_bytes()).await.unwrap();
    let mut heard = String::new();
    io.read_to_string(&mut heard).await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 503") && heard.contains("x-outrigger-error: overloaded"), "{heard}");
    assert!(heard.contains("connection: close"), "{heard}");
    assert!(matches!(task.await.unwrap(), Err(Broken::Fault(Fault::NoRoom))));

    let (mut io, _task) = served(Relief { idle: None, small_heads: true });
    io.write_all(b"GET /small HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    hear(&mut io, "GET /small []").await;
    let (mut io, _task) = served(Relief::default());
    io.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    hear(&mut io, "GET / []").await;
}
