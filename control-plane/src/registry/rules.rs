//! When a workload without a stream is gone, and which news cannot wait. Pure.

use outrigger_proto::mesh::Registration;

/// What one knock on a workload's port found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    /// Connected.
    Answered,
    /// The host is there and says that nobody listens.
    Refused,
    /// Nothing came back in time, or the host cannot be reached.
    Silent,
}

/// Failed knocks in a row after which a workload is gone.
pub const FAILURES: u32 = 2;

/// A workload whose stream is gone.
#[derive(Debug, Default)]
pub struct Probation {
    failures: u32,
}

impl Probation {
    /// Is it gone, after this knock? A refusal is certain, silence needs a second one.
    pub fn is_gone_after(&mut self, knock: Knock) -> bool {
        match knock {
            Knock::Answered => self.failures = 0,
            Knock::Silent => self.failures += 1,
            Knock::Refused => self.failures = FAILURES,
        }
        self.failures >= FAILURES
    }
}

/// Do both speak for one process? Then a newer stream replaces the older one; otherwise the newcomer is refused.
pub fn same_instance(present: &Registration, newcomer: &Registration) -> bool {
    present.address == newcomer.address && present.ports == newcomer.ports
}

/// Must others know at once? Health and draining: yes; labels and new ports can wait for the debounce.
pub fn is_urgent(before: &Registration, after: &Registration) -> bool {
    before.ready != after.ready || before.draining != after.draining
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_after_two_silences_or_one_refusal() {
        // Too eager: a hiccup empties a service. Too slow: requests go to a dead process.
        use Knock::{Answered, Refused, Silent};
        let cases: [(&[Knock], bool); 6] = [
            (&[Answered, Answered], false),
            (&[Silent], false),
            (&[Silent, Answered, Silent], false),
            (&[Silent, Silent], true),
            (&[Refused], true),
            (&[Answered, Refused], true),
        ];
        for (knocks, expected) in cases {
            let mut probation = Probation::default();
            let gone = knocks.iter().fold(false, |gone, knock| gone | probation.is_gone_after(*knock));
            assert_eq!(gone, expected, "{knocks:?}");
        }
    }
}
