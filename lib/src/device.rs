//! `/etc/edge/device.toml`: who this device is and where it stands.
//!
//! Owns: its format. A missing file is no error: the device is then named after `/etc/hostname`.
//! Never: writes it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config;

/// Who this device is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    /// Unique among all devices; letters, digits, `-`, `_` and `.`, so that it can stand in topics, keys and paths.
    pub id: String,
    /// Where it stands, if that is known.
    pub location: Option<Location>,
    /// Whatever else the fleet wants to know about it, such as `model = "NX"`.
    pub attributes: BTreeMap<String, String>,
}

/// A place on earth (WGS 84).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Location {
    /// Degrees north, -90 to 90.
    pub latitude: f64,
    /// Degrees east, -180 to 180.
    pub longitude: f64,
    /// For people, such as "gate 3".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Raw {
    id: String,
    location: Option<Location>,
    attributes: BTreeMap<String, String>,
}

/// The longest device id, in bytes: it becomes part of MQTT client ids and object keys.
pub const ID_BYTES_MAX: usize = 64;

impl Device {
    /// Reads `path`. If it does not exist, or has no `id`, the id is the host's name.
    ///
    /// # Errors
    /// A [`config::Error`] that names line and key, for a file that is there but wrong.
    pub fn load(path: &Path) -> Result<Device, config::Error> {
        let loaded = match config::load::<Raw>(path) {
            Err(error) if error.is_not_found() => return Ok(Device::unnamed()),
            other => other?,
        };
        let id = match loaded.raw.id.as_str() {
            "" => host_name(),
            id if valid_id(id) => id.to_owned(),
            id => {
                let expected = format!(
                    "expected 1 to {ID_BYTES_MAX} letters, digits, '-', '_' or '.', not starting with '.', found {id:?}"
                );
                return Err(loaded.problem("id", &expected));
            }
        };
        if let Some(place) = &loaded.raw.location {
            if !(-90.0..=90.0).contains(&place.latitude) {
                return Err(loaded.problem("location.latitude", "expected degrees from -90 to 90"));
            }
            if !(-180.0..=180.0).contains(&place.longitude) {
                return Err(loaded.problem("location.longitude", "expected degrees from -180 to 180"));
            }
        }
        Ok(Device { id, location: loaded.raw.location, attributes: loaded.raw.attributes })
    }

    fn unnamed() -> Device {
        Device { id: host_name(), location: None, attributes: BTreeMap::new() }
    }
}

fn valid_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !id.is_empty() && id.len() <= ID_BYTES_MAX && !id.starts_with('.') && id.chars().all(allowed)
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if valid_id(&name) { name } else { "device".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Device, config::Error> {
        let path =
            std::env::temp_dir().join(format!("edge-device-{}-{}", std::process::id(), fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        let result = Device::load(&path);
        std::fs::remove_file(&path).unwrap();
        result
    }

    #[test]
    fn a_full_file_is_read_and_a_missing_one_is_named_after_the_host() {
        let device = load(
            "id = \"gate-3\"\n[location]\nlatitude = 47.1\nlongitude = 8.5\n[attributes]\nmodel = \"NX\"\n",
        );
        let device = device.unwrap();
        assert_eq!(device.id, "gate-3");
        assert_eq!(device.location.unwrap().latitude, 47.1);
        assert_eq!(device.attributes["model"], "NX");
        let unnamed = Device::load(Path::new("/nonexistent/device.toml")).unwrap();
        assert!(valid_id(&unnamed.id));
    }

    #[test]
    fn an_id_that_would_leave_its_place_is_refused() {
        for bad in ["../x", "a/b", "a b", "a#", ".hidden", "\u{e9}"] {
            let error = load(&format!("id = \"{bad}\"\n")).unwrap_err().to_string();
            assert!(error.contains(":1:6: id: expected 1 to 64"), "{error}");
        }
        let error = load("[location]\nlatitude = 91\nlongitude = 0\n").unwrap_err().to_string();
        assert!(error.contains(":2:12: location.latitude: expected degrees"), "{error}");
    }
}
