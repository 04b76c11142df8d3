//! What connections hold, and what they do when there is no memory for it.

use super::*;
use crate::{drain::Relief, resilience::growth::Growth};

const SHORT: Relief = Relief { idle: None, small_heads: true };

/// A client of a server with an account of its own.
async fn with_memory<H, F>(account: &'static Growth, handler: H) -> Raw
where
    H: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (near, far) = duplex(1 << 20);
    let (drain, watch) = drain();
    let mut rules = Rules::new(&Limits::default(), 100);
    rules.memory = account;
    let task = tokio::spawn(async move {
        serve(far, rules, LIFE, watch, move |request, _| handler(request), |_| {}, |_| {}).await
    });
    let mut raw = Raw { io: near, received: BytesMut::new(), encoder: Encoder::default(), task, drain };
    raw.io.write_all(PREFACE).await.unwrap();
    raw.send(kind::SETTINGS, 0, 0, &[]).await;
    raw
}

/// Everything that comes before the answer to a ping.
async fn so_far(raw: &mut Raw) -> Vec<Frame> {
    raw.send(kind::PING, 0, 0, b"so far ?").await;
    let mut frames = Vec::new();
    loop {
        let frame = raw.next().await.expect("closed");
        if frame.payload == b"so far ?" {
            return frames;
        }
        frames.push(frame);
    }
}

fn says_goodbye(frames: &[Frame]) -> bool {
    frames.iter().any(|frame| frame.head.kind == kind::GOAWAY)
}

#[tokio::test(start_paused = true)]
async fn who_asks_while_memory_is_short_is_sent_elsewhere() {
    // HTTP/1 closes behind a refusal; a client of HTTP/2 would go on asking the one sidecar that has no memory.
    let mut raw = Raw::echo().await;
    raw.drain.relieve(SHORT);
    raw.get(1).await;
    raw.until(kind::HEADERS).await;
    assert!(!says_goodbye(&so_far(&mut raw).await), "it has only just come");
    raw.drain.relieve(Relief::default());
    host::sleep(2 * SETTLED).await;
    raw.drain.relieve(SHORT);
    assert!(!says_goodbye(&so_far(&mut raw).await), "it asks for nothing");
    raw.get(3).await;
    assert_eq!(raw.until(kind::GOAWAY).await.code(), Some(Code::NO_ERROR));
    // What it sent before it knew is still answered.
    raw.get(5).await;
    assert_eq!(raw.until(kind::HEADERS).await.head.stream, 3);
    assert_eq!(raw.until(kind::HEADERS).await.head.stream, 5);
    raw.task.await.unwrap().unwrap();
}

/// Credit for the connection in these frames.
fn credit(frames: &[Frame]) -> u64 {
    let updates = frames.iter().filter(|frame| frame.head.kind == kind::WINDOW_UPDATE && frame.head.stream == 0);
    updates.map(|frame| u64::from(u32::from_be_bytes(frame.payload[..].try_into().unwrap()))).sum()
}

#[tokio::test(start_paused = true)]
async fn uploads_that_nobody_takes_hold_no_more_than_there_is() {
    // Each connection could fill the window that a sidecar with much memory promises, 16 MiB, and the process be killed.
    static ACCOUNT: Growth = Growth::unbounded();
    const LIMIT: usize = 400_000;
    ACCOUNT.set_limit(LIMIT);
    let mut all = Vec::new();
    let mut promised = 0;
    for _ in 0..4 {
        let mut raw = with_memory(&ACCOUNT, |request: Request<Body>| async move {
            host::sleep(FAR).await;
            Response::new(request.into_body())
        })
        .await;
        let mut window = u64::from(FIRST_WINDOW) + credit(&so_far(&mut raw).await);
        let mut sent = 0;
        for stream in (1..60).step_by(2) {
            raw.headers(stream, flag::END_HEADERS, &POST).await;
            for _ in 0..6 {
                let piece = (window - sent).min(10_000);
                raw.send(kind::DATA, 0, stream, &vec![b'x'; usize::try_from(piece).unwrap()]).await;
                sent += piece;
                window += credit(&so_far(&mut raw).await);
            }
            if sent == window {
                break;
            }
        }
        assert_eq!(sent, window, "all that was promised was used");
        promised += window;
        assert!(ACCOUNT.held() <= LIMIT);
        all.push(raw);
    }
    let most = u64::from(FIRST_WINDOW) * 4 + LIMIT as u64;
    assert!(promised <= most && promised > most - 2 * u64::from(FIRST_WINDOW) * 4, "{promised} of {most}");
    for raw in all {
        raw.task.abort();
        let _ = raw.task.await;
    }
    assert_eq!(ACCOUNT.held(), 0, "what is not given back is lost for the life of the process");
}

#[tokio::test(start_paused = true)]
async fn without_memory_to_spare_everything_goes_on_in_small_pieces() {
    // A shortage that lasts would otherwise be a standstill.
    static ACCOUNT: Growth = Growth::unbounded();
    ACCOUNT.set_limit(0);
    const BYTES: u32 = 300_000;
    let mut raw = with_memory(&ACCOUNT, echo).await;
    let mut window = u64::from(FIRST_WINDOW) + credit(&so_far(&mut raw).await);
    assert_eq!(window, u64::from(FIRST_WINDOW));
    // The client takes whatever comes.
    raw.send(kind::WINDOW_UPDATE, 0, 0, &BYTES.to_be_bytes()).await;
    raw.headers(1, flag::END_HEADERS, &POST).await;
    raw.send(kind::WINDOW_UPDATE, 0, 1, &BYTES.to_be_bytes()).await;
    let (mut sent, mut came) = (0, 0);
    while sent < u64::from(BYTES) {
        let piece = (window - sent).min(10_000).min(u64::from(BYTES) - sent);
        sent += piece;
        let end = if sent == u64::from(BYTES) { flag::END_STREAM } else { 0 };
        raw.send(kind::DATA, end, 1, &vec![b'x'; usize::try_from(piece).unwrap()]).await;
        let frames = so_far(&mut raw).await;
        window += credit(&frames);
        came += content(&frames);
    }
    while came < BYTES as usize {
        came += content(&so_far(&mut raw).await);
    }
    assert_eq!((came, ACCOUNT.held()), (BYTES as usize, 0));
}

fn content(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| frame.head.kind == kind::DATA).map(|frame| frame.payload.len()).sum()
}

#[tokio::test(start_paused = true)]
async fn what_is_lent_to_one_connection_goes_to_another_when_it_is_short() {
    // The first connection that ever moved much would keep its windows for as long as it lives.
    static ACCOUNT: Growth = Growth::unbounded();
    ACCOUNT.set_limit(1 << 20);
    let mut raw = with_memory(&ACCOUNT, |request: Request<Body>| async move {
        let _ = request.into_body().collect().await;
        Response::new(Body::empty())
    })
    .await;
    let mut window = u64::from(FIRST_WINDOW) + credit(&so_far(&mut raw).await);
    let mut sent = 0;
    let mut highest = 0;
    raw.headers(1, flag::END_HEADERS, &POST).await;
    for turn in 0..400 {
        if turn == 200 {
            highest = ACCOUNT.held();
            ACCOUNT.set_limit(highest);
        }
        let piece = (window - sent).min(10_000);
        assert!(piece > 0, "it stands still in turn {turn}");
        raw.send(kind::DATA, 0, 1, &vec![b'x'; usize::try_from(piece).unwrap()]).await;
        sent += piece;
        window += credit(&so_far(&mut raw).await);
    }
    assert!(highest > 200_000, "{highest}: a fast upload gets a large window");
    assert!(ACCOUNT.held() <= highest / 4 * 3, "{} of {highest}", ACCOUNT.held());
}
