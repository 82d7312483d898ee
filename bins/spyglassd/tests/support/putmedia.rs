//! `tests/putmedia_standin.py` for the time of a test, and what it kept of each connection.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Scratch, have, run};

pub const KEY_ID: &str = "AKIDEXAMPLE";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// The stand-in.
pub struct Rig {
    pub scratch: Scratch,
    child: Child,
    pub port: u16,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rig {
    /// `None`: something is missing here, which was said.
    pub fn start(test: &str, script: &Value) -> Option<Rig> {
        if !have(test, &["ffmpeg", "ffprobe", "mkvinfo", "python3"]) {
            return None;
        }
        let botocore =
            Command::new("python3").args(["-c", "import botocore.auth"]).stderr(Stdio::null()).status();
        if !botocore.is_ok_and(|status| status.success()) {
            eprintln!("skipped: {test}: python3 has no botocore (on Debian: apt install python3-botocore)");
            return None;
        }
        let scratch = Scratch::new(&format!("kvs-{test}"));
        let own = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        std::fs::write(scratch.join("cert.pem"), own.cert.pem()).unwrap();
        std::fs::write(scratch.join("key.pem"), own.signing_key.serialize_pem()).unwrap();
        std::fs::write(scratch.join("secret"), format!("{SECRET}\n")).unwrap();
        let standin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/putmedia_standin.py");
        let mut child = Command::new("python3")
            .arg(standin)
            .arg("--cert")
            .arg(scratch.join("cert.pem"))
            .arg("--key")
            .arg(scratch.join("key.pem"))
            .arg("--dir")
            .arg(&scratch.0)
            .args(["--access-key", KEY_ID, "--secret", SECRET, "--script", &script.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port =
            line.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("the stand-in says {line:?}"));
        Some(Rig { scratch, child, port })
    }

    /// The keys of `[stream.kvs]` that lead there, but for those that say who we are.
    pub fn toml(&self) -> String {
        format!(
            "stream-name = \"gate\"\nregion = \"eu-west-1\"\nendpoint = \"https://localhost:{}\"\nca-file = {:?}\n\
             fragment-ms = 1000\nbackoff-min-ms = 200\nbackoff-max-ms = 1000\npause-ms = 1000\n",
            self.port,
            self.scratch.join("cert.pem"),
        )
    }

    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.scratch.join("log.jsonl")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn events(&self, name: &str) -> Vec<Value> {
        self.log().into_iter().filter(|e| e["event"] == name).collect()
    }

    /// Waits until every connection so far has ended.
    pub fn wait_closed(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        // Those that were never taken up have no end of their own.
        let is_taken =
            |e: &Value| ["status", "expired", "stall"].iter().all(|fault| e["fault"]["fault"] != *fault);
        while self.events("closed").len() < self.events("connection").iter().filter(|e| is_taken(e)).count() {
            assert!(Instant::now() < end, "{:?}", self.events("closed"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What other programs say of the bytes of each connection that ended as it should.
    pub fn read_dumps(&self) -> usize {
        let mut read = 0;
        for event in self.events("closed").iter().filter(|e| e["clean"] == true) {
            let number = event["number"].as_u64().unwrap();
            let path = self.scratch.join(&format!("connection-{number:02}.mkv"));
            let sent: usize = (self.events("fragment").iter())
                .filter(|e| e["number"] == number)
                .map(|e| e["frames"].as_array().unwrap().len())
                .sum();
            if sent == 0 {
                continue;
            }
            let probe = run(Command::new("ffprobe")
                .args(["-v", "error", "-count_frames", "-show_entries", "stream=codec_name,nb_read_frames"])
                .args(["-of", "csv=p=0"])
                .arg(&path));
            let frames: usize = probe.trim().strip_prefix("h264,").expect(&probe).parse().unwrap();
            assert!(frames >= sent, "connection {number}: {frames} frames decode, {sent} were counted");
            let info = run(Command::new("mkvinfo").args(["--ui-language", "en_US"]).arg(&path));
            assert!(info.contains("Segment: size unknown") && !info.contains("EBML void"), "{info}");
            read += 1;
        }
        read
    }
}
