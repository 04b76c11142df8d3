//! The bench itself, with the chains that need nobody else's program: no proxy and the floor.
//!
//! That load is made, counted and written down rightly; never how fast.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_outrigger-bench");

const SCENARIOS: [(&str, &str); 5] = [
    (
        "calls",
        "title = 'x'\nhops = 2\nclient = 'grpc'\nrequest_bytes = 9\nresponse_bytes = 5000\n\
         [load]\nkind = 'open'\nconnections = 4\nrequests_per_second = 200",
    ),
    (
        "heads",
        "title = 'x'\nhops = 2\nresponse_bytes = 64\n[load]\nkind = 'open'\nconnections = 4\nrequests_per_second = 200",
    ),
    (
        "messages",
        "title = 'x'\nhops = 2\nclient = 'grpc-stream'\nrequest_bytes = 9\n\
         [load]\nkind = 'closed'\nconnections = 2\nstreams = 3",
    ),
    ("proofs", "title = 'x'\nclient_tls = true\nresponse_bytes = 64\n[load]\nkind = 'handshake'\nconnections = 2"),
    ("uploads", "title = 'x'\nhops = 2\nclient = 'tcp'\n[load]\nkind = 'bulk'\nconnections = 2\ndirection = 'upload'"),
];

fn run(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(BENCH).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn figure(result: &Value, scenario: &str, chain: &str, figure: &str) -> f64 {
    let of = |items: &Value, key: &str, name: &str| {
        items.as_array().unwrap().iter().find(|item| item[key] == name).unwrap_or(&Value::Null).clone()
    };
    let measured = of(&of(&result["scenarios"], "scenario", scenario)["chains"], "chain", chain);
    measured["figures"][figure][0].as_f64().unwrap_or_else(|| panic!("{scenario}: {chain} has no {figure}: {result}"))
}

#[test]
fn loads_are_made_counted_and_written_down() {
    // A generator that hangs, or counts what did not happen, makes every published figure worthless.
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: two cores are needed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (name, text) in SCENARIOS {
        fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
    }
    let (is_done, table, errors) = run(&[
        "run",
        "--scenario-dir",
        &path(""),
        "--chain",
        "no-proxy",
        "--chain",
        "floor",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--no-syscalls",
        "--json",
        &path("result.json"),
        "--html",
        &path("report.html"),
    ]);
    assert!(is_done, "{table}{errors}");
    assert!(!table.contains("is not measured") && !table.contains("failed"), "{table}");
    let result: Value = serde_json::from_str(&fs::read_to_string(path("result.json")).unwrap()).unwrap();
    for scenario in ["calls", "heads"] {
        for chain in ["no proxy", "floor"] {
            // Each connection asks by its schedule: as many as it says, and none too many.
            let rate = figure(&result, scenario, chain, "rate");
            assert!(rate > 0.0 && rate < 201.0, "{scenario}, {chain}: {rate}");
            assert!(figure(&result, scenario, chain, "p50") <= figure(&result, scenario, chain, "p999"));
        }
    }
    for (scenario, _) in SCENARIOS {
        for name in ["rate", "cpu", "idle-memory", "peak-memory"] {
            assert!(figure(&result, scenario, "floor", name) > 0.0, "{scenario}: {name}");
        }
    }
    assert!(Path::new(&path("report.html")).metadata().unwrap().len() > 1000);

    let result = path("result.json");
    let (is_done, compared, errors) = run(&["compare", &result, &result]);
    assert!(is_done && compared.contains("heads: x") && !compared.contains("worse"), "{compared}{errors}");
    let (is_done, shown, errors) = run(&["show", &result]);
    assert_eq!((is_done, shown), (true, table), "{errors}");
}

#[test]
fn wrong_use_says_what_there_is() {
    // Who mistypes a name would look for it in the source.
    let (is_done, _, errors) = run(&["run", "three-hops"]);
    assert!(!is_done && errors.contains("three-hops") && errors.contains("two-hops"), "{errors}");
    let (is_done, _, errors) = run(&["run", "handshakes", "--chain", "apache"]);
    assert!(!is_done && errors.contains("apache") && errors.contains("floor"), "{errors}");
    let (is_done, _, errors) = run(&["show", "/dev/null"]);
    assert!(!is_done && errors.contains("is no result"), "{errors}");
}
