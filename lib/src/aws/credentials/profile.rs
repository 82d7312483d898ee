//! The shared credentials and config files.
//!
//! Keys in the credentials file win over those in the config file. Profiles that assume roles or sign in (`role_arn`,
//! `sso_session`, `web_identity_token_file`) are not done here: the error names `credential_process`, which can.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::answer::plain;
use super::{Credentials, Link, Vars, process};
use crate::config::Secret;

/// Keys and values by section.
pub type Ini = BTreeMap<String, BTreeMap<String, String>>;

/// Reads a file of this kind: `[section]`, `key = value`, comments with `#` or `;`. Lines that are indented (nested
/// settings of other tools) and lines that are neither are skipped. Keys are lower-cased.
pub fn parse_ini(text: &str) -> Ini {
    let mut ini = Ini::new();
    let mut section: Option<String> = None;
    for line in text.lines() {
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let line = line.split(" #").next().and_then(|l| l.split(" ;").next()).unwrap_or(line).trim();
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let name = name.trim();
            // In the config file all but the default profile are written `[profile name]`.
            let name = name.strip_prefix("profile ").map_or(name, str::trim);
            section = Some(name.trim_matches('"').to_owned());
            ini.entry(name.trim_matches('"').to_owned()).or_default();
        } else if let (Some(name), Some((key, value))) = (&section, line.split_once('=')) {
            let keys = ini.entry(name.clone()).or_default();
            keys.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    ini
}

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

fn read(path: &Path) -> Result<Option<Ini>, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let opened = std::fs::File::open(path).and_then(|f| f.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match opened {
        Ok(_) => Ok(Some(parse_ini(&text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Where the two files are: credentials, config. `None` where neither the variable nor a home folder says so.
fn paths(vars: &Vars) -> (Option<PathBuf>, Option<PathBuf>) {
    let home = vars.get("HOME").map(|h| Path::new(h).join(".aws"));
    let at = |var: &str, name: &str| {
        vars.get(var).map(PathBuf::from).or_else(|| home.as_ref().map(|h| h.join(name)))
    };
    (at("AWS_SHARED_CREDENTIALS_FILE", "credentials"), at("AWS_CONFIG_FILE", "config"))
}

/// The region that the profile names, if any.
pub(super) fn region(vars: &Vars, profile: Option<&str>) -> Option<String> {
    let name = profile.or_else(|| vars.get("AWS_PROFILE")).unwrap_or("default");
    let (credentials, config) = paths(vars);
    let found = |path: Option<PathBuf>| read(&path?).ok()??.get(name)?.get("region").cloned();
    found(config).or_else(|| found(credentials))
}

/// What the profile gives. `profile` is the name from the daemon's configuration.
pub(super) fn link(vars: &Vars, profile: Option<&str>) -> Link {
    let asked = profile.or_else(|| vars.get("AWS_PROFILE"));
    let name = asked.unwrap_or("default");
    let (credentials, config) = paths(vars);
    let mut keys = BTreeMap::new();
    let mut seen = Vec::new();
    let mut home = None;
    for path in [config, credentials].into_iter().flatten() {
        match read(&path) {
            // The credentials file is read last, so that its keys win.
            Ok(Some(mut ini)) => {
                if let Some(found) = ini.remove(name) {
                    keys.extend(found);
                    home = Some(path.display().to_string());
                }
            }
            Ok(None) => {}
            Err(why) if asked.is_none() => seen.push(why),
            Err(why) => return Link::Failed(why),
        }
        seen.push(path.display().to_string());
    }
    let Some(home) = home else {
        let why = format!(
            "no profile {name:?} in {}",
            if seen.is_empty() { "any file".into() } else { seen.join(", ") }
        );
        return if asked.is_some() { Link::Failed(why) } else { Link::NotSet(why) };
    };
    match from_keys(&keys, name, &home) {
        Some(Ok(found)) => Link::Found(found),
        Some(Err(why)) => Link::Failed(why),
        None if asked.is_some() => Link::Failed(format!("profile {name:?} in {home} has no keys")),
        None => Link::NotSet(format!("profile {name:?} in {home} has no keys")),
    }
}

fn from_keys(keys: &BTreeMap<String, String>, name: &str, home: &str) -> Option<Result<Credentials, String>> {
    let source = format!("profile {name:?} in {home}");
    let get = |key: &str| keys.get(key).filter(|v| !v.is_empty());
    match (get("aws_access_key_id"), get("aws_secret_access_key")) {
        (Some(id), Some(secret)) => {
            let pair = plain(id, "aws_access_key_id")
                .and_then(|id| Ok((id, plain(secret, "aws_secret_access_key")?)));
            let token = get("aws_session_token").map(|t| plain(t, "aws_session_token")).transpose();
            Some(
                pair.and_then(|(access_key_id, secret)| {
                    let secret_key = Secret::new(secret);
                    Ok(Credentials {
                        access_key_id,
                        secret_key,
                        token: token?.map(Secret::new),
                        expires_s: None,
                        source,
                    })
                })
                .map_err(|why| format!("profile {name:?} in {home}: {why}")),
            )
        }
        (Some(_), None) => Some(Err(format!("{source}: aws_secret_access_key is missing"))),
        (None, Some(_)) => Some(Err(format!("{source}: aws_access_key_id is missing"))),
        (None, None) => match get("credential_process") {
            Some(command) => Some(
                process::run(command, &source).map_err(|why| format!("{source}: credential_process {why}")),
            ),
            None => {
                let foreign =
                    ["role_arn", "sso_session", "sso_start_url", "web_identity_token_file", "login_session"];
                let kind = foreign.iter().find(|key| get(key).is_some())?;
                Some(Err(format!(
                    "{source} uses {kind}, which is not done here; let credential_process = \"aws configure export-credentials …\" do it"
                )))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_this_kind() {
        let ini = parse_ini(
            "# c\n[default]\naws_access_key_id=AK ; c\nAWS_Secret_Access_Key = a=b/c+d # c\ns3 =\n  max = 7\n[profile \"x y\"]\nregion = r\njunk\n[broken\nk=v\n",
        );
        assert_eq!(ini["default"]["aws_secret_access_key"], "a=b/c+d");
        assert_eq!(ini["default"]["aws_access_key_id"], "AK");
        assert!(!ini["default"].contains_key("max"));
        assert_eq!(ini["x y"]["region"], "r");
        assert_eq!(parse_ini("k=v\n[]\n=\n").len(), 1);
    }

    #[test]
    fn the_credentials_file_wins_and_what_is_missing_is_named() {
        let folder = std::env::temp_dir().join(format!("edge-profile-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(
            folder.join("credentials"),
            "[default]\naws_access_key_id = A\naws_secret_access_key = S\n[half]\naws_access_key_id = A\n",
        )
        .unwrap();
        std::fs::write(folder.join("config"), "[default]\naws_access_key_id = B\nregion = eu-west-1\n[profile role]\nrole_arn = x\n[profile p]\ncredential_process = echo '{\"Version\":1,\"AccessKeyId\":\"P\",\"SecretAccessKey\":\"Q\"}'\n").unwrap();
        let path = |name: &str| folder.join(name).display().to_string();
        let vars = Vars::new([
            ("AWS_SHARED_CREDENTIALS_FILE", path("credentials")),
            ("AWS_CONFIG_FILE", path("config")),
        ]);
        assert!(
            matches!(link(&vars, None), Link::Found(c) if c.access_key_id == "A" && c.source.contains("credentials"))
        );
        assert_eq!(region(&vars, None).as_deref(), Some("eu-west-1"));
        assert!(matches!(link(&vars, Some("p")), Link::Found(c) if c.access_key_id == "P"));
        assert!(
            matches!(link(&vars, Some("half")), Link::Failed(why) if why.contains("aws_secret_access_key is missing"))
        );
        assert!(matches!(link(&vars, Some("role")), Link::Failed(why) if why.contains("role_arn")));
        assert!(
            matches!(link(&vars, Some("none")), Link::Failed(why) if why.contains("no profile \"none\""))
        );
        assert!(matches!(link(&Vars::new::<[(&str, String); 0], _>([]), None), Link::NotSet(_)));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
