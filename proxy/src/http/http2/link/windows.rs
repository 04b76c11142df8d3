//! The windows of a connection: how much may come, how much may go, and who goes next.
//!
//! RFC 9113 §5.2. What may come grows with need and with the memory there is; what may go is shared by the streams in the order in which
//! they waited. Called with the lock of the connection held; nothing waits here.

use super::State;
use crate::http::http2::{
    fault::{Code, Ended, Offence},
    frame::{self, FIRST_WINDOW, MAX_PAYLOAD, MAX_WINDOW},
};

/// Bytes that may wait to be written on any connection, however little memory there is.
const FIRST_BUFFER: usize = 16 * 1024;

impl State {
    /// # Errors
    /// The far side sent more than the connection's window.
    pub fn receive(&mut self, bytes: usize) -> Result<(), Offence> {
        self.receive_window -= bytes as i64;
        if self.receive_window < 0 {
            return Err(Offence { code: Code::FLOW_CONTROL_ERROR, what: "more content than the connection's window" });
        }
        if self.receive_window < i64::from(self.connection_window / 2) {
            self.promise_more();
        }
        Ok(())
    }

    /// Half of what the far side may send is used up: promises it twice as much, as far as there is memory.
    fn promise_more(&mut self) {
        let window = self.connection_window;
        let waiting = i64::from(window) - self.receive_window - i64::from(self.taken);
        // More than a stream's window helps only where somebody does not take what has come, and others should not wait for him. To be faster
        // alone, nobody makes memory short.
        let held_up = waiting > i64::from(window / 2);
        let most = self.rules.connection_window.min(if held_up { MAX_WINDOW } else { self.rules.stream_window });
        let next = window.saturating_mul(2).min(most);
        let Some(more @ 1..) = next.checked_sub(window) else { return };
        let bytes = next.saturating_sub(FIRST_WINDOW) as usize;
        let grown =
            if held_up { self.incoming_memory.grow_to(bytes) } else { self.incoming_memory.grow_in_plenty_to(bytes) };
        if !grown {
            return;
        }
        self.connection_window = next;
        self.receive_window += i64::from(more);
        self.queue_frames(|out, _| frame::write_window_update(&mut out.tail, 0, more));
    }

    /// Whether contents may be queued: up to the buffer's size, beyond a first piece only while there is memory.
    pub(super) fn has_room(&mut self) -> bool {
        let waiting = self.out.len();
        waiting < FIRST_BUFFER.min(self.rules.buffer_bytes)
            || (waiting < self.rules.buffer_bytes && self.outgoing_memory.grow_to(waiting + MAX_PAYLOAD))
    }

    /// Bytes were taken that came on a stream: the far side may send as many again, and is told so from time to time.
    pub fn take(&mut self, id: u32, bytes: usize) {
        let full = self.rules.stream_window;
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.incoming.ended
            && stream.lost.is_none()
        {
            stream.incoming.taken = stream.incoming.taken.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
            if stream.incoming.taken >= full / 2 && stream.incoming.taken > 0 {
                let taken = std::mem::take(&mut stream.incoming.taken);
                stream.incoming.window += i64::from(taken);
                self.queue_frames(|out, _| frame::write_window_update(&mut out.tail, id, taken));
            }
        }
        self.take_from_connection(bytes);
    }

    /// Like [`State::take`], when the stream gets nothing more.
    pub fn take_from_connection(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.taken >= self.connection_window / 2 {
            let mut taken = std::mem::take(&mut self.taken);
            if self.connection_window > FIRST_WINDOW && self.incoming_memory.account().is_short() {
                // Others need it more: what was taken is not promised again.
                let less = taken.min(self.connection_window - FIRST_WINDOW);
                taken -= less;
                self.connection_window -= less;
                self.incoming_memory.shrink_to((self.connection_window - FIRST_WINDOW) as usize);
            }
            if taken > 0 {
                self.receive_window += i64::from(taken);
                self.queue_frames(|out, _| frame::write_window_update(&mut out.tail, 0, taken));
            }
        }
    }

    /// The far side takes more, on one stream or (0) on all together.
    ///
    /// # Errors
    /// More than there can be (RFC 9113 §6.9.1), or nothing.
    pub fn widen(&mut self, id: u32, bytes: u32) -> Result<(), Ended> {
        const NOTHING: Offence = Offence::protocol("WINDOW_UPDATE adds nothing");
        const TOO_MUCH: Offence = Offence { code: Code::FLOW_CONTROL_ERROR, what: "a window is too large" };
        if id == 0 {
            if bytes == 0 {
                return Err(NOTHING.into());
            }
            self.send_window += i64::from(bytes);
            if self.send_window > i64::from(MAX_WINDOW) {
                return Err(TOO_MUCH.into());
            }
            self.wake_queue();
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if bytes == 0 {
            return self.offend(id, NOTHING);
        }
        stream.outgoing.window += i64::from(bytes);
        if stream.outgoing.window > i64::from(MAX_WINDOW) {
            return self.offend(id, TOO_MUCH);
        }
        if let Some(sender) = stream.outgoing.sender.take() {
            sender.wake();
        }
        Ok(())
    }

    /// Lets as many streams go on as there is room for, those first that waited longest.
    pub fn wake_queue(&mut self) {
        let mut room =
            self.rules.buffer_bytes.saturating_sub(self.out.len()).min(usize::try_from(self.send_window).unwrap_or(0));
        while room > 0
            && let Some(id) = self.queue.pop_front()
        {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.outgoing.queued = false;
                if let Some(sender) = stream.outgoing.sender.take() {
                    sender.wake();
                    room = room.saturating_sub(MAX_PAYLOAD);
                }
            }
        }
    }
}
