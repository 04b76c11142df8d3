//! `localityLbSetting`: near first, and far as far as near is not enough.

use super::stage::{Application, Client, policy};

const NODE: [&str; 2] = ["--locality", "eu/a/1"];

/// Two here, one in the next zone, one far away.
fn four() -> [Application; 4] {
    [("here", "eu/a/1"), ("here-too", "eu/a/1"), ("near", "eu/b/1"), ("far", "us/a/1")].map(|(name, place)| {
        Application::start(name, &format!("locality: {place}"), &format!("name: {name}, v: v-{name}"))
    })
}

const EJECTING: &str = "outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 600s, maxEjectionPercent: 100}";

/// By chance: how fast the applications of a busy machine answer is of no interest here.
fn random(setting: &str, further: &str) -> String {
    let setting = if setting.is_empty() { String::new() } else { format!(", localityLbSetting: {setting}") };
    let further = if further.is_empty() { String::new() } else { format!(", {further}") };
    policy(&format!("loadBalancer: {{simple: RANDOM{setting}}}{further}"))
}

fn names(reached: &std::collections::BTreeSet<String>) -> Vec<&str> {
    reached.iter().map(String::as_str).collect()
}

#[test]
fn near_endpoints_come_first_and_far_ones_take_over_level_by_level() {
    // What people pay for between zones, and what must still work when a zone is gone.
    let all = four();
    let client = Client::start(&all, &random("", EJECTING), &NODE);
    assert_eq!(names(&client.reached(60, "")), ["here", "here-too"]);
    let shown = client.backend("app.shop.svc.cluster.local:80");
    let groups: Vec<_> = shown["endpoints"].as_array().unwrap().iter().map(|one| one["group"].as_u64()).collect();
    assert_eq!(shown["balancing"]["groups"], "levels");
    let mut sorted = groups.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [Some(0), Some(0), Some(1), Some(2)], "{shown}");
    // One of two is out: 70 % stay, 30 % go to the next zone.
    all[0].is_broken(true);
    client.reached(30, "");
    let counts = client.counts(300, "");
    println!("half of the zone is out: {counts:?}");
    assert!(!counts.contains_key("here") && !counts.contains_key("far"), "{counts:?}");
    // 210 on average, deviation 8.
    assert!((162..=258).contains(&counts["here-too"]), "{counts:?}");
    all[1].is_broken(true);
    client.reached(30, "");
    assert_eq!(names(&client.reached(60, "")), ["near"]);
    all[2].is_broken(true);
    client.reached(30, "");
    assert_eq!(names(&client.reached(60, "")), ["far"]);
}

#[test]
fn nothing_is_preferred_unless_istio_would() {
    // Without outlier detection Istio leaves localities alone; switched off they are left alone, too; and unknown is nowhere.
    let all = four();
    for (documents, node) in
        [(random("", ""), &NODE[..]), (random("{enabled: false}", EJECTING), &NODE), (random("", EJECTING), &[])]
    {
        let client = Client::start(&all, &documents, node);
        assert_eq!(client.reached(100, "").len(), 4, "{documents} {node:?}");
    }
}

#[test]
fn shares_and_labels_decide_where_they_are_written() {
    // A migration from one region to another by percent, and a preference that is no place at all.
    let all = four();
    let setting = "{distribute: [{from: eu/*, to: {eu/a/*: 60, us: 40}}]}";
    let client = Client::start(&all, &random(setting, ""), &NODE);
    let counts = client.counts(300, "");
    println!("60 to 40: {counts:?}");
    assert!(!counts.contains_key("near"), "{counts:?}");
    // 120 on average, deviation 8.5.
    assert!((69..=171).contains(&counts["far"]), "{counts:?}");
    let setting = "{failoverPriority: [name=far, topology.kubernetes.io/region]}";
    let client = Client::start(&all, &random(setting, EJECTING), &NODE);
    assert_eq!(names(&client.reached(60, "")), ["far"]);
    all[3].is_broken(true);
    client.reached(10, "");
    assert_eq!(names(&client.reached(100, "")), ["here", "here-too", "near"]);
    all[3].is_broken(false);
    // From one region to a certain other.
    let places = [("us", "us/a"), ("ap", "ap/a")]
        .map(|(name, place)| Application::start(name, &format!("locality: {place}"), ""));
    let setting = "{enabled: true, failover: [{from: eu, to: ap}]}";
    let client = Client::start(&places, &random(setting, ""), &NODE);
    assert_eq!(names(&client.reached(60, "")), ["ap"]);
}

#[test]
fn a_key_keeps_its_endpoint_in_its_zone() {
    // Caches that are near: the same key, the same endpoint, of those here.
    let all = four();
    let hash = "loadBalancer: {consistentHash: {httpHeaderName: x-user}}";
    let client = Client::start(&all, &policy(&format!("{hash}, {EJECTING}")), &NODE);
    let homes =
        || -> Vec<String> { (0..30).map(|user| client.ask("/", &format!("x-user: user-{user}\r\n")).name).collect() };
    let before = homes();
    assert_eq!(before, homes());
    assert!(before.iter().all(|home| home.starts_with("here")), "{before:?}");
    assert!(before.contains(&"here".to_owned()) && before.contains(&"here-too".to_owned()), "{before:?}");
}
