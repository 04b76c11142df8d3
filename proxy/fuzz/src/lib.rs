//! The boundaries that `proxy/tests/fuzz_corpus.rs` replays, for libFuzzer.

#[path = "../../tests/boundaries/mod.rs"]
mod boundaries;

pub use boundaries::run;
