//! Frames that wait to be written.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};

use super::frame;
use crate::host::Stream;

/// Contents up to this are copied behind what is there; longer ones go out as they are.
const COPIED_BYTES: usize = 4096;
/// Pieces that are written with one call.
const PIECES_AT_ONCE: usize = 16;
/// Memory that an idle connection keeps for the next frames.
const KEPT_BYTES: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// Behind the pieces. Everything but long contents is written here.
    pub tail: BytesMut,
    /// Bytes in `pieces`.
    in_pieces: usize,
}

impl Outgoing {
    pub fn len(&self) -> usize {
        self.in_pieces + self.tail.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A DATA frame.
    pub fn data(&mut self, stream: u32, content: Bytes, end: bool) {
        frame::write_data_head(&mut self.tail, stream, content.len(), end);
        if content.len() <= COPIED_BYTES {
            self.tail.extend_from_slice(&content);
            return;
        }
        let before = self.tail.split().freeze();
        self.in_pieces += before.len() + content.len();
        self.pieces.push_back(before);
        self.pieces.push_back(content);
    }

    /// Writes all there is; how many bytes went each time is told to `wrote`.
    pub fn poll_write<S: Stream>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
        mut wrote: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES_AT_ONCE];
                let pieces = self.pieces.iter().map(|piece| &piece[..]).chain([&self.tail[..]]);
                for (slice, piece) in slices.iter_mut().zip(pieces) {
                    *slice = IoSlice::new(piece);
                }
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            wrote(written);
        }
        if self.tail.capacity() > KEPT_BYTES {
            self.tail = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let step = piece.len().min(written);
            piece.advance(step);
            self.in_pieces -= step;
            written -= step;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.tail.advance(written);
    }
}
