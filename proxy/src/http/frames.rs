//! How much an HTTP/2 peer may keep us busy without asking for anything. Pure.
//!
//! hyper and h2 answer PING, SETTINGS, WINDOW_UPDATE, PRIORITY, empty DATA and unknown frames for ever. `serve` and, for
//! connections that we open, `upstream::http2` show this file every byte that arrives; it reads only frame headers (RFC 9113
//! §4.1) and counts such frames. Requests or responses clear the count, carried bytes pay for the window updates they cause,
//! and time pays for keep-alive pings.

use std::time::Duration;

/// Bytes carried in either direction that pay for one control frame.
const BYTES_PER_FRAME: u64 = 1024;
/// Time that pays for one control frame.
const TIME_PER_FRAME: Duration = Duration::from_secs(1);
/// RFC 9113 §3.4: what a client sends before its first frame.
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// The account of one connection.
#[derive(Debug)]
pub struct FrameBudget {
    limit: u32,
    spent: u32,
    /// Time since the start up to which was paid.
    paid_until: Duration,
    /// Carried bytes that have not paid for anything yet.
    carried: u64,
    /// Bytes of the preface or of a payload still to pass over.
    skip: usize,
    header: [u8; HEADER_BYTES],
    filled: usize,
}

/// The peer has sent more control frames than it may.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("more than {0} control frames without a request or response")]
pub struct TooManyFrames(pub u32);

impl FrameBudget {
    /// For what a server sends: no preface, and responses instead of requests.
    pub fn of_server(limit: u32) -> Self {
        Self { skip: 0, ..Self::new(limit) }
    }

    /// For what a client sends. `limit` frames may be outstanding; at least 1.
    pub fn new(limit: u32) -> Self {
        Self {
            limit: limit.max(1),
            spent: 0,
            paid_until: Duration::ZERO,
            carried: 0,
            skip: PREFACE_BYTES,
            header: [0; HEADER_BYTES],
            filled: 0,
        }
    }

    /// Bytes that were sent to the peer.
    pub fn sent(&mut self, bytes: usize) {
        self.carry(bytes as u64);
    }

    /// Bytes that came; `elapsed` gives the time since the start of the connection, and is asked seldom.
    ///
    /// # Errors
    /// [`TooManyFrames`] when the connection should be closed; it stays so.
    pub fn received(&mut self, mut bytes: &[u8], elapsed: impl Fn() -> Duration) -> Result<(), TooManyFrames> {
        while !bytes.is_empty() {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            let wanted = (HEADER_BYTES - self.filled).min(bytes.len());
            for (place, byte) in self.header.iter_mut().skip(self.filled).zip(bytes.iter().take(wanted)) {
                *place = *byte;
            }
            self.filled += wanted;
            bytes = bytes.get(wanted..).unwrap_or_default();
            if self.filled == HEADER_BYTES {
                self.filled = 0;
                self.frame(&elapsed);
            }
            if self.spent > self.limit {
                return Err(TooManyFrames(self.limit));
            }
        }
        Ok(())
    }

    fn frame(&mut self, elapsed: &impl Fn() -> Duration) {
        let [a, b, c, kind, ..] = self.header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.skip = length;
        match kind {
            HEADERS => self.spent = 0,
            DATA if length > 0 => self.carry(length as u64),
            _ => {
                if self.spent >= self.limit / 2 {
                    self.pay_with_time(elapsed());
                }
                self.spent = self.spent.saturating_add(1);
            }
        }
    }

    fn carry(&mut self, bytes: u64) {
        self.carried += bytes;
        let paid = self.carried / BYTES_PER_FRAME;
        self.carried %= BYTES_PER_FRAME;
        self.spent = self.spent.saturating_sub(u32::try_from(paid).unwrap_or(u32::MAX));
    }

    fn pay_with_time(&mut self, elapsed: Duration) {
        let frames = elapsed.saturating_sub(self.paid_until).as_secs() / TIME_PER_FRAME.as_secs();
        self.paid_until += TIME_PER_FRAME.saturating_mul(u32::try_from(frames).unwrap_or(u32::MAX));
        self.spent = self.spent.saturating_sub(u32::try_from(frames).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;
    const UNKNOWN: u8 = 0xf0;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![(length >> 16) as u8, (length >> 8) as u8, length as u8, kind, 0, 0, 0, 0, 0];
        frame.resize(HEADER_BYTES + length, 0x55);
        frame
    }

    fn after_preface(limit: u32) -> FrameBudget {
        let mut budget = FrameBudget::new(limit);
        budget.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || Duration::ZERO).unwrap();
        budget
    }

    #[test]
    fn floods_of_every_control_frame_end() {
        // Otherwise one client keeps a worker busy for ever with frames that cost it nothing.
        for (kind, length) in [(PING, 8), (4, 0), (WINDOW_UPDATE, 4), (2, 5), (DATA, 0), (UNKNOWN, 3), (3, 4)] {
            let mut budget = after_preface(10);
            let frame = frame(kind, length);
            for _ in 0..10 {
                budget.received(&frame, || Duration::ZERO).unwrap();
            }
            assert_eq!(budget.received(&frame, || Duration::ZERO), Err(TooManyFrames(10)), "kind {kind}");
        }
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        // A reader that loses its place counts payload as frames and closes good connections.
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for _ in 0..3 {
            bytes.extend(frame(PING, 8));
            bytes.extend(frame(DATA, 300));
        }
        for size in 1..bytes.len() {
            let mut budget = FrameBudget::new(3);
            for part in bytes.chunks(size) {
                budget.received(part, || Duration::ZERO).unwrap();
            }
            assert_eq!(budget.spent, 3, "cut every {size} bytes");
        }
    }

    #[test]
    fn requests_bytes_and_time_pay() {
        // A long download sends a window update for every few KiB, and an idle stream pings for days.
        let mut budget = after_preface(10);
        for _ in 0..1000 {
            budget.received(&frame(WINDOW_UPDATE, 4), || Duration::ZERO).unwrap();
            budget.sent(4096);
        }
        for _ in 0..100 {
            for _ in 0..9 {
                budget.received(&frame(PING, 8), || Duration::ZERO).unwrap();
            }
            budget.received(&frame(HEADERS, 20), || Duration::ZERO).unwrap();
        }
        for second in 0..10_000 {
            budget.received(&frame(PING, 8), || Duration::from_secs(10 * second)).unwrap();
        }
    }
}
