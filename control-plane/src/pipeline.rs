//! From a change to the next catalogue: store and registry -> mesh -> resources -> sessions. One task.
//!
//! Changes of configuration are collected for a moment, a burst of them for about as long as a run takes; health, draining and
//! removals of workloads are not. A run takes what there is when it starts, so changes that come while one is under way become
//! the next one, however many they are.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Location, Object, ObjectKey},
    compile::{self, Compiled, ObjectStatus},
    discovery::Catalogue,
    model::{Inputs, Mesh, MeshSettings, needs_virtual_address},
    registry::Registry,
    settings::Limits,
    store::{Found, Store, StoreError, StoredObject},
    telemetry::Metrics,
    validate::Problem,
};

/// Says that there is something to do.
#[derive(Debug, Default)]
pub struct Signal {
    /// `None`: nothing; `Some(true)`: without delay.
    pending: Mutex<Option<bool>>,
    notify: Notify,
}

impl Signal {
    /// Something changed that may be collected for a moment.
    pub fn soon(&self) {
        self.pending.lock().get_or_insert(false);
        self.notify.notify_one();
    }

    /// Something changed that must be known at once.
    pub fn urgent(&self) {
        *self.pending.lock() = Some(true);
        self.notify.notify_one();
    }

    /// What there is to do, and nothing from now on. `Some(true)`: it was urgent.
    pub fn take(&self) -> Option<bool> {
        self.pending.lock().take()
    }

    fn is_urgent(&self) -> bool {
        *self.pending.lock() == Some(true)
    }

    /// Waits for something to do, then until nothing has come for `quiet`, at most `longest`, and not at all when it is urgent.
    pub async fn collected(&self, quiet: Duration, longest: Duration) -> bool {
        while self.pending.lock().is_none() {
            self.notify.notified().await;
        }
        let end = tokio::time::Instant::now() + longest;
        while !self.is_urgent() {
            let until = (tokio::time::Instant::now() + quiet).min(end);
            if tokio::time::timeout_at(until, self.notify.notified()).await.is_err() {
                break;
            }
        }
        self.take().unwrap_or(false)
    }
}

/// When recent revisions were stored, for measuring.
#[derive(Debug, Default)]
pub struct Moments {
    recent: Mutex<VecDeque<(u64, Instant)>>,
}

impl Moments {
    /// Revisions whose moment is remembered.
    const KEPT: usize = 1024;

    /// The revision has just been stored.
    pub fn note(&self, revision: u64) {
        let mut recent = self.recent.lock();
        if recent.len() >= Self::KEPT {
            recent.pop_front();
        }
        recent.push_back((revision, Instant::now()));
    }

    /// When it was stored; `None` for one before this process or too long ago.
    pub fn of(&self, revision: u64) -> Option<Instant> {
        self.recent.lock().iter().find(|(r, _)| *r == revision).map(|(_, at)| *at)
    }
}

/// What the last run found out, beside the catalogue.
#[derive(Debug, Default)]
pub struct Picture {
    pub revision: u64,
    /// Objects of that revision, read.
    pub objects: Vec<Arc<Object>>,
    pub compiled: Compiled,
    /// Conditions of every object.
    pub status: Vec<ObjectStatus>,
    /// Problems between objects.
    pub problems: Vec<Problem>,
}

/// The task and what it reads.
pub struct Pipeline {
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub signal: Arc<Signal>,
    pub metrics: Arc<Metrics>,
    pub settings: MeshSettings,
    pub limits: Limits,
    /// Roots of the trust bundle, PEM.
    pub roots: Vec<Bytes>,
    pub catalogue: watch::Sender<Arc<Catalogue>>,
    pub picture: Arc<ArcSwap<Picture>>,
    /// Objects of the newest revision, read once for each of their versions.
    pub parsed: Parsed,
}

/// Objects as they were last read from the store.
#[derive(Debug, Default)]
pub struct Parsed {
    revision: Option<u64>,
    by_key: BTreeMap<ObjectKey, (u64, Arc<Object>)>,
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

impl Pipeline {
    /// Runs until `stop`. A run that fails is repeated after a second; what proxies have stays as it is meanwhile.
    pub async fn run(mut self, stop: CancellationToken) {
        let Limits { debounce_quiet, debounce_max, .. } = self.limits;
        let mut last_run = Duration::ZERO;
        loop {
            // Waiting for more of a burst saves runs and costs time: no more than a run costs.
            let longest = last_run.min(debounce_max).max(debounce_quiet);
            let urgent = tokio::select! {
                () = stop.cancelled() => return,
                urgent = self.signal.collected(debounce_quiet, longest) => urgent,
            };
            let started = Instant::now();
            if urgent { &self.metrics.triggers_endpoint } else { &self.metrics.triggers_config }.add(1);
            if let Err(error) = self.step_aside() {
                tracing::error!(%error, "cannot work out what proxies must know; they keep what they have");
                let signal = Arc::clone(&self.signal);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_secs(1)) => signal.soon(),
                }
            }
            last_run = started.elapsed();
        }
    }

    /// One run, with other tasks moved off this thread where the runtime has more than one.
    fn step_aside(&mut self) -> Result<(), StoreError> {
        match tokio::runtime::Handle::current().runtime_flavor() {
            tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| self.step()),
            _ => self.step(),
        }
    }

    /// One run: reads what is new, publishes the next catalogue.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn step(&mut self) -> Result<(), StoreError> {
        let started = Instant::now();
        if self.parsed.revision != Some(self.store.newest()?) {
            self.read_objects()?;
        }
        let newest = self.parsed.revision.unwrap_or_default();
        let (generation, workloads) = self.registry.workloads();
        let objects: Vec<Arc<Object>> = self.parsed.by_key.values().map(|(_, object)| Arc::clone(object)).collect();
        let inputs = Inputs {
            objects: &objects,
            workloads: &workloads,
            virtual_addresses: &self.parsed.addresses,
            settings: &self.settings,
        };
        let (mesh, problems) = Mesh::build(inputs);
        let compiled = compile::compile(&mesh, &self.roots);
        let nodes = workloads.iter().map(|workload| Arc::new(compile::node(&mesh, workload)));
        let resources = compiled.iter().cloned().chain(nodes);
        let next = Catalogue::next(&self.catalogue.borrow(), resources, newest, generation);
        self.metrics.revision.set(newest);
        self.metrics.resources.set(next.len() as u64);
        self.metrics.workloads.set(workloads.len() as u64);
        let status = compile::status(&mesh);
        self.picture.store(Arc::new(Picture { revision: newest, objects, status, compiled, problems }));
        self.catalogue.send_replace(Arc::new(next));
        self.metrics.push_time.observe_time(started.elapsed());
        Ok(())
    }

    /// Takes in what changed since the last time.
    fn read_objects(&mut self) -> Result<(), StoreError> {
        let (newest, found) = self.store.newer(|key| self.parsed.by_key.get(key).map(|(revision, _)| *revision))?;
        // Not complete until the end: after an error in between, this runs again.
        self.parsed.revision = None;
        let mut old = std::mem::take(&mut self.parsed.by_key);
        for found in found {
            match found {
                Found::Known(key) => {
                    if let Some(known) = old.remove(&key) {
                        self.parsed.by_key.insert(key, known);
                    }
                }
                Found::Newer(stored) => match parse(&stored) {
                    Ok(object) => drop(self.parsed.by_key.insert(stored.key, (stored.revision, Arc::new(object)))),
                    // Written by a version that knew more: the rest of the mesh goes on without it.
                    Err(reason) => {
                        tracing::error!(object = %stored.key, reason, "a stored object cannot be read; it has no effect");
                    }
                },
            }
        }
        let objects: Vec<Arc<Object>> = self.parsed.by_key.values().map(|(_, object)| Arc::clone(object)).collect();
        let needy = needs_virtual_address(&objects, &self.settings);
        let given = self.store.virtual_addresses(&needy)?;
        if given.len() < needy.len() {
            tracing::error!(left_out = needy.len() - given.len(), "no virtual addresses are left for some services");
        }
        self.parsed.addresses =
            given.into_iter().map(|(service, address)| (service, vec![IpAddr::V4(address)])).collect();
        self.parsed.revision = Some(newest);
        Ok(())
    }
}

/// A stored object, read again.
///
/// # Errors
/// The problems, as one text.
pub fn parse(stored: &StoredObject) -> Result<Object, String> {
    let location = Location { file: "".into(), line: 0, column: 0 };
    let mut object = api::from_json(&stored.json, location)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    object.generation = stored.generation;
    object.created_unix = stored.created_unix;
    Ok(object)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn configuration_is_collected_and_health_is_not() {
        // A hundred applied files must become few pushes; a dead endpoint must not wait for them.
        let (quiet, longest) = (Duration::from_millis(10), Duration::from_millis(100));
        let signal = Arc::new(Signal::default());
        let begin = tokio::time::Instant::now();
        signal.soon();
        assert!(!signal.collected(quiet, longest).await);
        assert_eq!(begin.elapsed(), quiet);

        let stream = Arc::clone(&signal);
        let noise = tokio::spawn(async move {
            loop {
                stream.soon();
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        });
        let begin = tokio::time::Instant::now();
        assert!(!signal.collected(quiet, longest).await);
        assert!(begin.elapsed() >= longest && begin.elapsed() < longest + quiet, "{:?}", begin.elapsed());
        let urgent = Arc::clone(&signal);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            urgent.urgent();
        });
        let begin = tokio::time::Instant::now();
        assert!(signal.collected(quiet, longest).await);
        assert!(begin.elapsed() <= Duration::from_millis(6), "{:?}", begin.elapsed());
        noise.abort();
    }
}
