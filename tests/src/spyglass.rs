//! spyglassd under test: the daemon, applications that feed it (`tests/spyglass_app.py`), and viewers
//! (`tests/spyglass_view.py`, which reads the bar code of each picture).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::env::{root, wait_for};
use crate::net::free_port;
use crate::process::Process;
use crate::scratch::Scratch;

/// A daemon with RTSP.
pub struct Spyglass {
    /// The daemon.
    pub daemon: Daemon,
    /// RTSP's port.
    pub port: u16,
}

impl Spyglass {
    /// Starts it; `more` is added to its configuration, `rtsp` to its `[rtsp]`.
    pub fn start(scratch: &Scratch, rtsp: &str, more: &str) -> Spyglass {
        let mut spy = Self::new(scratch, rtsp, more);
        spy.daemon.start_ready();
        spy
    }

    /// As [`start`](Spyglass::start), not started.
    pub fn new(scratch: &Scratch, rtsp: &str, more: &str) -> Spyglass {
        let port = free_port();
        let toml = format!(
            "ctl-socket = \"{{dir}}/ctl.sock\"\ncache-dir = \"{{dir}}\"\n[frames]\nsocket = \"{{dir}}/f.sock\"\n\
             [web]\nlisten = \"\"\n[rtsp]\nlisten = \"127.0.0.1:{port}\"\n{rtsp}\n{more}"
        );
        let mut daemon = Daemon::new(scratch, "spyglassd", "spy", &toml);
        daemon.env("GST_REGISTRY", registry().to_string_lossy());
        Spyglass { daemon, port }
    }

    /// As [`start`](Spyglass::start), with the page at the port that is given back.
    pub fn start_with_page(scratch: &Scratch, rtsp: &str, more: &str) -> (Spyglass, u16) {
        let (mut spy, port) = (Self::new(scratch, rtsp, more), free_port());
        let config = std::fs::read_to_string(&spy.daemon.config).unwrap();
        let config = config.replace("[web]\nlisten = \"\"", &format!("[web]\nlisten = \"127.0.0.1:{port}\""));
        std::fs::write(&spy.daemon.config, config).unwrap();
        spy.daemon.start_ready();
        (spy, port)
    }

    /// The frames socket.
    pub fn socket(&self) -> PathBuf {
        self.daemon.dir.join("f.sock")
    }

    /// A stream's address.
    pub fn url(&self, name: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{name}", self.port)
    }

    /// An application that feeds `name` for so many seconds.
    pub fn app(&self, name: &str, size: (u32, u32), fps: u32, seconds: u32) -> Process {
        Process::start("application", &mut app(&self.socket().to_string_lossy(), name, size, fps, seconds))
    }

    /// See [`viewer`].
    pub fn viewer(&self, player: &str, transport: &str, url: &str, seconds: u32) -> Process {
        viewer(player, transport, url, seconds)
    }

    /// What `/status` says of a stream; null when there is none.
    pub fn stream(&self, name: &str) -> Value {
        let status = self.daemon.status();
        let streams = status["streams"].as_array().cloned().unwrap_or_default();
        streams.into_iter().find(|s| s["name"] == name).unwrap_or(Value::Null)
    }

    /// Waits until a stream is in a state.
    pub fn wait_state(&self, name: &str, state: &str) {
        wait_for(
            &format!("{name} to be {state}, not {}", self.stream(name)),
            Duration::from_secs(60),
            || (self.stream(name)["state"] == state).then_some(()),
        );
    }
}

/// The command of an application; `to` is where its frames go, as `tests/spyglass_app.py` says.
pub fn app(to: &str, name: &str, size: (u32, u32), fps: u32, seconds: u32) -> Command {
    let mut command = Command::new(python().unwrap());
    command.arg(root().join("tests/spyglass_app.py")).args([to, name]);
    command.args([size.0, size.1, fps, seconds].map(|n| n.to_string()));
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("GST_REGISTRY", registry());
    command
}

/// A viewer that plays for so many seconds from its first picture on; without one it ends 20 s later.
pub fn viewer(player: &str, transport: &str, url: &str, seconds: u32) -> Process {
    let mut command = Command::new(python().unwrap());
    command.arg(root().join("tests/spyglass_view.py"));
    command.args([player, transport, url, &seconds.to_string()]);
    command.env("GST_REGISTRY", registry());
    Process::start("viewer", &mut command)
}

/// Ends a viewer's player, which has begun, as its time does: the viewer then reports.
pub fn end_player(viewer: &Process) {
    let pid = viewer.pid();
    let players = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for player in players.split_whitespace().map(|pid| pid.parse().unwrap()) {
        // It may have ended by itself: then there is nobody to tell.
        let _ = kill_process(Pid::from_raw(player).unwrap(), Signal::KILL);
    }
}

/// GStreamer's registry, shared by all tests of a run: making it takes seconds.
pub fn registry() -> PathBuf {
    std::env::temp_dir().join("edge-tests-gstreamer-registry.bin")
}

/// The line of JSON that an application or a viewer ends with.
pub fn report(mut process: Process, within: Duration) -> Value {
    process.wait_exit(within);
    let lines = process.lines.all();
    let line = lines.iter().rev().find(|l| l.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{} gave no report:\n{}", process.name, process.lines.tail(20)));
    serde_json::from_str(line).unwrap()
}

/// Whether what the tests need is installed: Python with numpy.
pub fn have_numpy() -> bool {
    python().is_some()
}

/// A Python that has numpy: the first on the PATH may be another one than the distribution's, which python3-numpy is for.
/// Looked for once a run: it takes long enough that programs started one after the other come apart.
pub fn python() -> Option<&'static str> {
    static FOUND: OnceLock<Option<&'static str>> = OnceLock::new();
    let has = |python: &&str| {
        let tried = Command::new(python).args(["-c", "import numpy"]).output();
        tried.is_ok_and(|output| output.status.success())
    };
    *FOUND.get_or_init(|| ["python3", "/usr/bin/python3"].into_iter().find(has))
}

/// The body of what the page at `port` answers.
pub fn page(port: u16, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(socket, "GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A client that says what it likes.
pub struct Raw {
    socket: OwnedFd,
}

impl Raw {
    /// Connects.
    pub fn connect(spyglass: &Spyglass) -> Raw {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(spyglass.socket()).unwrap()).unwrap();
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(Duration::from_secs(15)),
        )
        .unwrap();
        Raw { socket }
    }

    /// Sends a packet; `false` when the daemon has hung up.
    pub fn send(&self, packet: &[u8]) -> bool {
        rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL).is_ok()
    }

    /// The next packet, without any descriptor; empty when the daemon has hung up.
    pub fn receive(&self) -> Vec<u8> {
        let mut packet = vec![0; 512];
        let (_, len) = rustix::net::recv(&self.socket, &mut packet[..], RecvFlags::empty()).unwrap_or((0, 0));
        packet.truncate(len);
        packet
    }

    /// The text of the ERROR that the daemon says next.
    pub fn error(&self) -> String {
        let packet = self.receive();
        assert!(packet.len() == 256 && packet[4] == 5, "no ERROR: {packet:?}");
        String::from_utf8_lossy(&packet[8..]).trim_end_matches('\0').to_owned()
    }
}

/// A message: magic, type, length, body.
pub fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + body.len()).unwrap();
    [b"SPY1", &kind.to_le_bytes()[..], &length.to_le_bytes(), body].concat()
}

/// HELLO for packed BGR frames.
pub fn hello(name: &str, (width, height): (u32, u32), stride: u32, format: u32, slots: u32) -> Vec<u8> {
    let words = [width, height, stride, format, 0, 0, slots, 0];
    let mut body: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    body.extend_from_slice(name.as_bytes());
    body.resize(96, 0);
    message(1, &body)
}

/// FRAME of packed pixels.
pub fn frame(slot: u32, (width, height): (u32, u32), stride: u32, pts_ns: u64) -> Vec<u8> {
    let mut body: Vec<u8> = [slot, width, height, stride].iter().flat_map(|w| w.to_le_bytes()).collect();
    body.extend_from_slice(&pts_ns.to_le_bytes());
    body.extend_from_slice(&[0; 8]);
    message(3, &body)
}
