//! Opaque bytes both ways.
//!
//! Called by the journeys for connections that are not HTTP, and by `http/upgrade.rs` for those that no longer are. Passes the end of
//! each direction on by itself (half-close), counts, and ends what stays silent. Memory: nothing while a direction is silent, 16 KiB while
//! it moves, up to 64 KiB while it moves fast.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::TcpStream,
};

use crate::accept::socket::reset_on_close;
use crate::failure::Reason;
use crate::host::{self, Stream};
use crate::resilience::growth::Grown;

/// What bounds a relay.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// Most bytes held per direction; more than 64 KiB are never used.
    pub buffer_bytes: usize,
    /// Longest time without a byte in either direction while both are open; zero: no limit.
    pub idle: Duration,
    /// The same once one direction has ended; zero: no limit.
    pub half_close: Duration,
}

/// Bytes carried; may be read while the relay runs.
#[derive(Debug, Default)]
pub struct Counts {
    pub a_to_b: AtomicU64,
    pub b_to_a: AtomicU64,
}

/// Why a relay ended early.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// Reading from or writing to the first stream failed.
    #[error("first side: {0}")]
    A(#[source] io::Error),
    /// Reading from or writing to the second stream failed.
    #[error("second side: {0}")]
    B(#[source] io::Error),
    #[error("no byte in either direction for {0:?}")]
    Idle(Duration),
}

impl RelayError {
    /// Whose end it was, where `a` is downstream.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::A(_) => Reason::DownstreamClosed,
            Self::B(_) => Reason::UpstreamReset,
            Self::Idle(_) => Reason::RequestTimeout,
        }
    }
}

/// Passes a failure of one side on to the other, as the reset that it would have been without us in between: an orderly
/// end would make a reply that broke off look complete. `a` is `None` where there is no connection of its own.
pub fn pass_on(error: &RelayError, a: Option<&TcpStream>, b: Option<&TcpStream>) {
    let other = match error {
        RelayError::A(_) => b,
        RelayError::B(_) => a,
        RelayError::Idle(_) => None,
    };
    if let Some(other) = other {
        reset_on_close(other);
    }
}

/// Carries bytes until both directions have ended. Dropping the future closes both streams at once.
///
/// # Errors
/// [`RelayError`]; both streams are closed then. What had been read is written before an orderly end, not before an error.
pub async fn relay<A: Stream, B: Stream>(
    mut a: A,
    mut b: B,
    limits: RelayLimits,
    counts: &Counts,
) -> Result<(), RelayError> {
    let mut there = Direction::new(limits.buffer_bytes);
    let mut back = Direction::new(limits.buffer_bytes);
    let mut limit = limits.idle;
    let mut last_byte = host::now();
    let mut timer = pin!(host::sleep(limit));
    poll_fn(|cx| {
        let moved = there.moved + back.moved;
        let there_done = there.poll(cx, &mut a, &mut b, &counts.a_to_b).map_err(Failed::forward)?.is_ready();
        let back_done = back.poll(cx, &mut b, &mut a, &counts.b_to_a).map_err(Failed::backward)?.is_ready();
        if there_done && back_done {
            return Poll::Ready(Ok(()));
        }
        if there.moved + back.moved != moved {
            last_byte = host::now();
        }
        if there_done != back_done && limit != limits.half_close {
            limit = limits.half_close;
            timer.set(host::sleep(limit));
        }
        while !limit.is_zero() && timer.as_mut().poll(cx).is_ready() {
            // Moving the timer for every byte would cost more than looking at the clock when it fires.
            let silent = host::now().saturating_duration_since(last_byte);
            if silent >= limit {
                return Poll::Ready(Err(RelayError::Idle(limit)));
            }
            timer.set(host::sleep(limit - silent));
        }
        Poll::Pending
    })
    .await
}

const FIRST_BUFFER_BYTES: usize = 16 * 1024;
const LARGEST_BUFFER_BYTES: usize = 64 * 1024;
/// Buffers moved before the other direction and other connections get their turn.
const TURN: usize = 16;

/// One direction.
struct Direction {
    buffer: BytesMut,
    /// Size of the next buffer.
    size: usize,
    /// What that has beyond the first.
    grown: Grown,
    most: usize,
    /// Bytes written.
    moved: u64,
    unflushed: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The reader has ended; what is left must be written, then the writer told.
    Ending,
    Ended,
}

enum Failed {
    Read(io::Error),
    Write(io::Error),
}

impl Failed {
    fn forward(self) -> RelayError {
        match self {
            Self::Read(error) => RelayError::A(error),
            Self::Write(error) => RelayError::B(error),
        }
    }

    fn backward(self) -> RelayError {
        match self {
            Self::Read(error) => RelayError::B(error),
            Self::Write(error) => RelayError::A(error),
        }
    }
}

impl Direction {
    fn new(buffer_bytes: usize) -> Self {
        let most = buffer_bytes.clamp(1, LARGEST_BUFFER_BYTES);
        Self {
            buffer: BytesMut::new(),
            size: FIRST_BUFFER_BYTES.min(most),
            grown: Grown::default(),
            most,
            moved: 0,
            unflushed: false,
            state: State::Open,
        }
    }

    fn poll<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        count: &AtomicU64,
    ) -> Poll<Result<(), Failed>> {
        for _ in 0..TURN {
            while !self.buffer.is_empty() {
                let written = match Pin::new(&mut *writer).poll_write(cx, &self.buffer) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(Failed::Write(io::ErrorKind::WriteZero.into()))),
                    Poll::Ready(Ok(written)) => written,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Write(error))),
                    Poll::Pending => return Poll::Pending,
                };
                self.buffer.advance(written);
                self.moved += written as u64;
                self.unflushed = true;
                count.fetch_add(written as u64, Relaxed);
            }
            match self.state {
                State::Open => (),
                State::Ending => return self.poll_end(cx, writer),
                State::Ended => return Poll::Ready(Ok(())),
            }
            self.buffer.reserve(self.size);
            // The future holds nothing between polls, so it can be made anew each time.
            match pin!(reader.read_buf(&mut self.buffer)).poll(cx) {
                Poll::Ready(Ok(0)) => {
                    self.state = State::Ending;
                    self.buffer = BytesMut::new();
                    self.grown.shrink();
                }
                Poll::Ready(Ok(read)) if read >= self.size => {
                    let larger = (self.size * 2).min(self.most);
                    if self.grown.grow_to(larger.saturating_sub(FIRST_BUFFER_BYTES)) {
                        self.size = larger;
                    }
                }
                Poll::Ready(Ok(_)) => (),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Read(error))),
                Poll::Pending => {
                    // Ten thousand silent tunnels should cost no buffers.
                    self.buffer = BytesMut::new();
                    self.size = FIRST_BUFFER_BYTES.min(self.most);
                    self.grown.shrink();
                    if self.unflushed {
                        match Pin::new(&mut *writer).poll_flush(cx) {
                            Poll::Ready(Ok(())) => self.unflushed = false,
                            Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Write(error))),
                            Poll::Pending => (),
                        }
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_end<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<Result<(), Failed>> {
        match Pin::new(writer).poll_shutdown(cx) {
            Poll::Pending => return Poll::Pending,
            // The other side has closed both directions already: it knows.
            Poll::Ready(Err(error)) if error.kind() != io::ErrorKind::NotConnected => {
                return Poll::Ready(Err(Failed::Write(error)));
            }
            Poll::Ready(_) => self.state = State::Ended,
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
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
}
