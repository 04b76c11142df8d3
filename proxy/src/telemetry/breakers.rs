//! How many breakers stand open, and every change of state.
//!
//! One [`BreakerGauge`] lives beside each breaker. Changes are rare, so one map for the process under a lock does.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::Telemetry;
use crate::resilience::breaker::{State, Transition};

/// Words of the states, in the order of the numbers in [`BreakerNumbers`].
pub(super) const STATES: [&str; 3] = ["closed", "open", "half_open"];

const fn index(state: State) -> usize {
    match state {
        State::Closed => 0,
        State::Open => 1,
        State::HalfOpen => 2,
    }
}

/// Numbers of all breakers of one policy and backend.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BreakerNumbers {
    pub(super) standing: [i64; 3],
    /// `[from][to]`.
    pub(super) transitions: [[u64; 3]; 3],
}

/// Breaker and backend.
pub(super) type BreakerName = (Arc<str>, Arc<str>);

pub(super) struct Breakers {
    numbers: Mutex<BTreeMap<BreakerName, BreakerNumbers>>,
    limit: usize,
}

impl Breakers {
    pub(super) const fn new(limit: usize) -> Self {
        Self { numbers: Mutex::new(BTreeMap::new()), limit }
    }

    pub(super) fn snapshot(&self) -> Vec<(BreakerName, BreakerNumbers)> {
        self.numbers.lock().iter().map(|(name, numbers)| (name.clone(), *numbers)).collect()
    }

    fn admit(&self, breaker: &str, backend: &str) -> BreakerName {
        let name: BreakerName = (breaker.into(), backend.into());
        let numbers = self.numbers.lock();
        if numbers.len() < self.limit || numbers.contains_key(&name) { name } else { ("other".into(), "other".into()) }
    }

    fn change(&self, name: &BreakerName, change: impl FnOnce(&mut BreakerNumbers)) {
        change(self.numbers.lock().entry(name.clone()).or_default());
    }
}

/// Stands beside one breaker and tells the metrics what it does.
pub struct BreakerGauge {
    process: Arc<Telemetry>,
    name: BreakerName,
    state: usize,
}

impl BreakerGauge {
    pub(super) fn new(process: Arc<Telemetry>, breaker: &str, backend: &str) -> Self {
        let name = process.breakers.admit(breaker, backend);
        process.breakers.change(&name, |numbers| numbers.standing[0] += 1);
        Self { process, name, state: 0 }
    }

    /// The breaker changed its state.
    #[expect(clippy::indexing_slicing, reason = "`index` gives places of `STATES`, and the arrays have as many")]
    pub fn changed(&mut self, transition: Transition) {
        let (from, to) = (index(transition.from), index(transition.to));
        let stood = std::mem::replace(&mut self.state, to);
        self.process.breakers.change(&self.name, |numbers| {
            numbers.standing[stood] -= 1;
            numbers.standing[to] += 1;
            numbers.transitions[from][to] += 1;
        });
    }
}

impl Drop for BreakerGauge {
    #[expect(clippy::indexing_slicing, reason = "`state` is a place of `STATES`, and the array has as many")]
    fn drop(&mut self) {
        self.process.breakers.change(&self.name, |numbers| numbers.standing[self.state] -= 1);
    }
}
