//! The connections of one endpoint that one worker owns: idle ones of HTTP/1, shared ones of HTTP/2.
//!
//! Holds and counts them and drops what is spent. `lease` decides who may have which, and when one is opened.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{http1::Http1, http2::Http2};
use crate::{failure::Reason, host::Instant, settings::Timeouts};

/// The connections of one endpoint that one worker owns.
#[derive(Debug, Default)]
pub struct Pool {
    pub(super) http1: Mutex<Vec<Http1>>,
    pub(super) http2: Mutex<Shared>,
}

/// The connections that many requests use at once.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) connections: Vec<Arc<Http2>>,
    /// Set while a connection is being opened; tells how it went.
    pub(super) opening: Option<watch::Receiver<Opening>>,
}

/// How opening a shared connection goes.
#[derive(Clone, Debug)]
pub(super) enum Opening {
    UnderWay,
    Open,
    Failed(Reason, Arc<str>),
}

/// How long connections may carry nothing.
#[derive(Clone, Copy, Debug)]
pub struct IdleLimits {
    pub http1: Duration,
    pub http2: Duration,
}

impl IdleLimits {
    /// The proxy's own.
    pub const fn new(timeouts: &Timeouts) -> Self {
        Self { http1: timeouts.pool_idle, http2: timeouts.mesh_idle }
    }

    /// Nothing is kept that carries nothing.
    pub const fn none() -> Self {
        Self { http1: Duration::ZERO, http2: Duration::ZERO }
    }

    /// What a policy says for all HTTP connections, where it says anything.
    #[must_use]
    pub fn or_policy(self, policy: Option<Duration>) -> Self {
        policy.map_or(self, |idle| Self { http1: idle, http2: idle })
    }
}

impl Pool {
    /// Drops what is closed, too old or idle for too long; called about once a second.
    pub fn sweep(&self, now: Instant, idle: IdleLimits) {
        self.http1.lock().retain(|connection| !connection.is_spent(now, idle.http1) && connection.is_ready());
        self.http2
            .lock()
            .connections
            .retain(|connection| connection.is_open(now) && !connection.is_idle(now, idle.http2));
    }

    /// Idle HTTP/1 connections, shared HTTP/2 connections, streams on them.
    pub fn counts(&self) -> (usize, usize, u32) {
        let idle = self.http1.lock().len();
        let shared = self.http2.lock();
        (idle, shared.connections.len(), shared.connections.iter().map(|connection| connection.active()).sum())
    }

    /// The most recently used connection that a request can start on at once.
    pub(super) fn take_idle(&self, now: Instant, idle: Duration) -> Option<Http1> {
        let mut connections = self.http1.lock();
        loop {
            let connection = connections.pop()?;
            if !connection.is_spent(now, idle) && connection.is_ready() {
                return Some(connection);
            }
        }
    }

    /// Closes one idle connection, so that its place among the backend's connections becomes free.
    pub(super) fn give_up_one(&self) -> bool {
        self.http1.lock().pop().is_some()
    }
}
