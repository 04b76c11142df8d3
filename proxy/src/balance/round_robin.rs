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
