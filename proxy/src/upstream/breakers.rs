//! Live breakers: the pure state machine of `resilience::breaker` behind a lock, with its history and its fallback count.
//!
//! One per rule and backend, for the whole process. A [`Ticket`] gives its permit back on every path, also when the
//! request is dropped.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use crate::{
    host::{self, Instant},
    resilience::{
        breaker::{Breaker, BreakerPolicy, Permit, Result as Outcome, State, Transition},
        limits::{Held, Limits, Slot},
    },
};

/// Transitions kept for display.
const HISTORY: usize = 64;

/// Told about every transition, after it happened.
pub type Observer = Arc<dyn Fn(&BreakerCell, Transition) + Send + Sync>;

/// One breaker.
pub struct BreakerCell {
    /// "namespace/name" of the CircuitBreaker.
    pub name: Arc<str>,
    /// The rule it guards, empty for the service itself.
    pub rule: Arc<str>,
    /// The backend's name.
    pub backend: Arc<str>,
    breaker: Mutex<Breaker>,
    history: Mutex<VecDeque<Past>>,
    observer: Observer,
    fallbacks: Arc<Limits>,
    fallbacks_served: AtomicU64,
}

/// A transition that happened.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    pub transition: Transition,
    pub at: SystemTime,
}

/// Leave for one try. Dropped without an outcome, it counts as a cancelled try.
#[derive(Debug)]
pub struct Ticket {
    cell: Arc<BreakerCell>,
    permit: Option<Permit>,
}

impl fmt::Debug for BreakerCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerCell")
            .field("name", &self.name)
            .field("rule", &self.rule)
            .field("backend", &self.backend)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl BreakerCell {
    pub fn new(policy: Arc<BreakerPolicy>, rule: Arc<str>, backend: Arc<str>, observer: Observer) -> Self {
        Self {
            name: Arc::clone(&policy.name),
            rule,
            backend,
            breaker: Mutex::new(Breaker::new(policy, host::now())),
            history: Mutex::new(VecDeque::new()),
            observer,
            fallbacks: Arc::default(),
            fallbacks_served: AtomicU64::new(0),
        }
    }

    /// Follows a changed policy; the state stays.
    pub fn set_policy(&self, policy: Arc<BreakerPolicy>) {
        self.breaker.lock().set_policy(policy);
    }

    pub fn state(&self) -> State {
        self.breaker.lock().state()
    }

    /// Past transitions, oldest first.
    pub fn history(&self) -> Vec<Past> {
        self.history.lock().iter().copied().collect()
    }

    /// Fallbacks served since the start.
    pub fn fallbacks_served(&self) -> u64 {
        self.fallbacks_served.load(Ordering::Relaxed)
    }

    /// Leave for one try; `None` while the breaker is open or out of probes.
    pub fn ask(self: &Arc<Self>, now: Instant) -> Option<Ticket> {
        let (permit, transition) = self.breaker.lock().permit(now);
        self.tell(transition);
        permit.map(|permit| Ticket { cell: Arc::clone(self), permit: Some(permit) })
    }

    /// Room for one more fallback, at most `maximum` at once.
    pub fn begin_fallback(&self, maximum: u32) -> Option<Held> {
        let held = self.fallbacks.acquire(Slot::Fallback, maximum)?;
        self.fallbacks_served.fetch_add(1, Ordering::Relaxed);
        Some(held)
    }

    fn tell(&self, transition: Option<Transition>) {
        let Some(transition) = transition else { return };
        let mut history = self.history.lock();
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(Past { transition, at: host::wall_clock() });
        drop(history);
        (self.observer)(self, transition);
    }
}

impl Ticket {
    /// Gives the outcome of the try, which ended `now`.
    pub fn report(mut self, outcome: Outcome, took: Duration, now: Instant) {
        if let Some(permit) = self.permit.take() {
            let transition = self.cell.breaker.lock().report(permit, outcome, took, now, host::random_unit());
            self.cell.tell(transition);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let transition = self.cell.breaker.lock().cancel(permit, host::now(), host::random_unit());
            self.cell.tell(transition);
        }
    }
}
