//! Weighted rotation. Pure.
//!
//! The place in the rotation is a number that counts up, and the endpoint is a function of it: nothing to lock, nothing to
//! carry over when endpoints come and go. Equal weights rotate in order. With different weights, endpoints are halved
//! again and again; at each cut the turns of the left half are spread evenly among those of the right, as a straight
//! line is drawn with pixels. So a cycle (as many turns as the sum of the weights) gives everyone exactly its weight,
//! and after any number of turns everyone is within half a turn per cut of its share: one turn for up to four endpoints.

use super::{Share, equal_weight};

/// Whose turn number `turn` is.
pub(super) fn choose(usable: &[Share], turn: u64) -> Option<usize> {
    if equal_weight(usable).is_some() {
        let place = turn.checked_rem(usable.len() as u64)?;
        return Some(usable.get(place as usize)?.index);
    }
    let mut part = usable;
    let mut total = total_of(part);
    // Everyone's turns repeat after `total`; below, `turn` is the place in the cycle of the part.
    let mut turn = u128::from(turn) % total.max(1);
    while part.len() > 1 {
        let (left, right) = part.split_at(part.len() / 2);
        let left_total = total_of(left);
        // Turns of the left half before turn `t`: t * left / total, rounded. Its next turn is now if that grows.
        let left_turns = |turn: u128| (2 * turn * left_total + total) / (2 * total);
        let before = left_turns(turn);
        if left_turns(turn + 1) > before {
            (part, total, turn) = (left, left_total, before);
        } else {
            (part, total, turn) = (right, total - left_total, turn - before);
        }
    }
    part.first().map(|share| share.index)
}

/// Below 2^63 for any backend that fits into memory, so the products above fit into 128 bits.
fn total_of(part: &[Share]) -> u128 {
    part.iter().map(|share| u128::from(share.weight)).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(weights: &[u32]) -> Vec<Share> {
        weights.iter().enumerate().map(|(index, &weight)| Share { index, weight }).collect()
    }

    #[test]
    fn equal_weights_rotate_in_order() {
        // Round robin that is not one surprises everybody who watches it with three curls.
        for weight in [1, 7, u32::MAX] {
            let usable = shares(&[weight; 3]);
            let turns: Vec<_> = (4..10).map(|turn| choose(&usable, turn).unwrap()).collect();
            assert_eq!(turns, [1, 2, 0, 1, 2, 0]);
        }
    }

    #[test]
    fn heavy_endpoints_do_not_get_their_turns_in_a_burst() {
        // 5:1:1 as "aaaaabc" would hit the first with five requests at once.
        let usable = shares(&[5, 1, 1]);
        let turns: String = (0..7).map(|turn| ['a', 'b', 'c'][choose(&usable, turn).unwrap()]).collect();
        assert!(!turns.contains("aaaa"), "{turns}");
        assert_eq!(turns.matches('a').count(), 5, "{turns}");
    }

    #[test]
    fn largest_weights_do_not_overflow() {
        // Weights are user input.
        let usable = shares(&[u32::MAX, u32::MAX - 1, 1]);
        for turn in [0, 1, u64::from(u32::MAX), u64::MAX] {
            assert!(choose(&usable, turn).is_some());
        }
    }

    proptest! {
        #[test]
        fn shares_are_exact_over_a_cycle_and_close_on_the_way(
            weights in proptest::collection::vec(1_u32..60, 2..20), start in 0_u64..1000,
        ) {
            // P14: a weight of 1 in 100 means one request in every hundred, not "on average".
            let usable = shares(&weights);
            let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
            let mut counts = vec![0_u64; weights.len()];
            for turn in 0..total {
                counts[choose(&usable, turn).unwrap()] += 1;
                let cuts = f64::from(weights.len().next_power_of_two().ilog2());
                let bound = if weights.len() <= 4 { 1.0 } else { (cuts / 2.0).max(1.0) } + 1e-9;
                for (&count, &weight) in counts.iter().zip(&weights) {
                    let share = (turn + 1) as f64 * f64::from(weight) / total as f64;
                    prop_assert!((count as f64 - share).abs() <= bound, "{count} of {share} after {} turns", turn + 1);
                }
            }
            prop_assert_eq!(&counts, &weights.iter().map(|&weight| u64::from(weight)).collect::<Vec<_>>());
            // And from wherever a cycle begins.
            let mut shifted = vec![0_u64; weights.len()];
            for turn in start..start + total {
                shifted[choose(&usable, turn).unwrap()] += 1;
            }
            prop_assert_eq!(shifted, counts);
        }
    }
}
