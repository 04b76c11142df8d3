//! Maglev: a table of fixed size in which every endpoint fills its share of the places; a key belongs to one place. Pure.
//!
//! Built when endpoints change, never on the request path. More even than a ring, a look into it is one division, and its memory does not
//! depend on how many endpoints there are; for that, an endpoint that leaves moves a few keys of others too. Endpoints take turns as often as
//! their weight says; each takes the first free place of its own order of all places. Source: Eisenbud et al., "Maglev: A Fast and Reliable
//! Software Network Load Balancer" (NSDI 2016), section 3.4.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{keyed::Member, stable_hash::hash};

/// Places where nothing else is said (Istio's and Envoy's default); a prime number.
pub const DEFAULT_SIZE: u32 = 65_537;
/// Most places: 4 MiB.
pub const SIZE_LIMIT: u32 = 1 << 20;

/// Fraction bits of a turn, so that weights up to 2^32 take turns exactly enough.
const TURN: u128 = 1 << 64;

/// Places, each with the index of the member that has it.
#[derive(Debug)]
pub struct Maglev {
    places: Box<[u32]>,
}

impl Maglev {
    /// The table of these members, the same in whatever order they are given. `size` is a prime number, 2 at least.
    pub fn build(members: &[Member<'_>], size: u32) -> Self {
        if members.is_empty() {
            return Self { places: Box::default() };
        }
        let mut order: Vec<(&Member<'_>, u32)> = members.iter().zip(0_u32..).collect();
        order.sort_unstable_by_key(|(member, _)| member.id);
        // Each one's order of places, as Maglev makes it: a start and a step; and how far it has come.
        let mut orders: Vec<(u64, u64)> = order
            .iter()
            .map(|(member, _)| {
                let start = hash(member.id.as_bytes(), 0) % u64::from(size);
                let step = hash(member.id.as_bytes(), 1) % u64::from(size.saturating_sub(1).max(1)) + 1;
                (start, step)
            })
            .collect();
        // Whose turn is next: after half a period first, so that shares are rounded to the nearest place.
        let period = |rank: usize| TURN / u128::from(order.get(rank).map_or(1, |(member, _)| member.weight.max(1)));
        let mut turns: BinaryHeap<Reverse<(u128, usize)>> =
            (0..order.len()).map(|rank| Reverse((period(rank) / 2, rank))).collect();
        let mut places = vec![u32::MAX; size as usize];
        let mut free = places.len();
        while free > 0 {
            let Some(Reverse((turn, rank))) = turns.pop() else { break };
            let (Some((place, step)), Some((_, index))) = (orders.get_mut(rank), order.get(rank)) else { break };
            // A prime size makes every order go through all places, so there is a free one on the way.
            for _ in 0..size {
                let taken = usize::try_from(*place).ok().and_then(|place| places.get_mut(place));
                *place = (*place + *step) % u64::from(size);
                if let Some(owner) = taken
                    && *owner == u32::MAX
                {
                    *owner = *index;
                    free -= 1;
                    break;
                }
            }
            turns.push(Reverse((turn + period(rank), rank)));
        }
        Self { places: places.into() }
    }

    /// To whom a key belongs, and who follows: every place once.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = usize::try_from(key.checked_rem(self.places.len() as u64).unwrap_or(0)).unwrap_or(0);
        let (before, after) = self.places.split_at(start.min(self.places.len()));
        after.iter().chain(before).map(|owner| *owner as usize)
    }

    /// Places in it.
    pub fn size(&self) -> usize {
        self.places.len()
    }
}

/// Whether a table may have this size: a prime number up to [`SIZE_LIMIT`].
pub fn is_size(size: u32) -> bool {
    let is_prime = size >= 2
        && (2..).take_while(|factor| factor * factor <= u64::from(size)).all(|factor| u64::from(size) % factor != 0);
    size <= SIZE_LIMIT && is_prime
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_to_the_place() {
        // What Maglev is for: no endpoint gets more than its weight says, whatever its name hashes to.
        for (weights, size) in
            [(&[1, 1, 1][..], 65_537), (&[1; 10], 101), (&[1, 2, 7], 1009), (&[1, 1_000_000], 65_537)]
        {
            let names: Vec<String> = (0..weights.len()).map(|index| format!("shop/api-{index}")).collect();
            let members: Vec<_> = names.iter().zip(weights).map(|(id, &weight)| Member { id, weight }).collect();
            let maglev = Maglev::build(&members, size);
            let mut counts = vec![0_u32; weights.len()];
            for owner in maglev.walk(12_345) {
                counts[owner] += 1;
            }
            assert_eq!(counts.iter().sum::<u32>(), size, "every place has an owner");
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let exact = f64::from(size) * f64::from(*weight) / f64::from(total);
                assert!((f64::from(*count) - exact).abs() <= 1.0, "{weights:?} {size}: {counts:?}");
            }
        }
    }

    #[test]
    fn only_prime_sizes_fill_the_table() {
        // Steps that share a factor with the size would never reach some places.
        for (size, expected) in
            [(0, false), (1, false), (2, true), (9, false), (65_536, false), (DEFAULT_SIZE, true), (5_000_011, false)]
        {
            assert_eq!(is_size(size), expected, "{size}");
        }
    }
}
