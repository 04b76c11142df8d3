//! Gateway API's matching tables, from YAML to the chosen backend: our order of rules and the sidecar's matching together.
//!
//! Routes and rows follow the project's conformance tests, with a Service as the parent.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use http::Request;
use outrigger_control_plane::{
    api, compile,
    model::{Inputs, Mesh, MeshSettings},
};
use outrigger_proto::kind::Kind;
use outrigger_proxy::{
    config::decode::{Resource, decode},
    route::{Action, Leg},
};

/// Method, path with query, headers, and the backend's version; `None` for 404.
type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)], Option<&'static str>);

/// Each rule: its matches, and the version it leads to.
fn check(routes: &[&[(&str, &str)]], rows: &[Row]) {
    let mut text = String::new();
    for name in ["echo", "v1", "v2", "v3"] {
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n"
        );
    }
    for (index, rules) in routes.iter().enumerate() {
        text += &format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: route-{index}}}\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n"
        );
        for (matches, version) in *rules {
            text += &format!("  - matches: [{matches}]\n    backendRefs: [{{name: {version}, port: 80}}]\n");
        }
    }
    let (objects, problems) = api::parse("rows.yaml", &text, "default");
    assert!(problems.is_empty(), "{problems:#?}");
    let objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
    let (settings, addresses) = (MeshSettings::default(), BTreeMap::new());
    let inputs = Inputs { objects: &objects, workloads: &[], virtual_addresses: &addresses, settings: &settings };
    let compiled = compile::compile(&Mesh::build(inputs).0, &[]);
    let table = compiled.get(Kind::RouteTable, "default/echo.default.svc.cluster.local:80@").unwrap();
    let Ok(Resource::RouteTable(table)) = decode(table.kind, &table.name, &table.bytes) else { panic!("no table") };
    for (method, path, headers, expected) in rows {
        let mut request = Request::builder().method(*method).uri(*path);
        for (name, value) in *headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let chosen = table.choose(&parts).map(|(rule, _)| match &rule.action {
            Action::Split(split) => match &split.choose(0).unwrap().leg {
                Leg::To(target) => target.service.split(['/', '.']).nth(1).unwrap().to_owned(),
                Leg::Bad(reason) => panic!("{reason}"),
            },
            Action::Redirect(_) => panic!("no rule redirects"),
        });
        assert_eq!(chosen.as_deref(), *expected, "{method} {path} {headers:?}");
    }
}

const ONE: &[(&str, &str)] = &[("Version", "one")];
const TWO: &[(&str, &str)] = &[("version", "two")];

#[test]
fn httproute_matching() {
    // The table every mesh must pass; "/v2example" is where prefixes by text go wrong.
    check(
        &[&[
            ("{path: {value: /}}, {headers: [{name: version, value: one}]}", "v1"),
            ("{path: {value: /v2}}, {headers: [{name: version, value: two}]}", "v2"),
        ]],
        &[
            ("GET", "/", &[], Some("v1")),
            ("GET", "/example", &[], Some("v1")),
            ("GET", "/", ONE, Some("v1")),
            ("GET", "/v2", &[], Some("v2")),
            ("GET", "/v2/example", &[], Some("v2")),
            ("GET", "/", TWO, Some("v2")),
            ("GET", "/v2/", &[], Some("v2")),
            ("GET", "/v2example", &[], Some("v1")),
            ("GET", "/foo/v2/example", &[], Some("v1")),
        ],
    );
}

#[test]
fn httproute_exact_path_matching() {
    // Exact means exact: case, trailing slash and sub-paths.
    check(
        &[&[("{path: {type: Exact, value: /one}}", "v1"), ("{path: {type: Exact, value: /two}}", "v2")]],
        &[
            ("GET", "/one", &[], Some("v1")),
            ("GET", "/two", &[], Some("v2")),
            ("GET", "/", &[], None),
            ("GET", "/one/example", &[], None),
            ("GET", "/two/", &[], None),
            ("GET", "/Two", &[], None),
        ],
    );
}

#[test]
fn httproute_path_match_order() {
    // Exact before prefix, the longest prefix first, wherever they stand and in whichever route.
    let first: &[(&str, &str)] = &[
        ("{path: {type: PathPrefix, value: /match}}", "v3"),
        ("{path: {type: PathPrefix, value: /match/prefix/one}}", "v1"),
        ("{path: {type: Exact, value: /match}}", "v1"),
    ];
    let second: &[(&str, &str)] = &[
        ("{path: {type: PathPrefix, value: /match/prefix/}}", "v2"),
        ("{path: {type: Exact, value: /match/exact/one}}", "v3"),
        ("{path: {type: Exact, value: /match/exact}}", "v2"),
    ];
    let rows: &[Row] = &[
        ("GET", "/match/exact/one", &[], Some("v3")),
        ("GET", "/match/exact", &[], Some("v2")),
        ("GET", "/match", &[], Some("v1")),
        ("GET", "/match/prefix/one/any", &[], Some("v1")),
        ("GET", "/match/prefix/any", &[], Some("v2")),
        ("GET", "/match/any", &[], Some("v3")),
    ];
    check(&[first, second], rows);
    check(&[second, first], rows);
}

#[test]
fn httproute_header_matching() {
    // More headers beat fewer; matches of one rule are alternatives.
    check(
        &[&[
            ("{headers: [{name: version, value: one}]}", "v1"),
            ("{headers: [{name: version, value: two}]}", "v2"),
            ("{headers: [{name: version, value: two}, {name: color, value: orange}]}", "v1"),
            ("{headers: [{name: color, value: blue}]}, {headers: [{name: color, value: green}]}", "v1"),
            ("{headers: [{name: color, value: red}]}, {headers: [{name: color, value: yellow}]}", "v2"),
        ]],
        &[
            ("GET", "/", ONE, Some("v1")),
            ("GET", "/", TWO, Some("v2")),
            ("GET", "/", &[("version", "two"), ("color", "orange")], Some("v1")),
            ("GET", "/", &[("version", "two"), ("color", "blue")], Some("v2")),
            ("GET", "/", &[("color", "orange")], None),
            ("GET", "/", &[("some-other-header", "one")], None),
            ("GET", "/", &[("color", "blue")], Some("v1")),
            ("GET", "/", &[("color", "green")], Some("v1")),
            ("GET", "/", &[("color", "red")], Some("v2")),
            ("GET", "/", &[("color", "yellow")], Some("v2")),
            ("GET", "/", &[("color", "purple")], None),
        ],
    );
}

#[test]
fn httproute_method_matching() {
    // Path beats method, method beats headers.
    check(
        &[&[
            ("{method: POST}", "v1"),
            ("{method: GET}", "v2"),
            ("{path: {value: /path1}, method: GET}", "v1"),
            ("{headers: [{name: version, value: one}], method: PUT}", "v2"),
            ("{path: {value: /path2}, headers: [{name: version, value: two}], method: POST}", "v3"),
            (
                "{path: {value: /path3}, method: PATCH}, {path: {value: /path4}, headers: [{name: version, value: three}], method: DELETE}",
                "v1",
            ),
            ("{path: {value: /path5}}", "v1"),
            ("{method: PATCH}", "v2"),
            ("{headers: [{name: version, value: four}]}", "v1"),
        ]],
        &[
            ("POST", "/", &[], Some("v1")),
            ("GET", "/", &[], Some("v2")),
            ("HEAD", "/", &[], None),
            ("GET", "/path1", &[], Some("v1")),
            ("PUT", "/", ONE, Some("v2")),
            ("POST", "/path2", TWO, Some("v3")),
            ("PATCH", "/path3", &[], Some("v1")),
            ("DELETE", "/path4", &[("version", "three")], Some("v1")),
            ("PUT", "/", &[], None),
            ("DELETE", "/path4", &[], None),
            ("PATCH", "/path5", &[], Some("v1")),
            ("PATCH", "/", &[("version", "four")], Some("v2")),
        ],
    );
}

#[test]
fn httproute_query_param_matching() {
    // Path beats query, headers beat query, more parameters beat fewer; values are whole, names keep their case.
    check(
        &[&[
            ("{queryParams: [{name: animal, value: whale}]}", "v1"),
            ("{queryParams: [{name: animal, value: dolphin}]}", "v2"),
            ("{queryParams: [{name: animal, value: dolphin}, {name: color, value: blue}]}", "v3"),
            ("{queryParams: [{name: ANIMAL, value: Whale}]}", "v3"),
            ("{path: {value: /path1}, queryParams: [{name: animal, value: whale}]}", "v1"),
            ("{headers: [{name: version, value: one}], queryParams: [{name: animal, value: whale}]}", "v2"),
            (
                "{path: {value: /path3}, queryParams: [{name: animal, value: shark}]}, {path: {value: /path4}, headers: [{name: version, value: three}], queryParams: [{name: animal, value: kraken}]}",
                "v1",
            ),
            ("{path: {value: /path5}}", "v1"),
            ("{queryParams: [{name: animal, value: hydra}]}", "v2"),
            ("{headers: [{name: version, value: four}]}", "v3"),
        ]],
        &[
            ("GET", "/?animal=whale", &[], Some("v1")),
            ("GET", "/?animal=dolphin", &[], Some("v2")),
            ("GET", "/?animal=whale&otherparam=irrelevant", &[], Some("v1")),
            ("GET", "/?animal=dolphin&color=yellow", &[], Some("v2")),
            ("GET", "/?animal=dolphin&color=blue", &[], Some("v3")),
            ("GET", "/?ANIMAL=Whale", &[], Some("v3")),
            ("GET", "/?color=blue", &[], None),
            ("GET", "/?animal=dog", &[], None),
            ("GET", "/?animal=whaledolphin", &[], None),
            ("GET", "/", &[], None),
            ("GET", "/path1?animal=whale", &[], Some("v1")),
            ("GET", "/?animal=whale", ONE, Some("v2")),
            ("GET", "/path3?animal=shark", &[], Some("v1")),
            ("GET", "/path4?animal=kraken", &[("version", "three")], Some("v1")),
            ("GET", "/?animal=shark", &[], None),
            ("GET", "/path4?animal=kraken", &[], None),
            ("GET", "/path5?animal=hydra", &[], Some("v1")),
            ("GET", "/?animal=hydra", &[("version", "four")], Some("v3")),
        ],
    );
}
