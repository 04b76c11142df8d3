//! The newest picture of the mesh, and how it gets here.
//!
//! `stream` receives, `subscriber` decides with `ledger` (what the server knows of us), `decode` (is it valid),
//! `apply` (what does it make) and `interest` (what does the data path need); `disk` keeps the last good configuration
//! over restarts; [`run`] drives them on the control runtime. The data path never waits for the control plane; it may
//! ask for a name it has not seen ([`demand`]) and then waits a bounded time. [`fixed`] needs no control plane.
//!
//! A response is acknowledged after the view that contains it is published. Nothing is taken away because a stream
//! ends or an answer is empty: only what the server names as removed is removed.

pub mod apply;
pub mod connect;
pub mod decode;
pub mod demand;
pub mod disk;
pub mod fixed;
mod interest;
pub mod ledger;
pub mod status;
mod stream;
mod subscriber;
#[cfg(test)]
mod tests;
pub mod view;

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use http::Uri;
use outrigger_proto::{discovery::DeltaDiscoveryResponse, mesh::Registration};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    connect::{Channel, connect},
    demand::Requests,
    status::Status,
    stream::{Backoff, Link},
    subscriber::{MAX_UNSENT, Subscriber},
    view::View,
};
use crate::{
    host::{self, Instant},
    identity::{Identity, client::trust, trust::client_config},
    settings::{ControlPlane, Limits, NodeSettings, Timeouts},
};

/// What [`run`] needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    pub control_plane: ControlPlane,
    pub node: NodeSettings,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// Where the last good configuration is kept; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// `SO_MARK` for the connection to the control plane; `None`: none.
    pub mark: Option<u32>,
}

/// Longest wait for a connection to the control plane.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes within this time are saved together.
const SAVE_AFTER: Duration = Duration::from_secs(2);
/// How often use is noted and unused names are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Responses or demands taken in before the next view is made of them.
const BATCH: usize = 64;

/// Follows the control plane until `stop`: publishes views, answers demands, keeps the configuration on disk.
///
/// `publish` must make the view the current one before it returns; it is called with increasing generations, never
/// concurrently. Connects once `identity` has a certificate; what is on disk is published before that.
/// Runs for the life of the process, and never fails: troubles stand in `status` and in the log.
pub async fn run(
    options: Options,
    identity: Arc<Identity>,
    registration: watch::Receiver<Registration>,
    requests: Requests,
    status: Arc<Status>,
    publish: impl Fn(Arc<View>) + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let dial = {
        let (options, identity) = (options.clone(), Arc::clone(&identity));
        move || -> Dialling {
            let (options, identity) = (options.clone(), Arc::clone(&identity));
            Box::pin(async move {
                identity.ready().await;
                let material = identity.material();
                let trust = trust(&options.control_plane, &options.node.trust_domain, &identity, None);
                let trust = trust.map_err(|error| error.to_string())?;
                let config = client_config(trust, material.as_deref()).map_err(|error| error.to_string())?;
                let channel =
                    connect(&options.control_plane.address, Arc::new(config), options.mark, CONNECT_TIMEOUT).await;
                channel.map_err(|error| error.to_string())
            })
        }
    };
    follow(options, identity, registration, requests, status, publish, dial, stop).await;
}

/// A connection in the making; the error is for people.
type Dialling = Pin<Box<dyn Future<Output = Result<Channel, String>> + Send>>;

/// How it stands with the server.
enum Standing {
    /// Until then nothing is tried.
    Waiting(Instant),
    Dialling(Dialling),
    Open(Link),
}

/// [`run`] with any way to connect.
#[allow(clippy::too_many_arguments, reason = "the parts that run for the whole life of the process meet here")]
async fn follow(
    options: Options,
    identity: Arc<Identity>,
    mut registration: watch::Receiver<Registration>,
    mut requests: Requests,
    status: Arc<Status>,
    publish: impl Fn(Arc<View>) + Send + Sync + 'static,
    dial: impl Fn() -> Dialling + Send + 'static,
    stop: CancellationToken,
) {
    let authority = options.control_plane.address.as_str();
    let origin = Uri::builder().scheme("https").authority(authority).path_and_query("/").build().unwrap_or_default();
    let first = registration.borrow_and_update().clone();
    let mut subscriber = Subscriber::new(options.node.clone(), first, &options.limits, options.timeouts.forget);
    let restored = restore(&mut subscriber, &options).await;
    let mut backoff = Backoff::default();
    let mut standing = Standing::Waiting(host::now());
    let mut sweep_at = host::now() + SWEEP_EVERY.min(options.timeouts.forget);
    let mut save_at: Option<Instant> = None;
    let mut saving: Option<JoinHandle<()>> = None;
    let mut demands_open = true;
    let mut registration_open = true;

    loop {
        // Everything that arrived is in; now what follows from it.
        let now = host::now();
        if let Some(view) = subscriber.step(now) {
            requests.uses.follow(view.services.keys());
            debug!(generation = view.generation, services = view.services.len(), "view published");
            publish(view);
        }
        if let Some(roots) = subscriber.take_roots() {
            match identity.announce(&roots) {
                Ok(true) => info!(roots = roots.len(), "roots of the trust domain changed"),
                Ok(false) => {}
                Err(error) => error!(%error, "announced roots cannot be used, the previous ones stay"),
            }
        }
        subscriber.settle(now);
        if subscriber.is_answered() {
            backoff.reset();
        }
        report(&status, &subscriber, restored);
        if subscriber.is_unsaved() && save_at.is_none() && options.state_dir.is_some() {
            save_at = Some(now + SAVE_AFTER);
        }

        // Everything that can happen next. Sending changes nothing of what follows, so it does not leave this loop.
        let event = loop {
            let (link, dialling, retry_at) = match &mut standing {
                Standing::Open(link) => (Some(link), None, None),
                Standing::Dialling(dialling) => (None, Some(dialling), None),
                Standing::Waiting(until) => (None, None, Some(*until)),
            };
            let (sender, receiver) = link.map(|link| (&link.requests, &mut link.responses)).unzip();
            // Answers go out before more comes in; a stream that takes nothing any more has a reason to tell.
            let sends = subscriber.unsent() > 0 && sender.is_some_and(|sender| !sender.is_closed());
            let receives = !sends || subscriber.unsent() < MAX_UNSENT;
            let mut responses = Vec::new();
            tokio::select! {
                biased;
                () = stop.cancelled() => break Event::Stop,
                permit = ready(sender.map(|sender| sender.reserve())), if sends => {
                    if let Ok(permit) = permit
                        && let Some(request) = subscriber.next_request()
                    {
                        permit.send(request);
                    }
                }
                count = ready(receiver.map(|receiver| receiver.recv_many(&mut responses, BATCH))), if receives => {
                    break if count == 0 { Event::Ended } else { Event::Responses(responses) };
                }
                channel = ready(dialling) => break Event::Dialled(channel),
                () = until(retry_at) => break Event::Retry,
                request = requests.receiver.recv(), if demands_open => break Event::Demand(request),
                changed = registration.changed(), if registration_open => break Event::Registration(changed.is_ok()),
                () = until(subscriber.next_step()) => break Event::Step,
                () = until(Some(sweep_at)) => break Event::Sweep,
                () = until(save_at.filter(|_| saving.is_none())) => break Event::Save,
                _ = ready(saving.as_mut()) => break Event::Saved,
            }
        };
        match event {
            Event::Stop => return finish(&mut subscriber, saving, &options).await,
            Event::Responses(responses) => {
                for response in responses {
                    match response {
                        Ok(response) => subscriber.receive(response),
                        Err(trouble) => {
                            standing = lose(&mut subscriber, &status, &mut backoff, trouble.message().to_owned());
                        }
                    }
                }
            }
            Event::Ended => {
                standing = lose(&mut subscriber, &status, &mut backoff, "the stream ended".to_owned());
            }
            Event::Dialled(Ok(channel)) => {
                subscriber.connected();
                status.note(|report| {
                    report.connected_since = Some(host::wall_clock());
                    report.disconnected_since = None;
                    report.connections += 1;
                });
                info!(address = authority, "connected to control plane");
                standing = Standing::Open(stream::open(channel, origin.clone()));
            }
            Event::Dialled(Err(reason)) => standing = lose(&mut subscriber, &status, &mut backoff, reason),
            Event::Retry => standing = Standing::Dialling(dial()),
            Event::Demand(request) => {
                demands_open = request.is_some();
                let more = std::iter::from_fn(|| requests.receiver.try_recv().ok());
                for request in request.into_iter().chain(more.take(BATCH)) {
                    subscriber.demand(request, host::now());
                }
            }
            Event::Registration(open) => {
                registration_open = open;
                subscriber.register(registration.borrow_and_update().clone());
            }
            Event::Step => {}
            Event::Sweep => {
                subscriber.sweep(&requests.uses.take(), host::now());
                sweep_at = host::now() + SWEEP_EVERY.min(options.timeouts.forget);
            }
            Event::Save => {
                save_at = None;
                saving = save(&mut subscriber, &options);
            }
            Event::Saved => saving = None,
        }
    }
}

/// What ends a wait.
enum Event {
    Stop,
    Responses(Vec<Result<DeltaDiscoveryResponse, tonic::Status>>),
    /// The reader is gone without a word.
    Ended,
    Dialled(Result<Channel, String>),
    Retry,
    /// `None`: nobody is left who could ask.
    Demand(Option<demand::Request>),
    /// Whether it may change again.
    Registration(bool),
    /// Time has passed that something waited for.
    Step,
    Sweep,
    Save,
    Saved,
}

/// Waits for what is there; for ever when nothing is.
async fn ready<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => host::sleep(moment.saturating_duration_since(host::now())).await,
        None => std::future::pending().await,
    }
}

/// The connection is gone or did not come about.
fn lose(subscriber: &mut Subscriber, status: &Status, backoff: &mut Backoff, reason: String) -> Standing {
    subscriber.disconnected();
    let wait = backoff.next(host::random_below);
    // The same trouble again and again is one trouble.
    if status.report().last_error.as_ref() == Some(&reason) {
        debug!(reason, retry_in = ?wait, "no connection to control plane");
    } else {
        warn!(reason, retry_in = ?wait, "no connection to control plane, the last configuration stays in force");
    }
    status.note(|report| {
        report.connected_since = None;
        report.disconnected_since.get_or_insert_with(host::wall_clock);
        report.last_error = Some(reason);
    });
    Standing::Waiting(host::now() + wait)
}

fn report(status: &Status, subscriber: &Subscriber, restored: bool) {
    status.note(|report| {
        report.generation = subscriber.generation();
        report.refused = subscriber.refused();
        report.held = subscriber.held().len();
        if let Some(revision) = subscriber.revision()
            && revision != report.revision
        {
            revision.clone_into(&mut report.revision);
        }
        report.from_disk = restored && report.revision.is_empty();
    });
    status.set_draining_confirmed(subscriber.is_draining_confirmed());
}

/// Takes up what is on disk; says whether there was anything.
async fn restore(subscriber: &mut Subscriber, options: &Options) -> bool {
    let Some(folder) = options.state_dir.clone() else { return false };
    let shown = disk::path(&folder);
    let owner = Subscriber::owner(&options.node);
    match host::run_blocking(move || disk::load(&folder, &owner)).await {
        Ok(Ok(Some(snapshot))) => {
            info!(resources = snapshot.resources.len(), file = %shown.display(), "starting from the last good configuration");
            subscriber.restore(snapshot, host::now());
            true
        }
        Ok(Ok(None)) => false,
        Ok(Err(reason)) => {
            error!(%reason, file = %shown.display(), "last good configuration is ignored");
            false
        }
        Err(reason) => {
            error!(%reason, file = %shown.display(), "last good configuration could not be read");
            false
        }
    }
}

fn save(subscriber: &mut Subscriber, options: &Options) -> Option<JoinHandle<()>> {
    let folder = options.state_dir.clone()?;
    let snapshot = subscriber.unsaved()?;
    Some(host::run_blocking(move || {
        if let Err(reason) = disk::save(&folder, &snapshot) {
            error!(%reason, folder = %folder.display(), "configuration cannot be saved (hint: is the folder writable?)");
        }
    }))
}

/// Saves what is not saved yet.
async fn finish(subscriber: &mut Subscriber, saving: Option<JoinHandle<()>>, options: &Options) {
    for task in saving.into_iter().chain(save(subscriber, options)) {
        if let Err(reason) = task.await {
            error!(%reason, "configuration could not be saved");
        }
    }
}
