#![allow(clippy::unwrap_used)]

use std::time::Duration;

use outrigger_proto::mesh::RegisteredPort;

use super::{rules::Knock, *};

fn me() -> Identity {
    Identity::new("cluster.local", "shop", "reviews").unwrap()
}

fn registration(workload: &str, last_byte: u8) -> Registration {
    Registration {
        namespace: "shop".to_owned(),
        workload: workload.to_owned(),
        service_account: "reviews".to_owned(),
        address: vec![127, 0, 0, last_byte].into(),
        ports: vec![RegisteredPort { target_port: 80, name: String::new(), reachable_port: 15006 }],
        ready: true,
        ..Default::default()
    }
}

fn registry(answer: Arc<Mutex<Knock>>) -> (Arc<Registry>, Arc<Signal>) {
    let signal = Arc::new(Signal::default());
    let dial: Dial = Arc::new(move |_| {
        let answer = *answer.lock();
        Box::pin(async move { answer })
    });
    (Registry::new(Arc::clone(&signal), dial, 3, CancellationToken::new()), signal)
}

fn known(registry: &Registry) -> Vec<String> {
    registry.workloads().1.into_iter().map(|w| w.uid).collect()
}

#[tokio::test(start_paused = true)]
async fn a_workload_stays_while_its_port_answers_and_goes_after_two_silences() {
    // Losing the control plane must not take a healthy workload out; a dead one must not stay.
    let answer = Arc::new(Mutex::new(Knock::Answered));
    let (registry, _) = registry(Arc::clone(&answer));
    registry.register(registration("a", 1), &me(), 1, &CancellationToken::new()).unwrap();
    registry.disconnected("shop/a", 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(known(&registry), ["shop/a"]);
    *answer.lock() = Knock::Silent;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(known(&registry).is_empty());
    let unsaved = registry.take_unsaved();
    assert_eq!((unsaved.len(), unsaved[0].registration.is_none()), (1, true));
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_takes_it_out_at_once() {
    // The process is known to be dead: no request should be sent there for another two seconds.
    let (registry, signal) = registry(Arc::new(Mutex::new(Knock::Refused)));
    registry.register(registration("a", 1), &me(), 1, &CancellationToken::new()).unwrap();
    signal.take();
    registry.disconnected("shop/a", 1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(known(&registry).is_empty());
    assert_eq!(signal.take(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_comes_back_stops_the_check() {
    // Otherwise a check that was under way would remove a connected workload.
    let answer = Arc::new(Mutex::new(Knock::Answered));
    let (registry, _) = registry(Arc::clone(&answer));
    registry.register(registration("a", 1), &me(), 1, &CancellationToken::new()).unwrap();
    registry.disconnected("shop/a", 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    registry.register(registration("a", 1), &me(), 2, &CancellationToken::new()).unwrap();
    *answer.lock() = Knock::Refused;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(known(&registry), ["shop/a"]);
    // The end of the old stream comes late: it must not count.
    registry.disconnected("shop/a", 1);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(known(&registry), ["shop/a"]);
}

#[tokio::test(start_paused = true)]
async fn a_second_instance_under_a_living_name_is_refused() {
    // Two instances under one name would take turns in stealing each other's traffic.
    let (registry, _) = registry(Arc::new(Mutex::new(Knock::Answered)));
    let first = CancellationToken::new();
    registry.register(registration("a", 1), &me(), 1, &first).unwrap();
    let error = registry.register(registration("a", 2), &me(), 2, &CancellationToken::new()).unwrap_err();
    assert!(error.to_string().contains("already registered from 127.0.0.1:15006"), "{error}");
    assert!(!first.is_cancelled());
    // The same instance on a new connection replaces its old stream.
    registry.register(registration("a", 1), &me(), 3, &CancellationToken::new()).unwrap();
    assert!(first.is_cancelled());
    // Once the stream is gone, a new instance may take the name.
    registry.disconnected("shop/a", 3);
    registry.register(registration("a", 2), &me(), 4, &CancellationToken::new()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn restored_workloads_follow_the_same_rule() {
    // A restarted control plane must neither forget the living nor keep the dead.
    let (registry, _) = registry(Arc::new(Mutex::new(Knock::Silent)));
    let stored = |name: &str, ports: bool| {
        let mut r = registration(name, 1);
        if !ports {
            r.ports.clear();
        }
        StoredWorkload { uid: format!("shop/{name}"), registration: Some(r) }
    };
    registry.restore(vec![stored("a", true), stored("client-only", false)]);
    assert_eq!(known(&registry), ["shop/a"], "without a port there is nothing that could prove it");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(known(&registry).is_empty());
}

#[tokio::test(start_paused = true)]
async fn news_of_health_is_urgent_and_equal_news_is_none() {
    // Readiness must not wait for a debounce, and a reconnect must not cause work.
    let (registry, signal) = registry(Arc::new(Mutex::new(Knock::Answered)));
    let token = CancellationToken::new();
    let generation = registry.register(registration("a", 1), &me(), 1, &token).unwrap();
    assert_eq!(signal.take(), Some(false));
    assert_eq!(registry.register(registration("a", 1), &me(), 1, &token).unwrap(), generation);
    assert_eq!(signal.take(), None);
    let draining = Registration { draining: true, ..registration("a", 1) };
    assert_eq!(registry.register(draining, &me(), 1, &token).unwrap(), generation + 1);
    assert_eq!(signal.take(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn claims_that_the_certificate_does_not_back_are_refused() {
    // A workload must not register into another's service.
    let (registry, _) = registry(Arc::new(Mutex::new(Knock::Answered)));
    type Change = fn(&mut Registration);
    let changes: [(Change, &str); 8] = [
        (|r| r.namespace = "bank".to_owned(), "its certificate says"),
        (|r| r.service_account = "admin".to_owned(), "its certificate says"),
        (|r| r.workload = "a/b".to_owned(), "its name"),
        (|r| r.workload = String::new(), "its name"),
        (|r| r.address = vec![1, 2, 3].into(), "3 bytes"),
        (|r| r.address = Vec::new().into(), "no address"),
        (|r| r.ports[0].reachable_port = 65536, "not between"),
        (|r| r.ports = vec![r.ports[0].clone(); MAX_PORTS + 1], "ports"),
    ];
    for (change, words) in changes {
        let mut r = registration("a", 1);
        change(&mut r);
        let error = registry.register(r, &me(), 1, &CancellationToken::new()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    for name in ["a", "b", "c"] {
        registry.register(registration(name, 1), &me(), 1, &CancellationToken::new()).unwrap();
    }
    let full = registry.register(registration("d", 1), &me(), 1, &CancellationToken::new());
    assert_eq!(full, Err(RegistrationRefused::Full(3)));
}
