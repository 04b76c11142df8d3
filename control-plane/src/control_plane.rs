//! What runs in a control plane, in which order it becomes ready, and how it stops.

use std::{net::SocketAddr, path::PathBuf};

pub use crate::settings::{Limits, Settings};

/// A control plane at work. Dropping it stops it without waiting; [`Running::shutdown`] waits.
pub struct Running {
    /// Where sidecars connect (bound address, so the port is never 0).
    pub discovery_address: SocketAddr,
    /// Where the command line connects.
    pub admin_address: SocketAddr,
    /// Where metrics are read, unless turned off.
    pub monitoring_address: Option<SocketAddr>,
    /// File with the admin token (mode 0600); the command line reads it.
    pub admin_token_path: PathBuf,
    /// File with the root certificate in PEM; the command line trusts it.
    pub ca_path: PathBuf,
    /// SHA-256 of the root's public key (SubjectPublicKeyInfo in DER), hex: the last part of every join token.
    pub root_pin: String,
}

/// Why a control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} for {purpose}: {source} (hint: {hint})")]
    Listen { address: SocketAddr, purpose: &'static str, source: std::io::Error, hint: &'static str },
    /// The data directory or a file in it cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
}

/// Starts a control plane on the current (multi-thread) runtime and returns once every listener accepts.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    std::fs::create_dir_all(&settings.data_dir)
        .map_err(|source| StartError::File { path: settings.data_dir.clone(), source })?;
    Err(StartError::Listen {
        address: settings.discovery_listen,
        purpose: "discovery",
        source: std::io::Error::other("not built yet"),
        hint: "the first commit holds signatures only",
    })
}

impl Running {
    /// Issues a join token for a service account; what `outrigger token create` does, without a network hop.
    ///
    /// `ttl` `None`: 24 h. `uses` `None`: unlimited within the lifetime.
    pub async fn create_token(
        &self,
        _namespace: &str,
        _service_account: &str,
        _ttl: Option<std::time::Duration>,
        _uses: Option<u32>,
    ) -> Result<String, StartError> {
        Err(StartError::File { path: self.ca_path.clone(), source: std::io::Error::other("not built yet") })
    }

    /// Ends every stream, waits until the store is closed.
    pub async fn shutdown(self) {}
}
