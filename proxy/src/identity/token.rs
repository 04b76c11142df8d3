//! What a workload proves itself with before it has a certificate. Pure.
//!
//! Text of a join token: `orj1.<id>.<secret>.<pin>`, the secret in base64url, the pin the SHA-256 of the
//! SubjectPublicKeyInfo (DER) of the mesh root, in hex. The pin tells whom to trust before anybody is trusted, and stays
//! here: the control plane is shown `orj1.<id>.<secret>`. Other tokens (a Kubernetes service account's, say) are
//! passed on as they are and need a root file.

use std::{fmt, path::Path};

/// First part of a join token.
const PREFIX: &str = "orj1";
/// Bytes of a token of any sort.
const TOKEN_BYTES: usize = 16 * 1024;

/// A token, ready for use. Its text never reaches logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    bearer: String,
    /// SHA-256 of the root's public key; `None` when the token carries none.
    pub pin: Option<[u8; 32]>,
}

/// Why a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(
        "join token is malformed (hint: it reads orj1.<id>.<secret>.<pin>; make one with `outrigger token create`)"
    )]
    Malformed,
    #[error("token file {path:?} cannot be read: {source} (hint: give a join token or a readable file that holds one)")]
    Unreadable { path: String, source: std::io::Error },
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("pinned", &self.pin.is_some()).finish_non_exhaustive()
    }
}

impl Token {
    /// Reads a setting: a join token itself, or the path of a file that holds a token.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn load(setting: &str) -> Result<Self, TokenError> {
        let setting = setting.trim();
        if setting.starts_with(PREFIX) && !Path::new(setting).exists() {
            return Self::parse(setting);
        }
        let unreadable = |source| TokenError::Unreadable { path: setting.to_owned(), source };
        Self::parse(std::fs::read_to_string(setting).map_err(unreadable)?.trim())
    }

    /// Reads the text of a token.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > TOKEN_BYTES || !printable {
            return Err(TokenError::Malformed);
        }
        let mut parts = text.split('.');
        if parts.next() != Some(PREFIX) {
            return Ok(Self { bearer: text.to_owned(), pin: None });
        }
        let (Some(id), Some(secret), pin, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Malformed);
        };
        if id.is_empty() || secret.is_empty() {
            return Err(TokenError::Malformed);
        }
        let pin = pin.map(|pin| pin_bytes(pin).ok_or(TokenError::Malformed)).transpose()?;
        Ok(Self { bearer: format!("{PREFIX}.{id}.{secret}"), pin })
    }

    /// Value of the `authorization` header.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.bearer)
    }
}

fn pin_bytes(hex: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> =
        hex.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> =
        digits?.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (hex.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_and_the_pin_stays_here() {
        // A token read wrongly would keep a workload out of the mesh, or show the control plane more than it needs.
        let pin = "0f".repeat(32);
        let token = Token::parse(&format!("orj1.abc.c2VjcmV0.{pin}")).unwrap();
        assert_eq!(token.authorization(), "Bearer orj1.abc.c2VjcmV0");
        assert_eq!(token.pin, Some([0x0f; 32]));
        assert_eq!(Token::parse("orj1.abc.c2VjcmV0").unwrap().pin, None);
        assert_eq!(Token::parse("ey.x.y").unwrap().authorization(), "Bearer ey.x.y");
        assert!(!format!("{token:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn malformed_tokens_are_refused() {
        // A truncated pin must not turn into "trust anybody".
        let pin = "0f".repeat(32);
        for text in [
            String::new(),
            "orj1".to_owned(),
            "orj1.a".to_owned(),
            "orj1..b".to_owned(),
            "orj1.a.b.".to_owned(),
            format!("orj1.a.b.{}", &pin[1..]),
            format!("orj1.a.b.{}g", &pin[1..]),
            format!("orj1.a.b.{pin}.c"),
            "a b".to_owned(),
            "a\nb".to_owned(),
            "x".repeat(TOKEN_BYTES + 1),
        ] {
            assert!(Token::parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_may_hold_the_token() {
        // Secrets are mounted as files and end in a newline.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "orj1.a.b\n").unwrap();
        assert_eq!(Token::load(file.path().to_str().unwrap()).unwrap().authorization(), "Bearer orj1.a.b");
        assert!(matches!(Token::load("no/such/file"), Err(TokenError::Unreadable { .. })));
    }
}
