//! How far a revision has got: how many proxies have it in effect, and what was refused.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_proto::admin::{RefusedResource, Rollout};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    discovery::{Sessions, session},
    pipeline::Moments,
};

/// Longest that somebody may wait.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Wait where none is given.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Shortest time between two reports, so that a thousand acks are not a thousand reports.
const PACE: Duration = Duration::from_millis(5);

/// A refusal as the admin side tells it.
pub fn refused(proxy: &str, refused: &session::RefusedResource) -> RefusedResource {
    RefusedResource {
        proxy: proxy.to_owned(),
        type_url: refused.kind.type_url().to_owned(),
        resource: refused.name.to_string(),
        path: refused.refusal.path.clone(),
        reason: refused.refusal.reason.clone(),
    }
}

/// How far `revision` is now, and whether nothing more is to be expected (done, or all others refused something).
pub fn look(sessions: &Sessions, moments: &Moments, revision: u64) -> (Rollout, bool) {
    let stored = moments.of(revision);
    let mut rollout = Rollout::default();
    let mut last: Option<Instant> = None;
    let mut waiting = 0_u32;
    for connected in sessions.all() {
        let session = connected.session.lock();
        rollout.total += 1;
        if session.in_effect() >= revision {
            rollout.in_effect += 1;
            last = last.max(session.in_effect_since(revision));
            continue;
        }
        let list = session.refused();
        if list.is_empty() {
            waiting += 1;
        }
        rollout.refused.extend(list.iter().map(|r| refused(&connected.id, r)));
    }
    rollout.done = rollout.in_effect == rollout.total;
    if let Some(stored) = stored {
        let until = if rollout.done { last.unwrap_or(stored) } else { Instant::now() };
        rollout.elapsed_us = u64::try_from(until.saturating_duration_since(stored).as_micros()).unwrap_or(u64::MAX);
    }
    (rollout, waiting == 0)
}

/// Reports until done, until the only proxies that lack it refused something, or until the time is over.
pub async fn watch(
    sessions: Arc<Sessions>,
    moments: Arc<Moments>,
    published: impl Fn() -> u64,
    revision: u64,
    timeout_ms: u32,
    reports: mpsc::Sender<Result<Rollout, Status>>,
) {
    let timeout = match timeout_ms {
        0 => DEFAULT_TIMEOUT,
        ms => Duration::from_millis(ms.into()).min(MAX_TIMEOUT),
    };
    let end = tokio::time::Instant::now() + timeout;
    let mut progress = sessions.watch();
    let mut previous: Option<Rollout> = None;
    loop {
        progress.borrow_and_update();
        let (mut rollout, settled) = look(&sessions, &moments, revision);
        // Before the pipeline has published it, nobody can have it, not even a mesh without proxies.
        let known = published() >= revision;
        rollout.done &= known;
        let finished = known && settled || tokio::time::Instant::now() >= end;
        let moved = previous.as_ref().is_none_or(|p| {
            (p.in_effect, p.total, p.refused.len()) != (rollout.in_effect, rollout.total, rollout.refused.len())
        });
        if (moved || finished) && reports.send(Ok(rollout.clone())).await.is_err() {
            return;
        }
        if finished {
            return;
        }
        previous = Some(rollout);
        tokio::select! {
            _ = progress.changed() => tokio::time::sleep(PACE).await,
            () = tokio::time::sleep_until(end.min(tokio::time::Instant::now() + Duration::from_millis(50))) => {}
            () = reports.closed() => return,
        }
    }
}
