//! `sd_notify(3)`: telling systemd that the daemon is ready, well, reloading or stopping.
//!
//! Owns: the datagram socket to `$NOTIFY_SOCKET`. Without that variable every call does nothing.
//! Never: fails the daemon because systemd did not listen.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli::Failure;

/// The way to systemd, if it started us.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
    last_status: String,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` from the environment.
    pub fn from_env() -> Notifier {
        let socket = std::env::var("NOTIFY_SOCKET").ok().and_then(|path| match connect(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                log::warn!(
                    "cannot reach systemd at NOTIFY_SOCKET={path}: {error}; it will not see our state"
                );
                None
            }
        });
        let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros);
        Notifier { socket, watchdog, last_status: String::new() }
    }

    /// Start-up is done. Sockets are open, files are recovered.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// One line for `systemctl status`. Sent only when it differs from the last one.
    pub fn status(&mut self, text: &str) {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if line != self.last_status {
            self.send(&format!("STATUS={line}"));
            self.last_status = line;
        }
    }

    /// A reload has read `path`. What is good is returned, and [`Notifier::ready`] ends the reload; else the log says why, and
    /// the old configuration stays.
    pub fn reload<C>(&self, path: &Path, loaded: Result<C, impl Into<Failure>>) -> Option<C> {
        match loaded {
            Ok(new) => {
                log::info!("reloading {}", path.display());
                self.reloading();
                Some(new)
            }
            Err(error) => {
                let why = crate::log::chain(error.into().error.as_ref());
                log::error!("the old configuration stays in force: {why}");
                None
            }
        }
    }

    fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let usec = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// The daemon drains and ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Says that the daemon lives, and returns when to say it again: after half of what systemd allows. `None` where nobody
    /// watches.
    pub fn alive(&self, now: Instant) -> Option<Instant> {
        let limit = self.socket.as_ref().and(self.watchdog)?;
        self.send("WATCHDOG=1");
        Some(now + limit / 2)
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            log::debug!("cannot tell systemd {message:?}: {error}");
        }
    }
}

fn connect(path: &str) -> std::io::Result<UnixDatagram> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name.as_bytes())?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A full receive queue at systemd must not stop the daemon.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd hears from a daemon that it watches with a limit of 10 s.
    fn heard(say: impl FnOnce(&mut Notifier)) -> Vec<String> {
        let (socket, systemd) = UnixDatagram::pair().unwrap();
        systemd.set_nonblocking(true).unwrap();
        let watchdog = Some(Duration::from_secs(10));
        say(&mut Notifier { socket: Some(socket), watchdog, last_status: String::new() });
        let mut buffer = [0; 256];
        std::iter::from_fn(|| systemd.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec()))
            .map(|message| String::from_utf8(message).unwrap())
            .collect()
    }

    #[test]
    fn a_watched_daemon_says_that_it_lives_twice_in_the_limit() {
        let now = Instant::now();
        let said = heard(|notifier| assert_eq!(notifier.alive(now), Some(now + Duration::from_secs(5))));
        assert_eq!(said, ["WATCHDOG=1"]);
        let unwatched = heard(|notifier| {
            notifier.watchdog = None;
            assert_eq!(notifier.alive(now), None);
        });
        assert_eq!(unwatched, [""; 0]);
    }

    #[test]
    fn a_bad_file_begins_no_reload() {
        let path = Path::new("x.toml");
        let said = heard(|notifier| {
            assert_eq!(notifier.reload(path, Err::<(), _>(Failure::config("no such key"))), None);
            assert_eq!(notifier.reload(path, Ok::<_, Failure>(7)), Some(7));
            notifier.ready();
        });
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{said:?}");
        assert_eq!(said[1], "READY=1");
    }

    #[test]
    fn a_status_is_one_line_and_told_once() {
        let said =
            heard(|notifier| ["a\nb", "a b", "c"].map(|line| notifier.status(line)).into_iter().collect());
        assert_eq!(said, ["STATUS=a b", "STATUS=c"]);
    }
}
