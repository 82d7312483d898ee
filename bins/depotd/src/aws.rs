//! Requests to Amazon's services, signed: what the DynamoDB catalog and the S3 store share.
//!
//! Invariants: every attempt is signed anew, with fresh credentials and the corrected time; what can be repeated without
//! harm is, a bounded number of times, with full-jitter pauses; a secret is never part of an error.

use std::fs::File;
use std::io::{Read, Seek as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edge::aws::credentials::{ChainConfig, Credentials, Provider};
use edge::aws::sigv4::{self, Scope, amz_date, encode};
use edge::http::date;
use ureq::http::Response;
use ureq::{Agent, Body, SendBody};

/// Attempts of one request, all reasons together.
const ATTEMPTS: u32 = 6;
/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// The server's clock is followed when ours is off by more than this, in seconds.
const SKEW_S_MIN: i64 = 120;
/// Longest error answer that is read, in bytes.
const ERROR_BYTES_MAX: u64 = 16 * 1024;

/// How requests are made.
#[derive(Debug, Clone)]
pub struct AwsConfig {
    /// Such as `eu-west-1`.
    pub region: String,
    /// Where credentials come from.
    pub chain: ChainConfig,
    /// Authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Longest time until a connection stands.
    pub connect_timeout: Duration,
    /// Longest silence, in either direction.
    pub idle_timeout: Duration,
}

/// What is sent with a request.
pub enum Payload<'a> {
    /// Nothing, or what is in memory.
    Bytes(&'a [u8]),
    /// A file's first bytes.
    File(&'a mut File, u64),
}

/// A request.
pub struct Call<'a> {
    /// In capitals.
    pub method: &'static str,
    /// Such as `s3`.
    pub service: &'static str,
    /// `https://host[:port]`.
    pub origin: &'a str,
    /// The `Host` header.
    pub host: &'a str,
    /// The encoded path.
    pub path: &'a str,
    /// Names and values, not encoded.
    pub query: &'a [(&'a str, &'a str)],
    /// To be signed, names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub payload: Payload<'a>,
    /// Its SHA-256 in hexadecimal.
    pub sha256: &'a str,
}

/// An answer that is no success.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The HTTP status; 0 if there was no answer.
    pub status: u16,
    /// What the service calls it, such as `NoSuchKey`; empty if it doesn't say.
    pub code: String,
    /// For people.
    pub why: String,
}

/// A client of Amazon's services. Blocks.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    provider: Provider,
    region: String,
    /// The server's clock minus ours, in seconds.
    skew_s: i64,
}

impl Client {
    /// A client that has not connected yet.
    ///
    /// # Errors
    /// The certificates to trust can't be read.
    pub fn new(config: &AwsConfig, plain: bool) -> Result<Self, edge::aws::tls::Error> {
        let tls = if plain && config.ca.is_none() {
            edge::aws::tls::none()
        } else {
            edge::aws::tls::load(&edge::aws::tls::Files { ca: config.ca.clone(), cert: None, key: None })?
        };
        // No time limit for the whole: content of any size takes as long as it takes, as long as it flows.
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(config.connect_timeout))
            .timeout_connect(Some(config.connect_timeout))
            .timeout_recv_response(Some(config.idle_timeout))
            .timeout_per_read(Some(config.idle_timeout))
            .timeout_per_write(Some(config.idle_timeout))
            .max_idle_connections(2)
            .max_idle_connections_per_host(1)
            .user_agent(concat!("depotd/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let provider = Provider::new(config.chain.clone());
        Ok(Self { agent, provider, region: config.region.clone(), skew_s: 0 })
    }

    /// Sends until there is an answer that counts. Statuses 200 to 299 are a success.
    ///
    /// # Errors
    /// [`Refusal`]: the service refuses it, or can't be reached.
    pub fn send(&mut self, mut call: Call<'_>) -> Result<Response<Body>, Refusal> {
        let mut pause = PAUSE.0;
        let (mut renewed, mut corrected, mut attempt) = (false, false, 1);
        loop {
            let refusal = match self.once(&mut call) {
                Ok((response, _)) if response.status().is_success() => return Ok(response),
                Ok((mut response, credentials)) => {
                    let server_s = header(&response, "date").and_then(date::parse);
                    let refusal = refusal(&mut response);
                    if matches!(refusal.status, 400 | 401 | 403) {
                        if !corrected && self.correct_clock(server_s) {
                            corrected = true;
                            continue;
                        }
                        if !renewed && expired(&refusal.code) {
                            self.provider.invalidate(&credentials);
                            renewed = true;
                            continue;
                        }
                    }
                    refusal
                }
                Err(refusal) => refusal,
            };
            if attempt == ATTEMPTS || !passing(&refusal) {
                return Err(refusal);
            }
            attempt += 1;
            log::debug!("{}: {}; once more", call.origin, refusal.why);
            std::thread::sleep(pause.mul_f64(fastrand::f64()));
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn once(&mut self, call: &mut Call<'_>) -> Result<(Response<Body>, Arc<Credentials>), Refusal> {
        let lost = |status, why: String| Refusal { status, code: String::new(), why };
        let now_s = i64::try_from(edge::clock::unix_ms() / 1000).unwrap_or(0) + self.skew_s;
        // 1: a status that is never passing.
        let credentials = self.provider.get(now_s).map_err(|error| lost(1, error.to_string()))?;
        let date = amz_date(now_s);
        let mut signed: Vec<(&str, &str)> = call.headers.to_vec();
        signed.extend([("host", call.host), ("x-amz-content-sha256", call.sha256), ("x-amz-date", &date)]);
        if let Some(token) = &credentials.token {
            signed.push(("x-amz-security-token", token.expose()));
        }
        let scope = Scope { region: &self.region, service: call.service };
        let request = sigv4::Request {
            method: call.method,
            path: call.path,
            query: call.query,
            headers: &signed,
            payload_sha256: call.sha256,
        };
        let authorization = sigv4::authorization(&request, scope, &credentials, &date);
        let query: Vec<String> =
            call.query.iter().map(|(n, v)| format!("{}={}", encode(n, false), encode(v, false))).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let uri = format!("{}{}{mark}{}", call.origin, call.path, query.join("&"));
        let mut request = ureq::http::Request::builder().method(call.method).uri(uri);
        for (name, value) in &signed {
            request = request.header(*name, *value);
        }
        let request = request.header("authorization", authorization);
        // A header's value may be a secret: the error says only that one can't be sent.
        let unfit = |_| lost(1, "the request can't be put together".to_owned());
        let result = match &mut call.payload {
            Payload::Bytes([]) if call.method != "PUT" => self.agent.run(request.body(()).map_err(unfit)?),
            Payload::Bytes(bytes) => self.agent.run(request.body(*bytes).map_err(unfit)?),
            Payload::File(file, len) => {
                file.rewind().map_err(|error| lost(1, format!("cannot rewind the file: {error}")))?;
                let mut body = (&mut **file).take(*len);
                let request = request.header("content-length", *len);
                self.agent.run(request.body(SendBody::from_reader(&mut body)).map_err(unfit)?)
            }
        };
        let explain = |error: ureq::Error| match error {
            ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
            ureq::Error::Io(source) => source.to_string(),
            other => edge::log::chain(&other),
        };
        let origin = call.origin;
        result
            .map(|response| (response, credentials))
            .map_err(|e| lost(0, format!("{origin}: {}", explain(e))))
    }

    /// Follows the server's clock if ours is off; says whether anything changed.
    fn correct_clock(&mut self, server_s: Option<i64>) -> bool {
        let Some(server_s) = server_s else { return false };
        let new = server_s - i64::try_from(edge::clock::unix_ms() / 1000).unwrap_or(0);
        if (new - self.skew_s).abs() < SKEW_S_MIN {
            return false;
        }
        log::warn!(
            "the clock here is {} s off that of the service: requests are signed with its time",
            new.abs()
        );
        self.skew_s = new;
        true
    }
}

fn expired(code: &str) -> bool {
    let short = code.trim_end_matches("Exception");
    matches!(
        short,
        "ExpiredToken"
            | "TokenRefreshRequired"
            | "InvalidAccessKeyId"
            | "InvalidToken"
            | "UnrecognizedClient"
    )
}

/// Whether the same request may be answered otherwise a moment later.
fn passing(refusal: &Refusal) -> bool {
    let short = refusal.code.trim_end_matches("Exception");
    matches!(refusal.status, 0 | 429 | 500 | 502..=599)
        || matches!(
            short,
            "SlowDown"
                | "RequestTimeout"
                | "Throttling"
                | "ThrottlingError"
                | "ProvisionedThroughputExceeded"
                | "RequestLimitExceeded"
                | "TransactionConflict"
                | "InternalServerError"
        )
}

/// A header's text.
pub fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

/// Reads what an error answer says, in S3's XML or DynamoDB's JSON.
fn refusal(response: &mut Response<Body>) -> Refusal {
    let status = response.status().as_u16();
    // A body that can't be read to its end says nothing; the status does.
    let body = response.body_mut().with_config().limit(ERROR_BYTES_MAX).read_to_vec().unwrap_or_default();
    let (code, message) = match serde_json::from_slice::<serde_json::Value>(&body) {
        Ok(json) => {
            let text =
                |key: &str| json.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
            let code = text("__type");
            let message = if text("message").is_empty() { text("Message") } else { text("message") };
            (code.rsplit('#').next().unwrap_or_default().to_owned(), message)
        }
        Err(_) => {
            let error = edge::aws::s3::ErrorBody::parse(&body);
            (error.code, error.message)
        }
    };
    let why = match (code.as_str(), message.as_str()) {
        ("", _) => format!("the answer is {status}"),
        (code, "") => format!("{status} {code}"),
        (code, message) => format!("{status} {code} ({message})"),
    };
    Refusal { status, code, why }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// For the servers of the tests.
    pub(crate) fn config() -> AwsConfig {
        let vars = [("AWS_ACCESS_KEY_ID", e2e::aws::KEY_ID), ("AWS_SECRET_ACCESS_KEY", e2e::aws::SECRET)];
        let vars = edge::aws::credentials::Vars::new(vars.map(|(name, value)| (name, value.to_owned())));
        AwsConfig {
            region: e2e::aws::REGION.into(),
            chain: ChainConfig { iot: None, profile: None, vars },
            ca: None,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(20),
        }
    }

    #[test]
    fn what_is_repeated() {
        let refusal = |status, code: &str| Refusal { status, code: code.into(), why: String::new() };
        for (status, code) in [
            (0, ""),
            (503, "SlowDown"),
            (400, "ProvisionedThroughputExceededException"),
            (400, "ThrottlingException"),
        ] {
            assert!(passing(&refusal(status, code)), "{status} {code}");
        }
        for (status, code) in [
            (1, ""),
            (403, "AccessDenied"),
            (404, "NoSuchKey"),
            (400, "ConditionalCheckFailedException"),
            (501, ""),
        ] {
            assert!(!passing(&refusal(status, code)), "{status} {code}");
        }
        assert!(
            expired("ExpiredTokenException") && expired("InvalidAccessKeyId") && !expired("AccessDenied")
        );
    }
}
