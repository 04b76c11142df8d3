#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boundaries::run("h1_to_h2_translate", bytes));
