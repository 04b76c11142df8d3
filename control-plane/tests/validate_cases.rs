//! Bad input in, exact words out.
//!
//! `problems/written/*.yaml`: every document is wrong in itself. `problems/together/*.yaml`: the documents of a file are wrong
//! together. The `.txt` beside each file holds the expected text.

#![allow(clippy::unwrap_used)]

mod harness;

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use outrigger_control_plane::{
    api,
    model::{Inputs, Mesh, MeshSettings},
    validate::codes::CODES,
};

fn folder(name: &str) -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/problems").join(name);
    harness::entries(&folder)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect()
}

#[test]
fn every_document_that_is_wrong_in_itself_is_told_so() {
    // Each of these would otherwise be ignored silently or do something else than it says.
    let mut documents = 0;
    for path in folder("written") {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let (_, problems) = api::parse(&file, &text, "default");
        let mut shown = String::new();
        for problem in &problems {
            shown.push_str(&format!("{problem}\n"));
        }
        harness::compare(&path.with_extension("txt"), &shown);
        let mut first = 1;
        for document in text.split("---\n").skip(1) {
            let last = first + u32::try_from(document.lines().count()).unwrap();
            let told = |problem: &api::Problem| {
                problem.location.as_ref().is_some_and(|location| (first..=last).contains(&location.line))
            };
            assert!(problems.iter().any(told), "{file}: nothing is said of lines {first} to {last}:\n{document}");
            first = last + 1;
            documents += 1;
        }
    }
    assert!(documents >= 60, "only {documents} bad documents");
}

#[test]
fn what_is_wrong_together_is_told() {
    // References and conflicts show only when all objects are seen at once.
    for path in folder("together") {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let (objects, mut problems) = api::parse(&file, &text, "default");
        let objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
        let settings = MeshSettings::default();
        let virtual_addresses = BTreeMap::new();
        let inputs =
            Inputs { objects: &objects, workloads: &[], virtual_addresses: &virtual_addresses, settings: &settings };
        problems.extend(Mesh::build(inputs).1);
        assert!(!problems.is_empty(), "{file}");
        let shown: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        harness::compare(&path.with_extension("txt"), &shown);
    }
}

#[test]
fn every_code_is_shown_by_an_example_and_is_unique() {
    // A code that no example produces is either dead or untested.
    if harness::rewrite() {
        return;
    }
    let mut texts = String::new();
    for name in ["written", "together"] {
        for path in folder(name) {
            texts.push_str(&fs::read_to_string(path.with_extension("txt")).unwrap_or_default());
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for code in CODES {
        assert!(seen.insert(code.code), "{} is used twice", code.code);
        assert!(texts.contains(&format!("[{}]", code.code)), "no example shows {} ({})", code.code, code.meaning);
    }
    assert!(api::reference().lines().count() == CODES.len() + 2);
}

#[test]
fn stored_objects_are_read_as_they_were_written() {
    // The store keeps JSON: an object must mean the same after a restart.
    for path in harness::entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")) {
        for object in harness::read_objects(&path.join("input")).0 {
            let again = api::from_json(&object.json, object.location.clone()).unwrap();
            assert_eq!(again.json, object.json);
            assert_eq!(again.key(), object.key());
            assert_eq!(without_places(&format!("{:?}", again.spec)), without_places(&format!("{:?}", object.spec)));
        }
    }
}

/// Stored objects have no lines.
fn without_places(debug: &str) -> String {
    let mut text = String::new();
    for (index, part) in debug.split(", line: ").enumerate() {
        let rest = if index == 0 { part } else { part.split_once('}').map_or("", |(_, rest)| rest) };
        text.push_str(rest);
    }
    text
}
