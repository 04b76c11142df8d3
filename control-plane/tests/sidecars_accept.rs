//! Whatever this control plane compiles, a sidecar of the same version takes: users must hear of mistakes from us, not from a refusal.

#![allow(clippy::unwrap_used)]

mod harness;

use std::{fs, path::Path, sync::Arc, sync::LazyLock};

use outrigger_control_plane::{
    api::{self, Object},
    compile,
    model::{Inputs, Mesh, MeshSettings, RegisteredWorkload},
};
use outrigger_proxy::config::decode::decode;
use proptest::prelude::*;

/// What sidecars would refuse.
fn refused(objects: &[Arc<Object>], workloads: &[RegisteredWorkload]) -> Vec<String> {
    let settings = MeshSettings::default();
    let virtual_addresses = harness::addresses(objects, &settings);
    let (mesh, _) =
        Mesh::build(Inputs { objects, workloads, virtual_addresses: &virtual_addresses, settings: &settings });
    // The trust bundle holds the roots as they were given; there are none here.
    let compiled = compile::compile(&mesh, &[]);
    let nodes = workloads.iter().map(|workload| Arc::new(compile::node(&mesh, workload)));
    let all = compiled.iter().filter(|one| one.kind != outrigger_proto::kind::Kind::TrustBundle).cloned().chain(nodes);
    all.filter_map(|one| decode(one.kind, &one.name, &one.bytes).err().map(|error| format!("{:?} {error:?}", one.kind)))
        .collect()
}

#[test]
fn every_case_is_accepted() {
    // A refused resource leaves the mesh on its last good state without the user knowing why.
    for case in harness::entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")) {
        let (objects, _) = harness::read_objects(&case.join("input"));
        let workloads = harness::read_workloads(&case.join("workloads.yaml"));
        assert_eq!(refused(&objects, &workloads), Vec::<String>::new(), "{}", case.display());
    }
}

static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let inputs = harness::entries(&tests.join("cases")).into_iter().map(|case| case.join("input"));
    let folders = inputs.chain(["problems/written", "problems/together"].map(|name| tests.join(name)));
    let files = folders.flat_map(|folder| harness::entries(&folder));
    files
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A slip of the hand either is refused when it is read, or compiles to something sidecars take.
    #[test]
    fn what_passes_our_checks_passes_theirs(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..4, "[ -~]{0,3}"), 1..6),
    ) {
        let mut text = which.get(&TEXTS).clone();
        for (at, cut, insert) in changes {
            let mut from = at.index(text.len() + 1);
            while !text.is_char_boundary(from) {
                from -= 1;
            }
            let mut to = (from + cut).min(text.len());
            while !text.is_char_boundary(to) {
                to += 1;
            }
            text.replace_range(from..to, &insert);
        }
        let (objects, _) = api::parse("changed.yaml", &text, "default");
        let objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
        prop_assert_eq!(refused(&objects, &[]), Vec::<String>::new(), "{}", text);
    }
}
