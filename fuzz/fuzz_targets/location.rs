//! What an application's X-Accel-Redirect and X-Sendfile may say: whatever comes out lies beneath a root.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::accel::fuzz_location(data));
