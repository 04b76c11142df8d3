//! What the control plane counts, in Prometheus' text form.

mod metrics;

pub use metrics::{Counter, Histogram, Metrics};
