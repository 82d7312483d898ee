//! What must be known before a connection: credentials, the stream's data endpoint (GetDataEndpoint), its addresses.
//!
//! Blocks, so it lives on a thread of its own. Keeps the difference between the service's clock and ours, since a
//! signature with a wrong time is refused.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use edge::aws::credentials::Credentials;
use edge::http::date;
use ureq::Agent;

use super::credentials::Source;
use super::{fault, wire};

/// Longest answer that is read, in bytes.
const BODY_BYTES_MAX: u64 = 16 * 1024;
/// Longest wait for the whole question.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The service's clock is followed when ours is off by more than this, in seconds; it refuses at 300.
const SKEW_S_MIN: i64 = 60;

/// Where to send.
#[derive(Clone, Debug)]
pub struct Target {
    /// The host to name and to check.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// HTTPS.
    pub tls: bool,
    /// Its addresses.
    pub addresses: Vec<SocketAddr>,
    /// Who we are.
    pub credentials: Arc<Credentials>,
    /// The service's clock minus ours, in seconds.
    pub skew_s: i64,
}

impl Target {
    /// `host`, with the port where it is not the scheme's own.
    #[must_use]
    pub fn authority(&self) -> String {
        authority(&self.host, self.port, self.tls)
    }
}

fn authority(host: &str, port: u16, tls: bool) -> String {
    if port == if tls { 443 } else { 80 } { host.to_owned() } else { format!("{host}:{port}") }
}

/// Asks. See the module's text.
#[derive(Debug)]
pub struct Asker {
    region: String,
    stream: String,
    /// `https://host` or `https://host:port`, without a slash at the end.
    endpoint: String,
    source: Source,
    agent: Agent,
    skew_s: i64,
    last: Option<Arc<Credentials>>,
}

impl Asker {
    /// Asks at `endpoint` for the data endpoint of `stream`.
    #[must_use]
    pub fn new(
        region: String,
        stream: String,
        endpoint: String,
        source: Source,
        tls: ureq::tls::TlsConfig,
    ) -> Asker {
        let agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(TIMEOUT))
            .max_idle_connections(0)
            .build()
            .new_agent();
        Asker { region, stream, endpoint, source, agent, skew_s: 0, last: None }
    }

    /// All that a connection needs. `fresh`: the last credentials were refused.
    ///
    /// # Errors
    /// In words.
    pub fn ask(&mut self, fresh: bool) -> Result<Target, String> {
        if fresh && let Some(last) = &self.last {
            self.source.invalidate(last);
        }
        let (mut renewed, mut corrected) = (fresh, false);
        loop {
            let credentials = self.source.get(edge::clock::unix_s() + self.skew_s)?;
            self.last = Some(Arc::clone(&credentials));
            let (status, error_type, server_s, body) = self.post(&credentials)?;
            if status == 200 {
                return self.target(&body, credentials);
            }
            let fault = fault::read("GetDataEndpoint", status, &error_type, &body);
            if matches!(status, 400 | 401 | 403) && !corrected && self.correct_clock(server_s) {
                corrected = true;
            } else if fault.credentials && !renewed {
                self.source.invalidate(&credentials);
                renewed = true;
            } else {
                return Err(fault.why);
            }
        }
    }

    /// Status, error type, the server's time, body.
    fn post(&self, credentials: &Credentials) -> Result<(u16, String, Option<i64>, Vec<u8>), String> {
        let url = format!("{}/getDataEndpoint", self.endpoint);
        let host = self.endpoint.split_once("://").map_or("", |(_, host)| host);
        let body = serde_json::json!({ "APIName": "PUT_MEDIA", "StreamName": self.stream }).to_string();
        let now = edge::clock::unix_s() + self.skew_s;
        let mut request = self.agent.post(&url);
        for (name, value) in wire::get_data_endpoint(host, &self.region, body.as_bytes(), credentials, now) {
            request = request.header(name, value);
        }
        let explain = |error: &ureq::Error| match error {
            ureq::Error::Timeout(_) => "no answer in time".to_owned(),
            other => edge::log::chain(other),
        };
        let mut response =
            request.send(body.as_bytes()).map_err(|error| format!("can't ask {url}: {}", explain(&error)))?;
        let header = |name: &str| {
            let value =
                response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            value.split(':').next().unwrap_or_default().to_owned()
        };
        let (status, error_type) = (response.status().as_u16(), header("x-amzn-errortype"));
        let server_s = response.headers().get("date").and_then(|value| date::parse(value.to_str().ok()?));
        let body = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| format!("the answer of {url} breaks off: {}", explain(&error)))?;
        Ok((status, error_type, server_s, body))
    }

    fn correct_clock(&mut self, server_s: Option<i64>) -> bool {
        let Some(server_s) = server_s else { return false };
        let skew = server_s - edge::clock::unix_s();
        if (skew - self.skew_s).abs() < SKEW_S_MIN {
            return false;
        }
        log::warn!(
            "the clock of this device differs from the service's by {skew} s: requests are signed with theirs"
        );
        self.skew_s = skew;
        true
    }

    fn target(&self, body: &[u8], credentials: Arc<Credentials>) -> Result<Target, String> {
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let url = value.get("DataEndpoint").and_then(serde_json::Value::as_str);
        let url = url.ok_or("GetDataEndpoint answers without a DataEndpoint")?;
        let (host, port, tls) =
            split(url).ok_or_else(|| format!("GetDataEndpoint answers with no address: {url:?}"))?;
        if !tls && !self.endpoint.starts_with("http://") {
            return Err(format!("GetDataEndpoint answers with {url}, which is not encrypted"));
        }
        let found = (host.as_str(), port).to_socket_addrs();
        let addresses: Vec<_> = found.map_err(|error| format!("can't find {host}: {error}"))?.collect();
        Ok(Target { host, port, tls, addresses, credentials, skew_s: self.skew_s })
    }
}

/// Host, port and whether it is HTTPS. A path is passed over.
#[must_use]
pub fn split(url: &str) -> Option<(String, u16, bool)> {
    let (scheme, rest) = url.split_once("://")?;
    let tls = match scheme {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, if tls { 443 } else { 80 }),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (!host.is_empty() && host.chars().all(plain)).then(|| (host.to_owned(), port, tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split() {
        assert_eq!(
            split("https://s-1.kinesisvideo.eu-west-1.amazonaws.com"),
            Some(("s-1.kinesisvideo.eu-west-1.amazonaws.com".into(), 443, true))
        );
        assert_eq!(split("http://localhost:81/x"), Some(("localhost".into(), 81, false)));
        for bad in ["s-1", "ftp://x", "https://", "https://a b", "https://x:y", "https://u@h"] {
            assert_eq!(split(bad), None, "{bad}");
        }
        assert_eq!((authority("h", 443, true), authority("h", 443, false)), ("h".into(), "h:443".into()));
    }
}
