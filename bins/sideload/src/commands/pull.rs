//! `pull`: files from the device to this host.
//!
//! Invariants: nothing is written outside the folder, whatever paths the device names; a file appears when it is
//! complete, or not at all; one that is here with another content is kept without --force.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use edge::beneath::Root;
use edge::http::uri::percent_encode_path;
use edge::sync::RelPath;
use serde_json::json;

use super::files::on_device;
use super::place::Incoming;
use super::{connect, number, text};
use crate::client::{Client, Request};
use crate::config::Settings;
use crate::output::{EX_CANTCREAT, EX_REFUSED, Failure, Reply, count};
use crate::progress::Bar;

/// A file as the device lists it.
struct Listed {
    size: u64,
    mtime_ns: Option<i64>,
}

/// What became of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pulled {
    Written,
    /// It was here with the same content.
    Same,
    /// It was here with another one.
    Kept,
}

/// `pull`
pub fn run(
    settings: &Settings,
    paths: &[String],
    to: &Path,
    force: bool,
    as_json: bool,
) -> Result<Reply, Failure> {
    let mut client = connect(settings)?;
    let listed = list(&mut client)?;
    let wanted = choose(listed, paths)?;
    let cannot = |what: &str, error: &dyn std::error::Error| {
        Failure::new(EX_CANTCREAT, format!("cannot make {what}: {}", edge::log::chain(error)))
            .fix("--to names another folder")
    };
    std::fs::create_dir_all(to).map_err(|error| cannot(&to.display().to_string(), &error))?;
    let root = Root::open(to).map_err(|error| cannot(&to.display().to_string(), &error))?;
    let mut bar = Bar::new(as_json);
    bar.start("pulling", wanted.values().map(|file| file.size).sum());
    let (mut results, mut bytes) = (Vec::new(), 0);
    for (path, file) in &wanted {
        let result = one(&mut client, &root, path, file, force, &mut bar)?;
        if result == Pulled::Written {
            bytes += file.size;
        }
        results.push((path, result));
    }
    bar.end();
    let with = |wanted: Pulled| -> Vec<&str> {
        results.iter().filter(|(_, result)| *result == wanted).map(|(path, _)| path.as_str()).collect()
    };
    let (written, same, kept) = (with(Pulled::Written), with(Pulled::Same), with(Pulled::Kept));
    let mut line = format!(
        "pulled {} ({}) to {}",
        count(written.len() as u64, "file"),
        edge::text::bytes(bytes),
        to.display()
    );
    if !same.is_empty() {
        line.push_str(&format!(", {} are the same already", same.len()));
    }
    for path in &kept {
        line.push_str(&format!("\nkept {path}: here it has another content; --force overwrites it"));
    }
    let json = json!({ "to": to.display().to_string(), "pulled": written, "same": same, "kept": kept, "bytes": bytes });
    let code = if kept.is_empty() { 0 } else { EX_CANTCREAT };
    Ok(Reply { code, ..Reply::line(line, json) })
}

fn list(client: &mut Client) -> Result<BTreeMap<RelPath, Listed>, Failure> {
    let answer = client.request(Request::new("GET", "/files"))?.json()?;
    let mut files = BTreeMap::new();
    for file in answer.as_array().into_iter().flatten() {
        match RelPath::new(text(file, "filepath")) {
            Ok(path) => {
                let listed = Listed { size: number(file, "size"), mtime_ns: parse_time(text(file, "mtime")) };
                files.insert(path, listed);
            }
            // A path that no honest device lists.
            Err(refusal) => log::warn!("left out: {refusal}"),
        }
    }
    Ok(files)
}

/// The files that `paths` name, as files or as folders; all without any.
fn choose(
    mut files: BTreeMap<RelPath, Listed>,
    paths: &[String],
) -> Result<BTreeMap<RelPath, Listed>, Failure> {
    if paths.is_empty() || paths.iter().any(|path| matches!(path.as_str(), "." | "./")) {
        return Ok(files);
    }
    let mut wanted = Vec::new();
    for path in paths {
        let path = on_device(path.trim_end_matches('/'))?;
        let found = files.keys().any(|file| covers(&path, file));
        if !found {
            return Err(Failure::new(EX_REFUSED, format!("the device has no file or folder {}", &*path))
                .fix("`sideload list-files` shows what is there"));
        }
        wanted.push(path);
    }
    files.retain(|file, _| wanted.iter().any(|path| covers(path, file)));
    Ok(files)
}

fn covers(path: &str, file: &str) -> bool {
    file.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn one(
    client: &mut Client,
    root: &Root,
    path: &RelPath,
    listed: &Listed,
    force: bool,
    bar: &mut Bar,
) -> Result<Pulled, Failure> {
    let local = |error: &dyn std::error::Error| {
        let cause =
            format!("cannot make {}: {}", root.path().join(&**path).display(), edge::log::chain(error));
        Failure::new(EX_CANTCREAT, cause).fix("free space or permissions here; --to names another folder")
    };
    let there = root.stat(path).map_err(|error| local(&error))?;
    if let Some(there) = there.filter(|_| !force) {
        let same_time = listed.mtime_ns.is_some_and(|mtime| mtime / 1000 == there.mtime_ns / 1000);
        bar.add(listed.size);
        return Ok(if there.is_file && there.size == listed.size && same_time {
            Pulled::Same
        } else {
            Pulled::Kept
        });
    }
    let (folder, name) = root.parent(path, true).map_err(|error| local(&error))?;
    let url = format!("/files/{}", percent_encode_path(path));
    let mut answer = client.request(Request::new("GET", &url))?.check()?;
    let mut buffer = vec![0; 64 * 1024];
    let mut count = answer.read_piece(&mut buffer)?;
    // The listing has no modes: what begins as a script is one, as sideloadd itself has it.
    let mode = if buffer[..count].starts_with(b"#!") { 0o755 } else { 0o644 };
    let mut incoming = Incoming::begin(folder, mode).map_err(|error| local(&error))?;
    while count > 0 {
        incoming.file().write_all(&buffer[..count]).map_err(|error| local(&error))?;
        bar.add(count as u64);
        count = answer.read_piece(&mut buffer)?;
    }
    if let Some(mtime_ns) = listed.mtime_ns {
        let moment = std::time::SystemTime::UNIX_EPOCH
            .checked_add(std::time::Duration::from_nanos(u64::try_from(mtime_ns).unwrap_or(0)));
        if let Some(moment) = moment {
            incoming.file().set_modified(moment).map_err(|error| local(&error))?;
        }
    }
    incoming.finish(&name, force).map_err(|error| local(&error))?;
    Ok(Pulled::Written)
}

/// `2026-11-24T14:46:57.123456` in ns since 1970.
fn parse_time(text: &str) -> Option<i64> {
    let format = time::macros::format_description!(
        version = 2,
        "[year]-[month]-[day]T[hour]:[minute]:[second][optional [.[subsecond]]]"
    );
    let moment = time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc();
    i64::try_from(moment.unix_timestamp_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> BTreeMap<RelPath, Listed> {
        names.iter().map(|n| (RelPath::new(n).unwrap(), Listed { size: 1, mtime_ns: None })).collect()
    }

    #[test]
    fn paths_choose_files_and_folders() {
        let all = ["out/a", "out/b/c", "outer", "main.py"];
        let chosen = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
            choose(files(&all), &paths).map(|f| f.keys().map(|p| p.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(chosen(&[]).unwrap().len(), 4);
        assert_eq!(chosen(&["."]).unwrap().len(), 4);
        assert_eq!(chosen(&["out"]).unwrap(), ["out/a", "out/b/c"]);
        assert_eq!(chosen(&["./out/b/", "main.py"]).unwrap(), ["main.py", "out/b/c"]);
        assert_eq!(chosen(&["ou"]).unwrap_err().code, 1);
        assert_eq!(chosen(&["../x"]).unwrap_err().code, 64);
    }

    #[test]
    fn times_read_with_and_without_a_fraction() {
        assert_eq!(parse_time("2026-11-24T14:46:57.123456"), Some(1_795_531_617_123_456_000));
        assert_eq!(parse_time("2026-11-24T14:46:57"), Some(1_795_531_617_000_000_000));
        for wrong in ["", "now", "2026-11-24T14:46:57Z", "2026-13-24T14:46:57"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }
}
