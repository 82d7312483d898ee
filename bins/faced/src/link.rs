//! The way to the broker: the MQTT client, and the queue it is fed from.
//!
//! Owns: the connection, the packet ids in flight, the retained status. Invariants: what is unacknowledged is sent
//! again after every reconnect, before anything new; at most `in-flight` (and the broker's Receive Maximum) messages
//! are unacknowledged. Never: drops a face without counting it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::mqtt::{Client, ClientEvent, DisconnectKind, Message, Properties, PublishError, Qos, reason_text};
use edge::net::Resolver;
use mio::event::Event;
use mio::{Registry, Token};

use crate::config::Config;
use crate::core::Latencies;
use crate::face::Face;
use crate::queue::{Body, Item, Queue, Resend};
use crate::template;
use edge::clock::unix_ms;

/// How long nothing is sent after the broker said "not now".
const HOLD: Duration = Duration::from_secs(10);
const QUOTA_EXCEEDED: u8 = 0x97;
const NOT_AUTHORIZED: u8 = 0x87;

/// The way to the broker.
#[derive(Debug)]
pub struct Link {
    config: Config,
    client: Client,
    queue: Queue,
    resend: VecDeque<Resend>,
    window: usize,
    qos_max: Qos,
    held_until: Option<Instant>,
    /// Why there is no connection; empty while there is one.
    why: String,
    latencies: Latencies,
    connections: u64,
    stopped: bool,
}

/// The retained status.
fn status(config: &Config, state: &str) -> Option<Message> {
    let topic = config.faces.status_topic.clone()?;
    let properties = Properties { content_type: Some("text/plain".to_owned()), ..Properties::default() };
    Some(Message {
        topic,
        payload: state.as_bytes().to_vec(),
        qos: Qos::AtMostOnce,
        retain: true,
        properties,
    })
}

fn client(config: &Config, resolver: &Resolver, rng: &mut fastrand::Rng) -> Client {
    let mut mqtt = config.mqtt.clone();
    mqtt.will = status(config, "offline").map(|will| Message { qos: Qos::AtLeastOnce, ..will });
    Client::new(mqtt, resolver.clone(), rng.fork())
}

impl Link {
    /// A link that begins to connect at `now`.
    pub fn new(config: &Config, resolver: &Resolver, rng: &mut fastrand::Rng, now: Instant) -> Link {
        let mut client = client(config, resolver, rng);
        client.start(now);
        Link {
            client,
            queue: Queue::new(config.limits.queue_bytes, config.limits.queue_age),
            resend: VecDeque::new(),
            window: 0,
            qos_max: Qos::ExactlyOnce,
            held_until: None,
            why: "connecting".to_owned(),
            latencies: Latencies::default(),
            connections: 0,
            stopped: false,
            config: config.clone(),
        }
    }

    /// Takes a new configuration; connects anew when the broker or the status topic changed. What waits goes with it.
    pub fn reconfigure(
        &mut self,
        config: &Config,
        resolver: &Resolver,
        rng: &mut fastrand::Rng,
        now: Instant,
    ) {
        let broker = |c: &Config| {
            (edge::config::to_toml(&c.raw.mqtt), c.device.id.clone(), c.faces.status_topic.clone())
        };
        let same = broker(config) == broker(&self.config);
        self.config = config.clone();
        self.queue.set_bounds(config.limits.queue_bytes, config.limits.queue_age);
        if !same {
            // Another broker knows nothing of our packet ids: everything in flight waits again.
            let _ = self.queue.connected(false);
            self.queue.disconnected();
            self.resend.clear();
            self.client = client(config, resolver, rng);
            self.client.start(now);
            self.why = "connecting".to_owned();
        }
    }

    /// Queues a face whose picture is encoded.
    pub fn push(&mut self, face: Face, payload: Vec<u8>, now: Instant) {
        let face = face.sealed(&self.config.device, &payload, unix_ms());
        let event = self.config.faces.event_topic.is_some();
        self.queue.push(Arc::new(face), payload, event, now);
    }

    /// What waits and what is in flight.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// From capture to acknowledgement.
    #[must_use]
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// Whether the broker is there, why not, and how often it was reached.
    #[must_use]
    pub fn state(&self) -> (bool, &str, u64) {
        (self.client.is_connected(), &self.why, self.connections)
    }

    /// Whether `token` is the socket's.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        self.client.owns(token)
    }

    /// An event of the socket.
    pub fn ready(&mut self, registry: &Registry, event: &Event, now: Instant) {
        self.client.ready(registry, event, now);
    }

    /// The resolver may have answered.
    pub fn resolved(&mut self, registry: &Registry, now: Instant) {
        self.client.resolved(registry, now);
    }

    /// When [`Link::turn`] is wanted at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.held_until.filter(|_| !self.queue.is_empty());
        [self.client.deadline(), held].into_iter().flatten().min()
    }

    /// One turn of the loop: what happened is taken in, what can be sent is sent.
    pub fn turn(&mut self, registry: &Registry, now: Instant) {
        if self.client.deadline().is_some_and(|at| at <= now) {
            self.client.timer(registry, now);
        }
        while let Some(event) = self.client.next_event() {
            self.event(event, now);
        }
        self.queue.expire(now);
        self.pump(now);
        self.client.flush(registry, now);
    }

    /// Says goodbye: the retained status becomes `offline`, then the connection is closed in order.
    pub fn stop(&mut self, now: Instant) {
        self.announce("offline");
        self.client.stop(now);
    }

    /// Whether the connection is closed after [`Link::stop`].
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn announce(&mut self, state: &str) {
        if !self.client.is_connected() {
            return;
        }
        if let Some(message) = status(&self.config, state)
            && let Err(error) = self.client.publish(None, false, &message)
        {
            log::warn!("the status {state:?} on {} is not published: {error}", message.topic);
        }
    }

    fn event(&mut self, event: ClientEvent, now: Instant) {
        match event {
            ClientEvent::Connected { session_present, limits } => {
                self.connections += 1;
                self.why.clear();
                self.window = usize::from(self.config.limits.in_flight.min(limits.receive_maximum));
                self.qos_max = limits.max_qos;
                let (resend, freed) = self.queue.connected(session_present);
                freed.into_iter().for_each(|pid| self.client.release_pid(pid));
                let waiting = self.queue.depth().0;
                log::info!(
                    "connected to {}:{}; {waiting} messages wait, {} are sent again",
                    self.config.mqtt.host,
                    self.config.mqtt.port,
                    resend.len()
                );
                self.resend = resend.into();
                self.announce("online");
            }
            ClientEvent::Disconnected { reason, error, retry_in } => {
                self.queue.disconnected();
                self.resend.clear();
                if error == DisconnectKind::Stopped {
                    self.stopped = true;
                } else {
                    log::warn!("no broker: {reason}; next attempt in {:.1} s", retry_in.as_secs_f64());
                }
                self.why = reason;
            }
            ClientEvent::Puback { pid, reason } if reason >= 0x80 => self.refused(pid, reason, now),
            ClientEvent::Pubrec { pid, reason } if reason >= 0x80 => self.refused(pid, reason, now),
            ClientEvent::Puback { pid, .. } | ClientEvent::Pubcomp { pid, .. } => {
                if let Some(Item { face, body: Body::Crop(_), .. }) = self.queue.acknowledged(pid) {
                    self.latencies.add(unix_ms().saturating_sub(face.time_ms));
                }
            }
            ClientEvent::Pubrec { pid, .. } => {
                self.queue.received(pid);
                if let Err(error) = self.client.pubrel(pid) {
                    log::debug!("PUBREL {pid} waits for the next connection: {error}");
                }
            }
            // Nothing is subscribed; room in the buffer is used by `pump` in any case.
            _ => {}
        }
    }

    fn refused(&mut self, pid: u16, reason: u8, now: Instant) {
        let text = reason_text(reason);
        if matches!(reason, QUOTA_EXCEEDED | NOT_AUTHORIZED) {
            log::error!(
                "the broker refuses faces for now: {text} (0x{reason:02x}); nothing is dropped, tried again in {} s{}",
                HOLD.as_secs(),
                if reason == NOT_AUTHORIZED { "; may this client publish on the topic?" } else { "" }
            );
            self.queue.postponed(pid);
            self.held_until = Some(now + HOLD);
        } else if let Some(item) = self.queue.refused(pid) {
            log::error!("the broker refused face {} for good: {text} (0x{reason:02x})", item.face.id);
        }
    }

    fn pump(&mut self, now: Instant) {
        if self.held_until.is_some_and(|until| now < until) {
            return;
        }
        self.held_until = None;
        while let Some(resend) = self.resend.front() {
            let result = match resend {
                Resend::Publish(pid, message) => self.client.publish(Some(*pid), true, message),
                Resend::Release(pid) => self.client.pubrel(*pid),
            };
            match result {
                Ok(()) => {}
                Err(error) if is_passing(&error) => return,
                Err(error) => {
                    if let Resend::Publish(pid, _) = resend {
                        let pid = *pid;
                        log::error!("a face cannot be sent again: {error}");
                        self.queue.refused(pid);
                        self.client.release_pid(pid);
                    }
                }
            }
            self.resend.pop_front();
        }
        while let Some(item) = self.queue.next(self.window) {
            let message = self.message(item);
            let pid = match message.qos {
                Qos::AtMostOnce => None,
                _ => match self.client.acquire_pid() {
                    Some(pid) => Some(pid),
                    None => return,
                },
            };
            match self.client.publish(pid, false, &message) {
                Ok(()) => self.queue.sent(pid, message),
                Err(error) => {
                    pid.into_iter().for_each(|pid| self.client.release_pid(pid));
                    if is_passing(&error) {
                        return;
                    }
                    log::error!("a face cannot be published on {}: {error}; it is given up", message.topic);
                    self.queue.refuse_next();
                }
            }
        }
    }

    fn message(&self, item: &Item) -> Message {
        let (device, faces, face) = (&self.config.device, &self.config.faces, &item.face);
        let fill = |topic: &str| template::fill(topic, &device.id, &face.camera_name);
        let qos = faces.qos.min(self.qos_max);
        match (&item.body, &faces.event_topic) {
            (Body::Event, Some(topic)) => face.event_message(device, fill(topic), qos, item.late),
            // The event topic went away with a reload while an event waited: then it goes where the faces go.
            (Body::Event, None) => face.event_message(device, fill(&faces.topic), qos, item.late),
            (Body::Crop(payload), _) => {
                let content_type = match payload.first() {
                    Some(0x89) => "image/png",
                    _ => "image/jpeg",
                };
                face.crop_message(device, fill(&faces.topic), qos, content_type, payload.clone(), item.late)
            }
        }
    }
}

/// Whether it may work later.
fn is_passing(error: &PublishError) -> bool {
    matches!(
        error,
        PublishError::NotConnected
            | PublishError::BufferFull
            | PublishError::WindowFull(_)
            | PublishError::NoPacketId
    )
}
