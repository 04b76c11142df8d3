//! Which leg of a weighted split. Pure.
//!
//! Asked by the journeys once per request or connection, after the rule is chosen. An arm whose target does not
//! resolve keeps its share: that share is answered with an error and never given to the other arms, so that a typing
//! error does not silently send everything to the other version.

use std::sync::Arc;

use super::HeaderEdit;

/// Backends with their shares.
#[derive(Clone, Debug)]
pub struct Split<L> {
    pub arms: Vec<Arm<L>>,
    /// Sum of the weights; 0 means that no arm may be chosen.
    pub total: u64,
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
        Self { arms, total }
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
        Split { arms, total: self.total }
    }
}
