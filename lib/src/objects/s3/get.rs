//! Reading an object that may not be there (yet).
//!
//! Invariants: no more than the caller's bound is ever in memory, and a call ends within the caller's time (and that of
//! fetching credentials, which has bounds of its own).

use std::io::Read as _;
use std::time::{Duration, Instant};

use ureq::Body;
use ureq::http::Response;

use super::super::Outcome;
use super::super::answer::{GetVerdict, judge_get};
use super::{EMPTY_SHA256, Failure, S3, header, read_answer};
use crate::http::date;

/// What came of [`S3::get`]. Reasons are for people and name the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// All of it.
    Object(Vec<u8>),
    /// There is none, or none that these credentials may see: who may not list the bucket is not told which.
    Absent(String),
    /// It has more bytes than were asked for.
    TooLarge(String),
    /// Something passing: ask again.
    Retry(String),
    /// The server refuses us; somebody has to act.
    Refused(String),
}

impl From<Outcome> for Got {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Retry(why) => Self::Retry(why),
            Outcome::Hold(why) | Outcome::Refused(why) | Outcome::Dead(why) => Self::Refused(why),
            Outcome::Stored { .. } => Self::Retry("the answer makes no sense".to_owned()),
        }
    }
}

impl S3 {
    /// Reads the object under `key` if it has at most `bytes_max` bytes. Blocks, for `within` at the longest. Up to four
    /// requests, as [`S3::put`]: one more each on a new connection, with the clock corrected, with new credentials.
    #[must_use]
    pub fn get(&self, key: &str, bytes_max: u64, within: Duration) -> Got {
        let name = format!("s3://{}/{key}", self.bucket.name);
        let begun = Instant::now();
        let (mut renewed, mut corrected, mut lost) = (false, false, false);
        loop {
            let left = within.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Got::Retry(format!("{name}: no answer in {} ms", within.as_millis()));
            }
            let sent = self.send_within("GET", key, &[], &[], EMPTY_SHA256, Some(left));
            let (mut response, credentials) = match sent {
                Ok(sent) => sent,
                Err(Failure::Lost(_)) if !lost => {
                    lost = true;
                    continue;
                }
                Err(failure) => return failure.outcome(&name).into(),
            };
            if response.status().as_u16() == 200 {
                return read_object(&mut response, &name, bytes_max);
            }
            let server_s = header(&response, "date").and_then(date::parse);
            let answer = read_answer(&mut response);
            if matches!(answer.status, 400 | 401 | 403) && !corrected && self.correct_clock(server_s) {
                corrected = true;
                continue;
            }
            match judge_get(&answer, &name, self.table) {
                GetVerdict::Credentials(_) if !renewed => {
                    self.provider.invalidate(&credentials);
                    renewed = true;
                }
                GetVerdict::Credentials(why) => return Got::Refused(format!("{name}: {why}")),
                GetVerdict::Absent(why) => return Got::Absent(format!("{name}: {why}")),
                GetVerdict::Other(outcome) => return outcome.into(),
            }
        }
    }
}

fn read_object(response: &mut Response<Body>, name: &str, bytes_max: u64) -> Got {
    let too_large = || Got::TooLarge(format!("{name} has more than {bytes_max} bytes"));
    let told = header(response, "content-length").and_then(|length| length.parse::<u64>().ok());
    if told.is_some_and(|length| length > bytes_max) {
        return too_large();
    }
    let mut bytes = Vec::new();
    let read = response.body_mut().as_reader().take(bytes_max.saturating_add(1)).read_to_end(&mut bytes);
    match read {
        Err(error) => Got::Retry(format!("{name}: GET breaks off: {error}")),
        Ok(_) if bytes.len() as u64 > bytes_max => too_large(),
        Ok(_) if told.is_some_and(|length| length != bytes.len() as u64) => {
            Got::Retry(format!("{name}: GET breaks off after {} bytes", bytes.len()))
        }
        Ok(_) => Got::Object(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;
    use crate::objects::script::{Answer, Request, Server, error};

    /// What came of it, and how often the server was asked.
    fn get(script: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> (Got, Vec<Request>) {
        let server = Server::start(script);
        let got = S3::new(settings(&server.url(), &[])).get("arm/s 1/1.jpg", 10, Duration::from_secs(5));
        (got, server.requests())
    }

    fn http(body: &str) -> Answer {
        Answer::Http(200, "", body.to_owned())
    }

    #[test]
    fn an_object_within_its_bound() {
        for body in ["", "x", "0123456789"] {
            let (got, asked) = get(|_, _| http(body));
            assert_eq!(got, Got::Object(body.into()));
            assert_eq!((asked[0].method.as_str(), asked[0].target.as_str()), ("GET", "/bkt/arm/s%201/1.jpg"));
            assert!(asked[0].header("authorization").is_some() && asked.len() == 1);
        }
        let (got, _) = get(|_, _| http("0123456789a"));
        assert!(
            matches!(&got, Got::TooLarge(why) if why.contains("s3://bkt/arm/s 1/1.jpg has more than 10"))
        );
        // Of a length that is not told.
        let endless = || {
            let chunk = format!("{:x}\r\n{}\r\n", 8000, "y".repeat(8000)).repeat(50);
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}")
        };
        let (got, _) = get(move |_, _| Answer::Raw(endless().into_bytes()));
        assert!(matches!(got, Got::TooLarge(_)), "{got:?}");
        let (got, _) = get(|_, _| Answer::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec()));
        assert!(matches!(got, Got::Retry(_)), "{got:?}");
    }

    #[test]
    fn each_kind_of_refusal() {
        let (got, _) = get(|_, _| error(404, "NoSuchKey"));
        assert!(matches!(&got, Got::Absent(why) if why.contains("404 NoSuchKey")), "{got:?}");
        let (got, asked) = get(|_, _| error(403, "AccessDenied"));
        assert!(matches!(&got, Got::Absent(why) if why.contains("s3:GetObject")), "{got:?}");
        assert_eq!(asked.len(), 1);
        let (got, _) = get(|_, _| error(404, "NoSuchBucket"));
        assert!(matches!(&got, Got::Refused(why) if why.contains("target.to")), "{got:?}");
        let (got, _) = get(|_, _| error(503, "SlowDown"));
        assert!(matches!(got, Got::Retry(_)), "{got:?}");
        let (got, asked) = get(|_, _| error(400, "ExpiredToken"));
        assert!(matches!(got, Got::Refused(_)) && asked.len() == 2, "once more with new ones: {got:?}");
        let (got, asked) = get(|n, _| if n == 0 { Answer::Reset } else { http("ok") });
        assert!(got == Got::Object(b"ok".to_vec()) && asked.len() == 2, "{got:?}");
    }

    #[test]
    fn a_silent_server_is_not_waited_for_longer_than_asked() {
        let server = Server::start(|_, _| Answer::Stall);
        let mut settings = settings(&server.url(), &[]);
        settings.idle_timeout = Duration::from_secs(30);
        let begun = Instant::now();
        let got = S3::new(settings).get("a", 10, Duration::from_millis(300));
        assert!(matches!(got, Got::Retry(_)) && begun.elapsed() < Duration::from_secs(10), "{got:?}");
    }
}
