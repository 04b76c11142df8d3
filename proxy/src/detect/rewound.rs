//! A stream whose first bytes were read ahead and come again.
//!
//! Filled by `Rewound::detect`; used by whoever serves the connection afterwards as if nothing had been read. It keeps no
//! memory once the bytes have been replayed, and adds nothing to writing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::host::Stream;

/// Replays what was read ahead, then continues with the stream. Writing is untouched.
#[derive(Debug)]
pub struct Rewound<S> {
    pub(super) ahead: BytesMut,
    pub(super) io: S,
}

impl<S: Stream> Rewound<S> {
    /// Nothing read ahead yet.
    pub fn new(io: S) -> Self {
        Self { ahead: BytesMut::new(), io }
    }

    /// With bytes that were already taken from the stream.
    pub fn with(io: S, first: Bytes) -> Self {
        Self { ahead: BytesMut::from(first), io }
    }
}

impl<S> Rewound<S> {
    /// The stream beneath; reading from it directly would skip what was read ahead.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// Whether bytes that were read ahead come before the stream's own.
    pub fn is_rewound(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// What was read ahead and not yet replayed, and the stream.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.ahead.freeze(), self.io)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buffer);
        }
        let take = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(this.ahead.get(..take).unwrap_or_default());
        this.ahead.advance(take);
        if this.ahead.is_empty() {
            // Most connections live long after their first bytes; give the memory back.
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
