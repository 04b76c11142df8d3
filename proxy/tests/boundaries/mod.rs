//! Every place where bytes from outside enter, as a function of those bytes that panics when a promise is broken.
//!
//! `proxy/fuzz` runs these under libFuzzer, `fuzz_corpus.rs` runs them over the committed corpora in every test run. What they promise is
//! in the comment of each; "does not panic" goes without saying.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

mod codec;
mod config;
mod conversation;
mod detect;
mod hpack_reader;
mod http2;
mod http2_codec;
mod http2_connections;
mod http2_frames;
mod identity;
pub mod pipeline;
mod requests;
mod second_sidecar;

#[path = "../strict/mod.rs"]
pub mod strict;

/// Name of a fuzz target and of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("h1_request_head", codec::h1_request_head),
    ("h1_response_head", codec::h1_response_head),
    ("h1_chunked_body", codec::h1_chunked_body),
    ("h1_pipeline_differential", pipeline::h1_pipeline_differential),
    ("h1_upstream_response", pipeline::h1_upstream_response),
    ("h2_frame_codec", http2_codec::h2_frame_codec),
    ("hpack_decode", http2_codec::hpack_decode),
    ("hpack_round_trip", http2_codec::hpack_round_trip),
    ("h2_server_connection", http2_connections::h2_server_connection),
    ("h2_client_connection", http2_connections::h2_client_connection),
    ("h2_server_frames", http2::h2_server_frames),
    ("h2_to_h1_translate", http2::h2_to_h1_translate),
    ("h1_to_h2_translate", second_sidecar::h1_to_h2_translate),
    ("request_normalize", requests::request_normalize),
    ("first_bytes_detect", detect::first_bytes_detect),
    ("sni_peek", detect::sni_peek),
    ("xds_apply", config::xds_apply),
    ("route_match", config::route_match),
    ("san_match", identity::san_match),
];

/// Runs the target with this name.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(found, _)| *found == name).expect("a target with this name");
    target(bytes);
}
