//! May this failure be retried, and after how long? Pure.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::failure::Failure;

/// What a rule says about retries (Istio's HTTPRetry, Gateway API's retry).
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Tries after the first. Default 2; 0: never.
    pub attempts: u32,
    pub conditions: Conditions,
    /// Statuses that may be retried.
    pub codes: Vec<StatusCode>,
    /// First wait. Default 25 ms.
    pub backoff: Duration,
}

/// Istio's and Envoy's words as flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one flag per word of the standard")]
pub struct Conditions {
    pub connect_failure: bool,
    pub refused_stream: bool,
    pub reset_before_request: bool,
    pub reset: bool,
    pub gateway_error: bool,
    pub server_error: bool,
    pub retriable_4xx: bool,
    pub grpc_unavailable: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
}

/// How one try ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// A response head came.
    Answered {
        status: StatusCode,
        headers: &'a HeaderMap,
    },
    Failed(&'a Failure),
}

/// Everything about a request that decides whether it may be sent twice.
#[derive(Clone, Copy, Debug)]
pub struct Repeatable {
    /// GET, HEAD, OPTIONS, PUT, DELETE, TRACE or a request with an `Idempotency-Key`.
    pub idempotent: bool,
    /// Its body can be sent again from memory.
    pub replayable: bool,
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This outcome is final.
    Keep,
    /// Try again at once: nothing had been sent. Still costs an attempt.
    Again,
    /// Try again after a wait.
    AfterWait,
}

impl RetryPolicy {
    /// What to do after a try; `tried` counts tries so far, at least 1.
    pub fn judge(&self, _outcome: Outcome<'_>, _request: Repeatable, _tried: u32) -> Verdict {
        Verdict::Keep
    }

    /// Wait before try number `tried + 1`; `random` is uniform in `[0, 1)`.
    pub fn wait(&self, _tried: u32, _random: f64) -> Duration {
        self.backoff
    }
}

impl Repeatable {
    /// Reads method and headers.
    pub fn of(_method: &Method, _headers: &HeaderMap, replayable: bool) -> Self {
        Self { idempotent: false, replayable }
    }
}
