//! Consistent hashing: the same key gives the same endpoint, here and in every other sidecar. Pure.
//!
//! A [`Table`] is built when the endpoints change and asked once per try. All endpoints of the backend are in it, whatever their standing: one that
//! fails hands its keys to those that follow, and gets them back when it is ready again, without a new table. With `upstream`, which
//! builds the tables; what of a request is the key, [`super::key`] says.

use super::{Candidate, NoEndpoint, PickContext, Standing, maglev::Maglev, ring::Ring, stable_hash::hash, usable_of};

/// Places looked at to find one that may be used, before the usable ones are compared directly. Reached when hardly anyone is usable.
const WALK_LIMIT: usize = 64;

/// An endpoint as tables see it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The same in every sidecar and after every restart.
    pub id: &'a str,
    /// 0 counts as 1.
    pub weight: u32,
}

/// Istio's `consistentHash`: how the table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    Ring { minimum_size: u32 },
    Maglev { size: u32 },
}

impl Default for TableKind {
    fn default() -> Self {
        Self::Ring { minimum_size: 1024 }
    }
}

/// Who has which keys; indexes are those of the members it was built from.
#[derive(Debug)]
pub struct Table {
    kind: TableKind,
    /// What it was built from: name and weight.
    members: Box<[(Box<str>, u32)]>,
    places: Places,
}

#[derive(Debug)]
enum Places {
    Ring(Ring),
    Maglev(Maglev),
}

impl Table {
    pub fn build(kind: TableKind, members: &[Member<'_>]) -> Self {
        let places = match kind {
            TableKind::Ring { minimum_size } => Places::Ring(Ring::build(members, minimum_size)),
            TableKind::Maglev { size } => Places::Maglev(Maglev::build(members, size)),
        };
        let members = members.iter().map(|member| (Box::from(member.id), member.weight)).collect();
        Self { kind, members, places }
    }

    /// Whether [`Table::build`] would give the same again.
    pub fn is_of(&self, kind: TableKind, members: &[Member<'_>]) -> bool {
        self.kind == kind
            && self.members.len() == members.len()
            && self
                .members
                .iter()
                .zip(members)
                .all(|((id, weight), other)| **id == *other.id && *weight == other.weight)
    }

    /// Points of the ring, or places of the Maglev table.
    pub fn size(&self) -> usize {
        match &self.places {
            Places::Ring(ring) => ring.size(),
            Places::Maglev(maglev) => maglev.size(),
        }
    }

    /// The first of a key's endpoints that may be used. Somebody who may be used is found whenever there is one.
    pub(super) fn first(&self, key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let near = match &self.places {
            Places::Ring(ring) => ring.walk(key).take(WALK_LIMIT).find(|index| usable(*index)),
            Places::Maglev(maglev) => maglev.walk(key).take(WALK_LIMIT).find(|index| usable(*index)),
        };
        near.or_else(|| {
            let all = self.members.iter().enumerate().filter(|(index, _)| usable(*index));
            all.max_by_key(|(_, (id, _))| (hash(id.as_bytes(), key), id)).map(|(index, _)| index)
        })
    }
}

/// The index of the endpoint that a key belongs to, or of the next that may be used. Endpoints stand in the order in which the table's
/// members stood; who takes part is decided as in [`super::pick`].
///
/// # Errors
/// There is no endpoint, or none that may be used.
pub fn pick_keyed<C: Candidate>(
    endpoints: &[C],
    context: &PickContext<'_>,
    table: &Table,
    key: u64,
) -> Result<usize, NoEndpoint> {
    if endpoints.is_empty() {
        return Err(NoEndpoint::Empty);
    }
    let is_ready = |index: usize| {
        context.avoid != Some(index)
            && endpoints.get(index).is_some_and(|endpoint| endpoint.standing() == Standing::Ready)
    };
    // Nearly always: who is ready takes part whatever the others do, so nobody else is looked at.
    let owner = match &table.places {
        Places::Ring(ring) => ring.walk(key).next(),
        Places::Maglev(maglev) => maglev.walk(key).next(),
    };
    if let Some(owner) = owner.filter(|owner| is_ready(*owner)) {
        return Ok(owner);
    }
    let usable = usable_of(endpoints, context);
    table
        .first(key, |index| usable.binary_search_by_key(&index, |share| share.index).is_ok())
        .ok_or(NoEndpoint::NoneUsable)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(in crate::balance) mod tests {
    use std::{collections::BTreeSet, sync::atomic::AtomicU64};

    use proptest::prelude::*;

    use super::*;
    use crate::balance::{Algorithm, Cost};

    const KINDS: [TableKind; 2] = [TableKind::Ring { minimum_size: 1024 }, TableKind::Maglev { size: 65_537 }];

    /// An endpoint of which only the standing matters.
    pub(in crate::balance) struct Endpoint(pub Standing);

    impl Candidate for Endpoint {
        fn weight(&self) -> u32 {
            1
        }

        fn cost(&self) -> Cost {
            Cost { latency: 1.0, in_flight: 0 }
        }

        fn part_cost(&self, _part: u32) -> Cost {
            self.cost()
        }

        fn standing(&self) -> Standing {
            self.0
        }
    }

    fn members<'a>(names: &'a [String], weights: &[u32]) -> Vec<Member<'a>> {
        names.iter().zip(weights.iter().cycle()).map(|(id, &weight)| Member { id, weight }).collect()
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("shop/api-{index}")).collect()
    }

    fn key(number: u64) -> u64 {
        hash(&number.to_le_bytes(), 0)
    }

    fn pick(
        table: &Table,
        endpoints: &[Endpoint],
        key: u64,
        avoid: Option<usize>,
        panic_percent: u32,
    ) -> Result<usize, NoEndpoint> {
        let cursor = AtomicU64::new(0);
        let context =
            PickContext { algorithm: Algorithm::Random, cursor: &cursor, panic_percent, avoid, warming: None };
        pick_keyed(endpoints, &context, table, key)
    }

    /// Where each of so many keys goes, by name.
    fn places<'a>(table: &Table, names: &'a [String], keys: u64) -> Vec<&'a str> {
        let endpoints: Vec<_> = names.iter().map(|_| Endpoint(Standing::Ready)).collect();
        (0..keys).map(|number| names[pick(table, &endpoints, key(number), None, 0).unwrap()].as_str()).collect()
    }

    #[test]
    fn p15_one_endpoint_that_leaves_moves_its_own_keys() {
        // A rolling restart would throw every cache away and log every user out.
        // The bound: at most 1/n + 2 % of the keys move; on the ring none but those of the endpoint that left.
        let keys = 20_000;
        for kind in KINDS {
            for count in [2, 3, 5, 10, 25, 50] {
                let all = names(count);
                let before = places(&Table::build(kind, &members(&all, &[1])), &all, keys);
                for leaving in [0, count / 2, count - 1] {
                    let mut rest = all.clone();
                    let left = rest.remove(leaving);
                    let after = places(&Table::build(kind, &members(&rest, &[1])), &rest, keys);
                    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
                    let own = before.iter().filter(|place| **place == left).count();
                    let bound = keys as f64 * (1.0 / count as f64 + 0.02);
                    println!("{kind:?}, {leaving} of {count}: {moved} of {keys} moved, {own} were its own");
                    assert!((moved as f64) < bound, "{kind:?} {count}: {moved} moved");
                    assert!(moved == own || matches!(kind, TableKind::Maglev { .. }), "{kind:?} {count}");
                }
            }
        }
    }

    #[test]
    fn p15_the_same_key_goes_to_the_same_endpoint_in_every_version() {
        // Two sidecars of different versions, or one before and after a restart, would disagree about every session.
        let all = names(5);
        for (kind, expected) in KINDS.into_iter().zip([RING_OF_FIVE, MAGLEV_OF_FIVE]) {
            let places: String = places(&Table::build(kind, &members(&all, &[1])), &all, 40)
                .into_iter()
                .map(|place| &place[place.len() - 1..])
                .collect();
            assert_eq!(places, expected, "{kind:?}");
        }
    }

    // From a program of its own in another language.
    const RING_OF_FIVE: &str = "4413313223202001042324041323211030021112";
    const MAGLEV_OF_FIVE: &str = "1143434221242421321121412100032142001322";

    #[test]
    fn p14_shares_follow_weights() {
        // A machine of three times the size should get three times the keys.
        for kind in KINDS {
            for weights in [&[1, 1, 1, 1][..], &[1, 3], &[10, 20, 70], &[1, 99], &[5; 20]] {
                let all = names(weights.len());
                let keys = 40_000;
                let places = places(&Table::build(kind, &members(&all, weights)), &all, keys);
                let total: u32 = weights.iter().sum();
                for (name, weight) in all.iter().zip(weights) {
                    let share = places.iter().filter(|place| *place == name).count() as f64 / keys as f64;
                    let fair = f64::from(*weight) / f64::from(total);
                    println!("{kind:?} {weights:?} {name}: {share:.4}, fair is {fair:.4}");
                    assert!((share / fair - 1.0).abs() < 0.2, "{kind:?} {weights:?} {name}: {share} instead of {fair}");
                }
            }
        }
    }

    #[test]
    fn keys_of_an_endpoint_that_is_out_spread_over_the_others_and_come_back() {
        // All keys of a dead endpoint on one other would make that the next to die.
        for kind in KINDS {
            let all = names(6);
            let table = Table::build(kind, &members(&all, &[1]));
            let ready = |out: &[usize]| -> Vec<Endpoint> {
                (0..6)
                    .map(|index| Endpoint(if out.contains(&index) { Standing::Ejected } else { Standing::Ready }))
                    .collect()
            };
            let mut heirs = BTreeSet::new();
            for number in 0..2_000 {
                let home = pick(&table, &ready(&[]), key(number), None, 0).unwrap();
                let other = pick(&table, &ready(&[2]), key(number), None, 0).unwrap();
                assert!(home == other || home == 2, "only the keys of the one that is out move");
                if home == 2 {
                    heirs.insert(other);
                    // A retry goes where the key would go if its endpoint were out.
                    assert_eq!(pick(&table, &ready(&[]), key(number), Some(2), 0).unwrap(), other);
                }
                // With half of them out there is panic, and everyone is at home again.
                assert_eq!(pick(&table, &ready(&[1, 2, 3]), key(number), None, 60).unwrap(), home);
                assert_eq!(pick(&table, &ready(&[0, 1, 2, 4, 5]), key(number), None, 0).unwrap(), 3);
            }
            assert_eq!(heirs.len(), 5, "{kind:?}: {heirs:?}");
            assert_eq!(pick(&table, &ready(&[0, 1, 2, 3, 4, 5]), 1, None, 0), Err(NoEndpoint::NoneUsable));
            assert_eq!(pick(&Table::build(kind, &[]), &[], 1, None, 0), Err(NoEndpoint::Empty));
        }
    }

    proptest! {
        #[test]
        fn p15_neither_order_nor_rebuilding_matters(
            count in 1..40_usize, weights in proptest::collection::vec(0..20_u32, 1..5), rotate: usize, seed: u64, maglev: bool,
        ) {
            // Endpoints arrive in any order, and the order differs between sidecars.
            let kind = if maglev { TableKind::Maglev { size: 1009 } } else { TableKind::Ring { minimum_size: 64 } };
            let all = names(count);
            let mut given: Vec<(String, u32)> =
                all.iter().cloned().zip(weights.iter().copied().cycle()).collect();
            let build = |given: &[(String, u32)]| {
                let members: Vec<_> = given.iter().map(|(id, weight)| Member { id, weight: *weight }).collect();
                let table = Table::build(kind, &members);
                assert!(table.is_of(kind, &members));
                table
            };
            let names = |given: &[(String, u32)]| given.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
            let before = build(&given);
            let expected: Vec<String> =
                places(&before, &names(&given), 200).into_iter().map(str::to_owned).collect();
            fastrand::Rng::with_seed(seed).shuffle(&mut given);
            given.rotate_left(rotate % count);
            let shuffled = names(&given);
            prop_assert_eq!(places(&build(&given), &shuffled, 200), expected);
        }

        #[test]
        fn p11_nobody_is_picked_who_may_not_be(letters in "[RDUE]{1,60}", seed: u64, maglev: bool, avoid in proptest::option::of(0..60_usize)) {
            // A key that belongs to an endpoint that is out must find another, however few there are.
            let kind = if maglev { TableKind::Maglev { size: 251 } } else { TableKind::Ring { minimum_size: 16 } };
            let all = names(letters.len());
            let table = Table::build(kind, &members(&all, &[1]));
            let endpoints: Vec<_> = letters.chars().map(|letter| Endpoint(match letter {
                'R' => Standing::Ready,
                'D' => Standing::Draining,
                'U' => Standing::Unready,
                _ => Standing::Ejected,
            })).collect();
            let wanted = if letters.contains('R') { 'R' } else { 'D' };
            let allowed = letters.matches(wanted).count();
            for number in 0..20 {
                match pick(&table, &endpoints, seed ^ key(number), avoid, 0) {
                    Ok(index) => {
                        prop_assert_eq!(letters.as_bytes()[index], wanted as u8);
                        prop_assert!(avoid != Some(index) || allowed == 1);
                    }
                    Err(reason) => prop_assert!(allowed == 0 && reason == NoEndpoint::NoneUsable),
                }
            }
        }
    }
}
