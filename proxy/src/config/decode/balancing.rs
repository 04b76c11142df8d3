//! Checks how a backend chooses among its endpoints: consistent hashing, locality, slow start.

use http::HeaderName;
use outrigger_proto::mesh::{self, consistent_hash};

use super::{Checked, Fault, In, check_name, duration, each, named, percent, refuse};
use crate::balance::{
    key::{CookieKey, HashPolicy, KeySource},
    keyed::TableKind,
    locality::{Distribution, LocalityPolicy, Pattern, Preference},
    maglev, ring,
    warmup::Warmup,
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

pub(super) fn locality(locality: &mesh::LocalityPreference) -> Checked<LocalityPolicy> {
    if locality.distribute.is_empty() {
        let labels = each("failover_priority", &locality.failover_priority, |wanted| {
            let (key, value) =
                wanted.split_once('=').map_or((wanted.as_str(), None), |(key, value)| (key, Some(value)));
            check_name(key)?;
            Ok(Preference { key: key.into(), value: value.map(Into::into) })
        })?;
        return Ok(LocalityPolicy::Failover { regions: locality.failover.clone(), labels });
    }
    if !locality.failover.is_empty() || !locality.failover_priority.is_empty() {
        return refuse("excludes failover and failover_priority").in_field("distribute");
    }
    let pattern = |text: &str| {
        if Pattern::is_valid(text) {
            Ok(Pattern(text.into()))
        } else {
            refuse(format!("\"{text}\" is no pattern of localities"))
        }
    };
    let entries = each("distribute", &locality.distribute, |entry| {
        let to = entry.to.iter().map(|(to, weight)| Ok((pattern(to).in_field("to")?, *weight)));
        Ok(Distribution { from: pattern(&entry.from).in_field("from")?, to: to.collect::<Checked<_>>()? })
    })?;
    Ok(LocalityPolicy::Distribute(entries))
}

pub(super) fn warmup(warmup: &mesh::Warmup) -> Checked<Warmup> {
    let Some(duration) = duration(warmup.duration.as_ref()).in_field("duration")? else {
        return refuse("is missing").in_field("duration");
    };
    let aggression = match warmup.aggression {
        0.0 => 1.0,
        aggression if (1.0..=1e6).contains(&aggression) => aggression,
        other => return refuse(format!("{other} is not between 1 and 1,000,000")).in_field("aggression"),
    };
    let minimum_percent = percent(warmup.minimum_percent).in_field("minimum_percent")?.unwrap_or(10.0);
    Ok(Warmup { duration, minimum_percent, aggression })
}

pub(super) fn cookie(cookie: &mesh::HashCookie) -> Checked<CookieKey> {
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
