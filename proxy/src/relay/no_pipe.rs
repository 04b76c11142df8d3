//! Where splice(2) does not exist: there is never a pipe, and everything is copied.

use std::{
    convert::Infallible,
    io,
    task::{Context, Poll},
};

use tokio::net::TcpStream;

/// Does not exist.
#[derive(Debug)]
pub(super) struct Pipe(Infallible);

impl Pipe {
    pub(super) const fn take() -> Option<Self> {
        None
    }

    pub(super) fn put_back(self) {
        match self.0 {}
    }

    pub(super) const fn held(&self) -> usize {
        match self.0 {}
    }

    pub(super) fn poll_fill(&mut self, _: &mut Context<'_>, _: &TcpStream, _: usize) -> Poll<io::Result<usize>> {
        match self.0 {}
    }

    pub(super) fn poll_drain(&mut self, _: &mut Context<'_>, _: &TcpStream) -> Poll<io::Result<usize>> {
        match self.0 {}
    }
}
