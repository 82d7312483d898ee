//! sorterd under test: the daemon, and arms that play whole sessions (`tests/sorter_arm.py`).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::env::{self, root, run};
use crate::net::{free_port, local};
use crate::process::Process;
use crate::scratch::{Scratch, files};
use crate::websocket::WebSocket;

/// How long a panorama, or a few that wait for each other, may take on a machine that has much else to do.
pub const PANORAMA: Duration = Duration::from_secs(300);

/// A daemon on a port of its own.
pub struct Sorter {
    /// The daemon.
    pub daemon: Daemon,
    /// Its WebSocket and HTTP.
    pub port: u16,
}

impl Sorter {
    /// Configures it; `more` is added to its configuration. Not started yet.
    pub fn new(scratch: &Scratch, more: &str) -> Sorter {
        Sorter::named(scratch, "sorter", more)
    }

    /// The same for one of several, each in a folder of its own.
    pub fn named(scratch: &Scratch, instance: &str, more: &str) -> Sorter {
        let port = free_port();
        let toml = format!(
            "listen = \"127.0.0.1:{port}\"\nctl-socket = \"{{dir}}/ctl.sock\"\nstate-dir = \"{{dir}}/state\"\n{more}"
        );
        let mut daemon = Daemon::new(scratch, "sorterd", instance, &toml);
        scratch.dir(&format!("{instance}/state"));
        // What the caller's shell has set is not meant for it.
        for name in ["PG_CONN", "CONTROL_PANEL_HOST", "MODE"] {
            daemon.unset(name);
        }
        Sorter { daemon, port }
    }

    /// Starts it and waits until it is ready.
    pub fn start(scratch: &Scratch, more: &str) -> Sorter {
        let mut sorter = Sorter::new(scratch, more);
        sorter.daemon.start_ready();
        sorter
    }

    /// `127.0.0.1:port`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Status, head and body of a GET.
    pub fn get(&self, path: &str) -> (u16, String, Vec<u8>) {
        self.get_at(&self.host(), path)
    }

    /// The same with another name in `Host`.
    pub fn get_at(&self, host: &str, path: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(local(self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("{path}: no head"));
        let head = String::from_utf8_lossy(&all[..end]).into_owned();
        (head[9..12].parse().unwrap(), head, all[end + 4..].to_vec())
    }

    /// A GET that answers JSON.
    pub fn json(&self, path: &str) -> Value {
        let (status, head, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {head}");
        serde_json::from_slice(&body).unwrap()
    }

    /// A session as its page shows it.
    pub fn session(&self, arm: &str, session: &str) -> Value {
        self.json(&format!("/api/sessions/{arm}/{session}"))
    }

    /// Plays a scene as a real arm does; its report, in which `problems` is what was not right.
    pub fn play(&self, scene: &str, more: &[&str]) -> Value {
        let mut arm = self.arm("play", &[&[scene], more].concat());
        arm.wait_exit(Duration::from_secs(240));
        report(&arm)
    }

    /// The same, and all of it must be right.
    pub fn play_well(&self, scene: &str, more: &[&str]) -> Value {
        let report = self.play(scene, more);
        assert_eq!(
            report["problems"],
            json!([]),
            "{scene} {more:?}: {report:#}\n{}",
            self.daemon.lines.tail(20)
        );
        report
    }

    /// An arm at work.
    pub fn arm(&self, action: &str, more: &[&str]) -> Process {
        let mut command = python();
        command.arg(action).arg(self.host()).args(more);
        Process::start("arm", &mut command)
    }

    /// A picture of its own connection, and the answer.
    pub fn send(&self, headers: &Value, picture: &[u8]) -> Value {
        WebSocket::connect(self.port).picture(headers, picture)
    }

    /// Files below its folder of pictures, relative to it.
    pub fn kept(&self) -> Vec<String> {
        let top = self.daemon.dir.join("state/pictures");
        let name = |path: &PathBuf| path.strip_prefix(&top).unwrap().to_string_lossy().into_owned();
        files(&top).iter().map(name).collect()
    }
}

/// The line of JSON that an arm ends with.
pub fn report(arm: &Process) -> Value {
    let line = arm.lines.all().into_iter().rev().find(|line| line.starts_with('{'));
    serde_json::from_str(&line.unwrap_or_else(|| panic!("the arm says only:\n{}", arm.lines.tail(20))))
        .unwrap()
}

/// `recv_img_proc` of a picture.
pub fn headers(session: &str, image: &str) -> Value {
    json!({ "command": "recv_img_proc", "arm_id": "arm1", "session_id": session, "image_name": image })
}

/// `recv_img_after` of a picture.
pub fn after_headers(session: &str, image: &str) -> Value {
    json!({ "command": "recv_img_after", "arm_id": "arm1", "session_id": session, "image_name": image })
}

/// `get_commands_of_session`, with the constants of the drawn arm.
pub fn question(session: &str) -> Value {
    json!({
        "command": "get_commands_of_session", "arm_id": "arm1", "session_id": session,
        "arm_constants": {
            "arm_id": "arm1", "arm_radius": 900, "dist_max_as_pw": 2150, "dist_min_as_pw": 1150,
            "rotation_range_as_deg": 180, "rotation_range_as_pw": 2000,
        },
    })
}

/// Whether the arm's Python is there: `etc/tools.sh arm`.
pub fn have_arm() -> bool {
    env::tool("arm/done").is_some()
}

/// `sorter_arm.py`, ready for its arguments.
pub fn python() -> Command {
    let mut command = Command::new(env::tool("arm/bin/python").expect("etc/tools.sh arm"));
    command.arg(root().join("tests/sorter_arm.py")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The pictures of a scene, by name.
pub fn draw(scratch: &Scratch, scene: &str) -> Vec<(String, Vec<u8>)> {
    let folder = scratch.dir(&format!("drawn-{scene}"));
    run(python().args(["draw", scene]).arg(&folder));
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    files(&folder).iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}
