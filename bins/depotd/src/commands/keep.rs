//! `verify` and `gc`: is everything as it is said to be, and what need not be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use edge::release::{Digests, Sha256, Statement, Sums};
use edge::text::bytes;
use serde_json::json;

use super::args::Given;
use super::context::{Context, now};
use super::output::{EX_FOUND, Failure, Reply, count};
use crate::catalog::{Release, State};
use crate::store::{self, Blob};

/// Where nobody can be kept from publishing, content younger than this may belong to a release that is being made.
const YOUNG_S: i64 = 24 * 3600;

fn sums_of(mut blob: Blob) -> std::io::Result<Sums> {
    let (mut digests, mut buffer) = (Digests::default(), vec![0; 128 * 1024]);
    loop {
        match blob.reader.read(&mut buffer) {
            Ok(0) => return Ok(digests.finish()),
            Ok(n) => digests.update(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// `verify`
///
/// # Errors
/// With the exit code for what keeps it from checking; what it found is the reply, with code 1.
pub fn verify(given: &Given) -> Result<Reply, Failure> {
    let env = given.env()?;
    let mut context = Context::open(given)?;
    let mut problems = context.catalog.damage()?;
    let mut all = context.catalog.list(given.text("--app"), env.as_deref())?;
    all.retain(|r| r.state.needs_content());
    let (mut unsigned, mut unverified, mut contents) = (0, 0, BTreeMap::new());
    for release in &all {
        let mut problem = |why: String| problems.push(format!("{}: {why}", release.title()));
        statement(release).into_iter().for_each(&mut problem);
        match (&release.statement, &release.signature) {
            (Some(_), Some(_)) if context.keys.is_empty() => unverified += 1,
            (Some(statement), Some(signature)) => {
                if let Err(error) = context.keys.verify(statement.as_bytes(), signature) {
                    problem(edge::log::chain(&error));
                }
            }
            _ => unsigned += usize::from(release.state != State::Pending),
        }
        // Several releases may have the same content: it is read once.
        let of = release.sums.map_or_else(|| release.url.clone(), |sums| sums.sha256.to_string());
        let found: &Result<Sums, String> = contents.entry(of).or_insert_with(|| {
            let blob = context.store.open(release, None).map_err(|error| edge::log::chain(&error))?;
            sums_of(blob).map_err(|error| format!("the content can't be read to its end: {error}"))
        });
        match found {
            Err(why) => problem(why.clone()),
            Ok(found) if release.sums.is_some_and(|sums| sums != *found) => {
                problem(format!("the content is damaged: its SHA-256 is {}; publish it again", found.sha256));
            }
            Ok(found) if release.md5.is_some_and(|md5| md5 != found.md5) => {
                problem(format!("the content's MD5 is {}", found.md5));
            }
            Ok(_) => {}
        }
    }
    let mut text: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    text += &format!("{}, {}", count(all.len() as u64, "release"), count(contents.len() as u64, "content"));
    if unsigned > 0 {
        text += &format!(", {unsigned} unsigned");
    }
    if unverified > 0 {
        text +=
            &format!(", {unverified} whose signature can't be verified (depotd.toml names no public-keys)");
    }
    text += &match problems.len() {
        0 => ": all is well\n".to_owned(),
        n => format!(": {}\n", count(n as u64, "problem")),
    };
    let json = json!({
        "releases": all.len(), "contents": contents.len(), "unsigned": unsigned, "unverified": unverified, "problems": problems,
    });
    Ok(Reply { code: if problems.is_empty() { 0 } else { EX_FOUND }, ..Reply::new(text, json) })
}

/// What the statement says otherwise than the catalog.
fn statement(release: &Release) -> Option<String> {
    let Some(text) = &release.statement else {
        return release.signature.as_ref().map(|_| "a signature without a statement".to_owned());
    };
    let said = match Statement::parse(text.as_bytes()) {
        Ok(said) => said,
        Err(error) => return Some(edge::log::chain(&error)),
    };
    let sums = release.sums.map(|sums| (sums.sha256, sums.md5, sums.size));
    let differs = [
        ("app", said.app != release.app),
        ("version", said.version != release.version),
        ("env", said.env != release.env),
        ("epoch", said.epoch != release.epoch),
        ("content", sums != Some((said.sha256, said.md5, said.size))),
        ("attrs", said.attrs != release.attrs),
        ("rollout", said.rollout != release.rollout),
        ("from-epoch", said.from_epoch != release.from_epoch),
    ];
    let differs: Vec<&str> = differs.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    (!differs.is_empty()).then(|| format!("the statement and the catalog differ in {}", differs.join(", ")))
}

/// `gc`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn gc(given: &Given) -> Result<Reply, Failure> {
    let (dry, days) = (given.has("--dry-run"), given.number::<u32>("--pending-days")?.unwrap_or(30));
    let mut context = Context::open(given)?;
    let alone = context.store.lock(true)?;
    let now_s = now().0;
    let mut all = context.catalog.list(None, None)?;
    let mut expired = Vec::new();
    for release in &mut all {
        if release.state == State::Pending && release.published.0 + i64::from(days) * 86_400 <= now_s {
            let gone = Release { state: State::Retired, ..release.clone() };
            if !dry {
                context.catalog.replace(release, &gone)?;
            }
            expired.push(release.title());
            *release = gone;
        }
    }
    let needed: BTreeSet<Sha256> =
        all.iter().filter(|r| r.state.needs_content()).filter_map(|r| r.sums.map(|s| s.sha256)).collect();
    let held = context.store.list()?;
    let free =
        |held: &&store::Held| !needed.contains(&held.sha256) && (alone || held.since.0 + YOUNG_S < now_s);
    let (mut removed, mut total) = (Vec::new(), 0);
    for held in held.iter().filter(free) {
        if !dry {
            context.store.remove(&held.sha256)?;
        }
        total += held.size;
        removed.push(held.sha256.to_string());
    }
    let leftovers = context.store.leftovers()?;
    for leftover in &leftovers {
        if !dry {
            context.store.sweep(leftover)?;
        }
        total += leftover.size;
    }
    let mut text: String =
        expired.iter().map(|title| format!("{title} waited too long for its signature: retired\n")).collect();
    text += &removed.iter().map(|name| format!("{name}\n")).collect::<String>();
    text += &format!(
        "{}{} and {} removed, {} in all; {} kept\n",
        if dry { "would be: " } else { "" },
        count(removed.len() as u64, "content"),
        count(leftovers.len() as u64, "left-over file"),
        bytes(total),
        held.len() - removed.len(),
    );
    let json = json!({
        "dry_run": dry, "retired": expired, "removed": removed, "leftovers": leftovers.len(), "bytes": total,
        "kept": held.len() - removed.len(),
    });
    Ok(Reply::new(text, json))
}
