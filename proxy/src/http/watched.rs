//! A stream whose bytes are looked at as they pass, for what the HTTP/2 library above it does not do.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Looks at the bytes of a connection; runs inside its polls, so it must be quick.
pub trait Look: Unpin {
    /// These bytes came.
    ///
    /// # Errors
    /// The connection breaks with them.
    fn received(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// So many bytes left.
    fn sent(&mut self, bytes: usize);
}

/// The stream, and who looks at it.
pub struct Watched<S, L> {
    io: S,
    look: L,
}

impl<S, L: Look> Watched<S, L> {
    pub const fn new(io: S, look: L) -> Self {
        Self { io, look }
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.look.sent(*bytes);
        }
    }
}

impl<S: AsyncRead + Unpin, L: Look> AsyncRead for Watched<S, L> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buffer);
        match buffer.filled().get(before..) {
            None | Some([]) => polled,
            Some(new) => match this.look.received(new) {
                Ok(()) => polled,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl<S: AsyncWrite + Unpin, L: Look> AsyncWrite for Watched<S, L> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.wrote(&written);
        written
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
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
