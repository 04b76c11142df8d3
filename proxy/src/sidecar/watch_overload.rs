//! Whether memory, descriptors and connections suffice: measured here, decided in `resilience/overload.rs`, and told to everybody.
//!
//! Runs on the control runtime, so that workers which are busy with the overload do not keep it from being noticed.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::Sidecar;
use crate::{
    accept::ConnectionLimit,
    drain::Relief,
    host::{
        self, Instant,
        usage::{self, MemoryAccount},
    },
    resilience::{
        growth::GROWTH,
        overload::{self, Measures, Readings, Use},
    },
    settings::OverloadSettings,
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// The same once half of the memory is used: the rest can be gone sooner than in one long interval.
const CLOSER: Duration = Duration::from_millis(10);
/// How often limits are read again: they seldom change.
const LIMITS: Duration = Duration::from_secs(2);
/// How often freed memory is given back while there is too little of it.
const TRIM: Duration = Duration::from_secs(1);

/// Keeps the measures true to what is left, until everything ends. To be begun once the workers listen: what is open then, besides
/// connections, always will be.
pub(super) async fn run(sidecar: Arc<Sidecar>, connections: Arc<ConnectionLimit>) {
    let residents = &sidecar.residents;
    let settings = residents.settings.overload;
    let mut machine = Machine::new(settings, &connections);
    let (mut before, mut looks, mut trimmed) = (Measures::default(), 0, None);
    loop {
        let (readings, room) = machine.read(&connections);
        let measures = overload::decide(&readings, &settings);
        if measures != before {
            announce(&readings, before, measures);
            before = measures;
        }
        residents.overload.set(measures);
        connections.set_room(if measures.stop_accepting { 0 } else { room });
        let idle = measures.end_idle.then(|| overload::idle_limit(residents.settings.timeouts.idle, looks));
        looks = if measures.end_idle { looks.saturating_add(1) } else { 0 };
        let relief = Relief { idle, small_heads: measures.refuse_requests };
        sidecar.inbound_drain.relieve(relief);
        sidecar.outbound_drain.relieve(relief);
        residents.telemetry.overload(&readings, measures);
        if measures.refuse_requests && trimmed.is_none_or(|at: Instant| at + TRIM <= host::now()) {
            // What the allocator keeps counts as used, and nothing would ever be accepted again.
            let _ = host::run_blocking(host::return_freed_memory).await;
            trimmed = Some(host::now());
        }
        let memory = readings.memory;
        let pause = if memory.limit > 0 && memory.used > memory.limit / 2 { CLOSER } else { INTERVAL };
        tokio::select! {
            () = sidecar.stops.all.cancelled() => return,
            () = host::sleep(pause) => {}
        }
    }
}

fn announce(readings: &Readings, before: Measures, now: Measures) {
    let percent = |of: Use| (of.ratio() * 100.0) as u64;
    let (memory, descriptors) = (percent(readings.memory), percent(readings.descriptors));
    let connections = percent(readings.connections);
    let Measures { refuse_requests, end_idle, empty_pools, stop_accepting } = now;
    if end_idle || stop_accepting {
        warn!(
            memory,
            descriptors, connections, refuse_requests, end_idle, empty_pools, stop_accepting, "overload (in percent)"
        );
    } else if before != now {
        info!(memory, descriptors, connections, "overload is over");
    }
}

/// What has to be known between two readings.
struct Machine {
    settings: OverloadSettings,
    account: Option<MemoryAccount>,
    memory_limit: u64,
    /// Used without any connection.
    memory_base: u64,
    /// Usable descriptors; zero: not bounded.
    descriptors: u64,
    /// Open without any connection.
    base: u64,
    limits_at: Option<Instant>,
}

impl Machine {
    fn new(settings: OverloadSettings, connections: &ConnectionLimit) -> Self {
        let account = MemoryAccount::find();
        // Some may have been accepted already, each with one to its endpoint.
        let base = usage::descriptors().unwrap_or(0).saturating_sub(2 * connections.open() as u64);
        let memory_base = usage::anonymous_bytes().unwrap_or(0);
        Self { settings, account, memory_limit: 0, memory_base, descriptors: 0, base, limits_at: None }
    }

    fn read_limits(&mut self) {
        self.memory_limit = match self.settings.memory_bytes {
            0 => self.account.as_ref().and_then(MemoryAccount::limit).unwrap_or(0),
            bytes => bytes,
        };
        self.descriptors = host::descriptor_limit().map_or(0, |limit| overload::usable(limit, &self.settings));
    }

    /// What is used now, and for how many connections there are descriptors and memory.
    fn read(&mut self, connections: &ConnectionLimit) -> (Readings, usize) {
        let now = host::now();
        if self.limits_at.is_none_or(|at| at + LIMITS <= now) {
            self.limits_at = Some(now);
            self.read_limits();
        }
        let memory = match self.memory_limit {
            0 => Use::default(),
            limit => {
                let own = usage::anonymous_bytes().unwrap_or(0);
                let account = self.account.as_ref().filter(|_| self.settings.memory_bytes == 0);
                Use { used: account.and_then(MemoryAccount::used_alone).unwrap_or(0).max(own), limit }
            }
        };
        let descriptors = match self.descriptors {
            0 => Use::default(),
            limit => Use { used: usage::descriptors().unwrap_or(0), limit },
        };
        let room = if self.descriptors == 0 { usize::MAX } else { overload::room(self.descriptors, self.base) };
        let (busy, growth) = overload::memory_room(self.memory_limit, self.memory_base, &self.settings);
        GROWTH.set_limit(growth);
        let room = room.min(busy);
        let limit = connections.limit().min(room);
        let connections = Use { used: connections.open() as u64, limit: limit as u64 };
        (Readings { memory, descriptors, connections }, room)
    }
}
