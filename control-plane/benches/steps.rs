//! What single steps of the control plane cost: putting a mesh together, compiling it, and finding out what a proxy is owed.
//!
//! `cargo bench -p outrigger-control-plane`. Numbers to look at, not to pass: changes are measured end to end by
//! `outrigger-bench run 'effect-*'`.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use bytes::Bytes;
use divan::{Bencher, black_box};
use outrigger_control_plane::{
    api::{self, Object},
    compile::{self, Resource},
    discovery::{
        Catalogue,
        subscription::{Subscription, View},
    },
    model::{Inputs, Mesh, MeshSettings},
};
use outrigger_proto::kind::{FEATURES, Kind};

fn main() {
    divan::main();
}

const SERVICES: [u32; 3] = [10, 100, 1000];

/// So many services, each with a route and one endpoint. `timeout` makes a change of the first.
fn objects(services: u32, timeout: u32) -> Vec<Arc<Object>> {
    let mut text = String::new();
    for number in 0..services {
        let seconds = if number == 0 { timeout } else { 1 };
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Service
metadata: {{name: s{number}, namespace: bench}}
spec:
  selector: {{app: s{number}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: s{number}, namespace: bench}}
spec: {{address: 10.0.{}.{}, labels: {{app: s{number}}}, serviceAccount: s{number}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: s{number}, namespace: bench}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: s{number}, port: 80}}]
  rules:
  - backendRefs: [{{name: s{number}, port: 80}}]
    timeouts: {{request: {seconds}s}}
",
            number / 250,
            number % 250 + 1,
        );
    }
    let (objects, problems) = api::parse("bench.yaml", &text, "bench");
    assert!(problems.is_empty(), "{problems:?}");
    objects.into_iter().map(Arc::new).collect()
}

fn mesh(objects: &[Arc<Object>]) -> Mesh {
    let (addresses, settings) = (BTreeMap::new(), MeshSettings::default());
    Mesh::build(Inputs { objects, workloads: &[], virtual_addresses: &addresses, settings: &settings }).0
}

/// References resolved, conflicts settled.
#[divan::bench(args = SERVICES)]
fn build_mesh(bencher: Bencher<'_, '_>, services: u32) {
    let objects = objects(services, 1);
    bencher.bench_local(|| mesh(black_box(&objects)));
}

/// Named, versioned, encoded resources of everything.
#[divan::bench(args = SERVICES)]
fn compile_mesh(bencher: Bencher<'_, '_>, services: u32) {
    let mesh = mesh(&objects(services, 1));
    bencher.bench_local(|| compile::compile(black_box(&mesh), &[]));
}

fn resources(objects: &[Arc<Object>]) -> Vec<Arc<Resource>> {
    let roots: [Bytes; 0] = [];
    compile::compile(&mesh(objects), &roots).iter().cloned().collect()
}

/// The next picture, when one route of so many changed.
#[divan::bench(args = SERVICES)]
fn next_catalogue(bencher: Bencher<'_, '_>, services: u32) {
    let before = Catalogue::next(&Catalogue::default(), resources(&objects(services, 1)).into_iter(), 1, 1);
    let after = resources(&objects(services, 2));
    bencher.bench_local(|| Catalogue::next(black_box(&before), after.iter().cloned(), 2, 1));
}

/// What one proxy is owed that follows so many routing tables, when one of them changed.
#[divan::bench(args = SERVICES)]
fn subscription_diff(bencher: Bencher<'_, '_>, services: u32) {
    let before = Catalogue::next(&Catalogue::default(), resources(&objects(services, 1)).into_iter(), 1, 1);
    let after = Catalogue::next(&before, resources(&objects(services, 2)).into_iter(), 2, 1);
    let features: Vec<String> = FEATURES.iter().map(ToString::to_string).collect();
    let view = |catalogue| View { catalogue, kind: Kind::RouteTable, node: "bench/me", features: &features };
    let names: Vec<String> = before.of_kind(Kind::RouteTable).map(|resource| resource.name.to_string()).collect();
    assert_eq!(names.len(), services as usize);
    let mut subscription = Subscription::default();
    subscription.request(&names, &[], &BTreeMap::new());
    let owed = subscription.owed(view(&before));
    subscription.sent(&owed.answers, &[], &[], view(&before));
    assert_eq!(subscription.owed(view(&after)).updates.len(), 1);
    bencher.bench_local(|| subscription.owed(black_box(view(&after))));
}
