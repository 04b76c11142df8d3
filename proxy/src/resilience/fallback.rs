//! What to answer instead: a static reply or another backend.
//!
//! Served by the attempt loop when the breaker is open or the last try failed for the endpoint's fault. How many are
//! served at once is counted by `limits` (`Slot::Fallback`), so that a fallback cannot bury what it falls back to; it is
//! never retried and has no fallback of its own.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use crate::route::Target;

/// The rule.
#[derive(Clone, Debug)]
pub struct FallbackPolicy {
    pub kind: FallbackKind,
    /// Fallbacks served at once; beyond it the original error is returned. Default 100.
    pub max_concurrent: u32,
}

/// What answers.
#[derive(Clone, Debug)]
pub enum FallbackKind {
    /// Sent as it is, with a Content-Length.
    Reply { status: StatusCode, content_type: Option<HeaderValue>, body: Bytes },
    /// Sent there, if the request's body can still be had.
    Backend(Target),
}

impl FallbackPolicy {
    /// [`FallbackPolicy::max_concurrent`] for policies that do not say.
    pub const DEFAULT_MAX_CONCURRENT: u32 = 100;
}
