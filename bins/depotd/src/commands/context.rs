//! What a command works on: the catalog, the store and the trusted keys that `depotd.toml` names.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use edge::aws::credentials::Vars;
use edge::cli::EX_CONFIG;
use edge::config;
use edge::release::{PublicKeys, Timestamp};

use super::args::Given;
use super::output::{EX_NOPERM, Failure};
use crate::catalog::config::{CatalogConfig, StoreConfig};
use crate::catalog::{Catalog, Release, State};
use crate::config::Raw;
use crate::store::BlobStore;

/// What a command works on.
pub struct Context {
    /// The catalog.
    pub catalog: Box<dyn Catalog>,
    /// The store.
    pub store: Box<dyn BlobStore>,
    /// Whom devices trust, as far as the server knows.
    pub keys: PublicKeys,
    /// The file, if it is not the usual one.
    pub config: Option<PathBuf>,
}

impl Context {
    /// Reads the configuration and opens what it names.
    ///
    /// # Errors
    /// With the exit code for what is wrong.
    pub fn open(given: &Given) -> Result<Self, Failure> {
        let named = given.path("--config");
        let path = named.clone().unwrap_or_else(|| PathBuf::from("/etc/edge/depotd.toml"));
        // What is the server's alone is read, so that a misspelled key is found, and not checked: its files need not be here.
        let loaded = config::load::<Raw>(&path)?;
        let Raw { public_keys, catalog, store, aws, .. } = &loaded.raw;
        let vars = Vars::from_env();
        let catalog = CatalogConfig::check(&loaded, catalog, aws, &vars)?;
        let store = StoreConfig::check(&loaded, store, aws, &vars)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let files: Vec<PathBuf> = public_keys.iter().map(|key| folder.join(key)).collect();
        let keys = PublicKeys::load(&files)
            .map_err(|error| loaded.problem("public-keys", &edge::log::chain(&error)))?;
        for folder in [catalog.folder(), store.folder()].into_iter().flatten() {
            own(folder)?;
        }
        Ok(Self { catalog: catalog.open()?, store: store.open()?, keys, config: named })
    }

    /// The keys, of which there must be some.
    ///
    /// # Errors
    /// Code 78 if there is none.
    pub fn need_keys(&self) -> Result<&PublicKeys, Failure> {
        if self.keys.is_empty() {
            return Err(Failure::new(EX_CONFIG, "depotd.toml names no public-keys: nothing can be verified")
                .fix("public-keys = [\"/etc/edge/release.pub\"], the file that 'depotd keygen' or 'minisign -G' wrote"));
        }
        Ok(&self.keys)
    }

    /// Refuses a signature that devices with the server's keys would refuse.
    ///
    /// # Errors
    /// Code 77.
    pub fn verify(&self, statement: &[u8], signature: &str) -> Result<String, Failure> {
        match self.keys.verify(statement, signature) {
            Ok(key) => Ok(key.display().to_string()),
            Err(error) => Err(Failure::new(EX_NOPERM, edge::log::chain(&error))
                .fix("sign with the key whose .pub is in public-keys of depotd.toml, or add that .pub there and on the devices")),
        }
    }

    /// The newest release of the app in `env` that `wanted` takes; of this version, if one is given.
    ///
    /// # Errors
    /// Code 65 with what there is.
    pub fn find(
        &mut self,
        app: &str,
        env: &str,
        version: Option<&str>,
        wanted: impl Fn(State) -> bool,
        what: &str,
    ) -> Result<Release, Failure> {
        let all = self.catalog.list(Some(app), Some(env))?;
        let fits = |r: &&Release| version.is_none_or(|v| r.version == v) && wanted(r.state);
        if let Some(found) = all.iter().find(fits) {
            return Ok(found.clone());
        }
        let which = version.map_or(String::new(), |version| format!(" {version}"));
        let failure = Failure::refused(format!("there is no {what} release of {app}{which} in {env}"));
        let mut there: Vec<String> = all.iter().map(|r| format!("{} ({})", r.version, r.state)).collect();
        there.truncate(8);
        Err(match there.is_empty() {
            true => failure.fix("'depotd list' shows what there is"),
            false => failure.fix(format!("there are: {}", there.join(", "))),
        })
    }

    /// Who the command's text has to name: `depotd`, with its `--config`.
    #[must_use]
    pub fn program(&self) -> String {
        match &self.config {
            Some(path) => format!("depotd -c {}", super::output::shell(&path.display().to_string())),
            None => "depotd".to_owned(),
        }
    }
}

/// What root makes in the server's folder the server can't write.
fn own(folder: &Path) -> Result<(), Failure> {
    let Ok(metadata) = folder.metadata() else { return Ok(()) };
    if metadata.uid() == 0 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(
        EX_NOPERM,
        format!("{} belongs to the user {}, not to root", folder.display(), metadata.uid()),
    )
    .fix(format!("run it as that user: sudo -u '#{}' depotd …", metadata.uid())))
}

/// The second it is.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp(i64::try_from(edge::clock::unix_ms() / 1000).unwrap_or(i64::MAX))
}
