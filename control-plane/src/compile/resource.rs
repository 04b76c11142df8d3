//! A message as a named resource whose version is the hash of its bytes. Pure.

use std::{fmt::Write as _, sync::Arc};

use aws_lc_rs::digest;
use outrigger_proto::{kind::Kind, mesh::Origin};
use prost::Message;

use super::Resource;
use crate::api::ObjectKey;

pub(super) fn encode(
    kind: Kind,
    name: &str,
    aliases: Vec<Arc<str>>,
    message: &impl Message,
    origins: &[Origin],
) -> Resource {
    let bytes = message.encode_to_vec();
    let key = |origin: &Origin| ObjectKey {
        kind: origin.kind.clone(),
        namespace: origin.namespace.clone(),
        name: origin.name.clone(),
    };
    Resource {
        kind,
        name: name.into(),
        aliases,
        version: version(&bytes).into(),
        bytes: bytes.into(),
        origins: origins.iter().map(key).collect(),
    }
}

/// Hex of the first 64 bits of the SHA-256.
fn version(bytes: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, bytes);
    let mut text = String::with_capacity(16);
    for byte in hash.as_ref().iter().take(8) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_start_of_the_sha_256() {
        // Every replica and every restart must give the same version, or all proxies are sent everything again.
        // SHA-256 of "abc", FIPS 180-2, appendix B.1.
        assert_eq!(version(b"abc"), "ba7816bf8f01cfea");
    }
}
