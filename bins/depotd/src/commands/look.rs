//! `list` and `show`: what there is.

use std::fmt::Write as _;

use edge::release::Statement;
use edge::text::bytes;
use serde_json::{Value, json};

use super::args::Given;
use super::context::Context;
use super::output::{Failure, Reply, moment, table};
use crate::catalog::{Release, State};

/// A release for scripts.
#[must_use]
pub fn describe(release: &Release) -> Value {
    let statement = release.statement.as_ref();
    let parsed = statement.and_then(|text| Statement::parse(text.as_bytes()).ok());
    json!({
        "app": release.app, "version": release.version, "env": release.env, "epoch": release.epoch,
        "state": release.state.name(), "rollout": release.rollout, "floor": release.floor,
        "from-epoch": release.from_epoch, "attrs": release.attrs, "url": release.url,
        "md5": release.md5, "sha256": release.sums.map(|s| s.sha256), "size": release.sums.map(|s| s.size),
        "signed": release.signature.is_some(), "published": release.published,
        "min-epoch": parsed.as_ref().map(|s| s.min_epoch), "expires": parsed.as_ref().and_then(|s| s.expires),
        "statement": statement, "signature": release.signature,
    })
}

fn size(release: &Release) -> String {
    release.sums.map_or_else(|| "-".to_owned(), |sums| bytes(sums.size))
}

fn signed(release: &Release) -> &'static str {
    if release.signature.is_some() { "signed" } else { "unsigned" }
}

/// `list`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn list(given: &Given) -> Result<Reply, Failure> {
    let env = given.env()?;
    let mut context = Context::open(given)?;
    let mut all = context.catalog.list(given.text("--app"), env.as_deref())?;
    if !given.has("--all") {
        all.retain(|r| r.state != State::Retired);
    }
    let json = json!({ "releases": all.iter().map(describe).collect::<Vec<_>>() });
    if all.is_empty() {
        return Ok(Reply::new("there are no releases ('depotd publish' makes one)\n", json));
    }
    let head =
        ["APP", "ENV", "EPOCH", "VERSION", "STATE", "ROLLOUT", "SIGNED", "SIZE", "ATTRIBUTES", "PUBLISHED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|r| {
        vec![
            r.app.clone(),
            r.env.clone(),
            r.epoch.to_string(),
            format!("{}{}", r.version, if r.floor { " (floor)" } else { "" }),
            r.state.to_string(),
            format!("{} %", r.rollout),
            signed(r).to_owned(),
            size(r),
            if r.attrs.is_empty() { "-".to_owned() } else { r.attrs.join(",") },
            moment(r.published),
        ]
    }));
    Ok(Reply::new(table(&rows, &[2, 5, 7]), json))
}

/// `show`
///
/// # Errors
/// With the exit code for what is wrong; 65 if there is no such app.
pub fn show(given: &Given) -> Result<Reply, Failure> {
    let (app, env) = (given.first(), given.env()?);
    let mut context = Context::open(given)?;
    let all = context.catalog.list(Some(app), env.as_deref())?;
    let Some(first) = all.first() else {
        let place = env.map_or(String::new(), |env| format!(" in {env}"));
        return Err(Failure::refused(format!("there is no app {app}{place}"))
            .fix("'depotd list' shows what there is"));
    };
    let mut text = String::new();
    let mut envs: Vec<&str> = all.iter().map(|r| r.env.as_str()).collect();
    envs.dedup();
    for env in &envs {
        let here: Vec<&Release> = all.iter().filter(|r| r.env == *env).collect();
        let _ = writeln!(text, "{} in {env}: {}", first.app, offered(&here));
        for release in here {
            block(&mut text, release);
        }
    }
    Ok(Reply::new(text, json!({ "releases": all.iter().map(describe).collect::<Vec<_>>() })))
}

/// What devices are offered of these, the newest first.
#[must_use]
pub fn offered(releases: &[&Release]) -> String {
    let live = || releases.iter().filter(|r| r.state == State::Live);
    let everybody = live().find(|r| r.rollout >= 100);
    let above = everybody.map_or(0, |r| r.epoch);
    let mut text = match everybody {
        Some(r) => format!("{} for every device", r.version),
        None => "nothing for every device".to_owned(),
    };
    for staged in live().filter(|r| r.rollout < 100 && r.epoch > above) {
        let _ = write!(text, ", {} for {} %", staged.version, staged.rollout);
    }
    text
}

fn block(text: &mut String, release: &Release) {
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "    {name:<11} {value}");
    };
    line("version", format!("{} (epoch {}), {}", release.version, release.epoch, release.state));
    line("published", moment(release.published));
    line("rollout", format!("{} %", release.rollout));
    if !release.attrs.is_empty() {
        line("attributes", release.attrs.join(", "));
    }
    if release.floor {
        line("floor", "a device must pass through it on its way to later ones".to_owned());
    }
    if release.from_epoch > 0 {
        line(
            "from-epoch",
            format!("a device that has the app must have passed epoch {}", release.from_epoch),
        );
    }
    let statement = release.statement.as_ref().and_then(|s| Statement::parse(s.as_bytes()).ok());
    if let Some(statement) = &statement {
        if statement.min_epoch > 0 {
            line("min-epoch", format!("once installed, nothing below {} is run again", statement.min_epoch));
        }
        if let Some(expires) = statement.expires {
            line("expires", moment(expires));
        }
    }
    line("content", format!("{}, {}", size(release), release.url));
    if let Some(sums) = release.sums {
        line("sha256", sums.sha256.to_string());
    }
    if let Some(md5) = release.md5 {
        line("md5", md5.to_string());
    }
    let comment =
        release.signature.as_ref().and_then(|s| s.lines().find_map(|l| l.strip_prefix("trusted comment: ")));
    line(
        "signature",
        comment.map_or_else(|| signed(release).to_owned(), |comment| format!("signed ({comment})")),
    );
    text.push('\n');
}
