//! The connecting side.
use std::time::Duration;

use tokio_rustls::client::TlsStream;

use super::{Alpn, Expected, Offer, TlsConfigs, TlsFailure};
use crate::host::Stream;

/// Does the handshake.
///
/// # Errors
/// See [`TlsFailure`].
pub async fn connect<S: Stream>(
    _io: S,
    _configs: &TlsConfigs,
    _offer: Offer,
    _expected: &Expected,
    _timeout: Duration,
) -> Result<(TlsStream<S>, Option<Alpn>), TlsFailure> {
    unimplemented!()
}
