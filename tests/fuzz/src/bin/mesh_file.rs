#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    underpass_fuzz::mesh_file(input);
});
