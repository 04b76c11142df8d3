//! Opaque bytes both ways.
//!
//! Called by the journeys for connections that are not HTTP, and by `http/upgrade.rs` for those that no longer are. Passes the end of
//! each direction on by itself (half-close), counts, and ends what stays silent. Memory: nothing while a direction is silent, 16 KiB while
//! it moves, up to 64 KiB while it moves fast. Between two bare sockets, what moves fast never comes here: it goes through a pipe
//! in the kernel (`pipe.rs`), which is had only for as long as bytes flow.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::TcpStream,
};

use crate::accept::socket::{OverTcp, reset_on_close};
use crate::failure::Reason;
use crate::host::{self, Stream};
use crate::resilience::growth::Grown;

#[cfg(not(target_os = "linux"))]
mod no_pipe;
#[cfg(target_os = "linux")]
mod pipe;
#[cfg(not(target_os = "linux"))]
use no_pipe as pipe;

use pipe::Pipe;

/// What bounds a relay.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// Most bytes held per direction; of memory of our own, more than 64 KiB are never used.
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
pub async fn relay<A: Stream, B: Stream>(a: A, b: B, limits: RelayLimits, counts: &Counts) -> Result<(), RelayError> {
    carry(Side { io: a, bare: |_| None }, Side { io: b, bare: |_| None }, limits, counts).await
}

/// [`relay`] for streams that may be bare sockets: what moves fast between two of them stays in the kernel.
///
/// # Errors
/// Those of [`relay`].
pub async fn relay_sockets<A: Stream + OverTcp, B: Stream + OverTcp>(
    a: A,
    b: B,
    limits: RelayLimits,
    counts: &Counts,
) -> Result<(), RelayError> {
    carry(Side { io: a, bare: A::bare }, Side { io: b, bare: B::bare }, limits, counts).await
}

/// One of the two streams.
struct Side<S> {
    io: S,
    /// The socket, when the stream's next bytes are the socket's own.
    bare: for<'a> fn(&'a S) -> Option<&'a TcpStream>,
}

async fn carry<A: Stream, B: Stream>(
    mut a: Side<A>,
    mut b: Side<B>,
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
/// Steps, and bytes, before the other direction and other connections get their turn.
const TURN: usize = 16;
const TURN_BYTES: u64 = 1024 * 1024;

/// One direction.
struct Direction {
    buffer: BytesMut,
    /// Size of the next buffer.
    size: usize,
    /// What that has beyond the first.
    grown: Grown,
    most: usize,
    /// Most bytes in the pipe.
    most_in_pipe: usize,
    /// In use while bytes move fast; with bytes in it, they come before anything that is read.
    pipe: Option<Pipe>,
    /// Bytes move fast enough for a pipe to be worth its system calls.
    fast: bool,
    /// Bytes written.
    moved: u64,
    /// `moved` when the reader was last silent.
    moved_before: u64,
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
            most_in_pipe: buffer_bytes.max(1),
            pipe: None,
            fast: false,
            moved: 0,
            moved_before: 0,
            unflushed: false,
            state: State::Open,
        }
    }

    fn poll<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Side<R>,
        writer: &mut Side<W>,
        count: &AtomicU64,
    ) -> Poll<Result<(), Failed>> {
        let turn_ends = self.moved + TURN_BYTES;
        for _ in 0..TURN {
            ready!(self.poll_write(cx, writer, count))?;
            match self.state {
                State::Open => (),
                State::Ending => return self.poll_end(cx, &mut writer.io),
                State::Ended => return Poll::Ready(Ok(())),
            }
            if self.moved >= turn_ends {
                break;
            }
            match self.poll_fill_pipe(cx, reader, writer) {
                Some(Poll::Ready(Ok(()))) => continue,
                Some(Poll::Ready(Err(error))) => return Poll::Ready(Err(Failed::Read(error))),
                Some(Poll::Pending) => return self.rest(cx, &mut writer.io),
                None => (),
            }
            self.buffer.reserve(self.size);
            // The future holds nothing between polls, so it can be made anew each time.
            match pin!(reader.io.read_buf(&mut self.buffer)).poll(cx) {
                Poll::Ready(Ok(0)) => {
                    self.state = State::Ending;
                    self.release();
                }
                Poll::Ready(Ok(read)) if read >= self.size => {
                    let larger = (self.size * 2).min(self.most);
                    if self.grown.grow_to(larger.saturating_sub(FIRST_BUFFER_BYTES)) {
                        self.size = larger;
                    }
                    self.fast = true;
                }
                Poll::Ready(Ok(_)) => (),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Read(error))),
                Poll::Pending => return self.rest(cx, &mut writer.io),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes everything that is held.
    fn poll_write<W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut Side<W>,
        count: &AtomicU64,
    ) -> Poll<Result<(), Failed>> {
        loop {
            let written = if !self.buffer.is_empty() {
                let written = ready!(Pin::new(&mut writer.io).poll_write(cx, &self.buffer)).map_err(Failed::Write)?;
                self.buffer.advance(written);
                written
            } else if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0)
                && let Some(socket) = (writer.bare)(&writer.io)
            {
                ready!(pipe.poll_drain(cx, socket)).map_err(Failed::Write)?
            } else {
                return Poll::Ready(Ok(()));
            };
            if written == 0 {
                return Poll::Ready(Err(Failed::Write(io::ErrorKind::WriteZero.into())));
            }
            self.moved += written as u64;
            self.unflushed = true;
            count.fetch_add(written as u64, Relaxed);
        }
    }

    /// Takes bytes into the pipe; `None`: they have to be read.
    fn poll_fill_pipe<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &Side<R>,
        writer: &Side<W>,
    ) -> Option<Poll<io::Result<()>>> {
        if !self.fast {
            return None;
        }
        // What was read ahead of the socket comes first; then both are bare, to the end.
        let from = (reader.bare)(&reader.io)?;
        (writer.bare)(&writer.io)?;
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
            self.fast = self.pipe.is_some();
            self.buffer = BytesMut::new();
        }
        match self.pipe.as_mut()?.poll_fill(cx, from, self.most_in_pipe) {
            // Silence, the end, or urgent data in the way: reading tells them apart.
            Poll::Ready(Ok(0)) => None,
            Poll::Ready(Ok(_)) => Some(Poll::Ready(Ok(()))),
            // Not every kernel can; reading can.
            Poll::Ready(Err(error)) if cannot_splice(&error) => {
                self.fast = false;
                None
            }
            Poll::Ready(Err(error)) => Some(Poll::Ready(Err(error))),
            Poll::Pending => Some(Poll::Pending),
        }
    }

    /// Nothing to read and nothing held: gives back what ten thousand silent tunnels should not cost.
    fn rest<W: Stream>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<Result<(), Failed>> {
        self.release();
        self.size = FIRST_BUFFER_BYTES.min(self.most);
        // The next burst is taken to be like this one.
        self.fast = self.moved - self.moved_before >= FIRST_BUFFER_BYTES as u64;
        self.moved_before = self.moved;
        if self.unflushed {
            match Pin::new(writer).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Write(error))),
                Poll::Pending => (),
            }
        }
        Poll::Pending
    }

    fn release(&mut self) {
        self.buffer = BytesMut::new();
        self.grown.shrink();
        if let Some(pipe) = self.pipe.take() {
            pipe.put_back();
        }
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

/// Whether splicing itself is refused, so that neither socket is to blame.
fn cannot_splice(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::OutOfMemory)
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod socket_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
