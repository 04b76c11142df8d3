//! Workloads that joined through their sidecars.
//!
//! A sidecar registers its workload on the discovery stream; namespace and service account must be those of its certificate.
//! While the stream lives, the workload is there. When it ends, the workload stays for as long as its port answers
//! (`rules`, `health`): a sidecar that lost the control plane, or a control plane that restarted, takes nobody out. Workloads
//! without ports go with their stream. Every change wakes the pipeline; ready, draining and removals do so at once.

pub mod health;
pub mod rules;
pub mod saving;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use outrigger_proto::mesh::Registration;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    authority::Identity,
    model::{PeerKind, RegisteredWorkload, WorkloadPort},
    pipeline::Signal,
    store::StoredWorkload,
};
use health::Dial;

/// Labels of one workload.
const MAX_LABELS: usize = 128;
/// Ports of one workload.
const MAX_PORTS: usize = 64;
/// Longest name, label or locality, in bytes.
const MAX_TEXT_BYTES: usize = 316;

/// All registered workloads.
pub struct Registry {
    inner: Mutex<Inner>,
    signal: Arc<Signal>,
    dial: Dial,
    limit: usize,
    stop: CancellationToken,
    /// Woken when there is something to store.
    saving: Notify,
}

#[derive(Default)]
struct Inner {
    workloads: BTreeMap<String, Entry>,
    /// Counts changes.
    generation: u64,
    /// Not written to the store yet.
    unsaved: BTreeSet<String>,
}

struct Entry {
    registration: Registration,
    /// The stream it is registered on; `None` while it is only kept because its port answers.
    stream: Option<Stream>,
    /// Ends the health check of a workload without a stream.
    check: Option<CancellationToken>,
}

struct Stream {
    number: u64,
    /// Ends the stream when another one takes its place.
    replaced: CancellationToken,
}

/// Why a registration is refused. The stream ends with these words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationRefused {
    #[error("workload {workload:?} claims {claimed}, its certificate says {proved}")]
    Identity { workload: String, claimed: String, proved: String },
    #[error(
        "workload {uid:?} is already registered from {present} by a sidecar that is connected; this one comes from {newcomer} \
             (hint: give each instance a name of its own)"
    )]
    Duplicate { uid: String, present: String, newcomer: String },
    #[error("registration of {workload:?} is not usable: {reason}")]
    Invalid { workload: String, reason: String },
    #[error("{0} workloads are registered already (hint: raise the limit of workloads)")]
    Full(usize),
}

impl Registry {
    /// An empty registry; `restore` brings back what was known before a restart.
    ///
    /// At most `limit` workloads. Health checks end with `stop`; streams that end after it take nobody out, so that a
    /// restart finds everybody in the store.
    pub fn new(signal: Arc<Signal>, dial: Dial, limit: usize, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), signal, dial, limit, stop, saving: Notify::new() })
    }

    /// Takes back stored registrations; each stays for as long as its port answers, or until its sidecar is back.
    pub fn restore(self: &Arc<Self>, stored: Vec<StoredWorkload>) {
        for StoredWorkload { uid, registration } in stored {
            let Some(registration) = registration else { continue };
            let mut inner = self.inner.lock();
            let entry = Entry { registration, stream: None, check: None };
            inner.workloads.insert(uid.clone(), entry);
            inner.generation += 1;
            self.check(&mut inner, &uid);
        }
        self.signal.urgent();
    }

    /// Registers a workload on a stream, or renews what it says. Returns the generation from which on it is known.
    ///
    /// `replaced` is cancelled when another stream takes this one's place.
    ///
    /// # Errors
    /// [`RegistrationRefused`], with which the stream ends.
    pub fn register(
        self: &Arc<Self>,
        registration: Registration,
        identity: &Identity,
        stream: u64,
        replaced: &CancellationToken,
    ) -> Result<u64, RegistrationRefused> {
        check(&registration, identity)?;
        let uid = uid(&registration);
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if !inner.workloads.contains_key(&uid) && inner.workloads.len() >= self.limit {
            return Err(RegistrationRefused::Full(self.limit));
        }
        let mut urgent = false;
        let mut changed = true;
        if let Some(present) = inner.workloads.get_mut(&uid) {
            if let Some(other) = present.stream.as_ref().filter(|s| s.number != stream) {
                if !rules::same_instance(&present.registration, &registration) {
                    return Err(RegistrationRefused::Duplicate {
                        uid,
                        present: describe(&present.registration),
                        newcomer: describe(&registration),
                    });
                }
                // The same instance on a new connection: the old one is half-open or about to end.
                other.replaced.cancel();
            }
            changed = present.registration != registration;
            urgent = rules::is_urgent(&present.registration, &registration);
            if let Some(check) = present.check.take() {
                check.cancel();
            }
        }
        let stream = Some(Stream { number: stream, replaced: replaced.clone() });
        inner.workloads.insert(uid.clone(), Entry { registration, stream, check: None });
        if changed {
            inner.generation += 1;
            inner.unsaved.insert(uid);
            self.saving.notify_one();
            if urgent {
                self.signal.urgent();
            } else {
                self.signal.soon();
            }
        }
        Ok(inner.generation)
    }

    /// A stream has ended; its workload stays while its port answers.
    pub fn disconnected(self: &Arc<Self>, uid: &str, stream: u64) {
        let mut inner = self.inner.lock();
        let Some(entry) = inner.workloads.get_mut(uid) else { return };
        if entry.stream.as_ref().is_none_or(|s| s.number != stream) {
            // Another stream has taken its place.
            return;
        }
        entry.stream = None;
        if !self.stop.is_cancelled() {
            self.check(&mut inner, uid);
        }
    }

    /// Starts the check of a workload without a stream, or takes it out when there is nothing to check.
    fn check(self: &Arc<Self>, inner: &mut Inner, uid: &str) {
        let Some(entry) = inner.workloads.get_mut(uid) else { return };
        let Some(address) = reachable(&entry.registration) else {
            self.take_out(inner, uid, "its stream ended");
            return;
        };
        // Streams are dropped with their runtime: then there is nobody to knock any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let stop = self.stop.child_token();
        entry.check = Some(stop.clone());
        let (registry, uid) = (Arc::clone(self), uid.to_owned());
        let dial = Arc::clone(&self.dial);
        runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = health::until_gone(address, dial) => {
                    let mut inner = registry.inner.lock();
                    // It may have come back while the lock was taken.
                    if inner.workloads.get(&uid).is_some_and(|entry| entry.stream.is_none()) && !stop.is_cancelled() {
                        registry.take_out(&mut inner, &uid, "its stream and its health check are gone");
                    }
                }
            }
        });
    }

    fn take_out(&self, inner: &mut Inner, uid: &str, why: &'static str) {
        if let Some(entry) = inner.workloads.remove(uid) {
            if let Some(check) = entry.check {
                check.cancel();
            }
            tracing::info!(workload = uid, why, "workload is gone");
            inner.generation += 1;
            inner.unsaved.insert(uid.to_owned());
            self.saving.notify_one();
            self.signal.urgent();
        }
    }

    /// Everybody, by uid, and the generation of this list.
    pub fn workloads(&self) -> (u64, Vec<RegisteredWorkload>) {
        let inner = self.inner.lock();
        (inner.generation, inner.workloads.iter().map(|(uid, entry)| workload(uid, &entry.registration)).collect())
    }

    /// What one workload last said of itself, and whether its stream lives.
    pub fn registration(&self, uid: &str) -> Option<(Registration, bool)> {
        let inner = self.inner.lock();
        inner.workloads.get(uid).map(|entry| (entry.registration.clone(), entry.stream.is_some()))
    }

    /// Everybody's last words, by uid, and whether their streams live.
    pub fn registrations(&self) -> Vec<(String, Registration, bool)> {
        let inner = self.inner.lock();
        inner.workloads.iter().map(|(uid, e)| (uid.clone(), e.registration.clone(), e.stream.is_some())).collect()
    }

    /// What has changed since the last call, for the store.
    pub fn take_unsaved(&self) -> Vec<StoredWorkload> {
        let mut inner = self.inner.lock();
        let unsaved = std::mem::take(&mut inner.unsaved);
        unsaved
            .into_iter()
            .map(|uid| {
                let registration = inner.workloads.get(&uid).map(|entry| entry.registration.clone());
                StoredWorkload { uid, registration }
            })
            .collect()
    }
}

/// "namespace/workload".
pub fn uid(registration: &Registration) -> String {
    format!("{}/{}", registration.namespace, registration.workload)
}

fn check(registration: &Registration, identity: &Identity) -> Result<(), RegistrationRefused> {
    let workload: String = registration.workload.chars().take(100).collect();
    if registration.namespace != identity.namespace || registration.service_account != identity.service_account {
        return Err(RegistrationRefused::Identity {
            workload,
            claimed: format!(
                "namespace {:?}, service account {:?}",
                registration.namespace, registration.service_account
            ),
            proved: format!("namespace {:?}, service account {:?}", identity.namespace, identity.service_account),
        });
    }
    let invalid = |reason: String| Err(RegistrationRefused::Invalid { workload: workload.clone(), reason });
    let name = &registration.workload;
    if name.is_empty() || name.len() > 253 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return invalid("its name is not 1 to 253 letters, digits, dashes, dots or underscores".to_owned());
    }
    if !matches!(registration.address.len(), 0 | 4 | 16) {
        return invalid(format!("its address has {} bytes, not 4 or 16", registration.address.len()));
    }
    if registration.labels.len() > MAX_LABELS {
        return invalid(format!("it has more than {MAX_LABELS} labels"));
    }
    let texts = registration.labels.iter().flat_map(|(k, v)| [k, v]).chain([&registration.locality]);
    if texts.chain(registration.ports.iter().map(|p| &p.name)).any(|text| text.len() > MAX_TEXT_BYTES) {
        return invalid(format!("a label, port name or locality is longer than {MAX_TEXT_BYTES} bytes"));
    }
    if registration.ports.len() > MAX_PORTS {
        return invalid(format!("it has more than {MAX_PORTS} ports"));
    }
    let in_range = |port: u32| (1..=u32::from(u16::MAX)).contains(&port);
    if let Some(port) = registration.ports.iter().find(|p| !in_range(p.target_port) || !in_range(p.reachable_port)) {
        return invalid(format!(
            "port {} reached at {} is not between 1 and 65535",
            port.target_port, port.reachable_port
        ));
    }
    if !registration.ports.is_empty() && registration.address.is_empty() {
        return invalid("it has ports but no address".to_owned());
    }
    Ok(())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Where the health check knocks: the first port, since one process listens on all of them.
fn reachable(registration: &Registration) -> Option<SocketAddr> {
    let port = u16::try_from(registration.ports.first()?.reachable_port).ok()?;
    Some(SocketAddr::new(ip(&registration.address)?, port))
}

fn describe(registration: &Registration) -> String {
    reachable(registration).map_or_else(|| "an address without ports".to_owned(), |address| address.to_string())
}

fn workload(uid: &str, registration: &Registration) -> RegisteredWorkload {
    let port = |number: u32| u16::try_from(number).unwrap_or(0);
    RegisteredWorkload {
        uid: uid.to_owned(),
        namespace: registration.namespace.clone(),
        workload: registration.workload.clone(),
        service_account: registration.service_account.clone(),
        labels: registration.labels.clone(),
        locality: registration.locality.clone(),
        address: ip(&registration.address),
        ports: registration
            .ports
            .iter()
            .map(|p| WorkloadPort {
                target_port: port(p.target_port),
                name: p.name.clone(),
                reachable_port: port(p.reachable_port),
            })
            .collect(),
        ready: registration.ready,
        draining: registration.draining,
        mesh: PeerKind::Outrigger,
    }
}

#[cfg(test)]
mod tests;
