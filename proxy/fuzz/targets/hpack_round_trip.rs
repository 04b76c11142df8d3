#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boundaries::run("hpack_round_trip", bytes));
