//! Where an S3 bucket is: the endpoint rules, and what an error answer says. Pure functions.

use super::sigv4::encode;

/// The address of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// `https://host[:port]`.
    origin: String,
    /// The `Host` header: the port only where it is not the scheme's own.
    host: String,
    /// What comes before the key: empty or `/bucket`, encoded.
    base: String,
    /// The bucket's name.
    pub name: String,
    /// The region that requests are signed for.
    pub region: String,
}

/// What is wrong with a bucket's settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name can't be a bucket's.
    #[error(
        "{0:?} is no bucket name: expected 3 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
    )]
    Name(String),
    /// The endpoint is no address.
    #[error(
        "{0:?} is no endpoint: expected http://host[:port] or https://host[:port], optionally with a path"
    )]
    Endpoint(String),
    /// The region is no region.
    #[error("{0:?} is no region: expected something like eu-west-1")]
    Region(String),
}

impl Bucket {
    /// Puts the address together. Without `endpoint` it is Amazon's for the region, with the bucket as a part of the
    /// host name unless `path_style` asks otherwise or a dot in the name forbids it (the certificate would not match).
    /// With an endpoint, the bucket is in the path unless `path_style` is `Some(false)`.
    ///
    /// # Errors
    /// [`Error`]: one of the parts can't be what it is said to be.
    pub fn new(
        name: &str,
        region: &str,
        endpoint: Option<&str>,
        path_style: Option<bool>,
    ) -> Result<Self, Error> {
        let outer = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let bytes = name.as_bytes();
        if !(3..=63).contains(&name.len())
            || !outer(bytes.first())
            || !outer(bytes.last())
            || !name.bytes().all(inner)
        {
            return Err(Error::Name(name.to_owned()));
        }
        check_region(region)?;
        let (scheme, host, prefix) = match endpoint {
            Some(text) => parse_endpoint(text)?,
            None => ("https", format!("s3.{region}.{}", domain(region)), String::new()),
        };
        let in_host = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        let path_style = path_style.unwrap_or(endpoint.is_some() || !in_host);
        let (host, base) =
            if path_style { (host, format!("{prefix}/{name}")) } else { (format!("{name}.{host}"), prefix) };
        let origin = format!("{scheme}://{host}");
        Ok(Self { origin, host, base, name: name.to_owned(), region: region.to_owned() })
    }

    /// The `Host` header.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `scheme://host[:port]`, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The encoded path of an object, to be signed and sent as it is.
    pub fn path(&self, key: &str) -> String {
        format!("{}/{}", self.base, encode(key, true))
    }

    /// The URL of a path made by [`Bucket::path`].
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }
}

/// Origin (`https://host[:port]`) and `Host` header of another service, such as `dynamodb`: Amazon's for the region, or
/// those of `endpoint`, whose path is left out.
///
/// # Errors
/// [`Error`]: the region or the endpoint can't be one.
pub fn service(name: &str, region: &str, endpoint: Option<&str>) -> Result<(String, String), Error> {
    check_region(region)?;
    let (scheme, host) = match endpoint {
        Some(text) => parse_endpoint(text).map(|(scheme, host, _)| (scheme, host))?,
        None => ("https", format!("{name}.{region}.{}", domain(region))),
    };
    Ok((format!("{scheme}://{host}"), host))
}

fn check_region(region: &str) -> Result<(), Error> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if region.is_empty() || region.len() > 40 || !region.bytes().all(fits) {
        return Err(Error::Region(region.to_owned()));
    }
    Ok(())
}

/// The domain that a region's partition lives in.
fn domain(region: &str) -> &'static str {
    match region {
        r if r.starts_with("cn-") => "amazonaws.com.cn",
        r if r.starts_with("us-iso-") => "c2s.ic.gov",
        r if r.starts_with("us-isob-") => "sc2s.sgov.gov",
        r if r.starts_with("eusc-") => "amazonaws.eu",
        _ => "amazonaws.com",
    }
}

/// Scheme, host with a port that needs saying, and path without a slash at its end.
fn parse_endpoint(text: &str) -> Result<(&'static str, String, String), Error> {
    let bad = || Error::Endpoint(text.to_owned());
    let (scheme, rest, own_port) = match text.split_once("://") {
        Some(("https", rest)) => ("https", rest, "443"),
        Some(("http", rest)) => ("http", rest, "80"),
        _ => return Err(bad()),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let plain =
        |b: u8| b.is_ascii_graphic() && !matches!(b, b'@' | b'?' | b'#' | b'%' | b'"' | b'<' | b'>' | b'\\');
    if !authority.bytes().all(plain) || !path.bytes().all(plain) {
        return Err(bad());
    }
    // The colon of a port is behind the bracket of an IPv6 address.
    let after = authority.rfind(']').unwrap_or(0);
    let (host, port) = match authority[after..].rfind(':') {
        Some(at) => (&authority[..after + at], Some(&authority[after + at + 1..])),
        None => (authority, None),
    };
    if host.is_empty()
        || port.is_some_and(|p| p.parse::<u16>().is_err())
        || (host.contains(':') && !host.starts_with('['))
    {
        return Err(bad());
    }
    let host = host.to_ascii_lowercase();
    let host = match port {
        Some(port) if port != own_port => format!("{host}:{port}"),
        _ => host,
    };
    Ok((scheme, host, path.trim_end_matches('/').to_owned()))
}

/// What the XML of an error answer says; empty where it says nothing (or is no XML).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// Such as `NoSuchBucket`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The region that a request should have been signed for.
    pub region: String,
}

impl ErrorBody {
    /// Reads `Code`, `Message` and `Region` from an error answer's body, whatever else is in it. Each is cut at 300
    /// bytes, and control characters become blanks.
    pub fn parse(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let field = |name: &str| element(&text, name).unwrap_or_default();
        Self { code: field("Code"), message: field("Message"), region: field("Region") }
    }
}

/// The text of the first element of that name.
fn element(text: &str, name: &str) -> Option<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let from = text.find(&open)? + open.len();
    let inner = &text[from..from + text[from..].find(&close)?];
    let inner: String = inner.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let unescape =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&amp;", "&")];
    Some(unescape.iter().fold(inner, |text, (from, to)| text.replace(from, to)).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(name: &str, region: &str, endpoint: Option<&str>, path_style: Option<bool>) -> String {
        let bucket = Bucket::new(name, region, endpoint, path_style).unwrap();
        assert!(bucket.origin().ends_with(bucket.host()));
        bucket.url(&bucket.path("a b/c"))
    }

    #[test]
    fn amazon_s_addresses() {
        assert_eq!(url("bkt", "eu-west-1", None, None), "https://bkt.s3.eu-west-1.amazonaws.com/a%20b/c");
        assert_eq!(
            url("bkt", "cn-north-1", None, None),
            "https://bkt.s3.cn-north-1.amazonaws.com.cn/a%20b/c"
        );
        assert_eq!(
            url("bkt", "us-gov-west-1", None, None),
            "https://bkt.s3.us-gov-west-1.amazonaws.com/a%20b/c"
        );
        assert_eq!(url("b.k.t", "eu-west-1", None, None), "https://s3.eu-west-1.amazonaws.com/b.k.t/a%20b/c");
        assert_eq!(
            url("bkt", "eu-west-1", None, Some(true)),
            "https://s3.eu-west-1.amazonaws.com/bkt/a%20b/c"
        );
    }

    #[test]
    fn other_servers() {
        let at = |e, p| url("bkt", "us-east-1", Some(e), p);
        assert_eq!(at("http://127.0.0.1:9000", None), "http://127.0.0.1:9000/bkt/a%20b/c");
        assert_eq!(at("https://S3.example.com:443/", Some(false)), "https://bkt.s3.example.com/a%20b/c");
        assert_eq!(at("http://[::1]:80/store/", None), "http://[::1]/store/bkt/a%20b/c");
        assert_eq!(at("http://[::1]:9000", None), "http://[::1]:9000/bkt/a%20b/c");
    }

    #[test]
    fn other_services() {
        let at = |region, endpoint| service("dynamodb", region, endpoint).unwrap().0;
        assert_eq!(at("eu-west-1", None), "https://dynamodb.eu-west-1.amazonaws.com");
        assert_eq!(at("cn-north-1", None), "https://dynamodb.cn-north-1.amazonaws.com.cn");
        assert_eq!(at("eu-west-1", Some("http://127.0.0.1:8000/")), "http://127.0.0.1:8000");
        assert!(service("dynamodb", "EU", None).is_err() && service("dynamodb", "r", Some("x")).is_err());
    }

    #[test]
    fn what_is_no_bucket_is_refused() {
        for name in ["ab", "-ab", "ab-", "a/b", "a b", "arn:aws:s3:::x", &"x".repeat(64), "ü-bucket"] {
            assert!(matches!(Bucket::new(name, "eu-west-1", None, None), Err(Error::Name(_))), "{name}");
        }
        for region in ["", "EU", "a b", "eu/west", "x.y"] {
            assert!(matches!(Bucket::new("bkt", region, None, None), Err(Error::Region(_))), "{region}");
        }
        for endpoint in [
            "",
            "s3.x",
            "ftp://x",
            "http://",
            "http://x:y",
            "http://u@x",
            "http://x y",
            "http://x?a",
            "http://a:b:1",
        ] {
            assert!(
                matches!(Bucket::new("bkt", "r", Some(endpoint), None), Err(Error::Endpoint(_))),
                "{endpoint}"
            );
        }
    }

    #[test]
    fn error_answers() {
        let body = b"<?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code><Message>it&apos;s &lt;gone&gt;\n</Message><x>";
        let parsed = ErrorBody::parse(body);
        assert_eq!((parsed.code.as_str(), parsed.message.as_str()), ("NoSuchBucket", "it's <gone>"));
        assert_eq!(ErrorBody::parse(b"<Code>x"), ErrorBody::default());
        assert_eq!(ErrorBody::parse(&[0xff, 0xfe, b'<']), ErrorBody::default());
        assert_eq!(
            ErrorBody::parse(format!("<Code>{}</Code>", "é".repeat(5000)).as_bytes()).code.chars().count(),
            300
        );
    }
}
