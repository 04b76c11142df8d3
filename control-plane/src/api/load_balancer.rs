//! The loadBalancer block of a DestinationRule's traffic policy.
//!
//! Read as a whole: a block that stands in a subset or for a port replaces the general one. Two ways to choose an endpoint exclude
//! each other, as in Istio's API, and so do two keys of consistentHash.

use std::collections::BTreeMap;

use outrigger_proto::mesh::{
    ConsistentHash, HashCookie, LoadBalancer, LocalityPreference, LocalityShares, Warmup, consistent_hash,
};
use outrigger_proxy::balance::{locality::Pattern, maglev, ring};

use super::{
    Problem,
    fields::{Field, Fields},
    values::{self, DurationStyle},
};
use crate::validate::codes;

/// What is written in the block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadBalancing {
    pub simple: Option<LoadBalancer>,
    pub hash: Option<ConsistentHash>,
    /// `None`: nothing is written.
    pub locality: Option<LocalitySetting>,
    pub warmup: Option<Warmup>,
}

/// Istio's localityLbSetting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalitySetting {
    /// `None`: nothing is written.
    pub enabled: Option<bool>,
    pub preference: LocalityPreference,
}

impl LocalitySetting {
    /// What proxies are told. Where nothing speaks for or against it, near endpoints are preferred if there is outlier detection, as in Istio.
    pub(crate) fn preference(setting: Option<&Self>, has_outlier_detection: bool) -> Option<LocalityPreference> {
        match setting {
            Some(Self { enabled: Some(false), .. }) => None,
            Some(setting) if setting.enabled.is_some() || setting.preference != LocalityPreference::default() => {
                Some(setting.preference.clone())
            }
            _ => has_outlier_detection.then(LocalityPreference::default),
        }
    }
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
    let locality = fields.object("localityLbSetting").map(locality);
    let older = fields.get("warmupDurationSecs");
    let mut warmup = older
        .as_ref()
        .and_then(|field| field.duration(DurationStyle::Go))
        .map(|duration| Warmup { duration: Some(duration), ..Warmup::default() });
    if let Some(fields) = fields.object("warmup") {
        warmup = read_warmup(fields);
    }
    let is_gradual = hash.is_none()
        && matches!(
            simple,
            None | Some(LoadBalancer::LeastRequest | LoadBalancer::LeastInFlight | LoadBalancer::RoundRobin)
        );
    if warmup.is_some() && !is_gradual {
        fields.field.say(
            Problem::new(
                &codes::FIELD_NOT_SUPPORTED,
                "warmup goes with LEAST_REQUEST, LEAST_CONN and ROUND_ROBIN only",
            )
            .effect("new endpoints get their full share at once")
            .fix("remove warmup, or choose one of these"),
        );
        warmup = None;
    }
    fields.not_supported(&["zoneAwareLbSetting"], "localityLbSetting applies");
    fields.finish();
    LoadBalancing { simple, hash, locality, warmup }
}

fn locality(mut fields: Fields<'_>) -> LocalitySetting {
    let enabled = fields.get("enabled").and_then(|field| field.flag());
    let mut preference = LocalityPreference::default();
    let distribute = fields.get("distribute");
    for field in distribute.as_ref().map(|field| field.items()).unwrap_or_default() {
        let Some(entry) = field.object() else { continue };
        preference.distribute.extend(shares(entry.proto_json(), &field));
    }
    let mut others = Vec::new();
    for field in fields.list("failover") {
        others.push("failover");
        let Some(entry) = field.object() else { continue };
        let mut entry = entry.proto_json();
        let mut region = |name: &'static str| {
            let field = entry.require(name)?;
            let region = field.text()?;
            if region.is_empty() || region.contains(['/', '*']) {
                field.problem(&codes::BAD_NAME, format!("\"{region}\" is not a region"));
                return None;
            }
            Some(region)
        };
        let (from, to) = (region("from"), region("to"));
        entry.finish();
        let (Some(from), Some(to)) = (from, to) else { continue };
        if from == to {
            field.problem(&codes::INCONSISTENT, format!("region {from} cannot be its own failover"));
        } else if preference.failover.insert(from.clone(), to).is_some() {
            field.problem(&codes::DUPLICATE, format!("region {from} has two failovers"));
        }
    }
    for field in fields.list("failoverPriority") {
        others.push("failoverPriority");
        let Some(text) = field.text() else { continue };
        let (key, value) = text.split_once('=').map_or((text.as_str(), None), |(key, value)| (key, Some(value)));
        if !values::is_label_key(key) || value.is_some_and(|value| !values::is_label_value(value)) {
            field.problem(&codes::BAD_NAME, format!("\"{text}\" is not a label, nor key=value"));
            continue;
        }
        preference.failover_priority.push(text);
    }
    if let (Some(field), Some(other)) = (&distribute, others.first())
        && !preference.distribute.is_empty()
    {
        field.problem_with_fix(
            &codes::EXCLUSIVE,
            format!("distribute and {other} are two ways to prefer a place"),
            "keep one of them",
        );
    }
    fields.finish();
    LocalitySetting { enabled, preference }
}

/// One entry of `distribute`.
fn shares(mut entry: Fields<'_>, around: &Field<'_>) -> Option<LocalityShares> {
    let pattern = |field: &Field<'_>, text: &str| {
        let is_valid = Pattern::is_valid(text);
        if !is_valid {
            field.problem_with_fix(
                &codes::BAD_NAME,
                format!("\"{text}\" is not a pattern of localities"),
                "write region/zone/subzone, region/zone/*, region/* or *",
            );
        }
        is_valid
    };
    let from = entry.require("from").and_then(|field| field.text().filter(|text| pattern(&field, text)));
    let mut to = BTreeMap::new();
    for (text, field) in entry.require("to").map(|field| field.entries()).unwrap_or_default() {
        let weight = field.number(1, 100).and_then(|weight| u32::try_from(weight).ok());
        if let (true, Some(weight)) = (pattern(&field, &text), weight) {
            to.insert(text, weight);
        }
    }
    entry.finish();
    let total: u32 = to.values().sum();
    if total != 100 {
        around.problem(&codes::INCONSISTENT, format!("the shares of \"to\" add up to {total}, not to 100"));
    }
    Some(LocalityShares { from: from?, to })
}

fn read_warmup(mut fields: Fields<'_>) -> Option<Warmup> {
    let field = fields.require("duration");
    let duration = field.as_ref().and_then(|field| field.duration(DurationStyle::Go));
    if let (Some(field), Some(prost_types::Duration { seconds: 0, nanos: 0 })) = (&field, duration) {
        field.problem_with_fix(&codes::OUT_OF_RANGE, "a warmup of no time is none", "remove warmup");
    }
    let minimum_percent = fields.get("minimumPercent").and_then(|field| field.percent()).unwrap_or_default();
    let aggression = fields.get("aggression").and_then(|field| field.real(1.0, 1e6, "a number")).unwrap_or_default();
    fields.finish();
    Some(Warmup { duration: Some(duration?), minimum_percent, aggression })
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
