//! How many instructions single steps of the data path take, compared with what is on record.
//!
//! Counted by valgrind's callgrind, which runs this program again: no clock, so that a busy machine changes nothing. Without valgrind the
//! test says so and compares nothing; `OUTRIGGER_REQUIRE_VALGRIND=1` makes that a failure. Steps are built as tests are, our own crate
//! without optimisation: the numbers tell whether a step does more than it did, not what it costs (`cargo bench` does). Recorded
//! anew, also for a new compiler, by `OUTRIGGER_REWRITE_COSTS=1 cargo test -p outrigger-proxy --test instructions`.

#![allow(clippy::unwrap_used)]

use std::{
    env, fmt::Write as _, fs, hint::black_box, path::Path, process::Command, sync::Arc, sync::atomic::AtomicU64,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, StatusCode, Version, request::Parts, uri::Authority};
use outrigger_proxy::{
    balance::{
        Algorithm, Candidate, Cost, PickContext, Standing,
        keyed::{Member, Table, TableKind},
        pick, pick_equal, pick_keyed,
        stable_hash::hash,
    },
    http::{
        http1::{
            head::{self, HeadLimits, Scan},
            write::{self, Length, Outgoing, Persistence, Target},
        },
        normalize::normalize,
        seen::Seen,
    },
    resilience::retry::RetryPolicy,
    route::{Action, Arm, HeaderEdit, HttpRule, Leg, PathMatch, RequestMatch, RouteTable, Split},
    settings::Limits,
};

/// Set in the process whose instructions are counted.
const COUNTED: &str = "OUTRIGGER_TEST_COUNTED";
const REWRITE: &str = "OUTRIGGER_REWRITE_COSTS";
const REQUIRE: &str = "OUTRIGGER_REQUIRE_VALGRIND";

/// How much worse than on record is a failure.
const WORSE_PERCENT: f64 = 5.0;
/// Countings before a step is said to have become worse.
const RUNS: usize = 5;
/// How often each step is done while it is counted.
const TIMES: u32 = 200;

/// Steps with their names, in the order in which they are counted.
type Steps = Vec<(&'static str, Box<dyn FnMut()>)>;

/// What callgrind looks for by name: it counts from the first instruction to the last.
#[inline(never)]
fn counted_by_callgrind(step: &mut dyn FnMut()) {
    for _ in 0..TIMES {
        step();
    }
}

/// And here it writes down what it has counted since the last time.
#[inline(never)]
fn written_by_callgrind() {
    black_box(());
}

fn rule(number: u32) -> HttpRule<u32> {
    let arm = Arm {
        weight: 1,
        leg: Leg::To(number),
        request_edit: HeaderEdit::default(),
        response_edit: HeaderEdit::default(),
    };
    let path = Some(PathMatch::segment_prefix(&format!("/rule/{number}")));
    HttpRule {
        name: format!("test/route/{number}").into(),
        matches: vec![RequestMatch { path, ..RequestMatch::default() }],
        request_edit: HeaderEdit::default(),
        response_edit: HeaderEdit::default(),
        rewrite: None,
        action: Action::Split(Split::new(vec![arm])),
        timeout: None,
        try_timeout: None,
        retry: Arc::new(RetryPolicy::default()),
        breaker: None,
    }
}

fn parts(path: &str) -> Parts {
    Request::builder().uri(path).header("host", "app.test").body(()).unwrap().into_parts().0
}

struct Endpoint(f64);

impl Candidate for Endpoint {
    fn weight(&self) -> u32 {
        1
    }

    fn cost(&self) -> Cost {
        Cost { latency: self.0, in_flight: 1 }
    }

    fn part_cost(&self, _part: u32) -> Cost {
        self.cost()
    }

    fn standing(&self) -> Standing {
        Standing::Ready
    }
}

/// What a browser or a service sends.
const REQUEST: &[u8] = b"GET /products/17/reviews?page=2 HTTP/1.1\r\nhost: reviews.shop:80\r\nuser-agent: test/1\r\n\
accept: application/json\r\naccept-encoding: gzip\r\ncookie: session=0123456789abcdef\r\n\
traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ndate: Mon, 02 Nov 2026 10:00:00 GMT\r\ncontent-type: application/json\r\n\
content-length: 512\r\ncache-control: no-store\r\nx-request-id: 0123456789abcdef\r\n\r\n";

const HEAD: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 100, target_bytes: 8 * 1024 };

fn matching(steps: &mut Steps) {
    for (rules, last, none) in [
        (1, "match the only rule", "match none of 1 rule"),
        (100, "match the last of 100 rules", "match none of 100 rules"),
        (10_000, "match the last of 10,000 rules", "match none of 10,000 rules"),
    ] {
        let table = Arc::new(RouteTable::new((0..rules).map(rule).collect(), Vec::new()));
        let hit = parts(&format!("/rule/{}/x", rules - 1));
        let miss = parts("/other/x");
        assert!(table.choose(&hit).is_some() && table.choose(&miss).is_none());
        let same = Arc::clone(&table);
        steps.push((last, Box::new(move || assert!(same.choose(black_box(&hit)).is_some()))));
        steps.push((none, Box::new(move || assert!(table.choose(black_box(&miss)).is_none()))));
    }
}

fn picking(steps: &mut Steps) {
    let endpoints =
        |count: u32| -> Vec<Endpoint> { (0..count).map(|number| Endpoint(f64::from(number % 7))).collect() };
    for (count, name) in [(1, "pick the only endpoint"), (10_000, "pick one of 10,000 endpoints")] {
        let (endpoints, cursor) = (endpoints(count), AtomicU64::new(0));
        // The same endpoints in every run.
        let mut random = fastrand::Rng::with_seed(1);
        steps.push((
            name,
            Box::new(move || {
                let algorithm = Algorithm::LeastRequest;
                let context = PickContext { algorithm, cursor: &cursor, panic_percent: 0, avoid: None, warming: None };
                black_box(pick_equal(black_box(&endpoints), &context, |bound| random.u64(..bound)).unwrap());
            }),
        ));
    }
    let (endpoints, cursor) = (endpoints(100), AtomicU64::new(0));
    let mut random = fastrand::Rng::with_seed(1);
    steps.push((
        "pick one of 100 endpoints by weight",
        Box::new(move || {
            let algorithm = Algorithm::RoundRobin;
            let context = PickContext { algorithm, cursor: &cursor, panic_percent: 0, avoid: None, warming: None };
            black_box(pick(black_box(&endpoints), &context, |bound| random.u64(..bound)).unwrap());
        }),
    ));
}

/// An endpoint by key: a look into a table, however many there are.
fn hashing(steps: &mut Steps) {
    let names: Vec<String> = (0..100).map(|number| format!("shop/api-{number}")).collect();
    let members: Vec<_> = names.iter().map(|id| Member { id, weight: 1 }).collect();
    for (kind, name) in [
        (TableKind::Ring { minimum_size: 1024 }, "find one of 100 endpoints on a ring"),
        (TableKind::Maglev { size: 65_537 }, "find one of 100 endpoints in a Maglev table"),
    ] {
        let table = Table::build(kind, &members);
        let endpoints: Vec<Endpoint> = (0..100).map(|_| Endpoint(1.0)).collect();
        let cursor = AtomicU64::new(0);
        let mut user = 0_u64;
        steps.push((
            name,
            Box::new(move || {
                let algorithm = Algorithm::Random;
                let context = PickContext { algorithm, cursor: &cursor, panic_percent: 0, avoid: None, warming: None };
                user += 1;
                let key = hash(&user.to_le_bytes(), 0);
                black_box(pick_keyed(black_box(&endpoints), &context, &table, key).unwrap());
            }),
        ));
    }
}

fn reading_and_writing(steps: &mut Steps) {
    let (received, answered) = (Bytes::from_static(REQUEST), Bytes::from_static(RESPONSE));
    let limits = Limits::default();
    let read = head::request(&received, &HEAD).unwrap().parts;
    let again = read.clone();
    steps.push((
        "copy a request and bring it into canonical form",
        Box::new(move || {
            let mut request = again.clone();
            let seen = Seen::of(&request.headers);
            normalize(&mut request, false, seen, &limits).unwrap();
            black_box(request);
        }),
    ));
    steps.push((
        "read the head of a request",
        Box::new(move || {
            let end = head::find_end(black_box(&received), &mut Scan::default(), &HEAD).unwrap().unwrap();
            black_box(head::request(&received.slice(..end), &HEAD).unwrap());
        }),
    ));
    let asked = http::Method::GET;
    let response = head::response(&answered, &asked, &HEAD).unwrap().parts;
    steps.push((
        "read the head of a response",
        Box::new(move || {
            let end = head::find_end(black_box(&answered), &mut Scan::default(), &HEAD).unwrap().unwrap();
            black_box(head::response(&answered.slice(..end), &asked, &HEAD).unwrap());
        }),
    ));
    let mut out = BytesMut::with_capacity(4096);
    let host = Authority::from_static("reviews.shop:80");
    steps.push((
        "write the head of a request",
        Box::new(move || {
            out.clear();
            let target = Target::Origin(read.uri.path_and_query().unwrap());
            let (method, headers) = (&read.method, &read.headers);
            let outgoing = Outgoing { method, target, host: &host, headers, own: &[], upgrade: None };
            write::request(black_box(&mut out), &outgoing, Length::None);
        }),
    ));
    let mut out = BytesMut::with_capacity(4096);
    let date = HeaderValue::from_static("Mon, 02 Nov 2026 10:00:00 GMT");
    steps.push((
        "write the head of a response",
        Box::new(move || {
            out.clear();
            let (headers, length) = (&response.headers, Length::Known(512));
            write::response(black_box(&mut out), StatusCode::OK, headers, length, Persistence::Implied, Some(&date));
        }),
    ));
    assert_eq!(Version::HTTP_11, head::request(&Bytes::from_static(REQUEST), &HEAD).unwrap().parts.version);
}

fn steps() -> Steps {
    let mut steps = Vec::new();
    matching(&mut steps);
    picking(&mut steps);
    hashing(&mut steps);
    reading_and_writing(&mut steps);
    steps
}

/// Not a test but the process that is counted, when the test starts it.
#[test]
fn counted() {
    if env::var_os(COUNTED).is_none() {
        return;
    }
    for (_, mut step) in steps() {
        // What is made once is not part of it.
        step();
        counted_by_callgrind(&mut *step);
        written_by_callgrind();
    }
}

/// Instructions of each step, once; `None` without valgrind.
fn count() -> Option<Vec<f64>> {
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted_by_callgrind*", "--dump-before=*written_by_callgrind*"])
        .arg(format!("--callgrind-out-file={}/out", folder.path().display()))
        .arg(env::current_exe().unwrap())
        .args(["--exact", "counted", "--test-threads=1"])
        .env(COUNTED, "1")
        .output();
    let output = match run {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("cannot run valgrind: {error}"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // One file for each step: out.1, out.2, ...
    let total = |number: usize| {
        let text = fs::read_to_string(folder.path().join(format!("out.{number}"))).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("summary: ")).unwrap();
        line.trim().parse::<f64>().unwrap() / f64::from(TIMES)
    };
    Some((1..=steps().len()).map(total).collect())
}

#[test]
fn steps_take_no_more_instructions_than_on_record() {
    // A search that became a scan, or one more copy of a header, would only be seen when everything has become slower.
    let Some(counts) = count() else {
        assert!(env::var_os(REQUIRE).is_none(), "valgrind is not installed, and {REQUIRE} asks for it");
        println!("NOT COMPARED: valgrind is not installed (hint: apt-get install valgrind)");
        return;
    };
    let measured: Vec<_> = steps().into_iter().map(|(name, _)| name).zip(counts).collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/instructions.txt");
    if env::var_os(REWRITE).is_some() {
        let mut text =
            format!("# Instructions of a step, built as a test. Written by {REWRITE}=1, see instructions.rs.\n");
        for (name, count) in &measured {
            let _ = writeln!(text, "{name}: {count:.0}");
        }
        fs::write(file, text).unwrap();
        return;
    }
    let text = fs::read_to_string(file).unwrap();
    let on_record = |wanted: &str| {
        let line = text.lines().find_map(|line| line.split_once(": ").filter(|(name, _)| *name == wanted));
        line.map(|(_, count)| count.parse::<f64>().unwrap())
    };
    let mut measured = measured;
    let mut worse = String::new();
    for _ in 0..RUNS {
        worse.clear();
        for (name, count) in &measured {
            assert!(*count >= 1.0, "{name}: nothing was counted");
            let record = on_record(name).unwrap_or_else(|| panic!("\"{name}\" is not on record (hint: {REWRITE}=1)"));
            println!("{name}: {count:.0}, on record {record:.0}");
            if *count > record * (1.0 + WORSE_PERCENT / 100.0) {
                let _ = writeln!(worse, "{name}: {count:.0} instructions, {record:.0} on record");
            }
        }
        if worse.is_empty() {
            return;
        }
        // Hash tables are seeded anew in each process, and now and then two keys meet: the least of some runs is what a step takes.
        for ((_, least), again) in measured.iter_mut().zip(count().unwrap()) {
            *least = least.min(again);
        }
    }
    panic!("\n{worse}(hint: {REWRITE}=1 records them, if that is what they have to be)");
}
