//! How close the process is to its limits, and which measures are in force; written by the watch on them, ten times a second.

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::resilience::overload::{Measures, Readings, Use};

#[derive(Debug, Default)]
pub(super) struct OverloadGauge(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    readings: Readings,
    measures: Measures,
    begun: [u64; 4],
}

/// The words of metrics, in the order of [`flags`].
const MEASURES: [&str; 4] = ["refuse_requests", "end_idle", "empty_pools", "stop_accepting"];

const fn flags(measures: Measures) -> [bool; 4] {
    [measures.refuse_requests, measures.end_idle, measures.empty_pools, measures.stop_accepting]
}

impl OverloadGauge {
    pub(super) fn set(&self, readings: &Readings, measures: Measures) {
        let mut state = self.0.lock();
        let changes = flags(state.measures).into_iter().zip(flags(measures));
        let began = changes.map(|(before, now)| u64::from(!before && now)).collect::<Vec<_>>();
        for (count, began) in state.begun.iter_mut().zip(began) {
            *count += began;
        }
        state.readings = *readings;
        state.measures = measures;
    }

    pub(super) fn used(&self) -> [(&'static str, Use); 3] {
        let Readings { memory, descriptors, connections } = self.0.lock().readings;
        [("memory", memory), ("descriptors", descriptors), ("connections", connections)]
    }

    /// Word, whether it is in force, and how often it began.
    pub(super) fn measures(&self) -> Vec<(&'static str, bool, u64)> {
        let state = *self.0.lock();
        let numbers = flags(state.measures).into_iter().zip(state.begun);
        MEASURES.into_iter().zip(numbers).map(|(word, (active, begun))| (word, active, begun)).collect()
    }

    pub(super) fn report(&self) -> Value {
        let mut report = Map::new();
        for (resource, of) in self.used() {
            report.insert(resource.to_owned(), json!({ "used": of.used, "limit": of.limit }));
        }
        for (measure, active, begun) in self.measures() {
            report.insert(measure.to_owned(), json!({ "active": active, "begun": begun }));
        }
        Value::Object(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_is_counted_when_it_begins() {
        // A shortage between two scrapes would leave no trace.
        let gauge = OverloadGauge::default();
        let short = Measures { refuse_requests: true, ..Measures::default() };
        for measures in [short, short, Measures::default(), short, Measures::default()] {
            gauge.set(&Readings { memory: Use { used: 9, limit: 10 }, ..Readings::default() }, measures);
        }
        let refused = gauge.measures().into_iter().find(|(word, ..)| *word == "refuse_requests");
        assert_eq!(refused, Some(("refuse_requests", false, 2)));
        assert_eq!(gauge.measures().iter().map(|(.., begun)| begun).sum::<u64>(), 2);
        assert_eq!(gauge.report()["memory"], json!({ "used": 9, "limit": 10 }));
    }
}
