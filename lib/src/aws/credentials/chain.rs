//! The chain: which link is asked in which order.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::answer::{instant, plain};
use super::{Credentials, Error, Link, http, profile};
use crate::config::Secret;

/// The environment variables that matter here, as they were at the start. `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Vars(BTreeMap<String, String>);

impl Vars {
    /// Those given; empty values count as not set.
    pub fn new<I: IntoIterator<Item = (K, String)>, K: Into<String>>(vars: I) -> Self {
        Self(vars.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.into(), v)).collect())
    }

    /// Those of this process.
    pub fn from_env() -> Self {
        let known = |name: &str| name.starts_with("AWS_") || name == "HOME";
        Self::new(std::env::vars_os().filter_map(|(k, v)| {
            let (k, v) = (k.into_string().ok()?, v.into_string().ok()?);
            known(&k).then_some((k, v))
        }))
    }

    /// A variable's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The region that the environment or the profile names: `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's.
    pub fn region(&self, profile: Option<&str>) -> Option<String> {
        let named = self.get("AWS_REGION").or_else(|| self.get("AWS_DEFAULT_REGION"));
        named.map(str::to_owned).or_else(|| profile::region(self, profile))
    }
}

impl std::fmt::Debug for Vars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The AWS IoT credential provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IotConfig {
    /// `https://<id>.credentials.iot.<region>.amazonaws.com/role-aliases/<alias>/credentials`.
    pub url: String,
    /// The thing's name, if the policy asks for it.
    pub thing_name: Option<String>,
    /// The device's certificate (PEM).
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// The authority to trust instead of the system's.
    pub ca: Option<PathBuf>,
}

/// Where credentials may come from.
#[derive(Clone, Debug, Default)]
pub struct ChainConfig {
    /// AWS IoT; if set, it is the only source.
    pub iot: Option<IotConfig>,
    /// The profile's name; overrides `AWS_PROFILE`, and passes the environment's keys over.
    pub profile: Option<String>,
    /// The environment.
    pub vars: Vars,
}

/// Asks the links in order. Blocks: files, a process, HTTP.
pub(super) fn ask(config: &ChainConfig) -> Result<Credentials, Error> {
    let mut said = Vec::new();
    let mut judge = |link: &str, answer: Link| match answer {
        Link::Found(found) => Some(Ok(found)),
        Link::NotSet(why) => {
            said.push((link.to_owned(), why));
            None
        }
        Link::Failed(why) => {
            // What the links before said is of no interest: they are not set up.
            Some(Err(Error(vec![(link.to_owned(), why)])))
        }
    };
    if let Some(iot) = &config.iot
        && let Some(result) = judge("AWS IoT", http::iot(iot))
    {
        return result;
    }
    let vars = &config.vars;
    type Ask<'a> = &'a dyn Fn() -> Link;
    let named = config.profile.is_some();
    let links: [(&str, Ask<'_>); 4] = [
        ("environment", &|| {
            if named { Link::NotSet("a profile is configured".into()) } else { environment(vars) }
        }),
        ("profile", &|| profile::link(vars, config.profile.as_deref())),
        ("container endpoint", &|| http::container(vars)),
        ("instance metadata", &|| http::metadata(vars)),
    ];
    for (name, ask) in links {
        if let Some(result) = judge(name, ask()) {
            return result;
        }
    }
    Err(Error(said))
}

fn environment(vars: &Vars) -> Link {
    let (id, secret) = (vars.get("AWS_ACCESS_KEY_ID"), vars.get("AWS_SECRET_ACCESS_KEY"));
    let (id, secret) = match (id, secret) {
        (Some(id), Some(secret)) => (id, secret),
        (None, None) => return Link::NotSet("AWS_ACCESS_KEY_ID is not set".into()),
        (Some(_), None) => {
            return Link::Failed("AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not".into());
        }
        (None, Some(_)) => {
            return Link::Failed("AWS_SECRET_ACCESS_KEY is set but AWS_ACCESS_KEY_ID is not".into());
        }
    };
    let read = || -> Result<Credentials, String> {
        Ok(Credentials {
            access_key_id: plain(id, "AWS_ACCESS_KEY_ID")?,
            secret_key: Secret::new(plain(secret, "AWS_SECRET_ACCESS_KEY")?),
            token: match vars.get("AWS_SESSION_TOKEN") {
                Some(token) => Some(Secret::new(plain(token, "AWS_SESSION_TOKEN")?)),
                None => None,
            },
            expires_s: vars.get("AWS_CREDENTIAL_EXPIRATION").and_then(instant),
            source: "environment".into(),
        })
    };
    read().map_or_else(Link::Failed, Link::Found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Vars {
        Vars::new(pairs.iter().map(|(k, v)| (*k, (*v).to_owned())))
    }

    #[test]
    fn the_environment_and_what_is_missing_in_it() {
        let found = ask(&ChainConfig {
            vars: vars(&[
                ("AWS_ACCESS_KEY_ID", "AK"),
                ("AWS_SECRET_ACCESS_KEY", "S3CRET"),
                ("AWS_SESSION_TOKEN", "T0K"),
            ]),
            ..ChainConfig::default()
        });
        let found = found.unwrap();
        assert_eq!((found.access_key_id.as_str(), found.source.as_str()), ("AK", "environment"));
        let config = ChainConfig { vars: vars(&[("AWS_ACCESS_KEY_ID", "AK")]), ..ChainConfig::default() };
        assert!(ask(&config).unwrap_err().to_string().contains("AWS_SECRET_ACCESS_KEY is not"));
        let config = ChainConfig {
            vars: vars(&[("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "S3 CRET")]),
            ..ChainConfig::default()
        };
        let error = ask(&config).unwrap_err().to_string();
        assert!(
            error.contains("AWS_SECRET_ACCESS_KEY has characters") && !error.contains("CRET\""),
            "{error}"
        );
        assert!(!format!("{config:?}").contains("S3 CRET"));
    }

    #[test]
    fn the_error_lists_every_link() {
        let config =
            ChainConfig { vars: vars(&[("AWS_EC2_METADATA_DISABLED", "true")]), ..ChainConfig::default() };
        let error = ask(&config).unwrap_err().to_string();
        for part in [
            "environment: AWS_ACCESS_KEY_ID is not set",
            "profile: no profile",
            "container endpoint: AWS_CONTAINER",
            "instance metadata: turned off",
        ] {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
    }
}
