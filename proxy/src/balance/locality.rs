//! Which endpoints are near: from places and a policy to groups of endpoints. Pure.
//!
//! Asked by `upstream` when a view is joined, never on the request path; what becomes of the groups at each pick, [`super::arranged`] says. Field
//! names and levels follow Istio's `localityLbSetting`: either shares by locality (`distribute`), or levels of preference of which the next is used
//! as the one before fails (`failover`, `failoverPriority`, and the default).

use std::{cmp::Reverse, collections::BTreeMap};

use super::arranged::{Arrangement, Group};

/// Istio's `localityLbSetting`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalityPolicy {
    /// The first entry whose `from` covers the client's locality decides; without one all endpoints are alike.
    Distribute(Vec<Distribution>),
    /// By how near they are: same subzone, zone, region, others; or by labels.
    Failover {
        /// Region that is asked when all of this region are out, by region.
        regions: BTreeMap<String, String>,
        /// Labels in order of importance; not empty: they decide instead of the locality.
        labels: Vec<Preference>,
    },
}

/// Shares for clients of some place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    pub from: Pattern,
    pub to: Vec<(Pattern, u32)>,
}

/// "region/zone/subzone", of which the end may be left out or be "*".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(pub Box<str>);

/// A label that near endpoints share with the client, or that has a certain value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    pub key: Box<str>,
    /// `None`: the client's own.
    pub value: Option<Box<str>>,
}

/// Where somebody is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// "region/zone/subzone"; empty: unknown.
    pub locality: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

impl Pattern {
    /// Whether a text is one: up to three parts, none empty but trailing ones left out, "*" only at the end.
    pub fn is_valid(text: &str) -> bool {
        let parts: Vec<&str> = text.split('/').collect();
        let names = parts.strip_suffix(&["*"]).unwrap_or(&parts);
        parts.len() <= 3 && !text.is_empty() && names.iter().all(|name| !name.is_empty() && !name.contains('*'))
    }

    fn covers(&self, locality: &str) -> bool {
        let mut there = locality.split('/');
        for part in self.0.split('/') {
            if part == "*" {
                return true;
            }
            if there.next() != Some(part) {
                return false;
            }
        }
        true
    }

    /// Parts that say something; the more, the more exact.
    fn exactness(&self) -> usize {
        self.0.split('/').filter(|part| *part != "*").count()
    }
}

/// The endpoints in groups; `None`: all alike, or a client that does not know where it is.
pub fn arrange(policy: &LocalityPolicy, own: Place<'_>, endpoints: &[Place<'_>]) -> Option<Arrangement> {
    match policy {
        LocalityPolicy::Distribute(entries) => {
            let entry = entries.iter().find(|entry| entry.from.covers(own.locality))?;
            let mut to: Vec<&(Pattern, u32)> = entry.to.iter().collect();
            // The most exact first, so that "eu/*" takes what "eu/west" has left.
            to.sort_by_key(|(pattern, _)| (Reverse(pattern.exactness()), pattern));
            let group = |locality: &str| to.iter().position(|(pattern, _)| pattern.covers(locality));
            let mut groups: Vec<Group> =
                to.iter().map(|(_, weight)| Group { weight: *weight, members: Vec::new() }).collect();
            for (index, endpoint) in (0_u32..).zip(endpoints) {
                if let Some(group) = group(endpoint.locality).and_then(|group| groups.get_mut(group)) {
                    group.members.push(index);
                }
            }
            groups.retain(|group| !group.members.is_empty() && group.weight > 0);
            Some(Arrangement::shares(groups))
        }
        LocalityPolicy::Failover { regions, labels } => {
            if own.locality.is_empty() && labels.is_empty() {
                return None;
            }
            let mut levels: BTreeMap<(usize, u8), Group> = BTreeMap::new();
            for (index, endpoint) in (0_u32..).zip(endpoints) {
                let level = if labels.is_empty() {
                    (0, distance(own.locality, endpoint.locality, regions))
                } else {
                    let other = if regions.is_empty() { 0 } else { distance(own.locality, endpoint.locality, regions) };
                    (labels.len() - shared(labels, own, *endpoint), other)
                };
                levels.entry(level).or_default().members.push(index);
            }
            let levels: Vec<Group> = levels.into_values().collect();
            (levels.len() > 1).then(|| Arrangement::levels(levels))
        }
    }
}

/// Istio's default priorities: 0 the same subzone, 1 zone, 2 region, 3 elsewhere; where a region is named for failover, that is 3 and the rest 4.
fn distance(own: &str, other: &str, regions: &BTreeMap<String, String>) -> u8 {
    let mut here = own.split('/');
    let mut there = other.split('/');
    let (region, other_region) = (here.next().unwrap_or_default(), there.next().unwrap_or_default());
    let (zone, other_zone) = (here.next().unwrap_or_default(), there.next().unwrap_or_default());
    // An EndpointSlice knows the zone only, and names of zones are unique enough.
    let same_region =
        region == other_region || (other_region.is_empty() && !other_zone.is_empty() && zone == other_zone);
    if !same_region {
        return match regions.get(region) {
            Some(next) if *next != *other_region => 4,
            _ => 3,
        };
    }
    match (zone == other_zone, here.next().unwrap_or_default() == there.next().unwrap_or_default()) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// How many of the first labels match.
fn shared(labels: &[Preference], own: Place<'_>, other: Place<'_>) -> usize {
    labels
        .iter()
        .take_while(|wanted| {
            let there = value(other, &wanted.key);
            match &wanted.value {
                Some(value) => there == Some(value),
                None => there.is_some() && there == value(own, &wanted.key),
            }
        })
        .count()
}

/// A label, or that part of the locality that Kubernetes and Istio write as a label.
fn value<'a>(place: Place<'a>, key: &str) -> Option<&'a str> {
    if let Some(value) = place.labels.get(key) {
        return Some(value);
    }
    let part = match key {
        "topology.kubernetes.io/region" => 0,
        "topology.kubernetes.io/zone" => 1,
        "topology.istio.io/subzone" => 2,
        _ => return None,
    };
    place.locality.split('/').nth(part).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn groups(policy: &LocalityPolicy, own: &str, others: &[&str]) -> Option<Vec<(u32, Vec<u32>)>> {
        let none = BTreeMap::new();
        let place = |locality| Place { locality, labels: &none };
        let others: Vec<_> = others.iter().map(|other| place(other)).collect();
        let arrangement = arrange(policy, place(own), &others)?;
        Some(arrangement.groups().iter().map(|group| (group.weight, group.members.clone())).collect())
    }

    #[test]
    fn levels_are_those_of_istio() {
        // Traffic that leaves its zone costs money and time; one level too many, and it does not leave when it must.
        let plain = LocalityPolicy::Failover { regions: BTreeMap::new(), labels: Vec::new() };
        let to_us = LocalityPolicy::Failover { regions: labels(&[("eu", "us")]), labels: Vec::new() };
        let all = ["us/a/1", "eu/a/1", "eu/b/1", "eu/a/2", "ap/a/1", "eu/a/1"];
        let level = |members: &[u32]| (0, members.to_vec());
        let expected = vec![level(&[1, 5]), level(&[3]), level(&[2]), level(&[0, 4])];
        assert_eq!(groups(&plain, "eu/a/1", &all), Some(expected));
        let expected = vec![level(&[1, 5]), level(&[3]), level(&[2]), level(&[0]), level(&[4])];
        assert_eq!(groups(&to_us, "eu/a/1", &all), Some(expected));
        // Levels that nobody is on do not count.
        assert_eq!(groups(&plain, "us/a/1", &all), Some(vec![level(&[0]), level(&[1, 2, 3, 4, 5])]));
        assert_eq!(groups(&plain, "eu", &["eu", "us"]), Some(vec![level(&[0]), level(&[1])]));
        // Only the zone is known of endpoints of EndpointSlices.
        assert_eq!(groups(&plain, "eu/a", &["/b", "/a"]), Some(vec![level(&[1]), level(&[0])]));
        // Nothing to prefer.
        for (own, others) in [("eu/a", &["us/a", "us/b"][..]), ("", &["us/a", ""]), ("eu", &[]), ("eu/a", &["eu/a"])] {
            assert_eq!(groups(&plain, own, others), None, "{own} {others:?}");
        }
    }

    #[test]
    fn labels_decide_in_their_order() {
        // Somebody who prefers the same version before the same zone must not get the zone first.
        let wanted = |key: &str, value: Option<&str>| Preference { key: key.into(), value: value.map(Into::into) };
        let order =
            vec![wanted("version", None), wanted("topology.kubernetes.io/zone", None), wanted("tier", Some("gold"))];
        let policy = LocalityPolicy::Failover { regions: BTreeMap::new(), labels: order };
        let own_labels = labels(&[("version", "v1")]);
        let own = Place { locality: "eu/a", labels: &own_labels };
        let (v1, v1_gold, v2_gold) = (
            labels(&[("version", "v1")]),
            labels(&[("version", "v1"), ("tier", "gold")]),
            labels(&[("version", "v2"), ("tier", "gold")]),
        );
        let others = [
            Place { locality: "eu/a", labels: &v2_gold },
            Place { locality: "eu/b", labels: &v1_gold },
            Place { locality: "eu/a", labels: &v1 },
            Place { locality: "eu/a", labels: &v1_gold },
        ];
        let arrangement = arrange(&policy, own, &others);
        let members: Vec<_> = arrangement
            .iter()
            .flat_map(|arrangement| arrangement.groups())
            .map(|group| group.members.clone())
            .collect();
        assert_eq!(members, [vec![3], vec![2], vec![1], vec![0]]);
    }

    #[test]
    fn shares_go_to_the_most_exact_place() {
        // 80 % here and 20 % there must not become 80 % here and nothing for those that two patterns cover.
        let pattern = |text: &str| Pattern(text.into());
        let to = vec![(pattern("eu/*"), 20), (pattern("eu/a"), 70), (pattern("us"), 10), (pattern("ap"), 0)];
        let policy = LocalityPolicy::Distribute(vec![
            Distribution { from: pattern("us/*"), to: vec![(pattern("us"), 100)] },
            Distribution { from: pattern("eu/a/*"), to },
            Distribution { from: pattern("*"), to: vec![(pattern("ap"), 100)] },
        ]);
        let all = ["eu/b/1", "eu/a/1", "us/a", "ap/a", "", "eu/a/2"];
        let expected = vec![(70, vec![1, 5]), (20, vec![0]), (10, vec![2])];
        assert_eq!(groups(&policy, "eu/a/1", &all), Some(expected));
        assert_eq!(groups(&policy, "eu/b", &all), Some(vec![(100, vec![3])]), "the next entry that covers it");
        assert_eq!(groups(&policy, "us/x", &["eu/a"]), Some(Vec::new()), "who is not listed gets nothing");
        let LocalityPolicy::Distribute(entries) = policy else { return };
        let first = LocalityPolicy::Distribute(entries.into_iter().take(1).collect());
        assert_eq!(groups(&first, "eu/a", &all), None, "nobody speaks of clients here");
    }

    #[test]
    fn patterns_are_checked() {
        // A misspelt pattern covers nothing, and its share is lost.
        for (text, expected) in [
            ("*", true),
            ("eu", true),
            ("eu/*", true),
            ("eu/a/1", true),
            ("eu/a/*", true),
            ("", false),
            ("eu/", false),
            ("eu/*/1", false),
            ("eu/a/1/x", false),
            ("e*", false),
            ("/a", false),
        ] {
            assert_eq!(Pattern::is_valid(text), expected, "{text:?}");
        }
    }
}
