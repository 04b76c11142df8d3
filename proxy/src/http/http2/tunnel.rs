//! A stream that has left HTTP (CONNECT): bytes both ways, as on a socket.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    fault::{Code, Lost},
    link::Link,
};

/// Both directions of a tunnel. Dropping it resets what has not ended.
#[derive(Debug)]
pub(super) struct Tunnel {
    link: Arc<Link>,
    stream: u32,
    received: Bytes,
    ended: bool,
}

impl Tunnel {
    pub const fn new(link: Arc<Link>, stream: u32) -> Self {
        Self { link, stream, received: Bytes::new(), ended: false }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.received.is_empty() && !self.ended {
            match ready!(self.link.poll_frame(self.stream, cx)) {
                Some(Ok(frame)) => self.received = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error))),
                None => self.ended = true,
            }
        }
        let step = self.received.len().min(into.remaining());
        into.put_slice(self.received.get(..step).unwrap_or_default());
        self.received.advance(step);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let most = ready!(self.link.poll_capacity(self.stream, cx)).map_err(broken)?.min(bytes.len());
        let mut piece = Bytes::copy_from_slice(bytes.get(..most).unwrap_or_default());
        // What does not fit after all, because another thread was faster, was not written.
        let _ = self.link.poll_data(self.stream, &mut piece, false, cx).map_err(broken)?;
        match most - piece.len() {
            0 => Poll::Pending,
            written => Poll::Ready(Ok(written)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The driver writes whatever is queued.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.link.poll_data(self.stream, &mut Bytes::new(), true, cx) {
            Poll::Ready(Ok(()) | Err(Lost::Dropped)) => Poll::Ready(Ok(())),
            Poll::Ready(Err(lost)) => Poll::Ready(Err(broken(lost))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.link.give_up(self.stream, Code::CANCEL);
        self.link.let_go(self.stream);
    }
}

fn broken(lost: Lost) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, lost)
}
