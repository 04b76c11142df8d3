//! What to answer instead: a static reply or another backend.

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
    Reply { status: StatusCode, content_type: Option<HeaderValue>, body: Bytes },
    Backend(Target),
}
