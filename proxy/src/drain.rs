//! How the word "stop" reaches everyone who serves a connection.
//!
//! `sidecar` holds the [`DrainTrigger`]; every served connection holds a [`DrainWatch`] and ends gracefully when it
//! fires. Firing closes nothing by itself: when to stop accepting, whom to tell first and when to cut is decided in
//! `sidecar`.

use tokio::sync::watch;

/// Fires once, for all watches.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<bool>);

/// Learns of the firing; clones are cheap and independent.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<bool>);

/// A trigger and its first watch.
pub fn drain() -> (DrainTrigger, DrainWatch) {
    let (sender, receiver) = watch::channel(false);
    (DrainTrigger(sender), DrainWatch(receiver))
}

impl DrainTrigger {
    /// Fires; later calls change nothing.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }

    /// Another watch; it knows at once if the trigger has fired already.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch(self.0.subscribe())
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
    /// Dropping the future loses nothing.
    pub async fn fired(&mut self) {
        if self.0.wait_for(|fired| *fired).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it has fired.
    pub fn is_fired(&self) -> bool {
        *self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
}
