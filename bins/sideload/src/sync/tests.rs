//! The sync against a device in memory that can be told to misbehave.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::{Arc, Mutex},
};

use edge::sync::{
    chunk::Chunk,
    content::{self, BIG},
    manifest::{Limits, Manifest},
    wire::{ChunkLists, Decoder},
};
use serde_json::json;

use super::*;
use crate::{
    client::testing::{Folder, Peer, Server},
    scan::Silent,
};

/// What goes wrong, at the n-th connection or request of its kind.
#[derive(Default)]
struct Fault {
    /// The connection ends within the body of `data`.
    cut_data: bool,
    /// This answer (status, JSON) to `POST /sync`.
    answer: Option<(u16, String)>,
    /// Done when the manifest has arrived.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
    /// 422 to the data.
    mismatch: bool,
    /// The connection ends instead of an answer to the commit.
    cut_commit: bool,
}

/// The device's memory, over all connections.
#[derive(Default)]
struct Device {
    tree: Vec<(String, Vec<u8>)>,
    chunks: HashMap<[u8; 32], Vec<u8>>,
    commit: u64,
    fault: Fault,
    log: Vec<String>,
}

/// One sync on one connection.
#[derive(Default)]
struct Open {
    manifest: Manifest,
    lists: HashMap<u32, Vec<Chunk>>,
    files: HashMap<u32, Vec<u8>>,
}

fn serve(device: &Mutex<Device>, peer: &mut Peer) {
    let mut open = Open::default();
    while let Some(head) = peer.head() {
        if head.line.contains("/data") && std::mem::take(&mut device.lock().unwrap().fault.cut_data) {
            device.lock().unwrap().log.push("cut".into());
            return;
        }
        let Some(seen) = peer.body(head) else { return };
        let mut device = device.lock().unwrap();
        let path = seen.line.split(' ').nth(1).unwrap().to_owned();
        device.log.push(format!("{} {path}", seen.line.split(' ').next().unwrap()));
        match path.split('?').next().unwrap() {
            "/sync" => device.begin(&mut open, &seen.body, peer),
            "/sync/7/chunks" => device.chunks(&mut open, &seen.body, peer),
            "/sync/7/data" => device.data(&mut open, &seen.body, peer),
            "/sync/7/commit" => {
                if device.fault.cut_commit {
                    return;
                }
                device.commit(&mut open, peer);
            }
            _ => peer.json(200, "{}"),
        }
    }
}

impl Device {
    fn has(&self, id: edge::sync::ContentId) -> bool {
        self.tree.iter().any(|(_, bytes)| content::of_bytes(bytes) == id)
    }
    fn begin(&mut self, open: &mut Open, body: &[u8], peer: &mut Peer) {
        *open = Open::default();
        open.manifest = Manifest::decode(body, &Limits { files_max: 1000, bytes_max: 1 << 20 }).unwrap();
        if let Some(meanwhile) = self.fault.meanwhile.take() {
            meanwhile();
        }
        if let Some((status, json)) = self.fault.answer.take() {
            return peer.json(status, &json);
        }
        let entries = open.manifest.entries();
        let same = entries.len() == self.tree.len()
            && entries
                .iter()
                .zip(&self.tree)
                .all(|(e, t)| *e.path == *t.0 && content::of_bytes(&t.1) == e.id);
        if same {
            return peer.json(200, &json!({"commit": self.commit, "state": "unchanged"}).to_string());
        }
        let mut seen = HashSet::new();
        let lacks: Vec<usize> = (0..entries.len())
            .filter(|&at| !self.has(entries[at].id) && seen.insert(entries[at].id))
            .collect();
        let chunked: Vec<usize> = lacks.iter().copied().filter(|&at| entries[at].size >= BIG).collect();
        let answer = json!({"sync": 7, "commit": self.commit, "state": "open", "lacks": lacks,
            "chunked": chunked, "deletes": 0});
        peer.json(200, &answer.to_string());
    }
    fn chunks(&mut self, open: &mut Open, body: &[u8], peer: &mut Peer) {
        let mut missing = Vec::new();
        for (entry, chunks) in ChunkLists::decode(body).unwrap().0 {
            let ranges: Vec<(usize, usize)> = (0..chunks.len())
                .filter(|&at| !self.chunks.contains_key(&chunks[at].sum))
                .map(|at| (at, 1))
                .collect();
            missing.push((entry, ranges));
            open.lists.insert(entry, chunks);
        }
        peer.json(200, &json!({ "missing": missing }).to_string());
    }
    fn data(&mut self, open: &mut Open, body: &[u8], peer: &mut Peer) {
        if std::mem::take(&mut self.fault.mismatch) {
            return peer.json(422, r#"{"message":"not what its name says"}"#);
        }
        let mut decoder = Decoder::new();
        decoder.push(body);
        while let Some(record) = decoder.next().unwrap() {
            if open.lists.contains_key(&record.entry) {
                self.chunks.insert(Chunk::of(&record.data).sum, record.data);
            } else {
                let file = open.files.entry(record.entry).or_default();
                assert_eq!(record.offset, file.len() as u64);
                file.extend_from_slice(&record.data);
            }
        }
        assert!(decoder.is_clean());
        peer.json(200, &json!({"received": body.len()}).to_string());
    }
    fn commit(&mut self, open: &mut Open, peer: &mut Peer) {
        let mut by_id: HashMap<_, _> =
            self.tree.drain(..).map(|(_, bytes)| (content::of_bytes(&bytes), bytes)).collect();
        for (_, bytes) in open.files.drain() {
            by_id.insert(content::of_bytes(&bytes), bytes);
        }
        for (entry, chunks) in &open.lists {
            let bytes: Vec<u8> = chunks.iter().flat_map(|c| self.chunks[&c.sum].clone()).collect();
            assert_eq!(content::of_bytes(&bytes), open.manifest.entries()[*entry as usize].id);
            by_id.insert(content::of_bytes(&bytes), bytes);
        }
        for entry in open.manifest.entries() {
            self.tree.push((entry.path.to_string(), by_id[&entry.id].clone()));
        }
        self.commit += 1;
        let app = json!({"state": "running", "pid": 5});
        let answer = json!({"commit": self.commit, "changed": 1, "deleted": 0, "app": app, "log": "9.4"});
        peer.json(200, &answer.to_string());
    }
}

struct Bench {
    device: Arc<Mutex<Device>>,
    server: Server,
    client: Client,
    folder: Folder,
    source: Source,
}

fn bench(name: &str, connections: usize) -> Bench {
    let device = Arc::new(Mutex::new(Device::default()));
    let theirs = device.clone();
    let server = Server::start(name, connections, move |peer, _| serve(&theirs, peer));
    let client = Client::connect(&server.target).unwrap();
    let folder = Folder::new(&format!("{name}-source"));
    let source = Source::open(&folder.0).unwrap().with_cache(None);
    Bench { device, server, client, folder, source }
}

impl Bench {
    fn sync(&mut self) -> Result<Report, Error> {
        self.sync_with(None)
    }
    fn sync_with(&mut self, gate: Option<&mut Gate<'_>>) -> Result<Report, Error> {
        let mut silent = Silent;
        let mut opts = SyncOptions { force: false, restart: true, gate, progress: &mut silent };
        sync(&mut self.client, &mut self.source, &mut opts)
    }
    fn fault(&self, fault: Fault) {
        self.device.lock().unwrap().fault = fault;
    }
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.device.lock().unwrap().log)
    }
    /// The device has what the folder has.
    fn same(&self) {
        let tree = &self.device.lock().unwrap().tree;
        assert!(!tree.is_empty());
        for (path, bytes) in tree {
            assert_eq!(&fs::read(self.folder.0.join(path)).unwrap(), bytes, "{path}");
        }
    }
    fn end(self) {
        let Bench { server, client, .. } = self;
        drop(client);
        server.join();
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect()
}

#[test]
fn only_what_is_lacking_travels() {
    let mut b = bench("sync-plain", 1);
    for number in 0..200 {
        b.folder.write(&format!("d{}/f{number}.py", number % 5), format!("print({number})\n").repeat(100));
    }
    b.folder.write("empty", "");
    b.folder.write("middle", noise(3, 700_000));
    let big = noise(1, 5 << 20);
    b.folder.write("big", &big);
    let report = b.sync().unwrap();
    b.same();
    assert_eq!((report.files, report.sent_files, report.commit, report.unchanged), (203, 203, 1, false));
    assert_eq!(report.log.as_deref(), Some("9.4"));
    assert_eq!(report.app.unwrap()["pid"], 5);
    // The scripts compress, the noise does not.
    assert!(report.payload_bytes < report.content_bytes && report.payload_bytes > 5 << 20);
    assert!(report.wire_sent > report.payload_bytes && report.wire_received > 0);
    assert_eq!(
        b.log(),
        ["POST /sync?force=0", "POST /sync/7/chunks", "POST /sync/7/data", "POST /sync/7/commit?restart=1"]
    );

    let report = b.sync().unwrap();
    assert!(report.unchanged && report.wire_sent < 30_000 && report.payload_bytes == 0, "{report:?}");
    assert_eq!(b.log(), ["POST /sync?force=0"]);

    // A rename costs no content.
    fs::rename(b.folder.0.join("big"), b.folder.0.join("bigger")).unwrap();
    let report = b.sync().unwrap();
    assert_eq!((report.sent_files, report.payload_bytes), (0, 0));
    b.same();

    // One byte at the head costs a chunk or two.
    b.folder.write("bigger", [b"x", big.as_slice()].concat());
    let report = b.sync().unwrap();
    assert!(report.content_bytes <= 512 << 10, "{report:?}");
    b.same();
    b.end();
}

#[test]
fn a_file_that_changes_under_our_hands_is_scanned_again_once() {
    for (name, len) in [("small", 1000), ("big", 3 << 20)] {
        let mut b = bench(&format!("sync-changing-{name}"), 3);
        let path = b.folder.write("file", noise(1, len));
        let again = path.clone();
        let meanwhile = move || fs::write(&again, noise(2, len)).unwrap();
        b.fault(Fault { meanwhile: Some(Box::new(meanwhile)), ..Fault::default() });
        assert_eq!(b.sync().unwrap().commit, 1);
        b.same();
        assert_eq!(b.log().iter().filter(|line| line.starts_with("POST /sync?")).count(), 2);
        // What the device does not believe is scanned once more, too.
        fs::write(&path, noise(3, len)).unwrap();
        b.fault(Fault { mismatch: true, ..Fault::default() });
        assert_eq!(b.sync().unwrap().commit, 2);
        b.same();
        b.end();
    }
}

#[test]
fn a_lost_connection_is_replaced_once() {
    let mut b = bench("sync-cut", 2);
    b.folder.write("file", noise(1, 4 << 20));
    b.fault(Fault { cut_data: true, ..Fault::default() });
    assert_eq!(b.sync().unwrap().commit, 1);
    b.same();
    b.end();

    // A commit without an answer is not asked for again.
    let mut b = bench("sync-cut-commit", 1);
    b.folder.write("file", "x");
    b.fault(Fault { cut_commit: true, ..Fault::default() });
    let error = b.sync().unwrap_err();
    assert!(matches!(error, Error::Commit(_)), "{error}");
    assert_eq!(error.exit_code(), 69);
    b.end();
}

#[test]
fn refusals_are_told_apart() {
    let mut b = bench("sync-refused", 9);
    b.folder.write("file", "x");
    let mut ask = |status: u16, answer: &str| {
        b.fault(Fault { answer: Some((status, answer.into())), ..Fault::default() });
        b.sync().unwrap_err()
    };
    let error = ask(409, r#"{"message":"too many","deletes":9,"of":10}"#);
    assert!(matches!(error, Error::Deletes { deletes: 9, of: 10 }), "{error}");
    assert!(error.fix().unwrap().contains("--force") && error.exit_code() == 1);
    for status in [404, 409] {
        let error = ask(status, r#"{"message":"another sync is under way","busy":true}"#);
        assert!(matches!(error, Error::Busy { .. }) && error.exit_code() == 75, "{error}");
        assert!(error.fix().unwrap().contains("other sync"));
    }
    let error = ask(409, r#"{"message":"data is no folder on the device; remove it there"}"#);
    assert!(matches!(error, Error::InTheWay { .. }) && error.exit_code() == 1, "{error}");
    assert_eq!(error.fix(), None, "the device has said it");
    let error = ask(507, r#"{"message":"the disk is full"}"#);
    assert_eq!((error.to_string().as_str(), error.exit_code()), ("the disk is full", 75));
    let error = ask(404, "");
    assert!(error.fix().unwrap().contains("does not know this sync"), "{error}");
    // Numbers that can't be.
    for answer in [
        r#"{"commit":1,"state":"open"}"#,
        r#"{"sync":"../x","state":"open"}"#,
        r#"{"sync":7,"state":"open","lacks":[1]}"#,
        r#"{"sync":7,"state":"open","lacks":[-1]}"#,
        r#"{"sync":7,"state":"open","lacks":[0],"chunked":{}}"#,
    ] {
        let error = ask(200, answer);
        assert_eq!(error.exit_code(), 76, "{answer}: {error}");
    }
    b.client.close();
    assert_eq!(b.sync().unwrap().commit, 1);
    b.end();
}

#[test]
fn the_gate_stands_before_the_commit() {
    let mut b = bench("sync-gate", 1);
    b.folder.write("file", "x");
    let mut called = 0;
    let mut gate = || {
        called += 1;
        Err("app.py, line 3: invalid syntax".into())
    };
    let error = b.sync_with(Some(&mut gate)).unwrap_err();
    assert!(edge::log::chain(&error).contains("line 3"), "{error}");
    assert_eq!(called, 1);
    assert_eq!(b.log(), ["POST /sync?force=0", "POST /sync/7/data", "DELETE /sync/7"]);
    // The connection is still good.
    let report = b.sync_with(Some(&mut || Ok(()))).unwrap();
    assert_eq!(report.commit, 1);
    b.end();
}
