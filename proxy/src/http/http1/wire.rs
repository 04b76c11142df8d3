//! A byte stream with what has been read and not yet taken, and what is to be written.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::ReadBuf;
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::write::CHUNK_END;
use crate::{detect::Rewound, host::Stream, resilience::growth::Grown};

/// Heads are small. Read onto the stack: a connection that waits has no buffer.
pub(super) const FIRST_READ_BYTES: usize = 4096;
/// So much a connection may hold without asking: it was counted when the connection was let in.
const FREE_BYTES: usize = 2 * FIRST_READ_BYTES;
/// Contents that fill every read are read in pieces that grow to this.
const GREATEST_READ_BYTES: usize = 64 * 1024;
/// Pieces up to this are copied behind what is there, so that they leave in one write, and over TLS in one record.
const COPIED_BYTES: usize = 8 * 1024;
/// Once so much waits to be written, no more is taken in.
const ENOUGH_BYTES: usize = 32 * 1024;
/// What a connection keeps between two messages for writing the next: a head and a small content.
const KEPT_BYTES: usize = 2 * 1024;

/// A stream that has left HTTP, with the bytes that had been read ahead of that.
pub type Parted = Rewound<Box<dyn Stream>>;

/// A stream with its two buffers.
#[derive(Debug)]
pub(super) struct Wire<S> {
    /// `None` after the stream was taken out.
    io: Option<S>,
    /// Read, not yet taken.
    pub received: BytesMut,
    next_read: usize,
    /// What `received` has beyond [`FREE_BYTES`].
    grown: Grown,
    /// Serialised, not yet written.
    pub outgoing: BytesMut,
    /// What `outgoing` has beyond [`COPIED_BYTES`].
    outgrown: Grown,
    /// Goes out behind `outgoing`, without being copied.
    piece: Bytes,
    /// Goes out behind `piece`.
    piece_end: &'static [u8],
    /// Bytes written so far, as far as the stream took them.
    pub written: u64,
    flushed: bool,
}

impl<S: Stream> Wire<S> {
    pub fn new(io: S) -> Self {
        Self {
            io: Some(io),
            received: BytesMut::new(),
            next_read: FIRST_READ_BYTES,
            grown: Grown::default(),
            outgoing: BytesMut::new(),
            outgrown: Grown::default(),
            piece: Bytes::new(),
            piece_end: b"",
            written: 0,
            flushed: true,
        }
    }

    fn io(io: &mut Option<S>) -> io::Result<&mut S> {
        io.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// The stream beneath.
    pub fn get_ref(&self) -> Option<&S> {
        self.io.as_ref()
    }

    /// Reads once; 0: the far side has ended. What cannot be had in large pieces comes in small ones.
    ///
    /// # Errors
    /// The stream's; `OutOfMemory` when what has been read and not taken cannot become more.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.received.is_empty() && self.next_read == FIRST_READ_BYTES {
            return self.poll_first(cx);
        }
        let mut size = self.next_read;
        if !self.grown.grow_to((self.received.len() + size).saturating_sub(FREE_BYTES)) {
            size = (FREE_BYTES + self.grown.bytes()).saturating_sub(self.received.len()).min(FIRST_READ_BYTES);
            if size == 0 {
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            }
        }
        self.received.reserve(size);
        let room = self.received.capacity() - self.received.len();
        let read = ready!(poll_read_buf(Pin::new(Self::io(&mut self.io)?), cx, &mut self.received))?;
        if read == room && self.next_read < GREATEST_READ_BYTES {
            self.next_read *= 2;
        }
        Poll::Ready(Ok(read))
    }

    /// [`Self::poll_fill`] while nothing is known of what comes, or when: most connections wait most of the time.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // What was taken out may still hold the buffer; nothing is left of it for us.
        self.received = BytesMut::new();
        let mut room = [const { MaybeUninit::uninit() }; FIRST_READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut room);
        ready!(Pin::new(Self::io(&mut self.io)?).poll_read(cx, &mut buffer))?;
        self.received.extend_from_slice(buffer.filled());
        if self.received.len() == FIRST_READ_BYTES {
            self.next_read *= 2;
        }
        Poll::Ready(Ok(self.received.len()))
    }

    /// A message is over: the next one is small again, as far as anybody knows.
    pub fn rest(&mut self) {
        if self.next_read > FIRST_READ_BYTES {
            self.next_read = FIRST_READ_BYTES;
            if self.received.is_empty() {
                self.received = BytesMut::new();
            }
        }
        if self.received.is_empty() {
            self.grown.shrink();
        }
        if self.outgoing.is_empty() {
            self.outgrown.shrink();
            if self.outgoing.capacity() > KEPT_BYTES {
                self.outgoing = BytesMut::new();
            }
        }
    }

    /// Whether nothing has come and the far side has not ended; for connections that carry nothing. Reads nothing unless there is
    /// something.
    pub fn is_quiet(&mut self) -> bool {
        self.received.is_empty() && self.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Whether more may be taken in for writing.
    pub fn has_room(&mut self) -> bool {
        let waiting = self.outgoing.len();
        let more = waiting < COPIED_BYTES || waiting < ENOUGH_BYTES && self.outgrown.grow_to(ENOUGH_BYTES);
        more && self.piece.is_empty() && self.piece_end.is_empty()
    }

    /// Whether something waits to be written.
    pub fn has_outgoing(&self) -> bool {
        !self.flushed || !self.outgoing.is_empty() || !self.piece.is_empty() || !self.piece_end.is_empty()
    }

    /// Takes a piece of content in; only when [`Wire::has_room`]. `chunk`: with the line end that a chunk has.
    pub fn push(&mut self, piece: Bytes, chunk: bool) {
        let end = if chunk { CHUNK_END } else { b"" };
        if piece.len() <= COPIED_BYTES {
            self.outgoing.extend_from_slice(&piece);
            self.outgoing.extend_from_slice(end);
        } else {
            self.piece = piece;
            self.piece_end = end;
        }
    }

    /// Writes all there is.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = Self::io(&mut self.io)?;
        loop {
            let mut rest = (&mut self.outgoing).chain(&mut self.piece).chain(&mut self.piece_end);
            if !rest.has_remaining() {
                break;
            }
            self.flushed = false;
            match ready!(poll_write_buf(Pin::new(&mut *io), cx, &mut rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written as u64,
            }
        }
        if !self.flushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our side, after all there is has been written.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(Self::io(&mut self.io)?).poll_shutdown(cx)
    }

    /// Takes the stream out, with what had been read ahead; `None` the second time.
    pub fn part(&mut self) -> Option<Rewound<S>> {
        let first = std::mem::take(&mut self.received).freeze();
        self.io.take().map(|io| Rewound::with(io, first))
    }
}
