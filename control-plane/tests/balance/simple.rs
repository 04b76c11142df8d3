//! `simple`: no key, no place.

use super::stage::{Application, Client, applications, policy};

fn simple(word: &str) -> String {
    policy(&format!("loadBalancer: {{simple: {word}}}"))
}

#[test]
fn turns_are_taken_and_chance_is_even() {
    // What people set first, and count first.
    let all = applications(3);
    let client = Client::start(&all, &simple("ROUND_ROBIN"), &[]);
    let counts = client.counts(90, "");
    println!("{counts:?}");
    assert!(counts.len() == 3 && counts.values().all(|count| *count == 30), "{counts:?}");
    let client = Client::start(&all, &simple("RANDOM"), &[]);
    let counts = client.counts(300, "");
    println!("{counts:?}");
    // A hundred each; six deviations of 8.
    assert!(counts.len() == 3 && counts.values().all(|count| (52..=148).contains(count)), "{counts:?}");
}

#[test]
fn p14_round_robin_follows_weights_exactly() {
    let all = [Application::start("small", "weight: 1", ""), Application::start("large", "weight: 3", "")];
    let counts = Client::start(&all, &simple("ROUND_ROBIN"), &[]).counts(80, "");
    assert_eq!((counts["small"], counts["large"]), (20, 60));
}

#[test]
fn a_slow_endpoint_is_left_out_by_latency_and_not_by_what_is_under_way() {
    // The difference between the default and LEAST_CONN, with one request at a time.
    let all = applications(2);
    all[0].is_slow(true);
    for (word, few, many) in [("LEAST_REQUEST", 0, 6), ("LEAST_CONN", 8, 32)] {
        let client = Client::start(&all, &simple(word), &[]);
        let slow = client.counts(40, "").get("app-0").copied().unwrap_or(0);
        println!("{word}: {slow} of 40 at the slow one");
        assert!((few..=many).contains(&slow), "{word}: {slow} of 40");
    }
}
