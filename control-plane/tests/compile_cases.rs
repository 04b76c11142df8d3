//! YAML in, resources out: every folder of `cases/`. A new case needs no Rust.
//!
//! `input/*.yaml` and, if there are registered workloads, `workloads.yaml` give `expected/{resources,nodes,status,problems}.json`.

#![allow(clippy::unwrap_used)]

mod harness;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use outrigger_control_plane::{
    api::Object,
    compile::{self, Compiled},
    model::{Inputs, Mesh, MeshSettings, RegisteredWorkload},
};
use serde_json::Value;

fn build(objects: &[Arc<Object>], workloads: &[RegisteredWorkload]) -> (Mesh, Vec<String>) {
    let settings = MeshSettings::default();
    let virtual_addresses = harness::addresses(objects, &settings);
    let (mesh, problems) =
        Mesh::build(Inputs { objects, workloads, virtual_addresses: &virtual_addresses, settings: &settings });
    (mesh, problems.iter().map(ToString::to_string).collect())
}

fn compile(mesh: &Mesh) -> Compiled {
    compile::compile(mesh, &[Bytes::from_static(b"-----BEGIN CERTIFICATE-----")])
}

#[test]
fn every_case_gives_the_expected_resources() {
    // What a user's YAML means to proxies must not change by accident.
    let cases = harness::entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases"));
    assert!(cases.len() >= 8, "cases are missing");
    for case in cases {
        let (mut objects, read_problems) = harness::read_objects(&case.join("input"));
        let mut workloads = harness::read_workloads(&case.join("workloads.yaml"));
        let (mesh, problems) = build(&objects, &workloads);
        let compiled = compile(&mesh);
        let mut resources: BTreeMap<String, Value> = BTreeMap::new();
        for resource in compiled.iter() {
            let name = format!("{:?} {}", resource.kind, resource.name);
            assert!(resources.insert(name, harness::show(resource)).is_none());
            assert_eq!(compiled.get(resource.kind, &resource.name), Some(resource));
            for alias in &resource.aliases {
                assert_eq!(compiled.get(resource.kind, alias), Some(resource), "{alias}");
            }
        }
        let nodes: BTreeMap<String, Value> = workloads
            .iter()
            .map(|workload| (workload.uid.clone(), harness::show(&compile::node(&mesh, workload))))
            .collect();
        let lines = |problems: Vec<String>| -> Vec<Vec<String>> {
            problems.iter().map(|problem| problem.lines().map(str::to_owned).collect()).collect()
        };
        let all = read_problems.iter().map(ToString::to_string).chain(problems.clone()).collect();
        harness::compare(&case.join("expected/resources.json"), &pretty(&resources));
        harness::compare(&case.join("expected/nodes.json"), &pretty(&nodes));
        harness::compare(&case.join("expected/status.json"), &pretty(&compile::status(&mesh)));
        harness::compare(&case.join("expected/problems.json"), &pretty(&lines(all)));

        // The order in which objects and workloads arrive never decides anything.
        for turn in 0..objects.len().min(7) {
            objects.reverse();
            objects.rotate_left(turn);
            workloads.reverse();
            let (again, problems_again) = build(&objects, &workloads);
            assert!(compile(&again) == compiled, "{}: depends on the order of objects", case.display());
            assert_eq!(problems_again, problems);
            assert_eq!(compile::status(&again), compile::status(&mesh));
        }
    }
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}
