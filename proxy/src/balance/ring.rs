//! Ring hash: every endpoint has points on a circle, a key belongs to the next point. Pure.
//!
//! Built when endpoints change, never on the request path. How many points an endpoint has depends on its weight and not on how many others there
//! are, so that one that comes or goes moves its own keys only (Envoy divides a fixed number of points by the endpoints, which moves half
//! as many again). Half of `minimumRingSize` for the greatest common part of the weights: two endpoints then have the minimum together, and the
//! only endpoint of a backend needs no ring. Up to [`POINTS_LIMIT`] in all; beyond that all have fewer, in proportion.

use super::{keyed::Member, stable_hash::hash};

/// Most points of one ring: 3 MiB.
pub const POINTS_LIMIT: u32 = 1 << 18;

/// Points in order around the circle.
#[derive(Debug)]
pub struct Ring {
    points: Box<[u64]>,
    /// To whom each point belongs, as an index into the members.
    owners: Box<[u32]>,
}

impl Ring {
    /// The ring of these members, the same in whatever order they are given.
    pub fn build(members: &[Member<'_>], minimum_size: u32) -> Self {
        let unit = members.iter().map(|member| u64::from(member.weight.max(1))).fold(0, greatest_common_divisor).max(1);
        let total: u64 = members.iter().map(|member| u64::from(member.weight.max(1)) / unit).sum();
        let each = u64::from(minimum_size.clamp(1, POINTS_LIMIT).div_ceil(2));
        let limit = u64::from(POINTS_LIMIT).max(members.len() as u64);
        let (scale, of) = if total.saturating_mul(each) <= limit { (each, 1) } else { (limit, total) };
        let mut placed: Vec<(u64, &str, u32)> = Vec::new();
        for (index, member) in (0_u32..).zip(members) {
            let share = u64::from(member.weight.max(1)) / unit;
            let points = (share.saturating_mul(scale) / of).max(1);
            placed.extend((0..points).map(|point| (hash(member.id.as_bytes(), point), member.id, index)));
        }
        // Where two points meet, the smaller name wins everywhere.
        placed.sort_unstable();
        placed.dedup_by_key(|(point, ..)| *point);
        Self {
            points: placed.iter().map(|(point, ..)| *point).collect(),
            owners: placed.iter().map(|(.., owner)| *owner).collect(),
        }
    }

    /// To whom a key belongs, and who follows: once around the circle.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = self.points.partition_point(|point| *point < key);
        let (before, after) = self.owners.split_at(start);
        after.iter().chain(before).map(|owner| *owner as usize)
    }

    /// Points on it.
    pub fn size(&self) -> usize {
        self.points.len()
    }
}

fn greatest_common_divisor(mut one: u64, mut other: u64) -> u64 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u32]) -> Vec<(String, u32)> {
        weights.iter().enumerate().map(|(index, weight)| (format!("shop/api-{index}"), *weight)).collect()
    }

    fn size(weights: &[u32], minimum_size: u32) -> usize {
        let members = members(weights);
        let members: Vec<_> = members.iter().map(|(id, weight)| Member { id, weight: *weight }).collect();
        Ring::build(&members, minimum_size).size()
    }

    #[test]
    fn a_ring_has_the_size_it_is_asked_for_and_never_more_than_its_limit() {
        // A ring that is too small is uneven; one without a limit is memory that a policy of one line takes.
        for (weights, minimum_size, expected) in [
            (&[][..], 1024, 0),
            (&[1], 1024, 512),
            (&[1, 1], 1024, 1024),
            (&[7, 7], 1024, 1024),
            (&[100, 300], 1024, 2048),
            (&[0, 1], 3, 4),
            (&[1; 10], 1024, 5120),
            (&[1; 2], u32::MAX, POINTS_LIMIT as usize),
            (&[1; 1000], 1024, 262_000),
            (&[1, u32::MAX], 1024, 262_144),
        ] {
            assert_eq!(size(weights, minimum_size), expected, "{weights:?} {minimum_size}");
        }
    }
}
