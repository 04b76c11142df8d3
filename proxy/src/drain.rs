//! How the word "stop" reaches everyone who serves a connection, and the word "make room".
//!
//! `sidecar` holds the [`DrainTrigger`]; every served connection holds a [`DrainWatch`] and ends gracefully when it
//! fires. Firing closes nothing by itself: when to stop accepting, whom to tell first and when to cut is decided in
//! `sidecar`.

use std::time::Duration;

use tokio::sync::watch;

/// Fires once, for all watches; asks for room as often as it is short.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Word>);

/// Learns of the firing; clones are cheap and independent.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    words: watch::Receiver<Word>,
    /// The one heard last.
    word: Word,
}

/// What connections are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Finish, and end.
    pub stop: bool,
    pub relief: Relief,
}

/// What connections do while the process runs short of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relief {
    /// Those that carry nothing for longer than this end; `None`: as the settings say.
    pub idle: Option<Duration>,
    /// There is no memory for a head that does not fit into the first read, and clients that could go elsewhere should.
    pub small_heads: bool,
}

impl Relief {
    /// Whether it is memory that is short.
    pub const fn is_memory(&self) -> bool {
        self.small_heads
    }
}

/// A trigger and its first watch.
pub fn drain() -> (DrainTrigger, DrainWatch) {
    let (sender, words) = watch::channel(Word::default());
    (DrainTrigger(sender), DrainWatch { words, word: Word::default() })
}

impl DrainTrigger {
    /// Fires; later calls change nothing.
    pub fn fire(&self) {
        self.0.send_modify(|word| word.stop = true);
    }

    /// Asks for room, or no longer.
    pub fn relieve(&self, relief: Relief) {
        self.0.send_if_modified(|word| std::mem::replace(&mut word.relief, relief) != relief);
    }

    /// Another watch; it knows at once if the trigger has fired already.
    pub fn watch(&self) -> DrainWatch {
        let words = self.0.subscribe();
        let word = *words.borrow();
        DrainWatch { words, word }
    }

    /// Watches alive: connections and listeners that still have to end.
    pub fn watches(&self) -> usize {
        self.0.receiver_count()
    }

    /// Waits until the last watch is gone. Dropping the future changes nothing.
    pub async fn all_gone(&self) {
        self.0.closed().await;
    }
}

impl DrainWatch {
    /// Waits for the firing, also when it happened before. A trigger dropped without firing never fires.
    /// Whoever waits is woken by every new [`Relief`] as well. Dropping the future loses nothing.
    pub async fn fired(&mut self) {
        if self.words.wait_for(|word| word.stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it has fired.
    pub fn is_fired(&self) -> bool {
        self.words.borrow().stop
    }

    /// What was said last. Writes to no memory that others use, unless something new was said.
    pub fn word(&mut self) -> Word {
        if self.words.has_changed().unwrap_or(true) {
            self.word = *self.words.borrow_and_update();
        }
        self.word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_watch_learns_early_and_late() {
        // A connection opened in the moment of the shutdown would never be told and be cut in the end.
        let (trigger, mut before) = drain();
        assert!(!before.is_fired());
        trigger.fire();
        trigger.fire();
        before.fired().await;
        let mut after = trigger.watch();
        after.fired().await;
        assert!(after.is_fired());
        assert_eq!(trigger.watches(), 2);
        drop((before, after));
        trigger.all_gone().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_trigger_is_no_signal() {
        // Connections would be closed because some owner was dropped in a test or during start.
        let (trigger, mut watch) = drain();
        drop(trigger);
        assert!(tokio::time::timeout(Duration::from_secs(60), watch.fired()).await.is_err());
        assert!(!watch.is_fired());
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_asked_for_and_no_longer() {
        // Idle connections would be kept while new ones find no descriptor, or end for ever after one shortage.
        let (trigger, mut watch) = drain();
        assert_eq!(watch.word(), Word::default());
        let relief = Relief { idle: Some(Duration::from_secs(1)), small_heads: true };
        trigger.relieve(relief);
        let mut late = trigger.watch();
        assert_eq!((watch.word().relief, watch.word().relief, late.word().relief), (relief, relief, relief));
        trigger.relieve(Relief::default());
        assert_eq!(watch.word(), Word::default());
        trigger.relieve(relief);
        trigger.fire();
        assert_eq!(watch.word(), Word { stop: true, relief });
        drop(trigger);
        assert_eq!(watch.word(), Word { stop: true, relief });
        assert!(late.is_fired());
    }
}
