//! The accepting side: a handshake with our certificate, and who the client is.
//!
//! Called by `inbound` once the ClientHello has shown that a sidecar wants to speak (`Alpn::any_offered`). A client
//! without a certificate, or with one we do not trust, gets an alert and nothing else.

use std::{io, time::Duration};

use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Alpn, BUFFER_BYTES, Peer, TlsConfigs, TlsFailure, in_time, verify};
use crate::{host::Stream, resilience::growth::GROWTH};

/// Does the handshake; the protocol is chosen by our preference (`istio-h2`, `istio-http/1.1`, `istio`).
///
/// Boxed: the stream has more than a kilobyte, and every future that it is handed on to would keep room for it.
///
/// # Errors
/// [`TlsFailure`]; the connection is gone then. Dropping the future closes it too.
pub async fn accept<S: Stream>(
    io: S,
    configs: &TlsConfigs,
    timeout: Duration,
) -> Result<(Box<TlsStream<S>>, Peer), TlsFailure> {
    let mut stream = Box::new(in_time(timeout, TlsAcceptor::from(configs.server()).accept(io)).await?);
    let (_, session) = stream.get_mut();
    if GROWTH.is_bounded() {
        session.set_buffer_limit(Some(BUFFER_BYTES));
    }
    let leaf = session.peer_certificates().and_then(|chain| chain.first()).ok_or_else(|| {
        // The verifier makes a certificate mandatory; this is the second lock on the same door.
        TlsFailure::Handshake(io::Error::new(io::ErrorKind::InvalidData, "client sent no certificate"))
    })?;
    let identity = verify::identity(leaf).map_err(|problem| TlsFailure::NoIdentity(problem.to_string().into()))?;
    let peer = Peer {
        identity,
        alpn: session.alpn_protocol().and_then(Alpn::from_token),
        server_name: session.server_name().map(Into::into),
    };
    Ok((stream, peer))
}
