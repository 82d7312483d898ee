//! The worker threads: each takes one message at a time, makes it an object and stores it.
//!
//! Owns: the threads and the two channels. Invariants: at most one message per thread and one per place waiting, so
//! memory stays under the core's bound; a thread ends when the queue is closed.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use edge::clock::unix_ms;
use edge::spool::Record;
use edge::text::sha256_hex;
use mio::Waker;

use crate::config::Objects;
use crate::core::Outcome;
use crate::key::Facts;
use crate::meta::{self, METADATA_BYTES_MAX};
use crate::store::{Object, Store, sidecar_key};

/// Stack of a worker, in bytes: TLS handshakes and ureq need some.
const STACK_BYTES: usize = 512 * 1024;

/// What a worker reports.
#[derive(Debug)]
pub struct Done {
    pub place: usize,
    pub outcome: Outcome,
    /// Payload bytes.
    pub bytes: usize,
}

/// The workers.
#[derive(Debug)]
pub struct Pool {
    jobs: mpsc::Sender<(usize, Arc<Record>)>,
    done: mpsc::Receiver<Done>,
}

impl Pool {
    /// Starts `workers` threads, named `s3put-up-N`. `waker` is woken after each result.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        workers: usize,
        store: Arc<Store>,
        objects: Objects,
        waker: &Arc<Waker>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<(usize, Arc<Record>)>();
        let (results, done) = mpsc::channel();
        let (queue, objects) = (Arc::new(Mutex::new(queue)), Arc::new(objects));
        for n in 0..workers {
            let (queue, store, objects) = (Arc::clone(&queue), Arc::clone(&store), Arc::clone(&objects));
            let (results, waker) = (results.clone(), Arc::clone(waker));
            let thread = std::thread::Builder::new().name(format!("s3put-up-{n}")).stack_size(STACK_BYTES);
            thread.spawn(move || {
                loop {
                    // Nobody panics while holding the lock; and the receiver would be whole all the same.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((place, record)) = next else { return };
                    let bytes = record.message.payload.len();
                    let outcome = upload(&record, &store, &objects, unix_ms());
                    drop(record);
                    if results.send(Done { place, outcome, bytes }).is_err() {
                        return;
                    }
                    if let Err(error) = waker.wake() {
                        log::warn!("upload: can't wake the main loop: {error}");
                    }
                }
            })?;
        }
        Ok(Self { jobs, done })
    }

    /// Gives a message to whichever thread is free. Called by the core's order only, so that the queue is never longer
    /// than there are places.
    pub fn run(&self, place: usize, record: Arc<Record>) {
        if self.jobs.send((place, record)).is_err() {
            log::error!("upload: all worker threads are gone");
        }
    }

    /// The next result, if there is one.
    pub fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

/// Makes a message an object and stores it. Blocks.
fn upload(record: &Record, store: &Store, objects: &Objects, now_ms: u64) -> Outcome {
    let message = &record.message;
    let sha256 = sha256_hex(&message.payload);
    let content_type = meta::content_type(message, &objects.rules);
    let ext = meta::extension(&content_type);
    let facts = Facts { message, received_ms: record.received_ms, sha256: &sha256, ext };
    let key = match objects.template.key(&objects.prefix, &facts) {
        Ok(key) => key,
        Err(why) => return Outcome::Dead(why),
    };
    let mut headers = meta::headers(record, &objects.listed, METADATA_BYTES_MAX);
    let wants_sidecar = objects.sidecar_always || (objects.sidecar_overflow && !headers.complete);
    if wants_sidecar && matches!(store, Store::S3(_)) {
        // The headers say where the rest is. Room for that is made by leaving out what came last.
        let pointer = ("x-amz-meta-sidecar".to_owned(), meta::ascii(&sidecar_key(&key)));
        let room = METADATA_BYTES_MAX.saturating_sub(pointer.0.len() + pointer.1.len());
        headers = meta::headers(record, &objects.listed, room);
        headers.list.retain(|(name, _)| *name != pointer.0);
        headers.list.push(pointer);
    }
    let sidecar = wants_sidecar.then(|| meta::sidecar(record, &key, &content_type, &sha256, now_ms));
    store.put(&Object {
        key: &key,
        body: &message.payload,
        sha256: &sha256,
        content_type: &content_type,
        headers: &headers,
        sidecar: sidecar.as_deref(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Template;
    use crate::meta::Listed;
    use crate::store::dir::Dir;
    use edge::mqtt::Message;

    #[test]
    fn a_message_becomes_a_file_with_its_sidecar() {
        let root = std::env::temp_dir().join(format!("s3put-upload-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let store = Store::Dir(Dir::new(root.clone(), 0o640));
        let objects = Objects {
            prefix: String::new(),
            template: Template::parse("{topic}/{date}/{id}{ext}").unwrap(),
            rules: vec![],
            listed: Listed::All,
            sidecar_always: true,
            sidecar_overflow: true,
        };
        let mut message =
            Message { topic: "faces".into(), payload: b"\xff\xd8\xffx".to_vec(), ..Message::default() };
        message.properties.user =
            vec![("id".into(), "f-1".into()), ("time".into(), "2026-11-21T10:00:00.123Z".into())];
        let mut record = Record { seq: 1, received_ms: 5, source: "b".into(), in_pid: None, message };
        assert_eq!(upload(&record, &store, &objects, 9), Outcome::Stored { already: false });
        record.received_ms = 77;
        assert_eq!(upload(&record, &store, &objects, 99), Outcome::Stored { already: true });
        let path = root.join("faces/2026-11-21/f-1.jpg");
        assert_eq!(std::fs::read(&path).unwrap(), b"\xff\xd8\xffx");
        let sidecar = std::fs::read(root.join("faces/2026-11-21/f-1.jpg.json")).unwrap();
        let sidecar: serde_json::Value = serde_json::from_slice(&sidecar).unwrap();
        assert_eq!(sidecar["properties"]["id"], "f-1");
        record.message.topic = "a/../b".into();
        assert!(matches!(upload(&record, &store, &objects, 9), Outcome::Dead(_)));
        std::fs::remove_dir_all(root).unwrap();
    }
}
