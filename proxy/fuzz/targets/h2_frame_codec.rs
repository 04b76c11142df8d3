#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boundaries::run("h2_frame_codec", bytes));
