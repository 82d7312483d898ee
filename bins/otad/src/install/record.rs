//! The small files of the store: one line of JSON for people and programs, then the CRC-32C of that line.
//!
//! Invariant: a file that reads back is one that was written; anything else is `None`, never a guess.

use std::collections::{BTreeMap, VecDeque};

use edge::release::{Sha256, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::manifest::{GenId, Item, Manifest};

/// Most outcomes that are remembered.
pub const HISTORY_MAX: usize = 64;
/// Most manifests in quarantine; beyond that the oldest is forgotten.
pub const QUARANTINE_MAX: usize = 1024;
/// Longest reason that is kept, in bytes.
const WHY_BYTES_MAX: usize = 512;
/// Longest of these files that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

const MARK: &str = "crc32c ";

/// JSON, a line feed, `crc32c `, 8 hexadecimal digits, a line feed.
#[must_use]
pub fn seal<T: Serialize>(value: &T) -> Vec<u8> {
    // These types have no map with other keys than text, and nothing else fails.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(format!("\n{MARK}{crc:08x}\n").as_bytes());
    bytes
}

/// Reads it back; `None`: it is damaged.
#[must_use]
pub fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let tail = 1 + MARK.len() + 8 + 1;
    let (body, end) = bytes.split_at_checked(bytes.len().checked_sub(tail)?)?;
    let crc = crc32c::crc32c(body);
    if end != format!("\n{MARK}{crc:08x}\n").as_bytes() {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// Where the device stands.
///
/// ```text
/// Settled --begin_trial--> Trial --commit--> Settled(to)
///                           |  \--roll_back--> Trial(failed) --> Settled(from)
///                           \--recovery, `current` still at from--> Settled(from)
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// What runs is what is to run.
    Settled {
        /// The generation; none before the first update.
        current: Option<GenId>,
    },
    /// `to` has still to prove itself.
    Trial {
        /// What to go back to.
        from: Option<GenId>,
        /// What is being tried.
        to: GenId,
        /// Starts of the device (or of otad) that found it in this state, with `current` at `to`.
        tries: u8,
        /// It was decided to go back, and that is not finished.
        failed: Option<Failure>,
    },
}

/// Why a trial goes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Failure {
    /// For people.
    pub why: String,
    /// The manifest is never to be tried again.
    pub quarantine: bool,
    /// When.
    pub at: Timestamp,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It is what the device runs.
    Committed,
    /// The device went back to what it had.
    RolledBack,
    /// It was interrupted before anything had changed.
    Abandoned,
}

/// An app of an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Brief {
    /// Its name.
    pub app: String,
    /// Its version.
    pub version: String,
    /// Its environment.
    pub env: String,
    /// Its epoch.
    pub epoch: u64,
    /// Its floor.
    pub min_epoch: u64,
}

impl From<&Item> for Brief {
    fn from(item: &Item) -> Brief {
        let Item { app, version, env, epoch, min_epoch, .. } = item.clone();
        Brief { app, version, env, epoch, min_epoch }
    }
}

/// What is tried, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Subject {
    /// Its manifest's hash.
    pub hash: Sha256,
    /// Its apps.
    pub apps: Vec<Brief>,
}

impl From<&Manifest> for Subject {
    fn from(manifest: &Manifest) -> Subject {
        Subject { hash: manifest.hash(), apps: manifest.items().iter().map(Brief::from).collect() }
    }
}

/// How it went, for the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// Counts the outcomes of this device, from 1.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Which generation.
    pub generation: GenId,
    /// What became of it.
    pub ending: Ending,
    /// Why, if it was not committed.
    pub why: String,
    /// It is never to be tried again.
    pub quarantined: bool,
    /// What it was.
    pub subject: Subject,
}

/// The file `state`.
///
/// It is also the journal of what has to follow an ending: while `last` is not in the history yet, the high-water marks,
/// the quarantine and the history are completed from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// Its form: 1.
    pub v: u32,
    /// Where the device stands.
    pub state: State,
    /// The generations that were committed and are kept, oldest first.
    pub kept: Vec<GenId>,
    /// What is tried, during a trial.
    pub trial: Option<Subject>,
    /// The newest ending.
    pub last: Option<Outcome>,
}

impl Record {
    pub(super) fn settled(current: Option<GenId>, kept: Vec<GenId>) -> Record {
        Record { v: 1, state: State::Settled { current }, kept, trial: None, last: None }
    }

    /// Reads it back; `None`: it is damaged, or of another form.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        unseal(bytes).filter(|record: &Record| record.v == 1)
    }
}

/// What must not be gone below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The highest epoch that was committed.
    pub epoch: u64,
    /// The highest floor that a committed release set.
    pub min_epoch: u64,
}

/// The file `highwater`: per app (in lower case) and environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<RawMark>", into = "Vec<RawMark>")]
pub struct HighWater(BTreeMap<(String, String), Mark>);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawMark {
    app: String,
    env: String,
    epoch: u64,
    min_epoch: u64,
}

impl From<Vec<RawMark>> for HighWater {
    fn from(raw: Vec<RawMark>) -> HighWater {
        let mut marks = HighWater::default();
        raw.iter().for_each(|raw| marks.raise(&raw.app, &raw.env, raw.epoch, raw.min_epoch));
        marks
    }
}

impl From<HighWater> for Vec<RawMark> {
    fn from(marks: HighWater) -> Vec<RawMark> {
        let raw = |((app, env), mark): ((String, String), Mark)| RawMark {
            app,
            env,
            epoch: mark.epoch,
            min_epoch: mark.min_epoch,
        };
        marks.0.into_iter().map(raw).collect()
    }
}

impl HighWater {
    /// The mark of an app in an environment.
    #[must_use]
    pub fn get(&self, app: &str, env: &str) -> Mark {
        self.0.get(&(app.to_ascii_lowercase(), env.to_ascii_lowercase())).copied().unwrap_or_default()
    }

    pub(super) fn raise(&mut self, app: &str, env: &str, epoch: u64, min_epoch: u64) {
        let mark = self.0.entry((app.to_ascii_lowercase(), env.to_ascii_lowercase())).or_default();
        mark.epoch = mark.epoch.max(epoch);
        mark.min_epoch = mark.min_epoch.max(min_epoch);
    }

    pub(super) fn raise_by(&mut self, apps: &[Brief]) {
        apps.iter().for_each(|app| self.raise(&app.app, &app.env, app.epoch, app.min_epoch));
    }

    pub(super) fn raise_to(&mut self, other: &HighWater) {
        other.0.iter().for_each(|((app, env), mark)| self.raise(app, env, mark.epoch, mark.min_epoch));
    }
}

/// A manifest that is never tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its hash.
    pub hash: Sha256,
    /// Since when.
    pub at: Timestamp,
    /// Why.
    pub why: String,
}

/// The files `highwater`, `quarantine`, `history` and `clock`, each with its form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<T> {
    v: u32,
    value: T,
}

/// The bytes of such a file.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    seal(&Versioned { v: 1, value })
}

/// Reads such a file back; `None`: it is damaged, or of another form.
#[must_use]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    unseal(bytes).filter(|file: &Versioned<T>| file.v == 1).map(|file| file.value)
}

/// The newest last.
pub type History = VecDeque<Outcome>;

/// At most what is kept of a reason.
pub(super) fn short(why: &str) -> String {
    let end = (0..=why.len().min(WHY_BYTES_MAX)).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
    why.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        let generation: GenId = "7-0a1b2c3d".parse().unwrap();
        let apps =
            vec![Brief { app: "a".into(), version: "1".into(), env: "prod".into(), epoch: 3, min_epoch: 1 }];
        let subject = Subject { hash: edge::release::Digest([7; 32]), apps };
        let failed = Some(Failure { why: "w".into(), quarantine: true, at: Timestamp(5) });
        let state = State::Trial { from: Some(generation), to: generation, tries: 2, failed };
        let last = Some(Outcome {
            seq: 9,
            at: Timestamp(1),
            generation,
            ending: Ending::RolledBack,
            why: "x".into(),
            quarantined: true,
            subject: subject.clone(),
        });
        Record { v: 1, state, kept: vec![generation], trial: Some(subject), last }
    }

    #[test]
    fn a_state_goes_both_ways_and_a_damaged_one_is_none() {
        let record = sample();
        let bytes = seal(&record);
        assert_eq!(Record::decode(&bytes), Some(record.clone()));
        for at in 0..bytes.len() {
            for bit in [1, 4, 0x20, 0x80] {
                let mut damaged = bytes.clone();
                damaged[at] ^= bit;
                assert_eq!(Record::decode(&damaged), None, "{at}");
            }
            assert_eq!(Record::decode(&bytes[..at]), None);
        }
        assert_eq!(Record::decode(&seal(&Record { v: 2, ..record })), None);
        assert_eq!(decode::<i64>(&encode(&5)), Some(5));
    }

    #[test]
    fn marks_are_raised_and_never_lowered() {
        let mut marks = HighWater::default();
        marks.raise("App", "prod", 5, 2);
        marks.raise("app", "prod", 4, 3);
        marks.raise("app", "beta", 9, 0);
        assert_eq!(marks.get("APP", "prod"), Mark { epoch: 5, min_epoch: 3 });
        assert_eq!(marks.get("app", "beta").epoch, 9);
        assert_eq!(marks.get("app", "other"), Mark::default());
        let back: HighWater = decode(&encode(&marks)).unwrap();
        assert_eq!(back, marks);
    }

    #[test]
    fn reasons_are_cut_between_characters() {
        assert_eq!(short("abc"), "abc");
        let long = "ü".repeat(600);
        assert!(short(&long).len() <= WHY_BYTES_MAX && long.starts_with(&short(&long)));
    }

    #[test]
    fn names_of_generations_have_one_spelling() {
        for bad in [
            "",
            "0-00000000",
            "01-00000000",
            "1-0000000",
            "1-000000000",
            "1-0000000G",
            "1-ABCDEF00",
            "+1-00000000",
            "1",
        ] {
            assert!(bad.parse::<GenId>().is_err(), "{bad}");
        }
        assert_eq!("12-00ff00aa".parse::<GenId>().unwrap().to_string(), "12-00ff00aa");
    }
}
