//! Who is it? Mutual TLS between sidecars: handshakes, and what they must prove.

pub mod alpn;
pub mod client;
pub mod server;

use std::{io, sync::Arc, time::SystemTime};

pub use alpn::{Alpn, Offer};

use crate::{
    failure::Reason,
    identity::{Material, spiffe_id::SpiffeId},
};

/// Both sides' TLS settings for one certificate. Immutable; rebuilt on rotation.
pub struct TlsConfigs {
    identity: SpiffeId,
    not_after: SystemTime,
    _server: Arc<rustls::ServerConfig>,
}

/// Why no TLS settings can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("certificate cannot be used: {0}")]
    Certificate(String),
}

impl TlsConfigs {
    /// Checks the material and prepares both sides.
    ///
    /// # Errors
    /// When the chain, key and roots do not fit together.
    pub fn new(_material: &Material) -> Result<Self, TlsSetupError> {
        unimplemented!()
    }

    /// Who we are.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// When our certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// The verified other side of an accepted connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub identity: SpiffeId,
    /// `None`: the client offered no protocol.
    pub alpn: Option<Alpn>,
    pub server_name: Option<Box<str>>,
}

/// What a server must prove.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// This identity.
    Exactly(SpiffeId),
    /// Any identity of our own trust domain.
    TrustDomain,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    #[error("TLS handshake took too long")]
    Timeout,
    #[error("TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    #[error("peer proved identity {proved}, expected {expected}")]
    Identity { expected: Box<str>, proved: SpiffeId },
    #[error("peer's certificate holds no single SPIFFE identity: {0}")]
    NoIdentity(Box<str>),
}

impl TlsFailure {
    /// The reason for responses, logs and metrics, seen from the client's side.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Timeout => Reason::UpstreamConnectTimeout,
            Self::Handshake(_) => Reason::UpstreamTlsFailed,
            Self::Identity { .. } | Self::NoIdentity(_) => Reason::UpstreamIdentityMismatch,
        }
    }
}
