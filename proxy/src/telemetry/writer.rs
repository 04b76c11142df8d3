//! Lines to a slow output without waiting for it.
//!
//! Callers append to a bounded buffer; a thread of its own writes. When the output cannot keep up, whole lines are
//! dropped and counted: a blocked terminal or log collector must never block a request.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

/// Bytes that may wait for the output.
pub(super) const BUFFER_BYTES: usize = 1 << 20;

/// The callers' end. The thread ends when all of them are gone and everything is written.
#[derive(Clone)]
pub(super) struct LineWriter {
    shared: Arc<Shared>,
    _open: Arc<Open>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    written: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    writing: bool,
    closed: bool,
}

/// Tells the thread that nobody will write any more.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.waiting.lock().closed = true;
        self.0.filled.notify_one();
    }
}

impl LineWriter {
    /// Starts the thread. `None` when the system has no thread left.
    pub(super) fn start(name: &str, output: Box<dyn Write + Send>) -> Option<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let theirs = shared.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || theirs.write_all(output)).ok()?;
        Some(Self { _open: Arc::new(Open(shared.clone())), shared })
    }

    /// Lets `render` append one line; it is taken back when there is no room for it.
    pub(super) fn line(&self, render: impl FnOnce(&mut Vec<u8>)) {
        let mut waiting = self.shared.waiting.lock();
        let before = waiting.bytes.len();
        if before < BUFFER_BYTES {
            render(&mut waiting.bytes);
        }
        if waiting.bytes.len() > BUFFER_BYTES || before >= BUFFER_BYTES {
            waiting.bytes.truncate(before);
            drop(waiting);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let asleep = before == 0 && !waiting.writing;
        drop(waiting);
        if asleep {
            self.shared.filled.notify_one();
        }
    }

    /// Lines that were dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything so far is written, at most `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let mut waiting = self.shared.waiting.lock();
        self.shared.written.wait_while_for(&mut waiting, |waiting| waiting.writing || !waiting.bytes.is_empty(), limit);
    }
}

impl Shared {
    fn write_all(&self, mut output: Box<dyn Write + Send>) {
        let mut bytes = Vec::new();
        loop {
            {
                let mut waiting = self.waiting.lock();
                waiting.writing = false;
                self.written.notify_all();
                while waiting.bytes.is_empty() {
                    if waiting.closed {
                        return;
                    }
                    self.filled.wait(&mut waiting);
                }
                waiting.writing = true;
                std::mem::swap(&mut waiting.bytes, &mut bytes);
            }
            // There is nowhere to report that standard output is gone; what comes later may succeed again.
            let _ = output.write_all(&bytes).and_then(|()| output.flush());
            bytes.clear();
            bytes.shrink_to(BUFFER_BYTES / 4);
        }
    }
}

/// The same, for code that wants to write through `io::Write`: every call is one line.
impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line(|buffer| buffer.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An output that waits for leave before each write.
    struct Gate {
        leave: mpsc::Receiver<()>,
        entered: mpsc::SyncSender<()>,
        bytes: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            let _ = self.leave.recv();
            self.bytes.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_output_drops_whole_lines_and_blocks_nobody() {
        // A stuck log collector would otherwise stop all traffic, or eat all memory.
        let (open, leave) = mpsc::channel();
        let (entered, waits) = mpsc::sync_channel(1);
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let writer = LineWriter::start("test", Box::new(Gate { leave, entered, bytes: bytes.clone() })).unwrap();
        writer.line(|line| line.extend_from_slice(b"first\n"));
        waits.recv().unwrap();
        let line = vec![b'x'; BUFFER_BYTES / 4];
        for _ in 0..6 {
            writer.line(|buffer| buffer.extend_from_slice(&line));
        }
        assert_eq!(writer.dropped(), 2);
        drop(open);
        waits.recv().unwrap();
        writer.flush(Duration::from_secs(30));
        assert_eq!(bytes.lock().len(), "first\n".len() + 4 * line.len());
    }
}
