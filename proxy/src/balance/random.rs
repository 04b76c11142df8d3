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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_number_belongs_to_exactly_its_endpoint() {
        // An off-by-one would give the last endpoint nothing.
        let usable = [(4, 2), (7, 1), (9, 3)].map(|(index, weight)| Share { index, weight });
        let picks: Vec<_> = (0..6)
            .map(|place| {
                choose(&usable, |bound| {
                    assert_eq!(bound, 6);
                    place
                })
            })
            .map(Option::unwrap)
            .collect();
        assert_eq!(picks, [4, 4, 7, 9, 9, 9]);
    }
}
