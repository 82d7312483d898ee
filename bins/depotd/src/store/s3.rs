//! Content as objects in S3, or a server that speaks like it: `<prefix>blobs/<sha256>`.
//!
//! One PUT with the real SHA-256 as its checksum: the object is there whole, with this content, or not at all. The file is
//! hashed once more afterwards, because some servers keep an object in spite of a wrong checksum.

use std::fs::File;
use std::io::{Read, Seek as _};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge::aws::s3::Bucket;
use edge::release::{Digests, Sha256, Sums, Timestamp};
use ureq::Body;
use ureq::http::Response;

use super::{Blob, BlobStore, Error, Held, Span};
use crate::aws::{AwsConfig, Call, Client, Payload, Refusal, header};
use crate::catalog::Release;

/// The SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Largest object that one PUT may have.
const PUT_BYTES_MAX: u64 = 5 << 30;
/// Longest list that is read at once, in bytes; S3 gives at most 1000 names.
const LIST_BYTES_MAX: u64 = 4 << 20;

/// A bucket of content.
#[derive(Debug)]
pub struct S3 {
    client: Client,
    bucket: Bucket,
    /// Empty, or ending in `/`.
    prefix: String,
}

impl S3 {
    /// The store in the bucket; nothing is asked yet.
    ///
    /// # Errors
    /// [`Error`]: the certificates to trust can't be read.
    pub fn open(aws: &AwsConfig, bucket: Bucket, prefix: String) -> Result<Self, Error> {
        let plain = bucket.origin().starts_with("http://");
        let store = format!("s3://{}", bucket.name);
        let failed = |error: edge::aws::tls::Error| Error::Service { store, why: edge::log::chain(&error) };
        Ok(Self { client: Client::new(aws, plain).map_err(failed)?, bucket, prefix })
    }

    fn key(&self, sha256: &Sha256) -> String {
        format!("{}blobs/{sha256}", self.prefix)
    }

    fn call(
        &mut self,
        method: &'static str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, Refusal> {
        let path = self.bucket.path(key);
        self.client.send(Call {
            method,
            service: "s3",
            origin: self.bucket.origin(),
            host: self.bucket.host(),
            path: &path,
            query,
            headers,
            payload: Payload::Bytes(&[]),
            sha256: EMPTY_SHA256,
        })
    }

    fn failed(&self, what: &str, refusal: &Refusal) -> Error {
        let why = match (refusal.status, refusal.code.as_str()) {
            (404, "NoSuchBucket") => "make the bucket, or correct store.at",
            (401 | 403, "SignatureDoesNotMatch") => "is the secret key right, and the region?",
            (401 | 403, _) => {
                "the credentials need s3:GetObject, PutObject, DeleteObject and ListBucket here"
            }
            (301..=308, _) => "is the bucket in aws.region?",
            _ => "",
        };
        let colon = if why.is_empty() { "" } else { ": " };
        Error::Service { store: self.name(), why: format!("cannot {what}: {}{colon}{why}", refusal.why) }
    }

    fn fetch(&mut self, key: &str, what: &str, span: Option<Span>) -> Result<Blob, Error> {
        // There is no range of no bytes.
        let last = |Span { start, len }: &Span| start.saturating_add((*len).max(1)) - 1;
        let range = span.map(|span| format!("bytes={}-{}", span.start, last(&span)));
        let headers: Vec<(&str, &str)> = range.iter().map(|range| ("range", range.as_str())).collect();
        let response = match self.call("GET", key, &[], &headers) {
            Ok(response) => response,
            Err(refusal) if refusal.status == 404 && refusal.code != "NoSuchBucket" => {
                return Err(Error::Missing {
                    what: what.to_owned(),
                    at: format!("s3://{}/{key}", self.bucket.name),
                });
            }
            Err(refusal) => return Err(self.failed("read an object", &refusal)),
        };
        let partial = response.status().as_u16() == 206;
        let whole = |value: &str| value.rsplit('/').next().and_then(|size| size.parse().ok());
        let size: Option<u64> = match partial {
            true => header(&response, "content-range").and_then(whole),
            false => header(&response, "content-length").and_then(|len| len.parse().ok()),
        };
        let Some(size) = size else {
            let why = "an answer does not say how long the object is".to_owned();
            return Err(Error::Service { store: self.name(), why });
        };
        let Span { start, len } = span.unwrap_or(Span { start: 0, len: size });
        let mut reader = response.into_body().into_reader();
        if !partial && start > 0 {
            // A server that knows no ranges sends everything.
            std::io::copy(&mut (&mut reader).take(start), &mut std::io::sink())
                .map_err(|error| Error::Service { store: self.name(), why: error.to_string() })?;
        }
        Ok(Blob { size, reader: Box::new(reader.take(len)), file: None })
    }

    /// One page of the names below the prefix, and where the next one begins.
    fn page(&mut self, from: Option<&str>, held: &mut Vec<Held>) -> Result<Option<String>, Error> {
        let prefix = format!("{}blobs/", self.prefix);
        let mut query = vec![("list-type", "2"), ("prefix", prefix.as_str())];
        query.extend(from.map(|from| ("continuation-token", from)));
        let mut response =
            self.call("GET", "", &query, &[]).map_err(|refusal| self.failed("list the bucket", &refusal))?;
        let text =
            response.body_mut().with_config().limit(LIST_BYTES_MAX).read_to_string().map_err(|error| {
                Error::Service { store: self.name(), why: format!("the list breaks off: {error}") }
            })?;
        for part in text.split("<Contents>").skip(1) {
            let name = element(part, "Key").unwrap_or_default();
            let sha256 = name.strip_prefix(&prefix).and_then(|name| name.parse::<Sha256>().ok());
            let size = element(part, "Size").and_then(|size| size.parse().ok());
            // A time that can't be read is taken for now: then it is young, and stays.
            let since = element(part, "LastModified").and_then(|at| at.parse().ok()).unwrap_or_else(now);
            if let (Some(sha256), Some(size)) = (sha256, size) {
                held.push(Held { sha256, size, since });
            }
        }
        let more = element(&text, "IsTruncated") == Some("true");
        let next = element(&text, "NextContinuationToken").map(|token| token.replace("&amp;", "&"));
        Ok(next.filter(|_| more))
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// The text of the first element of that name.
fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let from = text.find(&open)? + open.len();
    Some(&text[from..from + text[from..].find(&close)?])
}

fn hash(file: &mut File) -> Result<Sums, Error> {
    file.rewind().map_err(Error::Source)?;
    let (mut digests, mut buffer) = (Digests::default(), vec![0; 128 * 1024]);
    loop {
        match file.read(&mut buffer).map_err(Error::Source)? {
            0 => return Ok(digests.finish()),
            n => digests.update(&buffer[..n]),
        }
    }
}

impl BlobStore for S3 {
    fn get(&mut self, sha256: &Sha256, span: Option<Span>) -> Result<Blob, Error> {
        self.fetch(&self.key(sha256), &sha256.to_string(), span)
    }

    fn open(&mut self, release: &Release, span: Option<Span>) -> Result<Blob, Error> {
        if let Some(sums) = release.sums {
            return self.get(&sums.sha256, span);
        }
        let own = format!("s3://{}/", self.bucket.name);
        match release.url.strip_prefix(&own) {
            Some(key) => self.fetch(key, &release.url, span),
            None => Err(Error::Elsewhere { url: release.url.clone(), store: self.name() }),
        }
    }

    fn put(&mut self, source: &mut File) -> Result<Sums, Error> {
        // Before anything is read: nobody is to wait minutes for a refusal.
        let size = source.metadata().map_err(Error::Source)?.len();
        if size > PUT_BYTES_MAX {
            return Err(Error::Large { size: edge::text::bytes(size), store: self.name() });
        }
        let sums = hash(source)?;
        let (key, sha256) = (self.key(&sums.sha256), sums.sha256.to_string());
        let path = self.bucket.path(&key);
        let checksum = STANDARD.encode(sums.sha256.0);
        let headers =
            [("content-type", "application/octet-stream"), ("x-amz-checksum-sha256", checksum.as_str())];
        let sent = self.client.send(Call {
            method: "PUT",
            service: "s3",
            origin: self.bucket.origin(),
            host: self.bucket.host(),
            path: &path,
            query: &[],
            headers: &headers,
            payload: Payload::File(source, sums.size),
            sha256: &sha256,
        });
        sent.map_err(|refusal| self.failed("store an object", &refusal))?;
        // Read again, here: the file may have changed on its way, and a server may not have looked.
        if hash(source)? != sums {
            return Err(Error::Torn);
        }
        Ok(sums)
    }

    fn list(&mut self) -> Result<Vec<Held>, Error> {
        let (mut held, mut from) = (Vec::new(), None);
        loop {
            from = self.page(from.as_deref(), &mut held)?;
            if from.is_none() {
                held.sort_unstable_by_key(|held| held.sha256);
                return Ok(held);
            }
        }
    }

    fn remove(&mut self, sha256: &Sha256) -> Result<(), Error> {
        match self.call("DELETE", &self.key(sha256), &[], &[]) {
            Err(refusal) if refusal.status != 404 => Err(self.failed("remove an object", &refusal)),
            _ => Ok(()),
        }
    }

    fn url_of(&self, sha256: &Sha256) -> String {
        format!("s3://{}/{}", self.bucket.name, self.key(sha256))
    }

    fn name(&self) -> String {
        format!(
            "s3://{}/{} ({}, {})",
            self.bucket.name,
            self.prefix,
            self.bucket.origin(),
            self.bucket.region
        )
    }

    /// There are no locks in S3.
    fn lock(&mut self, _alone: bool) -> Result<bool, Error> {
        Ok(false)
    }
}

#[cfg(test)]
#[path = "s3_tests.rs"]
mod tests;
