//! What brings a folder to a device: `sideload`, rsync over ssh and to its daemon, and a Python stand-in for the way it
//! was done before. Each with a server of its own on a free port, its own keys and settings in a temporary folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::process::Process;
use e2e::scratch::Scratch;
use e2e::{env, net};

use super::link::Link;

/// How a folder is brought to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Sideload,
    /// `mux`: over a connection that is open already (ControlMaster). `sums`: `-c`, compares contents, not times.
    Ssh {
        mux: bool,
        sums: bool,
    },
    /// As `Ssh` with `mux`, but what is written is flushed to the disk before it is done, as `sideloadd` always does.
    SshFsync,
    RsyncDaemon,
    OneByOne {
        keep_alive: bool,
    },
}

impl Way {
    pub fn name(self) -> String {
        match self {
            Way::Sideload => "sideload sync".into(),
            Way::Ssh { mux, sums } => {
                let flags = if sums { "-ac" } else { "-a" };
                format!("rsync {flags} over ssh{}", if mux { ", ControlMaster" } else { "" })
            }
            Way::SshFsync => "rsync -a --fsync over ssh, ControlMaster".into(),
            Way::RsyncDaemon => "rsync -a to its daemon".into(),
            Way::OneByOne { keep_alive: true } => "Python stand-in, one connection".into(),
            Way::OneByOne { keep_alive: false } => "Python stand-in".into(),
        }
    }
}

/// A device that waits for one kind of sync.
pub struct Peer<'a> {
    pub way: Way,
    pub link: &'a Link,
    scratch: Scratch,
    port: u16,
    server: Option<Process>,
}

impl<'a> Peer<'a> {
    pub fn start(link: &'a Link, way: Way) -> Peer<'a> {
        let scratch = Scratch::new("bench");
        let mut peer = Peer { way, link, scratch, port: net::free_port(), server: None };
        match way {
            Way::Sideload | Way::OneByOne { .. } => certificates(&peer.scratch.dir("certs"), &link.addr),
            Way::Ssh { .. } | Way::SshFsync => peer.ssh_files(),
            Way::RsyncDaemon => {}
        }
        peer.serve();
        peer
    }

    /// Where the files end up.
    pub fn dest(&self) -> PathBuf {
        self.scratch.join("dest")
    }

    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().map_or(0, Process::pid)
    }

    /// An empty device, and a client that knows nothing.
    pub fn reset(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(self.dest());
        let _ = fs::remove_dir_all(self.scratch.join("cache"));
        self.serve();
    }

    /// The command on the developer's side that brings `src` there.
    pub fn sync(&self, src: &Path) -> Command {
        match self.way {
            Way::Sideload => {
                let mut command = self.sideload("sync");
                command.arg("--src-top").arg(src).args(["--force", "--json"]);
                command
            }
            Way::Ssh { .. } | Way::SshFsync => {
                let sums = matches!(self.way, Way::Ssh { sums: true, .. });
                let mut command = self.rsync(if sums { "-ac" } else { "-a" }, src);
                command.args((self.way == Way::SshFsync).then_some("--fsync"));
                command.arg("-e").arg(format!("ssh -F {}", self.scratch.join("ssh_config").display()));
                command.arg(format!("device:{}/", self.dest().display()));
                command
            }
            Way::RsyncDaemon => {
                let mut command = self.rsync("-a", src);
                command.arg(format!("rsync://{}:{}/dest/", self.link.addr, self.port));
                command
            }
            Way::OneByOne { keep_alive } => {
                let mut command = self.link.host(python());
                command.arg(stand_in()).args(["sync", &self.link.addr, &self.port.to_string()]);
                command.arg(self.scratch.join("certs")).arg(src);
                command.args(keep_alive.then_some("--keep-alive"));
                command
            }
        }
    }

    /// `sideload COMMAND` with all it needs to know but its own arguments.
    pub fn sideload(&self, name: &str) -> Command {
        let mut command = self.link.host(env::bin("sideload"));
        command.arg(name).args(["--addr", &self.link.addr, "--port", &self.port.to_string()]);
        command.arg("--cert-key-dir").arg(self.scratch.join("certs"));
        command.env("PATH", python_first());
        command.env("XDG_CACHE_HOME", self.scratch.join("cache")).current_dir(self.scratch.path());
        command
    }

    /// `ssh -F CONFIG device`, for a script.
    pub fn ssh(&self) -> String {
        format!("ssh -F {} device", self.scratch.join("ssh_config").display())
    }

    fn rsync(&self, flags: &str, src: &Path) -> Command {
        let mut command = self.link.host("rsync");
        command.args([flags, "--delete"]).arg(format!("{}/", src.display()));
        command
    }

    fn serve(&mut self) {
        fs::create_dir_all(self.dest()).unwrap();
        let (port, addr) = (self.port, &self.link.addr);
        let mut command = match self.way {
            Way::Sideload => {
                let mut command = self.link.device(env::bin("sideloadd"));
                command.arg("--config").arg(self.daemon_config()).env("PATH", python_first());
                command
            }
            Way::Ssh { .. } | Way::SshFsync => {
                let mut command = self.link.device(env::which("sshd").unwrap());
                command.args(["-D", "-e", "-f"]).arg(self.scratch.join("sshd_config"));
                command
            }
            Way::RsyncDaemon => {
                let dest = self.dest();
                let ids = if rustix::process::getuid().is_root() { "uid = root\ngid = root\n" } else { "" };
                let config =
                    format!("use chroot = no\n{ids}[dest]\npath = {}\nread only = no\n", dest.display());
                let config = self.scratch.write("rsyncd.conf", config);
                let mut command = self.link.device("rsync");
                command.args(["--daemon", "--no-detach", "--address", addr, "--port", &port.to_string()]);
                command.arg("--config").arg(config);
                command
            }
            Way::OneByOne { .. } => {
                let mut command = self.link.device(python());
                command.arg(stand_in()).args(["agent", addr, &port.to_string()]);
                command.arg(self.scratch.join("certs")).arg(self.dest());
                command
            }
        };
        self.server = Some(Process::start(&self.way.name(), &mut command));
        self.wait_up();
        if matches!(self.way, Way::Ssh { mux: true, .. } | Way::SshFsync) {
            // -f: it is in the background as soon as it is connected.
            env::run(
                self.link.host("ssh").arg("-F").arg(self.scratch.join("ssh_config")).args(["-fN", "device"]),
            );
        }
    }

    /// Asked from the developer's side: the device may be on another network than this program.
    fn wait_up(&mut self) {
        let (addr, port) = (self.link.addr.clone(), self.port.to_string());
        env::wait_for(&format!("{} on port {port}", self.way.name()), Duration::from_secs(20), || {
            let server = self.server.as_mut().unwrap();
            assert!(server.exited().is_none(), "{} ended:\n{}", server.name, server.lines.tail(20));
            let script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)";
            let mut command = self.link.host(python());
            command.args(["-c", script, &addr, &port]).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success()).then_some(())
        });
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            if matches!(self.way, Way::Ssh { mux: true, .. } | Way::SshFsync) {
                let mut exit = self.link.host("ssh");
                exit.arg("-F").arg(self.scratch.join("ssh_config")).args(["-O", "exit", "device"]);
                let _ = exit.output();
            }
            server.term(Duration::from_secs(20));
        }
    }

    fn daemon_config(&self) -> PathBuf {
        let (dest, certs) = (self.dest(), self.scratch.join("certs"));
        let config = sideloadd_toml(&self.link.addr, self.port, &dest, &certs, self.scratch.path());
        self.scratch.write("sideloadd.toml", config)
    }

    fn ssh_files(&self) {
        let dir = self.scratch.path();
        for name in ["host_key", "user_key"] {
            env::run(
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(name)),
            );
        }
        fs::copy(dir.join("user_key.pub"), dir.join("authorized")).unwrap();
        if rustix::process::getuid().is_root() {
            // sshd separates its privileges in there.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let (addr, port, at) = (&self.link.addr, self.port, dir.display());
        let sshd = format!(
            "ListenAddress {addr}:{port}\nHostKey {at}/host_key\nAuthorizedKeysFile {at}/authorized\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
        );
        let mux = match self.way {
            Way::Ssh { mux: true, .. } | Way::SshFsync => {
                format!("ControlMaster auto\nControlPath {at}/mux\n")
            }
            _ => String::new(),
        };
        let ssh = format!(
            "Host device\nHostName {addr}\nPort {port}\nUser {}\nIdentityFile {at}/user_key\nIdentitiesOnly yes\n\
             UserKnownHostsFile /dev/null\nStrictHostKeyChecking no\nLogLevel ERROR\n{mux}",
            env::run(Command::new("id").arg("-un")).trim()
        );
        self.scratch.write("sshd_config", sshd);
        self.scratch.write("ssh_config", ssh);
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// All that is not by default.
fn sideloadd_toml(addr: &str, port: u16, dest: &Path, certs: &Path, state: &Path) -> String {
    let pem = |name: &str| certs.join(format!("sideloading_{name}.pem"));
    let (ctl, device) = (state.join("ctl.sock"), state.join("device.toml"));
    let (cert, key, pin) = (pem("server.cert"), pem("server.key"), pem("client.cert"));
    format!(
        "listen = \"{addr}:{port}\"\nroot = {dest:?}\nfallback-root = {state:?}\nctl-socket = {ctl:?}\n\
         device-file = {device:?}\n[tls]\ncert-file = {cert:?}\nkey-file = {key:?}\nclient-pins = [{pin:?}]\n"
    )
}

/// Pairs as `openssl req -x509` makes them.
fn certificates(dir: &Path, addr: &str) {
    for (end, name) in [("server", addr), ("client", "developer")] {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        command.args(["-subj", &format!("/CN={name}"), "-keyout"]);
        command.arg(dir.join(format!("sideloading_{end}.key.pem"))).arg("-out");
        env::run(command.arg(dir.join(format!("sideloading_{end}.cert.pem"))));
    }
}

fn stand_in() -> PathBuf {
    env::root().join("tests/bench/one_file_a_request.py")
}

/// The interpreter itself, not a wrapper that costs its own start.
pub fn python() -> PathBuf {
    [PathBuf::from("/usr/bin/python3")].into_iter().find(|p| p.exists()).unwrap_or_else(|| "python3".into())
}

/// The PATH with that interpreter's folder before all others: both ends of `sideload` look for `python3` there.
fn python_first() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = python().parent().map(Path::to_path_buf);
    std::env::join_paths(first.into_iter().chain(std::env::split_paths(&path))).unwrap()
}
