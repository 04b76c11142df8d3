//! The connecting side: a handshake with a server that must prove who it is.
//!
//! Called by `upstream` for every connection to another sidecar. There is no way from here back to plaintext.

use std::{net::Ipv4Addr, time::Duration};

use rustls::pki_types::ServerName;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Alpn, BUFFER_BYTES, Expected, Offer, TlsConfigs, TlsFailure, in_time};
use crate::{host::Stream, resilience::growth::GROWTH};

/// Does the handshake; returns what the server chose from the offer, or `None` if it chose nothing.
///
/// With TLS 1.3 the client is done before the server has looked at our certificate: a server that refuses us shows it
/// by ending the connection at the first read.
///
/// # Errors
/// [`TlsFailure`]; the connection is gone then. Dropping the future closes it too.
pub async fn connect<S: Stream>(
    io: S,
    configs: &TlsConfigs,
    offer: Offer,
    expected: &Expected,
    timeout: Duration,
) -> Result<(TlsStream<S>, Option<Alpn>), TlsFailure> {
    // rustls wants a name; an address is never sent, and our verifier looks at identities instead.
    let nobody = ServerName::from(Ipv4Addr::UNSPECIFIED);
    let connector = TlsConnector::from(configs.client(offer, expected));
    let mut stream = in_time(timeout, connector.connect(nobody, io)).await?;
    if GROWTH.is_bounded() {
        stream.get_mut().1.set_buffer_limit(Some(BUFFER_BYTES));
    }
    let alpn = stream.get_ref().1.alpn_protocol().and_then(Alpn::from_token);
    Ok((stream, alpn))
}
