//! The admin token: who may change the mesh. One random secret in a file that only its owner can read.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use aws_lc_rs::constant_time;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::authority::{AuthorityError, root::write_private, token::sha256};

/// Name of the file in the data directory.
pub const FILE: &str = "admin.token";

/// The hash of the token, to compare with.
#[derive(Clone)]
pub struct AdminToken {
    hash: [u8; 32],
}

impl AdminToken {
    /// Reads the token of `folder`, or makes one.
    ///
    /// # Errors
    /// When the file cannot be used, is empty, or may be read by others.
    pub fn load_or_create(folder: &Path) -> Result<Self, AuthorityError> {
        let path = folder.join(FILE);
        let error = |source| AuthorityError::File { path: path.clone(), source };
        if !path.exists() {
            let mut secret = [0_u8; 32];
            aws_lc_rs::rand::fill(&mut secret).map_err(|_| error(std::io::Error::other("no randomness")))?;
            write_private(&path, format!("{}\n", URL_SAFE_NO_PAD.encode(secret)).as_bytes(), 0o600)?;
        }
        let mode = fs::metadata(&path).map_err(error)?.permissions().mode();
        let unusable = |reason: String| AuthorityError::Unusable { path: path.clone(), reason };
        if mode & 0o077 != 0 {
            return Err(unusable(format!("others may read it (mode {:o}; hint: chmod 600)", mode & 0o777)));
        }
        let text = fs::read_to_string(&path).map_err(error)?;
        if text.trim().len() < 16 {
            return Err(unusable(
                "it is shorter than 16 characters (hint: remove it to have a new one made)".to_owned(),
            ));
        }
        Ok(Self { hash: sha256(text.trim().as_bytes()) })
    }

    /// Does this `authorization` header carry the token? Takes the same time whatever differs.
    pub fn is_in(&self, header: Option<&[u8]>) -> bool {
        let Some((scheme, token)) =
            header.and_then(|h| std::str::from_utf8(h).ok()).and_then(|text| text.split_once(' '))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case("bearer")
            && constant_time::verify_slices_are_equal(&sha256(token.trim().as_bytes()), &self.hash).is_ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens() {
        // The admin side can change every route: anything else must stay out.
        let folder = tempfile::tempdir().unwrap();
        let token = AdminToken::load_or_create(folder.path()).unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let again = AdminToken::load_or_create(folder.path()).unwrap();
        assert!(again.is_in(Some(format!("Bearer {}", text.trim()).as_bytes())));
        for header in [None, Some(""), Some("Bearer"), Some("Bearer "), Some("Bearer x"), Some(text.trim())] {
            assert!(!token.is_in(header.map(str::as_bytes)), "{header:?}");
        }
        fs::set_permissions(folder.path().join(FILE), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(AdminToken::load_or_create(folder.path()).is_err());
    }
}
