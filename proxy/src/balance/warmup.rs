//! Slow start: a new endpoint gets a growing part of its share. Pure.
//!
//! Asked at each pick, only where the policy says so, and only by the algorithms that have no key (round robin and least request, as in Istio's
//! `warmup`). A new endpoint takes part in some picks and stays out of others, so that all algorithms work as they do otherwise; its chance is
//! such that what it gets, compared with an endpoint that is warm, is the factor of Istio and Envoy:
//! `max(minimumPercent / 100, (age / duration) ^ (1 / aggression))`. New is also who was unready or put aside and came back.

use std::time::Duration;

use super::{Candidate, Usable};
use crate::host::Instant;

/// Istio's `warmup`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    pub duration: Duration,
    /// Of its share, from the first moment on. Default 10.
    pub minimum_percent: f64,
    /// 1: the share grows evenly; more: sooner at first. Default 1.
    pub aggression: f64,
}

/// Slow start at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Warming<'a> {
    pub policy: &'a Warmup,
    pub now: Instant,
}

impl Warmup {
    /// The part of its share that an endpoint of this age gets, up to 1.
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.duration {
            return 1.0;
        }
        let passed = age.as_secs_f64() / self.duration.as_secs_f64();
        passed.powf(1.0 / self.aggression.max(1.0)).max(self.minimum_percent / 100.0).min(1.0)
    }
}

/// Chances are drawn in steps of a millionth.
const STEPS: f64 = 1e6;

/// Takes out who does not take part this time. Somebody always stays.
pub(super) fn thin<C: Candidate>(
    endpoints: &[C],
    usable: &mut Usable,
    warming: Warming<'_>,
    mut random: impl FnMut(u64) -> u64,
) {
    let others = usable.len() as f64 - 1.0;
    let mut kept = Usable::new();
    for share in usable.iter() {
        let age = endpoints.get(share.index).and_then(|endpoint| endpoint.age(warming.now));
        let factor = age.map_or(1.0, |age| warming.policy.factor(age));
        // Present with this chance, and as likely as each of the others then, it is picked `factor` times as often as one of them.
        let chance = (others + 1.0) * factor / (others + factor);
        if factor >= 1.0 || (random(STEPS as u64) as f64) < chance * STEPS {
            kept.push(*share);
        }
    }
    if !kept.is_empty() {
        *usable = kept;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::{
        balance::{Algorithm, Cost, PickContext, Standing, pick},
        host,
    };

    const TEN: Warmup = Warmup { duration: Duration::from_secs(10), minimum_percent: 10.0, aggression: 1.0 };

    /// So many seconds old; `None`: for ever.
    struct Endpoint(Option<u64>);

    impl Candidate for Endpoint {
        fn weight(&self) -> u32 {
            1
        }

        fn cost(&self) -> Cost {
            Cost { latency: 1.0, in_flight: 0 }
        }

        fn part_cost(&self, _part: u32) -> Cost {
            self.cost()
        }

        fn standing(&self) -> Standing {
            Standing::Ready
        }

        fn age(&self, _now: Instant) -> Option<Duration> {
            self.0.map(Duration::from_secs)
        }
    }

    /// Shares in percent.
    fn shares(algorithm: Algorithm, ages: &[Option<u64>]) -> Vec<f64> {
        let endpoints: Vec<_> = ages.iter().map(|age| Endpoint(*age)).collect();
        let (cursor, mut random) = (AtomicU64::new(0), fastrand::Rng::with_seed(9));
        let warming = Some(Warming { policy: &TEN, now: host::now() });
        let picks = 50_000;
        let mut shares = vec![0.0; ages.len()];
        for _ in 0..picks {
            let context = PickContext { algorithm, cursor: &cursor, panic_percent: 0, avoid: None, warming };
            shares[pick(&endpoints, &context, |bound| random.u64(..bound)).unwrap()] += 100.0 / f64::from(picks);
        }
        shares
    }

    #[test]
    fn the_factor_is_istios() {
        // Half of the time, half of the share; with aggression more of it sooner.
        for (age_ms, aggression, expected) in [
            (0, 1.0, 0.1),
            (500, 1.0, 0.1),
            (5_000, 1.0, 0.5),
            (2_500, 2.0, 0.5),
            (9_999, 1.0, 0.9999),
            (10_000, 1.0, 1.0),
        ] {
            let factor = Warmup { aggression, ..TEN }.factor(Duration::from_millis(age_ms));
            assert!((factor - expected).abs() < 1e-9, "{age_ms} ms, aggression {aggression}: {factor}");
        }
    }

    #[test]
    fn p13_a_new_endpoint_gets_its_part_and_no_herd() {
        // A cold process that gets its full share at once answers slowly, is put aside, and starts cold again.
        for algorithm in [Algorithm::LeastRequest, Algorithm::LeastInFlight, Algorithm::RoundRobin] {
            for (ages, expected) in [
                // 0.1 of what the other gets: 1 of 11.
                (&[Some(0), None][..], &[9.1, 90.9][..]),
                (&[Some(5), None], &[33.3, 66.7]),
                (&[Some(0), None, None, None, None], &[2.4, 24.4, 24.4, 24.4, 24.4]),
                (&[Some(10), None], &[50.0, 50.0]),
                // All new, as after a start of the sidecar: nobody to compare with.
                (&[Some(0), Some(0)], &[50.0, 50.0]),
                (&[Some(0)], &[100.0]),
            ] {
                let shares = shares(algorithm, ages);
                println!("{algorithm:?} {ages:?}: {shares:.1?}");
                for (share, expected) in shares.iter().zip(expected) {
                    assert!((share - expected).abs() < 1.5, "{algorithm:?} {ages:?}: {shares:?}");
                }
            }
        }
        // Where nothing but chance decides, nobody warms up.
        assert!(shares(Algorithm::Random, &[Some(0), None])[0] > 45.0);
    }
}
