#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| streamkeep::http::fuzz::bodies(input));
