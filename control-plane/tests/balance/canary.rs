//! A canary whose users stay: `outrigger.mesh/sticky` on an HTTPRoute with weights.

use super::stage::{Application, Client};

/// Versions 1 and 2 with these weights, and a route that knows its users like this.
fn canary(sticky: &str, weights: [u32; 2]) -> String {
    let service = |version: u32| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: app-v{version}, namespace: shop}}
spec: {{selector: {{app: app, version: v{version}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
"
        )
    };
    format!(
        "{}{}apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: app, namespace: shop, annotations: {{outrigger.mesh/sticky: {sticky}}}}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: app}}]
  rules:
  - backendRefs: [{{name: app-v1, port: 80, weight: {}}}, {{name: app-v2, port: 80, weight: {}}}]
---
",
        service(1),
        service(2),
        weights[0],
        weights[1]
    )
}

fn versions() -> [Application; 2] {
    ["v1", "v2"].map(|version| Application::start(version, "", &format!("version: {version}")))
}

#[test]
fn users_of_a_growing_canary_never_go_back() {
    // Somebody who has seen the new version and then the old one again reports a bug that is none.
    let all = versions();
    let users = 100;
    let homes = |weights| -> Vec<String> {
        let client = Client::start(&all, &canary("header x-user", weights), &[]);
        let ask = |user: usize| client.ask("/", &format!("x-user: user-{user}\r\n")).name;
        let homes: Vec<String> = (0..users).map(ask).collect();
        assert!((0..users).zip(&homes).all(|(user, home)| ask(user) == *home), "and stay where they are");
        homes
    };
    let mut before = vec!["v1".to_owned(); users];
    for (weights, few, many) in [([90, 10], 1, 25), ([50, 50], 30, 70), ([1, 9], 75, 99)] {
        let now = homes(weights);
        assert!(before.iter().zip(&now).all(|(before, now)| before <= now), "{weights:?}: somebody went back");
        let count = now.iter().filter(|home| *home == "v2").count();
        println!("{weights:?}: {count} of {users} see the new version");
        assert!((few..=many).contains(&count), "{weights:?}: {count}");
        before = now;
    }
    // Who does not say who they are is sent by chance.
    let client = Client::start(&all, &canary("header x-user", [50, 50]), &[]);
    assert_eq!(client.reached(60, "").len(), 2);
}

#[test]
fn users_without_a_cookie_are_given_one_and_stay() {
    // Browsers do not send headers of their own.
    let all = versions();
    let client = Client::start(&all, &canary("cookie visitor 720h", [50, 50]), &[]);
    let mut reached = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let first = client.ask("/", "");
        let line = first.fields.lines().find(|line| line.starts_with("set-cookie: ")).unwrap().to_owned();
        let (pair, attributes) = line["set-cookie: ".len()..].split_once(';').unwrap();
        assert_eq!(attributes, " max-age=2592000; path=/; httponly");
        let again = client.ask("/", &format!("cookie: {pair}\r\n"));
        assert_eq!(again.name, first.name);
        assert!(!again.fields.contains("set-cookie"));
        reached.insert(again.name);
    }
    assert_eq!(reached.len(), 2);
}
