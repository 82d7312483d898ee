//! Signatures of statements: minisign's format (Ed25519 over BLAKE2b, `minisign -S`), read by the `minisign-verify` crate.
//!
//! Only prehashed signatures count, which minisign has made by default since 0.10; the older form would need the whole
//! message in memory twice and is not made any more. Several keys are trusted at once for the time of a rotation.

use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};

/// Longest public key file, in bytes.
const KEY_BYTES_MAX: u64 = 4096;
/// Longest signature, in bytes: two comments and two lines of base64.
pub const SIGNATURE_BYTES_MAX: usize = 4096;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It can't be read.
    #[error("cannot read the public key {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is none.
    #[error(
        "{path} is no minisign public key (expected the file that 'depotd keygen' or 'minisign -G' wrote as .pub): {why}"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// Why a signature doesn't count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It is none.
    #[error("this is no minisign signature: {0}")]
    Malformed(String),
    /// The key that made it is not among those trusted here, or the bytes are others.
    #[error("none of the {keys} trusted keys made this signature over these bytes")]
    Refused {
        /// Keys that were tried.
        keys: usize,
    },
}

/// Whom to trust.
#[derive(Debug, Clone, Default)]
pub struct PublicKeys(Vec<(PathBuf, PublicKey)>);

impl PublicKeys {
    /// Reads the files, each one key as minisign writes it.
    ///
    /// # Errors
    /// [`KeyError`] names the file.
    pub fn load(files: &[PathBuf]) -> Result<Self, KeyError> {
        files.iter().map(|path| Ok((path.clone(), load(path)?))).collect::<Result<_, _>>().map(Self)
    }

    /// Nobody is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which of the keys signed exactly these bytes: the file it came from.
    ///
    /// # Errors
    /// [`SignatureError`]: none of them did, or `signature` is none.
    pub fn verify(&self, bytes: &[u8], signature: &str) -> Result<&Path, SignatureError> {
        if signature.len() > SIGNATURE_BYTES_MAX {
            return Err(SignatureError::Malformed(format!("longer than {SIGNATURE_BYTES_MAX} bytes")));
        }
        let signature =
            Signature::decode(signature).map_err(|error| SignatureError::Malformed(error.to_string()))?;
        let made = |(_, key): &&(PathBuf, PublicKey)| key.verify(bytes, &signature, false).is_ok();
        let refused = SignatureError::Refused { keys: self.0.len() };
        self.0.iter().find(made).map(|(path, _)| path.as_path()).ok_or(refused)
    }
}

fn load(path: &Path) -> Result<PublicKey, KeyError> {
    use std::io::Read as _;
    let read = |source| KeyError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(KEY_BYTES_MAX).read_to_string(&mut text))
        .map_err(read)?;
    PublicKey::decode(text.trim_end())
        .map_err(|error| KeyError::Content { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by minisign 0.11: `minisign -GW`, then `minisign -Sm message`, over "hello\n".
    const KEY: &str = "untrusted comment: minisign public key 94D3FC357BC3FD3A\n\
        RWQ6/cN7NfzTlJ8SoahWw5vrJyUcSKh7vLWpo43KN5YxLix7md/h9lJs\n";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
        RUQ6/cN7NfzTlN/wk04Cx2OTHIAJp9wGEfDb3qvwh4TqOU2cVvu8BPYGQ60lLg34qGpXJOXa0iLkjnKiefRuqXO7alrSnNMaLAQ=\n\
        trusted comment: edge test\n\
        3NoQzeuDvDmSOF8Ok7xb+7/YUl7RjhcDUOA1zx5EKMTsjMfo/gwnmKa4qf3+KnfzCT550xXKUjC76yXzIO22AA==\n";

    fn keys(name: &str, text: &str) -> Result<PublicKeys, KeyError> {
        let path = std::env::temp_dir().join(format!("edge-release-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let keys = PublicKeys::load(std::slice::from_ref(&path));
        std::fs::remove_file(&path).unwrap();
        keys
    }

    #[test]
    fn what_is_no_key_is_refused_by_name() {
        for text in ["", "nothing", "untrusted comment: x\nAAAA"] {
            let error = keys("bad", text).unwrap_err().to_string();
            assert!(error.contains("bad is no minisign public key"), "{error}");
        }
        let error = PublicKeys::load(&["/does/not/exist".into()]).unwrap_err().to_string();
        assert!(error.contains("/does/not/exist"), "{error}");
    }

    #[test]
    fn minisign_s_own_signature_counts_for_its_bytes_only() {
        let keys = keys("good", KEY).unwrap();
        assert!(keys.verify(b"hello\n", SIGNATURE).unwrap().ends_with(keys.0[0].0.file_name().unwrap()));
        let refused = Err(SignatureError::Refused { keys: 1 });
        assert_eq!(keys.verify(b"hello", SIGNATURE), refused);
        // The trusted comment is signed, too.
        assert_eq!(keys.verify(b"hello\n", &SIGNATURE.replace("edge test", "edge best")), refused);
        assert_eq!(
            PublicKeys::default().verify(b"hello\n", SIGNATURE),
            Err(SignatureError::Refused { keys: 0 })
        );
    }

    #[test]
    fn garbage_is_no_signature() {
        let keys = PublicKeys::default();
        assert!(matches!(keys.verify(b"x", "y"), Err(SignatureError::Malformed(_))));
        let long = "y".repeat(SIGNATURE_BYTES_MAX + 1);
        assert!(matches!(keys.verify(b"x", &long), Err(SignatureError::Malformed(_))));
    }
}
