//! Content on a stream: what comes ([`Incoming`]) and what goes ([`Pump`]).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::{
    fault::{Code, Ended, Lost},
    link::Link,
    stall::{Patience, Stall},
};
use crate::http::{Body, BodyError};

/// The body of a message that is still arriving. Nothing is read ahead of the window.
#[derive(Debug)]
pub struct Incoming {
    link: Arc<Link>,
    stream: u32,
    /// As far as it was announced.
    left: Option<u64>,
    over: bool,
}

impl Incoming {
    pub(super) fn body(link: Arc<Link>, stream: u32, left: Option<u64>) -> Body {
        let trailers = link.lock().rules.trailers;
        Body::http2(Self { link, stream, left, over: false }).with_trailer_limit(trailers)
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let polled = ready!(self.link.poll_frame(self.stream, cx));
        match &polled {
            Some(Ok(frame)) => {
                if let (Some(data), Some(left)) = (frame.data_ref(), &mut self.left) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                // Nothing comes behind trailers; and whoever writes HTTP/2 can end the message with its last piece.
                self.over = frame.is_trailers() || self.link.is_over(self.stream);
            }
            Some(Err(_)) | None => self.over = true,
        }
        Poll::Ready(polled)
    }

    pub const fn is_over(&self) -> bool {
        self.over
    }

    pub fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.link.let_go(self.stream);
    }
}

/// A body on its way out. Dropped before its end, it resets the stream.
pub(super) struct Pump {
    link: Arc<Link>,
    stream: u32,
    body: Body,
    piece: Bytes,
    /// Content that must still come, if it was announced.
    left: Option<u64>,
    /// The body has ended; `piece` is the last of it.
    last: bool,
    over: bool,
    /// What the far side is told when this is dropped.
    code: Code,
    stall: Option<Stall>,
}

/// Why a body did not go out whole.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The body itself broke off; `slow`: because it came too slowly.
    Broke { slow: bool },
    /// The stream takes no more.
    Lost,
    /// The far side took nothing for too long.
    Stalled,
}

impl Pump {
    pub fn new(link: Arc<Link>, stream: u32, body: Body, left: Option<u64>, code: Code) -> Self {
        Self { link, stream, body, piece: Bytes::new(), left, last: false, over: false, code, stall: None }
    }

    /// Gives the stream up when the far side takes nothing for too long.
    pub fn stalling_at_most(mut self, patience: Patience) -> Self {
        self.stall = Stall::new(patience);
        self
    }

    /// Sends all there is; ready at the end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let result = ready!(self.poll_all(cx));
        self.over = true;
        match result {
            Err(Stopped::Broke { slow }) => {
                let mut state = self.link.lock();
                if let Some(stream) = state.streams.get_mut(&self.stream) {
                    stream.outgoing.broke = Some(slow);
                }
                state.reset(self.stream, self.code, Lost::Dropped);
            }
            Err(Stopped::Stalled) => self.link.give_up(self.stream, Code::CANCEL),
            Ok(()) | Err(Stopped::Lost) => {}
        }
        Poll::Ready(result)
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if self.last || !self.piece.is_empty() {
                match self.link.poll_data(self.stream, &mut self.piece, self.last, cx) {
                    Poll::Ready(sent) => sent.map_err(|_| Stopped::Lost)?,
                    Poll::Pending => return self.poll_stall(cx),
                }
                if self.last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return self.poll_gone(cx);
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(left) = &mut self.left {
                            *left = left.checked_sub(data.len() as u64).ok_or(Stopped::Broke { slow: false })?;
                        }
                        self.piece = data;
                        self.last = self.left == Some(0) || self.body.is_end_stream();
                        if self.last && self.left.is_some_and(|left| left > 0) {
                            return Poll::Ready(Err(Stopped::Broke { slow: false }));
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            let sent = self.link.send_trailers(self.stream, &trailers);
                            return Poll::Ready(sent.map_err(|_| Stopped::Lost));
                        }
                    }
                },
                Some(Err(error)) => {
                    return Poll::Ready(Err(Stopped::Broke { slow: matches!(error, BodyError::TooSlow) }));
                }
                None if self.left.is_some_and(|left| left > 0) => {
                    return Poll::Ready(Err(Stopped::Broke { slow: false }));
                }
                None => self.last = true,
            }
        }
    }

    /// While a piece waits for the far side: whether it has waited too long.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let Some(stall) = &mut self.stall else { return Poll::Pending };
        ready!(stall.poll(&mut self.link.lock(), self.piece.len(), cx));
        Poll::Ready(Err(Stopped::Stalled))
    }

    /// While the body is waited for: whether anybody still wants it.
    fn poll_gone(&self, cx: &Context<'_>) -> Poll<Result<(), Stopped>> {
        let mut state = self.link.lock();
        match state.streams.get_mut(&self.stream) {
            Some(stream) if !stream.outgoing.ended => {
                match &mut stream.outgoing.sender {
                    Some(sender) => sender.clone_from(cx.waker()),
                    None => stream.outgoing.sender = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            _ => Poll::Ready(Err(Stopped::Lost)),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if !self.over {
            self.link.give_up(self.stream, self.code);
        }
    }
}

impl From<Lost> for BodyError {
    fn from(lost: Lost) -> Self {
        Self::Http2(lost)
    }
}

impl Lost {
    /// Whether the sender went away rather than break a rule.
    pub const fn is_peer_gone(&self) -> bool {
        match self {
            Self::Reset(_) | Self::NotSeen => true,
            Self::Connection(ended) => {
                matches!(ended, Ended::Closed | Ended::Io(_) | Ended::Silent | Ended::Stalled | Ended::Goodbye(_))
            }
            Self::Offence(_) | Self::Dropped => false,
        }
    }
}
