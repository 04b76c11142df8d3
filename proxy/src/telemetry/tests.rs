//! The whole of telemetry, from records to the text that Prometheus and people read.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::{
    host,
    resilience::breaker::{State, Transition},
    settings::AccessLog,
};

fn own() -> LabelSet {
    let labels = [("app", "front"), ("version", "v1")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    LabelSet::workload("shop", "front-1", "spiffe://cluster.local/ns/shop/sa/front", &BTreeMap::from(labels))
}

fn telemetry() -> Arc<Telemetry> {
    Telemetry::new(&TelemetrySettings { access_log: AccessLog::Off, series: 100 }, own(), 2)
}

fn reviews(telemetry: &Telemetry) -> LabelId {
    let labels = BTreeMap::from([("app".to_owned(), "reviews".to_owned()), ("version".to_owned(), "v2".to_owned())]);
    let set = LabelSet::workload("shop", "reviews-7", "spiffe://cluster.local/ns/shop/sa/reviews", &labels);
    let host: Arc<str> = "reviews.shop.svc.cluster.local".into();
    telemetry.labels(set.of_service(&host, &"reviews".into(), &"shop".into()))
}

/// Samples by name and labels; fails on anything that Prometheus could not read.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
        assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {series}");
    }
    samples
}

fn find(samples: &BTreeMap<String, f64>, name: &str, parts: &[&str]) -> f64 {
    let matching = samples
        .iter()
        .filter(|(series, _)| series.split('{').next() == Some(name) && parts.iter().all(|part| series.contains(part)));
    matching.map(|(_, value)| value).sum()
}

#[tokio::test(start_paused = true)]
async fn a_request_is_counted_as_istio_counts_it() {
    // Dashboards and Kiali read exactly these names and labels.
    let telemetry = telemetry();
    for worker in [0, 1] {
        let worker = telemetry.worker(worker);
        let mut record = RequestRecord::open(&worker, Direction::Outbound, host::now());
        record.destination(reviews(&telemetry));
        record.security(Security::MutualTls);
        record.response(StatusCode::OK);
        record.request_bytes(10);
        record.response_bytes(600);
        record.retries(2);
        tokio::time::advance(Duration::from_millis(7)).await;
        record.finish(host::now());
    }
    let samples = samples(&telemetry.encode());
    let labels = "reporter=\"source\",source_workload=\"front-1\",source_workload_namespace=\"shop\",\
                  source_principal=\"spiffe://cluster.local/ns/shop/sa/front\",source_app=\"front\",\
                  source_version=\"v1\",source_cluster=\"unknown\",source_canonical_service=\"front\",\
                  source_canonical_revision=\"v1\",destination_workload=\"reviews-7\",\
                  destination_workload_namespace=\"shop\",\
                  destination_principal=\"spiffe://cluster.local/ns/shop/sa/reviews\",destination_app=\"reviews\",\
                  destination_version=\"v2\",destination_cluster=\"unknown\",\
                  destination_canonical_service=\"reviews\",destination_canonical_revision=\"v2\",\
                  destination_service=\"reviews.shop.svc.cluster.local\",destination_service_name=\"reviews\",\
                  destination_service_namespace=\"shop\",request_protocol=\"http\",response_code=\"200\",\
                  response_flags=\"-\",connection_security_policy=\"unknown\"";
    assert_eq!(samples[&format!("istio_requests_total{{{labels}}}")], 2.0);
    let bucket = |le: &str| samples[&format!("istio_request_duration_milliseconds_bucket{{{labels},le=\"{le}\"}}")];
    assert_eq!((bucket("5"), bucket("10"), bucket("+Inf")), (0.0, 2.0, 2.0));
    assert_eq!(samples[&format!("istio_request_duration_milliseconds_sum{{{labels}}}")], 14.0);
    assert_eq!(samples[&format!("istio_request_bytes_sum{{{labels}}}")], 20.0);
    assert_eq!(samples[&format!("istio_response_bytes_count{{{labels}}}")], 2.0);
    assert_eq!(samples["outrigger_retries_total"], 4.0);
}

#[tokio::test]
async fn a_dropped_request_is_counted_as_cancelled_once() {
    // A client that hangs up must not vanish from the figures, nor count twice.
    let telemetry = telemetry();
    let worker = telemetry.worker(0);
    drop(RequestRecord::open(&worker, Direction::Inbound, host::now()));
    let mut answered = RequestRecord::open(&worker, Direction::Inbound, host::now());
    answered.source(telemetry.labels(LabelSet::peer("spiffe://cluster.local/ns/web/sa/edge")));
    answered.security(Security::MutualTls);
    answered.protocol(RequestProtocol::Grpc);
    answered.response(StatusCode::OK);
    answered.grpc_status(4_000_000_000);
    answered.messages(1, 3);
    drop(answered);
    let samples = samples(&telemetry.encode());
    assert_eq!(find(&samples, "istio_requests_total", &[]), 2.0);
    let cancelled =
        ["response_code=\"0\"", "response_flags=\"DC\"", "reporter=\"destination\"", "source_app=\"unknown\""];
    assert_eq!(find(&samples, "istio_requests_total", &cancelled), 1.0);
    let answered = [
        "source_principal=\"spiffe://cluster.local/ns/web/sa/edge\"",
        "source_workload_namespace=\"web\"",
        "grpc_response_status=\"2\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert_eq!(find(&samples, "istio_requests_total", &answered), 1.0);
    assert_eq!(find(&samples, "istio_response_messages_total", &answered), 3.0);
    let reason = ["direction=\"inbound\"", "reason=\"downstream_closed\""];
    assert_eq!(find(&samples, "outrigger_failures_total", &reason), 1.0);
}

#[tokio::test]
async fn opened_and_closed_connections_meet() {
    // "opened - closed" is how dashboards show what is open now.
    let telemetry = telemetry();
    let worker = telemetry.worker(0);
    let mut long = ConnectionRecord::open(&worker, Direction::Outbound, host::now());
    long.destination(reviews(&telemetry));
    long.established("10.0.0.7:5432".parse().unwrap());
    long.transferred(100, 10);
    let mut failed = ConnectionRecord::open(&worker, Direction::Outbound, host::now());
    failed.failure(Reason::UpstreamConnectRefused);
    failed.finish();
    let now = samples(&telemetry.encode());
    assert_eq!(find(&now, "istio_tcp_connections_opened_total", &[]), 2.0);
    assert_eq!(find(&now, "istio_tcp_connections_closed_total", &[]), 1.0);
    assert_eq!(find(&now, "istio_tcp_connections_closed_total", &["response_flags=\"UF\""]), 1.0);
    assert_eq!(find(&now, "istio_tcp_sent_bytes_total", &["destination_service_name=\"reviews\""]), 100.0);
    assert!(now.keys().filter(|key| key.starts_with("istio_tcp")).all(|key| !key.contains("response_code")));
    long.transferred(1, 2);
    drop(long);
    let later = samples(&telemetry.encode());
    assert_eq!(find(&later, "istio_tcp_connections_closed_total", &[]), 2.0);
    assert_eq!(find(&later, "istio_tcp_received_bytes_total", &[]), 12.0);
}

/// Counts something of everything there is.
fn exercise(telemetry: &Arc<Telemetry>) -> Vec<Box<dyn std::any::Any>> {
    let worker = telemetry.worker(0);
    let mut record = RequestRecord::open(&worker, Direction::Outbound, host::now());
    record.protocol(RequestProtocol::Grpc);
    record.messages(1, 1);
    record.finish(host::now());
    ConnectionRecord::open(&worker, Direction::Outbound, host::now()).finish();
    worker.connection_secured(Direction::Inbound, Security::None);
    worker.handshake_failed(Direction::Outbound, Handshake::Identity);
    worker.retry_refused(RetryRefusal::BudgetExhausted);
    worker.fallback_answered(Fallback::Static);
    worker.ejection(EjectionEvent::Ejected);
    worker.limit_overflowed(Overflow::Requests);
    worker.protocol_detected(Direction::Inbound, Detected::MeshTls);
    worker.demand(Demand::TimedOut);
    telemetry.config_swapped(7);
    telemetry.config_refused();
    telemetry.certificate_expires(SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000));
    let mut breaker = telemetry.breaker("shop/reviews", "reviews.shop.svc.cluster.local");
    breaker.changed(Transition { from: State::Closed, to: State::Open });
    breaker.changed(Transition { from: State::Open, to: State::HalfOpen });
    vec![
        Box::new(breaker),
        Box::new(worker.connection_accepted(ListenerKind::Inbound)),
        Box::new(worker.upstream_opened(Direction::Outbound)),
    ]
}

#[tokio::test]
async fn what_is_written_and_what_is_declared_are_the_same() {
    // The documentation is printed from the list; an undeclared metric or label would be undocumented.
    let telemetry = telemetry();
    let guards = exercise(&telemetry);
    let text = telemetry.encode();
    let samples = samples(&text);
    let mut seen = BTreeSet::new();
    for series in samples.keys() {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let metric = metrics::ALL
            .iter()
            .find(|metric| match metric.kind {
                metrics::Kind::Histogram => {
                    name.strip_prefix(metric.name).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
                }
                _ => metric.name == name,
            })
            .unwrap_or_else(|| panic!("{name} is not declared"));
        seen.insert(metric.name);
        for label in labels.split(['{', ',', '}']).filter_map(|pair| pair.split_once('=')) {
            assert!(metric.labels.contains(&label.0) || label.0 == "le", "{name} {}", label.0);
        }
        assert!(text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind.word())), "{name}");
    }
    for metric in metrics::ALL {
        assert!(seen.contains(metric.name), "{} is never written", metric.name);
        assert!(Telemetry::reference().contains(&format!("| `{}` | {} |", metric.name, metric.kind.word())));
        assert!(metric.kind != metrics::Kind::Counter || metric.name.ends_with("_total"), "{}", metric.name);
    }
    let breaker = ["breaker=\"shop/reviews\"", "backend=\"reviews.shop.svc.cluster.local\""];
    assert_eq!(find(&samples, "outrigger_breaker_state", &[breaker[0], breaker[1], "state=\"half_open\""]), 1.0);
    assert_eq!(find(&samples, "outrigger_breaker_state", &["state=\"open\""]), 0.0);
    let opened = [breaker[0], "from=\"closed\"", "to=\"open\""];
    assert_eq!(find(&samples, "outrigger_breaker_transitions_total", &opened), 1.0);
    assert_eq!(samples["outrigger_config_generation"], 7.0);
    assert_eq!(samples["outrigger_certificate_expiration_timestamp_seconds"], 1_900_000_000.0);
    assert_eq!(samples["outrigger_connections_active{listener=\"inbound\"}"], 1.0);
    drop(guards);
    let samples = self::samples(&telemetry.encode());
    assert_eq!(samples["outrigger_connections_active{listener=\"inbound\"}"], 0.0);
    assert_eq!(samples["outrigger_upstream_connections_active{direction=\"outbound\"}"], 0.0);
    assert_eq!(find(&samples, "outrigger_breaker_state", &[]), 0.0);
    assert_eq!(samples["outrigger_connections_accepted_total{listener=\"inbound\"}"], 1.0);
}

#[test]
fn print_the_reference() {
    // The documentation's table of metrics is made with: cargo test print_the_reference -- --nocapture
    println!("{}", Telemetry::reference());
    assert!(Telemetry::reference().lines().count() > metrics::ALL.len());
}

/// An access log in memory.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged(format: AccessLog, user_agent: &[u8], path: &str) -> String {
    let output = Output::default();
    let settings = TelemetrySettings { access_log: format, series: 100 };
    let telemetry = Telemetry::with_access_log(&settings, own(), 1, Box::new(output.clone()));
    let worker = telemetry.worker(0);
    let mut record = RequestRecord::open(&worker, Direction::Outbound, host::now());
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("reviews:9080"));
    headers.insert("x-request-id", HeaderValue::from_static("abc"));
    if let Ok(value) = HeaderValue::from_bytes(user_agent) {
        headers.insert("user-agent", value);
    }
    record.head(&Method::GET, &path.parse().unwrap_or_default(), Version::HTTP_11, &headers);
    record.destination(reviews(&telemetry));
    record.route(&"shop/canary/0".into());
    record.describe(|log| {
        log.connection.service_port = Some(9080);
        log.connection.downstream_remote = Some("10.0.0.1:40000".parse().unwrap());
    });
    record.upstream("10.0.0.7:9081".parse().unwrap());
    record.response(StatusCode::SERVICE_UNAVAILABLE);
    record.failure(Reason::UpstreamConnectRefused);
    record.request_bytes(3);
    record.response_bytes(5);
    record.finish(host::now());
    telemetry.flush();
    let bytes = output.0.lock().clone();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn text_lines_follow_istios_default() {
    // Log pipelines parse this format by position.
    let line = logged(AccessLog::Text, b"curl \"x\"\xff", "/a?b=c");
    let (start, rest) = line.split_once("] ").unwrap();
    assert_eq!((start.len(), start.as_bytes()[11], start.ends_with('Z')), (25, b'T', true), "{start}");
    assert_eq!(
        rest,
        "\"GET /a?b=c HTTP/1.1\" 503 UF upstream_connect_refused - \"-\" 3 5 0 0 \"-\" \"curl \\\"x\\\"\\xff\" \"abc\" \
         \"reviews:9080\" \"10.0.0.7:9081\" outbound|9080||reviews.shop.svc.cluster.local - - 10.0.0.1:40000 - \
         shop/canary/0\n"
    );
}

#[tokio::test(start_paused = true)]
async fn json_lines_have_istios_keys() {
    // Queries are written against these keys.
    let line = logged(AccessLog::Json, b"x", "/");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let object = value.as_object().unwrap();
    for key in "start_time route_name method path protocol response_code response_flags response_code_details \
                connection_termination_details bytes_received bytes_sent duration upstream_service_time \
                x_forwarded_for user_agent request_id authority upstream_host upstream_cluster \
                upstream_local_address downstream_local_address downstream_remote_address requested_server_name \
                upstream_transport_failure_reason"
        .split_whitespace()
    {
        assert!(object.contains_key(key), "{key}");
    }
    assert_eq!(object["response_code"], 503);
    assert_eq!(object["upstream_cluster"], "outbound|9080||reviews.shop.svc.cluster.local");
    assert!(object["x_forwarded_for"].is_null());
}

#[tokio::test]
async fn opaque_connections_have_a_line_too() {
    // Otherwise a database behind the mesh leaves no trace in the log.
    let output = Output::default();
    let settings = TelemetrySettings { access_log: AccessLog::Text, series: 100 };
    let telemetry = Telemetry::with_access_log(&settings, own(), 1, Box::new(output.clone()));
    let mut record = ConnectionRecord::open(&telemetry.worker(0), Direction::Inbound, host::now());
    record.established("127.0.0.1:5432".parse().unwrap());
    record.transferred(7, 9);
    record.finish();
    telemetry.flush();
    let line = String::from_utf8(output.0.lock().clone()).unwrap();
    assert!(line.contains("] \"- - -\" 0 - - - \"-\" 9 7 "), "{line}");
    assert!(line.contains("\"127.0.0.1:5432\" inbound|5432|| "), "{line}");
}

proptest! {
    #[test]
    fn a16_whatever_a_client_sends_is_one_line_that_parses(agent in proptest::collection::vec(any::<u8>(), 0..60)) {
        // Forged lines in the log would hide an attack.
        let json = logged(AccessLog::Json, &agent, "/");
        prop_assert_eq!(json.matches('\n').count(), 1);
        prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{}", json);
        let text = logged(AccessLog::Text, &agent, "/");
        prop_assert_eq!(text.matches('\n').count(), 1);
        prop_assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)), "{}", text);
    }
}
