//! How the proxy stands with its control plane, for the admin port, readiness and drain.
//!
//! Written by `run`, read from anywhere. Knows nothing of the configuration itself.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use crate::host;

/// Shared standing.
#[derive(Debug)]
pub struct Status {
    report: Mutex<Report>,
    /// Whether the server has answered the announcement that this proxy is draining.
    draining: watch::Sender<bool>,
}

/// One reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `None`: no stream is open now.
    pub connected_since: Option<SystemTime>,
    /// When the last stream was lost; `None` while connected or when there was none yet.
    pub disconnected_since: Option<SystemTime>,
    /// The last trouble, also after it has passed; `None`: never any.
    pub last_error: Option<String>,
    /// Generation of the newest published view; 0: none yet.
    pub generation: u64,
    /// Whether that view came from disk and the control plane has not answered yet.
    pub from_disk: bool,
    /// Store revision of the newest response in force; empty before the first.
    pub revision: String,
    /// Streams opened since the start.
    pub connections: u64,
    /// Resources refused since the start.
    pub refused: u64,
    /// Resources held, of all kinds.
    pub held: usize,
}

impl Default for Status {
    fn default() -> Self {
        Self { report: Mutex::default(), draining: watch::Sender::new(false) }
    }
}

impl Status {
    /// An empty standing to hand to [`super::run`] and to readers.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The standing now.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// Waits until the control plane has confirmed that peers no longer send here; `false` after `timeout`.
    ///
    /// Confirmed means: after the request that says "draining" on kind Node, the server sent a response of that kind
    /// with neither resources nor removals.
    pub async fn confirmed_draining(&self, timeout: Duration) -> bool {
        let mut draining = self.draining.subscribe();
        tokio::select! {
            biased;
            confirmed = draining.wait_for(|confirmed| *confirmed) => confirmed.is_ok(),
            () = host::sleep(timeout) => false,
        }
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock());
    }

    pub(super) fn set_draining_confirmed(&self, confirmed: bool) {
        self.draining.send_replace(confirmed);
    }
}
