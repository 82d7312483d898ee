//! Signing: key pairs and signatures as minisign (<https://jedisct1.github.io/minisign/>) makes and takes them.
//!
//! Owns: secret keys while they are used. Invariants: a secret key or a password is never an argument, an environment
//! variable, a log line or a part of an error; the texts that held one are wiped; a key's file is `0600` before it holds
//! anything. A server that never signs has no use for this.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};
use zeroize::Zeroizing;

/// Longest secret key file, in bytes.
const KEY_BYTES_MAX: u64 = 4096;

/// The fields of a secret key: algorithms, salt, two limits, key number, key, checksum.
const KEY_LEN: usize = 6 + 32 + 16 + 8 + 64 + CHECKSUM_LEN;
const CHECKSUM_LEN: usize = 32;

/// Why there is no key or no signature.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("cannot read the secret key {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others can read it.
    #[error(
        "the secret key {path} can be read by others (mode {mode:o}): make it private (chmod 600 {path})"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is none, or the password is wrong.
    #[error("{path} can't be used as a minisign secret key: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is protected, and nobody can be asked.
    #[error(
        "{0} is protected by a password, and standard input is no terminal: name a file with --password-file"
    )]
    NoPassword(PathBuf),
    /// The password's file.
    #[error("the password")]
    Password(#[from] edge::config::SecretError),
    /// Making a key or a signature failed.
    #[error("cannot {what}: {why}")]
    Make {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
    /// A key is not written over.
    #[error("{0} exists: a key is never written over; choose another name with --out, or move it away")]
    Exists(PathBuf),
    /// A key's file.
    #[error(transparent)]
    File(#[from] edge::fs::Error),
}

/// A secret key that can sign.
pub struct Signer {
    key: SecretKey,
    path: PathBuf,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.path.display())
    }
}

impl Signer {
    /// Reads a secret key. A protected one takes its password from `password_file`, else from the terminal.
    ///
    /// # Errors
    /// [`Error`] names the file.
    pub fn load(path: &Path, password_file: Option<&Path>) -> Result<Self, Error> {
        let text = read(path)?;
        let content = |why: String| Error::Content { path: path.to_owned(), why };
        // The library's own type is a plain text that we can't wipe: the copy is as short-lived as it can be.
        let key_box = || SecretKeyBox::from_string(&text).map_err(|e| content(e.to_string()));
        if let Some(key) =
            without_checksum(&text).or_else(|| key_box().ok()?.into_unencrypted_secret_key().ok())
        {
            return Ok(Self { key, path: path.to_owned() });
        }
        let password = match password_file {
            Some(file) => Some(edge::config::read_secret(&absolute(file))?.expose().to_owned()),
            None if std::io::stdin().is_terminal() => None,
            // Garbage is told apart from a protected key by trying a password.
            None => match key_box()?.into_secret_key(Some(String::new())) {
                Err(error) if !error.to_string().contains("password") => {
                    return Err(content(error.to_string()));
                }
                Ok(key) => return Ok(Self { key, path: path.to_owned() }),
                Err(_) => return Err(Error::NoPassword(path.to_owned())),
            },
        };
        let key = key_box()?.into_secret_key(password).map_err(|error| content(error.to_string()))?;
        Ok(Self { key, path: path.to_owned() })
    }

    /// Signs the bytes; the file that minisign would have written.
    ///
    /// # Errors
    /// [`Error::Make`]
    pub fn sign(&self, bytes: &[u8], trusted_comment: &str) -> Result<String, Error> {
        let make = |why: minisign::PError| Error::Make { what: "sign", why: why.to_string() };
        let comment = "signature of a release by depotd";
        // With the public key, so that a damaged secret one is found.
        let public = PublicKey::from_secret_key(&self.key).map_err(make)?;
        let signed = minisign::sign(Some(&public), &self.key, bytes, Some(trusted_comment), Some(comment));
        Ok(signed.map_err(make)?.into_string())
    }

    /// Where it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A key without a password as `minisign -G -W` writes it up to version 0.11: its checksum is left zero, which the library
/// takes for damage.
fn without_checksum(text: &str) -> Option<SecretKey> {
    let line = text.lines().nth(1)?;
    let bytes = Zeroizing::new(base64::engine::general_purpose::STANDARD.decode(line.trim()).ok()?);
    let (head, checksum) = bytes.split_at_checked(KEY_LEN - CHECKSUM_LEN)?;
    let bare =
        checksum.len() == CHECKSUM_LEN && checksum.iter().all(|b| *b == 0) && head.get(2..4) == Some(&[0, 0]);
    if bare { SecretKey::from_bytes(&bytes).ok() } else { None }
}

/// `read_secret` takes a bare name for one in the folder of secrets; ours count from here.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn read(path: &Path) -> Result<Zeroizing<String>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    if mode & 0o077 != 0 {
        return Err(Error::Open { path: path.to_owned(), mode: mode & 0o777 });
    }
    let mut text = Zeroizing::new(String::with_capacity(KEY_BYTES_MAX as usize + 1));
    file.take(KEY_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    let end = text.trim_end().len();
    text.truncate(end);
    Ok(text)
}

/// How a new secret key is protected.
#[derive(Debug)]
pub enum Protection<'a> {
    /// By its file's mode only.
    None,
    /// By the password in this file.
    File(&'a Path),
    /// By the one that is typed at the terminal.
    Terminal,
}

/// Makes a key pair: `<name>.pub` and `<name>.key`, durable. Gives the public key's one line.
///
/// # Errors
/// [`Error::Exists`]: one of the files is there; others name theirs.
pub fn keygen(name: &Path, protection: &Protection<'_>) -> Result<(PathBuf, PathBuf, String), Error> {
    let with = |suffix: &str| {
        let mut path = name.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    };
    let (public, secret) = (with(".pub"), with(".key"));
    if let Some(there) = [&public, &secret].into_iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(Error::Exists(there.clone()));
    }
    let make = |why: minisign::PError| Error::Make { what: "make a key pair", why: why.to_string() };
    let pair = match protection {
        Protection::None => KeyPair::generate_unencrypted_keypair(),
        Protection::File(file) => {
            let password = edge::config::read_secret(&absolute(file))?;
            KeyPair::generate_encrypted_keypair(Some(password.expose().to_owned()))
        }
        Protection::Terminal => KeyPair::generate_encrypted_keypair(None),
    };
    let KeyPair { pk, sk } = pair.map_err(make)?;
    let text = Zeroizing::new(sk.to_box(None).map_err(make)?.into_string());
    write_new(&secret, text.as_bytes(), 0o600)?;
    let line = pk.to_base64();
    write_new(&public, pk.to_box().map_err(make)?.into_string().as_bytes(), 0o644)?;
    Ok((public, secret, line))
}

/// Not by a temporary file and `rename`, which would write over what is there.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    use edge::fs::context;
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::Exists(path.to_owned()));
        }
        other => other.map_err(context("create", path))?,
    };
    file.write_all(bytes).map_err(context("write", path))?;
    file.sync_all().map_err(context("fsync", path))?;
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(edge::fs::fsync_dir(folder)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge::release::PublicKeys;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("edge-sign-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_a_key_signs_its_public_key_verifies() {
        let folder = scratch("pair");
        let (public, secret, line) = keygen(&folder.join("release"), &Protection::None).unwrap();
        assert_eq!(std::fs::metadata(&secret).unwrap().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(&public).unwrap().contains(&line));
        let signature = Signer::load(&secret, None).unwrap().sign(b"statement", "about it").unwrap();
        assert!(signature.contains("trusted comment: about it"));
        let keys = PublicKeys::load(&[public]).unwrap();
        assert!(keys.verify(b"statement", &signature).is_ok());
        assert!(keys.verify(b"statemenT", &signature).is_err());
        let again = keygen(&folder.join("release"), &Protection::None);
        assert!(matches!(again, Err(Error::Exists(_))));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_protected_key_needs_its_password() {
        let folder = scratch("password");
        let (right, wrong) = (folder.join("right"), folder.join("wrong"));
        std::fs::write(&right, "correct horse\n").unwrap();
        std::fs::write(&wrong, "battery staple\n").unwrap();
        let (_, secret, _) = keygen(&folder.join("k"), &Protection::File(&right)).unwrap();
        assert!(Signer::load(&secret, Some(&right)).is_ok());
        let error = Signer::load(&secret, Some(&wrong)).unwrap_err().to_string();
        assert!(error.contains("Wrong password") && !error.contains("staple"), "{error}");
        if !std::io::stdin().is_terminal() {
            assert!(matches!(Signer::load(&secret, None), Err(Error::NoPassword(_))));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_no_key_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = scratch("junk");
        let path = folder.join("junk.key");
        std::fs::write(&path, "nothing").unwrap();
        assert!(matches!(Signer::load(&path, None), Err(Error::Open { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Signer::load(&path, None), Err(Error::Content { .. })));
        assert!(matches!(Signer::load(&folder.join("none"), None), Err(Error::Read { .. })));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
