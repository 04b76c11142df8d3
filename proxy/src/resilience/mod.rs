//! How hard to try: deadlines, retries within a budget, limits, ejection, the breaker and its fallback, overload.
//!
//! Everything here is pure except `call`, the attempt loop, and `limits`, `growth` and `overload`, which each count for the whole process.

pub mod breaker;
pub mod call;
pub mod deadline;
pub mod ejection;
pub mod fallback;
pub mod growth;
pub mod limits;
pub mod overload;
pub mod retry;
pub mod retry_budget;
mod rolling;
