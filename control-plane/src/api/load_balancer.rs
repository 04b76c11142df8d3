//! The loadBalancer block of a DestinationRule's traffic policy.
//!
//! Read as a whole: a block that stands in a subset or for a port replaces the general one. Two ways to choose an endpoint exclude
//! each other, as in Istio's API, and so do two keys of consistentHash.

use outrigger_proto::mesh::{ConsistentHash, HashCookie, LoadBalancer, consistent_hash};
use outrigger_proxy::balance::{maglev, ring};

use super::{
    fields::{Field, Fields},
    values::{self, DurationStyle},
};
use crate::validate::codes;

/// What is written in the block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadBalancing {
    pub simple: Option<LoadBalancer>,
    pub hash: Option<ConsistentHash>,
}

pub(super) fn read(mut fields: Fields<'_>) -> LoadBalancing {
    let simple_field = fields.get("simple");
    let simple = simple_field.as_ref().and_then(|field| {
        field.word(&[
            ("UNSPECIFIED", LoadBalancer::LeastRequest),
            ("LEAST_REQUEST", LoadBalancer::LeastRequest),
            ("LEAST_CONN", LoadBalancer::LeastInFlight),
            ("ROUND_ROBIN", LoadBalancer::RoundRobin),
            ("RANDOM", LoadBalancer::Random),
            ("PASSTHROUGH", LoadBalancer::Passthrough),
        ])
    });
    let hash = fields.object("consistentHash");
    if let (Some(field), Some(_)) = (&simple_field, &hash) {
        field.problem_with_fix(
            &codes::EXCLUSIVE,
            "simple and consistentHash are two ways to choose an endpoint",
            "remove one of them",
        );
    }
    let hash = hash.and_then(consistent_hash);
    fields.not_supported(
        &["localityLbSetting", "zoneAwareLbSetting", "warmup", "warmupDurationSecs"],
        "requests are balanced by simple, or least request",
    );
    fields.finish();
    LoadBalancing { simple, hash }
}

fn consistent_hash(mut fields: Fields<'_>) -> Option<ConsistentHash> {
    use consistent_hash::{Key, Table};
    let mut keys: Vec<(&str, Option<Key>)> = Vec::new();
    if let Some(field) = fields.get("httpHeaderName") {
        keys.push(("httpHeaderName", header_name(&field).map(Key::Header)));
    }
    if let Some(cookie) = fields.object("httpCookie") {
        keys.push(("httpCookie", http_cookie(cookie).map(Key::Cookie)));
    }
    if let Some(is_key) = fields.get("useSourceIp").and_then(|field| field.flag())
        && is_key
    {
        keys.push(("useSourceIp", Some(Key::SourceIp(true))));
    }
    if let Some(field) = fields.get("httpQueryParameterName") {
        let name = field.text().filter(|name| !name.is_empty());
        if name.is_none() {
            field.problem(&codes::MISSING, "httpQueryParameterName is empty");
        }
        keys.push(("httpQueryParameterName", name.map(Key::QueryParameter)));
    }
    match keys.as_slice() {
        [_] => {}
        [] => fields.field.problem_with_fix(
            &codes::MISSING,
            "consistentHash names no key",
            "add httpHeaderName, httpCookie, useSourceIp: true or httpQueryParameterName",
        ),
        [..] => {
            let names: Vec<&str> = keys.iter().map(|(name, _)| *name).collect();
            let message = format!("{} are keys that exclude each other", names.join(" and "));
            fields.field.problem_with_fix(&codes::EXCLUSIVE, message, "keep one of them");
        }
    }
    let ring_size = |field: &Field<'_>| {
        let size = field.number(1, u64::from(ring::POINTS_LIMIT))?;
        u32::try_from(size).ok().map(Table::MinimumRingSize)
    };
    // The older place of the ring's size; ringHash decides when both are there.
    let mut table = fields.get("minimumRingSize").and_then(|field| ring_size(&field));
    let ring = fields.object("ringHash");
    let maglev_field = fields.object("maglev");
    if let (Some(ring), Some(_)) = (&ring, &maglev_field) {
        ring.field.problem_with_fix(
            &codes::EXCLUSIVE,
            "ringHash and maglev are two kinds of table",
            "remove one of them",
        );
    }
    if let Some(mut ring) = ring {
        table = ring.get("minimumRingSize").and_then(|field| ring_size(&field)).or(table);
        ring.finish();
    }
    if let Some(mut fields) = maglev_field {
        let size = fields.get("tableSize").and_then(|field| {
            let size = u32::try_from(field.number(2, u64::from(maglev::SIZE_LIMIT))?).ok()?;
            if !maglev::is_size(size) {
                field.problem_with_fix(
                    &codes::OUT_OF_RANGE,
                    format!("{size} is not a prime number"),
                    "write 65537, or leave it out",
                );
            }
            Some(size)
        });
        table = Some(Table::MaglevSize(size.unwrap_or(maglev::DEFAULT_SIZE)));
        fields.finish();
    }
    fields.finish();
    let (_, key) = keys.into_iter().next()?;
    Some(ConsistentHash { key: Some(key?), table })
}

fn header_name(field: &Field<'_>) -> Option<String> {
    let name = field.text()?;
    if !values::is_header_name(&name) {
        field.problem(&codes::BAD_HEADER, format!("\"{name}\" is not a header name"));
        return None;
    }
    Some(name.to_ascii_lowercase())
}

fn http_cookie(mut fields: Fields<'_>) -> Option<HashCookie> {
    let name = fields.require("name").and_then(|field| {
        let name = field.text()?;
        // RFC 6265 §4.1.1: a cookie's name is a token, as a header's is.
        if !values::is_header_name(&name) {
            field.problem(&codes::BAD_HEADER, format!("\"{name}\" is not a cookie name"));
            return None;
        }
        Some(name)
    });
    let path = fields.get("path").and_then(|field| {
        let path = field.text()?;
        if !path.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b';') || path.len() > 1024 {
            field.problem(&codes::BAD_PATH, format!("\"{path}\" is not a path of a cookie"));
            return None;
        }
        Some(path)
    });
    let ttl = fields.duration("ttl", DurationStyle::Go);
    fields.not_supported(&["attributes"], "the cookie has Path, HttpOnly and, with a ttl, Max-Age");
    fields.finish();
    Some(HashCookie { name: name?, path: path.unwrap_or_default(), ttl })
}
