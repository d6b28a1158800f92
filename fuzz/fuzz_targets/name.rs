//! Repository names, tags and references print as they were read, and stay in their directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::oci::name::fuzz_entry(data));
