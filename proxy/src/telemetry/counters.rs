//! Counters with few, fixed label values: one array of numbers per metric and worker.
//!
//! The label enums are an interface: their words stand in metrics. Guards count something active down when dropped.

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use super::{Direction, Security, WorkerTelemetry};
use crate::{failure::Reason, http::http2::Deed};

/// A label with a fixed set of values.
pub(super) trait Label: Copy {
    /// How many values there are.
    const ROWS: usize;
    /// One value per row, as `name="value"` pairs joined with commas.
    fn rows() -> Vec<String>;
    fn row(self) -> usize;
}

/// Declares a label: its name and the word of each variant.
macro_rules! label {
    ($(#[$doc:meta])* $type:ident $name:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$variant_doc])* $variant),+ }

        impl Label for $type {
            const ROWS: usize = [$($word),+].len();
            fn rows() -> Vec<String> {
                vec![$(format!(concat!($name, "=\"{}\""), $word)),+]
            }
            fn row(self) -> usize {
                self as usize
            }
        }
    };
}

label!(
    /// Which kind of listener a connection came to.
    ListenerKind "listener" {
        /// Explicit, beside the application.
        Inbound = "inbound",
        /// The HTTP forward proxy.
        Outbound = "outbound",
        /// A local port for one service.
        Local = "local",
        /// Intercepted on the way to the application.
        TransparentInbound = "transparent_inbound",
        /// Intercepted on the way from the application.
        TransparentOutbound = "transparent_outbound",
        Admin = "admin",
        Ready = "ready",
        Dns = "dns",
    }
);

label!(
    /// Why a TLS handshake failed.
    Handshake "reason" {
        Timeout = "timeout",
        /// The peer closed or reset the connection.
        Closed = "closed",
        /// The peer's certificate was refused, by us.
        Certificate = "certificate",
        /// The peer proved another identity than expected.
        Identity = "identity",
        /// Everything else TLS can object to, alerts of the peer included.
        Protocol = "protocol",
        /// Too many at once.
        Overload = "overload",
    }
);

label!(
    /// Why no further try was made.
    RetryRefusal "reason" {
        /// The destination's retry budget is spent.
        BudgetExhausted = "budget_exhausted",
        /// Too many retries in flight.
        LimitReached = "limit_reached",
        /// The body was too large to keep.
        NotReplayable = "not_replayable",
        /// All tries the policy allows were made.
        TriesExhausted = "tries_exhausted",
        /// Too little time is left.
        Deadline = "deadline",
    }
);

label!(
    /// What answered instead of the backend.
    Fallback "kind" {
        /// A reply written in the policy.
        Static = "static",
        /// Another backend.
        Backend = "backend",
    }
);

label!(
    /// What ejection did to an endpoint.
    EjectionEvent "event" {
        Ejected = "ejected",
        Returned = "returned",
        /// It deserved ejection, but too many are out already.
        Overflow = "overflow",
    }
);

label!(
    /// Which limit refused something.
    Overflow "limit" {
        Connections = "connections",
        PendingRequests = "pending_requests",
        Requests = "requests",
        Retries = "retries",
        /// Downstream connections of the process.
        DownstreamConnections = "downstream_connections",
        Handshakes = "handshakes",
        PendingDemands = "pending_demands",
    }
);

label!(
    /// What a connection turned out to speak.
    Detected "protocol" {
        MeshTls = "mesh_tls",
        /// TLS of the application's own.
        Tls = "tls",
        Http1 = "http1",
        Http2 = "http2",
        /// First bytes that are none of these.
        Opaque = "opaque",
        /// The server spoke first.
        ServerFirst = "server_first",
        /// Nobody spoke in time.
        TimedOut = "timed_out",
    }
);

label!(
    /// What came of asking the control plane for a destination.
    Demand "outcome" {
        Found = "found",
        Absent = "absent",
        TimedOut = "timed_out",
        /// Too many questions were open.
        Refused = "refused",
    }
);

impl Label for Direction {
    const ROWS: usize = 2;
    fn rows() -> Vec<String> {
        ["inbound", "outbound"].map(|word| format!("direction=\"{word}\"")).into()
    }
    fn row(self) -> usize {
        self as usize
    }
}

impl Label for Security {
    const ROWS: usize = 2;
    fn rows() -> Vec<String> {
        ["mutual_tls", "none"].map(|word| format!("security=\"{word}\"")).into()
    }
    fn row(self) -> usize {
        self as usize
    }
}

label!(
    /// Which end of a connection we are not.
    Side "side" {
        /// A client.
        Downstream = "downstream",
        /// An endpoint, or the application.
        Upstream = "upstream",
    }
);

label!(
    /// How a connection ended that only kept us busy.
    AbuseEnd "end" {
        /// No new streams; those under way may finish.
        Graceful = "graceful",
        /// At once.
        Hard = "hard",
    }
);

/// Of which half of the sidecar, and on which side of it.
pub(super) type PeerSide = (Direction, Side);

impl Label for Deed {
    const ROWS: usize = Self::ALL.len();
    fn rows() -> Vec<String> {
        Self::ALL.map(|deed| format!("deed=\"{}\"", deed.word())).into()
    }
    fn row(self) -> usize {
        self as usize
    }
}

impl Label for Reason {
    const ROWS: usize = Self::ALL.len();
    fn rows() -> Vec<String> {
        Self::ALL.map(|reason| format!("reason=\"{}\"", reason.word())).into()
    }
    fn row(self) -> usize {
        self as usize
    }
}

impl<A: Label, B: Label> Label for (A, B) {
    const ROWS: usize = A::ROWS * B::ROWS;
    fn rows() -> Vec<String> {
        let second = B::rows();
        A::rows().iter().flat_map(|a| second.iter().map(move |b| format!("{a},{b}"))).collect()
    }
    fn row(self) -> usize {
        self.0.row() * B::ROWS + self.1.row()
    }
}

/// One number per value of `L`.
pub(super) struct Family<L> {
    numbers: Box<[AtomicI64]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Default for Family<L> {
    fn default() -> Self {
        Self { numbers: (0..L::ROWS).map(|_| AtomicI64::new(0)).collect(), label: PhantomData }
    }
}

impl<L: Label> Family<L> {
    pub(super) fn add(&self, label: L) {
        self.change(label, 1);
    }

    pub(super) fn change(&self, label: L, by: i64) {
        if let Some(number) = self.numbers.get(label.row()) {
            number.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// Adds this worker's numbers to `sums`, which has a row per value.
    pub(super) fn sum_into(&self, sums: &mut [i64]) {
        for (sum, number) in sums.iter_mut().zip(&self.numbers) {
            *sum += number.load(Ordering::Relaxed);
        }
    }
}

/// All of one worker.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) accepted: Family<ListenerKind>,
    /// Of one worker it may be negative, when another one closed what it opened; the sum is right.
    pub(super) active: Family<ListenerKind>,
    pub(super) secured: Family<(Direction, Security)>,
    pub(super) handshake_failures: Family<(Direction, Handshake)>,
    pub(super) upstream_opened: Family<Direction>,
    pub(super) upstream_active: Family<Direction>,
    pub(super) retries: AtomicU64,
    pub(super) retries_refused: Family<RetryRefusal>,
    pub(super) fallbacks: Family<Fallback>,
    pub(super) ejections: Family<EjectionEvent>,
    pub(super) overflows: Family<Overflow>,
    pub(super) detections: Family<(Direction, Detected)>,
    pub(super) demands: Family<Demand>,
    pub(super) failures: Family<(Direction, Reason)>,
    pub(super) http2_deeds: Family<(PeerSide, Deed)>,
    pub(super) http2_ends: Family<(PeerSide, (AbuseEnd, Deed))>,
}

/// An accepted connection; active until dropped.
pub struct ActiveConnection {
    worker: Arc<WorkerTelemetry>,
    kind: ListenerKind,
}

impl ActiveConnection {
    pub(super) fn new(worker: Arc<WorkerTelemetry>, kind: ListenerKind) -> Self {
        worker.cells.counters.accepted.add(kind);
        worker.cells.counters.active.add(kind);
        Self { worker, kind }
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.worker.cells.counters.active.change(self.kind, -1);
    }
}

/// An open connection to an endpoint or to the application; active until dropped.
pub struct ActiveUpstream {
    worker: Arc<WorkerTelemetry>,
    direction: Direction,
}

impl ActiveUpstream {
    pub(super) fn new(worker: Arc<WorkerTelemetry>, direction: Direction) -> Self {
        worker.cells.counters.upstream_opened.add(direction);
        worker.cells.counters.upstream_active.add(direction);
        Self { worker, direction }
    }
}

impl std::fmt::Debug for ActiveUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActiveUpstream").field("direction", &self.direction).finish_non_exhaustive()
    }
}

impl Drop for ActiveUpstream {
    fn drop(&mut self) {
        self.worker.cells.counters.upstream_active.change(self.direction, -1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_numbers_agree() {
        // A shifted row would count handshake failures of one side as those of the other.
        let rows = <(Direction, Handshake)>::rows();
        assert_eq!(rows.len(), <(Direction, Handshake)>::ROWS);
        let row = (Direction::Outbound, Handshake::Identity).row();
        assert_eq!(rows[row], "direction=\"outbound\",reason=\"identity\"");
        let family = Family::<(Direction, Reason)>::default();
        let mut sums = vec![0; <(Direction, Reason)>::ROWS];
        for reason in Reason::ALL {
            family.add((Direction::Outbound, reason));
        }
        family.sum_into(&mut sums);
        assert_eq!(sums.iter().sum::<i64>(), Reason::ALL.len() as i64);
        assert!(sums[Reason::ALL.len()..].iter().all(|sum| *sum == 1));
        for (row, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.row(), row, "order of Reason::ALL");
        }
    }
}
