//! Passwords and keys: read from files, wiped when dropped, never printed.
//!
//! Owns: the bytes of a secret. Invariant: `Debug` shows `***`; there is no `Display` and no `Serialize`.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }
    /// The secret itself, for the protocol that needs it. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a secret could not be read. Never shows the content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file can't be opened or read.
    #[error("cannot read the secret in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its content can't be a secret.
    #[error("{} holds no secret: expected one line of UTF-8 text, at most {SECRET_BYTES_MAX} bytes", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// The longest secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 16 * 1024;

/// Where the secret named `name` in a configuration lies: an absolute path as it is; a bare name in the folder where
/// systemd put the unit's credentials (`LoadCredential=`), else in `/etc/edge`.
pub fn secret_path(name: &Path) -> PathBuf {
    if name.is_absolute() {
        return name.to_owned();
    }
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join(name));
    credential.filter(|path| path.exists()).unwrap_or_else(|| Path::new("/etc/edge").join(name))
}

/// Reads the first line of the file `name` (see [`secret_path`]), less its line end.
///
/// # Errors
/// [`SecretError`] if it can't be read, is empty, not UTF-8, or longer than [`SECRET_BYTES_MAX`].
pub fn read_secret(name: &Path) -> Result<Secret, SecretError> {
    let path = secret_path(name);
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    std::fs::File::open(&path)
        .and_then(|file| file.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| SecretError::Read { path: path.clone(), source })?;
    let text = std::str::from_utf8(&bytes).ok().filter(|t| t.len() <= SECRET_BYTES_MAX);
    match text.map(|t| t.trim_end_matches(['\n', '\r'])) {
        Some(line) if !line.is_empty() && !line.contains(['\n', '\0']) => Ok(Secret::new(line.to_owned())),
        _ => Err(SecretError::Content { path }),
    }
}
