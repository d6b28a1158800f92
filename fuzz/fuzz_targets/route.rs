//! A request's path and query: no input breaks the router, and what it finds it finds again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::registry::fuzz_route(data));
