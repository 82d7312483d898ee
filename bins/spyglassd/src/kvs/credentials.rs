//! Where the credentials of a stream come from: the TOML and a secret file, a file that somebody else renews, or the chain
//! of `edge::aws`.
//!
//! Blocks (files, HTTP): for the asking thread only. Nothing secret is printed.

use std::path::PathBuf;
use std::sync::Arc;

use edge::aws::credentials::{ChainConfig, Credentials, Provider, Shape, parse};
use edge::config::read_secret;

/// The chain's margin is a minute; ours is two, and more for the way: it is asked as if it were this much later, in
/// seconds.
const EARLY_S: i64 = 120;
/// Longest credentials file, in bytes.
const FILE_BYTES_MAX: u64 = 32 * 1024;

/// The configured source.
#[derive(Clone, Debug)]
pub enum SourceConfig {
    /// `access-key-id` and `secret-key-file`.
    Keys {
        /// Not secret by itself.
        access_key_id: String,
        /// The file that holds the secret key.
        secret_key_file: PathBuf,
    },
    /// `credentials-file`.
    File(PathBuf),
    /// The environment, a profile, AWS IoT, a container or an instance.
    Chain(ChainConfig),
}

/// See the module's text.
#[derive(Debug)]
pub enum Source {
    /// As configured.
    Keys {
        /// As configured.
        access_key_id: String,
        /// As configured.
        secret_key_file: PathBuf,
    },
    /// Read anew each time.
    File(PathBuf),
    /// Renews by itself.
    Chain(Box<Provider>),
}

impl Source {
    /// The source of this configuration. Nothing is read yet.
    #[must_use]
    pub fn new(config: SourceConfig) -> Source {
        match config {
            SourceConfig::Keys { access_key_id, secret_key_file } => {
                Source::Keys { access_key_id, secret_key_file }
            }
            SourceConfig::File(path) => Source::File(path),
            SourceConfig::Chain(chain) => Source::Chain(Box::new(Provider::new(chain))),
        }
    }

    /// Credentials that are good for two minutes at least, where the source has such.
    ///
    /// # Errors
    /// In words.
    pub fn get(&self, unix_s: i64) -> Result<Arc<Credentials>, String> {
        match self {
            Source::Keys { access_key_id, secret_key_file } => {
                let secret_key = read_secret(secret_key_file).map_err(|error| edge::log::chain(&error))?;
                let source = format!("the secret in {}", secret_key_file.display());
                let access_key_id = access_key_id.clone();
                Ok(Arc::new(Credentials { access_key_id, secret_key, token: None, expires_s: None, source }))
            }
            Source::File(path) => file(path).map(Arc::new),
            Source::Chain(provider) => provider.get(unix_s + EARLY_S).map_err(|error| error.to_string()),
        }
    }

    /// The service refused these.
    pub fn invalidate(&self, refused: &Arc<Credentials>) {
        if let Source::Chain(provider) = self {
            provider.invalidate(refused);
        }
    }
}

fn file(path: &PathBuf) -> Result<Credentials, String> {
    use std::io::Read as _;
    let mut text = zeroize::Zeroizing::new(String::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| format!("cannot read the credentials in {}: {error}", path.display()))?;
    read(&text, &path.display().to_string())
        .map_err(|why| format!("the credentials in {}: {why}", path.display()))
}

/// JSON as a `credential_process` prints it, or the line that the Kinesis Video Streams producer SDK reads:
/// `CREDENTIALS id [expiration] secret [token]`.
fn read(text: &str, source: &str) -> Result<Credentials, String> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (id, expiration, secret, token) = match words[..] {
        ["CREDENTIALS", id, secret] => (id, None, secret, None),
        ["CREDENTIALS", id, expiration, secret] => (id, Some(expiration), secret, None),
        ["CREDENTIALS", id, expiration, secret, token] => (id, Some(expiration), secret, Some(token)),
        ["CREDENTIALS", ..] => return Err("expected CREDENTIALS id expiration secret token".into()),
        _ => return parse(text, Shape::Process, source),
    };
    let json = zeroize::Zeroizing::new(
        serde_json::json!({
            "Version": 1, "AccessKeyId": id, "SecretAccessKey": secret, "SessionToken": token, "Expiration": expiration,
        })
        .to_string(),
    );
    parse(&json, Shape::Process, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_file_and_nothing_secret_in_errors() {
        let line = read("CREDENTIALS AK 2026-01-01T00:00:00Z S3CRET T0KEN\n", "f").unwrap();
        assert_eq!((line.access_key_id.as_str(), line.expires_s), ("AK", Some(1_767_225_600)));
        assert_eq!((line.secret_key.expose(), line.token.unwrap().expose()), ("S3CRET", "T0KEN"));
        assert_eq!(read("CREDENTIALS AK S3CRET", "f").unwrap().expires_s, None);
        let json = r#"{"Version":1,"AccessKeyId":"AK","SecretAccessKey":"S3CRET"}"#;
        assert_eq!(read(json, "f").unwrap().secret_key.expose(), "S3CRET");
        for bad in ["", "S3CRET", "CREDENTIALS S3CRET", "CREDENTIALS AK soon S3CRET T", "{\"S3CRET\"}"] {
            let why = read(bad, "f").unwrap_err();
            assert!(!why.contains("S3CRET") && !why.is_empty(), "{why}");
        }
    }
}
