//! Which endpoint: from the endpoints that may be used to the one that is.

pub mod least_request;
pub mod load;
pub mod random;
pub mod round_robin;

/// What a balancer knows of an endpoint.
pub trait Candidate {
    /// Relative share, at least 1.
    fn weight(&self) -> u32;
    /// Cost of one more request: latency times load.
    fn cost(&self) -> f64;
    /// Health first, then ejection.
    fn standing(&self) -> Standing;
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
    /// The address the application dialled.
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

/// The index of the endpoint to use. `random(bound)` gives a uniform number below `bound`.
pub fn pick<C: Candidate>(
    _endpoints: &[C],
    _context: &PickContext<'_>,
    _random: impl FnMut(u64) -> u64,
) -> Result<usize, NoEndpoint> {
    Err(NoEndpoint::Empty)
}
