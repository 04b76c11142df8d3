//! How much a peer may keep us busy without getting anything done. Pure.
//!
//! RFC 9113 §10.5 lists the ways: PING, SETTINGS, WINDOW_UPDATE, PRIORITY, empty DATA, unknown frames, streams opened and reset,
//! streams that break a rule. All of them are paid from one account. A finished exchange clears it, carried bytes pay for the
//! window updates they cause, and time pays for keep-alive pings. At three quarters the connection is ended gracefully, at the end at once.

use std::time::Duration;

use crate::settings::Limits;

/// Bytes carried in either direction that pay for one control frame.
const BYTES_PER_FRAME: u64 = 1024;
/// Time that pays for one control frame.
const TIME_PER_FRAME: Duration = Duration::from_secs(1);

/// What the peer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A frame that carries nothing.
    Control,
    /// A stream reset before we began with it.
    ResetAtOnce,
    /// A stream reset while we worked on it, or one that broke a rule.
    Spoiled,
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
}

impl Budget {
    pub fn new(limits: &Limits) -> Self {
        let limit = limits.http2_control_frames.max(1);
        let each = |streams: usize| (limit / u32::try_from(streams).unwrap_or(u32::MAX).max(1)).saturating_add(1);
        Self {
            limit,
            reset_at_once: each(limits.http2_pending_resets),
            spoiled: each(limits.http2_local_resets),
            spent: 0,
            paid_until: Duration::ZERO,
            carried: 0,
        }
    }

    /// `http2_control_frames`.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Takes a deed in; `elapsed` gives the time since the start of the connection, and is asked seldom.
    pub fn spend(&mut self, deed: Deed, elapsed: impl FnOnce() -> Duration) -> Verdict {
        let cost = match deed {
            Deed::Control => 1,
            Deed::ResetAtOnce => self.reset_at_once,
            Deed::Spoiled => self.spoiled,
        };
        if self.spent >= self.limit / 2 {
            self.pay_with_time(elapsed());
        }
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit {
            Verdict::Close
        } else if u64::from(self.spent) * 4 > u64::from(self.limit) * 3 {
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
        let seconds = elapsed.saturating_sub(self.paid_until).as_secs() / TIME_PER_FRAME.as_secs();
        let paid = u32::try_from(seconds).unwrap_or(u32::MAX);
        self.spent = self.spent.saturating_sub(paid);
        self.paid_until += TIME_PER_FRAME * paid;
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
        assert_eq!(spend(&mut account, Deed::Control, 750), Verdict::Fine);
        assert_eq!(spend(&mut account, Deed::Control, 250), Verdict::Leave);
        assert_eq!(spend(&mut account, Deed::Control, 1), Verdict::Close);
    }

    #[test]
    fn resets_cost_what_they_spare_the_peer() {
        // Opening and resetting streams costs a client next to nothing (CVE-2023-44487).
        assert_eq!(spend(&mut budget(1000), Deed::ResetAtOnce, 14), Verdict::Fine);
        assert_eq!(spend(&mut budget(1000), Deed::ResetAtOnce, 20), Verdict::Close);
        assert_eq!(spend(&mut budget(1000), Deed::Spoiled, 68), Verdict::Fine);
        assert_eq!(spend(&mut budget(1000), Deed::Spoiled, 100), Verdict::Close);
    }

    #[test]
    fn work_bytes_and_time_pay() {
        // Long downloads, clients that cancel now and then and keep-alive pings must go on for ever.
        let mut account = budget(100);
        for second in 0..1000 {
            assert_eq!(spend(&mut account, Deed::Control, 60), Verdict::Fine);
            match second % 2 {
                0 => account.finished(),
                _ => account.carry(60 * 1024),
            }
        }
        let mut account = budget(10);
        for second in 0..1000 {
            assert_ne!(account.spend(Deed::Control, || Duration::from_secs(second)), Verdict::Close, "{second}");
        }
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
