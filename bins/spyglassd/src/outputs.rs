//! Where units go: all outputs of the daemon behind one face.
//!
//! Owns: the servers and sinks. Invariants: none of them blocks the loop; each says by itself whether it needs a stream.
//! Never: looks into a unit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use edge::cli::Failure;
use mio::event::Event;
use mio::{Registry, Token};
use serde_json::{Value, json};

use crate::config::Config;
use crate::mail::Sender;
use crate::sink::Sink;
use crate::stream::Wanted;
use crate::unit::Unit;
use crate::{kvs, record, web};

/// All outputs.
#[derive(Debug)]
pub struct Outputs {
    #[cfg(feature = "rtsp")]
    rtsp: Option<crate::rtsp::Server>,
    web: web::Web,
    jpeg: (u32, u32),
    /// What streams of the file have of their own.
    sinks: BTreeMap<String, Vec<Sink>>,
}

impl Outputs {
    /// Opens what the file asks for.
    ///
    /// # Errors
    /// An address that can't be listened on, a thread that can't be had.
    pub fn open(config: &Config, registry: &Registry, mail: &Sender) -> Result<Outputs, Failure> {
        let users: Option<web::Users> = config.users.clone().map(|users| {
            let check: web::Users = Arc::new(move |user: &str, password: &str| users.check(user, password));
            check
        });
        let web = web::Web::bind(&config.web, registry, users).map_err(Failure::os)?;
        if let Some(address) = web.address() {
            log::info!("page on http://{address}/");
        }
        let mut sinks = BTreeMap::new();
        for stream in &config.streams {
            let start = |e| Failure::os(format!("stream {}: a sink can't be started: {e}", stream.name));
            let kvs = stream.kvs.clone().map(|c| kvs::start(c, &stream.name));
            let record = stream.record.clone().map(|c| record::start(c, &stream.name));
            let own: Vec<Sink> = kvs.into_iter().chain(record).collect::<Result<_, _>>().map_err(start)?;
            if !own.is_empty() {
                sinks.insert(stream.name.clone(), own);
            }
        }
        Ok(Outputs {
            #[cfg(feature = "rtsp")]
            rtsp: rtsp(config, mail)?,
            web,
            jpeg: (config.web.jpeg_fps, config.web.jpeg_quality),
            sinks,
        })
    }

    /// Ends the sinks that have something to finish; takes a few seconds at most.
    pub fn close(self) {
        // All at once: each may take its time to say goodbye.
        std::thread::scope(|scope| {
            for sink in self.sinks.into_values().flatten() {
                scope.spawn(move || sink.stop());
            }
        });
    }

    /// All streams there are. Whoever watches another one is sent away.
    pub fn set_streams(&mut self, names: &[String], now: Instant) {
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &mut self.rtsp {
            rtsp.retain(names);
        }
        self.web.set_streams(names, now);
    }

    /// Frames of a stream may come from now on (`open`), or can't.
    pub fn announce(&mut self, name: &str, open: bool) {
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = self.rtsp.as_mut().filter(|_| !open) {
            rtsp.unmount(name);
        }
        self.web.set_open(name, open);
    }

    /// Frames of a stream come, or do so when somebody asks for them. An RTSP player waits with its DESCRIBE for the first
    /// picture, so it is told at once that there is no such stream before that.
    pub fn show(&mut self, name: &str) {
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &mut self.rtsp {
            rtsp.mount(name);
        }
    }

    /// Who needs this stream now.
    #[must_use]
    pub fn wanted(&self, name: &str) -> Wanted {
        let mut units = self.web.wants(name) || self.sinks.contains_key(name);
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            units |= rtsp.wants(name);
        }
        Wanted { units, jpeg: self.web.wants_jpeg(name).then_some(self.jpeg) }
    }

    /// Whether somebody joined since this was asked last, and waits for a key frame.
    #[must_use]
    pub fn take_joined(&mut self, name: &str) -> bool {
        let mut joined = self.web.take_joined(name);
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            joined |= rtsp.take_joined(name);
        }
        for sink in self.sinks_of(name) {
            joined |= sink.take_key_wanted();
        }
        joined
    }

    /// A unit for whoever needs it.
    pub fn push(&mut self, name: &str, unit: &Unit, now: Instant) {
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            rtsp.push(name, unit);
        }
        self.web.push(name, unit, now);
        for sink in self.sinks_of(name) {
            sink.push(unit);
        }
    }

    /// A JPEG picture for whoever needs it.
    pub fn push_jpeg(&mut self, name: &str, jpeg: &Arc<[u8]>, now: Instant) {
        self.web.push_jpeg(name, jpeg, now);
    }

    /// Writes what was pushed.
    pub fn flush(&mut self, now: Instant) {
        self.web.flush(now);
    }

    /// Whether an event with this token is for [`Outputs::ready`].
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        self.web.owns(token)
    }

    /// A listener or a connection of the page is ready.
    pub fn ready(&mut self, registry: &Registry, event: &Event, now: Instant, status: &Value) {
        self.web.ready(registry, event, now, &mut || status.clone());
    }

    /// When [`Outputs::timer`] is to be called.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.web.deadline(now)
    }

    /// Time has passed.
    pub fn timer(&mut self, registry: &Registry, now: Instant, status: &Value) {
        self.web.timer(registry, now, &mut || status.clone());
    }

    /// Viewers of a stream.
    #[must_use]
    pub fn viewers(&self, name: &str) -> usize {
        let mut viewers = self.web.viewers(name);
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            viewers += rtsp.viewers(name);
        }
        viewers
    }

    /// The stream's own sinks, each with what it says of itself.
    pub fn sinks(&self, name: &str) -> impl Iterator<Item = (&'static str, Value)> {
        self.sinks_of(name).iter().map(|sink| (sink.kind(), sink.status()))
    }

    /// What the outputs say of this stream.
    #[must_use]
    pub fn status(&self, name: &str) -> Value {
        let mut all = serde_json::Map::new();
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            let rtsp = json!({
                "path": format!("/{name}"),
                "port": rtsp.port(),
                "viewers": rtsp.viewers(name),
                "wanted": rtsp.wants(name),
                "units-dropped": rtsp.dropped(name),
            });
            all.insert("rtsp".to_owned(), rtsp);
        }
        if let Some(address) = self.web.address() {
            let web = json!({ "port": address.port(), "viewers": self.web.viewers(name) });
            all.insert("web".to_owned(), web);
        }
        all.extend(self.sinks(name).map(|(kind, status)| (kind.to_owned(), status)));
        Value::Object(all)
    }

    fn sinks_of(&self, name: &str) -> &[Sink] {
        self.sinks.get(name).map_or(&[], Vec::as_slice)
    }
}

#[cfg(feature = "rtsp")]
fn rtsp(config: &Config, mail: &Sender) -> Result<Option<crate::rtsp::Server>, Failure> {
    let Some(listen) = config.rtsp else { return Ok(None) };
    let raw = &config.raw.rtsp;
    let wake = mail.clone();
    let config = crate::rtsp::RtspConfig {
        listen,
        udp: raw.udp,
        sessions_max: raw.sessions_max,
        connections_max: raw.connections_max as usize,
        queue_bytes: raw.queue_bytes.0,
        users: config.users.clone(),
    };
    let server = crate::rtsp::Server::start(config, move || wake.wake()).map_err(Failure::os)?;
    log::info!("RTSP on {}:{}", listen.ip(), server.port());
    Ok(Some(server))
}
