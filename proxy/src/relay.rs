//! Opaque bytes both ways.

use std::{io, sync::atomic::AtomicU64, time::Duration};

use crate::host::Stream;

/// What bounds a relay.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// Most bytes held per direction.
    pub buffer_bytes: usize,
    /// Longest time without a byte in either direction while both are open; zero: no limit.
    pub idle: Duration,
    /// The same once one direction has ended; zero: no limit.
    pub half_close: Duration,
}

/// Bytes carried; may be read while the relay runs.
#[derive(Debug, Default)]
pub struct Counts {
    pub a_to_b: AtomicU64,
    pub b_to_a: AtomicU64,
}

/// Why a relay ended early.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// Reading from or writing to the first stream failed.
    #[error("first side: {0}")]
    A(#[source] io::Error),
    /// Reading from or writing to the second stream failed.
    #[error("second side: {0}")]
    B(#[source] io::Error),
    #[error("no byte in either direction for too long")]
    Idle,
}

/// Carries bytes until both directions have ended.
///
/// # Errors
/// See [`RelayError`].
pub async fn relay<A: Stream, B: Stream>(
    _a: A,
    _b: B,
    _limits: RelayLimits,
    _counts: &Counts,
) -> Result<(), RelayError> {
    unimplemented!()
}
