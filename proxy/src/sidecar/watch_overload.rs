//! Whether memory, descriptors and connections suffice: measured here, decided in `resilience/overload.rs`, and told to everybody.
//!
//! Runs on the control runtime, so that workers which are busy with the overload do not keep it from being noticed.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tracing::{info, warn};

use super::Sidecar;
use crate::{
    accept::ConnectionLimit,
    drain::{DrainTrigger, Relief},
    host::{
        self, Instant,
        usage::{self, MemoryAccount},
    },
    resilience::{
        growth::GROWTH,
        overload::{self, Measures, Overload, Readings, Use},
    },
    settings::{OverloadSettings, Settings},
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
    let settings = &residents.settings;
    let mut machine = Machine::new(settings.overload, &connections);
    let told = Told {
        overload: &residents.overload,
        connections: &connections,
        drains: [&sidecar.inbound_drain, &sidecar.outbound_drain],
    };
    let look = || machine.read(&connections);
    let shown = |readings: &Readings, measures| residents.telemetry.overload(readings, measures);
    tokio::select! {
        () = sidecar.stops.all.cancelled() => {}
        never = watch(look, &told, settings, shown) => match never {},
    }
}

/// Who has to know.
struct Told<'a> {
    overload: &'a Overload,
    connections: &'a ConnectionLimit,
    drains: [&'a DrainTrigger; 2],
}

/// Looks for ever; what is in force follows from the last look.
async fn watch(
    mut look: impl FnMut() -> (Readings, usize),
    told: &Told<'_>,
    settings: &Settings,
    shown: impl Fn(&Readings, Measures),
) -> Infallible {
    let (mut before, mut looks, mut trimmed) = (Measures::default(), 0, None);
    loop {
        let (readings, room) = look();
        let measures = overload::decide(&readings, &settings.overload);
        if measures != before {
            announce(&readings, before, measures);
            before = measures;
        }
        told.overload.set(measures);
        told.connections.set_room(if measures.stop_accepting { 0 } else { room });
        let idle = measures.end_idle.then(|| overload::idle_limit(settings.timeouts.idle, looks));
        looks = if measures.end_idle { looks.saturating_add(1) } else { 0 };
        let relief = Relief { idle, small_heads: measures.refuse_requests };
        for drain in told.drains {
            drain.relieve(relief);
        }
        shown(&readings, measures);
        if measures.refuse_requests && trimmed.is_none_or(|at: Instant| at + TRIM <= host::now()) {
            // What the allocator keeps counts as used, and nothing would ever be accepted again.
            let _ = host::run_blocking(host::return_freed_memory).await;
            trimmed = Some(host::now());
        }
        let memory = readings.memory;
        let pause = if memory.limit > 0 && memory.used > memory.limit / 2 { CLOSER } else { INTERVAL };
        host::sleep(pause).await;
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{arguments, drain::drain};

    #[tokio::test(start_paused = true)]
    async fn service_is_back_with_the_first_look_that_finds_room() {
        // A shortage that has passed would go on as an outage. Time is virtual: looks are counted, and nothing lies between them.
        let settings = arguments::defaults();
        let (overload, connections) = (Overload::default(), ConnectionLimit::new(100));
        let ((inbound, mut hears), (outbound, _)) = (drain(), drain());
        let told = Told { overload: &overload, connections: &connections, drains: [&inbound, &outbound] };
        let (used, looked) = (Cell::new(0), Cell::new(Vec::new()));
        let look = || {
            let mut times = looked.take();
            times.push(host::now());
            looked.set(times);
            (Readings { memory: Use { used: used.get(), limit: 1000 }, ..Readings::default() }, 50)
        };
        let watching = watch(look, &told, &settings, |_, _| {});
        let goes = async {
            for shortage in [960, 870, 1200] {
                used.set(shortage);
                host::sleep(INTERVAL * 3).await;
                assert!(overload.admit().is_err(), "{shortage}");
                assert!(hears.word().relief.is_memory() && hears.word().relief.idle.is_some());
                assert_eq!(!connections.has_room(), shortage >= 950, "{shortage}");
                used.set(100);
                let (ended, before) = (host::now(), looked.take());
                while overload.admit().is_err() {
                    host::sleep(Duration::from_millis(1)).await;
                }
                let times = looked.take();
                assert!(!before.is_empty() && times.len() == 1, "{times:?}");
                assert!(host::now() <= ended + INTERVAL);
                assert_eq!(hears.word().relief, Relief::default());
                assert!(connections.has_room());
            }
        };
        tokio::select! {
            never = watching => match never {},
            () = goes => {}
        }
    }
}
