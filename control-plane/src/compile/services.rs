//! A service with its endpoints, routes and policies as resources. Pure.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bytes::Bytes;
use outrigger_proto::{
    kind::Kind,
    mesh::{self, Endpoint, EndpointShard},
};

use super::{Resource, resource::encode};
use crate::model::Service;

/// Most endpoints of one shard.
const SHARD_LIMIT: usize = 64;
/// Most shards of one service: about four million endpoints before a shard may exceed its limit.
const SHARDS_LIMIT: usize = 1 << 16;

/// Hands over every resource of a service: what is referred to first.
pub(super) fn add(service: &Service, sink: &mut impl FnMut(Resource)) {
    let mut shards = Vec::new();
    if !service.passthrough {
        for (index, endpoints) in shard(&service.endpoints).into_iter().enumerate() {
            let name = format!("{}/{index}", service.key);
            let mut origins = service.origins.clone();
            for origin in endpoints.iter().filter_map(|endpoint| service.endpoint_origins.get(&endpoint.uid)) {
                if !origins.contains(origin) {
                    origins.push(origin.clone());
                }
            }
            sink(encode(Kind::EndpointShard, &name, Vec::new(), &EndpointShard { endpoints }, &origins));
            shards.push(name);
        }
    }
    let mut ports = Vec::new();
    for port in &service.ports {
        let name = |scope: &str| format!("{}:{}@{scope}", service.key, port.number);
        let mut policies = BTreeMap::new();
        for (scope, policy) in &port.policies {
            sink(encode(Kind::BackendPolicy, &name(scope), Vec::new(), policy, &policy.origins));
            policies.insert(scope.clone(), name(scope));
        }
        let mut routes = BTreeMap::new();
        for (scope, table) in &port.routes {
            sink(encode(Kind::RouteTable, &name(scope), Vec::new(), table, &table.origins));
            routes.insert(scope.clone(), name(scope));
        }
        ports.push(mesh::ServicePort {
            port: u32::from(port.number),
            name: port.name.clone(),
            protocol: port.protocol.into(),
            routes,
            policies,
        });
    }
    let message = mesh::Service {
        origins: service.origins.clone(),
        namespace: service.namespace.clone(),
        host: service.host.clone(),
        name: service.name.clone(),
        addresses: service.addresses.iter().map(|address| address_bytes(*address)).collect(),
        hosts: service.hosts.clone(),
        ports,
        endpoint_shards: shards,
        external: service.external,
    };
    let aliases = service
        .addresses
        .iter()
        .map(|address| format!("vip/{address}"))
        .chain(service.owns_host.then(|| format!("host/{}", service.host)))
        .chain(service.hosts.iter().map(|host| format!("host/{host}")))
        .map(Arc::from)
        .collect();
    sink(encode(Kind::Service, &service.key, aliases, &message, &service.origins));
}

fn address_bytes(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}

/// Spreads endpoints by the hash of their uid, so that one that comes or goes changes one shard only.
///
/// The number of shards is a power of two, at least one (an empty service has one empty shard, so that its first endpoint is a
/// small update), and grows until none is above the limit.
fn shard(endpoints: &[Endpoint]) -> Vec<Vec<Endpoint>> {
    let mut count = endpoints.len().div_ceil(SHARD_LIMIT).next_power_of_two().max(1);
    loop {
        let mut shards: Vec<Vec<Endpoint>> = vec![Vec::new(); count];
        let mask = count as u64 - 1;
        for endpoint in endpoints {
            let index = usize::try_from(hash(&endpoint.uid) & mask).unwrap_or(0);
            if let Some(shard) = shards.get_mut(index) {
                shard.push(endpoint.clone());
            }
        }
        if count >= SHARDS_LIMIT || shards.iter().all(|shard| shard.len() <= SHARD_LIMIT) {
            return shards;
        }
        count *= 2;
    }
}

/// FNV-1a with its bits mixed at the end: the same in every build, unlike the standard library's hashes.
fn hash(text: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: usize) -> Vec<Endpoint> {
        (0..count).map(|index| Endpoint { uid: format!("shop/reviews-{index}"), ..Endpoint::default() }).collect()
    }

    #[test]
    fn no_shard_is_above_its_limit_and_no_endpoint_is_lost() {
        // A proxy refuses a shard that is too large, and a lost endpoint gets no traffic.
        for count in [0, 1, 63, 64, 65, 128, 129, 1000, 5000] {
            let shards = shard(&endpoints(count));
            assert!(shards.len().is_power_of_two(), "{count}");
            assert!(shards.iter().all(|shard| shard.len() <= SHARD_LIMIT), "{count}");
            assert_eq!(shards.iter().map(Vec::len).sum::<usize>(), count);
        }
        assert_eq!(shard(&endpoints(0)).len(), 1);
    }

    #[test]
    fn an_endpoint_that_goes_changes_one_shard() {
        // Rolling restarts of large services must not resend all their endpoints.
        let all = endpoints(500);
        let mut fewer = all.clone();
        fewer.remove(250);
        let (before, after) = (shard(&all), shard(&fewer));
        assert_eq!(before.len(), after.len());
        let changed = before.iter().zip(&after).filter(|(left, right)| left != right).count();
        assert_eq!(changed, 1);
    }
}
