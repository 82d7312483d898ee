//! One direction: source -> spool -> next hop. The parts decide; this moves data between them and does the I/O.
//!
//! Owns: the spool of its direction, the inlet and the client to the next hop. Invariant: the order within a turn is
//! what became durable, what arrived, what can be sent, what can be acknowledged, and last one commit for all of it.
//! Never: acknowledges by itself; shares a connection with the other direction.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::cli::Failure;
use edge::inlet::Inlet;
use edge::mqtt::{Client, ClientEvent, DisconnectKind, Filter, Link, Message, PublishError, Qos, Version};
use edge::net::Resolver;
use edge::spool::{self, Spool, Ticket};
use mio::event::Event;
use mio::{Registry, Token, Waker};

use crate::config::{Direction, LaneConfig};
use crate::core::{Now, Outlet, Peer, Queue, Settings};
use crate::gate::Gate;

/// One direction.
pub struct Lane {
    /// Which way.
    pub direction: Direction,
    /// Where messages come from.
    pub inlet: Inlet,
    /// Which of them go on.
    pub gate: Gate,
    /// What is in flight.
    pub outlet: Outlet<Ticket>,
    /// The connection to the next hop, for people.
    pub link: Link,
    /// Where messages wait.
    pub spool: Spool,
    sink: Client,
    listener: Token,
    stopped: bool,
}

impl Lane {
    /// Opens the spool and the port; connects nothing yet. `hop` is the name of this process among forwarders.
    ///
    /// # Errors
    /// With the exit code: the spool can't be opened (disk), or the port can't be listened on.
    pub fn open(
        config: LaneConfig,
        device: &str,
        hop: &str,
        listener: Token,
        resolver: &Resolver,
        waker: &Arc<Waker>,
    ) -> Result<Lane, Failure> {
        let dir = config.spool.dir.clone();
        let (spool, recovery) =
            Spool::open(config.spool, Some(Arc::clone(waker)), fastrand::u64(..)).map_err(Failure::io)?;
        log::info!("spool {}: {recovery}", dir.display());
        let origin = format!("{device}/{:016x}", spool.id());
        let mut settings = settings(&config.forward, origin, hop.to_owned());
        let exactly_once = config.routes.iter().any(|route| route.qos == Qos::ExactlyOnce);
        if config.sink.version == Version::V311 && exactly_once {
            settings.window = settings.window.min(QOS2_WINDOW_V311);
        }
        let gate = Gate::new(config.routes.clone(), hop.to_owned(), config.forward.hops_max);
        let filters = config.routes.iter().map(|route| Filter {
            topic: route.from.clone(),
            qos: route.qos,
            no_local: true,
            retain_as_published: true,
        });
        let inlet = Inlet::new(config.source, filters.collect(), resolver)
            .map_err(|error| Failure::new(edge::cli::EX_UNAVAILABLE, error))?;
        let link = Link::new(&config.sink);
        let mut sink_config = config.sink;
        // Without the journal it is not known which packet ids the next hop still holds QoS 2 messages under.
        sink_config.clean_start = recovery.journal_lost;
        let mut sink = Client::new(sink_config, resolver.clone(), fastrand::Rng::new());
        let outlet = Outlet::new(settings, config.routes, &spool, &mut sink);
        Ok(Lane {
            direction: config.direction,
            inlet,
            gate,
            outlet,
            link,
            spool,
            sink,
            listener,
            stopped: false,
        })
    }

    /// Begins to connect and to accept.
    ///
    /// # Errors
    /// The poll does not take the listener.
    pub fn start(&mut self, registry: &Registry, now: Instant) -> Result<(), Failure> {
        self.sink.start(now);
        self.inlet.start(registry, self.listener, now).map_err(Failure::os)
    }

    /// A socket is ready; `false` if it is none of ours.
    pub fn ready(&mut self, registry: &Registry, event: &Event, now: Instant) -> bool {
        if self.sink.owns(event.token()) {
            self.sink.ready(registry, event, now);
        } else if self.inlet.owns(event.token()) {
            self.inlet.ready(registry, event, now);
        } else {
            return false;
        }
        true
    }

    /// The waker fired: a name may be resolved.
    pub fn woken(&mut self, registry: &Registry, now: Instant) {
        self.sink.resolved(registry, now);
        self.inlet.resolved(registry, now);
    }

    /// When [`Lane::turn`] wants to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        [self.sink.deadline(), self.inlet.deadline(), self.spool.deadline(), self.outlet.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does all that can be done now.
    ///
    /// # Errors
    /// The spool failed: nothing more is acknowledged, the process must end.
    pub fn turn(&mut self, registry: &Registry, now: Now) -> Result<(), Failure> {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now.mono);
        if due(self.sink.deadline()) {
            self.sink.timer(registry, now.mono);
        }
        if due(self.inlet.deadline()) {
            self.inlet.timer(registry, now.mono);
        }
        if let Some(why) = self.outlet.timer(now.mono) {
            self.sink.reconnect(0, &why, now.mono);
        }
        self.exchange(now).map_err(Failure::io)?;
        self.sink.flush(registry, now.mono);
        self.inlet.flush(registry, now.mono);
        Ok(())
    }

    fn exchange(&mut self, now: Now) -> Result<(), spool::Error> {
        self.spool.poll()?;
        let gate = &mut self.gate;
        self.inlet
            .receive(&mut self.spool, now.mono, now.unix_ms, &mut |message| gate.judge(message, now.mono))?;
        while let Some(event) = self.sink.next_event() {
            self.sink_event(event, now)?;
        }
        self.outlet.pump(&mut self.spool, &mut self.sink, now)?;
        self.inlet.acknowledge(&mut self.spool)?;
        self.spool.flush(now.mono)
    }

    fn sink_event(&mut self, event: ClientEvent, now: Now) -> Result<(), spool::Error> {
        let Lane { outlet, spool, sink, link, .. } = self;
        match event {
            ClientEvent::Connected { session_present, limits } => {
                link.up(now.mono);
                sink.set_clean_start(false);
                outlet.connected(session_present, limits, spool, sink)?;
            }
            ClientEvent::Disconnected { reason, error, retry_in } => {
                link.down(reason, error, retry_in, now.mono);
                outlet.disconnected(error, spool, sink, now)?;
                self.stopped |= error == DisconnectKind::Stopped;
            }
            ClientEvent::Puback { pid, reason } => outlet.puback(pid, reason, spool, sink, now)?,
            ClientEvent::Pubrec { pid, reason } => outlet.pubrec(pid, reason, spool, sink, now)?,
            ClientEvent::Pubcomp { pid, .. } => outlet.pubcomp(pid, spool)?,
            _ => {}
        }
        Ok(())
    }

    /// Receives no more and finishes what it can: see [`Lane::is_drained`].
    pub fn drain(&mut self) {
        self.inlet.pause();
    }

    /// Whether all that was received is durable and acknowledged, and no answer of the next hop can be waited for.
    pub fn is_drained(&self) -> bool {
        self.spool.durable() >= self.spool.written() && self.outlet.is_idle()
    }

    /// Says goodbye on all connections.
    pub fn stop(&mut self, registry: &Registry, now: Instant) {
        self.sink.stop(now);
        self.inlet.stop(registry, now);
    }

    /// Whether the connection to the next hop is closed after [`Lane::stop`].
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Commits the rest and closes the spool.
    ///
    /// # Errors
    /// The disk failed.
    pub fn close(self) -> Result<(), Failure> {
        self.spool.close().map_err(Failure::io)
    }
}

/// Messages in flight at most over MQTT 3.1.1 where a route is QoS 2. That version has no Receive Maximum, and
/// mosquitto acknowledges what is above its `max_inflight_messages` (20) with a PUBREC, throws it away and hangs up.
const QOS2_WINDOW_V311: usize = 20;

/// The bounds of `[forward]` as the outlet wants them.
fn settings(forward: &crate::config::Forward, origin: String, hop: String) -> Settings {
    let s = Duration::from_secs;
    Settings {
        window: forward.window,
        ack_timeout: s(forward.ack_timeout_s),
        poison_disconnects: forward.poison_disconnects,
        hold: (s(forward.hold_min_s), s(forward.hold_max_s)),
        origin,
        hop,
    }
}

/// A random name that stays: read from `path`, or made and stored there. It lives beside the data it names, so that
/// who removes the one removes the other.
///
/// # Errors
/// It can't be stored.
pub fn identity(path: &Path) -> Result<String, Failure> {
    if let Ok(text) = std::fs::read_to_string(path) {
        let name = text.trim();
        if name.len() == 16 && name.chars().all(|c| c.is_ascii_hexdigit()) {
            return Ok(name.to_owned());
        }
    }
    let name = format!("{:016x}", fastrand::u64(..));
    edge::fs::write_durably(path, name.as_bytes(), 0o644).map_err(Failure::io)?;
    Ok(name)
}

impl Queue for Spool {
    type Error = spool::Error;
    type Ticket = Ticket;

    fn durable(&self) -> Ticket {
        Spool::durable(self)
    }
    fn written(&self) -> Ticket {
        Spool::written(self)
    }
    fn next(&mut self) -> Result<Option<spool::Delivery>, spool::Error> {
        Spool::next(self)
    }
    fn ack(&mut self, seq: spool::Seq) -> bool {
        Spool::ack(self, seq)
    }
    fn rewind(&mut self) {
        Spool::rewind(self);
    }
    fn fetch(&mut self, seq: spool::Seq) -> Result<Option<Arc<spool::Record>>, spool::Error> {
        match Spool::fetch(self, seq) {
            Ok(record) => Ok(Some(record)),
            Err(spool::Error::NotInFlight { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
    fn dead_letter(&mut self, seq: spool::Seq, reason: &str, now_ms: u64) -> Result<bool, spool::Error> {
        match Spool::dead_letter(self, seq, reason, now_ms) {
            Ok(()) => Ok(true),
            Err(error) if error.is_final() && matches!(error, spool::Error::Failed { .. }) => Err(error),
            Err(error) => {
                log::error!("{}", edge::log::chain(&error));
                Ok(false)
            }
        }
    }
    fn out_published(&mut self, seq: spool::Seq, pid: u16) -> Result<Ticket, spool::Error> {
        Spool::out_published(self, seq, pid)
    }
    fn out_received(&mut self, pid: u16) -> Result<Option<Ticket>, spool::Error> {
        Spool::out_received(self, pid)
    }
    fn out_done(&mut self, pid: u16) -> Result<Option<spool::Seq>, spool::Error> {
        Spool::out_done(self, pid)
    }
    fn outbound_pids(&self) -> Vec<u16> {
        self.outbound().map(|(pid, _, _)| pid).collect()
    }
    fn out_session_lost(&mut self) -> Result<(), spool::Error> {
        Spool::out_session_lost(self)
    }
}

impl Peer for Client {
    fn acquire_pid(&mut self) -> Option<u16> {
        Client::acquire_pid(self)
    }
    fn reserve_pid(&mut self, pid: u16) -> bool {
        Client::reserve_pid(self, pid)
    }
    fn release_pid(&mut self, pid: u16) {
        Client::release_pid(self, pid);
    }
    fn publish(&mut self, pid: Option<u16>, dup: bool, message: &Message) -> Result<(), PublishError> {
        Client::publish(self, pid, dup, message)
    }
    fn pubrel(&mut self, pid: u16) -> Result<(), PublishError> {
        Client::pubrel(self, pid)
    }
}
