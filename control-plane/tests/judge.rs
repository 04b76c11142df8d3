//! Nothing unsafe gets through: sidecars as processes, clients and origins that are nothing but bytes, and a strict reader that says
//! what stands at the origin. Cases in `judge/`; the reader is `proxy/tests/strict`.

#![allow(clippy::unwrap_used)]

#[path = "../../proxy/tests/strict/mod.rs"]
mod strict;

#[path = "../../proxy/tests/boundaries/http2_frames.rs"]
mod frames;

mod judge {
    pub mod case;
    pub mod generated;
    pub mod http1;
    pub mod http1_cases;
    pub mod http2;
    pub mod http2_cases;
    pub mod http2_origin;
    pub mod lanes;
    pub mod origin;
    pub mod peer;
}

use judge::{http1, http2, lanes::Mesh};

#[test]
fn nothing_unsafe_gets_through_in_http1() {
    // A request that two readers read differently carries a second one past every rule of the mesh.
    let mesh = Mesh::start();
    let mut cases = judge::http1_cases::cases();
    assert!(cases.len() >= 150, "only {} cases", cases.len());
    cases.extend(judge::generated::cases());
    http1::judge(&mesh, &cases);
}

#[test]
fn nothing_unsafe_gets_through_in_http2() {
    // What HTTP/2 can carry and HTTP/1 cannot would become a second request behind the mesh.
    let mesh = Mesh::start();
    let cases = judge::http2_cases::cases();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    http2::judge(&mesh, &cases);
}
