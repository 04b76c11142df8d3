//! What is given up, and when, so that the process never runs out of memory, descriptors or places. Pure, but for one cell.
//!
//! `sidecar/watch_overload.rs` measures and asks [`decide`]; requests ask the cell ([`Overload::admit`]), which is one relaxed load.
//! Each measure is taken only where it makes room:
//!
//! ```text
//!                                  memory    descriptors   connections
//! from shed_percent on
//!   new requests get 503             yes          -             -
//!   HTTP/2 clients that ask: GOAWAY  yes          -             -       not those that have just come
//!   idle connections end             yes         yes           yes      oldest first
//!   pools are emptied                yes         yes            -
//! from stop_percent on
//!   nothing is accepted              yes         yes            -       (at the limit: closed at once)
//! ```
//!
//! A refused request frees memory, but no descriptor that its connection would not keep. Connections have an exact limit of their own
//! (`accept::ConnectionLimit`), past which a caller is told at once instead of being left waiting.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use crate::{failure::Reason, settings::OverloadSettings};

/// How much of something there is, and how much of it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub used: u64,
    /// Zero: not bounded, or not known.
    pub limit: u64,
}

/// What was measured at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Bytes.
    pub memory: Use,
    /// Open files, against what may be opened without the reserve.
    pub descriptors: Use,
    /// Downstream connections.
    pub connections: Use,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// New requests are answered with 503.
    pub refuse_requests: bool,
    /// Connections that carry nothing end, those idle for longest first.
    pub end_idle: bool,
    /// No connection to an endpoint is kept that carries nothing.
    pub empty_pools: bool,
    /// New connections wait in the kernel's queue.
    pub stop_accepting: bool,
}

impl Use {
    /// Whether `percent` of the limit are reached; zero percent is never reached.
    fn reaches(self, percent: u32) -> bool {
        self.limit > 0 && percent > 0 && u128::from(self.used) * 100 >= u128::from(self.limit) * u128::from(percent)
    }

    /// The used share; 0 where there is no limit.
    pub fn ratio(self) -> f64 {
        if self.limit == 0 { 0.0 } else { self.used as f64 / self.limit as f64 }
    }
}

/// What the readings ask for.
pub fn decide(readings: &Readings, settings: &OverloadSettings) -> Measures {
    let Readings { memory, descriptors, connections } = readings;
    let (shed, stop) = (settings.shed_percent, settings.stop_percent);
    Measures {
        refuse_requests: memory.reaches(shed),
        end_idle: [memory, descriptors, connections].iter().any(|of| of.reaches(shed)),
        empty_pools: memory.reaches(shed) || descriptors.reaches(shed),
        stop_accepting: memory.reaches(stop) || descriptors.reaches(stop),
    }
}

/// Connections idle for longer than this end, `looks` looks after it began: the oldest at the first look, four times as young ones at each
/// following one. Those that were used just now are never among them: their clients are about to use them again.
pub fn idle_limit(longest: Duration, looks: u32) -> Duration {
    let divisor = 4_u32.saturating_pow(looks.saturating_add(1));
    (longest / divisor).max(YOUNGEST)
}

/// Idle for less than this is in use.
const YOUNGEST: Duration = Duration::from_secs(1);

/// Downstream connections for which there are descriptors: each may need a second one, to its endpoint. `base`: open without any
/// connection; `usable`: what may be opened.
pub fn room(usable: u64, base: u64) -> usize {
    usize::try_from(usable.saturating_sub(base) / 2).unwrap_or(usize::MAX).max(1)
}

/// For how many downstream connections there is memory when each of them is busy, and how many bytes their buffers may grow by
/// together (`resilience/growth.rs`). `base`: used without any connection; `stop_percent` zero: no bound.
pub fn memory_room(limit: u64, base: u64, settings: &OverloadSettings) -> (usize, usize) {
    if limit == 0 || settings.stop_percent == 0 {
        return (usize::MAX, usize::MAX);
    }
    let usable = u128::from(limit) * u128::from(settings.stop_percent) / 100;
    let spare = u64::try_from(usable).unwrap_or(u64::MAX).saturating_sub(base);
    let connections = usize::try_from(spare / 4 * 3 / CONNECTION_BYTES).unwrap_or(usize::MAX);
    let growth = usize::try_from(spare / 4 / GROWTH_COPIES).unwrap_or(usize::MAX);
    (connections.max(1), growth)
}

/// A busy connection, the one to its endpoint, the request between them and what the kernel counts for both sockets. Measured: 33 KiB for
/// HTTP/1 without what the kernel counts.
const CONNECTION_BYTES: u64 = 64 * 1024;
/// A buffer that moves on lives until it is written, while the next one is already being read into.
const GROWTH_COPIES: u64 = 3;

/// Descriptors that may be opened, of `limit`: the reserve is for connections to endpoints, for the operator and the control plane.
pub fn usable(limit: u64, settings: &OverloadSettings) -> u64 {
    limit - limit.saturating_mul(u64::from(settings.reserved_descriptors_percent.min(100))) / 100
}

/// What is in force, as everybody reads it.
#[derive(Debug, Default)]
pub struct Overload(AtomicU8);

const REFUSE: u8 = 1;
const EMPTY_POOLS: u8 = 2;

impl Overload {
    /// Puts measures in force. Stopping to accept is told to `accept::ConnectionLimit`.
    pub fn set(&self, measures: Measures) {
        let bits = u8::from(measures.refuse_requests) * REFUSE + u8::from(measures.empty_pools) * EMPTY_POOLS;
        self.0.store(bits, Ordering::Relaxed);
    }

    /// Whether a new request may begin.
    ///
    /// # Errors
    /// `Overloaded`: there is no memory for it.
    pub fn admit(&self) -> Result<(), Reason> {
        if self.0.load(Ordering::Relaxed) & REFUSE == 0 { Ok(()) } else { Err(Reason::Overloaded) }
    }

    /// Whether connections to endpoints that carry nothing should end.
    pub fn empties_pools(&self) -> bool {
        self.0.load(Ordering::Relaxed) & EMPTY_POOLS != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Measures =
        Measures { refuse_requests: false, end_idle: false, empty_pools: false, stop_accepting: false };
    const IDLE: Measures = Measures { end_idle: true, ..NONE };
    const POOL: Measures = Measures { empty_pools: true, ..IDLE };
    const SHED: Measures = Measures { refuse_requests: true, ..POOL };
    const STOP: Measures = Measures { stop_accepting: true, ..SHED };
    const WAIT: Measures = Measures { stop_accepting: true, ..POOL };

    fn of(used: u64) -> Use {
        Use { used, limit: 1000 }
    }

    #[test]
    fn each_shortage_has_its_measures() {
        // Requests would be refused because of descriptors that they do not need, or accepted into memory that is not there.
        let settings = OverloadSettings::default();
        for (memory, descriptors, connections, expected) in [
            (0, 0, 0, NONE),
            (849, 849, 849, NONE),
            (850, 0, 0, SHED),
            (949, 949, 0, SHED),
            (950, 0, 0, STOP),
            (5000, 0, 0, STOP),
            (0, 850, 0, POOL),
            (0, 950, 0, WAIT),
            (0, 0, 850, IDLE),
            (0, 0, 1000, IDLE),
            (850, 950, 0, STOP),
        ] {
            let readings = Readings { memory: of(memory), descriptors: of(descriptors), connections: of(connections) };
            assert_eq!(decide(&readings, &settings), expected, "{readings:?}");
        }
    }

    #[test]
    fn what_has_no_limit_or_no_threshold_is_never_short() {
        // A process outside of a cgroup would refuse everything, and nobody could turn this off.
        let everything = Use { used: u64::MAX, limit: 0 };
        let readings = Readings { memory: everything, descriptors: everything, connections: everything };
        assert_eq!(decide(&readings, &OverloadSettings::default()), NONE);
        let off = OverloadSettings { shed_percent: 0, stop_percent: 0, ..OverloadSettings::default() };
        let full = Readings { memory: of(1000), descriptors: of(1000), connections: of(1000) };
        assert_eq!(decide(&full, &off), NONE);
        let greatest = Use { used: u64::MAX, limit: u64::MAX };
        assert_eq!(decide(&Readings { memory: greatest, ..Readings::default() }, &OverloadSettings::default()), STOP);
    }

    #[test]
    fn idle_connections_end_from_the_oldest_to_the_youngest() {
        // A client in the middle of its work would lose its connection before one that was forgotten.
        let longest = Duration::from_secs(300);
        let limits: Vec<Duration> = (0..12).map(|looks| idle_limit(longest, looks)).collect();
        assert!(limits.is_sorted_by(|a, b| a >= b) && limits.first() == Some(&(longest / 4)));
        assert_eq!(limits.last(), Some(&YOUNGEST));
        assert!(limits.iter().filter(|limit| **limit > YOUNGEST).count() < 8, "within a second of looks");
        assert_eq!(idle_limit(longest, u32::MAX), YOUNGEST);
    }

    #[test]
    fn every_connection_finds_a_descriptor_for_its_endpoint() {
        // Accepted to the last descriptor, a proxy holds connections that it cannot carry anywhere.
        let settings = OverloadSettings::default();
        for limit in [0, 1, 20, 64, 256, 1024, 1 << 20, u64::MAX] {
            for base in [0, 10, 40] {
                let usable = usable(limit, &settings);
                assert!(usable <= limit && (limit < 10 || usable < limit), "{limit}");
                let room = room(usable, base);
                assert!(room == 1 || base + 2 * room as u64 <= usable, "{limit} {base}");
            }
        }
        assert_eq!(room(usable(256, &settings), 31), 100);
    }

    #[test]
    fn what_is_let_in_fits_into_memory() {
        // Idle connections cost little; when all of them begin to work at once, the process would be killed.
        let settings = OverloadSettings::default();
        const MIB: u64 = 1 << 20;
        for limit in [1, MIB, 32 * MIB, 256 * MIB, 64 << 30] {
            for base in [0, 3 * MIB, 64 * MIB] {
                let (connections, growth) = memory_room(limit, base, &settings);
                let all = connections as u64 * CONNECTION_BYTES + growth as u64 * GROWTH_COPIES + base;
                assert!(all <= limit / 100 * 95 + 100 || connections == 1, "{limit} {base}: {connections} {growth}");
            }
        }
        assert_eq!(memory_room(32 * MIB, 3 * MIB, &settings).0, 328);
        assert_eq!(memory_room(0, 3, &settings), (usize::MAX, usize::MAX));
        let off = OverloadSettings { stop_percent: 0, ..settings };
        assert_eq!(memory_room(MIB, 0, &off), (usize::MAX, usize::MAX));
    }

    #[test]
    fn requests_learn_of_it_and_of_its_end() {
        // Shedding that does not end is an outage.
        let overload = Overload::default();
        assert_eq!((overload.admit(), overload.empties_pools()), (Ok(()), false));
        overload.set(SHED);
        assert_eq!((overload.admit(), overload.empties_pools()), (Err(Reason::Overloaded), true));
        overload.set(WAIT);
        assert_eq!((overload.admit(), overload.empties_pools()), (Ok(()), true));
        overload.set(NONE);
        assert_eq!((overload.admit(), overload.empties_pools()), (Ok(()), false));
    }
}
