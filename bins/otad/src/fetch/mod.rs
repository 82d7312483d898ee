//! Talking to the package server, blocking, on the install thread.
//!
//! Invariants: nothing of an answer is kept in memory beyond `limits.details-max`; every byte is counted before it is
//! used; a redirect is followed within the same scheme, host and port only; no answer is decompressed by the HTTP client,
//! so that a tar.gz stays one whatever `Content-Encoding` says.

mod blob;
mod bundle;

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edge::release::Details;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

pub use blob::fetch_blob;
pub use bundle::{Bundle, fetch_bundle};

use crate::config::Config;
use crate::core::Trouble;
use crate::ledger::Ledger;

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 3;
/// Of an error's text, in bytes.
const ERROR_BYTES_MAX: u64 = 512;
/// Of an entity tag.
const TAG_BYTES_MAX: usize = 256;
/// Read at a time.
const PIECE: usize = 64 * 1024;

/// Counts bytes, and knows when to stop.
pub struct Meter<'a> {
    pub ledger: &'a mut Ledger,
    /// Bytes per day; 0: no limit.
    pub budget: u64,
    pub day: i64,
    pub stop: &'a AtomicBool,
    /// Somebody wants it whatever the budget says; the bytes are counted all the same.
    pub forced: bool,
}

impl Meter<'_> {
    fn spend(&mut self, bytes: usize) -> Result<(), Trouble> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Trouble::Passing("otad is being stopped".into()));
        }
        let booked = self.ledger.spend(self.day, bytes as u64, self.budget > 0);
        booked.map_err(|error| Trouble::Passing(edge::log::chain(&error)))?;
        let spent = self.ledger.spent(self.day);
        if self.budget > 0 && !self.forced && spent > self.budget {
            return Err(Trouble::Budget(format!(
                "the day's budget of {} is used up (budget-per-day)",
                edge::text::bytes(self.budget)
            )));
        }
        Ok(())
    }

    /// Bytes that may still come today.
    fn left(&self) -> u64 {
        if self.budget == 0 || self.forced {
            return u64::MAX;
        }
        self.budget.saturating_sub(self.ledger.spent(self.day))
    }
}

/// What the server says to a poll.
pub enum Answer<T> {
    /// All is as the device has it.
    NotModified,
    /// It has nothing for such a device.
    Nothing,
    Content(T),
}

/// The server.
pub struct Client {
    agent: Agent,
    server: String,
    details_max: u64,
    pub(crate) entry_max: u64,
    pub(crate) total_max: u64,
}

impl Client {
    #[must_use]
    pub fn new(config: &Config) -> Client {
        let limits = &config.raw.limits;
        let connect = Some(Duration::from_millis(limits.connect_timeout_ms));
        let idle = Some(Duration::from_millis(limits.idle_timeout_ms));
        let agent = Agent::config_builder()
            .tls_config(config.tls.clone())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .timeout_resolve(connect)
            .timeout_connect(connect)
            .timeout_recv_response(idle)
            .timeout_per_read(idle)
            .timeout_per_write(idle)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .max_idle_age(Duration::from_secs(10))
            .max_response_header_size(16 * 1024)
            .input_buffer_size(32 * 1024)
            .output_buffer_size(4 * 1024)
            .user_agent(concat!("otad/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Client {
            agent,
            server: config.raw.server.trim_end_matches('/').to_owned(),
            details_max: limits.details_max.0,
            entry_max: limits.file_max.0,
            total_max: limits.expanded_max.0,
        }
    }

    /// Asks what this device should run; the answer comes with its tag.
    ///
    /// # Errors
    /// [`Trouble`], with what to do about it.
    pub fn metadata(
        &self,
        query: &str,
        etags: &str,
        meter: &mut Meter<'_>,
    ) -> Result<Answer<(Details, Option<String>)>, Trouble> {
        let mut response = match self.package(query, etags, meter)? {
            Answer::Content(response) => response,
            Answer::NotModified => return Ok(Answer::NotModified),
            Answer::Nothing => return Ok(Answer::Nothing),
        };
        let tag = tag(&response);
        let mut reader = Counted { inner: response.body_mut().as_reader(), meter };
        let bytes = read_details(&mut reader, self.details_max)?;
        Ok(Answer::Content((parse(&bytes)?, tag)))
    }

    fn package(
        &self,
        query: &str,
        etags: &str,
        meter: &mut Meter<'_>,
    ) -> Result<Answer<Response<Body>>, Trouble> {
        let url = format!("{}/package?{query}", self.server);
        let mut headers = Vec::new();
        if !etags.is_empty() {
            headers.push(("if-none-match", etags));
        }
        let mut response = self.get(&url, &headers, meter)?;
        match response.status().as_u16() {
            200 => Ok(Answer::Content(response)),
            304 => Ok(Answer::NotModified),
            404 => {
                let text = error_text(&mut response);
                // The protocol's own 404; another one means that this is not the package server.
                if text.contains("No deployment package") {
                    Ok(Answer::Nothing)
                } else {
                    Err(Trouble::Refused(format!(
                        "{url} is not there (404{text}): does 'server' name the package server?"
                    )))
                }
            }
            _ => Err(refusal(&url, &mut response)),
        }
    }

    /// Where a `download` leads.
    fn locate(&self, download: &str) -> Result<String, Trouble> {
        if download.starts_with('/') && !download.starts_with("//") {
            return Ok(format!("{}{download}", self.server));
        }
        if origin(download).is_some() && origin(download) == origin(&self.server) {
            return Ok(download.to_owned());
        }
        Err(Trouble::Refused(format!(
            "the server sends us to {download:?}, which is not its own: nothing is fetched from there"
        )))
    }

    fn get(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        meter: &mut Meter<'_>,
    ) -> Result<Response<Body>, Trouble> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            meter.spend(0)?;
            let mut request = ureq::http::Request::builder().method("GET").uri(&url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request
                .body(())
                .map_err(|error| Trouble::Refused(format!("{url:?} can't be asked for: {error}")))?;
            let response = self
                .agent
                .run(request)
                .map_err(|error| Trouble::Passing(format!("{}: {}", self.server, explain(&error))))?;
            let head: usize = response.headers().iter().map(|(k, v)| k.as_str().len() + v.len() + 4).sum();
            meter.spend(head + 16)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let to = header(&response, "location").unwrap_or_default();
            let next = if to.starts_with('/') && !to.starts_with("//") {
                origin(&url).map(|(scheme, authority)| format!("{scheme}://{authority}{to}"))
            } else {
                (origin(to).is_some() && origin(to) == origin(&url)).then(|| to.to_owned())
            };
            url = next.ok_or_else(|| {
                Trouble::Refused(format!(
                    "{url} redirects to {to:?}: that is not followed; set 'server' to the new address if it is right"
                ))
            })?;
        }
        Err(Trouble::Refused(format!("{url}: more than {REDIRECTS_MAX} redirects")))
    }
}

/// Scheme and authority.
fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    Some((scheme, uri.authority()?.as_str().to_ascii_lowercase()))
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

/// The answer's entity tag, with its quotes (RFC 9110 section 8.8.3), if it has one that can be sent back.
fn tag(response: &Response<Body>) -> Option<String> {
    let tag = header(response, "etag").filter(|tag| tag.len() <= TAG_BYTES_MAX)?;
    let inner = tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?;
    inner.bytes().all(|b| b.is_ascii_graphic() && b != b'"').then(|| tag.to_owned())
}

/// An error's text for people: the `error` of its JSON, or the beginning of what it says; with `: ` in front.
fn error_text(response: &mut Response<Body>) -> String {
    // A body that can't be read to its end says nothing; the status does.
    let body = response.body_mut().with_config().limit(ERROR_BYTES_MAX).read_to_vec().unwrap_or_default();
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let text = match parsed.as_ref().and_then(|value| value.get("error")?.as_str()) {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(&body).chars().take(120).collect(),
    };
    if text.is_empty() { text } else { format!(": {}", text.trim()) }
}

fn refusal(url: &str, response: &mut Response<Body>) -> Trouble {
    let status = response.status().as_u16();
    let after = header(response, "retry-after").and_then(retry_after);
    let why = format!("{url} answers {status}{}", error_text(response));
    match (status, after) {
        (429 | 503, Some(after)) => Trouble::Busy(after, why),
        (408 | 425 | 429 | 500..=599, _) => Trouble::Passing(why),
        _ => Trouble::Refused(why),
    }
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let left = edge::http::date::parse(text)?.saturating_sub(edge::clock::unix_s());
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}

fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
        ureq::Error::Io(source) => source.to_string(),
        other => edge::log::chain(other),
    }
}

fn parse(bytes: &[u8]) -> Result<Details, Trouble> {
    Details::parse(bytes).map_err(|error| Trouble::Refused(edge::log::chain(&error)))
}

fn read_details(reader: &mut dyn Read, max: u64) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    reader.take(max + 1).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
    if bytes.len() as u64 > max {
        return Err(Trouble::Refused(format!(
            "the server's package details are longer than {} (limits.details-max)",
            edge::text::bytes(max)
        )));
    }
    Ok(bytes)
}

/// An error of reading an answer, which may carry a [`Trouble`] of ours.
fn broken(error: &std::io::Error) -> Trouble {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Carried>()) {
        Some(Carried(trouble)) => trouble.clone(),
        None => Trouble::Passing(format!("the answer breaks off: {error}")),
    }
}

/// Carries a [`Trouble`] through a reader.
#[derive(Debug)]
struct Carried(Trouble);

impl std::fmt::Display for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.why())
    }
}

impl std::error::Error for Carried {}

/// Counts what is read.
struct Counted<'m, 'l, R> {
    inner: R,
    meter: &'m mut Meter<'l>,
}

impl<R: Read> Read for Counted<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.meter.spend(n).map_err(|trouble| std::io::Error::other(Carried(trouble)))?;
        Ok(n)
    }
}
