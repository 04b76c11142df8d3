//! Canary weights, retries, and the breaker with its fallback.

use std::{sync::atomic::Ordering, time::Instant};

use http::{Method, StatusCode};
use outrigger_control_plane::demo::binomial;
use serde_json::Value;

use crate::{
    mesh::{
        PATIENCE,
        http::{connect, exchange, get, request},
    },
    world,
};

/// Percent of `canary` that goes to v2.
const CANARY: u32 = 20;
const REQUESTS: u64 = 1000;

pub fn documents() -> String {
    let stable = 100 - CANARY;
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: canary, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: canary}}]
  rules:
  - backendRefs: [{{name: api-v1, port: 80, weight: {stable}}}, {{name: api-v2, port: 80, weight: {CANARY}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: flaky, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: flaky}}]
  rules:
  - retry: {{codes: [503], attempts: 3, backoff: 10ms}}
    backendRefs: [{{name: flaky, port: 80}}]
---
apiVersion: outrigger.mesh/v1alpha1
kind: CircuitBreaker
metadata: {{name: fragile, namespace: shop}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: fragile}}]
  window: 5s
  minimumRequests: 5
  failurePercent: 50
  openFor: 2s
  maxOpenFor: 2s
  halfOpen: {{requests: 1, successes: 2}}
  fallback:
    maxConcurrent: 100
    reply: {{status: 200, contentType: text/plain, body: \"from the fallback\"}}
"
    )
}

#[test]
fn the_canary_gets_its_share() {
    // Too much of it and a bad version hurts more users than was agreed; too little and nothing is learned.
    let Some(world) = world() else { return };
    let address = world.service("canary.shop", 80);
    let hits = world.on_web(async move {
        let mut sender = connect(address).await.unwrap();
        let mut hits = 0;
        for _ in 0..REQUESTS {
            let answer = exchange(&mut sender, request(Method::GET, "canary", "/", "")).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let seen: Value = serde_json::from_slice(answer.body()).unwrap();
            hits += u64::from(seen["name"] == "api-2");
        }
        hits
    });
    // One good run in a million falls outside; a wrong share hardly ever inside.
    let (least, most) = binomial::interval(REQUESTS, f64::from(CANARY) / 100.0, 0.999_999);
    assert!((least..=most).contains(&hits), "{hits} of {REQUESTS}, not {least} to {most}");
}

#[test]
fn a_retry_hides_what_fails_now_and_then() {
    // Without it every hiccup of a backend is an error page.
    let Some(world) = world() else { return };
    let address = world.service("flaky.shop", 80);
    let behaviour = &world.flaky;
    for failures in [1, 3] {
        let before = behaviour.seen.load(Ordering::SeqCst);
        behaviour.failures.store(failures, Ordering::SeqCst);
        let answer = world.on_web(get(address, "flaky", "/"));
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(behaviour.seen.load(Ordering::SeqCst) - before, failures + 1);
    }
    // Three further tries, no more; and what is not safe to repeat is not repeated.
    let before = behaviour.seen.load(Ordering::SeqCst);
    behaviour.failures.store(4, Ordering::SeqCst);
    assert_eq!(world.on_web(get(address, "flaky", "/")).status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(behaviour.seen.load(Ordering::SeqCst) - before, 4);
    behaviour.failures.store(1, Ordering::SeqCst);
    let posted = world.on_web(async move {
        let mut sender = connect(address).await.unwrap();
        exchange(&mut sender, request(Method::POST, "flaky", "/", "an order")).await.unwrap()
    });
    assert_eq!(posted.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(behaviour.seen.load(Ordering::SeqCst) - before, 5);
    assert!(world.mesh.metrics("web").sum("outrigger_retries_total", &[]) >= 7.0);
}

/// States of the breaker on `web`, in order, the first one included.
fn states(world: &crate::World) -> Vec<String> {
    let clusters: Value = serde_json::from_str(&world.mesh.admin("web", "/clusters")).unwrap();
    let Some(breaker) =
        clusters["breakers"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "shop/fragile"))
    else {
        return Vec::new();
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let transitions = breaker["transitions"].as_array().unwrap();
    match transitions.first() {
        None => vec![text(&breaker["state"])],
        Some(first) => {
            std::iter::once(text(&first["from"])).chain(transitions.iter().map(|one| text(&one["to"]))).collect()
        }
    }
}

#[test]
fn the_breaker_opens_falls_back_and_closes_again() {
    // A backend that is down is left in peace, callers get something to show, and nobody must reset anything.
    let Some(world) = world() else { return };
    let address = world.service("fragile.shop", 80);
    let behaviour = &world.fragile;
    let ask = || String::from_utf8(world.on_web(get(address, "fragile", "/")).into_body().to_vec()).unwrap();
    assert!(ask().contains("api-1"));
    behaviour.failures.store(u32::MAX, Ordering::SeqCst);
    let end = Instant::now() + PATIENCE;
    while states(world).last().is_none_or(|state| state != "open") {
        assert!(Instant::now() < end, "the breaker does not open: {:?}", states(world));
        ask();
    }
    // Open: every answer is the fallback's. The application sees none of it, but for probes when it is half open.
    let before = behaviour.seen.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(ask(), "from the fallback");
    }
    let probes = behaviour.seen.load(Ordering::SeqCst) - before;
    assert!(probes < 10, "{probes} of 20 requests went through an open breaker");
    behaviour.failures.store(0, Ordering::SeqCst);
    while !(ask().contains("api-1") && states(world).last().is_some_and(|state| state == "closed")) {
        assert!(Instant::now() < end, "the breaker does not close: {:?}", states(world));
    }
    let states = states(world);
    assert_eq!(states.first().unwrap(), "closed");
    assert_eq!(states[states.len() - 3..], ["open", "half_open", "closed"], "{states:?}");
}
