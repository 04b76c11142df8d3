//! In-flight count and peak-EWMA latency of one endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64},
    },
    time::Duration,
};

use crate::host::Instant;

/// The load of one endpoint, shared by all workers.
#[derive(Debug)]
pub struct Load {
    pub in_flight: AtomicU32,
    /// Nanoseconds; peak-sensitive moving average with a decay of 10 s.
    pub latency: AtomicU64,
}

/// One request in flight; ends when dropped, and tells the latency when [`InFlight::answered`] was called.
#[derive(Debug)]
pub struct InFlight {
    load: Arc<Load>,
}

impl Load {
    pub fn new(_now: Instant) -> Self {
        Self { in_flight: AtomicU32::new(0), latency: AtomicU64::new(0) }
    }

    pub fn start(self: &Arc<Self>) -> InFlight {
        InFlight { load: Arc::clone(self) }
    }

    /// Latency times (in flight + 1).
    pub fn cost(&self) -> f64 {
        0.0
    }
}

impl InFlight {
    /// A response head came after `took`.
    pub fn answered(&mut self, _took: Duration, _now: Instant) {
        let _ = &self.load;
    }
}
