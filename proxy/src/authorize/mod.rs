//! May it? Answers for a connection, before anything of it reaches the application. Pure.
//!
//! Called by `inbound` for every connection. Whoever hands bytes to the application asks for the [`Authorized`] that only
//! this module makes, so the check cannot be forgotten. Today the only rule is PeerAuthentication's mode; the
//! rules of AuthorizationPolicy will stand beside it and answer with the same type.

use crate::{config::view::PeerMode, failure::Reason};

/// Proof that the check was made and passed.
#[derive(Clone, Copy, Debug)]
#[must_use = "the proof belongs to whoever forwards the traffic"]
pub struct Authorized(());

/// Decides by the port's mode; `mtls` says whether the peer proved an identity.
///
/// DISABLE means that the mesh does not ask for TLS: a peer that uses it nevertheless is let in.
///
/// # Errors
/// [`Reason::PlaintextRefused`] when STRICT meets plaintext; the caller closes without a byte to the application.
pub const fn authorize_connection(mode: PeerMode, mtls: bool) -> Result<Authorized, Reason> {
    match (mode, mtls) {
        (PeerMode::Strict, false) => Err(Reason::PlaintextRefused),
        (PeerMode::Strict, true) | (PeerMode::Permissive | PeerMode::Disable, _) => Ok(Authorized(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_lets_no_plaintext_in() {
        // The one promise of STRICT.
        for (mode, mtls, allowed) in [
            (PeerMode::Strict, false, false),
            (PeerMode::Strict, true, true),
            (PeerMode::Permissive, false, true),
            (PeerMode::Permissive, true, true),
            (PeerMode::Disable, false, true),
            (PeerMode::Disable, true, true),
        ] {
            let answer = authorize_connection(mode, mtls);
            assert_eq!(answer.is_ok(), allowed, "{mode:?} {mtls}");
            if let Err(reason) = answer {
                assert_eq!(reason, Reason::PlaintextRefused);
            }
        }
    }
}
