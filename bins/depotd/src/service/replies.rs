//! The answers: what a question or content comes to for one device, and the files that are made for it.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use edge::http::Response;
use edge::release::Sha256;

use super::{BUSY, Exchange, Hub, Making, Peer, UNKNOWN_BYTES, Wanted, What};
use crate::answers::Body;
use crate::bundle::Recipe;
use crate::cache::{NoRoom, Whole};
use crate::core::{Answer, Resolved};
use crate::growing::{Failed, Growing};
use crate::query::{Payload, Question};
use crate::reply;
use crate::send::{self, Form, Sending};
use crate::status::Poll;
use crate::workers::Make;

impl Hub {
    pub(super) fn package(&mut self) -> Form {
        Form {
            content_type: "application/json",
            disposition: None,
            cache: format!("max-age={}", self.settings.max_age_s),
            // The same path has other answers for devices that have other files.
            vary: true,
            tag: String::new(),
            date: self.date(),
        }
    }

    pub(super) fn reply(
        &mut self,
        client: &mut Peer,
        wanted: Wanted,
        question: &Arc<Question>,
        payload: Payload,
        resolved: &Resolved,
        now: Instant,
    ) {
        let mut held = resolved.held(&wanted.tags);
        if resolved.is_empty() {
            self.stats.answered(Poll::Nothing);
            return self.respond(client, reply::error(404, "No deployment package found"), now);
        }
        let mut form = self.package();
        if resolved.is_known(&held) {
            self.stats.answered(Poll::NotModified);
            return send::not_modified(client, &form, now);
        }
        // Of the two forms of the answer, this one.
        held.push(payload == Payload::Full);
        let known = self.answers.body(question, &held);
        let body = known.or_else(|| {
            let body = match resolved.answer(payload, &held[..held.len() - 1]) {
                Answer::Metadata(bytes) => {
                    let tag = format!("m-{}", &edge::text::sha256_hex(&bytes)[..32]);
                    Body { bytes, tag }
                }
                Answer::Bundle(plan) => Body { bytes: Vec::new(), tag: plan.id(self.settings.level) },
                Answer::Nothing | Answer::NotModified => return None,
            };
            let body = Arc::new(body);
            self.answers.insert_body(question, held.clone(), Arc::clone(&body));
            Some(body)
        });
        let Some(body) = body else {
            return self.fail(client, &wanted, reply::error(500, "A bug in depotd"), now);
        };
        form.tag = if payload == Payload::Full { format!("b-{}", &body.tag[..32]) } else { body.tag.clone() };
        if wanted.tags.has_tag(&form.tag) {
            self.stats.answered(Poll::NotModified);
            return send::not_modified(client, &form, now);
        }
        if payload == Payload::Metadata {
            self.stats.answered(Poll::Metadata);
            let response = Response { body: body.bytes.clone(), ..form.head(200) };
            client.http.respond(&response, now);
            client.state = Exchange::None;
            return;
        }
        form.content_type = "application/x-gzip";
        form.disposition = Some("attachment; filename=\"ota-package.tar.gz\"");
        let name = format!("{}.tar.gz", body.tag);
        let recipe = || match resolved.answer(payload, &held[..held.len() - 1]) {
            Answer::Bundle(plan) => Some(Recipe::Bundle(plan)),
            _ => None,
        };
        self.file(client, wanted, form, name, recipe, now);
    }

    pub(super) fn content(
        &mut self,
        client: &mut Peer,
        wanted: Wanted,
        sha256: &Sha256,
        size: u64,
        file: Option<Arc<File>>,
        now: Instant,
    ) {
        let form = Form {
            content_type: "application/octet-stream",
            disposition: None,
            cache: "public, max-age=31536000, immutable".to_owned(),
            vary: false,
            tag: sha256.to_string(),
            date: self.date(),
        };
        self.stats.blobs += 1;
        if wanted.tags.has_tag(&form.tag) {
            return send::not_modified(client, &form, now);
        }
        match file {
            Some(file) => send::whole(client, &wanted, &form, &Whole { file, size }, now),
            None if wanted.head => {
                client.http.begin_sized(&form.head(200).with("Accept-Ranges", "bytes"), size, now);
                client.state = Exchange::None;
            }
            None => {
                let recipe = || Some(Recipe::Content { sha256: *sha256, size });
                self.file(client, wanted, form, format!("{sha256}.blob"), recipe, now);
            }
        }
    }

    /// Answers with a file of the cache, which is made if it is not there.
    pub(super) fn file(
        &mut self,
        client: &mut Peer,
        wanted: Wanted,
        form: Form,
        name: String,
        recipe: impl FnOnce() -> Option<Recipe>,
        now: Instant,
    ) {
        let poll = matches!(wanted.what, What::Poll(..));
        if let Some(whole) = self.cache.get(&name) {
            self.stats.bundle_hits += 1;
            if poll {
                self.stats.answered(Poll::Bundle);
            }
            return send::whole(client, &wanted, &form, &whole, now);
        }
        if wanted.head && client.http.begin_chunks(&form.head(200), now) {
            // Its length is not known before it is made, for which nobody asked.
            client.state = Exchange::None;
            if poll {
                self.stats.answered(Poll::Bundle);
            }
            return;
        }
        if !self.making.contains_key(&name) {
            let Some(recipe) = recipe() else {
                return self.fail(client, &wanted, reply::error(500, "A bug in depotd"), now);
            };
            if let Err(refused) = self.make(&name, recipe) {
                return self.fail(client, &wanted, refused, now);
            }
        } else {
            self.stats.bundle_joins += 1;
        }
        if let Some(making) = self.making.get_mut(&name) {
            making.tokens.push(client.token);
            let growing = Arc::clone(&making.growing);
            client.state = Exchange::Sends(Box::new(Sending::new(growing, wanted, form)));
        }
    }

    pub(super) fn make(&mut self, name: &str, recipe: Recipe) -> Result<(), Response> {
        let reserved = recipe.bytes_max().unwrap_or(UNKNOWN_BYTES.min(self.settings.cache_bytes_max));
        self.cache.reserve(reserved).map_err(|no| match no {
            NoRoom::Ever => send::failed(&Failed::Large),
            NoRoom::Now => reply::later(BUSY, 5),
        })?;
        let size = if let Recipe::Content { size, .. } = &recipe { Some(*size) } else { None };
        let growing = Arc::new(Growing::new(size));
        let job = Make { name: name.to_owned(), recipe, growing: Arc::clone(&growing), bytes_max: reserved };
        if !self.workers.make(job) {
            self.cache.release(reserved);
            return Err(reply::later(BUSY, 5));
        }
        let making = Making { growing, reserved, told: 0, tokens: Vec::new() };
        self.making.insert(name.to_owned(), making);
        Ok(())
    }
}
