//! The newest picture of the mesh, and how it gets here.
//!
//! `stream` receives, `ledger` keeps account, `decode` checks, `apply` makes the next [`view::View`], `disk` keeps
//! the last good one over restarts. The data path never waits for the control plane; it may ask for a name
//! it has not seen ([`demand`]) and then waits a bounded time.

pub mod decode;
pub mod demand;
pub mod fixed;
pub mod status;
pub mod view;
