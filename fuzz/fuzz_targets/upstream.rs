//! Header fields of upstreams: challenges, links, content ranges.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::upstream::fuzz_entry(data));
