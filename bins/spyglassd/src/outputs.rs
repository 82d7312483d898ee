//! Where units go: all outputs of the daemon behind one face.
//!
//! Owns: the servers and sinks. Invariants: none of them blocks the loop; each says by itself whether it needs a stream.
//! Never: looks into a unit.

use std::sync::Arc;

use edge::cli::Failure;
use serde_json::{Value, json};

use crate::config::Config;
use crate::mail::Sender;
use crate::stream::Wanted;
use crate::unit::Unit;

/// All outputs.
#[derive(Debug)]
pub struct Outputs {
    #[cfg(feature = "rtsp")]
    rtsp: Option<crate::rtsp::Server>,
}

impl Outputs {
    /// Opens what the file asks for.
    ///
    /// # Errors
    /// An address that can't be listened on.
    pub fn open(config: &Config, mail: &Sender) -> Result<Outputs, Failure> {
        #[cfg(feature = "rtsp")]
        let rtsp = match config.rtsp {
            None => None,
            Some(listen) => {
                crate::pipeline::init().map_err(Failure::os)?;
                let raw = &config.raw.rtsp;
                let wake = mail.clone();
                let config = crate::rtsp::RtspConfig {
                    listen,
                    udp: raw.udp,
                    sessions_max: raw.sessions_max,
                    queue_bytes: raw.queue_bytes.0,
                    users: config.users.clone(),
                };
                let server = crate::rtsp::Server::start(config, move || wake.wake()).map_err(Failure::os)?;
                log::info!("RTSP on {}:{}", listen.ip(), server.port());
                Some(server)
            }
        };
        #[cfg(not(feature = "rtsp"))]
        if config.rtsp.is_some() {
            let _ = mail;
            log::warn!("rtsp.listen is set, and this program was built without RTSP (feature rtsp)");
        }
        Ok(Outputs {
            #[cfg(feature = "rtsp")]
            rtsp,
        })
    }

    /// A stream can be watched (`open`), or can't.
    pub fn announce(&mut self, name: &str, open: bool) {
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &mut self.rtsp {
            if open { rtsp.mount(name) } else { rtsp.unmount(name) }
        }
        let _ = (name, open);
    }

    /// Who needs this stream now.
    #[must_use]
    pub fn wanted(&self, name: &str) -> Wanted {
        let mut wanted = Wanted::default();
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            wanted.units |= rtsp.wants(name);
        }
        let _ = (name, &mut wanted);
        wanted
    }

    /// Whether somebody joined since this was asked last, and waits for a key frame.
    #[must_use]
    pub fn take_joined(&mut self, name: &str) -> bool {
        let mut joined = false;
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            joined |= rtsp.take_joined(name);
        }
        let _ = (name, &mut joined);
        joined
    }

    /// A unit for whoever needs it.
    pub fn push(&mut self, name: &str, unit: &Unit) {
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            rtsp.push(name, unit);
        }
        let _ = (name, unit);
    }

    /// A JPEG picture for whoever needs it.
    pub fn push_jpeg(&mut self, name: &str, jpeg: Arc<[u8]>, wall_ms: u64) {
        let _ = (name, jpeg, wall_ms);
    }

    /// Viewers of a stream.
    #[must_use]
    pub fn viewers(&self, name: &str) -> usize {
        let mut viewers = 0;
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            viewers += rtsp.viewers(name);
        }
        let _ = (name, &mut viewers);
        viewers
    }

    /// What the outputs say of this stream.
    #[must_use]
    pub fn status(&self, name: &str) -> Value {
        let mut sinks = serde_json::Map::new();
        #[cfg(feature = "rtsp")]
        if let Some(rtsp) = &self.rtsp {
            let rtsp = json!({
                "path": format!("/{name}"),
                "port": rtsp.port(),
                "viewers": rtsp.viewers(name),
                "wanted": rtsp.wants(name),
                "units-dropped": rtsp.dropped(),
            });
            sinks.insert("rtsp".to_owned(), rtsp);
        }
        let _ = (name, json!(null));
        Value::Object(sinks)
    }
}
