//! Two random choices, the cheaper wins. Pure.
//!
//! "The power of two choices": almost as even as asking everyone, at the price of asking two, and without the herd that
//! runs to whoever is the cheapest at the moment. Weights: an endpoint of weight 3 is seen as three equal parts, and two
//! parts of all are drawn. Without load the drawing alone decides, so shares follow the weights; under load what is in
//! flight follows the weights.
//!
//! Cheaper means latency times load. Where the load is the same, only a latency that is less than half of the other's wins;
//! otherwise the drawing alone decides. Latencies are never quite the same on two equal endpoints, and without that margin
//! traffic of one request at a time would all go to the one that is quicker by a hair. Without latency (Istio's LEAST_CONN, and what Envoy does
//! for LEAST_REQUEST too) only what is under way decides.

use super::{Candidate, Cost, Share, Standing, Usable, equal_weight};

/// Backends up to this size are looked at as a whole.
const WHOLE: usize = 32;
/// So many endpoints of a larger backend are drawn to choose among.
const SAMPLE: usize = 16;
/// And so many draws may hit an endpoint that is not ready, before everyone is looked at.
const DRAWS: usize = 4 * SAMPLE;
/// Of two equally busy endpoints, one wins for sure when the other takes more than so many times as long. The same step that
/// one request more makes for an idle endpoint.
const CLEARLY_SLOWER: f64 = 2.0;

/// Some of a large backend's ready endpoints, all of equal weight. `None`: look at all, because the backend is small or
/// hardly anyone is ready. Two random choices from a random sample are two random choices from the whole.
pub(super) fn sample<C: Candidate>(
    endpoints: &[C],
    avoid: Option<usize>,
    mut random: impl FnMut(u64) -> u64,
) -> Option<Usable> {
    if endpoints.len() <= WHOLE {
        return None;
    }
    let mut sample = Usable::new();
    for _ in 0..DRAWS {
        let index = usize::try_from(random(endpoints.len() as u64)).ok()?;
        let Some(endpoint) = endpoints.get(index) else { continue };
        let is_known = avoid == Some(index) || sample.iter().any(|share| share.index == index);
        if !is_known && endpoint.standing() == Standing::Ready {
            sample.push(Share { index, weight: 1 });
            if sample.len() == SAMPLE {
                return Some(sample);
            }
        }
    }
    None
}

/// What makes one endpoint cheaper than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Latency times what is under way.
    Latency,
    /// What is under way alone.
    InFlight,
}

impl By {
    fn cost(self, cost: Cost) -> Cost {
        match self {
            Self::Latency => cost,
            Self::InFlight => Cost { latency: 1.0, ..cost },
        }
    }
}

/// The cheaper of two; at least two take part.
pub(super) fn choose<C: Candidate>(
    endpoints: &[C],
    usable: &[Share],
    by: By,
    mut random: impl FnMut(u64) -> u64,
) -> Option<usize> {
    if equal_weight(usable).is_some() {
        // Two different ones: the second draw is over the others.
        let first = random(usable.len() as u64) as usize;
        let second = random(usable.len() as u64 - 1) as usize;
        let second = second + usize::from(second >= first);
        let (first, second) = (usable.get(first)?, usable.get(second)?);
        return cheaper(first.index, second.index, |index| Some(by.cost(endpoints.get(index)?.cost())));
    }
    let total = usable.iter().map(|share| u64::from(share.weight)).sum();
    let first = part_at(usable, random(total))?;
    let second = part_at(usable, random(total))?;
    let winner = cheaper(first, second, |(share, part)| Some(by.cost(endpoints.get(share.index)?.part_cost(part))))?;
    Some(winner.0.index)
}

/// The first, unless it costs more than the second. Which is the first was drawn, so keeping it is choosing by chance.
fn cheaper<T: Copy>(first: T, second: T, cost: impl Fn(T) -> Option<Cost>) -> Option<T> {
    Some(if costs_more(cost(first)?, cost(second)?) { second } else { first })
}

fn costs_more(one: Cost, other: Cost) -> bool {
    if one.in_flight == other.in_flight {
        one.latency > other.latency * CLEARLY_SLOWER
    } else {
        one.total() > other.total()
    }
}

/// The endpoint and which of its parts, when the parts of all stand in a row.
fn part_at(usable: &[Share], place: u64) -> Option<(Share, u32)> {
    let mut left = place;
    for share in usable {
        match u32::try_from(left) {
            Ok(part) if part < share.weight => return Some((*share, part)),
            _ => left -= u64::from(share.weight),
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;
    use crate::{balance::load::Load, host};

    struct Endpoint(Arc<Load>);

    impl Candidate for Endpoint {
        fn weight(&self) -> u32 {
            1
        }

        fn cost(&self) -> Cost {
            self.0.cost()
        }

        fn standing(&self) -> Standing {
            Standing::Ready
        }

        fn part_cost(&self, part: u32) -> Cost {
            self.0.part_cost(1, part)
        }
    }

    /// Shares of one request at a time, when endpoint number `i` answers after `took(i, a number from 0 to 1)`.
    async fn sequential_shares(count: usize, requests: u32, took: impl Fn(usize, f64) -> Duration) -> Vec<f64> {
        let mut random = fastrand::Rng::with_seed(7);
        let endpoints: Vec<_> = (0..count).map(|_| Endpoint(Arc::new(Load::new(host::now())))).collect();
        let usable: Vec<_> = (0..count).map(|index| Share { index, weight: 1 }).collect();
        let mut shares = vec![0.0; count];
        for _ in 0..requests {
            let index = choose(&endpoints, &usable, By::Latency, |bound| random.u64(0..bound)).unwrap();
            shares[index] += 1.0 / f64::from(requests);
            let mut request = endpoints[index].0.start();
            let took = took(index, random.f64());
            advance(took).await;
            request.answered(took, host::now());
        }
        shares
    }

    #[tokio::test(start_paused = true)]
    async fn equal_endpoints_share_sequential_traffic() {
        // One client that asks one question after the other would keep one replica busy and the others idle.
        // Answers that take now this, now that; and steady ones of which the last endpoint's take a little longer.
        let noisy = |_: usize, random: f64| Duration::from_micros(500 - (random.max(1e-9).ln() * 500.0) as u64);
        let steady =
            |index: usize, random: f64| Duration::from_micros(1000 + 100 * index as u64 + (random * 50.0) as u64);
        for count in [2, 3, 5] {
            for shares in
                [sequential_shares(count, 20_000, noisy).await, sequential_shares(count, 20_000, steady).await]
            {
                println!("{count} equal endpoints: {shares:.3?}");
                let fair = 1.0 / count as f64;
                assert!(shares.iter().all(|share| (share / fair - 1.0).abs() < 0.25), "{shares:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_endpoint_does_not_share() {
        // The margin must not bring slow replicas a part of the traffic that they would make slow.
        for (slower, most) in [(2.5, 0.01), (10.0, 0.01)] {
            let took =
                |index: usize, _: f64| Duration::from_micros(if index == 0 { (slower * 1000.0) as u64 } else { 1000 });
            let shares = sequential_shares(2, 20_000, took).await;
            println!("{slower} times as slow: {shares:.4?}");
            assert!(shares[0] < most, "{shares:?}");
        }
    }

    proptest! {
        #[test]
        fn load_decides_and_equal_load_leaves_it_to_chance(
            latency in 1.0..1e9_f64, factor in 1.0..8.0_f64, busy: u8, more in 0_u8..4,
        ) {
            let one = Cost { latency, in_flight: busy.into() };
            let other = Cost { latency: latency * factor, in_flight: u32::from(busy) + u32::from(more) };
            // Slower and not less busy: it never wins, and it loses when it is clearly worse.
            prop_assert!(!costs_more(one, other));
            prop_assert_eq!(costs_more(other, one), if more > 0 { other.total() > one.total() } else { factor > CLEARLY_SLOWER });
        }
    }
}
