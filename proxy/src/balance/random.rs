//! Weighted random choice. Pure.
//!
//! Each pick is independent of the others, so shares are met only on average; `round_robin` meets them exactly.

use super::Share;

/// One of those who take part, each as likely as its weight.
pub(super) fn choose(usable: &[Share], mut random: impl FnMut(u64) -> u64) -> Option<usize> {
    let total = usable.iter().map(|share| u64::from(share.weight)).sum();
    let mut left = random(total);
    for share in usable {
        let weight = u64::from(share.weight);
        if left < weight {
            return Some(share.index);
        }
        left -= weight;
    }
    None
}
