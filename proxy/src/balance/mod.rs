//! Which endpoint: from the endpoints that may be used to the one that is. Pure, except `load`.
//!
//! Asked by the attempt loop before each try. First the standing of the endpoints says who takes part:
//!
//! 1. those that are ready;
//! 2. if there are none, those that are draining: they still accept, and nobody else does;
//! 3. in panic, when less than `panic_percent` of the endpoints are ready (Envoy's panic threshold): all that are not
//!    unready, and if there are none, all. So many failures mean that the fault is likely not theirs.
//!    Draining endpoints are not counted among the endpoints: a rolling restart is no reason to panic.
//!
//! Then the one to avoid leaves, if another remains, and the algorithm chooses. Nothing here waits or remembers, except
//! the cursor of the rotation; all others see is an index into the caller's slice.

pub mod least_request;
pub mod load;
pub mod random;
pub mod round_robin;

use std::sync::atomic::Ordering;

use smallvec::SmallVec;

/// What a balancer knows of an endpoint.
pub trait Candidate {
    /// Relative share, at least 1; 0 counts as 1.
    fn weight(&self) -> u32;
    /// Cost of one more request: latency times load.
    fn cost(&self) -> f64;
    /// Health first, then ejection.
    fn standing(&self) -> Standing;

    /// Cost of one more request on one part of an endpoint that is seen as `weight` equal parts; `part` is below the weight.
    ///
    /// Asked for instead of [`Candidate::cost`] when weights differ. The default divides the cost by the weight, which
    /// holds under load; idle endpoints then all go to the heavier of two. [`load::Load::part_cost`] is right in both.
    fn part_cost(&self, part: u32) -> f64 {
        let _ = part;
        self.cost() / f64::from(self.weight().max(1))
    }
}

/// Whether an endpoint may get new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Ready,
    /// Only when nothing is ready.
    Draining,
    /// Failing health checks; never, except in panic.
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
    RoundRobin,
    Random,
    /// The address the application dialled. `upstream` goes there without asking; who asks all the same gets a random one.
    Passthrough,
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
#[derive(Debug)]
pub struct PickContext<'a> {
    pub algorithm: Algorithm,
    /// Round robin's place; shared by the picks of one backend.
    pub cursor: &'a std::sync::atomic::AtomicU64,
    /// Below this share of usable endpoints (percent) all that are not unready are used; 0: never.
    pub panic_percent: u32,
    /// Endpoint index to avoid if another can be had (the one a retry just failed on).
    pub avoid: Option<usize>,
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
/// # Errors
/// There is no endpoint, or none that may be used.
pub fn pick<C: Candidate>(
    endpoints: &[C],
    context: &PickContext<'_>,
    mut random: impl FnMut(u64) -> u64,
) -> Result<usize, NoEndpoint> {
    if endpoints.is_empty() {
        return Err(NoEndpoint::Empty);
    }
    let usable = if context.algorithm == Algorithm::LeastRequest && context.panic_percent == 0 {
        least_request::sample(endpoints, context.avoid, &mut random)
    } else {
        None
    };
    let usable = usable.unwrap_or_else(|| usable_of(endpoints, context));
    let picked = match (usable.as_slice(), context.algorithm) {
        ([], _) => None,
        ([only], _) => Some(only.index),
        (usable, Algorithm::LeastRequest) => least_request::choose(endpoints, usable, random),
        (usable, Algorithm::RoundRobin) => {
            // Wraps after 2^64 picks; the rotation then jumps once.
            round_robin::choose(usable, context.cursor.fetch_add(1, Ordering::Relaxed))
        }
        (usable, Algorithm::Random | Algorithm::Passthrough) => random::choose(usable, random),
    };
    picked.ok_or(NoEndpoint::NoneUsable)
}

/// Everyone who takes part, by the rules in the header.
fn usable_of<C: Candidate>(endpoints: &[C], context: &PickContext<'_>) -> Usable {
    // Each standing is read once: it may change under our eyes.
    let mut ready = Usable::new();
    let mut draining = Usable::new();
    let mut others: SmallVec<[(Share, Standing); 8]> = SmallVec::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let share = Share { index, weight: endpoint.weight().max(1) };
        match endpoint.standing() {
            Standing::Ready => ready.push(share),
            Standing::Draining => draining.push(share),
            standing => others.push((share, standing)),
        }
    }

    let counted = ready.len() + others.len();
    let is_panic = (ready.len() as u128) * 100 < u128::from(context.panic_percent.min(100)) * (counted as u128);
    let mut usable = if is_panic {
        let not_unready = others.iter().filter(|(_, standing)| *standing != Standing::Unready);
        ready.extend(not_unready.map(|(share, _)| *share));
        ready.extend(draining);
        if ready.is_empty() {
            ready.extend(others.iter().map(|(share, _)| *share));
        }
        ready.sort_unstable_by_key(|share| share.index);
        ready
    } else if ready.is_empty() {
        draining
    } else {
        ready
    };

    if let Some(avoid) = context.avoid
        && usable.len() >= 2
    {
        usable.retain(|share| share.index != avoid);
    }
    usable
}

/// The weight that all have in common, if they have.
fn equal_weight(usable: &[Share]) -> Option<u32> {
    let (first, others) = usable.split_first()?;
    others.iter().all(|share| share.weight == first.weight).then_some(first.weight)
}
