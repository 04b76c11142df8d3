//! Reaching it: from the picture of the mesh to a connection that carries a request.
//!
//! [`Upstreams`] joins every new [`crate::config::view::View`] to what must outlive it: pools, load, ejection, budgets
//! and breakers, all keyed by identity. The result is a [`Mesh`], which the journeys read and never change.

pub mod affinity;
pub mod backend;
pub mod breakers;
pub mod destination;
pub mod dial;
pub mod endpoint;
pub mod exchange;
pub mod http1;
pub mod http2;
pub mod lease;
pub mod local;
pub mod mesh;
pub mod opaque;
pub mod passthrough;
pub mod pool;
pub mod rule;
pub mod settle;
#[cfg(test)]
mod tests;

pub use backend::{Backend, RouteBackend};
pub use breakers::BreakerCell;
pub use destination::{Destination, Toward};
pub use dial::{Carrier, Dialer, OwnPorts};
pub use endpoint::Endpoint;
pub use mesh::{Mesh, Upstreams};
