//! Objects in S3, or a server that speaks like it.
//!
//! PUT with Content-Length, the real `x-amz-content-sha256`, `x-amz-checksum-sha256` and `If-None-Match: *`. What is
//! there already is compared: by the checksum that HEAD gives, else (servers that keep none) by its size and, if that
//! fits, by reading it.
//!
//! Invariants: every attempt is signed anew, with fresh credentials and the corrected time; nothing is ever replaced
//! unless `conditional = false` says so (then the key's own purity keeps contents the same); memory per call is a few
//! buffers beside the object.

mod get;

use std::io::Read as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::aws::credentials::{ChainConfig, Credentials, Provider};
use crate::aws::s3::{Bucket, ErrorBody};
use crate::aws::sha256_hex;
use crate::aws::sigv4::{self, Scope, amz_date};
use crate::http::date;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::answer::{Answer, Verdict, judge_put};
use super::{Object, Outcome, sidecar_key};
pub use get::Got;

/// The SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Longest error answer that is read, in bytes.
const ERROR_BYTES_MAX: u64 = 16 * 1024;
/// The server's clock is followed when ours is off by more than this, in seconds. S3 refuses at 900.
const SKEW_S_MIN: i64 = 120;

/// Settings of the target.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program in the requests' User-Agent: `name/version`.
    pub user_agent: &'static str,
    /// The configuration's table with the target's keys, for errors that say which key to correct.
    pub table: &'static str,
    /// Where it is.
    pub bucket: Bucket,
    /// Whom to trust.
    pub tls: ureq::tls::TlsConfig,
    /// Where credentials come from.
    pub chain: ChainConfig,
    /// `If-None-Match: *`.
    pub conditional: bool,
    /// Connections kept alive: the number of workers.
    pub connections: usize,
    /// Longest time until a connection stands.
    pub connect_timeout: Duration,
    /// Longest silence, in either direction.
    pub idle_timeout: Duration,
    /// Longest whole request.
    pub request_timeout: Duration,
}

/// A bucket.
#[derive(Debug)]
pub struct S3 {
    bucket: Bucket,
    conditional: bool,
    agent: Agent,
    /// For comparing: keeps no connection. A server that refuses a PUT early often closes the connection that the PUT
    /// came on, so the question that follows had better not use it.
    fresh: Agent,
    provider: Provider,
    table: &'static str,
    /// The server's clock minus ours, in seconds.
    skew_s: AtomicI64,
    corrections: AtomicU64,
}

/// Why there is no answer.
enum Failure {
    /// No credentials.
    Credentials(String),
    /// The connection broke off before the answer: it may have been a kept one that the server had closed.
    Lost(String),
    /// No connection, no answer, or one that is no HTTP.
    Network(String),
    /// The request can't be put together.
    Object(String),
}

impl Failure {
    fn outcome(self, bucket: &str) -> Outcome {
        match self {
            Self::Credentials(why) => Outcome::Hold(why),
            Self::Lost(why) | Self::Network(why) => Outcome::Retry(format!("{bucket}: {why}")),
            Self::Object(why) => Outcome::Refused(why),
        }
    }
}

impl S3 {
    /// Asks nobody anything yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let agent = self::agent(&settings, settings.connections);
        let fresh = self::agent(&settings, 0);
        let provider = Provider::new(settings.chain.clone());
        let (skew_s, corrections) = (AtomicI64::new(0), AtomicU64::new(0));
        let Settings { bucket, conditional, table, .. } = settings;
        Self { bucket, conditional, table, agent, fresh, provider, skew_s, corrections }
    }

    /// `s3://bucket (https://host, region)`.
    pub fn name(&self) -> String {
        format!("s3://{} ({}, {})", self.bucket.name, self.bucket.origin(), self.bucket.region)
    }

    /// The server's clock minus ours as far as it had to be corrected, in seconds.
    pub fn skew_s(&self) -> i64 {
        self.skew_s.load(Ordering::Relaxed)
    }

    /// Stores the sidecar, if there is one, then the object.
    pub fn put(&self, object: &Object<'_>) -> Outcome {
        if let Some(sidecar) = object.sidecar {
            let key = sidecar_key(object.key);
            let sha256 = sha256_hex(sidecar);
            match self.put_one(&key, sidecar, &sha256, "application/json", &[]) {
                // The first sidecar of duplicates stays; theirs would differ in the time of receipt only.
                Verdict::Stored | Verdict::Exists => {}
                Verdict::Credentials(why) => return Outcome::Hold(why),
                Verdict::Other(outcome) => return outcome,
            }
        }
        match self.put_one(object.key, object.body, object.sha256, object.content_type, object.headers) {
            Verdict::Stored => Outcome::Stored { already: false },
            Verdict::Exists => self.compare(object),
            Verdict::Credentials(why) => Outcome::Hold(why),
            Verdict::Other(outcome) => outcome,
        }
    }

    /// One object, up to four times at once: once more each on a new connection, with the clock corrected, with new credentials.
    fn put_one(
        &self,
        key: &str,
        body: &[u8],
        sha256: &str,
        content_type: &str,
        meta: &[(String, String)],
    ) -> Verdict {
        let checksum = checksum(sha256);
        let mut headers: Vec<(&str, &str)> =
            vec![("content-type", content_type), ("x-amz-checksum-sha256", &checksum)];
        if self.conditional {
            headers.push(("if-none-match", "*"));
        }
        headers.extend(meta.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let name = format!("s3://{}", self.bucket.name);
        let (mut renewed, mut corrected, mut lost) = (false, false, false);
        loop {
            let (mut response, credentials) = match self.send("PUT", key, &headers, body, sha256) {
                Ok(sent) => sent,
                // A PUT can be repeated without harm (RFC 9110 section 9.2.2), so a new connection is worth one try.
                Err(Failure::Lost(_)) if !lost => {
                    lost = true;
                    continue;
                }
                Err(failure) => return Verdict::Other(failure.outcome(&name)),
            };
            let server_s = header(&response, "date").and_then(date::parse);
            let answer = read_answer(&mut response);
            if matches!(answer.status, 400 | 401 | 403) && !corrected && self.correct_clock(server_s) {
                corrected = true;
                continue;
            }
            match judge_put(&answer, &name, self.table, &checksum) {
                Verdict::Credentials(why) if !renewed => {
                    log::info!("{name}: {why}; the credentials are fetched anew");
                    self.provider.invalidate(&credentials);
                    renewed = true;
                }
                Verdict::Credentials(why) => {
                    return Verdict::Credentials(format!(
                        "{name}: {why}, also with credentials fetched anew from {}",
                        credentials.source
                    ));
                }
                verdict => return verdict,
            }
        }
    }

    /// What stands under the key already: the same?
    fn compare(&self, object: &Object<'_>) -> Outcome {
        let (key, name) = (object.key, format!("s3://{}/{}", self.bucket.name, object.key));
        let response = match self.send("HEAD", key, &[("x-amz-checksum-mode", "ENABLED")], &[], EMPTY_SHA256)
        {
            Ok((response, _)) => response,
            Err(failure) => return failure.outcome(&name),
        };
        let differs = || Outcome::Dead(format!("{name} exists with other content"));
        match response.status().as_u16() {
            200 => {}
            401 | 403 => {
                return Outcome::Refused(format!(
                    "{name} exists and can't be compared (HEAD answers {}): the credentials need s3:GetObject to tell a \
                     duplicate from another object",
                    response.status().as_u16()
                ));
            }
            // Deleted in between, or something passing.
            status => return Outcome::Retry(format!("{name}: HEAD answers {status}")),
        }
        if header(&response, "content-length").and_then(|l| l.parse().ok()) != Some(object.body.len() as u64)
        {
            return differs();
        }
        match header(&response, "x-amz-checksum-sha256") {
            // A checksum with a dash is one of a multipart upload: over its parts, not its content.
            Some(theirs) if !theirs.contains('-') => {
                if theirs == checksum(object.sha256) {
                    Outcome::Stored { already: true }
                } else {
                    differs()
                }
            }
            _ => match self.hash_of(key) {
                Ok(theirs) if theirs == object.sha256 => Outcome::Stored { already: true },
                Ok(_) => differs(),
                Err(failure) => failure.outcome(&name),
            },
        }
    }

    /// Reads an object and gives its SHA-256 in hexadecimal.
    fn hash_of(&self, key: &str) -> Result<String, Failure> {
        use sha2::Digest as _;
        let (mut response, _) = self.send("GET", key, &[], &[], EMPTY_SHA256)?;
        if response.status().as_u16() != 200 {
            return Err(Failure::Network(format!("GET answers {}", response.status().as_u16())));
        }
        let mut reader = response.body_mut().as_reader();
        let (mut hash, mut buffer) = (sha2::Sha256::new(), [0; 16 * 1024]);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(crate::aws::hex(&hash.finalize())),
                Ok(n) => hash.update(&buffer[..n]),
                Err(error) => return Err(Failure::Network(format!("GET breaks off: {error}"))),
            }
        }
    }

    /// Signs and sends one request.
    fn send(
        &self,
        method: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        sha256: &str,
    ) -> Result<(Response<Body>, std::sync::Arc<Credentials>), Failure> {
        self.send_within(method, key, headers, body, sha256, None)
    }

    /// The same, answered and read `within` this time, which is below that of the settings.
    fn send_within(
        &self,
        method: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        sha256: &str,
        within: Option<Duration>,
    ) -> Result<(Response<Body>, std::sync::Arc<Credentials>), Failure> {
        let now_s = unix_s() + self.skew_s();
        let credentials =
            self.provider.get(now_s).map_err(|error| Failure::Credentials(error.to_string()))?;
        let (path, date) = (self.bucket.path(key), amz_date(now_s));
        let mut signed: Vec<(&str, &str)> = headers.to_vec();
        signed.extend([
            ("host", self.bucket.host()),
            ("x-amz-content-sha256", sha256),
            ("x-amz-date", &date),
        ]);
        if let Some(token) = &credentials.token {
            signed.push(("x-amz-security-token", token.expose()));
        }
        let scope = Scope { region: &self.bucket.region, service: "s3" };
        let request =
            sigv4::Request { method, path: &path, query: &[], headers: &signed, payload_sha256: sha256 };
        let authorization = sigv4::authorization(&request, scope, &credentials, &date);
        let mut request = ureq::http::Request::builder().method(method).uri(self.bucket.url(&path));
        for (name, value) in signed {
            request = request.header(name, value);
        }
        let request = request.header("authorization", authorization);
        // A header's value may be a secret: the error says only that one can't be sent.
        let unfit = || Failure::Object(format!("the request for the key {key:?} can't be put together"));
        let result = if method == "PUT" {
            let request = request.header("content-length", body.len());
            self.agent.run(request.body(body).map_err(|_| unfit())?)
        } else {
            let request = request.body(()).map_err(|_| unfit())?;
            match within {
                // No refused PUT went before it: a kept connection will do.
                Some(within) => {
                    let request = self.agent.configure_request(request).timeout_global(Some(within)).build();
                    self.agent.run(request)
                }
                None => self.fresh.run(request),
            }
        };
        match result {
            Ok(response) => Ok((response, credentials)),
            Err(error) => {
                let why = format!("{method} to {}: {}", self.bucket.origin(), explain(&error));
                Err(if is_lost(&error) { Failure::Lost(why) } else { Failure::Network(why) })
            }
        }
    }

    /// Follows the server's clock if ours is off; says whether anything changed. A refusal is due to the clock more
    /// often than the server's error code says so.
    fn correct_clock(&self, server_s: Option<i64>) -> bool {
        let Some(server_s) = server_s else { return false };
        let old = self.skew_s();
        let new = server_s - unix_s();
        if (new - old).abs() < SKEW_S_MIN {
            return false;
        }
        self.skew_s.store(new, Ordering::Relaxed);
        if self.corrections.fetch_add(1, Ordering::Relaxed) < 10 {
            log::warn!(
                "the clock here is {} s {} that of {}: requests are signed with its time; is this device's time synchronised?",
                new.abs(),
                if new > 0 { "behind" } else { "ahead of" },
                self.bucket.origin()
            );
        }
        true
    }
}

fn agent(settings: &Settings, connections: usize) -> Agent {
    Agent::config_builder()
        .tls_config(settings.tls.clone())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(settings.request_timeout))
        .timeout_resolve(Some(settings.connect_timeout))
        .timeout_connect(Some(settings.connect_timeout))
        .timeout_recv_response(Some(settings.idle_timeout))
        .timeout_per_read(Some(settings.idle_timeout))
        .timeout_per_write(Some(settings.idle_timeout))
        .max_idle_connections(connections)
        .max_idle_connections_per_host(connections)
        .input_buffer_size(16 * 1024)
        .output_buffer_size(64 * 1024)
        .user_agent(settings.user_agent)
        .build()
        .new_agent()
}

fn unix_s() -> i64 {
    // Before 1970 there is no clock to speak of: the server's will be followed.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX / 2))
}

/// Hexadecimal to base64, which is how the checksum header has it.
fn checksum(sha256_hex: &str) -> String {
    let digits = sha256_hex.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| {
        std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok()).unwrap_or(0)
    };
    STANDARD.encode(digits.map(byte).collect::<Vec<u8>>())
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

/// Status, the headers that matter, and what the body says; reads the body, so that the connection can be used again.
fn read_answer(response: &mut Response<Body>) -> Answer {
    let own = |name: &str| header(response, name).map(str::to_owned);
    let (bucket_region, checksum) = (own("x-amz-bucket-region"), own("x-amz-checksum-sha256"));
    let status = response.status().as_u16();
    // A body that can't be read to its end says nothing; the status does.
    let body = response.body_mut().with_config().limit(ERROR_BYTES_MAX).read_to_vec().unwrap_or_default();
    Answer { status, error: ErrorBody::parse(&body), bucket_region, checksum }
}

fn is_lost(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error, ureq::Error::Io(e) if matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof))
}

fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
        ureq::Error::Io(source) => source.to_string(),
        other => crate::log::chain(other),
    }
}

#[cfg(test)]
#[path = "s3_tests.rs"]
mod tests;
