//! Moves bytes between two sockets inside the kernel: into a pipe and out of it, splice(2).
//!
//! Used by one direction of a relay while bytes flow. A pipe is two descriptors and up to [`KEPT`] empty ones wait on each thread for
//! the next burst; there are never more than [`MOST`] in the process. Who gets none copies. Decides nothing about when.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{io::Interest, net::TcpStream};

/// What a pipe takes. Measured on raw TCP through one hop: with the system's 64 KiB, splicing costs as much as copying; with this half of
/// it, and with 1 MiB no less.
const CAPACITY_BYTES: usize = 256 * 1024;
/// Pipes in the process. pipe(7) lets one unprivileged user have 64 MiB of capacity before new pipes become tiny
/// (`pipe-user-pages-soft`): half of that is left to the application, which may run as the same user.
const MOST: usize = 128;
/// Empty pipes a thread keeps; more would be descriptors that nobody uses, fewer a pipe made and closed for every burst.
const KEPT: usize = 8;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty pipe; `None` when there are too many, or the system has no descriptors left.
    pub(super) fn take() -> Option<Self> {
        if let Some(spare) = SPARE.with_borrow_mut(Vec::pop) {
            return Some(spare);
        }
        if IN_USE.fetch_add(1, Relaxed) >= MOST {
            IN_USE.fetch_sub(1, Relaxed);
            return None;
        }
        match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
            Ok((out, into)) => {
                // Where this is refused, the pipe is only smaller.
                let _ = fcntl_setpipe_size(&into, CAPACITY_BYTES);
                Some(Self { out, into, held: 0 })
            }
            Err(_) => {
                IN_USE.fetch_sub(1, Relaxed);
                None
            }
        }
    }

    /// Gives the pipe back. One with bytes in it is closed: they belong to nobody else.
    pub(super) fn put_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if self.held == 0 && spare.len() < KEPT {
                spare.push(self);
            }
        });
    }

    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Takes up to `most` bytes from a socket; only into an empty pipe, since a full one cannot be told from a silent socket.
    ///
    /// Zero: nothing that can be spliced. It is proof of nothing else, neither of the socket's end nor of its silence: before urgent data
    /// the kernel gives the answers of both. Only a read tells, so the socket still counts as readable then.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream, most: usize) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.held, 0);
        let moved = loop {
            ready!(from.poll_read_ready(cx))?;
            let moved = from.try_io(Interest::READABLE, || {
                match splice(from, None, &self.into, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
                    Err(Errno::AGAIN) => Ok(0),
                    other => Ok(other?),
                }
            });
            match moved {
                Err(error) if is_transient(&error) => (),
                other => break other?,
            }
        };
        self.held = moved;
        Poll::Ready(Ok(moved))
    }

    /// Passes on to a socket what the pipe holds, or a part of it.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let moved = loop {
            ready!(to.poll_write_ready(cx))?;
            let moved = to.try_io(Interest::WRITABLE, || {
                Ok(splice(&self.out, None, to, None, self.held, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
            });
            match moved {
                Err(error) if is_transient(&error) => (),
                other => break other?,
            }
        };
        self.held = self.held.saturating_sub(moved);
        Poll::Ready(Ok(moved))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        IN_USE.fetch_sub(1, Relaxed);
    }
}

/// Whether asking again, after waiting where the runtime knows that there is something to wait for, is the answer.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Pipes this thread has in reserve.
#[cfg(test)]
pub(super) fn spare() -> usize {
    SPARE.with_borrow(Vec::len)
}
