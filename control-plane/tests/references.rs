//! The pages of `docs` that come from the control plane and the command line: printed anew and compared. And every relative link
//! of every page, and the tests that ARCHITECTURE.md and the page of hostile cases name.
//!
//! `OUTRIGGER_REWRITE_DOCS=1 cargo test --test references` writes the pages; a test without it says which one is stale.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use clap::CommandFactory;
use outrigger_control_plane::{
    api::{self, FieldUse},
    cli::Cli,
    telemetry::Metrics,
    validate::Severity,
};
use serde_json::Value;

const HOW: &str = "fix: OUTRIGGER_REWRITE_DOCS=1 cargo test --test references";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Compares a page with the file, or writes the file.
fn page(name: &str, text: &str) {
    let path = root().join("docs").join(name);
    if std::env::var_os("OUTRIGGER_REWRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or_else(|| found.lines().count().min(text.lines().count())) + 1;
    assert!(found == text, "docs/{name} is stale from line {line} ({HOW})");
}

#[test]
fn problem_codes_page_holds_every_code() {
    // Somebody looks up the code of a message and does not find it.
    let text = format!(
        "# Problem codes\n\nPrinted by the code; do not edit. `outrigger analyze`, `apply` and the status of objects use \
         them. An error refuses the object; a warning accepts it and says what has no effect; an info is worth knowing.\n\
         01xx: how it is written. 02xx: not supported. 03xx: references. 04xx: what it means together with the rest of the \
         mesh.\n\n{}",
        api::reference()
    );
    page("reference/problems.md", &text);
}

#[test]
fn control_plane_metrics_page_is_what_it_exports() {
    // Somebody builds an alert on a metric that is not there.
    let mut text = String::from(
        "# Metrics of the control plane\n\nPrinted by the code; do not edit. Read them at `/metrics` of the monitoring \
         port (15014). `pilot_*`, `galley_*` and `istio_build` carry Istio's names where they mean the same.\nMetrics of a \
         sidecar: [metrics.md](metrics.md).\n\n| metric | kind | meaning |\n|---|---|---|\n",
    );
    let rendered = Metrics::default().render();
    let mut help = BTreeMap::new();
    for line in rendered.lines() {
        if let Some((name, meaning)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            help.insert(name, meaning);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            let meaning = help.get(name).copied().unwrap_or("What Linux says of the process.");
            writeln!(text, "| `{name}` | {kind} | {meaning} |").unwrap();
        }
    }
    page("reference/control-plane-metrics.md", &text);
}

#[test]
fn command_line_page_is_its_help() {
    // Somebody copies a flag from the page that the program does not know.
    let mut text = String::from(
        "# Command line\n\nPrinted by the program; do not edit. Data goes to standard output, messages to standard error. \
         `NO_COLOR` turns colours off.\nExit codes: 0 ok, 1 failed, 64 usage, 65 bad input, 79 analysis found problems. The lean sidecar \
         binary has its own page: [proxy-cli.md](proxy-cli.md).\n",
    );
    let mut variables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut root = Cli::command().term_width(100);
    root.build();
    command(&mut text, &mut variables, &root, "outrigger");
    text.push_str("\n## Environment variables\n\n| variable | stands for |\n|---|---|\n");
    for (variable, flags) in variables {
        let flags: Vec<String> = flags.into_iter().collect();
        writeln!(text, "| `{variable}` | {} |", flags.join(", ")).unwrap();
    }
    for (variable, meaning) in [
        ("NO_COLOR", "any value: no colours"),
        ("XDG_STATE_HOME", "where the control plane's default folder lies (`$XDG_STATE_HOME/outrigger`)"),
        ("HOME", "the same without XDG_STATE_HOME (`~/.local/state/outrigger`)"),
        ("OUTRIGGER_TEST_LOGS", "tests only: folder that keeps the logs of processes in namespace tests"),
        ("OUTRIGGER_TEST_OUTAGE_SECONDS", "tests only: how long the control plane is away in the fault tests"),
        ("OUTRIGGER_REQUIRE_CGROUP", "tests only: the test in a memory cgroup must run instead of skipping itself"),
        ("OUTRIGGER_REQUIRE_NETNS", "tests only: network-namespace tests must run instead of skipping themselves"),
        ("OUTRIGGER_REWRITE_CASES", "tests only: expected files of the compile cases are written anew"),
        ("OUTRIGGER_REWRITE_DOCS", "tests only: the generated pages of `docs` are written anew"),
    ] {
        writeln!(text, "| `{variable}` | {meaning} |").unwrap();
    }
    page("reference/cli.md", &text);
}

fn command(text: &mut String, variables: &mut BTreeMap<String, BTreeSet<String>>, of: &clap::Command, name: &str) {
    for argument in of.get_arguments() {
        if let (Some(variable), Some(flag)) = (argument.get_env(), argument.get_long()) {
            let flags = variables.entry(variable.to_string_lossy().into_owned()).or_default();
            flags.insert(format!("`--{flag}`"));
        }
    }
    // The page must not depend on the environment of whoever prints it.
    let mut shown = of.clone().mut_args(|argument| argument.hide_env_values(true)).term_width(100).bin_name(name);
    let help = shown.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(text, "\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end()).unwrap();
    for inner in of.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
        command(text, variables, inner, &format!("{name} {}", inner.get_name()));
    }
}

#[test]
fn control_plane_settings_page_holds_every_setting() {
    // An operator plans with a limit that is another one.
    let mut text = String::from(
        "# Settings and limits of the control plane\n\nPrinted from the comments of the code; do not edit. What `serve` and \
         `up` take as flags stands in [cli.md](cli.md); the limits have no flag yet.\n",
    );
    let mut doc = String::new();
    for line in include_str!("../src/settings.rs").lines() {
        let trimmed = line.trim();
        if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            write!(text, "\n## {name}\n\n{}\n\n| setting | meaning |\n|---|---|\n", std::mem::take(&mut doc)).unwrap();
        } else if let Some(more) = trimmed.strip_prefix("///") {
            if !doc.is_empty() {
                doc.push(' ');
            }
            doc.push_str(more.trim());
        } else if let Some((field, _)) = trimmed.strip_prefix("pub ").and_then(|field| field.split_once(": ")) {
            if !field.contains('(') {
                assert!(!doc.is_empty(), "{field} has no description");
                writeln!(text, "| `{field}` | {doc} |").unwrap();
            }
            doc.clear();
        } else if trimmed.ends_with('{') {
            doc.clear();
        }
    }
    page("reference/control-plane-settings.md", &text);
}

/// Paths that are set in a document, as `field_uses` writes them.
fn set_paths(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                into.insert(below.clone());
                into.insert(format!("{path}[]"));
                set_paths(value, &below, into);
                // Objects whose keys are free.
                set_paths(value, &format!("{path}[]"), into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| set_paths(item, &format!("{path}[]"), into)),
        _ => {}
    }
}

#[test]
fn compatibility_page_says_what_the_readers_do() {
    // Somebody moves over from another mesh and trusts a field that does nothing here.
    let every = fs::read_to_string(root().join("docs/reference/every-field.yaml")).unwrap();
    let (objects, problems) = api::parse("every-field.yaml", &every, "default");
    for problem in &problems {
        let known = problem.severity == Severity::Info || problem.code == "ORG0401";
        assert!(known, "{problem}");
    }
    let mut set: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for object in &objects {
        set_paths(&object.json, "", set.entry(object.kind.clone()).or_default());
    }
    let mut fields = String::new();
    let mut missing = Vec::new();
    for (kind, uses) in api::field_uses(&every) {
        let mut rows = String::new();
        for (path, uses) in &uses {
            let general = ["apiVersion", "kind", "metadata", "spec", "status"];
            if general.contains(&path.split(['.', '[']).next().unwrap()) && !path.starts_with("spec.") {
                continue;
            }
            // Looked at only to say that it must not be there.
            if kind == "CircuitBreaker" && path == "spec.targetRefs[].namespace" {
                continue;
            }
            if uses.contains(&FieldUse::Read) && !set[&kind].contains(path) {
                missing.push(format!("{kind} {path}"));
            }
            let words: Vec<&str> = uses
                .iter()
                .map(|usage| match usage {
                    FieldUse::Read => "understood",
                    FieldUse::WithoutEffect => "no effect here",
                    FieldUse::NotSupported => "warning ORG0203, left out",
                    FieldUse::Refused => "error ORG0204, object refused",
                })
                .collect();
            writeln!(rows, "| `{}` | {} |", path.trim_start_matches("spec."), words.join("; ")).unwrap();
        }
        if !rows.is_empty() {
            write!(fields, "\n### {kind}\n\n| field | what becomes of it |\n|---|---|\n{rows}").unwrap();
        }
    }
    // Fields inside an object show only when some document has the object.
    assert!(missing.is_empty(), "docs/reference/every-field.yaml does not set: {missing:#?}");
    let path = root().join("docs/compatibility.md");
    let found = fs::read_to_string(&path).unwrap();
    let text = between(&found, "kinds", &api::kinds_reference());
    let text = between(&text, "fields", &fields);
    page("compatibility.md", &text);
}

/// The page with the text between two marks replaced.
fn between(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name}, printed by the code -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{begin}\n{}\n\n{end}{after}", text.trim())
}

fn pages(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" || name == "node_modules" {
            continue;
        }
        if path.is_dir() {
            pages(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "md") {
            into.push(path);
        }
    }
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return false;
        }
        !fenced
    })
}

#[test]
fn every_relative_link_leads_somewhere() {
    // A newcomer follows the README into nothing.
    let mut all = Vec::new();
    pages(&root(), &mut all);
    let mut broken = Vec::new();
    let mut links = 0;
    for page in &all {
        let text = fs::read_to_string(page).unwrap();
        for line in prose(&text) {
            for piece in line.split("](").skip(1) {
                let target = piece.split(')').next().unwrap();
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                links += 1;
                let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
                let path = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
                let leads = path.exists()
                    && (fragment.is_empty()
                        || prose(&fs::read_to_string(&path).unwrap_or_default())
                            .filter_map(|line| line.strip_prefix('#'))
                            .any(|heading| anchor(heading.trim_start_matches('#')) == fragment));
                if !leads {
                    broken.push(format!("{}: {target}", page.strip_prefix(root()).unwrap().display()));
                }
            }
        }
    }
    assert!(links > 20, "only {links} links were found");
    assert!(broken.is_empty(), "{broken:#?}");
}

fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// The functions behind a test attribute.
fn tests() -> BTreeSet<String> {
    let mut code = String::new();
    for folder in ["proxy/src", "proxy/tests", "control-plane/src", "control-plane/tests"] {
        sources(&root().join(folder), &mut code);
    }
    let mut found = BTreeSet::new();
    let mut marked = false;
    for line in code.lines().map(str::trim) {
        marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let name = line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        if let (true, Some(name)) = (marked, name) {
            found.insert(name.to_owned());
            marked = false;
        }
    }
    found
}

/// What a text names as tests: words of small letters with two underscores at least.
fn named_tests(text: &str) -> Vec<&str> {
    let is_test = |word: &str| {
        word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') && word.matches('_').count() >= 2
    };
    text.split('`').skip(1).step_by(2).filter(|word| is_test(word)).collect()
}

#[test]
fn every_invariant_names_tests_that_exist() {
    // A promise would be believed that nothing holds any more.
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("## Invariants").unwrap();
    let named = named_tests(section.split("\n## ").next().unwrap());
    assert!(named.len() > 20, "only {named:?}");
    let tests = tests();
    let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_hostile_case_has_its_test() {
    // A case would be believed to be covered whose test was removed, or never written.
    let page = fs::read_to_string(root().join("docs/reference/hostile-cases.md")).unwrap();
    let mut code = String::new();
    for folder in ["proxy/src", "proxy/tests", "control-plane/src", "control-plane/tests"] {
        sources(&root().join(folder), &mut code);
    }
    let exists = |name: &str| code.contains(&format!("fn {name}("));
    let ids = [('R', 20), ('S', 24), ('A', 20), ('M', 20), ('T', 12)];
    let mut wrong = Vec::new();
    for id in ids.into_iter().flat_map(|(letter, count)| (1..=count).map(move |number| format!("{letter}{number:02}")))
    {
        let prefix = format!("| {id} |");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with(&prefix)).collect();
        let [row] = rows[..] else {
            wrong.push(format!("{id} has {} rows", rows.len()));
            continue;
        };
        let held = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let tests: Vec<&str> = held.split('`').skip(1).step_by(2).filter(|word| !word.contains(['/', '.'])).collect();
        wrong.extend(tests.iter().filter(|name| !exists(name)).map(|name| format!("{id}: no test {name}")));
        let own = format!("{}_", id.to_lowercase());
        let written = code.contains(&format!("fn {own}")) || code.contains(&format!("_{own}"));
        if tests.iter().any(|name| name.contains(&own)) || held.contains("come") && !written {
            continue;
        }
        wrong.push(format!("{id}: neither a test with its id nor what it comes with: {held}"));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn m20_unsafe_code_is_where_it_is_said_to_be() {
    // The workspace denies it; a new place must be somebody's decision, here and beside the code.
    let known = ["proxy/src/accept/socket.rs", "proxy/src/host.rs"];
    let mut found = BTreeSet::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs")
                && fs::read_to_string(&path).unwrap().contains("allow(unsafe_code")
            {
                found.insert(path.strip_prefix(root()).unwrap().display().to_string());
            }
        }
    }
    found.remove("control-plane/tests/references.rs");
    assert_eq!(found, known.map(str::to_owned).into());
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"deny\""));
}

#[test]
fn every_answer_to_an_attack_has_its_test_and_its_setting() {
    // An operator would rely on a limit that is not there, or on a defence that nobody looks after.
    let text = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let (_, section) = text.split_once("## Attacks and answers").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let tests = tests();
    let mut wrong = Vec::new();
    for row in section.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, attack, answer, shown, _] = cells[..] else { panic!("not three cells: {row}") };
        if attack == "attack" {
            continue;
        }
        let named = named_tests(shown);
        if named.is_empty() {
            wrong.push(format!("{attack}: no test"));
        }
        wrong.extend(
            named.iter().filter(|name| !tests.contains(**name)).map(|name| format!("{attack}: no test {name}")),
        );
        let settings = fs::read_to_string(root().join("docs/reference/settings.md")).unwrap();
        let is_setting = |word: &&str| word.starts_with("limits.") || word.starts_with("timeouts.");
        for setting in answer.split('`').skip(1).step_by(2).filter(is_setting) {
            if !settings.contains(&format!("| `{setting}` |")) {
                wrong.push(format!("{attack}: no setting {setting}"));
            }
        }
    }
    assert!(section.lines().count() > 40, "only {section}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
