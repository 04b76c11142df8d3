//! The pages of `docs/reference` that come from the sidecar: printed anew and compared.
//!
//! `OUTRIGGER_REWRITE_DOCS=1 cargo test --test references` writes them; a test without it says which page is stale.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command};

use outrigger_proxy::{
    arguments,
    failure::Reason,
    http::reply,
    settings::{InboundListener, LocalListener, Settings, TransparentListeners},
    telemetry::Telemetry,
};

/// Settings that nothing enforces yet. The page says so, until the code does it and the line here goes.
const NOT_ENFORCED: &[&str] = &[];

/// Compares a page with the file, or writes the file.
fn page(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(name);
    if std::env::var_os("OUTRIGGER_REWRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        found == text,
        "docs/reference/{name} is stale from line {} (fix: OUTRIGGER_REWRITE_DOCS=1 cargo test --test references)",
        differs.map_or_else(|| found.lines().count().min(text.lines().count()) + 1, |line| line + 1)
    );
}

#[test]
fn metrics_page_is_what_the_code_exports() {
    // Somebody builds a dashboard on a metric that is not there.
    let text = format!(
        "# Metrics of a sidecar\n\nPrinted by the code; do not edit. Read them at `/metrics` or `/stats/prometheus` of the admin port and of the \
         readiness port.\nNames, labels and buckets that start with `istio_` are Istio's. Metrics of the control plane: \
         [control-plane-metrics.md](control-plane-metrics.md).\n\n{}",
        Telemetry::reference()
    );
    page("metrics.md", &text);
}

#[test]
fn errors_page_holds_every_word() {
    // Somebody looks up the word in a failed response and does not find it.
    let mut text = String::from(
        "# Error words\n\nPrinted by the code; do not edit. When a sidecar answers a request itself, the word stands in the response \
         field `x-outrigger-error`,\nin the body, in the access log and in the metric `outrigger_failures_total`. A gRPC call gets \
         status 200 with the code below in `grpc-status`.\n`bad_request` may carry another status where HTTP names one for the broken \
         rule (408, 414, 417, 431); so does `downstream_body` when a body comes too slowly (408).\n\"Upstream's fault\" is what ejection and the breaker count.\n\n\
         | word | status | gRPC code | Envoy's flag | upstream's fault | meaning |\n|---|---|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} |",
            reason.word(),
            reply::status(reason).as_u16(),
            reply::grpc_status(reason),
            reason.flag(),
            if reason.is_upstream_fault() { "yes" } else { "no" },
            reason.meaning()
        )
        .unwrap();
    }
    page("errors.md", &text);
}

/// Doc comments of the fields of `settings.rs`: by struct, then (field, type, text).
fn documented() -> BTreeMap<String, Vec<(String, String, String)>> {
    let mut structs: BTreeMap<String, Vec<(String, String, String)>> = BTreeMap::new();
    let (mut inside, mut doc) = (None, String::new());
    for line in include_str!("../src/settings.rs").lines() {
        let trimmed = line.trim();
        if let Some(name) = line.strip_prefix("pub struct ") {
            inside = Some(name.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned());
            doc.clear();
        } else if line == "}" {
            inside = None;
        } else if let Some(text) = trimmed.strip_prefix("///") {
            if !doc.is_empty() {
                doc.push(' ');
            }
            doc.push_str(text.trim());
        } else if let (Some(name), Some((field, kind))) =
            (&inside, trimmed.strip_prefix("pub ").and_then(|field| field.split_once(": ")))
        {
            let entry = (field.to_owned(), kind.trim_end_matches(',').to_owned(), std::mem::take(&mut doc));
            structs.entry(name.clone()).or_default().push(entry);
        }
    }
    structs
}

fn rows(
    text: &mut String,
    structs: &BTreeMap<String, Vec<(String, String, String)>>,
    of: &str,
    prefix: &str,
    values: &serde_json::Value,
) {
    for (field, kind, doc) in &structs[of] {
        let path = format!("{prefix}{field}");
        let inner = kind.trim_start_matches("Option<").trim_start_matches("Vec<").trim_end_matches('>');
        if structs.contains_key(inner) {
            let many = if kind.starts_with("Vec<") { "[]" } else { "" };
            let inside = match &values[field] {
                serde_json::Value::Array(items) => items.first().cloned().unwrap_or_default(),
                other => other.clone(),
            };
            if !doc.is_empty() {
                writeln!(text, "| `{path}{many}` | | {doc} |").unwrap();
            }
            rows(text, structs, inner, &format!("{path}{many}."), &inside);
            continue;
        }
        let value = match &values[field] {
            // Fields that only the command line may set are not in the tree.
            serde_json::Value::Null if field == "token" => continue,
            serde_json::Value::Null => "none".to_owned(),
            serde_json::Value::String(value) if value.is_empty() => "\"\"".to_owned(),
            serde_json::Value::String(value) => value.clone(),
            other => other.to_string(),
        };
        let unit = if field.ends_with("_bytes") { " bytes" } else { "" };
        assert!(!doc.is_empty(), "{path} has no description");
        let note = if NOT_ENFORCED.contains(&path.as_str()) { " **Not enforced yet.**" } else { "" };
        writeln!(text, "| `{path}` | {value}{unit} | {doc}{note} |").unwrap();
    }
}

#[test]
fn settings_page_holds_every_setting_with_its_default() {
    // An operator raises a limit by a name or from a value that the sidecar does not have.
    let mut settings: Settings = arguments::defaults();
    settings.control_plane =
        Some(outrigger_proxy::settings::ControlPlane { address: String::new(), token: None, root_file: None });
    settings.listeners.transparent = Some(TransparentListeners::default());
    let nowhere = "127.0.0.1:0".parse().unwrap();
    settings.listeners.inbound =
        vec![InboundListener { listen: nowhere, application: nowhere, target_port: 0, port_name: String::new() }];
    settings.listeners.local = vec![LocalListener { listen: nowhere, host: String::new(), port: 0 }];
    let values = serde_json::to_value(&settings).unwrap();
    for path in NOT_ENFORCED {
        let value = path.split('.').fold(&values, |value, name| &value[name]);
        assert!(!value.is_null(), "{path} is no setting");
    }
    let mut text = String::from(
        "# Settings of a sidecar\n\nPrinted from the code and its comments; do not edit. A setting is given in a file \
         (`--config FILE`, YAML; JSON for `outrigger-proxy`), by path (`--set limits.connections=20000`),\nor by its own \
         flag ([cli.md](cli.md)). Flags win over the file, `--set` over flags. `outrigger proxy --print-settings` with the same flags prints what \
         would be used.\nDurations are a number and a unit (`250ms`, `10s`, `1h30m`). Policy of users (timeouts of routes, connection \
         pools, breakers) is not here; it comes from the mesh.\n\n| setting | default | meaning |\n|---|---|---|\n",
    );
    rows(&mut text, &documented(), "Settings", "", &values);
    page("settings.md", &text);
}

#[test]
fn lean_command_line_page_is_its_help() {
    // Somebody writes a container's arguments from a page that lists other flags.
    let mut text = String::from(
        "# Command line of `outrigger-proxy`\n\nPrinted by the program; do not edit. The lean binary for containers: \
         the same sidecar as [`outrigger proxy`](cli.md), without static mode.\nExit codes: 0 ok, 1 failed, 64 usage or bad input.\n",
    );
    for words in [
        &["--help"][..],
        &["run", "--help"],
        &["intercept", "--help"],
        &["intercept", "apply", "--help"],
        &["intercept", "check", "--help"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_outrigger-proxy")).args(words).env_clear().output().unwrap();
        assert!(output.status.success(), "{words:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let name = words.split_last().unwrap().1.join(" ");
        write!(text, "\n## `{}`\n\n```text\n{}\n```\n", format!("outrigger-proxy {name}").trim_end(), help.join("\n"))
            .unwrap();
    }
    page("proxy-cli.md", &text);
}
