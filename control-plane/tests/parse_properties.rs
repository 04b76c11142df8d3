//! Whatever text comes in: nothing panics, and the same objects always mean the same.

#![allow(clippy::unwrap_used)]

mod harness;

use std::{
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};

use outrigger_control_plane::{
    api::{self, Location, Object},
    compile,
    model::{Inputs, Mesh, MeshSettings},
};
use proptest::prelude::*;

/// Every YAML text that the other tests use.
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

/// All their objects; of those with one name the first.
static OBJECTS: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let texts = TEXTS.iter().enumerate();
    let mut objects: Vec<Object> =
        texts.flat_map(|(index, text)| api::parse(&format!("{index}.yaml"), text, "default").0).collect();
    let mut seen = std::collections::BTreeSet::new();
    objects.retain(|object| seen.insert(object.key()));
    objects
});

fn build_all(objects: Vec<Object>) -> (compile::Compiled, Vec<String>) {
    let objects: Vec<Arc<Object>> = objects.into_iter().map(Arc::new).collect();
    let settings = MeshSettings::default();
    let virtual_addresses = harness::addresses(&objects, &settings);
    let inputs =
        Inputs { objects: &objects, workloads: &[], virtual_addresses: &virtual_addresses, settings: &settings };
    let (mesh, problems) = Mesh::build(inputs);
    compile::status(&mesh);
    (compile::compile(&mesh, &[]), problems.iter().map(ToString::to_string).collect())
}

fn shift(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    const WORDS: &[&str] =
        &["kind", "apiVersion", "Service", "v1", "metadata", "name", "spec", "ports", "port", "hosts", "a"];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        prop::sample::select(WORDS).prop_map(Into::into),
        ".{0,8}".prop_map(serde_json::Value::String),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::Array),
            prop::collection::btree_map(prop::sample::select(WORDS), inner, 0..6).prop_map(|fields| {
                fields
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A file that cannot be read must be refused with words, never end the control plane.
    #[test]
    fn any_text_is_survived(text in "(---\n|[a-z]+: |- |\\[|\\{|\"|'|&a|\\*a|\\||>|%|\t|\r\n|\n|.){0,60}") {
        let (objects, _) = api::parse("any.yaml", &text, "default");
        build_all(objects);
    }

    /// One wrong byte in a real file, wherever it is.
    #[test]
    fn damaged_files_are_survived(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), cut in 0_usize..12, insert in ".{0,3}") {
        let text = which.get(&TEXTS);
        let from = shift(text, at.index(text.len() + 1));
        let to = shift(text, from + cut);
        let damaged = format!("{}{insert}{}", &text[..from], &text[to.max(from)..]);
        let (objects, problems) = api::parse("damaged.yaml", &damaged, "default");
        let lines = u32::try_from(damaged.lines().count()).unwrap();
        for location in problems.iter().filter_map(|problem| problem.location.as_ref()) {
            prop_assert!(location.line <= lines + 1, "{location} of {lines}");
        }
        build_all(objects);
    }

    /// What the store gives back is checked like anything else.
    #[test]
    fn any_stored_value_is_survived(value in json(), spec in json(), kind in prop::sample::select(vec![
        ("v1", "Service"), ("discovery.k8s.io/v1", "EndpointSlice"), ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("gateway.networking.k8s.io/v1alpha2", "TCPRoute"), ("networking.istio.io/v1", "DestinationRule"),
        ("networking.istio.io/v1", "ServiceEntry"), ("networking.istio.io/v1", "WorkloadEntry"),
        ("security.istio.io/v1", "PeerAuthentication"), ("outrigger.mesh/v1alpha1", "CircuitBreaker"),
    ])) {
        let location = Location { file: "".into(), line: 0, column: 0 };
        if let Err(problems) = api::from_json(&value, location.clone()) {
            prop_assert!(!problems.is_empty());
        }
        let object = serde_json::json!({"apiVersion": kind.0, "kind": kind.1, "metadata": {"name": "a"}, "spec": spec});
        if let Ok(object) = api::from_json(&object, location) {
            build_all(vec![object]);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Objects arrive in any order after a restart: nothing may depend on it.
    #[test]
    fn the_order_of_objects_does_not_matter(seed in any::<u64>()) {
        let mut objects = OBJECTS.clone();
        let expected = build_all(objects.clone());
        let mut state = seed | 1;
        for index in (1..objects.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            objects.swap(index, usize::try_from(state >> 33).unwrap() % (index + 1));
        }
        prop_assert!(build_all(objects) == expected);
    }
}

#[test]
fn deep_nesting_is_refused() {
    // A few kilobytes of brackets must not use up the stack.
    for text in ["[".repeat(50_000), "{a: ".repeat(20_000), "- ".repeat(20_000)] {
        let (objects, problems) = api::parse("deep.yaml", &text, "default");
        assert!(objects.is_empty());
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].code, "ORG0101");
    }
}

#[test]
fn many_documents_are_read() {
    // A whole cluster exported to one file is larger than what YAML readers allow by default.
    let text: String = (0..3000)
        .map(|index| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{index}}}\nspec: {{ports: [{{port: 80}}]}}\n"
            )
        })
        .collect();
    let (objects, problems) = api::parse("many.yaml", &text, "default");
    assert_eq!((objects.len(), problems.len()), (3000, 0));
    assert_eq!(objects[2999].location.line, 2999 * 5 + 2);
}
