//! A Range field and a representation's length: what is selected lies within, apart, and in bounds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::http::range::fuzz_entry(data));
