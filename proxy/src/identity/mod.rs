//! Our certificate, and who may sign it.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub mod client;
pub mod memory;
pub mod renewal;
pub mod request;
mod resident;
pub mod spiffe_id;
pub mod token;
pub mod trust;

pub use resident::Identity;
pub use spiffe_id::SpiffeId;

/// What a workload proves itself with, and whom it believes. Replaced as a whole on rotation.
#[derive(Debug)]
pub struct Material {
    /// Leaf first, then intermediates; the root may be missing.
    pub chain: Vec<CertificateDer<'static>>,
    /// Key of the leaf; never written anywhere.
    pub key: PrivateKeyDer<'static>,
    /// Certificates a peer's chain must end in.
    pub roots: Vec<CertificateDer<'static>>,
    /// The trust domain that `roots` vouch for; peers of another one are refused.
    pub trust_domain: Arc<str>,
}
