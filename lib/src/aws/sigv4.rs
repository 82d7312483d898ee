//! AWS Signature Version 4 in the `Authorization` header.
//!
//! Pure: time, credentials and payload hash are given. The path arrives encoded and is signed as it is (S3's rule: no
//! second encoding and no normalisation); the query is encoded and sorted here.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::credentials::Credentials;
use super::{hex, sha256_hex};
use crate::http::date::civil_time;

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// In capitals.
    pub method: &'a str,
    /// The encoded path, exactly as it is sent; begins with `/`.
    pub path: &'a str,
    /// Names and values, not encoded.
    pub query: &'a [(&'a str, &'a str)],
    /// All headers to be signed, names in lower case; `host` and `x-amz-date` must be among them.
    pub headers: &'a [(&'a str, &'a str)],
    /// Hexadecimal SHA-256 of the body.
    pub payload_sha256: &'a str,
}

/// Where the request goes.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Such as `eu-west-1`.
    pub region: &'a str,
    /// Such as `s3`.
    pub service: &'a str,
}

/// `20150830T123600Z`, the value of `x-amz-date`.
pub fn amz_date(unix_s: i64) -> String {
    let (year, month, day, hour, minute, second) = civil_time(unix_s);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// The value of the `Authorization` header. `amz_date` is that of the `x-amz-date` header among the signed ones.
pub fn authorization(
    request: &Request<'_>,
    scope: Scope<'_>,
    credentials: &Credentials,
    amz_date: &str,
) -> String {
    let mut headers: Vec<(&str, String)> = request.headers.iter().map(|(n, v)| (*n, trimmed(v))).collect();
    headers.sort_unstable();
    let names = headers.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(";");
    let canonical = canonical_request(request, &headers, &names);

    // An x-amz-date shorter than a day can't be made by `amz_date`; a wrong one is merely refused by the server.
    let day = amz_date.get(..8).unwrap_or(amz_date);
    let Scope { region, service } = scope;
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{amz_date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
    let mut key = zeroize::Zeroizing::new(format!("AWS4{}", credentials.secret_key.expose()).into_bytes());
    for part in [day, region, service, "aws4_request"] {
        key = zeroize::Zeroizing::new(mac(&key, part.as_bytes()));
    }
    let signature = hex(&mac(&key, to_sign.as_bytes()));
    let id = &credentials.access_key_id;
    format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}")
}

fn canonical_request(request: &Request<'_>, headers: &[(&str, String)], names: &str) -> String {
    let mut query: Vec<(String, String)> =
        request.query.iter().map(|(n, v)| (encode(n, false), encode(v, false))).collect();
    query.sort_unstable();
    let query = query.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("&");
    let lines: String = headers.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
    format!("{}\n{}\n{query}\n{lines}\n{names}\n{}", request.method, request.path, request.payload_sha256)
}

/// A header's value without outer blanks, inner ones folded.
fn trimmed(value: &str) -> String {
    value.split([' ', '\t']).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

/// Percent-encodes all but the unreserved characters (RFC 3986 section 2.3), with `keep_slash` also all but `/`.
pub fn encode(text: &str, keep_slash: bool) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if keep_slash => out.push('/'),
            // Writing to a String can't fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn credentials(id: &str, secret: &str) -> Credentials {
        Credentials {
            access_key_id: id.into(),
            secret_key: Secret::new(secret.into()),
            token: None,
            expires_s: None,
            source: "test".into(),
        }
    }

    /// The signature of an example in Amazon's "Signature calculations for the Authorization header" for S3.
    fn s3(method: &str, path: &str, query: &[(&str, &str)], headers: &[(&str, &str)], hash: &str) -> String {
        let credentials = credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let at = amz_date(1_369_353_600);
        let mut all = vec![
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-content-sha256", hash),
            ("x-amz-date", &at),
        ];
        all.extend_from_slice(headers);
        let request = Request { method, path, query, headers: &all, payload_sha256: hash };
        let value = authorization(&request, Scope { region: "us-east-1", service: "s3" }, &credentials, &at);
        value.rsplit("Signature=").next().unwrap().to_owned()
    }

    #[test]
    fn the_examples_of_the_s3_manual() {
        assert_eq!(
            s3("GET", "/test.txt", &[], &[("range", "bytes=0-9")], EMPTY),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let put = [("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
        let hash = sha256_hex(b"Welcome to Amazon S3.");
        assert_eq!(hash, "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072");
        assert_eq!(
            s3("PUT", &format!("/{}", encode("test$file.text", true)), &[], &put, &hash),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        assert_eq!(
            s3("GET", "/", &[("lifecycle", "")], &[], EMPTY),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            s3("GET", "/", &[("prefix", "J"), ("max-keys", "2")], &[], EMPTY),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn get_vanilla_of_the_test_suite() {
        let credentials = credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
        let request =
            Request { method: "GET", path: "/", query: &[], headers: &headers, payload_sha256: EMPTY };
        let scope = Scope { region: "us-east-1", service: "service" };
        assert_eq!(
            authorization(&request, scope, &credentials, "20150830T123600Z"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        assert_eq!(amz_date(1_440_938_160), "20150830T123600Z");
    }

    #[test]
    fn encoding_and_trimming() {
        assert_eq!(encode("a b/ü+$~*'(é)", true), "a%20b/%C3%BC%2B%24~%2A%27%28%C3%A9%29");
        assert_eq!(encode("a/b=c&d", false), "a%2Fb%3Dc%26d");
        assert_eq!(trimmed("  a   b \t c "), "a b c");
    }
}
