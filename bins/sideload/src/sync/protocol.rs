//! The requests of a sync and their answers.
//!
//! Never trusts a number of the device: an index or a range that the scan does not have is an error, not a panic.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use edge::sync::wire::ChunkLists;
use serde_json::Value;

use crate::{
    client::{self, Body, Client, Request},
    scan::Scan,
};

use super::{Error, Progress, content::Content};

/// The device may hash what it has, or flush it to a slow card, for that long.
const SLOW: Duration = Duration::from_secs(300);
/// After a connection was lost, the device may still hold the sync that was on it for 10 s.
const HELD: Duration = Duration::from_secs(13);
/// Between two attempts meanwhile.
const HELD_PAUSE: Duration = Duration::from_millis(700);
const OCTETS: &[(&str, &str)] = &[("Content-Type", "application/octet-stream")];

/// The answer to a manifest.
pub(super) struct Begun {
    /// The commit in force.
    pub(super) commit: u64,
    /// `None`: nothing to do.
    pub(super) session: Option<Session>,
}

/// A sync that the device has open.
pub(super) struct Session {
    /// `/sync/<id>`
    path: String,
    lacks: Vec<u32>,
    chunked: Vec<u32>,
}

/// Ranges of chunks: first, count.
type Ranges = Vec<(usize, usize)>;

/// Content of one file that is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) entry: usize,
    /// Which chunks of a big file; unused for a small one.
    pub(super) ranges: Ranges,
}

/// All content that is to be sent.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    pub(super) bytes: u64,
}

/// Sends the manifest. `again`: a sync of ours was cut before (or given up), and the device may not know yet.
pub(super) fn begin(client: &mut Client, scan: &Scan, force: bool, again: bool) -> Result<Begun, Error> {
    let manifest = scan.manifest.encode();
    let path = format!("/sync?force={}", u8::from(force));
    let give_up = Instant::now() + HELD;
    let answer = loop {
        // What a lost answer to this began ends with its connection, so it may be sent twice.
        let request = Request::new("POST", &path).headers(OCTETS).body(Body::Bytes(&manifest));
        let answer = client.request(request.silence_max(SLOW).repeatable()).and_then(client::Answer::json);
        match answer.map_err(conflict) {
            Err(Error::Busy { .. }) if again && Instant::now() < give_up => std::thread::sleep(HELD_PAUSE),
            other => break other?,
        }
    };
    let commit = answer.get("commit").and_then(Value::as_u64).unwrap_or(0);
    if answer.get("state").and_then(Value::as_str) == Some("unchanged") {
        return Ok(Begun { commit, session: None });
    }
    let id = match answer.get("sync") {
        Some(Value::Number(id)) => id.to_string(),
        Some(Value::String(id)) if !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            id.clone()
        }
        _ => return Err(nonsense(client, "a sync without an id")),
    };
    let list = |name| indexes(&answer, name, scan.locals.len()).ok_or(name);
    let lists = list("lacks").and_then(|lacks| Ok((lacks, list("chunked")?)));
    let (lacks, chunked) = lists.map_err(|name| nonsense(client, &format!("no list {name:?} of entries")))?;
    Ok(Begun { commit, session: Some(Session { path: format!("/sync/{id}"), lacks, chunked }) })
}

impl Session {
    /// What to send; for big files the device says which chunks.
    pub(super) fn plan(&self, client: &mut Client, scan: &Scan) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        let by_chunks: HashSet<u32> = self.chunked.iter().copied().collect();
        for &entry in self.lacks.iter().filter(|entry| !by_chunks.contains(entry)) {
            let entry = entry as usize;
            let hashed = &scan.locals[entry].hashed;
            let count = hashed.chunks.as_ref().map_or(0, Vec::len);
            plan.jobs.push(Job { entry, ranges: if count > 0 { vec![(0, count)] } else { Vec::new() } });
            plan.bytes += hashed.size;
        }
        let lists: Vec<_> = self
            .chunked
            .iter()
            .filter_map(|&entry| Some((entry, scan.locals[entry as usize].hashed.chunks.clone()?)))
            .collect();
        if lists.is_empty() {
            return Ok(plan);
        }
        let lists = ChunkLists(lists).encode();
        let path = format!("{}/chunks", self.path);
        let request = Request::new("POST", &path)
            .headers(OCTETS)
            .body(Body::Bytes(&lists))
            .silence_max(SLOW)
            .continues();
        let answer = client.request(request).and_then(client::Answer::json).map_err(conflict)?;
        let missing = missing(&answer).ok_or_else(|| nonsense(client, "no list \"missing\" of ranges"))?;
        for (entry, ranges) in missing {
            let job = job(scan, entry, ranges);
            let (job, bytes) = job.ok_or_else(|| nonsense(client, "a range of chunks that is not there"))?;
            if !job.ranges.is_empty() {
                plan.bytes += bytes;
                plan.jobs.push(job);
            }
        }
        Ok(plan)
    }

    /// Sends the content; the bytes of all records.
    pub(super) fn send(
        &self,
        client: &mut Client,
        scan: &Scan,
        plan: &Plan,
        progress: &mut dyn Progress,
    ) -> Result<u64, Error> {
        let path = format!("{}/data", self.path);
        let mut content = Content::new(scan, plan, progress);
        let body = Body::Reader { reader: &mut content, len: None };
        let request = Request::new("POST", &path).headers(OCTETS).body(body).silence_max(SLOW).continues();
        let answer = client.request(request).and_then(client::Answer::json);
        match (answer, content.failed.take()) {
            (Err(_), Some(failed)) => Err(failed),
            // What the device got has not the name that the scan gave it.
            (Err(client::Error::Refused { status: 422, .. }), None) => {
                Err(Error::Changed { path: content.last_path() })
            }
            (Err(error), None) => Err(conflict(error)),
            (Ok(_), _) => Ok(content.bytes),
        }
    }

    /// Makes it so. Asked for once: a lost answer is an error of its own.
    pub(super) fn commit(&self, client: &mut Client, restart: bool) -> Result<Value, Error> {
        let path = format!("{}/commit?restart={}", self.path, u8::from(restart));
        let answer = client.request(Request::new("POST", &path).silence_max(SLOW).continues());
        answer.and_then(client::Answer::json).map_err(|error| match error {
            error if error.leaves_open() => Error::Commit(error),
            error => conflict(error),
        })
    }

    /// Gives it up; the device does so by itself when the connection ends.
    pub(super) fn abandon(&self, client: &mut Client) {
        let gone =
            client.request(Request::new("DELETE", &self.path).continues()).and_then(client::Answer::json);
        if let Err(error) = gone {
            log::debug!("giving up the sync: {}", edge::log::chain(&error));
            client.close();
        }
    }
}

/// 409 has three meanings, and a sync that is gone was pushed aside by another.
fn conflict(error: client::Error) -> Error {
    match error {
        client::Error::Refused { status: 404 | 409, message, details }
            if details.get("busy") == Some(&Value::Bool(true)) =>
        {
            Error::Busy { message }
        }
        client::Error::Refused { status: 409, message, details } => {
            let number = |name: &str| details.get(name).and_then(Value::as_u64);
            match (number("deletes"), number("of")) {
                (Some(deletes), Some(of)) => Error::Deletes { deletes, of },
                _ => Error::InTheWay { message },
            }
        }
        error => Error::Client(error),
    }
}

fn nonsense(client: &Client, what: &str) -> Error {
    Error::Client(client.nonsense(what.to_owned()))
}

/// A list of indexes below `len`; `None` for anything else. Missing is empty.
fn indexes(answer: &Value, name: &str, len: usize) -> Option<Vec<u32>> {
    let Some(list) = answer.get(name) else { return Some(Vec::new()) };
    let index = |value: &Value| u32::try_from(value.as_u64()?).ok().filter(|&at| (at as usize) < len);
    list.as_array()?.iter().map(index).collect()
}

/// `[[entry, [[first, count], ...]], ...]`
fn missing(answer: &Value) -> Option<Vec<(usize, Ranges)>> {
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    let range = |value: &Value| Some((number(value.get(0)?)?, number(value.get(1)?)?));
    let entry = |value: &Value| {
        let ranges: Option<Vec<_>> = value.get(1)?.as_array()?.iter().map(range).collect();
        Some((number(value.get(0)?)?, ranges?))
    };
    answer.get("missing")?.as_array()?.iter().map(entry).collect()
}

/// The job and its bytes; `None` when the file has no such chunks.
fn job(scan: &Scan, entry: usize, ranges: Ranges) -> Option<(Job, u64)> {
    let chunks = scan.locals.get(entry)?.hashed.chunks.as_ref()?;
    let mut bytes = 0;
    for &(first, count) in &ranges {
        let range = chunks.get(first..first.checked_add(count)?)?;
        bytes += range.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>();
    }
    Some((Job { entry, ranges }, bytes))
}
