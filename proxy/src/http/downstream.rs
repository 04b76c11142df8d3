//! The other side of a request: what a handler is told beside the request itself.

use super::{interim::Interim, seen::Seen};
use crate::host::Instant;

/// Who asked, as far as the connection knows.
#[derive(Clone, Debug)]
pub struct Downstream {
    /// When the head had come.
    pub at: Instant,
    /// Fields that the head came with.
    pub seen: Seen,
    /// Where interim responses go.
    pub interim: Interim,
}
