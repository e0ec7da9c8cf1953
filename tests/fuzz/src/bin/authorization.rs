#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    underpass_fuzz::authorization(input);
});
