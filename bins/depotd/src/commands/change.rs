//! `rollout`, `pause`, `resume`, `retire` and `accept`: what becomes of a release that is there.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use edge::release::{STATEMENT_BYTES_MAX, Statement};
use serde_json::json;

use super::args::Given;
use super::context::Context;
use super::look::{describe, offered};
use super::output::{Failure, Reply};
use super::seal::{How, hand_out};
use crate::catalog::{Release, State, key};

/// Longest signature file that is read, in bytes.
const SIGNATURE_BYTES_MAX: u64 = 8192;

fn served(state: State) -> bool {
    matches!(state, State::Live | State::Paused)
}

/// What there is now, in a line for people, and the release for scripts.
fn told(context: &mut Context, what: &str, now: &Release) -> Result<Reply, Failure> {
    let all = context.catalog.list(Some(&now.app), Some(&now.env))?;
    let offered = offered(&all.iter().collect::<Vec<_>>());
    let text = format!("{} {what}\n{} in {}: {offered}\n", now.title(), now.app, now.env);
    Ok(Reply::new(text, json!({ "release": describe(now), "offered": offered })))
}

/// `rollout`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn rollout(given: &Given) -> Result<Reply, Failure> {
    let env = given.need_env()?;
    given.need("--percent")?;
    let percent = given.percent("--percent")?.unwrap_or(100);
    let how = How::read(given)?;
    let mut context = Context::open(given)?;
    let was = context.find(given.first(), &env, given.text("--version"), served, "live or paused")?;
    if was.rollout == percent {
        return told(&mut context, &format!("is at {percent} % already: nothing to do"), &was);
    }
    let Some(text) = &was.statement else {
        return Err(Failure::refused(format!(
            "{} has no statement that could say for whom it is",
            was.title()
        ))
        .fix("publish it anew"));
    };
    let old = Statement::parse(text.as_bytes()).map_err(|e| Failure::refused(edge::log::chain(&e)))?;
    if was.signature.is_some() && matches!(how, How::Unsigned) {
        return Err(Failure::refused(format!(
            "{} is signed, and devices would refuse it without",
            was.title()
        ))
        .fix("--key FILE or --sign-later"));
    }
    // The epoch and the salt stay: devices keep their place, and only join or leave at the end of the line.
    let sealed = how.seal(&context, &Statement { rollout: percent, ..old })?;
    if let How::Later(file) = &how {
        let (text, sign) = hand_out(&context, file.as_ref(), &was, &sealed.statement)?;
        let text =
            format!("{} stays at {} % until the new statement is signed.\n{text}", was.title(), was.rollout);
        return Ok(Reply::new(text, json!({ "release": describe(&was), "sign": sign })));
    }
    let now = Release {
        rollout: percent,
        statement: Some(sealed.statement),
        signature: sealed.signature,
        ..was.clone()
    };
    context.catalog.replace(&was, &now)?;
    told(&mut context, &format!("is for {percent} % of the devices now"), &now)
}

fn set(context: &mut Context, was: &Release, state: State, what: &str) -> Result<Reply, Failure> {
    let now = Release { state, ..was.clone() };
    context.catalog.replace(was, &now)?;
    told(context, what, &now)
}

/// `pause`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn pause(given: &Given) -> Result<Reply, Failure> {
    let env = given.need_env()?;
    let mut context = Context::open(given)?;
    let was = context.find(given.first(), &env, given.text("--version"), served, "live")?;
    // With the version given, the command may be repeated.
    if was.state == State::Paused && given.has("--version") {
        return told(&mut context, "is paused already: nothing to do", &was);
    }
    let live = |state| state == State::Live;
    let was = context.find(given.first(), &env, given.text("--version"), live, "live")?;
    set(&mut context, &was, State::Paused, "is paused; devices that have it keep it")
}

/// `resume`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn resume(given: &Given) -> Result<Reply, Failure> {
    let env = given.need_env()?;
    let mut context = Context::open(given)?;
    let paused = |state| state == State::Paused;
    let was = context.find(given.first(), &env, given.text("--version"), paused, "paused")?;
    set(&mut context, &was, State::Live, "is live again")
}

/// `retire`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn retire(given: &Given) -> Result<Reply, Failure> {
    let (env, version) = (given.need_env()?, given.need("--version")?);
    let mut context = Context::open(given)?;
    let was =
        context.find(given.first(), &env, Some(version), State::needs_content, "pending, live or paused")?;
    set(&mut context, &was, State::Retired, "is retired")
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(edge::fs::context("open", path))?;
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(edge::fs::context("read", path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Failure::refused(format!("{} has more than {bytes_max} bytes", path.display())));
    }
    Ok(bytes)
}

/// `accept`
///
/// # Errors
/// With the exit code for what is wrong; 77 unless one of the server's keys signed exactly these bytes.
pub fn accept(given: &Given) -> Result<Reply, Failure> {
    let path = PathBuf::from(given.first());
    let usual = || {
        let mut name = path.clone().into_os_string();
        name.push(".minisig");
        PathBuf::from(name)
    };
    let bytes = read(&path, STATEMENT_BYTES_MAX as u64)?;
    let signature = read(&given.path("--signature").unwrap_or_else(usual), SIGNATURE_BYTES_MAX)?;
    let signature = String::from_utf8_lossy(&signature).into_owned();
    let mut context = Context::open(given)?;
    context.need_keys()?;
    context.verify(&bytes, &signature)?;
    let new = Statement::parse(&bytes).map_err(|e| Failure::refused(edge::log::chain(&e)))?;
    let all = context.catalog.list(Some(&new.app), Some(&new.env))?;
    let Some(was) = all.iter().find(|r| r.epoch == new.epoch) else {
        return Err(Failure::refused(format!(
            "the statement is about {} {} ({}, epoch {}), which this catalog does not have",
            new.app, new.version, new.env, new.epoch
        ))
        .fix("accept it on the server (with the --config) that wrote it"));
    };
    fits(was, &new)?;
    let statement = String::from_utf8(bytes).map_err(|_| Failure::refused("the statement is not UTF-8"))?;
    if was.statement.as_ref() == Some(&statement) && was.signature.is_some() {
        return told(&mut context, &format!("is {} already: nothing to do", was.state), was);
    }
    let state = if was.state == State::Pending { State::Live } else { was.state };
    let now = Release {
        state,
        rollout: new.rollout,
        statement: Some(statement),
        signature: Some(signature),
        ..was.clone()
    };
    context.catalog.replace(was, &now)?;
    told(&mut context, &format!("is {state}, for {} % of the devices", now.rollout), &now)
}

/// Whether a statement is about this release. It may say anew for whom it is, until when, and what it bars.
fn fits(release: &Release, new: &Statement) -> Result<(), Failure> {
    let refused = |what: &str| {
        Err(Failure::refused(format!("the statement has another {what} than {}", release.title()))
            .fix("publish the content it speaks of as a new release"))
    };
    if release.state == State::Retired {
        return Err(Failure::refused(format!("{} is retired", release.title())).fix("publish it anew"));
    }
    let sums = release.sums.map(|sums| (sums.sha256, sums.md5, sums.size));
    if sums != Some((new.sha256, new.md5, new.size)) {
        return refused("content");
    }
    if key(&release.app) != key(&new.app) || release.version != new.version {
        return refused("version");
    }
    if release.attrs != new.attrs || release.from_epoch != new.from_epoch {
        return refused("attributes or from-epoch");
    }
    let old = release.statement.as_ref().and_then(|text| Statement::parse(text.as_bytes()).ok());
    match old {
        Some(old) if old.salt != new.salt => refused("salt"),
        _ => Ok(()),
    }
}
