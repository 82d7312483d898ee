//! `publish` and `promote`: a new release.
//!
//! Order: the content is durable in the store; then one change of the catalog makes the release what it is to be. What a
//! command that was killed left behind is content that nobody names; the same command again finds what there is.

use std::fs::File;
use std::path::Path;

use edge::release::{Digests, Statement, Sums, Timestamp};
use serde_json::json;

use super::args::Given;
use super::context::{Context, now};
use super::look::describe;
use super::output::{Failure, Reply};
use super::seal::{How, hand_out};
use crate::catalog::{self, Release, State};

/// How often somebody else may take the epoch that was to be ours.
const ATTEMPTS: usize = 20;

/// What is to be published.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The app.
    pub app: String,
    /// Its version.
    pub version: String,
    /// The environment.
    pub env: String,
    /// In lower case, sorted.
    pub attrs: Vec<String>,
    /// Percent.
    pub rollout: u8,
    /// Later releases ask that it was passed.
    pub floor: bool,
    /// Nothing below is run again.
    pub min_epoch: u64,
    /// Not to be installed from then on.
    pub expires: Option<Timestamp>,
    /// Instead of the next one.
    pub epoch: Option<u64>,
}

impl Draft {
    /// What both commands take.
    fn read(
        given: &Given,
        app: &str,
        version: &str,
        env: String,
        attrs: Vec<String>,
    ) -> Result<Self, Failure> {
        if !edge::release::valid_name(app) {
            return Err(Failure::usage(format!(
                "{app:?} can't be an app: 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.' or '-'"
            )));
        }
        if !edge::release::valid_version(version) {
            return Err(Failure::usage(format!(
                "{version:?} can't be a version: 1 to 64 letters, digits, or any of '._-+~:', not beginning with '.' or '-'"
            )));
        }
        Ok(Self {
            app: app.to_owned(),
            version: version.to_owned(),
            env,
            attrs,
            rollout: given.percent("--rollout")?.unwrap_or(100),
            floor: given.has("--must-pass-through"),
            min_epoch: given.number("--min-epoch")?.unwrap_or(0),
            expires: given.text("--expires").map(|text| expiry(text, now())).transpose()?,
            epoch: given.number("--epoch")?,
        })
    }
}

/// `2027-01-31T00:00:00Z`, or `90d` from now.
fn expiry(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    let at = match days {
        Some(days) => Timestamp(now.0 + i64::from(days) * 86_400),
        None => text.parse().map_err(|expected| {
            Failure::usage(format!("--expires {text:?}: {expected}, or a number of days such as 90d"))
        })?,
    };
    if at <= now {
        return Err(Failure::usage(format!("--expires {text:?} is past")));
    }
    Ok(at)
}

/// `publish`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn run(given: &Given) -> Result<Reply, Failure> {
    let (app, version) = (given.need("--app")?, given.need("--version")?);
    let mut attrs =
        given.values("--attr").map(|a| Given::lower("--attr", a)).collect::<Result<Vec<_>, _>>()?;
    attrs.sort();
    attrs.dedup();
    let draft = Draft::read(given, app, version, given.need_env()?, attrs)?;
    // Whatever can be refused is, before anything is copied.
    let how = How::read(given)?;
    let mut file = open(Path::new(given.first()))?;
    let mut context = Context::open(given)?;
    publish(&mut context, &how, &draft, &mut file)
}

/// Publishes the content of `file`.
///
/// # Errors
/// With the exit code for what is wrong.
pub fn publish(context: &mut Context, how: &How, draft: &Draft, file: &mut File) -> Result<Reply, Failure> {
    context.store.lock(false)?;
    let there = context.catalog.list(Some(&draft.app), Some(&draft.env))?;
    if let Some(same) = same_version(&there, &draft.version) {
        compare(same, &hash(file)?, draft)?;
    }
    let sums = context.store.put(file)?;
    release(context, how, draft, sums)
}

fn open(path: &Path) -> Result<File, Failure> {
    let file = File::open(path).map_err(edge::fs::context("open", path))?;
    if !file.metadata().map_err(edge::fs::context("look at", path))?.is_file() {
        return Err(Failure::refused(format!("{} is no file", path.display())).fix(
            "publish one file; pack a folder first, for example with tar (kind = \"tar\" on the device)",
        ));
    }
    Ok(file)
}

/// The sums of the file as it is.
fn hash(file: &mut File) -> Result<Sums, Failure> {
    use std::io::{Read as _, Seek as _};
    let failed = |source| Failure::from(crate::store::Error::Source(source));
    file.rewind().map_err(failed)?;
    let (mut digests, mut buffer) = (Digests::default(), vec![0; 128 * 1024]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(digests.finish()),
            n => digests.update(&buffer[..n]),
        }
    }
}

fn same_version<'r>(there: &'r [Release], version: &str) -> Option<&'r Release> {
    there.iter().find(|r| r.version == version && r.state != State::Retired)
}

/// A version is there once: the same command again is no new release, another content is refused.
fn compare(there: &Release, sums: &Sums, draft: &Draft) -> Result<(), Failure> {
    let differs = if there.sums != Some(*sums) {
        "content"
    } else if there.attrs != draft.attrs {
        "attributes"
    } else if there.rollout != draft.rollout || there.floor != draft.floor {
        "rollout"
    } else if there.state == State::Paused {
        return Err(Failure::refused(format!("{} is there already, and paused", there.title()))
            .fix(format!("depotd resume {} --env {}", there.app, there.env)));
    } else {
        return Ok(());
    };
    Err(Failure::refused(format!("{} is there already, with another {differs} ({})", there.title(), there.state))
        .fix("publish it under a new version, or 'depotd retire' the old one first; 'depotd rollout' changes the percentage"))
}

/// Makes the content in the store a release.
fn release(context: &mut Context, how: &How, draft: &Draft, sums: Sums) -> Result<Reply, Failure> {
    for _ in 0..ATTEMPTS {
        let there = context.catalog.list(Some(&draft.app), Some(&draft.env))?;
        if let Some(same) = same_version(&there, &draft.version) {
            compare(same, &sums, draft)?;
            return again(context, how, &same.clone());
        }
        let newest = there.first().map_or(0, |r| r.epoch);
        let epoch = draft.epoch.unwrap_or(newest + 1);
        if epoch <= newest {
            return Err(Failure::refused(format!(
                "epoch {epoch} is not above {newest}, the newest of {}",
                draft.app
            ))
            .fix("leave --epoch out, or choose a higher one: no device takes a lower epoch than it had"));
        }
        let new = fresh(context, how, draft, sums, epoch, &there)?;
        match context.catalog.insert(&new) {
            Ok(()) => return reply(context, how, &new, false),
            // Somebody else published meanwhile: the statement names the next epoch, and is signed anew.
            Err(catalog::Error::Taken { .. }) if draft.epoch.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::new(super::output::EX_TEMPFAIL, format!("others publish {} all the time", draft.app))
        .fix("repeat the command"))
}

fn fresh(
    context: &Context,
    how: &How,
    draft: &Draft,
    sums: Sums,
    epoch: u64,
    there: &[Release],
) -> Result<Release, Failure> {
    let served = |r: &&Release| matches!(r.state, State::Live | State::Paused);
    let from_epoch = there.iter().filter(served).find(|r| r.floor).map_or(0, |r| r.epoch);
    let statement = Statement {
        v: 1,
        app: draft.app.clone(),
        version: draft.version.clone(),
        env: draft.env.clone(),
        epoch,
        md5: sums.md5,
        sha256: sums.sha256,
        size: sums.size,
        attrs: draft.attrs.clone(),
        min_epoch: draft.min_epoch,
        from_epoch,
        rollout: draft.rollout,
        salt: format!("{:016x}", fastrand::u64(..)),
        expires: draft.expires,
    };
    let sealed = how.seal(context, &statement)?;
    Ok(Release {
        app: draft.app.clone(),
        version: draft.version.clone(),
        env: draft.env.clone(),
        epoch,
        md5: Some(sums.md5),
        sums: Some(sums),
        url: context.store.url_of(&sums.sha256),
        attrs: draft.attrs.clone(),
        rollout: draft.rollout,
        from_epoch,
        floor: draft.floor,
        state: sealed.state,
        statement: Some(sealed.statement),
        signature: sealed.signature,
        published: now(),
    })
}

/// The release is there: the command was repeated, or the signature comes now.
fn again(context: &mut Context, how: &How, there: &Release) -> Result<Reply, Failure> {
    if there.state != State::Pending || matches!(how, How::Later(_)) {
        return reply(context, how, there, true);
    }
    let text = there.statement.as_deref().unwrap_or_default();
    let statement = Statement::parse(text.as_bytes()).map_err(|e| Failure::refused(edge::log::chain(&e)))?;
    let sealed = how.seal(context, &statement)?;
    let now = Release {
        state: sealed.state,
        statement: Some(sealed.statement),
        signature: sealed.signature,
        ..there.clone()
    };
    context.catalog.replace(there, &now)?;
    reply(context, how, &now, false)
}

fn reply(context: &Context, how: &How, release: &Release, was_there: bool) -> Result<Reply, Failure> {
    let title = release.title();
    let mut json = json!({ "release": describe(release), "already": was_there });
    let text = match (release.state, how) {
        (State::Pending, How::Later(file)) => {
            let statement = release.statement.as_deref().unwrap_or_default();
            let (text, more) = hand_out(context, file.as_ref(), release, statement)?;
            json["sign"] = more;
            format!("{title} waits for its signature.\n{text}")
        }
        _ if was_there => format!("{title} is {} already: nothing to do\n", release.state),
        _ if release.signature.is_none() => {
            format!("{title} is live, unsigned: devices take it only with require-signature = false\n")
        }
        _ => format!("{title} is live\n"),
    };
    Ok(Reply::new(text, json))
}

/// `promote`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn promote(given: &Given) -> Result<Reply, Failure> {
    let from = Given::lower("--from", given.need("--from")?)?;
    let to = Given::lower("--to", given.need("--to")?)?;
    if from == to {
        return Err(Failure::usage("--from and --to are the same environment"));
    }
    let how = How::read(given)?;
    let mut context = Context::open(given)?;
    let live = |state| state == State::Live;
    let old = context.find(given.first(), &from, given.text("--version"), live, "live")?;
    let Some(sums) = old.sums else {
        return Err(
            Failure::refused(format!("{} has no known content", old.title())).fix("publish its file instead")
        );
    };
    context.store.lock(false)?;
    // It is not asked again what it says: a release whose content is gone would be found by devices first.
    drop(context.store.get(&sums.sha256, None)?);
    let draft = Draft::read(given, &old.app, &old.version, to, old.attrs.clone())?;
    release(&mut context, &how, &draft, sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_time_or_a_number_of_days() {
        let now = Timestamp(1_795_531_617);
        assert_eq!(expiry("90d", now).unwrap(), Timestamp(now.0 + 90 * 86_400));
        assert_eq!(expiry("2027-01-31T00:00:00Z", now).unwrap().to_string(), "2027-01-31T00:00:00Z");
        for bad in ["", "90", "d", "0d", "-1d", "2020-01-31T00:00:00Z", "tomorrow"] {
            assert!(expiry(bad, now).is_err(), "{bad}");
        }
    }
}
