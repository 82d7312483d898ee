//! What an S3 server's answer means. Pure functions over status, headers and error body.

use crate::aws::s3::ErrorBody;

use super::Outcome;

/// What to do about an answer to PUT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Stored.
    Stored,
    /// Something has this key: compare.
    Exists,
    /// The credentials have ended or are not known: fetch new ones and try at once, once.
    Credentials(String),
    /// As the core understands it.
    Other(Outcome),
}

/// The parts of an answer that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// What the body says.
    pub error: ErrorBody,
    /// `x-amz-bucket-region`.
    pub bucket_region: Option<String>,
    /// `x-amz-checksum-sha256`, base64.
    pub checksum: Option<String>,
}

impl Answer {
    /// `403 AccessDenied (its message)`.
    #[must_use]
    pub fn text(&self) -> String {
        let ErrorBody { code, message, .. } = &self.error;
        match (code.as_str(), message.as_str()) {
            ("", _) => self.status.to_string(),
            (code, "") => format!("{} {code}", self.status),
            (code, message) => format!("{} {code} ({message})", self.status),
        }
    }
}

/// Judges the answer to a PUT. `bucket` names the target in messages, `table` the part of the configuration that it
/// stands in; `checksum` is that of what was sent.
#[must_use]
pub fn judge_put(answer: &Answer, bucket: &str, table: &str, checksum: &str) -> Verdict {
    let text = answer.text();
    let code = answer.error.code.as_str();
    let hold = |why: String| Verdict::Other(Outcome::Hold(format!("{bucket}: {why}")));
    let retry = |why: String| Verdict::Other(Outcome::Retry(format!("{bucket}: {why}")));
    let refused = |why: String| Verdict::Other(Outcome::Refused(format!("{bucket}: {why}")));
    match (answer.status, code) {
        (200 | 201 | 204, _) => match &answer.checksum {
            Some(other) if other != checksum => {
                refused(format!("the server says it stored other content ({other})"))
            }
            _ => Verdict::Stored,
        },
        (412, _) => Verdict::Exists,
        (
            _,
            "ExpiredToken"
            | "ExpiredTokenException"
            | "TokenRefreshRequired"
            | "InvalidAccessKeyId"
            | "InvalidToken",
        ) => Verdict::Credentials(text),
        (301 | 302 | 307 | 308, _)
        | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            hold(wrong_region(answer, table, &text))
        }
        (429 | 500 | 502..=599, _)
        | (_, "SlowDown" | "RequestTimeout" | "OperationAborted" | "ConditionalRequestConflict") => {
            retry(text)
        }
        // A clock that is off was corrected before this is asked; once more is worth it.
        (_, "RequestTimeTooSkewed") => retry(format!("{text}: the clock was corrected from the server's")),
        (501, _) => hold(format!(
            "{text}: if this server does not know If-None-Match, set {table}.conditional = false"
        )),
        (409, _) => retry(text),
        (404, "NoSuchBucket") => hold(format!("{text}: make the bucket, or correct {table}.to")),
        (404 | 405, _) => hold(format!("{text}: is {table}.endpoint an S3 server, and path-style right?")),
        (401 | 403, "SignatureDoesNotMatch") => {
            hold(format!("{text}: is the secret key right, and the region?"))
        }
        (401 | 403, _) => {
            hold(format!("{text}: the credentials need s3:PutObject on this bucket and prefix"))
        }
        (400, "InvalidBucketName" | "InvalidRegion" | "InvalidSecurity") => hold(text),
        (407, _) => hold(format!("{text}: the proxy (HTTPS_PROXY) wants a login")),
        (300..=499, _) => refused(text),
        _ => retry(format!("the answer {text} makes no sense")),
    }
}

/// What to do about an answer to GET that is not the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetVerdict {
    /// There is none, or none for us.
    Absent(String),
    /// As in [`Verdict`].
    Credentials(String),
    /// As the core understands it; never stored.
    Other(Outcome),
}

/// Judges the answer to a GET that is not the object. `object` names it in messages, `table` as in [`judge_put`].
#[must_use]
pub fn judge_get(answer: &Answer, object: &str, table: &str) -> GetVerdict {
    let text = answer.text();
    match (answer.status, answer.error.code.as_str()) {
        (404, "NoSuchKey") => GetVerdict::Absent(text),
        // Who may not list a bucket gets this for what is not there, too.
        (401 | 403, "" | "AccessDenied") => GetVerdict::Absent(format!(
            "{text}: it is not there, or the credentials lack s3:GetObject (s3:ListBucket tells the two apart)"
        )),
        // Of a PUT these say that all is well; nothing that was asked of the GET is answered by them.
        (..=299 | 304 | 412, _) => {
            GetVerdict::Other(Outcome::Retry(format!("{object}: the answer {text} makes no sense")))
        }
        _ => match judge_put(answer, object, table, "") {
            Verdict::Credentials(why) => GetVerdict::Credentials(why),
            Verdict::Other(outcome) => GetVerdict::Other(outcome),
            Verdict::Stored | Verdict::Exists => {
                GetVerdict::Other(Outcome::Retry(format!("{object}: the answer {text} makes no sense")))
            }
        },
    }
}

fn wrong_region(answer: &Answer, table: &str, text: &str) -> String {
    let told = answer.bucket_region.as_deref().filter(|r| !r.is_empty());
    let region = told.or(Some(answer.error.region.as_str())).filter(|r| !r.is_empty());
    match region {
        Some(region) => format!("{text}: the bucket is in the region {region:?}; set {table}.region to it"),
        None => format!("{text}: the bucket is elsewhere; check {table}.region and {table}.endpoint"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: u16, code: &str) -> Verdict {
        let error = ErrorBody { code: code.into(), ..ErrorBody::default() };
        judge_put(&Answer { status, error, ..Answer::default() }, "b", "target", "c")
    }

    #[test]
    fn every_class() {
        let is = |status, code| match verdict(status, code) {
            Verdict::Stored => "stored",
            Verdict::Exists => "exists",
            Verdict::Credentials(_) => "credentials",
            Verdict::Other(Outcome::Retry(_)) => "retry",
            Verdict::Other(Outcome::Hold(_)) => "hold",
            Verdict::Other(Outcome::Refused(_)) => "refused",
            Verdict::Other(other) => panic!("{other:?}"),
        };
        for (status, code, class) in [
            (200, "", "stored"),
            (412, "PreconditionFailed", "exists"),
            (400, "ExpiredToken", "credentials"),
            (403, "InvalidAccessKeyId", "credentials"),
            (403, "AccessDenied", "hold"),
            (403, "SignatureDoesNotMatch", "hold"),
            (403, "", "hold"),
            (403, "RequestTimeTooSkewed", "retry"),
            (404, "NoSuchBucket", "hold"),
            (404, "", "hold"),
            (409, "ConditionalRequestConflict", "retry"),
            (429, "", "retry"),
            (500, "InternalError", "retry"),
            (503, "SlowDown", "retry"),
            (400, "RequestTimeout", "retry"),
            (400, "BadDigest", "refused"),
            (400, "", "refused"),
            (400, "AuthorizationHeaderMalformed", "hold"),
            (413, "EntityTooLarge", "refused"),
            (501, "NotImplemented", "hold"),
            (301, "PermanentRedirect", "hold"),
            (307, "TemporaryRedirect", "hold"),
            (100, "", "retry"),
            (999, "", "retry"),
            (0, "", "retry"),
        ] {
            assert_eq!(is(status, code), class, "{status} {code}");
        }
    }

    #[test]
    fn the_right_region_is_named_and_a_wrong_checksum_seen() {
        let answer = Answer { status: 301, bucket_region: Some("eu-west-3".into()), ..Answer::default() };
        let Verdict::Other(Outcome::Hold(why)) = judge_put(&answer, "s3://b", "target", "c") else {
            panic!()
        };
        assert!(why.contains("\"eu-west-3\"") && why.contains("target.region"), "{why}");
        let answer = Answer { status: 200, checksum: Some("x".into()), ..Answer::default() };
        assert!(matches!(judge_put(&answer, "b", "target", "c"), Verdict::Other(Outcome::Refused(_))));
    }

    #[test]
    fn any_status_has_a_verdict() {
        for status in 0..1200 {
            for code in ["", "Whatever", "SlowDown"] {
                let _ = verdict(status, code);
                let error = ErrorBody { code: code.into(), ..ErrorBody::default() };
                let _ = judge_get(&Answer { status, error, ..Answer::default() }, "o", "target");
            }
        }
    }
}
