//! Checks how a backend chooses among its endpoints: consistent hashing.

use http::HeaderName;
use outrigger_proto::mesh::{self, consistent_hash};

use super::{Checked, Fault, In, duration, named, refuse};
use crate::balance::{
    key::{CookieKey, HashPolicy, KeySource},
    keyed::TableKind,
    maglev, ring,
};

/// Bytes of a cookie's path.
const COOKIE_PATH_BYTES: usize = 1024;

pub(super) fn hash(hash: &mesh::ConsistentHash) -> Checked<HashPolicy> {
    let key = match &hash.key {
        Some(consistent_hash::Key::Header(name)) => match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => KeySource::Header(name),
            Err(_) => return refuse(format!("\"{name}\" is no header name")).in_field("header"),
        },
        Some(consistent_hash::Key::Cookie(value)) => KeySource::Cookie(cookie(value).in_field("cookie")?),
        Some(consistent_hash::Key::SourceIp(true)) => KeySource::SourceIp,
        Some(consistent_hash::Key::SourceIp(false)) => {
            return refuse("is false, which has no meaning").in_field("source_ip");
        }
        Some(consistent_hash::Key::QueryParameter(name)) => {
            KeySource::QueryParameter((*named(name, "query_parameter")?).into())
        }
        None => return refuse("says no key, or something this version does not know"),
    };
    let table = match hash.table {
        None | Some(consistent_hash::Table::MinimumRingSize(0)) => TableKind::default(),
        Some(consistent_hash::Table::MinimumRingSize(minimum_size)) if minimum_size <= ring::POINTS_LIMIT => {
            TableKind::Ring { minimum_size }
        }
        Some(consistent_hash::Table::MinimumRingSize(size)) => {
            return refuse(format!("{size} is more than {}", ring::POINTS_LIMIT)).in_field("minimum_ring_size");
        }
        Some(consistent_hash::Table::MaglevSize(0)) => TableKind::Maglev { size: maglev::DEFAULT_SIZE },
        Some(consistent_hash::Table::MaglevSize(size)) if maglev::is_size(size) => TableKind::Maglev { size },
        Some(consistent_hash::Table::MaglevSize(size)) => {
            return refuse(format!("{size} is no prime number up to {}", maglev::SIZE_LIMIT)).in_field("maglev_size");
        }
    };
    Ok(HashPolicy { key, table })
}

fn cookie(cookie: &mesh::HashCookie) -> Checked<CookieKey> {
    // RFC 6265 §4.1.1: cookie-name is a token, and so is every header name.
    if HeaderName::from_bytes(cookie.name.as_bytes()).is_err() {
        return refuse(format!("\"{}\" is no cookie name", cookie.name)).in_field("name");
    }
    // RFC 6265 §4.1.1: path-value is "any CHAR except CTLs or ';'".
    let is_legal = cookie.path.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b';');
    if !is_legal || cookie.path.len() > COOKIE_PATH_BYTES {
        return Err(Fault::new("is no path of a cookie").under("path"));
    }
    Ok(CookieKey {
        name: cookie.name.as_str().into(),
        path: if cookie.path.is_empty() { "/" } else { &cookie.path }.into(),
        ttl: match &cookie.ttl {
            Some(ttl) => Some(duration(Some(ttl)).in_field("ttl")?.unwrap_or_default()),
            None => None,
        },
    })
}
