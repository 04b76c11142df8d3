//! Memory: ten times as much as fits into a cgroup of 32 MiB, from clients that do not read and from heads that do not end. And how requests
//! and operators see it, with a limit of the test's own.
//!
//! The kernel must allow a cgroup to be made (root, and version 1 or 2 of the memory controller); `ulimit -v` bounds something else.
//! `OUTRIGGER_REQUIRE_CGROUP=1` makes the test fail where it would skip itself.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    sidecar::Stage,
    wire::{self, PATIENCE, listen, read_head, says},
};

/// A cgroup of its own with a limit of memory; removed with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("outrigger-test-{}-{}", std::process::id(), fastrand::u32(..));
        [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")].iter().find_map(
            |(root, limit)| {
                let folder = Path::new(root).join(&name);
                fs::create_dir(&folder).ok()?;
                let cgroup = Self(folder);
                // Beside version 1 lies a folder that is none, where any file could be written.
                cgroup.0.join(limit).exists().then_some(())?;
                fs::write(cgroup.0.join(limit), bytes.to_string()).ok()?;
                // Kept out of swap, where there is one: that would only be another way to have more.
                let _ = fs::write(cgroup.0.join("memory.swap.max"), "0");
                Some(cgroup)
            },
        )
    }

    /// How many processes were killed in it.
    fn kills(&self) -> u64 {
        let read = |file: &str| fs::read_to_string(self.0.join(file)).ok();
        let text = read("memory.events").or_else(|| read("memory.oom_control")).unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.unwrap_or_else(|| panic!("{text}")).trim().parse().unwrap()
    }

    fn peak_bytes(&self) -> u64 {
        let read = |file: &str| fs::read_to_string(self.0.join(file)).ok()?.trim().parse().ok();
        read("memory.peak").or_else(|| read("memory.max_usage_in_bytes")).unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("cannot remove {}", self.0.display());
    }
}

/// "/large" is larger than any buffer; everything else is five bytes.
fn endless() -> SocketAddr {
    listen(|_, mut io| {
        while let Some(head) = read_head(&mut io) {
            let bytes: u64 = if head.starts_with("GET /large ") { 1 << 30 } else { 5 };
            if write!(io, "HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n").is_err()
                || std::io::copy(&mut std::io::repeat(b'x').take(bytes), &mut io).is_err()
            {
                return;
            }
        }
    })
}

/// What clients were answered.
#[derive(Default)]
struct Answers {
    ok: AtomicU64,
    refused: AtomicU64,
    none: AtomicU64,
}

impl Answers {
    fn ask(&self, address: SocketAddr) {
        let outcome = TcpStream::connect(address).and_then(|mut io| {
            io.set_read_timeout(Some(Duration::from_secs(1)))?;
            io.write_all(b"GET /small HTTP/1.1\r\nhost: app.shop\r\nconnection: close\r\n\r\n")?;
            let mut answer = Vec::new();
            io.read_to_end(&mut answer)?;
            Ok(answer)
        });
        let count = match outcome {
            Ok(answer) if answer.starts_with(b"HTTP/1.1 200 ") => &self.ok,
            Ok(answer) if answer.starts_with(b"HTTP/1.1 503 ") => &self.refused,
            _ => &self.none,
        };
        count.fetch_add(1, Relaxed);
    }
}

#[test]
fn row_25_ten_times_too_much_in_32_mib_kills_nothing() {
    // A sidecar that is killed takes its application out of the mesh, and every request it carries with it.
    let Some(cgroup) = Cgroup::new(32 << 20) else {
        let required = std::env::var_os("OUTRIGGER_REQUIRE_CGROUP").is_some();
        assert!(!required, "no memory cgroup can be made here, and OUTRIGGER_REQUIRE_CGROUP is set");
        eprintln!("SKIPPED: no memory cgroup can be made here (hint: run as root)");
        return;
    };
    super::size::many_descriptors();
    let mut stage = Stage::new();
    stage.before(&format!("echo $$ > {}", cgroup.0.join("cgroup.procs").display()));
    let (sidecar, inbound) = stage.server(endless(), "http", &["--set", "timeouts.write_stall=5s"]);
    let watched = sidecar.admin("/server_info");
    assert!(watched.contains(&format!("\"limit\": {}", 32 << 20)), "the limit of the cgroup was not found: {watched}");
    let ratio = || sidecar.metric("outrigger_overload_used_ratio", &["resource=\"memory\""]);
    let quiet = ratio();

    // Ten times 32 MiB, if each could have the 256 KiB that a connection may buffer: every second one sends a head of 60 KB without end, the
    // others ask for more than anybody holds and do not read it.
    let mut held = Vec::new();
    let connecting = Instant::now();
    let head = format!("GET / HTTP/1.1\r\nhost: app.shop\r\nx: {}", "x".repeat(60_000));
    while held.len() < 1280 && connecting.elapsed() < Duration::from_secs(20) {
        let Ok(mut io) = TcpStream::connect(inbound) else { continue };
        io.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        // Refused ones end at once, and are held all the same.
        let _ = match held.len() % 2 {
            0 => io.write_all(b"GET /large HTTP/1.1\r\nhost: app.shop\r\n\r\n"),
            _ => io.write_all(head.as_bytes()),
        };
        held.push(io);
    }
    let (answers, over) = (Arc::new(Answers::default()), Arc::new(AtomicBool::new(false)));
    let asking: Vec<_> = (0..16)
        .map(|_| {
            let (answers, over) = (Arc::clone(&answers), Arc::clone(&over));
            thread::spawn(move || {
                while !over.load(Relaxed) {
                    answers.ask(inbound);
                }
            })
        })
        .collect();
    // Others find a place although every one was taken, and nobody has let go of anything.
    let asked = Instant::now();
    while answers.ok.load(Relaxed) < 5 {
        assert!(asked.elapsed() < PATIENCE * 3, "nobody else was served\n{}", sidecar.log());
        thread::sleep(Duration::from_millis(20));
    }
    let busy = ratio();
    assert_eq!(cgroup.kills(), 0);
    over.store(true, Relaxed);
    for asker in asking {
        asker.join().unwrap();
    }
    let begun = |measure: &str| sidecar.metric("outrigger_overload_measures_begun_total", &[measure]);
    println!(
        "row 25: {} connections held; others served after {:?}; memory {:.0} % quiet, {:.0} % busy, peak {} KiB of the cgroup; answers: {} ok, {} refused, {} none; \
         shed {} times, stopped accepting {} times",
        held.len(),
        asked.elapsed(),
        quiet * 100.0,
        busy * 100.0,
        cgroup.peak_bytes() >> 10,
        answers.ok.load(Relaxed),
        answers.refused.load(Relaxed),
        answers.none.load(Relaxed),
        begun("refuse_requests"),
        begun("stop_accepting"),
    );
    assert_eq!(cgroup.kills(), 0);
    assert!(begun("end_idle") >= 1.0, "there was no overload: the test proves nothing");
    let failures = sidecar.metric("outrigger_failures_total", &["reason=\"overloaded\""]);
    assert!(failures >= 1.0, "nobody was told");

    let began = Instant::now();
    drop(held);
    while wire::ask(inbound, "GET /small HTTP/1.1\r\nhost: app.shop\r\nconnection: close\r\n\r\n")
        .is_none_or(|answer| answer.status() != 200)
    {
        assert!(began.elapsed() < PATIENCE, "it never served again\n{}", sidecar.log());
        thread::sleep(Duration::from_millis(20));
    }
    println!("row 25: served again after {:?}", began.elapsed());
    sidecar.wait_metric("outrigger_overload_measures", &[], |active| active == 0.0);
    assert_eq!(cgroup.kills(), 0);
}

#[test]
fn row_25_requests_are_refused_in_words_and_taken_again() {
    // A shortage that nobody can tell from a broken endpoint is looked for in the wrong place.
    let (endpoint, heard) = says("hello");
    // Less than any process has: short from the start.
    let stage = Stage::new();
    let few = ["--set", "overload.memory_bytes=1000000", "--set", "overload.stop_percent=0"];
    let (sidecar, inbound) = stage.server(endpoint, "http", &few);
    let answer = wire::ask(inbound, "GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
    assert_eq!((answer.status(), answer.field("x-outrigger-error")), (503, Some("overloaded")));
    assert_eq!(answer.field("connection"), Some("close"));
    let large = format!("GET / HTTP/1.1\r\nhost: app.shop\r\nx: {}", "x".repeat(5000));
    let answer = wire::ask(inbound, large).unwrap();
    assert_eq!((answer.status(), answer.field("x-outrigger-error")), (503, Some("overloaded")));
    assert!(heard.lock().is_empty());
    assert_eq!(sidecar.metric("outrigger_overload_measures", &["refuse_requests"]), 1.0);
    sidecar.wait_metric("outrigger_failures_total", &["overloaded", "inbound"], |failures| failures == 2.0);
    sidecar.wait_log("the flag", |log| log.matches("\"response_flags\":\"OM\"").count() == 2);
    assert!(sidecar.admin("/ready").starts_with("HTTP/1.1 200"), "the operator is served all the same");
    drop(sidecar);

    // Off is off.
    let off = [
        "--set",
        "overload.memory_bytes=1000000",
        "--set",
        "overload.stop_percent=0",
        "--set",
        "overload.shed_percent=0",
    ];
    let (_sidecar, inbound) = stage.server(endpoint, "http", &off);
    let answer = wire::ask(inbound, "GET / HTTP/1.1\r\nhost: app.shop\r\n\r\n").unwrap();
    assert_eq!(answer.status(), 200);
}
