//! Clients that stop reading one stream. Time is virtual, so it says exactly when something happens.

use super::*;
use crate::drain::Relief;

/// More than the first window of a stream.
const BYTES: usize = 100_000;

/// A client that has been answered as far as its window goes.
async fn paused() -> (Raw, Instant) {
    let large = |_: Request<Body>| async { Response::new(Body::full(vec![b'x'; BYTES])) };
    let mut raw = Raw::with(&limits(), large).await;
    raw.get(1).await;
    let mut came = 0;
    while came < FIRST_WINDOW as usize {
        came += raw.until(kind::DATA).await.payload.len();
    }
    (raw, host::now())
}

/// Answers pings until the stream is reset; when, and why.
async fn answering(raw: &mut Raw) -> (Instant, Code) {
    loop {
        let frame = raw.next().await.expect("closed");
        match frame.head.kind {
            kind::PING if !frame.head.has(flag::ACK) => raw.send(kind::PING, flag::ACK, 0, &frame.payload).await,
            kind::RST_STREAM => return (host::now(), frame.code().unwrap()),
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_may_pause_a_stream() {
    // A consumer that works for a minute through what it has would lose its stream, and with it what is still to come.
    let (mut raw, since) = paused().await;
    let soon = tokio::time::timeout(4 * LIFE.stall.silent, answering(&mut raw));
    assert!(soon.await.is_err(), "it was cut");
    raw.send(kind::WINDOW_UPDATE, 0, 1, &100_000_u32.to_be_bytes()).await;
    raw.send(kind::WINDOW_UPDATE, 0, 0, &100_000_u32.to_be_bytes()).await;
    let mut came = FIRST_WINDOW as usize;
    loop {
        let frame = raw.until(kind::DATA).await;
        came += frame.payload.len();
        if frame.head.has(flag::END_STREAM) {
            break;
        }
    }
    assert_eq!(came, BYTES);
    assert!(host::now() >= since + 4 * LIFE.stall.silent);
}

#[tokio::test(start_paused = true)]
async fn but_not_for_ever() {
    // Each paused stream holds a place, and a connection to the application.
    let (mut raw, since) = paused().await;
    let (ended, code) = answering(&mut raw).await;
    assert_eq!((ended - since, code), (LIFE.stall.alive, Code::CANCEL));
    raw.get(3).await;
    assert_eq!(raw.until(kind::HEADERS).await.head.stream, 3, "the connection goes on");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_not_waited_for_that_long() {
    let (mut raw, since) = paused().await;
    let asked = raw.until(kind::PING).await;
    assert!(!asked.head.has(flag::ACK));
    assert_eq!(host::now() - since, LIFE.stall.silent / 2);
    assert_eq!(raw.verdict().await, (1, Code::CANCEL));
    assert_eq!(host::now() - since, LIFE.stall.silent);
}

#[tokio::test(start_paused = true)]
async fn nor_is_anybody_while_places_are_short() {
    // Whoever opens streams and holds them would keep everybody else out.
    let (mut raw, since) = paused().await;
    let early = tokio::time::timeout(LIFE.stall.silent * 2, answering(&mut raw));
    assert!(early.await.is_err());
    let short = host::now();
    raw.drain.relieve(Relief { idle: Some(Duration::from_secs(1)), small_heads: false });
    let (ended, _) = answering(&mut raw).await;
    assert_eq!((ended, ended > since), (short, true), "it has waited longer than a tenth already");
}
