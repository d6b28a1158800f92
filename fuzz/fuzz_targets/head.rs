//! Request heads and chunk framing: anything at all, whole and byte by byte, must be taken the same way.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::server::framing::fuzz_entry(data));
