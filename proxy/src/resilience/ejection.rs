//! When an endpoint is put aside and when it may return. Pure.
//!
//! Asked by `balance` before each pick; told by `upstream` after each response. Field names and meaning follow
//! Istio's `outlierDetection`; times come in as `now`, never read here.

use std::time::Duration;

use crate::host::Instant;

/// Istio's outlierDetection. Zero counts: off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionPolicy {
    /// Default 5.
    pub consecutive_5xx: u32,
    /// Default off.
    pub consecutive_gateway_errors: u32,
    /// Only with `split_local_errors`; default 5.
    pub consecutive_local_failures: u32,
    pub split_local_errors: bool,
    /// Sweep interval, default 10 s: ejected endpoints return at sweeps.
    pub interval: Duration,
    /// First ejection; multiplied by how often it was ejected. Default 30 s.
    pub base_ejection_time: Duration,
    /// Default 10; at least one endpoint may always be ejected.
    pub max_ejection_percent: u32,
    /// Below this share of healthy endpoints ejection is ignored. Default 0.
    pub min_health_percent: u32,
}

/// What came of one try, as ejection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered below 500.
    None,
    /// Answered with 5xx other than the gateway codes.
    ServerError,
    /// Answered 502, 503 or 504.
    GatewayError,
    /// Could not be reached, or broke off.
    Local,
}

/// The record of one endpoint.
#[derive(Debug, Default)]
pub struct Ejection {}

impl Ejection {
    /// Notes an outcome. `true`: this endpoint should be ejected now, if the backend's share allows; the caller
    /// checks [`may_eject`] and then calls [`Ejection::eject`].
    pub fn note(&mut self, _policy: &EjectionPolicy, _fault: Fault) -> bool {
        false
    }

    /// Puts it aside.
    pub fn eject(&mut self, _policy: &EjectionPolicy, _now: Instant) {}

    /// Whether it is put aside at `now`; brings it back when its time is over.
    pub fn is_ejected(&mut self, _now: Instant) -> bool {
        false
    }
}

/// Whether one more of `total` endpoints may be ejected when `ejected` already are.
pub fn may_eject(_policy: &EjectionPolicy, _total: usize, _ejected: usize) -> bool {
    false
}
