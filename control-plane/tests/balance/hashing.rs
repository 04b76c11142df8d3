//! `consistentHash`: the same key, the same endpoint.

use std::collections::BTreeSet;

use super::stage::{Application, Client, applications, policy};

fn hashed(hash: &str) -> String {
    policy(&format!("loadBalancer: {{consistentHash: {{{hash}}}}}"))
}

/// Where each of so many users is sent.
fn homes(client: &Client, users: usize) -> Vec<String> {
    (0..users).map(|user| client.ask("/", &format!("x-user: user-{user}\r\n")).name).collect()
}

#[test]
fn p15_every_sidecar_sends_a_user_to_the_same_endpoint_and_few_move() {
    // Caches and sessions of the applications are worth what the mesh keeps together.
    for table in ["", ", ringHash: {minimumRingSize: 2048}", ", maglev: {}"] {
        let mut all = applications(4);
        let documents = hashed(&format!("httpHeaderName: X-User{table}"));
        let (one, other) = (Client::start(&all, &documents, &[]), Client::start(&all, &documents, &[]));
        let (users, before) = (60, homes(&one, 60));
        assert_eq!(before, homes(&one, users), "the same again");
        assert_eq!(before, homes(&other, users), "and by another sidecar");
        assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 4, "{table}: {before:?}");
        // Without the key there is no home.
        assert_eq!(one.reached(100, "").len(), 4);
        // One endpoint less: its users move, the others stay (all of them on a ring, nearly all with Maglev).
        let left = all.remove(1);
        let after = homes(&Client::start(&all, &documents, &[]), users);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        let own = before.iter().filter(|home| **home == left.name).count();
        println!("{table}: {moved} of {users} moved, {own} had to");
        assert!(moved >= own && moved <= own + if table.contains("maglev") { 4 } else { 0 }, "{table}");
        let kind = if table.contains("maglev") { "maglev" } else { "ring" };
        let shown = &one.backend("app.shop.svc.cluster.local:80")["balancing"];
        assert_eq!((&shown["key"], &shown["table"]), (&"header x-user".into(), &kind.into()), "{shown}");
    }
}

#[test]
fn a_broken_endpoint_hands_its_users_on_and_gets_them_back() {
    // Sticky must not mean stuck: a user whose endpoint is ejected is served by another.
    let all = applications(3);
    let documents = policy(
        "loadBalancer: {consistentHash: {httpHeaderName: x-user}}, \
         outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 2s, maxEjectionPercent: 50}",
    );
    let client = Client::start(&all, &documents, &[]);
    let user = "x-user: ann\r\n";
    let home = client.ask("/", user).name;
    let application = all.iter().find(|one| one.name == home).unwrap();
    application.is_broken(true);
    // Its answer puts it aside; whether the sidecar asks another at once is the retry policy's affair.
    client.ask("/", user);
    let heirs = client.reached(5, user);
    assert!(heirs.len() == 1 && !heirs.contains(&home), "{heirs:?}, home was {home}");
    application.is_broken(false);
    let began = std::time::Instant::now();
    while client.ask("/", user).name != home {
        assert!(began.elapsed().as_secs() < 60, "never came home");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_cookie_is_made_for_those_who_have_none() {
    // A browser's first request finds an endpoint; the cookie in the answer must lead back there.
    let all = applications(4);
    let client = Client::start(&all, &hashed("httpCookie: {name: session, path: /shop, ttl: 90s}"), &[]);
    let mut reached = BTreeSet::new();
    for _ in 0..30 {
        let first = client.ask("/", "");
        let line = first.fields.lines().find(|line| line.starts_with("set-cookie: ")).unwrap().to_owned();
        let (pair, attributes) = line["set-cookie: ".len()..].split_once(';').unwrap();
        assert_eq!(attributes, " max-age=90; path=/shop; httponly");
        let again = client.ask("/", &format!("cookie: a=b; {pair}\r\n"));
        assert_eq!(again.name, first.name);
        assert!(!again.fields.contains("set-cookie"), "{}", again.fields);
        reached.insert(again.name);
    }
    assert_eq!(reached.len(), 4, "new users are spread");
    // Without a lifetime nothing is set, and who has no cookie goes anywhere.
    let plain = Client::start(&all, &hashed("httpCookie: {name: session}"), &[]);
    assert!(!plain.ask("/", "").fields.contains("set-cookie"));
    assert_eq!(plain.reached(60, "").len(), 4);
    assert_eq!(plain.reached(5, "cookie: session=ann\r\n").len(), 1);
}

#[test]
fn query_parameters_and_source_addresses_are_keys_too() {
    // All that Istio can hash, and what is left to connections whose bytes nobody looks at.
    let all = applications(4);
    let by_query = Client::start(&all, &hashed("httpQueryParameterName: user"), &[]);
    let home = |path: &str| (0..5).map(|_| by_query.ask(path, "").name).collect::<BTreeSet<_>>();
    assert!((0..20).all(|user| home(&format!("/?a=b&user={user}")).len() == 1));
    assert!((0..20).map(|user| by_query.ask(&format!("/?user={user}"), "").name).collect::<BTreeSet<_>>().len() > 1);
    // The one application beside this sidecar is one source, for requests and for connections.
    let by_source = Client::start(&all, &hashed("useSourceIp: true"), &[]);
    let home = by_source.reached(20, "");
    assert_eq!(home.len(), 1);
    let opaque: BTreeSet<_> = (0..20).map(|_| by_source.ask_opaque()).collect();
    assert_eq!(opaque, home);
    // A connection has no headers: any endpoint.
    let by_header = Client::start(&all, &hashed("httpHeaderName: x-user"), &[]);
    let opaque: BTreeSet<_> = (0..60).map(|_| by_header.ask_opaque()).collect();
    assert_eq!(opaque.len(), 4);
}

#[test]
fn weights_of_endpoints_are_shares_of_the_keys() {
    // A small machine beside a large one.
    let all = [Application::start("small", "weight: 1", ""), Application::start("large", "weight: 4", "")];
    for table in ["", ", maglev: {tableSize: 1009}"] {
        let client = Client::start(&all, &hashed(&format!("httpHeaderName: x-user{table}")), &[]);
        let small = homes(&client, 200).iter().filter(|home| *home == "small").count();
        println!("{table}: {small} of 200 at the small one");
        assert!((20..60).contains(&small), "{table}: {small} of 200");
    }
}
