//! Manifests: bounded, and unambiguous about their kind.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::oci::manifest::fuzz_entry(data));
