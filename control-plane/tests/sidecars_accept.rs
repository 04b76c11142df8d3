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

/// Whether a pattern is refused where users write it: for the path, a header and a query parameter.
fn is_refused(pattern: &str) -> bool {
    let value = serde_json::to_string(pattern).unwrap();
    let text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: echo}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: echo}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: echo}}]
  rules:
  - matches:
    - path: {{type: RegularExpression, value: {value}}}
    - headers: [{{type: RegularExpression, name: x-test, value: {value}}}]
    - queryParams: [{{type: RegularExpression, name: test, value: {value}}}]
    backendRefs: [{{name: echo, port: 80}}]
"
    );
    let (objects, problems) = api::parse("pattern.yaml", &text, "default");
    let bad = problems.iter().filter(|problem| problem.code == "ORG0114").count();
    assert!(bad == problems.len() && (bad == 0 || bad == 3), "{pattern:?}: {problems:#?}");
    let objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
    assert_eq!(refused(&objects, &[]), Vec::<String>::new(), "{pattern:?}");
    bad > 0
}

#[test]
fn a_pattern_is_good_for_both_or_for_neither() {
    // Limits that differ by a little are found by the one user whose pattern lies between them, in production.
    for good in ["/v[12]/.*", "(?x) a # the letter", "", "^a$", r"\w{10}", &"a".repeat(4096), "[0-9]{1,3}(a|b)?"] {
        assert!(!is_refused(good), "{good:?}");
    }
    for bad in ["(", "a)|(b", "(?<=a)b", r"(a)\1", r"\w{1000}", "(?:a{1000}){1000}", &"a".repeat(4097)] {
        assert!(is_refused(bad), "{bad:?}");
    }
    // Around the largest size that compiles, where two ways of counting would disagree.
    let verdicts: Vec<bool> = (1..400).map(|times| is_refused(&format!(r"\w{{{times}}}"))).collect();
    assert!(verdicts.is_sorted() && verdicts.contains(&true) && verdicts.contains(&false), "no border in {verdicts:?}");
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

    /// Patterns are text from users; whatever passes our check must compile in every sidecar.
    #[test]
    fn any_pattern_is_good_for_both_or_for_neither(pattern in r"[(){}\[\]|*+?\\^$.a-c0-9#x: <=!P-]{0,30}") {
        is_refused(&pattern);
    }

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
