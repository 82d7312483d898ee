//! Configuration files of every kind of wrong: an error that names its place, never a panic; what is good is printed as
//! a file that reads back the same.
#![no_main]

use std::path::Path;

use edge::config::{parse, to_toml};
use edge::device::Device;
use edge::mqtt::endpoint::{Broker, Listen};
use edge::spool::Table;

/// A table as a file of its own, through parsing, printing, and an error at any key.
macro_rules! read {
    ($table:ty, $text:expr) => {{
        let path = Path::new("fuzz.toml");
        match parse::<$table>(path, $text.to_owned()) {
            Err(error) => {
                assert!(error.to_string().starts_with("fuzz.toml:"), "{error}");
                drop(error.excerpt());
            }
            Ok(loaded) => {
                for key in
                    ["host", "tls.ca-file", "listen.address", "topics[1]", "topics[x].y", "", "[", "a..b"]
                {
                    drop(loaded.problem(key, "expected something else").excerpt());
                }
                let printed = to_toml(&loaded.raw);
                let again = parse::<$table>(path, printed.clone());
                assert_eq!(again.map(|again| to_toml(&again.raw)).ok(), Some(printed));
            }
        }
    }};
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    read!(Broker, text);
    read!(Listen, text);
    read!(Table, text);
    let path = Path::new("fuzz.toml");
    // Without files: the paths would be those of this machine.
    if let Ok(loaded) = parse::<Broker>(path, text.to_owned())
        && loaded.raw.tls.is_none()
        && loaded.raw.password_file.as_os_str().is_empty()
    {
        let device = Device { id: "d".into(), location: None, attributes: Default::default() };
        drop(loaded.raw.to_client(&loaded, "cloud", "c", &device));
    }
});
