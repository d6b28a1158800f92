//! Values of precondition fields: outcomes that the method and the fields can have.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::http::conditional::fuzz_entry(data));
