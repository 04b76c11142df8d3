//! The accepting side.
use std::time::Duration;

use tokio_rustls::server::TlsStream;

use super::{Peer, TlsConfigs, TlsFailure};
use crate::host::Stream;

/// Does the handshake.
///
/// # Errors
/// See [`TlsFailure`].
pub async fn accept<S: Stream>(
    _io: S,
    _configs: &TlsConfigs,
    _timeout: Duration,
) -> Result<(TlsStream<S>, Peer), TlsFailure> {
    unimplemented!()
}
