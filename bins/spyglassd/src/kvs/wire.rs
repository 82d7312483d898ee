//! The heads of the two requests, signed. Pure: time and credentials are given.

use edge::aws::credentials::Credentials;
use edge::aws::sha256_hex;
use edge::aws::sigv4::{Request, Scope, amz_date, authorization};

/// The service's name in signatures.
const SERVICE: &str = "kinesisvideo";

/// What PutMedia is told.
#[derive(Clone, Copy, Debug)]
pub struct PutMedia<'a> {
    /// `host` or `host:port`.
    pub host: &'a str,
    /// Such as `eu-west-1`.
    pub region: &'a str,
    /// The stream.
    pub stream: &'a str,
    /// When the first fragment begins, in milliseconds of Unix time.
    pub start_ms: u64,
    /// Cluster times count from `start_ms`.
    pub relative: bool,
}

/// The head of a PutMedia request. Its chunks are not signed: the payload hash is that of nothing.
#[must_use]
pub fn put_media(request: &PutMedia<'_>, credentials: &Credentials, unix_s: i64) -> String {
    let timecode = if request.relative { "RELATIVE" } else { "ABSOLUTE" };
    let start = seconds(request.start_ms);
    let headers = [
        ("x-amzn-fragment-acknowledgment-required", "1"),
        ("x-amzn-fragment-timecode-type", timecode),
        ("x-amzn-producer-start-timestamp", &start),
        ("x-amzn-stream-name", request.stream),
    ];
    let signed = sign(request.host, request.region, "/putMedia", &headers, b"", credentials, unix_s);
    let mut head = "POST /putMedia HTTP/1.1\r\n".to_owned();
    for (name, value) in &signed {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("user-agent: edge-spyglassd\r\naccept: */*\r\ntransfer-encoding: chunked\r\n\r\n");
    head
}

/// The headers of a GetDataEndpoint request with this body; `host` among them.
#[must_use]
pub fn get_data_endpoint(
    host: &str,
    region: &str,
    body: &[u8],
    credentials: &Credentials,
    unix_s: i64,
) -> Vec<(&'static str, String)> {
    sign(host, region, "/getDataEndpoint", &[("content-type", "application/json")], body, credentials, unix_s)
}

fn sign<'a>(
    host: &'a str,
    region: &str,
    path: &str,
    headers: &[(&'static str, &'a str)],
    body: &[u8],
    credentials: &'a Credentials,
    unix_s: i64,
) -> Vec<(&'static str, String)> {
    let date = amz_date(unix_s);
    let mut all = vec![("host", host), ("x-amz-date", date.as_str())];
    all.extend_from_slice(headers);
    if let Some(token) = &credentials.token {
        all.push(("x-amz-security-token", token.expose()));
    }
    let hash = sha256_hex(body);
    let request = Request { method: "POST", path, query: &[], headers: &all, payload_sha256: &hash };
    let authorization = authorization(&request, Scope { region, service: SERVICE }, credentials, &date);
    let mut out: Vec<_> = all.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    out.push(("authorization", authorization));
    out
}

/// `1700000000.042`: seconds with three digits after the point.
fn seconds(unix_ms: u64) -> String {
    format!("{}.{:03}", unix_ms / 1000, unix_ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge::config::Secret;

    #[test]
    fn the_head_has_every_header_and_no_secret() {
        let credentials = Credentials {
            access_key_id: "AKID".into(),
            secret_key: Secret::new("S3CRET".into()),
            token: Some(Secret::new("T0KEN".into())),
            expires_s: None,
            source: "test".into(),
        };
        let request = PutMedia {
            host: "h:1",
            region: "eu-west-1",
            stream: "gate",
            start_ms: 1_700_000_000_042,
            relative: true,
        };
        let head = put_media(&request, &credentials, 1_700_000_000);
        for line in [
            "POST /putMedia HTTP/1.1",
            "host: h:1",
            "x-amz-date: 20231114T221320Z",
            "x-amzn-fragment-acknowledgment-required: 1",
            "x-amzn-fragment-timecode-type: RELATIVE",
            "x-amzn-producer-start-timestamp: 1700000000.042",
            "x-amzn-stream-name: gate",
            "x-amz-security-token: T0KEN",
            "transfer-encoding: chunked",
        ] {
            assert!(head.lines().any(|l| l == line), "{line} is missing in {head}");
        }
        assert!(
            head.contains("/20231114/eu-west-1/kinesisvideo/aws4_request, SignedHeaders=host;x-amz-date;")
        );
        assert!(!head.contains("S3CRET") && head.ends_with("\r\n\r\n"));
        assert_eq!(seconds(5), "0.005");
    }
}
