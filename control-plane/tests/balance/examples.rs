//! The documents of docs/balancing.md.

use std::{path::Path, process::Command};

#[test]
fn every_example_of_the_page_is_accepted_without_a_word() {
    // The first thing that a new user does is to run them.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/balancing");
    let mut others = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "mesh.yaml" {
            others.push(name);
        }
    }
    assert!(others.len() >= 3, "{others:?}");
    for name in others {
        let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["analyze", "mesh.yaml", &name])
            .current_dir(&folder)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("ORG0"), "{name}: {said}");
    }
}
