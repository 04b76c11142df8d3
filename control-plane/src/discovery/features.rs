//! Which features a resource needs from the proxy that gets it. Pure.
//!
//! A proxy lists what it understands when it connects. A resource that would mean something else without an unknown field is
//! withheld from it, and its user's objects say so.

use outrigger_proto::{
    kind::Kind,
    mesh::{BackendPolicy, Breaker, RouteTable},
};
use prost::Message as _;

use crate::compile::Resource;

/// Features that the resource needs beyond `core/v1`.
pub fn needed(resource: &Resource) -> Vec<&'static str> {
    let breakers: Vec<Breaker> = match resource.kind {
        Kind::BackendPolicy => BackendPolicy::decode(resource.bytes.clone()).map_or_else(
            |_| Vec::new(),
            |policy| {
                let subsets = policy.subsets.into_iter().filter_map(|s| s.policy);
                policy.base.into_iter().chain(subsets).filter_map(|p| p.breaker).collect()
            },
        ),
        Kind::RouteTable => RouteTable::decode(resource.bytes.clone())
            .map_or_else(|_| Vec::new(), |table| table.http.into_iter().filter_map(|rule| rule.breaker).collect()),
        _ => Vec::new(),
    };
    let mut needed = Vec::new();
    if !breakers.is_empty() {
        needed.push("breaker/v1");
    }
    if breakers.iter().any(|b| b.fallback.is_some()) {
        needed.push("fallback/v1");
    }
    needed
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use outrigger_proto::mesh::{Fallback, Policy};

    use super::*;

    #[test]
    fn a_breaker_needs_a_proxy_that_knows_breakers() {
        // An old proxy would silently run without the breaker.
        let policy =
            |breaker| BackendPolicy { base: Some(Policy { breaker, ..Default::default() }), ..Default::default() };
        let plain = policy(None);
        let breaker = policy(Some(Breaker::default()));
        let fallback = policy(Some(Breaker { fallback: Some(Fallback::default()), ..Default::default() }));
        for (policy, expected) in
            [(plain, vec![]), (breaker, vec!["breaker/v1"]), (fallback, vec!["breaker/v1", "fallback/v1"])]
        {
            let resource = Resource {
                kind: Kind::BackendPolicy,
                name: "x".into(),
                aliases: Vec::new(),
                version: "1".into(),
                bytes: Bytes::from(policy.encode_to_vec()),
                origins: Vec::new(),
            };
            assert_eq!(needed(&resource), expected);
        }
    }
}
