//! See `saltern_tools::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| saltern_tools::fuzzing::archive(data));
