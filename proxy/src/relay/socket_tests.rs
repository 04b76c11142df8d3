//! Relays between real sockets, where bytes go through a pipe. Each test has a thread, and so pipes, of its own.

use socket2::SockRef;
use tokio::{
    io::{AsyncWriteExt, split},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;
use crate::detect::Rewound;

const LIMITS: RelayLimits =
    RelayLimits { buffer_bytes: 256 * 1024, idle: Duration::from_secs(300), half_close: Duration::from_secs(3600) };

/// How a relay ended, and what it counted.
type Ended = (Result<(), RelayError>, u64, u64);

async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (out, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (out.unwrap(), accepted.unwrap().0)
}

/// Two ends with a running relay between them; `first` has been read from the near end already.
async fn joined(limits: RelayLimits, first: &'static [u8]) -> (TcpStream, TcpStream, JoinHandle<Ended>) {
    let (near, a) = connection().await;
    let (far, b) = connection().await;
    let task = tokio::spawn(async move {
        let counts = Counts::default();
        let mut a = Rewound::with(a, first.into());
        let result = relay_sockets(&mut a, b, limits, &counts).await;
        (result, counts.a_to_b.into_inner(), counts.b_to_a.into_inner())
    });
    (near, far, task)
}

/// Bytes that tell their place.
fn sample(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| ((at * 31 + seed) % 251) as u8).collect()
}

/// Writes all of it, ends, and reads to the end meanwhile.
async fn exchange(io: TcpStream, send: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = split(io);
    let mut got = Vec::new();
    let write = async {
        writer.write_all(send).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut got));
    read.unwrap();
    got
}

#[tokio::test]
async fn both_directions_at_once_arrive_whole_and_counted() {
    // Large transfers would lose, mix up or miscount bytes; with bytes that were looked at first, and with the smallest pipe as well.
    for (limits, bytes) in [(LIMITS, 24 << 20), (RelayLimits { buffer_bytes: 1000, ..LIMITS }, 1 << 20)] {
        let (near, far, task) = joined(limits, b"looked at").await;
        let (there, back) = (sample(bytes, 1), sample(bytes / 2, 2));
        let (at_near, at_far) = tokio::join!(exchange(near, &there), exchange(far, &back));
        assert!(at_near == back, "{} bytes came back", at_near.len());
        assert!(at_far.strip_prefix(b"looked at").unwrap() == there, "{} bytes arrived", at_far.len());
        let (result, counted_there, counted_back) = task.await.unwrap();
        result.unwrap();
        assert_eq!((counted_there, counted_back), (there.len() as u64 + 9, back.len() as u64));
    }
    assert!(pipe::spare() > 0, "nothing went through a pipe");
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    // An upload would end with the download, or the other way round.
    for near_first in [true, false] {
        let (near, far, task) = joined(LIMITS, b"").await;
        let (mut first, mut second) = if near_first { (near, far) } else { (far, near) };
        let bytes = sample(4 << 20, 3);
        let write = async {
            first.write_all(&bytes).await.unwrap();
            first.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(write, second.read_to_end(&mut got));
        read.unwrap();
        assert!(got == bytes);
        // The half that is left carries as much.
        got.clear();
        let write = async {
            second.write_all(&bytes).await.unwrap();
            second.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(write, first.read_to_end(&mut got));
        read.unwrap();
        assert!(got == bytes);
        let (result, there, back) = task.await.unwrap();
        result.unwrap();
        assert_eq!((there, back), (bytes.len() as u64, bytes.len() as u64));
    }
}

#[tokio::test]
async fn a_silent_relay_holds_no_pipe() {
    // Every quiet database connection would cost four descriptors for ever.
    let (mut near, mut far, task) = joined(LIMITS, b"").await;
    let bytes = sample(1 << 20, 4);
    let mut got = vec![0; bytes.len()];
    for round in 1..=3 {
        let (write, read) = tokio::join!(near.write_all(&bytes), far.read_exact(&mut got));
        write.unwrap();
        read.unwrap();
        assert!(got == bytes);
        let (write, read) = tokio::join!(far.write_all(&bytes), near.read_exact(&mut got));
        write.unwrap();
        read.unwrap();
        assert!(got == bytes);
        // The relay has had its turn once a byte has come through after the burst, and both directions rest then.
        for _ in 0..2 {
            near.write_all(b".").await.unwrap();
            far.read_exact(&mut got[..1]).await.unwrap();
            far.write_all(b".").await.unwrap();
            near.read_exact(&mut got[..1]).await.unwrap();
        }
        tokio::task::yield_now().await;
        assert!((1..=2).contains(&pipe::spare()), "{} pipes in reserve in round {round}", pipe::spare());
    }
    drop((near, far));
    task.await.unwrap().0.unwrap();
}

#[tokio::test]
async fn little_is_copied() {
    // A pipe for every short connection would cost more than it saves.
    let (near, far, task) = joined(LIMITS, b"").await;
    let (at_near, at_far) = tokio::join!(exchange(near, b"question"), exchange(far, b"answer"));
    assert_eq!((&*at_near, &*at_far), (&b"answer"[..], &b"question"[..]));
    task.await.unwrap().0.unwrap();
    assert_eq!(pipe::spare(), 0);
}

#[tokio::test]
async fn what_is_not_a_bare_socket_is_copied() {
    // TLS records would leave the proxy undeciphered, or a tunnel's bytes skip what holds them.
    let (near, a) = connection().await;
    let (far, b) = connection().await;
    let task = tokio::spawn(async move {
        let a: Box<dyn Stream> = Box::new(a);
        relay_sockets(a, b, LIMITS, &Counts::default()).await
    });
    let bytes = sample(4 << 20, 5);
    let (at_near, at_far) = tokio::join!(exchange(near, &bytes), exchange(far, b""));
    assert!(at_near.is_empty() && at_far == bytes);
    task.await.unwrap().unwrap();
    assert_eq!(pipe::spare(), 0);
}

#[tokio::test]
async fn urgent_data_is_not_the_end() {
    // The kernel answers a splice before urgent data as at the end of the connection: the rest would be cut off.
    let (mut near, mut far, task) = joined(LIMITS, b"").await;
    let bytes = sample(2 << 20, 6);
    let read = tokio::spawn(async move {
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.map(|_| got)
    });
    near.write_all(&bytes[..1 << 20]).await.unwrap();
    SockRef::from(&near).send_out_of_band(b"!").unwrap();
    near.write_all(&bytes[1 << 20..]).await.unwrap();
    near.shutdown().await.unwrap();
    let got = read.await.unwrap().unwrap();
    assert!(got == bytes, "{} bytes arrived", got.len());
    task.await.unwrap().0.unwrap();
}

#[tokio::test]
async fn a_reset_ends_the_relay_with_its_side() {
    // The other side would take an aborted transfer for a whole one, and the record blame the wrong side.
    for near_resets in [true, false] {
        let (near, far, task) = joined(LIMITS, b"").await;
        let (resets, mut writes) = if near_resets { (near, far) } else { (far, near) };
        let bytes = sample(64 << 20, 7);
        // Nobody reads: what is under way fills the pipe.
        let writing = tokio::time::timeout(Duration::from_millis(200), writes.write_all(&bytes)).await;
        assert!(writing.is_err(), "everything was taken in without a reader");
        reset_on_close(&resets);
        drop(resets);
        let (result, there, back) = task.await.unwrap();
        let error = result.unwrap_err();
        let expected = if near_resets { Reason::DownstreamClosed } else { Reason::UpstreamReset };
        assert_eq!(error.reason(), expected, "{error}");
        assert!(there + back < bytes.len() as u64);
        assert_eq!(pipe::spare(), 0, "a pipe with bytes of an ended connection was kept");
    }
}

#[tokio::test]
async fn silence_ends_a_relay_in_the_middle_of_a_transfer() {
    // A reader that vanished would hold sockets, pipe and the bytes in it for ever.
    let limits = RelayLimits { idle: Duration::from_millis(50), ..LIMITS };
    let (mut near, far, task) = joined(limits, b"").await;
    let bytes = sample(64 << 20, 8);
    let _ = near.write_all(&bytes).await;
    let (result, there, back) = task.await.unwrap();
    assert!(matches!(result, Err(RelayError::Idle(limit)) if limit == limits.idle));
    assert!(there > 0 && there < bytes.len() as u64 && back == 0);
    drop(far);
}

#[tokio::test]
async fn a_dropped_relay_closes_both_ends() {
    // Draining would leave connections open whose relay is gone.
    let (mut near, mut far, task) = joined(LIMITS, b"").await;
    let bytes = sample(1 << 20, 9);
    let mut got = vec![0; 1 << 10];
    let (_, read) = tokio::join!(near.write_all(&bytes), far.read_exact(&mut got));
    read.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    // An end or a reset, depending on what was still under way.
    let mut rest = Vec::new();
    let _ = far.read_to_end(&mut rest).await;
    assert!(!matches!(near.read(&mut got).await, Ok(1..)));
}
