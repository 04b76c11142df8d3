//! Nothing unsafe gets through: sidecars as processes, clients and origins that are nothing but bytes, and a strict reader that says
//! what stands at the origin. Cases in `judge/`; the reader is `proxy/tests/strict`.

#![allow(clippy::unwrap_used)]

#[path = "../../proxy/tests/strict/mod.rs"]
mod strict;

mod judge {
    pub mod case;
    pub mod generated;
    pub mod http1;
    pub mod http1_cases;
    pub mod lanes;
    pub mod origin;
}

use judge::{http1, lanes::Mesh};

#[test]
fn nothing_unsafe_gets_through_in_http1() {
    // A request that two readers read differently carries a second one past every rule of the mesh.
    let mesh = Mesh::start();
    let mut cases = judge::http1_cases::cases();
    assert!(cases.len() >= 150, "only {} cases", cases.len());
    cases.extend(judge::generated::cases());
    http1::judge(&mesh, &cases);
}
