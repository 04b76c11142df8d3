//! Which users a weighted split sends where, so that each stays. Pure.
//!
//! A user is a point between 0 and the sum of the weights, by the hash of a header or cookie; arms cover that line one after the other, in the order
//! in which they are written. As the weight of a canary grows and that of the arm beside it shrinks, the border between them moves over users in one
//! direction only: who has seen the new version is not sent back. A seed makes the same users not always the first. Used by `upstream::rule`;
//! a request without the key draws as in any other split.

use crate::balance::{
    key::{Key, KeySource},
    stable_hash::hash,
};

/// How a split knows its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// A header or a cookie.
    pub key: KeySource,
    pub seed: u64,
}

impl Sticky {
    /// The place of a key on a line of this length.
    pub fn point(&self, key: u64, total: u64) -> u64 {
        let share = (u128::from(hash(&key.to_le_bytes(), self.seed)) * u128::from(total)) >> 64;
        u64::try_from(share).unwrap_or(0)
    }

    /// The key of a request.
    pub fn key_of(&self, request: &http::request::Parts) -> Key {
        let path = http::uri::PathAndQuery::from_static("/");
        self.key.of_request(&request.headers, request.uri.path_and_query().unwrap_or(&path), None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::route::{Arm, HeaderEdit, Leg, Split};

    const USERS: u64 = 20_000;

    fn sticky(seed: u64) -> Sticky {
        Sticky { key: KeySource::Header(HeaderName::from_static("x-user")), seed }
    }

    /// To which arm each user goes.
    fn arms(sticky: &Sticky, weights: &[u32]) -> Vec<usize> {
        let arms = weights.iter().enumerate().map(|(index, &weight)| Arm {
            weight,
            leg: Leg::To(index),
            request_edit: HeaderEdit::default(),
            response_edit: HeaderEdit::default(),
        });
        let split = Split::new(arms.collect());
        (0..USERS)
            .map(|user| match split.choose(sticky.point(hash(&user.to_le_bytes(), 0), split.total)).unwrap().leg {
                Leg::To(index) => index,
                Leg::Bad(_) => usize::MAX,
            })
            .collect()
    }

    #[test]
    fn users_move_one_way_as_a_canary_grows() {
        // Somebody who sees the new page, then the old one, then the new one again, reports a bug.
        let sticky = sticky(1);
        let mut before = arms(&sticky, &[100, 0]);
        assert!(before.iter().all(|arm| *arm == 0));
        for percent in 1..=100 {
            // 70:30 and 7:3 are the same split.
            let now = if percent % 10 == 0 {
                arms(&sticky, &[10 - percent / 10, percent / 10])
            } else {
                arms(&sticky, &[100 - percent, percent])
            };
            assert!(before.iter().zip(&now).all(|(before, now)| before <= now), "somebody went back at {percent} %");
            let share = now.iter().filter(|arm| **arm == 1).count() as f64 / USERS as f64;
            let exact = f64::from(percent) / 100.0;
            let deviation = (exact * (1.0 - exact) / USERS as f64).sqrt();
            assert!((share - exact).abs() <= 4.0 * deviation, "{percent} % became {share}");
            before = now;
        }
        // And the canary may stand first, and between others that stay as they are.
        let (small, large) = (arms(&sticky, &[5, 95]), arms(&sticky, &[50, 50]));
        assert!(small.iter().zip(&large).all(|(small, large)| *small == 1 || *large == 0));
        let (small, large) = (arms(&sticky, &[40, 10, 50]), arms(&sticky, &[20, 30, 50]));
        assert!(small.iter().zip(&large).all(|(small, large)| small == large || (*small, *large) == (0, 1)));
    }

    #[test]
    fn the_same_users_are_not_the_first_everywhere() {
        // One user would test every new version of every service, and another none.
        let first = |seed| arms(&sticky(seed), &[90, 10]);
        let both = first(1).iter().zip(&first(2)).filter(|(one, other)| **one == 1 && **other == 1).count();
        // One percent, if they have nothing to do with each other; ten, if they are the same.
        assert!((100..320).contains(&both), "{both} of {USERS}");
        assert_eq!(first(1), first(1));
    }
}
