#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boundaries::run("h1_chunked_body", bytes));
