//! One stream, as both ends of a connection see it.

use std::{collections::VecDeque, task::Waker};

use bytes::Bytes;
use http::{HeaderMap, response};
use tokio::task::AbortHandle;

use super::fault::Lost;
use crate::http::interim::Interim;

/// What is known of a stream that is open, or that somebody here has not finished with.
#[derive(Debug)]
pub(super) struct Stream {
    /// What the far side sends.
    pub incoming: Incoming,
    /// What we send.
    pub outgoing: Outgoing,
    /// It will not come to its regular end.
    pub lost: Option<Lost>,
    /// It counts among the open ones: not both directions have ended.
    pub open: bool,
    /// The work on a request; stopped when nobody waits for it any more.
    pub work: Option<AbortHandle>,
    /// A response has begun, ours or the far side's.
    pub answered: bool,
}

#[derive(Debug)]
pub(super) struct Incoming {
    /// The far side has sent its last frame.
    pub ended: bool,
    /// Somebody here wants it; what nobody wants is dropped as it comes.
    pub wanted: bool,
    /// A client's: what the response has to be.
    pub answer: Option<Answer>,
    pub pieces: Pieces,
    pub trailers: Option<HeaderMap>,
    /// Content that must still come, if it was announced.
    pub left: Option<u64>,
    /// Bytes that the far side may still send.
    pub window: i64,
    /// Bytes that were taken and that the far side has not been told of.
    pub taken: u32,
    pub reader: Option<Waker>,
    /// A server's: the client waits for 100 before it sends content.
    pub continue_due: bool,
}

/// A response that is waited for.
#[derive(Debug)]
pub(super) struct Answer {
    /// It has no content, whatever it says (HEAD).
    pub bodiless: bool,
    /// Interim responses so far.
    pub interim: usize,
    /// Where they go.
    pub announce: Option<Interim>,
    /// It has come.
    pub head: Option<response::Parts>,
}

#[derive(Debug)]
pub(super) struct Outgoing {
    /// Our last frame was queued.
    pub ended: bool,
    /// Bytes that we may still send; below zero after the far side made its window smaller (RFC 9113 §6.9.2).
    pub window: i64,
    /// Stands in the queue of those that wait for the connection.
    pub queued: bool,
    pub sender: Option<Waker>,
    /// The body of our message broke off; inside: because it came too slowly.
    pub broke: Option<bool>,
    /// Where the stream begins among all bytes that the connection ever queued.
    pub begins: u64,
}

impl Incoming {
    /// The length of what has not been taken yet, if it was announced.
    pub fn length(&self) -> Option<u64> {
        self.left.map(|left| left + self.pieces.len() as u64)
    }
}

impl Stream {
    pub fn new(receive_window: u32, send_window: i64) -> Self {
        Self {
            incoming: Incoming {
                ended: false,
                wanted: true,
                answer: None,
                pieces: Pieces::default(),
                trailers: None,
                left: None,
                window: i64::from(receive_window),
                taken: 0,
                reader: None,
                continue_due: false,
            },
            outgoing: Outgoing {
                ended: false,
                window: send_window,
                queued: false,
                sender: None,
                broke: None,
                begins: 0,
            },
            lost: None,
            open: true,
            work: None,
            answered: false,
        }
    }

    /// Both directions have ended, regularly or not.
    pub const fn is_over(&self) -> bool {
        self.lost.is_some() || (self.incoming.ended && self.outgoing.ended)
    }

    pub fn wake_all(&mut self) {
        for waker in [self.incoming.reader.take(), self.outgoing.sender.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Content that has come and was not taken yet. Most messages are one piece.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    first: Option<Bytes>,
    more: VecDeque<Bytes>,
}

impl Pieces {
    pub fn push(&mut self, piece: Bytes) {
        if self.first.is_none() {
            self.first = Some(piece);
        } else {
            self.more.push_back(piece);
        }
    }

    pub fn pop(&mut self) -> Option<Bytes> {
        let piece = self.first.take()?;
        self.first = self.more.pop_front();
        Some(piece)
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> usize {
        self.first.iter().chain(&self.more).map(Bytes::len).sum()
    }

    /// Whether the first is not the last.
    pub fn are_several(&self) -> bool {
        !self.more.is_empty()
    }

    /// All of it, when it is one piece or none.
    pub fn take_only(&mut self) -> Option<Bytes> {
        if self.more.is_empty() { Some(self.first.take().unwrap_or_default()) } else { None }
    }

    /// Bytes in all pieces; they go.
    pub fn clear(&mut self) -> usize {
        let bytes = self.len();
        *self = Self::default();
        bytes
    }
}
