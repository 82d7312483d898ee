//! What the workers have done, and how those who waited for it go on.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use edge::release::Sha256;
use mio::Token;

use super::{BROKEN, Exchange, Hub, Making, Open, Peer, What};
use crate::cache::Whole;
use crate::core::Resolved;
use crate::growing::Failed;
use crate::reply;
use crate::workers::{Done, Found};

/// What those who waited for it get.
#[derive(Debug)]
pub enum Outcome {
    /// It is known whether the catalog has changed.
    Look,
    Resolved(Arc<Resolved>),
    Found(u64, Option<Arc<File>>),
    Missing,
    Failed,
    /// They only need to be moved on.
    Pump,
}

impl Hub {
    /// What a worker has done, if any has: for whom, and what is to be done for each of them with [`Hub::resume`].
    pub fn next_done(&mut self, now: Instant) -> Option<(Vec<Token>, Outcome)> {
        Some(match self.workers.next_done()? {
            Done::Version(version) => {
                self.checked = Some(now);
                match version {
                    Ok(version) => self.seen(version),
                    Err(why) => self.catalog_failed(&why, now),
                }
                (std::mem::take(&mut self.for_version), Outcome::Look)
            }
            Done::Question(question, epoch, resolved) => {
                let tokens = self.asked.remove(&question).unwrap_or_default();
                match resolved {
                    Ok(resolved) => {
                        let resolved = Arc::new(resolved);
                        if epoch == self.epoch {
                            self.answers.insert(question, Arc::clone(&resolved), now);
                        }
                        (tokens, Outcome::Resolved(resolved))
                    }
                    Err(why) => {
                        self.catalog_failed(&why, now);
                        (tokens, Outcome::Failed)
                    }
                }
            }
            Done::Content(sha256, epoch, found) => {
                let tokens = self.looked.remove(&sha256).unwrap_or_default();
                match found {
                    Ok(Some(Found { size, file })) => {
                        let file = file.map(Arc::new);
                        if epoch == self.epoch {
                            self.keep_open(sha256, size, file.clone(), now);
                        }
                        (tokens, Outcome::Found(size, file))
                    }
                    Ok(None) => (tokens, Outcome::Missing),
                    Err(why) => {
                        self.catalog_failed(&why, now);
                        (tokens, Outcome::Failed)
                    }
                }
            }
            Done::Made(name, made) => (self.made(&name, made, now), Outcome::Pump),
        })
    }

    fn made(&mut self, name: &str, made: Result<u64, (Failed, String)>, now: Instant) -> Vec<Token> {
        let Some(Making { growing, reserved, tokens, .. }) = self.making.remove(name) else {
            return Vec::new();
        };
        self.cache.release(reserved);
        match (made, growing.file()) {
            (Ok(size), Some(file)) => {
                self.stats.bundles_made += 1;
                self.cache.insert(name, Whole { file: Arc::clone(file), size });
            }
            (Err((_, why)), _) => {
                self.stats.bundles_failed += 1;
                if let Some(held) = self.make_log.event(now) {
                    log::error!("{why} ({held} more since the last line)");
                }
            }
            (Ok(_), None) => log::error!("{name} was made without a file: a bug in depotd"),
        }
        tokens
    }

    fn seen(&mut self, version: Option<u64>) {
        if self.version != Some(version) {
            self.version = Some(version);
            self.epoch += 1;
            self.answers.clear();
            self.open.clear();
            self.answers.configure(self.settings.answer_bytes_max, self.ttl());
        }
    }

    pub(super) fn catalog_failed(&mut self, why: &str, now: Instant) {
        self.stats.catalog_errors += 1;
        if let Some(held) = self.catalog_log.event(now) {
            log::error!("{why} ({held} more since the last line)");
        }
    }

    fn keep_open(&mut self, sha256: Sha256, size: u64, file: Option<Arc<File>>, now: Instant) {
        if self.open.len() >= self.settings.open_files
            && let Some(oldest) = self.open.iter().min_by_key(|(_, open)| open.used).map(|(sum, _)| *sum)
        {
            self.open.remove(&oldest);
        }
        self.tick += 1;
        self.open.insert(sha256, Open { size, file, since: now, used: self.tick });
    }

    /// Goes on with a connection that waited. Pump it afterwards.
    pub fn resume(&mut self, client: &mut Peer, outcome: &Outcome, now: Instant) {
        let wanted = match std::mem::take(&mut client.state) {
            Exchange::Waits(wanted) => *wanted,
            other => {
                client.state = other;
                return;
            }
        };
        match (outcome, &wanted.what) {
            (Outcome::Look, _) => self.look(client, wanted, now),
            (Outcome::Resolved(resolved), What::Poll(question, payload)) => {
                let (question, payload) = (Arc::clone(question), *payload);
                self.reply(client, wanted, &question, payload, resolved, now);
            }
            (Outcome::Found(size, file), What::Content(sha256)) => {
                let sha256 = *sha256;
                self.content(client, wanted, &sha256, *size, file.clone(), now);
            }
            (Outcome::Missing, _) => self.respond(client, reply::error(404, "No such content"), now),
            _ => self.fail(client, &wanted, reply::later(BROKEN, 5), now),
        }
    }

    /// Who is sent a file of which there is more by now. Pump them.
    pub fn progress(&mut self) -> Vec<Token> {
        let mut tokens = Vec::new();
        for making in self.making.values_mut() {
            let written = making.growing.written();
            if written != making.told || making.growing.end().is_some() {
                making.told = written;
                tokens.extend_from_slice(&making.tokens);
            }
        }
        tokens
    }
}
