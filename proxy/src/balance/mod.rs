//! Which endpoint: from the endpoints that may be used to the one that is. Pure, except `load`.
//!
//! Asked by the attempt loop before each try. First the standing of the endpoints says who takes part:
//!
//! 1. those that are ready;
//! 2. if there are none, those that are draining: they still accept, and nobody else does;
//! 3. in panic, when less than `panic_percent` of the endpoints are ready (Envoy's panic threshold): those that were put aside
//!    count as ready. So many failures mean that the fault is likely not theirs, and the few others could not carry it all.
//!    Draining endpoints are not counted among the endpoints: a rolling restart is no reason to panic. Unready ones get
//!    nothing even then, as everywhere in Kubernetes: they said so themselves.
//!
//! Where the policy prefers some places, this is asked for each group of endpoints (`locality`, `arranged`); where it hashes, the key decides
//! among those who take part (`key`, `keyed`).
//!
//! Then the one to avoid leaves, if another remains, and the algorithm chooses. Nothing here waits or remembers, except
//! the cursor of the rotation; all others see is an index into the caller's slice.

pub mod arranged;
pub mod key;
pub mod keyed;
pub mod least_request;
pub mod load;
pub mod locality;
pub mod maglev;
pub mod random;
pub mod ring;
pub mod round_robin;
pub mod stable_hash;
pub mod warmup;

use std::{sync::atomic::Ordering, time::Duration};

use smallvec::SmallVec;

pub use self::{arranged::pick_arranged, keyed::pick_keyed};
use self::{
    least_request::By,
    warmup::{Warming, thin},
};
use crate::host::Instant;

/// What a balancer knows of an endpoint.
pub trait Candidate {
    /// Relative share, at least 1; 0 counts as 1.
    fn weight(&self) -> u32;
    /// Cost of one more request.
    fn cost(&self) -> Cost;
    /// Health first, then ejection.
    fn standing(&self) -> Standing;

    /// Cost of one more request on one part of an endpoint that is seen as `weight` equal parts; `part` is below the weight.
    ///
    /// Asked for instead of [`Candidate::cost`] when weights differ.
    fn part_cost(&self, part: u32) -> Cost;

    /// For how long it has been in use; `None`: for ever. Asked for only where there is a slow start.
    fn age(&self, _now: Instant) -> Option<Duration> {
        None
    }
}

/// What one more request would cost: latency times load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Time until an answer, as far as it is known; in any unit, the same for all.
    pub latency: f64,
    /// Requests under way there now.
    pub in_flight: u32,
}

impl Cost {
    /// Latency times one more than what is under way.
    pub fn total(self) -> f64 {
        self.latency * (f64::from(self.in_flight) + 1.0)
    }
}

/// Whether an endpoint may get new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Ready,
    /// Only when nothing is ready.
    Draining,
    /// Failing health checks; never.
    Unready,
    /// Put aside; never, except in panic.
    Ejected,
}

/// The algorithm (Istio's `loadBalancer.simple`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Two random choices, the cheaper wins.
    #[default]
    LeastRequest,
    /// The same by the number of requests under way alone (Istio's LEAST_CONN): what an endpoint takes for them does not matter.
    LeastInFlight,
    RoundRobin,
    Random,
    /// The address the application dialled. `upstream` goes there without asking; who asks all the same gets a random one.
    Passthrough,
}

impl Algorithm {
    /// For the operator.
    pub const fn word(self) -> &'static str {
        match self {
            Self::LeastRequest => "least_request",
            Self::LeastInFlight => "least_in_flight",
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::Passthrough => "passthrough",
        }
    }
}

/// Why no endpoint was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEndpoint {
    /// There are none.
    Empty,
    /// There are some, and none may be used.
    NoneUsable,
}

/// What one pick needs besides the endpoints.
#[derive(Clone, Copy, Debug)]
pub struct PickContext<'a> {
    pub algorithm: Algorithm,
    /// Round robin's place; shared by the picks of one backend.
    pub cursor: &'a std::sync::atomic::AtomicU64,
    /// Below this share of ready endpoints (percent) those put aside are used too; 0: never.
    pub panic_percent: u32,
    /// Endpoint index to avoid if another can be had (the one a retry just failed on).
    pub avoid: Option<usize>,
    /// Slow start; `None`: new endpoints get their full share at once.
    pub warming: Option<Warming<'a>>,
}

/// Endpoints that take part in a pick. Backends up to this size are picked from without an allocation.
type Usable = SmallVec<[Share; 32]>;

/// One endpoint that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    index: usize,
    weight: u32,
}

/// The index of the endpoint to use. `random(bound)` gives a uniform number below `bound`.
///
/// Looks at every endpoint once, because weights count wherever they stand; see [`pick_equal`] for large backends.
///
/// # Errors
/// There is no endpoint, or none that may be used.
pub fn pick<C: Candidate>(
    endpoints: &[C],
    context: &PickContext<'_>,
    random: impl FnMut(u64) -> u64,
) -> Result<usize, NoEndpoint> {
    pick_among(endpoints, context, random, false)
}

/// [`pick`] for endpoints that are known to have equal weights (whoever builds the list can tell once).
///
/// `LeastRequest` without a panic threshold then looks at a sample only, so that a pick from 10,000 costs as much as one from
/// 32. With different weights it would be wrong: the sample misses the one endpoint that should get half of everything.
///
/// # Errors
/// As [`pick`].
pub fn pick_equal<C: Candidate>(
    endpoints: &[C],
    context: &PickContext<'_>,
    random: impl FnMut(u64) -> u64,
) -> Result<usize, NoEndpoint> {
    pick_among(endpoints, context, random, true)
}

fn pick_among<C: Candidate>(
    endpoints: &[C],
    context: &PickContext<'_>,
    mut random: impl FnMut(u64) -> u64,
    may_sample: bool,
) -> Result<usize, NoEndpoint> {
    if endpoints.is_empty() {
        return Err(NoEndpoint::Empty);
    }
    if let [only] = endpoints {
        // Every application behind its sidecar, and many a service: there is nothing to choose.
        let usable = match only.standing() {
            Standing::Ready | Standing::Draining => true,
            Standing::Ejected => is_panic(0, 1, context.panic_percent),
            Standing::Unready => false,
        };
        return if usable { Ok(0) } else { Err(NoEndpoint::NoneUsable) };
    }
    // Whatever the caller's source gives, the algorithms may rely on the bound.
    let mut random = |bound: u64| random(bound).min(bound.saturating_sub(1));
    let is_sampled = may_sample
        && context.algorithm == Algorithm::LeastRequest
        && context.panic_percent == 0
        && context.warming.is_none();
    let sample = if is_sampled { least_request::sample(endpoints, context.avoid, &mut random) } else { None };
    let mut usable = sample.unwrap_or_else(|| usable_of(endpoints, context));
    choose(endpoints, &mut usable, context, random).ok_or(NoEndpoint::NoneUsable)
}

/// One of those that take part.
fn choose<C: Candidate>(
    endpoints: &[C],
    usable: &mut Usable,
    context: &PickContext<'_>,
    mut random: impl FnMut(u64) -> u64,
) -> Option<usize> {
    if let Some(warming) = context.warming
        && matches!(context.algorithm, Algorithm::LeastRequest | Algorithm::LeastInFlight | Algorithm::RoundRobin)
    {
        thin(endpoints, usable, warming, &mut random);
    }
    match (usable.as_slice(), context.algorithm) {
        ([], _) => None,
        ([only], _) => Some(only.index),
        (usable, Algorithm::LeastRequest) => least_request::choose(endpoints, usable, By::Latency, random),
        (usable, Algorithm::LeastInFlight) => least_request::choose(endpoints, usable, By::InFlight, random),
        (usable, Algorithm::RoundRobin) => {
            // Wraps after 2^64 picks; the rotation then jumps once.
            round_robin::choose(usable, context.cursor.fetch_add(1, Ordering::Relaxed))
        }
        (usable, Algorithm::Random | Algorithm::Passthrough) => random::choose(usable, random),
    }
}

/// Everyone who takes part, by the rules in the header.
fn usable_of<C: Candidate>(endpoints: &[C], context: &PickContext<'_>) -> Usable {
    usable_among(endpoints.iter().enumerate(), context)
}

/// [`usable_of`] these only, with their indexes and in their order.
fn usable_among<'e, C: Candidate + 'e>(
    members: impl Iterator<Item = (usize, &'e C)>,
    context: &PickContext<'_>,
) -> Usable {
    // Each standing is read once: it may change under our eyes.
    let mut ready = Usable::new();
    let mut draining = Usable::new();
    let mut ejected: SmallVec<[Share; 8]> = SmallVec::new();
    let mut unready = 0_usize;
    for (index, endpoint) in members {
        let share = Share { index, weight: endpoint.weight().max(1) };
        match endpoint.standing() {
            Standing::Ready => ready.push(share),
            Standing::Draining => draining.push(share),
            Standing::Ejected => ejected.push(share),
            Standing::Unready => unready += 1,
        }
    }

    if !ejected.is_empty() && is_panic(ready.len(), ready.len() + ejected.len() + unready, context.panic_percent) {
        ready.extend(ejected);
        ready.sort_unstable_by_key(|share| share.index);
    }
    let mut usable = if ready.is_empty() { draining } else { ready };

    if let Some(avoid) = context.avoid
        && usable.len() >= 2
    {
        usable.retain(|share| share.index != avoid);
    }
    usable
}

/// Whether so few are ready that those put aside count as ready.
fn is_panic(ready: usize, counted: usize, panic_percent: u32) -> bool {
    (ready as u128) * 100 < u128::from(panic_percent.min(100)) * (counted as u128)
}

/// Whether all endpoints together are below the panic threshold; for the operator.
pub fn in_panic<C: Candidate>(endpoints: &[C], panic_percent: u32) -> bool {
    let count = |wanted: Standing| endpoints.iter().filter(|endpoint| endpoint.standing() == wanted).count();
    let ready = count(Standing::Ready);
    is_panic(ready, ready + count(Standing::Ejected) + count(Standing::Unready), panic_percent)
}

/// The weight that all have in common, if they have.
fn equal_weight(usable: &[Share]) -> Option<u32> {
    let (first, others) = usable.split_first()?;
    others.iter().all(|share| share.weight == first.weight).then_some(first.weight)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Endpoint {
        weight: u32,
        standing: Standing,
        in_flight: u32,
        latency: f64,
    }

    impl Candidate for Endpoint {
        fn weight(&self) -> u32 {
            self.weight
        }

        fn cost(&self) -> Cost {
            Cost { latency: self.latency, in_flight: self.in_flight }
        }

        fn standing(&self) -> Standing {
            self.standing
        }

        fn part_cost(&self, part: u32) -> Cost {
            Cost { latency: self.latency, in_flight: load::on_part(self.in_flight, self.weight, part) }
        }
    }

    const ALGORITHMS: [Algorithm; 5] = [
        Algorithm::LeastRequest,
        Algorithm::LeastInFlight,
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::Passthrough,
    ];

    fn endpoints(weights: &[u32]) -> Vec<Endpoint> {
        weights
            .iter()
            .map(|&weight| Endpoint { weight, standing: Standing::Ready, in_flight: 0, latency: 1.0 })
            .collect()
    }

    /// "R": ready, "D": draining, "U": unready, "E": ejected.
    fn standing(letters: &str) -> Vec<Endpoint> {
        let mut all = endpoints(&vec![1; letters.len()]);
        for (endpoint, letter) in all.iter_mut().zip(letters.chars()) {
            endpoint.standing = match letter {
                'R' => Standing::Ready,
                'D' => Standing::Draining,
                'U' => Standing::Unready,
                _ => Standing::Ejected,
            };
        }
        all
    }

    #[test]
    fn the_only_endpoint_is_judged_as_one_of_many_is() {
        // The short way must not let through what the long one keeps out.
        let cursor = AtomicU64::new(0);
        for letter in ["R", "D", "U", "E"] {
            for panic_percent in [0, 1, 50, 100] {
                for avoid in [None, Some(0)] {
                    let only = standing(letter);
                    let algorithm = Algorithm::LeastRequest;
                    let context = PickContext { algorithm, cursor: &cursor, panic_percent, avoid, warming: None };
                    let expected = usable_of(&only, &context).first().map(|share| share.index);
                    let picked = pick(&only, &context, |_| 0).ok();
                    assert_eq!(picked, expected, "{letter} {panic_percent} {avoid:?}");
                }
            }
        }
    }

    struct Picker {
        algorithm: Algorithm,
        cursor: AtomicU64,
        panic_percent: u32,
        avoid: Option<usize>,
        /// Whether to use `pick_equal`.
        is_equal: bool,
        rng: fastrand::Rng,
    }

    impl Picker {
        fn new(algorithm: Algorithm) -> Self {
            let rng = fastrand::Rng::with_seed(42);
            Self { algorithm, cursor: AtomicU64::new(0), panic_percent: 0, avoid: None, is_equal: false, rng }
        }

        fn pick(&mut self, endpoints: &[Endpoint]) -> Result<usize, NoEndpoint> {
            let Self { algorithm, ref cursor, panic_percent, avoid, .. } = *self;
            let context = PickContext { algorithm, cursor, panic_percent, avoid, warming: None };
            let random = |bound| self.rng.u64(0..bound);
            if self.is_equal { pick_equal(endpoints, &context, random) } else { pick(endpoints, &context, random) }
        }

        /// Who is ever picked, in so many picks.
        fn reached(&mut self, endpoints: &[Endpoint], picks: usize) -> Result<Vec<usize>, NoEndpoint> {
            let mut reached = (0..picks).map(|_| self.pick(endpoints)).collect::<Result<Vec<_>, _>>()?;
            reached.sort_unstable();
            reached.dedup();
            Ok(reached)
        }

        fn counts(&mut self, endpoints: &[Endpoint], picks: u32) -> Vec<f64> {
            let mut counts = vec![0.0; endpoints.len()];
            for _ in 0..picks {
                counts[self.pick(endpoints).unwrap()] += 1.0;
            }
            counts
        }
    }

    /// Standings, panic threshold, and who may be reached.
    type StandingCase = (&'static str, u32, Result<&'static [usize], NoEndpoint>);

    #[test]
    fn standing_decides_who_takes_part() {
        // Traffic to an endpoint that is going away, or refusing all traffic because of a few bad ones.
        use NoEndpoint::{Empty, NoneUsable};
        let cases: [StandingCase; 19] = [
            ("", 0, Err(Empty)),
            ("", 100, Err(Empty)),
            ("R", 0, Ok(&[0])),
            ("RDUER", 0, Ok(&[0, 4])),
            ("DUED", 0, Ok(&[0, 3])),
            ("UE", 0, Err(NoneUsable)),
            ("U", 0, Err(NoneUsable)),
            // Panic: half of four are ready, that is not below 50 %.
            ("RREU", 50, Ok(&[0, 1])),
            ("RREU", 51, Ok(&[0, 1, 2])),
            ("REUU", 50, Ok(&[0, 1])),
            ("EEU", 50, Ok(&[0, 1])),
            ("EEU", 0, Err(NoneUsable)),
            // What is not ready gets nothing, however few others there are.
            ("UU", 100, Err(NoneUsable)),
            ("UUD", 50, Ok(&[2])),
            // Draining ones do not count among the endpoints, and get nothing while anybody else can be used.
            ("RDDDD", 50, Ok(&[0])),
            ("DDDD", 50, Ok(&[0, 1, 2, 3])),
            ("RDEE", 50, Ok(&[0, 2, 3])),
            ("DEU", 50, Ok(&[1])),
            ("RRU", 250, Ok(&[0, 1])),
        ];
        for algorithm in ALGORITHMS {
            for (letters, panic_percent, expected) in cases {
                let mut picker = Picker { panic_percent, ..Picker::new(algorithm) };
                let reached = picker.reached(&standing(letters), 200);
                assert_eq!(reached.as_deref(), expected.as_ref().copied(), "{algorithm:?} {letters} {panic_percent}");
            }
        }
    }

    #[test]
    fn a_retry_goes_elsewhere_if_it_can() {
        // P6: the endpoint that just failed would likely fail again.
        for algorithm in ALGORITHMS {
            for (letters, avoid, expected) in
                [("RRR", 1, &[0, 2][..]), ("RR", 0, &[1]), ("R", 0, &[0]), ("RUE", 0, &[0]), ("RR", 7, &[0, 1])]
            {
                let mut picker = Picker { avoid: Some(avoid), ..Picker::new(algorithm) };
                let reached = picker.reached(&standing(letters), 200).unwrap();
                assert_eq!(reached, expected, "{algorithm:?} {letters} without {avoid}");
            }
            let many = endpoints(&[1; 100]);
            let mut picker = Picker { avoid: Some(3), ..Picker::new(algorithm) };
            assert!(!picker.reached(&many, 2_000).unwrap().contains(&3), "{algorithm:?}");
        }
    }

    #[test]
    fn the_clearly_cheaper_of_two_wins() {
        // With two endpoints both are always asked, so the slow one gets nothing while it is slower.
        let mut two = endpoints(&[1, 1]);
        two[0].latency = 2.5;
        let mut picker = Picker::new(Algorithm::LeastRequest);
        assert_eq!(picker.reached(&two, 100), Ok(vec![1]));
        two[1].in_flight = 2;
        assert_eq!(picker.reached(&two, 100), Ok(vec![0]));
        // And the dearest of many gets nothing either: two different ones are asked.
        for (count, is_equal) in [(3, false), (32, true), (33, false), (33, true), (200, true)] {
            picker.is_equal = is_equal;
            let mut many = endpoints(&vec![1; count]);
            many[1].latency = 5.0;
            let reached = picker.reached(&many, 10_000).unwrap();
            assert_eq!((reached.len(), reached.contains(&1)), (count - 1, false), "{count}");
        }
    }

    #[test]
    fn a_slow_endpoint_shares_where_only_what_is_under_way_counts() {
        // Who asks for LEAST_CONN has endpoints whose answers take long by nature, such as the one with the large reports.
        let mut two = endpoints(&[1, 1]);
        two[0].latency = 1000.0;
        let mut picker = Picker::new(Algorithm::LeastInFlight);
        assert_eq!(picker.reached(&two, 100), Ok(vec![0, 1]));
        two[0].in_flight = 1;
        assert_eq!(picker.reached(&two, 100), Ok(vec![1]));
        // By weight: two of three parts are busy at the larger one, so both have a free part.
        let mut weighted = endpoints(&[3, 1]);
        weighted[0].in_flight = 2;
        weighted[1].in_flight = 1;
        assert_eq!(picker.reached(&weighted, 200), Ok(vec![0, 1]));
        weighted[0].in_flight = 9;
        assert!(picker.counts(&weighted, 1_000)[1] > 400.0);
    }

    /// How far the busiest of ten endpoints is above the mean, after each of 100,000 picks with so much under way.
    fn excess(algorithm: Algorithm, under_way_limit: usize, seed: u64) -> Vec<f64> {
        let mut ten = endpoints(&[1; 10]);
        let mut picker = Picker::new(algorithm);
        picker.rng.seed(seed);
        let mut under_way = Vec::new();
        let mut excess = Vec::new();
        for _ in 0..100_000 {
            let index = picker.pick(&ten).unwrap();
            ten[index].in_flight += 1;
            under_way.push(index);
            if under_way.len() > under_way_limit {
                // Ends in random order.
                let ended = under_way.swap_remove(picker.rng.usize(..under_way.len()));
                ten[ended].in_flight -= 1;
            }
            let most = ten.iter().map(|endpoint| endpoint.in_flight).max().unwrap();
            excess.push(f64::from(most) - under_way.len() as f64 / 10.0);
        }
        excess
    }

    #[test]
    fn ten_equal_endpoints_are_loaded_evenly() {
        // P13: random choice alone would leave one endpoint far ahead of the others. "At most 3 above the mean" holds with
        // high probability, not always: measured over 15 runs, it was exceeded at no more than 0.53 % of all moments and by no
        // more than 2; so 1 % is allowed here. Random choice exceeds it nearly always, which shows that this can fail.
        for under_way in [10, 50, 200] {
            let share_above_3 = |algorithm| {
                let excess = excess(algorithm, under_way, 11);
                excess.iter().filter(|&&excess| excess > 3.0).count() as f64 / excess.len() as f64
            };
            let two_choices = share_above_3(Algorithm::LeastRequest);
            assert!(two_choices <= 0.01, "{two_choices} with {under_way} under way");
            let one_choice = share_above_3(Algorithm::Random);
            assert!(one_choice > 0.01, "{one_choice} with {under_way} under way");
        }
    }

    #[test]
    fn shares_follow_weights_when_idle() {
        // P14: a canary pod with a small weight must get a small share, not none and not half.
        let mut rng = fastrand::Rng::with_seed(3);
        let mut weights: Vec<Vec<u32>> =
            (0..20).map(|_| (0..rng.usize(2..8)).map(|_| rng.u32(1..50)).collect()).collect();
        weights.push(vec![99, 1]);
        weights.push(vec![0, 1, 1]);
        for algorithm in ALGORITHMS {
            for weights in &weights {
                let picks = 20_000;
                let counts = Picker::new(algorithm).counts(&endpoints(weights), picks);
                let total: u32 = weights.iter().map(|&weight| weight.max(1)).sum();
                let chi_square: f64 = counts
                    .iter()
                    .zip(weights)
                    .map(|(count, &weight)| {
                        let expected = f64::from(picks) * f64::from(weight.max(1)) / f64::from(total);
                        (count - expected).powi(2) / expected
                    })
                    .sum();
                // 99.99 % quantile for 7 degrees of freedom.
                assert!(chi_square < 29.9, "{algorithm:?} {weights:?} gave {counts:?}");
            }
        }
    }

    #[test]
    fn load_follows_weights_when_busy() {
        // A machine of three times the size should carry three times the requests, also when all are busy.
        let mut two = endpoints(&[3, 1]);
        let mut picker = Picker::new(Algorithm::LeastRequest);
        let mut under_way = Vec::new();
        let (mut sum, mut rounds) = ([0.0, 0.0], 0.0);
        for round in 0..20_000 {
            let index = picker.pick(&two).unwrap();
            two[index].in_flight += 1;
            under_way.push(index);
            if under_way.len() > 80 {
                let ended = under_way.swap_remove(picker.rng.usize(..under_way.len()));
                two[ended].in_flight -= 1;
            }
            if round >= 1_000 {
                sum = [sum[0] + f64::from(two[0].in_flight), sum[1] + f64::from(two[1].in_flight)];
                rounds += 1.0;
            }
        }
        let [heavy, light] = sum.map(|sum| sum / rounds);
        assert!((56.0..64.0).contains(&heavy) && (16.0..24.0).contains(&light), "{heavy} and {light} of 80");
    }

    #[test]
    fn large_backends_are_balanced_too() {
        // 10,000 endpoints, hardly any of them ready.
        for algorithm in ALGORITHMS {
            let mut many = standing(&"E".repeat(10_000));
            assert_eq!(Picker::new(algorithm).pick(&many), Err(NoEndpoint::NoneUsable), "{algorithm:?}");
            many[1234].standing = Standing::Ready;
            assert_eq!(Picker::new(algorithm).reached(&many, 20), Ok(vec![1234]), "{algorithm:?}");
            many[77].standing = Standing::Ready;
            assert_eq!(Picker::new(algorithm).reached(&many, 40), Ok(vec![77, 1234]), "{algorithm:?}");
        }
    }

    #[test]
    fn one_heavy_endpoint_among_many_gets_its_share() {
        // Choosing from a sample gave 1.5 % of the traffic to an endpoint whose weight was half of the total.
        for (heavy, expected) in [(10, 0.0099), (100, 0.0910), (1000, 0.5003)] {
            let mut weights = vec![1; 1000];
            weights[5] = heavy;
            let picks = 4_000;
            let share = Picker::new(Algorithm::LeastRequest).counts(&endpoints(&weights), picks)[5] / f64::from(picks);
            let deviation = (expected * (1.0 - expected) / f64::from(picks)).sqrt();
            assert!((share - expected).abs() < 4.0 * deviation, "{heavy}: {share} instead of {expected}");
        }
    }

    #[test]
    fn large_backends_of_equal_weights_are_picked_from_a_sample() {
        // Fast must not mean careless: the same endpoints may be used, evenly, and the cheaper wins.
        let mut picker = Picker { is_equal: true, ..Picker::new(Algorithm::LeastRequest) };
        let mut many = standing(&"RRRRE".repeat(40));
        many[7].latency = 100.0;
        picker.avoid = Some(8);
        let counts = picker.counts(&many, 40_000);
        for (index, count) in counts.iter().enumerate() {
            let is_used = many[index].standing == Standing::Ready && ![7, 8].contains(&index);
            // 253 picks each on average; six deviations.
            assert!(if is_used { (155.0..352.0).contains(count) } else { *count == 0.0 }, "{index}: {count}");
        }
        let mut hardly_any = standing(&"E".repeat(10_000));
        assert_eq!(picker.pick(&hardly_any), Err(NoEndpoint::NoneUsable));
        hardly_any[77].standing = Standing::Ready;
        assert_eq!(picker.reached(&hardly_any, 20), Ok(vec![77]));
        // Panic needs to count everyone.
        picker.panic_percent = 50;
        assert!(picker.reached(&hardly_any, 20).unwrap().len() > 1);
    }

    #[test]
    fn a_random_source_that_misbehaves_does_not_crash() {
        // `random` is the caller's; a number that is not below the bound must not take the worker down.
        for algorithm in ALGORITHMS {
            for weights in [vec![1; 3], vec![1, 2, 3], vec![1; 40]] {
                let all = endpoints(&weights);
                let cursor = AtomicU64::new(u64::MAX);
                let context = PickContext { algorithm, cursor: &cursor, panic_percent: 0, avoid: None, warming: None };
                assert!(
                    pick(&all, &context, |_| u64::MAX).is_ok_and(|index| index < all.len()),
                    "{algorithm:?} {weights:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_is_picked_who_may_not_be(
            letters in "[RDUE]{1,60}", panic_percent in prop_oneof![Just(0_u32), 0..110_u32], algorithm in 0..ALGORITHMS.len(),
            avoid in proptest::option::of(0..60_usize), weights in proptest::collection::vec(0..9_u32, 60), seed: u64,
        ) {
            // P11, against the sentences of the header.
            let mut all = standing(&letters);
            for (endpoint, weight) in all.iter_mut().zip(weights) {
                endpoint.weight = weight;
            }
            let count = |letter| letters.matches(letter).count();
            let (ready, others) = (count('R'), count('U') + count('E'));
            let is_panic = ready * 100 < panic_percent.min(100) as usize * (ready + others);
            prop_assert_eq!(in_panic(&all, panic_percent), is_panic);
            let allowed: Vec<usize> = letters.char_indices().filter(|(_, letter)| match letter {
                'R' => true,
                'E' => is_panic,
                'D' => ready == 0 && !(is_panic && count('E') > 0),
                _ => false,
            }).map(|(index, _)| index).collect();
            let mut picker = Picker { panic_percent, avoid, ..Picker::new(ALGORITHMS[algorithm]) };
            picker.rng.seed(seed);
            for _ in 0..20 {
                match picker.pick(&all) {
                    Ok(index) => {
                        prop_assert!(allowed.contains(&index), "{} of {:?}", index, allowed);
                        prop_assert!(avoid != Some(index) || allowed.len() == 1);
                    }
                    Err(reason) => prop_assert!(allowed.is_empty() && reason == NoEndpoint::NoneUsable),
                }
            }
        }
    }
}
