//! Writes registrations to the store, beside the pipeline: a push never waits for the disk.

use std::{sync::Arc, time::Duration};

use super::Registry;
use crate::store::Store;

/// Wait after a failed write; what changed meanwhile goes along with the next one.
const RETRY: Duration = Duration::from_secs(1);

impl Registry {
    /// Stores what changes until the control plane stops, and then what is left.
    pub async fn save_until_stopped(self: Arc<Self>, store: Arc<Store>) {
        loop {
            let stopping = tokio::select! {
                () = self.stop.cancelled() => true,
                () = self.saving.notified() => false,
            };
            let unsaved = self.take_unsaved();
            if !unsaved.is_empty() {
                let (store, batch) = (Arc::clone(&store), unsaved.clone());
                let saved = tokio::task::spawn_blocking(move || store.save_workloads(&batch)).await;
                if !matches!(saved, Ok(Ok(()))) {
                    tracing::error!(
                        ?saved,
                        "cannot store registrations; a restart would not know them until their sidecars are back"
                    );
                    self.inner.lock().unsaved.extend(unsaved.into_iter().map(|workload| workload.uid));
                    if !stopping {
                        tokio::time::sleep(RETRY).await;
                        self.saving.notify_one();
                    }
                }
            }
            if stopping {
                return;
            }
        }
    }
}
