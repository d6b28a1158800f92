//! A digest has one spelling.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::oci::digest::fuzz_entry(data));
