//! How long a piece of a response may wait for its client to take some of it.
//!
//! Asked by `body::Pump` while a piece waits. A client that says nothing at all is given up after [`Patience::silent`]. One that goes on saying
//! something, if only answers to our pings, has paused one stream (a consumer of gRPC that works through what it has): that is what windows
//! are for, and it has [`Patience::alive`], unless others need its place.
//!
//! ```text
//! waits --silent/2--> asked (PING) --silent/2, nothing heard--> given up
//!                       ^   |
//!                       +---+ heard: asked again, until alive is over
//! ```

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::link::State;
use crate::host::{self, Instant};

/// How long is waited for a client.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// That says nothing. Zero: for ever, whatever it says.
    pub silent: Duration,
    /// That says something, but takes nothing on the stream. Zero: for ever.
    pub alive: Duration,
}

/// While the process runs short of something, it waits so much less for those who do not read.
pub(super) const HURRY: u32 = 10;

pub(super) struct Stall {
    patience: Patience,
    waiting: Option<Waiting>,
}

struct Waiting {
    /// The piece has had this length ..
    left: usize,
    /// .. since.
    since: Instant,
    /// We have asked whether somebody is there, when so much had been heard.
    asked: Option<u64>,
    /// When to look again, and whether that was for a process in a hurry.
    at: Instant,
    timer: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Stall {
    /// `None`: no limit.
    pub fn new(patience: Patience) -> Option<Self> {
        (!patience.silent.is_zero()).then_some(Self { patience, waiting: None })
    }

    /// Ready when the client took nothing for too long. `left`: what the piece still has.
    pub fn poll(&mut self, state: &mut State, left: usize, cx: &mut Context<'_>) -> Poll<()> {
        let Patience { silent, alive } = self.patience;
        let waiting = match self.waiting.take() {
            Some(waiting) if waiting.left == left => waiting,
            _ => {
                let since = host::now();
                let at = since + silent / 2;
                Waiting { left, since, asked: None, at, timer: Box::pin(host::sleep(silent / 2)) }
            }
        };
        let waiting = self.waiting.insert(waiting);
        loop {
            if state.hurry {
                waiting.look_at(waiting.at.min(waiting.since + silent / HURRY));
            }
            ready!(waiting.timer.as_mut().poll(cx));
            let now = host::now();
            let over = (!alive.is_zero()).then(|| waiting.since + alive.max(silent));
            if state.hurry && now >= waiting.since + silent / HURRY || over.is_some_and(|over| now >= over) {
                return Poll::Ready(());
            }
            if waiting.asked == Some(state.heard) {
                return Poll::Ready(());
            }
            waiting.asked = Some(state.heard);
            state.ask();
            let next = now + silent / 2;
            waiting.look_at(over.map_or(next, |over| next.min(over)));
        }
    }
}

impl Waiting {
    fn look_at(&mut self, at: Instant) {
        if at != self.at {
            self.at = at;
            self.timer = Box::pin(host::sleep(at.saturating_duration_since(host::now())));
        }
    }
}
