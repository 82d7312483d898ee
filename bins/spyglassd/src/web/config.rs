//! `[web]`: its keys, defaults and checks.

use std::net::{SocketAddr, ToSocketAddrs as _};

use edge::config::{Error, Loaded, Size};
use serde::{Deserialize, Serialize};

/// The table as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    /// Where to listen; empty: not at all.
    pub listen: String,
    /// Names under which a listener on loopback may be asked, besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Pictures a second of `/<name>.mjpg`.
    pub jpeg_fps: u32,
    /// Their quality.
    pub jpeg_quality: u32,
    /// Connections at once.
    pub connections_max: usize,
    /// Bytes that wait for one viewer.
    pub viewer_bytes_max: Size,
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            listen: "127.0.0.1:8555".into(),
            hosts: Vec::new(),
            jpeg_fps: 5,
            jpeg_quality: 80,
            connections_max: 64,
            viewer_bytes_max: Size::mib(4),
        }
    }
}

/// What the page runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; `None`: not at all.
    pub listen: Option<SocketAddr>,
    /// Names under which it may be asked, besides addresses and `localhost`; `None`: any.
    pub hosts: Option<Vec<String>>,
    /// Pictures a second of `/<name>.mjpg`, at most.
    pub jpeg_fps: u32,
    /// Their quality, 1 to 100.
    pub jpeg_quality: u32,
    /// Connections at once.
    pub connections_max: usize,
    /// Bytes that wait for one viewer before it is skipped to the next key frame.
    pub viewer_bytes_max: usize,
}

impl Raw {
    /// Checks the table, which is called `prefix` in the file.
    ///
    /// # Errors
    /// With line, column, key and expectation.
    pub fn to_config<R>(&self, loaded: &Loaded<R>, prefix: &str) -> Result<Config, Error> {
        let wrong = |key: &str, message: &str| loaded.problem(&format!("{prefix}.{key}"), message);
        let address = || self.listen.to_socket_addrs().ok()?.next();
        let listen = match self.listen.as_str() {
            "" => None,
            _ => Some(address().ok_or_else(|| {
                wrong("listen", "expected an address and a port such as \"127.0.0.1:8555\", or \"\" for none")
            })?),
        };
        let within = |key: &str, value, min, max| loaded.within(&format!("{prefix}.{key}"), value, min, max);
        within("jpeg-fps", self.jpeg_fps.into(), 1, 30)?;
        within("jpeg-quality", self.jpeg_quality.into(), 1, 100)?;
        within("connections-max", self.connections_max as u64, 4, 4096)?;
        let key = format!("{prefix}.viewer-bytes-max");
        loaded.size_within(&key, self.viewer_bytes_max, Size::kib(256), Size::mib(1024))?;
        edge::http::host::check(&self.hosts).map_err(|why| wrong("hosts", &why))?;
        // Beyond this machine, whoever reaches the port may look anyway, or has to say a password, which a browser gives to
        // nobody else's page.
        let loopback = listen.is_some_and(|address| address.ip().is_loopback());
        Ok(Config {
            listen,
            hosts: loopback.then(|| self.hosts.clone()),
            jpeg_fps: self.jpeg_fps,
            jpeg_quality: self.jpeg_quality,
            connections_max: self.connections_max,
            viewer_bytes_max: self.viewer_bytes_max.as_usize(),
        })
    }
}
