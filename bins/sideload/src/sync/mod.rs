//! The client's side of the transactional sync (`edge::sync`): manifest, chunk lists, content, commit.
//!
//! Invariants: what is sent is what was hashed, or the whole is begun again once and then given up; the device changes
//! nothing before the commit, and the commit is asked for once. Memory does not depend on the size of files.
//! A transfer that was cut goes on where it ended: the device kept what had arrived and does not ask for it again.

mod content;
mod error;
mod protocol;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::{
    client::{Client, Counter},
    scan::{Scan, Skipped, Source, Watcher},
};

use self::protocol::Session;

pub use error::Error;

/// What a sync tells while it runs.
pub trait Progress: Watcher {
    /// The device wants so many files, so many bytes of content.
    fn begin(&mut self, files: usize, bytes: u64) {
        let _ = (files, bytes);
    }
    /// So many more bytes of content were handed to the connection.
    fn sent(&mut self, bytes: u64) {
        let _ = bytes;
    }
    /// All is sent; the device makes it durable now.
    fn committing(&mut self) {}
}

impl Progress for crate::scan::Silent {}

/// Called when all content is on the device, before the commit; an error gives the sync up and leaves the device as it
/// was.
pub type Gate<'a> = dyn FnMut() -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// How to sync.
pub struct SyncOptions<'a, 'g> {
    /// Delete more than half of the files if need be.
    pub force: bool,
    /// Restart the application after the commit. When nothing changed there is no commit, and so no restart.
    pub restart: bool,
    /// See [`Gate`].
    pub gate: Option<&'a mut Gate<'g>>,
    /// Who wants to know.
    pub progress: &'a mut dyn Progress,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Files in the manifest.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files of which content was sent.
    pub sent_files: usize,
    /// Bytes of content that were sent, before compression.
    pub content_bytes: u64,
    /// Bytes of content records that were sent, after compression.
    pub payload_bytes: u64,
    /// Bytes on TCP, to the device, TLS included.
    pub wire_sent: u64,
    /// Bytes on TCP, from the device.
    pub wire_received: u64,
    /// The commit in force now.
    pub commit: u64,
    /// Files that are new or differ, by the device's count.
    pub changed: u64,
    /// Files that were deleted.
    pub deleted: u64,
    /// The device had all of it; nothing was committed.
    pub unchanged: bool,
    /// With `restart`: what the device says of the application.
    pub app: Option<Value>,
    /// With `restart`: the log position just before the new start, "E.N".
    pub log: Option<String>,
    /// What was left out of the scan.
    pub skipped: Vec<Skipped>,
}

/// Makes the device's files those of `source`.
///
/// # Errors
/// [`Error`]; the device has then its old files, but for [`Error::Commit`].
pub fn sync(
    client: &mut Client,
    source: &mut Source,
    opts: &mut SyncOptions<'_, '_>,
) -> Result<Report, Error> {
    let before = client.wire();
    let scan = source.scan(opts.progress)?;
    let result = attempts(client, source, scan, opts);
    source.save();
    let (mut report, scan) = result?;
    let Counter { sent, received } = client.wire() - before;
    (report.wire_sent, report.wire_received) = (sent, received);
    (report.files, report.bytes) = (scan.manifest.entries().len(), scan.manifest.bytes());
    report.skipped = scan.skipped;
    Ok(report)
}

/// Once more after a file changed under our hands, and once more after the connection was lost.
fn attempts(
    client: &mut Client,
    source: &mut Source,
    mut scan: Scan,
    opts: &mut SyncOptions<'_, '_>,
) -> Result<(Report, Scan), Error> {
    let (mut changed, mut lost) = (false, false);
    loop {
        let error = match attempt(client, &scan, opts, lost || changed) {
            Ok(report) => return Ok((report, scan)),
            Err(error) => error,
        };
        // Whatever the device holds open for this sync ends with the connection.
        if error.leaves_open() {
            client.close();
        }
        match &error {
            Error::Changed { path } if !changed => {
                log::debug!("{} changed while it was sent; scanning again", path.display());
                changed = true;
            }
            Error::Client(cause) if !lost && cause.is_lost_connection() => {
                log::info!("{}; trying once more", edge::log::chain(cause));
                lost = true;
            }
            _ => return Err(error),
        }
        scan = source.scan(opts.progress)?;
    }
}

fn attempt(
    client: &mut Client,
    scan: &Scan,
    opts: &mut SyncOptions<'_, '_>,
    again: bool,
) -> Result<Report, Error> {
    let begun = protocol::begin(client, scan, opts.force, again)?;
    let mut report = Report { commit: begun.commit, ..Report::default() };
    let Some(session) = begun.session else {
        report.unchanged = true;
        return Ok(report);
    };
    let plan = session.plan(client, scan)?;
    if !plan.jobs.is_empty() {
        opts.progress.begin(plan.jobs.len(), plan.bytes);
        let sent = session.send(client, scan, &plan, opts.progress)?;
        report.sent_files = plan.jobs.len();
        (report.content_bytes, report.payload_bytes) = (plan.bytes, sent);
    }
    if let Some(gate) = &mut opts.gate
        && let Err(why) = gate()
    {
        session.abandon(client);
        return Err(Error::Gate(why));
    }
    opts.progress.committing();
    commit(client, &session, opts.restart, &mut report)?;
    Ok(report)
}

fn commit(client: &mut Client, session: &Session, restart: bool, report: &mut Report) -> Result<(), Error> {
    let answer = session.commit(client, restart)?;
    let number = |name: &str| answer.get(name).and_then(Value::as_u64);
    report.commit = number("commit").unwrap_or(report.commit);
    report.changed = number("changed").unwrap_or(0);
    report.deleted = number("deleted").unwrap_or(0);
    report.app = answer.get("app").cloned();
    report.log = answer.get("log").and_then(Value::as_str).map(str::to_owned);
    Ok(())
}
