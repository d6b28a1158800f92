//! Accept fields: the answers about a media type do not contradict each other.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spliceway::oci::media_type::fuzz_entry(data));
