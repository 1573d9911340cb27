//! See `../../tests/properties`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    l7_proxy_fuzz::stream::holds(input);
});
