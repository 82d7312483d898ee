//! What a generation consists of, and the file that says so in it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use edge::release::{Digest, Md5, Sha256, valid_name, valid_version};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Error;
use super::record::{self, HighWater};

/// Most apps of a device.
pub const APPS_MAX: usize = 256;
/// Longest signed statement that is kept with an item, in bytes.
const STATEMENT_BYTES_MAX: usize = 16 << 10;

/// How the content of an app becomes its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is one file, `<app>/<app>`, with these permission bits.
    File {
        /// Bits for group and others never allow writing.
        mode: u32,
    },
    /// A tar archive, plain or compressed by gzip, that is unpacked in `<app>/`.
    Tar,
    /// One file, `<app>/<app>`, that a command of the device's owner installs.
    Handler,
}

/// One app of a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Item {
    /// Its name, as its publisher spells it.
    pub app: String,
    /// What is made of its content.
    pub kind: Kind,
    /// For people.
    pub version: String,
    /// In lower case.
    pub env: String,
    /// Counts the releases of this app in this environment; 0: the server has none.
    pub epoch: u64,
    /// Nothing below is run again once this is committed.
    #[serde(default)]
    pub min_epoch: u64,
    /// The cache hint of its content.
    pub md5: Md5,
    /// Its content.
    pub sha256: Sha256,
    /// The content's bytes.
    pub size: u64,
    /// The signed statement, for whoever looks later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
}

impl Item {
    /// What makes it this item and no other: one line, in a fixed form.
    fn line(&self) -> String {
        let kind = match self.kind {
            Kind::File { mode } => format!("file:{mode:04o}"),
            Kind::Tar => "tar".to_owned(),
            Kind::Handler => "handler".to_owned(),
        };
        let (app, env, epoch) = (self.app.to_ascii_lowercase(), &self.env, self.epoch);
        format!("{app}\0{kind}\0{env}\0{}\0{epoch}\0{}\n", self.version, self.sha256)
    }

    /// Whether the other one's folder would hold the same.
    pub(super) fn same_folder(&self, other: &Item) -> bool {
        self.app == other.app && self.kind == other.kind && self.sha256 == other.sha256
    }

    fn check(&self) -> Result<(), Error> {
        let bad = |what: &str, value: &str| {
            Error::refused(format!("{}: the {what} {value:?} can't be used", self.app))
        };
        if !valid_name(&self.app) {
            return Err(Error::refused(format!("{:?} is no name of an app", self.app)));
        }
        if !valid_name(&self.env) || self.env.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("environment", &self.env));
        }
        if !valid_version(&self.version) {
            return Err(bad("version", &self.version));
        }
        match self.kind {
            Kind::File { mode } if mode & !0o755 != 0 || mode & 0o400 == 0 => {
                Err(bad("mode", &format!("{mode:04o}")))
            }
            _ if self.statement.as_ref().is_some_and(|text| text.len() > STATEMENT_BYTES_MAX) => {
                Err(bad("statement", "(too long)"))
            }
            _ => Ok(()),
        }
    }
}

/// What a device runs: at most one item an app, sorted by app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Sorted by the name in lower case.
    items: Vec<Item>,
}

impl Manifest {
    /// Sorts and checks.
    ///
    /// # Errors
    /// [`Error::Refused`]: a name, version or mode that can't be used, or an app twice.
    pub fn new(mut items: Vec<Item>) -> Result<Manifest, Error> {
        if items.len() > APPS_MAX {
            return Err(Error::refused(format!("{} apps are more than {APPS_MAX}", items.len())));
        }
        items.iter().try_for_each(Item::check)?;
        items.sort_by_key(|item| item.app.to_ascii_lowercase());
        if let Some(twice) = items.windows(2).find(|pair| pair[0].app.eq_ignore_ascii_case(&pair[1].app)) {
            return Err(Error::refused(format!("the app {} is there twice", twice[1].app)));
        }
        Ok(Manifest { items })
    }

    /// The items, sorted by app.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The item of an app, whatever the case.
    #[must_use]
    pub fn get(&self, app: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.app.eq_ignore_ascii_case(app))
    }

    /// SHA-256 of the items' lines (app, kind, environment, version, epoch, SHA-256): what is quarantined.
    #[must_use]
    pub fn hash(&self) -> Sha256 {
        let mut hash = edge::release::Digests::default();
        self.items.iter().for_each(|item| hash.update(item.line().as_bytes()));
        hash.finish().sha256
    }
}

/// Names a generation: `<n>-<the first 8 digits of its manifest's hash>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenId {
    /// Counts the generations of this device, from 1.
    pub number: u64,
    /// The first bytes of [`Manifest::hash`].
    pub hash8: [u8; 4],
}

impl GenId {
    pub(super) fn new(number: u64, hash: &Sha256) -> GenId {
        let [a, b, c, d, ..] = hash.0;
        GenId { number, hash8: [a, b, c, d] }
    }
}

impl fmt::Display for GenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, Digest(self.hash8))
    }
}

impl FromStr for GenId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<GenId, &'static str> {
        let bad = "expected <number>-<8 hexadecimal digits>";
        let (number, hash8) = text.split_once('-').ok_or(bad)?;
        let id = GenId {
            number: number.parse().map_err(|_| bad)?,
            hash8: hash8.parse::<Digest<4>>().map_err(|_| bad)?.0,
        };
        // One spelling only: it is a name of a folder.
        if id.number > 0 && id.to_string() == text { Ok(id) } else { Err(bad) }
    }
}

impl Serialize for GenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GenId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an unpacked archive came to. Independent of the order of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// All SHA-256 of an entry's line, combined by exclusive or. A line holds the type, permission bits, size and CRC-32C
    /// of a file, target of a link, and the path.
    pub digest: Sha256,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { entries: 0, bytes: 0, digest: Digest([0; 32]) }
    }
}

impl Tree {
    fn add(&mut self, line: &str) {
        let mut hash = edge::release::Digests::default();
        hash.update(line.as_bytes());
        let sum = hash.finish().sha256;
        self.digest.0.iter_mut().zip(sum.0).for_each(|(all, one)| *all ^= one);
        self.entries += 1;
    }

    /// Of both.
    pub(super) fn with(mut self, other: &Tree) -> Tree {
        self.digest.0.iter_mut().zip(other.digest.0).for_each(|(all, one)| *all ^= one);
        self.entries += other.entries;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, size: u64, crc: u32) {
        self.add(&format!("f {mode:o} {size} {crc:08x} {path}"));
        self.bytes = self.bytes.saturating_add(size);
    }

    pub(super) fn folder(&mut self, path: &str, mode: u32) {
        self.add(&format!("d {mode:o} {path}"));
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.add(&format!("l {target}\0{path}"));
    }
}

/// The file `.manifest` of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenFile {
    /// What is in it.
    pub manifest: Manifest,
    /// The high-water marks when it was built, so that they outlive a lost `highwater`.
    pub marks: HighWater,
    /// Of each app that is an archive.
    pub trees: BTreeMap<String, Tree>,
}

#[derive(Serialize, Deserialize)]
struct Raw<'a> {
    v: u32,
    items: std::borrow::Cow<'a, [Item]>,
    marks: HighWater,
    trees: BTreeMap<String, Tree>,
}

impl GenFile {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let items = std::borrow::Cow::Borrowed(self.manifest.items());
        record::seal(&Raw { v: 1, items, marks: self.marks.clone(), trees: self.trees.clone() })
    }

    /// Reads it back; `None`: it is damaged.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<GenFile> {
        let raw: Raw<'_> = record::unseal(bytes)?;
        let manifest = Manifest::new(raw.items.into_owned()).ok()?;
        (raw.v == 1).then_some(GenFile { manifest, marks: raw.marks, trees: raw.trees })
    }
}

/// For a message: `scoreboard 1.0.0, videoStreamer 0.9`.
impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, item) in self.items.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", item.app, item.version)?;
        }
        if self.items.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}
