//! `warmup`: who comes back starts slowly.

use std::time::{Duration, Instant};

use super::stage::{Client, applications, policy};

#[test]
fn p13_an_endpoint_that_comes_back_gets_a_growing_part() {
    // A process that has just restarted would get its full share with cold caches, and fail again.
    let all = applications(2);
    let traffic_policy = "loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 6s, minimumPercent: 5}}, \
                          outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1s, maxEjectionPercent: 50}";
    let client = Client::start(&all, &policy(traffic_policy), &[]);
    let first = || {
        let backend = client.backend("app.shop.svc.cluster.local:80");
        let endpoints = backend["endpoints"].as_array().unwrap().clone();
        endpoints.into_iter().find(|one| one["uid"].as_str().unwrap().contains("app-0")).unwrap()
    };
    let wait = |what: &str, is_so: &dyn Fn(&serde_json::Value) -> bool| {
        let began = Instant::now();
        while !is_so(&first()) {
            assert!(began.elapsed() < Duration::from_secs(60), "never {what}: {}", first());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    // Both new: half each.
    assert_eq!(client.reached(60, "").len(), 2);
    wait("warm", &|one| one["warmup"] == 1.0);
    all[0].is_broken(true);
    let began = Instant::now();
    while first()["ejected"] == false {
        client.ask("/", "");
        assert!(began.elapsed() < Duration::from_secs(60));
    }
    all[0].is_broken(false);
    wait("back", &|one| one["ejected"] == false);
    let asked = 60;
    let cold = client.counts(asked, "").get("app-0").copied().unwrap_or(0) as f64;
    // At the end of these requests it was as warm as this; on the way there it got less.
    let factor = first()["warmup"].as_f64().unwrap();
    let bound = asked as f64 * factor / (1.0 + factor);
    println!("{cold} of {asked} to the cold one, which was warm to {factor:.2} at the end");
    assert!(cold <= bound + 4.0 * bound.sqrt() + 2.0, "{cold} of {asked} at {factor}");
    wait("warm again", &|one| one["warmup"] == 1.0);
    assert!(client.counts(40, "")["app-0"] == 20);
}
