//! The network between developer and device: two namespaces with one cable, so that every byte on it is counted, and
//! can be delayed; without the right to make them, the loopback interface, counted with all that runs over it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use e2e::env;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A cable. Its namespaces end with it.
pub struct Link {
    spaces: Option<(String, String)>,
    /// The device's address.
    pub addr: String,
}

impl Link {
    /// A new one; `netem` is what `tc` shall do to each direction, e.g. `delay 10ms rate 50mbit`.
    /// `None`: that is not allowed here.
    pub fn new(netem: Option<&str>) -> Option<Link> {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let (host, device) =
            (format!("edge-h-{}-{n}", std::process::id()), format!("edge-d-{}-{n}", std::process::id()));
        let mut link = Link { spaces: Some((host, device)), addr: "10.213.7.2".into() };
        if link.wire(netem) {
            return Some(link);
        }
        link.remove();
        (netem.is_none()).then(|| Link { spaces: None, addr: "127.0.0.1".into() })
    }

    fn wire(&self, netem: Option<&str>) -> bool {
        let Some((host, device)) = &self.spaces else { return false };
        let mut ok = ip(&["netns", "add", host]) && ip(&["netns", "add", device]);
        ok = ok
            && ip(&[
                "-n", host, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", device,
            ]);
        for (space, addr) in [(host, "10.213.7.1/30"), (device, "10.213.7.2/30")] {
            ok = ok && ip(&["-n", space, "addr", "add", addr, "dev", "cable"]);
            ok = ok
                && ip(&["-n", space, "link", "set", "lo", "up"])
                && ip(&["-n", space, "link", "set", "cable", "up"]);
            if let (true, Some(netem)) = (ok, netem) {
                let mut tc = Command::new(env::which("tc").unwrap_or_else(|| "tc".into()));
                tc.args(["-n", space, "qdisc", "add", "dev", "cable", "root", "netem", "limit", "100000"]);
                tc.args(netem.split(' '));
                ok = tc.output().is_ok_and(|out| out.status.success());
            }
        }
        ok
    }

    /// A command on the developer's side.
    pub fn host(&self, program: impl AsRef<Path>) -> Command {
        self.within(self.spaces.as_ref().map(|s| &s.0), program.as_ref())
    }

    /// A command on the device.
    pub fn device(&self, program: impl AsRef<Path>) -> Command {
        self.within(self.spaces.as_ref().map(|s| &s.1), program.as_ref())
    }

    fn within(&self, space: Option<&String>, program: &Path) -> Command {
        let Some(space) = space else { return Command::new(program) };
        // It becomes the program: the pid is the program's.
        let mut command = Command::new(env::which("ip").unwrap_or_else(|| "ip".into()));
        command.args(["netns", "exec", space]).arg(program);
        command
    }

    /// Bytes that went over it so far, both directions, headers included.
    pub fn bytes(&self) -> u64 {
        let text = match &self.spaces {
            Some((host, _)) => {
                let mut command = Command::new(env::which("ip").unwrap_or_else(|| "ip".into()));
                env::run(command.args(["netns", "exec", host, "cat", "/proc/net/dev"]))
            }
            None => std::fs::read_to_string("/proc/net/dev").unwrap(),
        };
        let name = if self.spaces.is_some() { "cable:" } else { "lo:" };
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
        let fields: Vec<u64> = line.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        // What is received on the loopback interface was sent on it.
        fields[0] + if self.spaces.is_some() { fields[8] } else { 0 }
    }

    fn remove(&mut self) {
        if let Some((host, device)) = self.spaces.take() {
            ip(&["netns", "del", &host]);
            ip(&["netns", "del", &device]);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(args: &[&str]) -> bool {
    let program = env::which("ip").unwrap_or_else(|| "ip".into());
    Command::new(program).args(args).output().is_ok_and(|out| out.status.success())
}
