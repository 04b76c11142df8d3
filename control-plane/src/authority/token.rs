//! Join tokens: how they look, how they are made and compared. Pure apart from randomness in [`JoinToken::generate`].
//!
//! `orj1.<id>.<secret>.<pin>`: the id finds the stored record, the secret (32 bytes, base64url) is proved, the pin is the
//! SHA-256 of the root's public key in hex, so that a sidecar knows whom to trust before it trusts anybody. Only the
//! hash of the secret is stored; the pin may be left out when the token is presented.

use aws_lc_rs::{constant_time, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// First part of every token of this form.
pub const PREFIX: &str = "orj1";
/// Bytes of the secret.
const SECRET_BYTES: usize = 32;
/// Longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// A token as its holder has it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub id: String,
    pub secret: [u8; SECRET_BYTES],
    /// SHA-256 of the root's SubjectPublicKeyInfo, hex; absent when presented without it.
    pub pin: Option<String>,
}

/// The text is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token (hint: it reads orj1.<id>.<secret>.<pin>, as printed by `outrigger token create`)")]
pub struct NotAToken;

impl JoinToken {
    /// A new token with a random id and secret.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(pin: &str) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let (mut id, mut secret) = ([0_u8; 6], [0_u8; SECRET_BYTES]);
        aws_lc_rs::rand::fill(&mut id)?;
        aws_lc_rs::rand::fill(&mut secret)?;
        Ok(Self { id: hex(&id), secret, pin: Some(pin.to_owned()) })
    }

    /// Reads a token with or without its pin.
    ///
    /// # Errors
    /// [`NotAToken`] for everything else.
    pub fn parse(text: &str) -> Result<Self, NotAToken> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(NotAToken);
        }
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(id), Some(secret), pin, None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAToken);
        };
        let id_ok = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let pin_ok = pin.is_none_or(|pin| pin.len() == 64 && pin.bytes().all(|b| b.is_ascii_hexdigit()));
        let secret: Option<[u8; SECRET_BYTES]> =
            URL_SAFE_NO_PAD.decode(secret).ok().and_then(|bytes| bytes.try_into().ok());
        match (id_ok && pin_ok, secret) {
            (true, Some(secret)) => {
                Ok(Self { id: id.to_owned(), secret, pin: pin.map(|pin| pin.to_ascii_lowercase()) })
            }
            _ => Err(NotAToken),
        }
    }

    /// What the store keeps instead of the secret.
    pub fn secret_hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }

    /// Does the secret hash to `stored`? Takes the same time whatever differs.
    pub fn matches(&self, stored: &[u8; 32]) -> bool {
        constant_time::verify_slices_are_equal(&self.secret_hash(), stored).is_ok()
    }

    /// The whole token, to be shown once.
    pub fn reveal(&self) -> String {
        let secret = URL_SAFE_NO_PAD.encode(self.secret);
        match &self.pin {
            Some(pin) => format!("{PREFIX}.{}.{secret}.{pin}", self.id),
            None => format!("{PREFIX}.{}.{secret}", self.id),
        }
    }
}

/// SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| char::from(b"0123456789abcdef"[usize::from(n)])).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_token_reads_back_with_and_without_pin() {
        // A token that its own parser refuses would lock every sidecar out.
        let token = JoinToken::generate(&"ab".repeat(32)).unwrap();
        let text = token.reveal();
        let back = JoinToken::parse(&text).unwrap();
        assert!(back == token && back.matches(&token.secret_hash()));
        let without_pin = text.rsplit_once('.').unwrap().0;
        let back = JoinToken::parse(without_pin).unwrap();
        assert_eq!(back.pin, None);
        assert!(back.matches(&token.secret_hash()));
    }

    #[test]
    fn anything_else_is_refused() {
        // Garbage in the header must end as "unauthenticated", never as a panic or a match.
        let good = JoinToken::generate(&"ab".repeat(32)).unwrap();
        let secret = URL_SAFE_NO_PAD.encode(good.secret);
        for text in [
            String::new(),
            "orj1".to_owned(),
            "orj1..".to_owned(),
            format!("orj2.{}.{secret}", good.id),
            format!("orj1.{}.{secret}.short", good.id),
            format!("orj1.{}.{secret}x", good.id),
            format!("orj1.{}.{}", good.id, &secret[1..]),
            format!("orj1.a b.{secret}"),
            format!("{}.more", good.reveal()),
            "x".repeat(100_000),
        ] {
            assert!(JoinToken::parse(&text).is_err(), "{text}");
        }
        let other = JoinToken::generate("").unwrap();
        assert!(!other.matches(&good.secret_hash()));
    }
}
