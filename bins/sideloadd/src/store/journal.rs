//! What a commit is going to do, on disk before it is done; and a commit's own record.
//!
//! Both are one JSON line, for the person who looks, then for a commit its manifest as it travelled, then the CRC-32C of
//! all before it (u32, little-endian). Written beside and renamed, so that a torn one has never had its name.

use edge::sync::manifest::{Limits, Manifest};
use edge::sync::{ContentId, RelPath};
use serde::{Deserialize, Serialize};

/// Where the content of a path comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A second name for the object.
    Object(String),
    /// A copy that waits in `stage/`.
    Copy(String),
}

/// One step. Doing it twice is the same as doing it once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// The path gets this content, mode and time.
    Place { path: String, from: Source, mode: u32, mtime_ns: i64 },
    /// Its mode changes.
    Mode { path: String, mode: u32 },
    /// It goes, and the folders that are empty then.
    Delete { path: String },
    /// The byte code that Python made of it goes.
    Recompile { path: String },
}

/// A decided commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub commit: u64,
    pub ops: Vec<Op>,
}

/// What is known of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommitInfo {
    /// Its number, from 1.
    pub commit: u64,
    /// When, Unix ms.
    pub time_ms: u64,
    /// Files in its manifest.
    pub files: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Files it changed.
    pub changed: u32,
    /// Files it deleted.
    pub deleted: u32,
    /// The commit that it brought back, if it was a rollback.
    pub restored: Option<u64>,
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = edge::sync::cache::crc(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn open(bytes: &[u8]) -> Option<&[u8]> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    (edge::sync::cache::crc(body) == u32::from_le_bytes(*crc)).then_some(body)
}

impl Op {
    pub fn path(&self) -> &str {
        match self {
            Op::Place { path, .. } | Op::Mode { path, .. } | Op::Delete { path } | Op::Recompile { path } => {
                path
            }
        }
    }
}

impl Journal {
    pub fn encode(&self) -> Vec<u8> {
        // These types have no map with other keys than text, and nothing else fails.
        seal(serde_json::to_vec(self).unwrap_or_default())
    }

    pub fn decode(bytes: &[u8]) -> Option<Journal> {
        let journal: Journal = serde_json::from_slice(open(bytes)?).ok()?;
        let good = |path: &str| RelPath::new(path).is_ok();
        let name = |name: &str| !name.contains('/') && !name.is_empty();
        let sound = journal.ops.iter().all(|op| match op {
            Op::Place { path, from: Source::Object(id), .. } => {
                good(path) && ContentId::from_hex(id).is_some()
            }
            Op::Place { path, from: Source::Copy(copy), .. } => good(path) && name(copy),
            Op::Mode { path, .. } | Op::Delete { path } | Op::Recompile { path } => good(path),
        });
        sound.then_some(journal)
    }
}

/// The file of a commit.
pub fn encode_commit(info: &CommitInfo, manifest: &Manifest) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(info).unwrap_or_default();
    bytes.push(b'\n');
    bytes.extend_from_slice(&manifest.encode());
    seal(bytes)
}

/// Reads it back.
pub fn decode_commit(bytes: &[u8]) -> Option<(CommitInfo, Manifest)> {
    let body = open(bytes)?;
    let line = body.iter().position(|b| *b == b'\n')?;
    let info = serde_json::from_slice(&body[..line]).ok()?;
    // We wrote it: whatever the limits are today.
    let limits = Limits { files_max: usize::MAX, bytes_max: 1 << 30 };
    Some((info, Manifest::decode(&body[line + 1..], &limits).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_goes_both_ways_and_a_damaged_one_is_none() {
        let ops = vec![
            Op::Place { path: "a/b".into(), from: Source::Object("0".repeat(64)), mode: 0o755, mtime_ns: -5 },
            Op::Place { path: "c".into(), from: Source::Copy("copy-1".into()), mode: 0o644, mtime_ns: 5 },
            Op::Mode { path: "m".into(), mode: 0o600 },
            Op::Delete { path: "d".into() },
            Op::Recompile { path: "e.py".into() },
        ];
        let journal = Journal { commit: 7, ops };
        let bytes = journal.encode();
        assert_eq!(Journal::decode(&bytes), Some(journal));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(Journal::decode(&damaged), None, "{at}");
        }
        let hostile = Journal { commit: 1, ops: vec![Op::Delete { path: "../x".into() }] };
        assert_eq!(Journal::decode(&hostile.encode()), None);
    }

    #[test]
    fn a_commit_goes_both_ways() {
        let info = CommitInfo {
            commit: 3,
            time_ms: 4,
            files: 0,
            bytes: 0,
            changed: 1,
            deleted: 2,
            restored: Some(1),
        };
        let bytes = encode_commit(&info, &Manifest::default());
        assert_eq!(decode_commit(&bytes), Some((info, Manifest::default())));
        assert_eq!(decode_commit(&bytes[1..]), None);
    }
}
