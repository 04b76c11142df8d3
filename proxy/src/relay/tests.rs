use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

const LIMITS: RelayLimits =
    RelayLimits { buffer_bytes: 256 * 1024, idle: Duration::from_secs(300), half_close: Duration::from_secs(3600) };

/// How a relay ended, and what it counted.
type Ended = (Result<(), RelayError>, u64, u64);

/// Two ends with a running relay between them.
fn joined(limits: RelayLimits, pipe_bytes: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<Ended>) {
    let (near, a) = duplex(pipe_bytes);
    let (far, b) = duplex(pipe_bytes);
    let task = tokio::spawn(async move {
        let counts = Counts::default();
        let result = relay(a, b, limits, &counts).await;
        (result, counts.a_to_b.into_inner(), counts.b_to_a.into_inner())
    });
    (near, far, task)
}

#[tokio::test(start_paused = true)]
async fn each_direction_ends_by_itself() {
    // A client that closes its side after the question would never get the answer.
    let (mut near, mut far, task) = joined(LIMITS, 1024);
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = String::new();
    far.read_to_string(&mut question).await.unwrap();
    // Long after the idle limit for open connections.
    tokio::time::sleep(LIMITS.idle * 3).await;
    far.write_all(b"long answer").await.unwrap();
    far.shutdown().await.unwrap();
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    assert_eq!((&*question, &*answer), ("question", "long answer"));
    let (result, there, back) = task.await.unwrap();
    result.unwrap();
    assert_eq!((there, back), (8, 11));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_relay_and_a_byte_prolongs_it() {
    // Dead connections would be kept for ever, or quiet ones cut.
    let start = host::now();
    let (mut near, mut far, task) = joined(LIMITS, 1024);
    for _ in 0..3 {
        tokio::time::sleep(LIMITS.idle - Duration::from_secs(1)).await;
        far.write_all(b"x").await.unwrap();
        near.read_u8().await.unwrap();
    }
    let (result, _, _) = task.await.unwrap();
    assert!(matches!(result, Err(RelayError::Idle(limit)) if limit == LIMITS.idle));
    assert_eq!(host::now() - start, LIMITS.idle * 4 - Duration::from_secs(3));
    assert!(matches!(near.read(&mut [0]).await, Ok(0)));
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_relay_has_its_own_limit() {
    // Half-closed connections would be kept for ever.
    let start = host::now();
    let (mut near, _far, task) = joined(LIMITS, 1024);
    near.shutdown().await.unwrap();
    let (result, _, _) = task.await.unwrap();
    assert!(matches!(result, Err(RelayError::Idle(limit)) if limit == LIMITS.half_close));
    assert_eq!(host::now() - start, LIMITS.half_close);
}

#[tokio::test(start_paused = true)]
async fn no_limit_means_none() {
    // Zero would end every connection at once.
    let limits = RelayLimits { idle: Duration::ZERO, half_close: Duration::ZERO, ..LIMITS };
    let (mut near, mut far, task) = joined(limits, 1024);
    tokio::time::sleep(Duration::from_secs(1_000_000)).await;
    near.write_all(b"x").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
    drop((near, far));
    task.await.unwrap().0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_stops_the_writer() {
    // One slow client would fill the proxy's memory.
    let (mut near, far, task) = joined(LIMITS, 1024);
    let bytes = vec![1; 1 << 20];
    let all = tokio::time::timeout(Duration::from_secs(1), near.write_all(&bytes)).await;
    assert!(all.is_err());
    drop(far);
    let (result, there, _) = task.await.unwrap();
    assert!(matches!(result, Err(RelayError::B(_))));
    assert!(there <= 1024);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]
    #[test]
    fn every_byte_arrives_in_order(
        there in 0usize..300_000,
        back in 0usize..300_000,
        pipe_bytes in 1usize..100_000,
        buffer_bytes in 0usize..100_000,
    ) {
        // Transferred data would be damaged, depending on sizes.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let limits = RelayLimits { buffer_bytes, ..LIMITS };
            let (near, far, task) = joined(limits, pipe_bytes.max(256));
            let sample = |length: usize| (0..length).map(|at| (at % 251) as u8).collect::<Vec<_>>();
            let end = |io: DuplexStream, sent: Vec<u8>| async move {
                let (mut reader, mut writer) = tokio::io::split(io);
                let mut got = Vec::new();
                let write = async {
                    writer.write_all(&sent).await.unwrap();
                    writer.shutdown().await.unwrap();
                };
                let (_, read) = tokio::join!(write, reader.read_to_end(&mut got));
                read.unwrap();
                got
            };
            let (at_near, at_far) = tokio::join!(end(near, sample(there)), end(far, sample(back)));
            assert!(at_near == sample(back) && at_far == sample(there));
            let (result, counted_there, counted_back) = task.await.unwrap();
            result.unwrap();
            assert_eq!((counted_there, counted_back), (there as u64, back as u64));
        });
    }
}
