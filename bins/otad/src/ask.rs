//! What a device says of itself: the query of a poll, made from the attributes in `device.toml`.
//!
//! | attribute | in the query |
//! |---|---|
//! | `cpu-arch = "armv8"` | `cpuArch=armv8`; without it, the kernel's name of the machine (`aarch64` is `armv8`) |
//! | `os = "beta"` | `os=beta`: the environment of the app `os_<cpuArch>`; without it, `prod` |
//! | `"attr.gamer" = "prod"` | `attrgamer=prod`: every app for devices with the attribute, in that environment |
//! | `"apps.modemFW" = "beta"` | `modemFW=beta`: that app in that environment |
//!
//! All other attributes stay on the device. Invariant: every part of the query is a valid name, so nothing needs to be
//! encoded. No I/O.

use std::collections::BTreeMap;

use edge::release::valid_name;

/// Names that mean something else in a query.
const RESERVED: [&str; 5] = ["x-offers", "x-gen", "cpuarch", "os", "payloadtype"];

/// What the device asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub cpu_arch: String,
    /// The environment of `os_<cpu_arch>`.
    pub os: String,
    /// Attribute and environment, both in lower case, sorted.
    pub attrs: BTreeMap<String, String>,
    /// App as it was written, by its name in lower case, and its environment.
    pub apps: BTreeMap<String, (String, String)>,
}

impl Ask {
    /// Reads the attributes.
    ///
    /// # Errors
    /// The attribute, and what is wrong with it.
    pub fn new(attributes: &BTreeMap<String, String>, machine: &str) -> Result<Ask, (String, String)> {
        let name = "expected 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.' or '-'";
        let mut ask = Ask {
            cpu_arch: arch_of(machine).to_ascii_lowercase(),
            os: "prod".into(),
            attrs: BTreeMap::new(),
            apps: BTreeMap::new(),
        };
        for (key, value) in attributes {
            let bad = |why: &str| Err((key.clone(), format!("{why}, found {value:?}")));
            let lower = value.to_ascii_lowercase();
            let (attr, app) = (key.strip_prefix("attr."), key.strip_prefix("apps."));
            if !(attr.is_some() || app.is_some() || key == "cpu-arch" || key == "os") {
                continue;
            }
            if !valid_name(value) {
                return bad(name);
            }
            match (key.as_str(), attr, app) {
                ("cpu-arch", ..) => ask.cpu_arch = lower,
                ("os", ..) => ask.os = lower,
                (_, Some(attr), _) if valid_name(attr) => {
                    ask.attrs.insert(attr.to_ascii_lowercase(), lower);
                }
                (_, _, Some(app)) if valid_name(app) => {
                    let small = app.to_ascii_lowercase();
                    if RESERVED.contains(&small.as_str()) || small.starts_with("attr") {
                        return bad("this name can't be asked for: it means something else in a query");
                    }
                    ask.apps.insert(small, (app.to_owned(), lower));
                }
                _ => return bad(name),
            }
        }
        let os_app = ask.os_app();
        if ask.apps.contains_key(&os_app) {
            return Err((format!("apps.{os_app}"), "this app is asked for by 'os'; set that instead".into()));
        }
        Ok(ask)
    }

    /// The app that `os` is the environment of, in lower case.
    #[must_use]
    pub fn os_app(&self) -> String {
        format!("os_{}", self.cpu_arch)
    }

    /// The query, sorted, without the leading `?`.
    #[must_use]
    pub fn query(&self, metadata_only: bool, generation: Option<&str>) -> String {
        let mut parts = vec![format!("cpuArch={}", self.cpu_arch), format!("os={}", self.os)];
        parts.extend(self.attrs.iter().map(|(attr, env)| format!("attr{attr}={env}")));
        parts.extend(self.apps.values().map(|(app, env)| format!("{app}={env}")));
        if metadata_only {
            parts.push("payloadType=metadataOnly".into());
        }
        parts.push("x-offers=1".into());
        parts.extend(generation.map(|generation| format!("x-gen={generation}")));
        parts.sort();
        parts.join("&")
    }

    /// The environment an app is asked for by name, if it is.
    #[must_use]
    pub fn env_by_name(&self, app: &str) -> Option<&str> {
        let app = app.to_ascii_lowercase();
        if app == self.os_app() {
            return Some(&self.os);
        }
        self.apps.get(&app).map(|(_, env)| env.as_str())
    }

    /// The environments an app may come in: the one it is asked for by name, else those of the attributes.
    #[must_use]
    pub fn envs(&self, app: &str) -> Vec<&str> {
        match self.env_by_name(app) {
            Some(env) => vec![env],
            None => self.attrs.values().map(String::as_str).collect(),
        }
    }

    /// Whether a release with these attributes in this environment was asked for.
    #[must_use]
    pub fn wants(&self, app: &str, env: &str, attrs: &[String]) -> bool {
        match self.env_by_name(app) {
            Some(asked) => asked == env,
            None => attrs.iter().any(|attr| self.attrs.get(attr).is_some_and(|asked| asked == env)),
        }
    }
}

/// What package servers call the kernel's machine.
fn arch_of(machine: &str) -> &str {
    match machine {
        "aarch64" => "armv8",
        "armv7l" => "armv7",
        "armv6l" => "armv6",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(attributes: &[(&str, &str)]) -> Result<Ask, (String, String)> {
        let map = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Ask::new(&map, "aarch64")
    }

    #[test]
    fn a_query_says_what_the_device_is() {
        assert_eq!(ask(&[]).unwrap().query(false, None), "cpuArch=armv8&os=prod&x-offers=1");
        let asked = ask(&[
            ("attr.Gamer", "prod"),
            ("apps.modemFW", "Beta"),
            ("os", "BETA"),
            ("colour", "any thing"),
            ("cpu-arch", "x86"),
        ])
        .unwrap();
        let query = asked.query(true, Some("3-0a1b2c3d"));
        let expected = "attrgamer=prod&cpuArch=x86&modemFW=beta&os=beta&payloadType=metadataOnly&x-gen=3-0a1b2c3d&x-offers=1";
        assert_eq!(query, expected);
        assert_eq!(asked.env_by_name("OS_X86"), Some("beta"));
        assert_eq!(asked.env_by_name("MODEMfw"), Some("beta"));
        assert!(asked.wants("scoreboard", "prod", &["gamer".into()]));
        assert!(!asked.wants("scoreboard", "beta", &["gamer".into()]));
        assert!(!asked.wants("scoreboard", "prod", &["cellular".into()]));
        assert!(!asked.wants("modemFW", "prod", &["gamer".into()]), "its name beats an attribute");
    }

    #[test]
    fn what_is_no_query_is_refused_by_name() {
        for (key, value) in [
            ("os", "a b"),
            ("attr.", "prod"),
            ("attr.x&y", "prod"),
            ("apps.os", "prod"),
            ("apps.attrx", "prod"),
            ("apps.os_armv8", "prod"),
            ("cpu-arch", ""),
        ] {
            assert_eq!(ask(&[(key, value)]).unwrap_err().0, key);
        }
    }
}
