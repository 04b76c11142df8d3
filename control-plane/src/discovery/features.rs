//! Which features a resource needs from the proxy that gets it. Pure.
//!
//! A proxy lists what it understands when it connects. A resource that would mean something else without an unknown field is
//! withheld from it, and its user's objects say so.

use outrigger_proto::{
    kind::Kind,
    mesh::{BackendPolicy, Breaker, LoadBalancer, LocalityPreference, Policy, RouteTable, http_rule},
};
use prost::Message as _;

use crate::compile::Resource;

/// Features that the resource needs beyond `core/v1`.
pub fn needed(resource: &Resource) -> Vec<&'static str> {
    let mut is_sticky = false;
    let (breakers, policies): (Vec<Breaker>, Vec<Policy>) = match resource.kind {
        Kind::BackendPolicy => BackendPolicy::decode(resource.bytes.clone()).map_or_else(
            |_| Default::default(),
            |policy| {
                let subsets = policy.subsets.into_iter().filter_map(|s| s.policy);
                let policies: Vec<Policy> = policy.base.into_iter().chain(subsets).collect();
                (policies.iter().filter_map(|p| p.breaker.clone()).collect(), policies)
            },
        ),
        Kind::RouteTable => RouteTable::decode(resource.bytes.clone()).map_or_else(
            |_| Default::default(),
            |table| {
                is_sticky = table.http.iter().any(
                    |rule| matches!(&rule.action, Some(http_rule::Action::Split(split)) if split.sticky.is_some()),
                );
                (table.http.into_iter().filter_map(|rule| rule.breaker).collect(), Vec::new())
            },
        ),
        _ => Default::default(),
    };
    let mut needed = Vec::new();
    if !breakers.is_empty() {
        needed.push("breaker/v1");
    }
    if breakers.iter().any(|b| b.fallback.is_some()) {
        needed.push("fallback/v1");
    }
    if policies.iter().any(|p| p.consistent_hash.is_some()) {
        needed.push("consistent-hash/v1");
    }
    if policies.iter().any(|p| p.load_balancer() == LoadBalancer::LeastInFlight) {
        needed.push("least-in-flight/v1");
    }
    // The default is a preference that a proxy may lack; what is written is not.
    if policies.iter().filter_map(|p| p.locality.as_ref()).any(|locality| *locality != LocalityPreference::default()) {
        needed.push("locality/v1");
    }
    if policies.iter().any(|p| p.warmup.is_some()) {
        needed.push("warmup/v1");
    }
    if is_sticky {
        needed.push("sticky-split/v1");
    }
    needed
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use outrigger_proto::mesh::{ConsistentHash, Fallback, HttpRule, Split, Sticky, Warmup};

    use super::*;

    fn resource(kind: Kind, bytes: Vec<u8>) -> Resource {
        Resource {
            kind,
            name: "x".into(),
            aliases: Vec::new(),
            version: "1".into(),
            bytes: Bytes::from(bytes),
            origins: Vec::new(),
        }
    }

    #[test]
    fn what_a_policy_says_needs_a_proxy_that_knows_it() {
        // An old proxy would silently run without the breaker, or send every user's requests anywhere.
        let plain = Policy::default();
        let breaker = Policy { breaker: Some(Breaker::default()), ..Default::default() };
        let fallback = Breaker { fallback: Some(Fallback::default()), ..Default::default() };
        let fallback = Policy { breaker: Some(fallback), ..Default::default() };
        let hash = Policy { consistent_hash: Some(ConsistentHash::default()), ..Default::default() };
        let in_flight = Policy { load_balancer: LoadBalancer::LeastInFlight.into(), ..Default::default() };
        let near = Policy { locality: Some(LocalityPreference::default()), ..Default::default() };
        let failover = LocalityPreference { failover_priority: vec!["zone".into()], ..Default::default() };
        let written = Policy { locality: Some(failover), ..Default::default() };
        let warmup = Policy { warmup: Some(Warmup::default()), ..Default::default() };
        let split = Split { sticky: Some(Sticky::default()), ..Default::default() };
        let rule = HttpRule { action: Some(http_rule::Action::Split(split)), ..Default::default() };
        let table = RouteTable { http: vec![rule], ..Default::default() };
        assert_eq!(needed(&resource(Kind::RouteTable, table.encode_to_vec())), ["sticky-split/v1"]);
        for (policy, expected) in [
            (plain, vec![]),
            (breaker, vec!["breaker/v1"]),
            (fallback, vec!["breaker/v1", "fallback/v1"]),
            (hash, vec!["consistent-hash/v1"]),
            (in_flight, vec!["least-in-flight/v1"]),
            (near, vec![]),
            (written, vec!["locality/v1"]),
            (warmup, vec!["warmup/v1"]),
        ] {
            let policy = BackendPolicy { base: Some(policy), ..Default::default() };
            let resource = resource(Kind::BackendPolicy, policy.encode_to_vec());
            assert_eq!(needed(&resource), expected);
        }
    }
}
