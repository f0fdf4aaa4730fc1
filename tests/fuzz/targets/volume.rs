//! See `saltern_tests::parsers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| saltern_tests::parsers::volume(data));
