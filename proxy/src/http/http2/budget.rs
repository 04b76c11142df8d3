//! How much a peer may keep us busy without getting anything done. Pure.
//!
//! RFC 9113 §10.5 lists the ways: PING, SETTINGS, WINDOW_UPDATE, PRIORITY, empty DATA, unknown frames, streams opened and reset,
//! streams that break a rule. All of them are paid from one account. A finished exchange clears it, carried bytes pay for the
//! window updates they cause, and time pays for keep-alive pings. At three quarters the connection is ended gracefully, at the end at once.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::time::Duration;

use super::frame::kind;
use crate::settings::Limits;

/// Bytes carried in either direction that pay for one control frame.
const BYTES_PER_FRAME: u64 = 1024;
/// Time that pays for one control frame.
const TIME_PER_FRAME_SECONDS: u64 = 1;

/// What the peer did. The words of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Ping,
    Settings,
    Priority,
    WindowUpdate,
    Goaway,
    /// A frame of a type that we do not know.
    Unknown,
    /// DATA that neither carries something nor ends a stream.
    EmptyData,
    Continuation,
    /// A frame on a stream that we have given up.
    Late,
    /// A stream beyond those that may be open at once.
    Excess,
    /// A stream that was reset when we had finished with it.
    Reset,
    /// A stream that was reset before we began with it.
    ResetAtOnce,
    /// A stream that was reset while we worked on it.
    ResetInWork,
    /// A stream that broke a rule.
    Broken,
}

impl Deed {
    /// In the order of their values.
    pub const ALL: [Self; 14] = [
        Self::Ping,
        Self::Settings,
        Self::Priority,
        Self::WindowUpdate,
        Self::Goaway,
        Self::Unknown,
        Self::EmptyData,
        Self::Continuation,
        Self::Late,
        Self::Excess,
        Self::Reset,
        Self::ResetAtOnce,
        Self::ResetInWork,
        Self::Broken,
    ];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Settings => "settings",
            Self::Priority => "priority",
            Self::WindowUpdate => "window_update",
            Self::Goaway => "goaway",
            Self::Unknown => "unknown_frame",
            Self::EmptyData => "empty_data",
            Self::Continuation => "continuation",
            Self::Late => "late_frame",
            Self::Excess => "excess_stream",
            Self::Reset => "reset",
            Self::ResetAtOnce => "reset_at_once",
            Self::ResetInWork => "reset_in_work",
            Self::Broken => "broken_stream",
        }
    }

    /// The frame of this type, which carries neither content nor fields.
    pub(super) const fn control(kind: u8) -> Self {
        match kind {
            kind::PING => Self::Ping,
            kind::SETTINGS => Self::Settings,
            kind::PRIORITY => Self::Priority,
            kind::WINDOW_UPDATE => Self::WindowUpdate,
            kind::GOAWAY => Self::Goaway,
            kind::RST_STREAM => Self::Reset,
            _ => Self::Unknown,
        }
    }
}

/// What whoever keeps statistics is told of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abuse {
    /// So many deeds were charged since the last time.
    Charged(Deed, u32),
    /// Three quarters of the account were gone with this deed: no new streams any more.
    Left(Deed),
    /// All of it was gone: the connection was closed.
    Closed(Deed),
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// No new streams any more.
    Leave,
    /// The connection is closed.
    Close,
}

/// The account of one connection.
#[derive(Debug)]
pub struct Budget {
    limit: u32,
    reset_at_once: u32,
    spoiled: u32,
    spent: u32,
    /// Time since the start up to which was paid.
    paid_until: Duration,
    /// Carried bytes that have not paid for anything yet.
    carried: u64,
    charged: Charged,
}

/// What was charged and not told yet.
#[derive(Debug, Default)]
pub struct Charged {
    /// As many as there are deeds.
    times: [u32; Deed::ALL.len()],
    any: bool,
    left: Option<Deed>,
    /// `left` was set once.
    has_left: bool,
}

impl Charged {
    /// Tells all of it.
    pub fn tell(&self, told: impl Fn(Abuse)) {
        for (deed, times) in Deed::ALL.into_iter().zip(self.times).filter(|(_, times)| *times > 0) {
            told(Abuse::Charged(deed, times));
        }
        if let Some(deed) = self.left {
            told(Abuse::Left(deed));
        }
    }
}

impl Budget {
    pub fn new(limits: &Limits) -> Self {
        let limit = limits.http2_control_frames.max(1);
        let each = |streams: usize| {
            limit.checked_div(u32::try_from(streams).unwrap_or(u32::MAX)).unwrap_or(limit).saturating_add(1)
        };
        Self {
            limit,
            reset_at_once: each(limits.http2_pending_resets),
            spoiled: each(limits.http2_local_resets),
            spent: 0,
            paid_until: Duration::ZERO,
            carried: 0,
            charged: Charged::default(),
        }
    }

    /// What was charged since the last call.
    pub fn take_charged(&mut self) -> Option<Charged> {
        if !self.charged.any {
            return None;
        }
        let has_left = self.charged.has_left;
        Some(std::mem::replace(&mut self.charged, Charged { has_left, ..Charged::default() }))
    }

    /// `http2_control_frames`.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Takes a deed in; `elapsed` gives the time since the start of the connection, and is asked seldom.
    pub fn spend(&mut self, deed: Deed, elapsed: impl FnOnce() -> Duration) -> Verdict {
        let cost = match deed {
            Deed::ResetAtOnce => self.reset_at_once,
            Deed::ResetInWork | Deed::Broken => self.spoiled,
            _ => 1,
        };
        self.charged.any = true;
        if let Some(times) = self.charged.times.get_mut(deed as usize) {
            *times = times.saturating_add(1);
        }
        if self.spent >= self.limit / 2 {
            self.pay_with_time(elapsed());
        }
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit {
            Verdict::Close
        } else if u64::from(self.spent) * 4 > u64::from(self.limit) * 3 {
            if !std::mem::replace(&mut self.charged.has_left, true) {
                self.charged.left = Some(deed);
            }
            Verdict::Leave
        } else {
            Verdict::Fine
        }
    }

    /// A stream has come to its regular end.
    pub const fn finished(&mut self) {
        self.spent = 0;
    }

    /// Content went one way or the other.
    pub fn carry(&mut self, bytes: usize) {
        self.carried = self.carried.saturating_add(bytes as u64);
        let paid = self.carried / BYTES_PER_FRAME;
        self.carried %= BYTES_PER_FRAME;
        self.spent = self.spent.saturating_sub(u32::try_from(paid).unwrap_or(u32::MAX));
    }

    fn pay_with_time(&mut self, elapsed: Duration) {
        let paid = elapsed.saturating_sub(self.paid_until).as_secs() / TIME_PER_FRAME_SECONDS;
        let paid = u32::try_from(paid).unwrap_or(u32::MAX);
        self.spent = self.spent.saturating_sub(paid);
        let seconds = u64::from(paid).saturating_mul(TIME_PER_FRAME_SECONDS);
        self.paid_until = self.paid_until.saturating_add(Duration::from_secs(seconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limit: u32) -> Budget {
        Budget::new(&Limits {
            http2_control_frames: limit,
            http2_pending_resets: 20,
            http2_local_resets: 100,
            ..Limits::default()
        })
    }

    fn spend(budget: &mut Budget, deed: Deed, times: u32) -> Verdict {
        (0..times).map(|_| budget.spend(deed, || Duration::ZERO)).last().unwrap_or(Verdict::Fine)
    }

    #[test]
    fn the_end_comes_in_two_steps() {
        let mut account = budget(1000);
        assert_eq!(spend(&mut account, Deed::Ping, 750), Verdict::Fine);
        assert_eq!(spend(&mut account, Deed::Ping, 250), Verdict::Leave);
        assert_eq!(spend(&mut account, Deed::Ping, 1), Verdict::Close);
    }

    #[test]
    fn resets_cost_what_they_spare_the_peer() {
        // Opening and resetting streams costs a client next to nothing (CVE-2023-44487).
        assert_eq!(spend(&mut budget(1000), Deed::ResetAtOnce, 14), Verdict::Fine);
        assert_eq!(spend(&mut budget(1000), Deed::ResetAtOnce, 20), Verdict::Close);
        assert_eq!(spend(&mut budget(1000), Deed::Broken, 68), Verdict::Fine);
        assert_eq!(spend(&mut budget(1000), Deed::Broken, 100), Verdict::Close);
    }

    #[test]
    fn work_bytes_and_time_pay() {
        // Long downloads, clients that cancel now and then and keep-alive pings must go on for ever.
        let mut account = budget(100);
        for second in 0..1000 {
            assert_eq!(spend(&mut account, Deed::Ping, 60), Verdict::Fine);
            match second % 2 {
                0 => account.finished(),
                _ => account.carry(60 * 1024),
            }
        }
        let mut account = budget(10);
        for second in 0..1000 {
            assert_ne!(account.spend(Deed::Ping, || Duration::from_secs(second)), Verdict::Close, "{second}");
        }
    }

    #[test]
    fn what_was_charged_is_told_once() {
        // An operator would look for a flood that was long over, or not see the one that goes on.
        for (place, deed) in Deed::ALL.into_iter().enumerate() {
            assert_eq!(deed as usize, place, "order of Deed::ALL");
        }
        let told = |account: &mut Budget| {
            let seen = std::cell::RefCell::new(Vec::new());
            if let Some(charged) = account.take_charged() {
                charged.tell(|abuse| seen.borrow_mut().push(abuse));
            }
            seen.into_inner()
        };
        let mut account = budget(100);
        assert_eq!(told(&mut account), []);
        spend(&mut account, Deed::Ping, 75);
        spend(&mut account, Deed::Broken, 1);
        assert_eq!(
            told(&mut account),
            [Abuse::Charged(Deed::Ping, 75), Abuse::Charged(Deed::Broken, 1), Abuse::Left(Deed::Broken)]
        );
        assert_eq!(told(&mut account), []);
        spend(&mut account, Deed::Late, 2);
        assert_eq!(told(&mut account), [Abuse::Charged(Deed::Late, 2)], "it leaves once");
    }

    #[test]
    fn the_account_never_overflows() {
        let mut account = Budget::new(&Limits {
            http2_control_frames: u32::MAX,
            http2_pending_resets: 0,
            http2_local_resets: 0,
            ..Limits::default()
        });
        for _ in 0..3 {
            account.spend(Deed::ResetAtOnce, || Duration::MAX);
        }
        account.carry(usize::MAX);
    }
}
