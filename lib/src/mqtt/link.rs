//! How a connection to a broker fares, for people: the log lines of its ups and downs, and its state in words.
//!
//! Owns: the last state and its reason. Never: touches the connection.

use std::time::{Duration, Instant};

use super::{ClientConfig, DisconnectKind};

/// The state of one connection in words.
#[derive(Debug)]
pub struct Link {
    name: String,
    state: State,
    /// A refusal that does not end the connection.
    pub complaint: Option<String>,
    /// Connections made so far.
    pub connects: u64,
}

#[derive(Debug)]
enum State {
    Starting,
    Up(Instant),
    Down { reason: String },
}

impl Link {
    /// Not yet connected.
    #[must_use]
    pub fn new(config: &ClientConfig) -> Link {
        let name = format!("{}:{} as {}", config.host, config.port, config.client_id);
        Link { name, state: State::Starting, complaint: None, connects: 0 }
    }

    /// `host:port as client-id`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// CONNACK was good.
    pub fn up(&mut self, now: Instant) {
        log::info!("connected to {}", self.name);
        self.state = State::Up(now);
        self.complaint = None;
        self.connects += 1;
    }

    /// The connection or the attempt ended. The same failure again and again is said once.
    pub fn down(&mut self, reason: String, kind: DisconnectKind, retry_in: Duration, now: Instant) {
        if kind != DisconnectKind::Stopped {
            let after = match self.state {
                State::Up(since) => format!(" after {} s", now.saturating_duration_since(since).as_secs()),
                _ => String::new(),
            };
            let again = matches!(&self.state, State::Down { reason: before } if *before == reason);
            let level = if again { log::Level::Debug } else { log::Level::Warn };
            log::log!(
                level,
                "{}{after}: {reason}; next attempt in {:.1} s",
                self.name,
                retry_in.as_secs_f64()
            );
        }
        self.state = State::Down { reason };
    }

    /// Whether there is a connection, and nothing was refused on it.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_)) && self.complaint.is_none()
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = match (&self.state, &self.complaint) {
            (State::Up(_), Some(complaint)) => complaint,
            (State::Up(_), None) => "connected",
            (State::Starting, _) => "connecting",
            (State::Down { reason }, _) => reason,
        };
        format!("{}: {state}", self.name)
    }
}
