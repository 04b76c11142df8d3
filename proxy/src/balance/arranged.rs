//! Picks from endpoints in groups: levels of which the next takes what the one before cannot, or shares. Pure.
//!
//! The arithmetic is Envoy's, so that operators find what they know: a group carries what it is meant to as long as 72 % of its endpoints are ready
//! (overprovisioning by 1.4); below that, levels spill the missing part over to the next, and shares lose it to the others. Ready is what
//! [`super::pick`] calls ready: neither put aside, nor unready; draining endpoints are not counted. When nobody is ready anywhere, the first
//! group with a draining endpoint, or one put aside in panic, is used.

use smallvec::SmallVec;

use super::{Candidate, NoEndpoint, PickContext, Standing, choose, keyed::Table, stable_hash::hash, usable_among};

/// Envoy's overprovisioning factor, in percent.
const OVERPROVISIONING_PERCENT: u64 = 140;

/// Some of a backend's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Share of the traffic; without meaning for levels.
    pub weight: u32,
    /// Indexes of endpoints, in order.
    pub members: Vec<u32>,
}

/// A backend's endpoints in groups. Who is in no group gets nothing.
#[derive(Clone, Debug)]
pub struct Arrangement {
    groups: Vec<Group>,
    has_shares: bool,
}

impl Arrangement {
    /// Groups in order of preference.
    pub fn levels(groups: Vec<Group>) -> Self {
        Self { groups, has_shares: false }
    }

    /// Groups that get traffic by their weights.
    pub fn shares(groups: Vec<Group>) -> Self {
        Self { groups, has_shares: true }
    }

    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The number of an endpoint's group; `None`: it gets nothing.
    pub fn group_of(&self, index: usize) -> Option<usize> {
        let index = u32::try_from(index).ok()?;
        self.groups.iter().position(|group| group.members.binary_search(&index).is_ok())
    }

    /// For the operator.
    pub fn word(&self) -> &'static str {
        if self.has_shares { "shares" } else { "levels" }
    }

    /// What each group is to get when they are so healthy (percent, with overprovisioning), as parts of the sum.
    fn loads(&self, healths: &[u64]) -> SmallVec<[u64; 8]> {
        if self.has_shares {
            return self.groups.iter().zip(healths).map(|(group, health)| u64::from(group.weight) * health).collect();
        }
        let total = healths.iter().sum::<u64>().min(100);
        let mut left = 100;
        let mut loads: SmallVec<[u64; 8]> = healths
            .iter()
            .map(|health| {
                let load = (health * 100).checked_div(total).unwrap_or(0).min(left);
                left -= load;
                load
            })
            .collect();
        // What rounding left over goes to the first that gets anything.
        if let Some(first) = loads.iter_mut().find(|load| **load > 0) {
            *first += left;
        }
        loads
    }
}

/// [`super::pick`] within a group that is chosen first; with a table, group and endpoint follow from the key.
///
/// # Errors
/// There is no endpoint, or none that may be used.
pub fn pick_arranged<C: Candidate>(
    endpoints: &[C],
    context: &PickContext<'_>,
    arrangement: &Arrangement,
    keyed: Option<(&Table, u64)>,
    mut random: impl FnMut(u64) -> u64,
) -> Result<usize, NoEndpoint> {
    if endpoints.is_empty() {
        return Err(NoEndpoint::Empty);
    }
    let mut random = |bound: u64| random(bound).min(bound.saturating_sub(1));
    let groups = &arrangement.groups;
    let healths: SmallVec<[u64; 8]> = groups.iter().map(|group| health(endpoints, group, context.avoid)).collect();
    let loads = arrangement.loads(&healths);
    let total: u64 = loads.iter().sum();
    let chosen = (total > 0).then(|| {
        let point = match keyed {
            // Another hash of the key: the place in the table must not depend on the group.
            Some((_, key)) => (u128::from(hash(&key.to_le_bytes(), 1)) * u128::from(total)) >> 64,
            None => random(total).into(),
        };
        let mut left = u64::try_from(point).unwrap_or(0);
        loads.iter().position(|load| {
            let found = left < *load;
            left = left.saturating_sub(*load);
            found
        })
    });
    // Envoy: as long as the levels together can carry it all, none of them is in panic.
    let is_whole = !arrangement.has_shares && healths.iter().sum::<u64>() >= 100;
    let context = PickContext { panic_percent: if is_whole { 0 } else { context.panic_percent }, ..*context };
    let order = chosen.flatten().into_iter().chain(0..groups.len());
    for group in order.filter_map(|group| groups.get(group)) {
        let members = group.members.iter().map(|index| *index as usize);
        let mut usable = usable_among(members.filter_map(|index| Some((index, endpoints.get(index)?))), &context);
        if usable.is_empty() {
            continue;
        }
        let picked = match keyed {
            Some((table, key)) => {
                table.first(key, |index| usable.binary_search_by_key(&index, |share| share.index).is_ok())
            }
            None => choose(endpoints, &mut usable, &context, &mut random),
        };
        return picked.ok_or(NoEndpoint::NoneUsable);
    }
    Err(NoEndpoint::NoneUsable)
}

/// How much of its traffic a group can carry, in percent. The endpoint to avoid counts as if it were out.
fn health<C: Candidate>(endpoints: &[C], group: &Group, avoid: Option<usize>) -> u64 {
    let (mut ready, mut counted) = (0_u64, 0_u64);
    for index in group.members.iter().map(|index| *index as usize) {
        let Some(endpoint) = endpoints.get(index) else { continue };
        match endpoint.standing() {
            Standing::Ready => {
                ready += u64::from(avoid != Some(index));
                counted += 1;
            }
            Standing::Ejected | Standing::Unready => counted += 1,
            Standing::Draining => {}
        }
    }
    (ready * OVERPROVISIONING_PERCENT).checked_div(counted).unwrap_or(0).min(100)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::{collections::BTreeSet, sync::atomic::AtomicU64};

    use proptest::prelude::*;

    use super::*;
    use crate::balance::{
        Algorithm,
        keyed::{Member, TableKind, tests::Endpoint},
    };

    /// Groups in letters, such as "RRE R": "R" ready, "D" draining, "U" unready, "E" put aside.
    fn groups(letters: &str) -> (Vec<Endpoint>, Vec<Group>) {
        let mut endpoints = Vec::new();
        let mut groups = vec![Group { weight: 1, members: Vec::new() }];
        for letter in letters.chars() {
            let standing = match letter {
                'R' => Standing::Ready,
                'D' => Standing::Draining,
                'U' => Standing::Unready,
                'E' => Standing::Ejected,
                _ => {
                    groups.push(Group { weight: 1, members: Vec::new() });
                    continue;
                }
            };
            groups.last_mut().unwrap().members.push(endpoints.len() as u32);
            endpoints.push(Endpoint(standing));
        }
        (endpoints, groups)
    }

    struct Picker {
        algorithm: Algorithm,
        panic_percent: u32,
        avoid: Option<usize>,
        random: fastrand::Rng,
    }

    impl Picker {
        fn new() -> Self {
            let random = fastrand::Rng::with_seed(5);
            Self { algorithm: Algorithm::LeastRequest, panic_percent: 0, avoid: None, random }
        }

        fn pick(
            &mut self,
            endpoints: &[Endpoint],
            arrangement: &Arrangement,
            keyed: Option<(&Table, u64)>,
        ) -> Result<usize, NoEndpoint> {
            let cursor = AtomicU64::new(0);
            let Self { algorithm, panic_percent, avoid, .. } = *self;
            let context = PickContext { algorithm, cursor: &cursor, panic_percent, avoid, warming: None };
            pick_arranged(endpoints, &context, arrangement, keyed, |bound| self.random.u64(..bound))
        }

        /// Percent of the picks that each group gets.
        fn shares(&mut self, endpoints: &[Endpoint], arrangement: &Arrangement) -> Vec<f64> {
            let picks = 20_000;
            let mut shares = vec![0.0; arrangement.groups.len()];
            for _ in 0..picks {
                let picked = self.pick(endpoints, arrangement, None).unwrap() as u32;
                let group = arrangement.groups.iter().position(|group| group.members.contains(&picked)).unwrap();
                shares[group] += 100.0 / f64::from(picks);
            }
            shares
        }
    }

    #[test]
    fn levels_spill_over_as_they_fail() {
        // All at once would throw a whole region's traffic at the next when the first pod dies; never would be an outage.
        for (letters, expected) in [
            ("RRRR RRRR", &[100.0, 0.0][..]),
            // Three of four: 140 % of 75 % is enough.
            ("RRRE RRRR", &[100.0, 0.0]),
            ("RREE RRRR", &[70.0, 30.0]),
            ("REEE RRRR", &[35.0, 65.0]),
            ("EUEU RRRR", &[0.0, 100.0]),
            ("REEE RREE RRRR", &[35.0, 65.0, 0.0]),
            ("REEE REEE RRRR", &[35.0, 35.0, 30.0]),
            // Not enough anywhere: in proportion.
            ("REEE REEE", &[50.0, 50.0]),
            ("REEEE EEEE EEEE", &[100.0, 0.0, 0.0]),
            // Draining ones are not counted, and get nothing while others are ready.
            ("RDDD RRRR", &[100.0, 0.0]),
            ("DDDD RRRR", &[0.0, 100.0]),
        ] {
            let (endpoints, groups) = groups(letters);
            let shares = Picker::new().shares(&endpoints, &Arrangement::levels(groups));
            println!("{letters}: {shares:.1?}");
            for (share, expected) in shares.iter().zip(expected) {
                assert!((share - expected).abs() < 2.0, "{letters}: {shares:?} instead of {expected:?}");
            }
        }
    }

    #[test]
    fn shares_follow_weights_as_far_as_there_is_health() {
        // 90 % to a place where most endpoints are down would take the rest down with them.
        for (letters, weights, expected) in [
            ("RR RRRR", [90, 10], [90.0, 10.0]),
            ("RRRE RRRR", [90, 10], [90.0, 10.0]),
            ("EE RRRR", [90, 10], [0.0, 100.0]),
            ("RE RR", [50, 50], [41.2, 58.8]),
        ] {
            let (endpoints, mut groups) = groups(letters);
            for (group, weight) in groups.iter_mut().zip(weights) {
                group.weight = weight;
            }
            let shares = Picker::new().shares(&endpoints, &Arrangement::shares(groups));
            for (share, expected) in shares.iter().zip(expected) {
                assert!((share - expected).abs() < 2.0, "{letters}: {shares:?} instead of {expected:?}");
            }
        }
    }

    #[test]
    fn p10_panic_is_each_levels_own_and_only_when_there_is_not_enough() {
        // In panic traffic goes to endpoints that fail; while another level can carry it, that would be harm for nothing.
        for (letters, panic_percent, expected) in [
            ("REEE RRRR", 50, &[0, 4, 5, 6, 7][..]),
            ("REEE REEE", 50, &[0, 1, 2, 3, 4, 5, 6, 7]),
            ("REEE REEE", 20, &[0, 4]),
            ("EEEE EEEE", 50, &[0, 1, 2, 3]),
            ("UUEE UUUU", 50, &[2, 3]),
            ("UUUU DDEU", 10, &[6]),
            ("UUUU DDEU", 0, &[4, 5]),
        ] {
            let (endpoints, groups) = groups(letters);
            let arrangement = Arrangement::levels(groups);
            let mut picker = Picker { panic_percent, ..Picker::new() };
            let reached: BTreeSet<_> =
                (0..2_000).map(|_| picker.pick(&endpoints, &arrangement, None).unwrap()).collect();
            assert_eq!(reached, expected.iter().copied().collect(), "{letters} {panic_percent}");
        }
    }

    #[test]
    fn p15_a_key_stays_in_its_level_and_at_its_endpoint() {
        // Sticky and near: whose level is healthy stays there; when it fails, only the part that must goes elsewhere.
        let names: Vec<String> = (0..8).map(|index| format!("shop/api-{index}")).collect();
        let members: Vec<_> = names.iter().map(|id| Member { id, weight: 1 }).collect();
        let table = Table::build(TableKind::Maglev { size: 1009 }, &members);
        let places = |letters: &str| -> Vec<usize> {
            let (endpoints, groups) = groups(letters);
            let arrangement = Arrangement::levels(groups);
            let mut picker = Picker::new();
            (0..2_000_u64)
                .map(|key| picker.pick(&endpoints, &arrangement, Some((&table, hash(&key.to_le_bytes(), 0)))).unwrap())
                .collect()
        };
        let before = places("RRRR RRRR");
        assert_eq!(before, places("RRRR RRRR"));
        assert_eq!(before.iter().copied().collect::<BTreeSet<_>>(), (0..4).collect());
        let after = places("RREE RRRR");
        let gone = after.iter().filter(|index| **index >= 4).count();
        assert!((500..700).contains(&gone), "{gone} of 2,000, 30 % is 600");
        let stays = before.iter().zip(&after).filter(|(before, after)| **before < 2 && **after < 4);
        assert!(stays.clone().count() > 500 && stays.clone().all(|(before, after)| before == after));
    }

    proptest! {
        #[test]
        fn p11_whoever_may_be_used_is_found_and_nobody_else(
            letters in "[RDUE]{1,6}( [RDUE]{1,6}){0,4}", has_shares: bool, panic_percent in prop_oneof![Just(0_u32), 1..100_u32],
            avoid in proptest::option::of(0..30_usize), seed: u64,
        ) {
            // A level without anybody must not answer "no endpoint" while another one could serve.
            let (endpoints, groups) = groups(&letters);
            let arrangement = if has_shares { Arrangement::shares(groups) } else { Arrangement::levels(groups) };
            let mut picker = Picker { panic_percent, avoid, ..Picker::new() };
            picker.random.seed(seed);
            let (ready, draining, aside) = (letters.matches('R').count(), letters.matches('D').count(), letters.matches('E').count());
            for _ in 0..20 {
                match picker.pick(&endpoints, &arrangement, None) {
                    Ok(index) => {
                        let standing = endpoints[index].0;
                        prop_assert!(standing != Standing::Unready);
                        prop_assert!(standing != Standing::Ejected || panic_percent > 0);
                        prop_assert!(standing != Standing::Draining || ready == 0 || (ready == 1 && avoid.is_some()));
                        prop_assert!(avoid != Some(index) || ready + aside < 2 || panic_percent > 0 || (ready == 1 && standing == Standing::Ready));
                    }
                    Err(reason) => {
                        prop_assert_eq!(reason, NoEndpoint::NoneUsable);
                        prop_assert!(ready + draining == 0 && (panic_percent == 0 || aside == 0));
                    }
                }
            }
        }
    }
}
