//! What the MQTT tests share: a mosquitto of their own, and a loop that drives one client.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod port;

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use e2e::net::free_port;
use edge::{
    mqtt::{Client, ClientConfig, ClientEvent, Message, Qos, Version},
    net::Resolver,
};
use mio::{Events, Poll, Token, Waker};

pub const PATIENCE: Duration = Duration::from_secs(20);
const WAKER: Token = Token(1);

/// Names the test and says why it does nothing, when `program` is not installed.
pub fn have(test: &str, program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .chain([PathBuf::from("/usr/sbin")])
        .any(|dir| dir.join(program).is_file());
    if !found {
        println!("skipped: {test}: {program} is not installed");
    }
    found
}

/// A folder of its own, removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let nonce = fastrand::u32(..);
        let dir = std::env::temp_dir().join(format!("edge-{name}-{}-{nonce:08x}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A mosquitto with its own folder and port, ended by its pid.
pub struct Broker {
    pub port: u16,
    pub folder: Folder,
    child: Option<Child>,
}

impl Broker {
    /// `extra` goes into the configuration; `{dir}` is the folder.
    pub fn start(name: &str, extra: &str) -> Broker {
        let folder = Folder::new(name);
        let port = free_port();
        let dir = folder.0.display().to_string();
        let auth = if extra.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" };
        let text = format!(
            "listener {port} 127.0.0.1\n{auth}persistence true\npersistence_location {dir}/\nuser root\n\
             log_dest file {dir}/log\n{}\n",
            extra.replace("{dir}", &dir)
        );
        folder.write("conf", &text);
        let mut broker = Broker { port, folder, child: None };
        broker.run();
        broker
    }

    pub fn run(&mut self) {
        let program =
            if Path::new("/usr/sbin/mosquitto").is_file() { "/usr/sbin/mosquitto" } else { "mosquitto" };
        let child = Command::new(program)
            .arg("-c")
            .arg(self.folder.0.join("conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "mosquitto does not listen on {}", self.port);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// TERM: it saves its sessions.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }

    pub fn config(&self, client_id: &str, version: Version) -> ClientConfig {
        let mut cfg = ClientConfig::new("127.0.0.1", self.port, client_id);
        cfg.version = version;
        cfg.backoff = (Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(60));
        cfg
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One client and its loop.
pub struct Driver {
    pub poll: Poll,
    events: Events,
    pub client: Client,
}

impl Driver {
    pub fn new(cfg: ClientConfig) -> Driver {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).unwrap());
        let resolver = Resolver::new(waker).unwrap();
        let mut client = Client::new(cfg, resolver, fastrand::Rng::with_seed(1));
        client.start(Instant::now());
        Driver { poll, events: Events::with_capacity(64), client }
    }

    /// One turn of the loop, at most `wait` long; the next event if there is one.
    pub fn turn(&mut self, wait: Duration) -> Option<ClientEvent> {
        if let Some(event) = self.client.next_event() {
            return Some(event);
        }
        self.client.flush(self.poll.registry(), Instant::now());
        let now = Instant::now();
        let timeout = self.client.deadline().map_or(wait, |at| at.saturating_duration_since(now).min(wait));
        self.poll.poll(&mut self.events, Some(timeout)).unwrap();
        let now = Instant::now();
        for event in &self.events {
            if event.token() == WAKER {
                self.client.resolved(self.poll.registry(), now);
            } else {
                self.client.ready(self.poll.registry(), event, now);
            }
        }
        if self.client.deadline().is_some_and(|at| at <= now) {
            self.client.timer(self.poll.registry(), now);
        }
        self.client.next_event()
    }

    /// Waits for the event that `wanted` maps to something; others are passed by.
    pub fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(&ClientEvent) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while Instant::now() < until {
            if let Some(event) = self.turn(Duration::from_millis(50)) {
                if let Some(found) = wanted(&event) {
                    return found;
                }
                seen.push(event);
            }
        }
        panic!("{what} did not come; instead {seen:?}");
    }

    /// Turns for a while and returns all events.
    pub fn idle(&mut self, time: Duration) -> Vec<ClientEvent> {
        let until = Instant::now() + time;
        let mut seen = Vec::new();
        while Instant::now() < until {
            seen.extend(self.turn(Duration::from_millis(10)));
        }
        seen
    }

    pub fn connected(&mut self) -> bool {
        self.wait("Connected", |e| match e {
            ClientEvent::Connected { session_present, .. } => Some(*session_present),
            _ => None,
        })
    }

    pub fn publish(&mut self) -> (Option<u16>, bool, Message) {
        self.wait("Publish", |e| match e {
            ClientEvent::Publish { pid, dup, message } => Some((*pid, *dup, message.clone())),
            _ => None,
        })
    }

    pub fn disconnected(&mut self) -> (edge::mqtt::DisconnectKind, String) {
        self.wait("Disconnected", |e| match e {
            ClientEvent::Disconnected { error, reason, .. } => Some((*error, reason.clone())),
            _ => None,
        })
    }

    pub fn subscribe(&mut self, topic: &str) -> Vec<u8> {
        let filter = edge::mqtt::Filter {
            topic: topic.into(),
            qos: Qos::ExactlyOnce,
            no_local: false,
            retain_as_published: true,
        };
        let asked = self.client.subscribe(&[filter]).unwrap();
        self.wait("Suback", |e| match e {
            ClientEvent::Suback { pid, reasons } if *pid == asked => Some(reasons.clone()),
            _ => None,
        })
    }

    /// Publishes and waits for the end of the exchange.
    pub fn send(&mut self, message: &Message) {
        match message.qos {
            Qos::AtMostOnce => {
                self.client.publish(None, false, message).unwrap();
                self.client.flush(self.poll.registry(), Instant::now());
            }
            Qos::AtLeastOnce => {
                let id = self.client.acquire_pid().unwrap();
                self.client.publish(Some(id), false, message).unwrap();
                self.wait("Puback", |e| {
                    matches!(e, ClientEvent::Puback { pid, .. } if *pid == id).then_some(())
                });
            }
            Qos::ExactlyOnce => {
                let id = self.client.acquire_pid().unwrap();
                self.client.publish(Some(id), false, message).unwrap();
                self.wait("Pubrec", |e| {
                    matches!(e, ClientEvent::Pubrec { pid, .. } if *pid == id).then_some(())
                });
                self.client.pubrel(id).unwrap();
                self.wait("Pubcomp", |e| {
                    matches!(e, ClientEvent::Pubcomp { pid, .. } if *pid == id).then_some(())
                });
            }
        }
    }
}

pub fn message(topic: &str, payload: impl Into<Vec<u8>>, qos: u8) -> Message {
    Message {
        topic: topic.into(),
        payload: payload.into(),
        qos: Qos::from_u8(qos).unwrap(),
        ..Message::default()
    }
}
