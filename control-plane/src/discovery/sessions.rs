//! Who is connected, and how far each proxy is.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use outrigger_proto::kind::Kind;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Session;
use crate::authority::Identity;

/// One connected proxy.
pub struct Connected {
    /// Unique among all streams of this process.
    pub stream: u64,
    /// "namespace/workload".
    pub id: String,
    pub identity: Identity,
    pub address: SocketAddr,
    /// Software and version, as the proxy gives them.
    pub version: String,
    pub since: SystemTime,
    /// Locked for moments only, never across an await.
    pub session: Mutex<Session>,
}

/// All connected proxies.
#[derive(Default)]
pub struct Sessions {
    connected: Mutex<BTreeMap<u64, Arc<Connected>>>,
    next_stream: AtomicU64,
    progress: watch::Sender<u64>,
}

impl Sessions {
    /// A number for a new stream.
    pub fn next_stream(&self) -> u64 {
        self.next_stream.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A proxy has connected.
    pub fn add(&self, connected: Arc<Connected>) {
        self.connected.lock().insert(connected.stream, connected);
        self.progressed();
    }

    /// Its stream has ended.
    pub fn remove(&self, stream: u64) {
        self.connected.lock().remove(&stream);
        self.progressed();
    }

    /// Everybody, oldest stream first.
    pub fn all(&self) -> Vec<Arc<Connected>> {
        self.connected.lock().values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.connected.lock().len()
    }

    /// Is nobody connected?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Something acked, refused, came or went.
    pub fn progressed(&self) {
        self.progress.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes whenever somebody acked, refused, came or went.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Waits until all but `stream` have this kind of the catalogue `sequence` in effect.
    pub async fn all_synced(&self, kind: Kind, sequence: u64, stream: u64) {
        let mut progress = self.watch();
        loop {
            let behind = self.all().iter().any(|c| c.stream != stream && c.session.lock().synced(kind) < sequence);
            if !behind || progress.changed().await.is_err() {
                return;
            }
        }
    }
}
