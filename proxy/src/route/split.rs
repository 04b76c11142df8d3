//! Which leg of a weighted split. Pure.
//!
//! Asked by the journeys once per request or connection, after the rule is chosen. An arm whose target does not
//! resolve keeps its share: that share is answered with an error and never given to the other arms, so that a typing
//! error does not silently send everything to the other version.

use std::sync::Arc;

use super::{HeaderEdit, Sticky};

/// Backends with their shares.
#[derive(Clone, Debug)]
pub struct Split<L> {
    pub arms: Vec<Arm<L>>,
    /// Sum of the weights; 0 means that no arm may be chosen.
    pub total: u64,
    /// Where the same users are to stay; `None`: each request draws anew.
    pub sticky: Option<Arc<Sticky>>,
}

/// One share.
#[derive(Clone, Debug)]
pub struct Arm<L> {
    pub weight: u32,
    pub leg: Leg<L>,
    pub request_edit: HeaderEdit,
    pub response_edit: HeaderEdit,
}

/// Where an arm leads.
#[derive(Clone, Debug)]
pub enum Leg<L> {
    To(L),
    /// A reference that does not resolve, with the reason: answered with 500, never redistributed.
    Bad(Arc<str>),
}

impl<L> Split<L> {
    /// Arms with their total.
    pub fn new(arms: Vec<Arm<L>>) -> Self {
        let total = arms.iter().map(|arm| u64::from(arm.weight)).sum();
        Self { arms, total, sticky: None }
    }

    /// The arm that `random` (uniform below `self.total`) falls on; `None` when no arm has weight.
    pub fn choose(&self, random: u64) -> Option<&Arm<L>> {
        let mut left = random;
        for arm in &self.arms {
            let weight = u64::from(arm.weight);
            if left < weight {
                return Some(arm);
            }
            left -= weight;
        }
        // Only a `random` that is not below the total comes here; the last arm with weight is as good as any.
        self.arms.iter().rev().find(|arm| arm.weight > 0)
    }

    /// The same split with every target replaced by what it leads to; bad legs stay.
    pub fn map<M>(self, mut lead: impl FnMut(L) -> Leg<M>) -> Split<M> {
        let arms = self
            .arms
            .into_iter()
            .map(|arm| Arm {
                weight: arm.weight,
                leg: match arm.leg {
                    Leg::To(target) => lead(target),
                    Leg::Bad(reason) => Leg::Bad(reason),
                },
                request_edit: arm.request_edit,
                response_edit: arm.response_edit,
            })
            .collect();
        Split { arms, total: self.total, sticky: self.sticky }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn split(weights: &[u32]) -> Split<usize> {
        let arms = weights.iter().enumerate().map(|(index, &weight)| Arm {
            weight,
            leg: Leg::To(index),
            request_edit: HeaderEdit::default(),
            response_edit: HeaderEdit::default(),
        });
        Split::new(arms.collect())
    }

    fn chosen(split: &Split<usize>, random: u64) -> Option<usize> {
        split.choose(random).map(|arm| match arm.leg {
            Leg::To(index) => index,
            Leg::Bad(_) => usize::MAX,
        })
    }

    #[test]
    fn every_number_belongs_to_exactly_its_arm() {
        // An off-by-one would give a 1 % canary nothing, or 2 %, or traffic to a version that is switched off.
        let split = split(&[0, 3, 0, 1, 0]);
        assert_eq!(split.total, 4);
        let choices: Vec<_> = (0..4).map(|random| chosen(&split, random)).collect();
        assert_eq!(choices, [Some(1), Some(1), Some(1), Some(3)]);
        // A caller that draws too high still does not reach an arm without weight.
        assert_eq!(chosen(&split, 4), Some(3));
        assert_eq!(chosen(&split, u64::MAX), Some(3));
    }

    #[test]
    fn no_weight_means_no_arm() {
        // All weights zero must be answered with 500, not sent to the first arm.
        assert_eq!(chosen(&split(&[0, 0]), 0), None);
        assert_eq!(chosen(&split(&[]), 0), None);
    }

    #[test]
    fn largest_weights_do_not_overflow() {
        // Weights are user input; their sum exceeds 32 bits.
        let split = split(&[u32::MAX, u32::MAX, u32::MAX]);
        assert_eq!(split.total, 3 * u64::from(u32::MAX));
        assert_eq!(chosen(&split, split.total - 1), Some(2));
    }

    #[test]
    fn shares_follow_weights() {
        // A canary at 1 % must get 1 %: chi-square over random weights, seeded, far beyond p = 0.001.
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..50 {
            let weights: Vec<u32> = (0..rng.usize(2..7)).map(|_| rng.u32(0..100)).chain([1]).collect();
            let split = split(&weights);
            let mut counts = vec![0_u32; weights.len()];
            let draws = 20_000;
            for _ in 0..draws {
                counts[chosen(&split, rng.u64(0..split.total)).unwrap()] += 1;
            }
            let mut chi_square = 0.0;
            for (&count, &weight) in counts.iter().zip(&weights) {
                let expected = f64::from(draws) * f64::from(weight) / split.total as f64;
                if weight == 0 {
                    assert_eq!(count, 0, "{weights:?}");
                } else {
                    chi_square += (f64::from(count) - expected).powi(2) / expected;
                }
            }
            // 99.99 % quantile for 7 degrees of freedom.
            assert!(chi_square < 29.9, "{weights:?} gave {counts:?}, chi-square {chi_square}");
        }
    }

    #[test]
    fn a_bad_leg_keeps_its_share() {
        // A misspelt backend must not silently give its traffic to the other version.
        let mut split = split(&[1, 1]);
        split.arms[1].leg = Leg::Bad("backend not found".into());
        let mapped = split.map(|index| if index == 0 { Leg::Bad("no such port".into()) } else { Leg::To("never") });
        let reasons: Vec<_> = (0..2)
            .map(|random| match &mapped.choose(random).unwrap().leg {
                Leg::Bad(reason) => reason.to_string(),
                Leg::To(target) => (*target).to_owned(),
            })
            .collect();
        assert_eq!(reasons, ["no such port", "backend not found"]);
    }
}
