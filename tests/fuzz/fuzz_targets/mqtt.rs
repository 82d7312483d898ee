//! MQTT packets of a hostile peer into the client's session and the ingest port.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edge::mqtt::fuzz::run(data));
