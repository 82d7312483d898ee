//! Who may publish to an ingest port: a file of names and passwords.
//!
//! A line is `name:password`, the password in clear or hashed as `mosquitto_passwd` writes it (`$7$`: PBKDF2 with
//! SHA-512, `$6$`: salted SHA-512), so that an existing file can be used. Empty lines and lines with `#` are skipped.
//! Passwords are wiped when dropped and compared in constant time; none is ever printed.

use std::{collections::HashMap, fmt, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha512};
use zeroize::Zeroizing;

use super::Error;

/// User names and passwords of the port.
#[derive(Clone, Default)]
pub struct Users {
    entries: HashMap<String, Stored>,
}

#[derive(Clone)]
enum Stored {
    Clear(Zeroizing<Vec<u8>>),
    Salted { salt: Vec<u8>, hash: Vec<u8> },
    Pbkdf2 { rounds: u32, salt: Vec<u8>, hash: Vec<u8> },
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

/// A check must not stop the loop for long.
const ROUNDS_MAX: u32 = 100_000;

impl Users {
    /// Reads a file of `name:password` lines, the password in clear or as `mosquitto_passwd` writes it (`$7$…`).
    ///
    /// # Errors
    /// Names the file and the line.
    pub fn load(path: &Path) -> Result<Users, Error> {
        let error = |reason: String| Error::Users { path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|e| error(e.to_string()))?;
        let mut entries = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = |what: &str| error(format!("line {}: {what}", number + 1));
            let (name, password) = line.split_once(':').ok_or_else(|| at("expected name:password"))?;
            if name.is_empty() || password.is_empty() {
                return Err(at("the name or the password is empty"));
            }
            let stored =
                Stored::parse(password).ok_or_else(|| at("a hash that mosquitto_passwd does not write"))?;
            if entries.insert(name.to_owned(), stored).is_some() {
                return Err(at("the name appears twice"));
            }
        }
        if entries.is_empty() {
            return Err(error("it names nobody: nobody could connect".into()));
        }
        Ok(Users { entries })
    }

    /// Whether this name has this password.
    #[must_use]
    pub fn check(&self, name: Option<&str>, password: Option<&[u8]>) -> bool {
        match (name.and_then(|name| self.entries.get(name)), password) {
            (Some(stored), Some(password)) => stored.matches(password),
            _ => false,
        }
    }
}

impl Stored {
    fn parse(text: &str) -> Option<Stored> {
        let mut parts = text.split('$');
        if parts.next() != Some("") {
            return Some(Stored::Clear(Zeroizing::new(text.as_bytes().to_vec())));
        }
        let fields: Vec<&str> = parts.collect();
        match fields[..] {
            ["6", salt, hash] => {
                Some(Stored::Salted { salt: STANDARD.decode(salt).ok()?, hash: STANDARD.decode(hash).ok()? })
            }
            ["7", rounds, salt, hash] => {
                let rounds = rounds.parse().ok().filter(|n| (1..=ROUNDS_MAX).contains(n))?;
                Some(Stored::Pbkdf2 {
                    rounds,
                    salt: STANDARD.decode(salt).ok()?,
                    hash: STANDARD.decode(hash).ok()?,
                })
            }
            // A password in clear may begin with a dollar sign, but nobody means to write a hash unknown here.
            ["1" | "2" | "3" | "4" | "5" | "6" | "7", ..] => None,
            _ => Some(Stored::Clear(Zeroizing::new(text.as_bytes().to_vec()))),
        }
    }

    fn matches(&self, password: &[u8]) -> bool {
        match self {
            Stored::Clear(stored) => same(stored, password),
            Stored::Salted { salt, hash } => {
                same(&Sha512::new().chain_update(password).chain_update(salt).finalize(), hash)
            }
            Stored::Pbkdf2 { rounds, salt, hash } => {
                pbkdf2(password, salt, *rounds).is_some_and(|derived| same(&derived, hash))
            }
        }
    }
}

/// The first block of PBKDF2-HMAC-SHA-512 (RFC 8018, 5.2), which is what mosquitto stores.
fn pbkdf2(password: &[u8], salt: &[u8], rounds: u32) -> Option<[u8; 64]> {
    let keyed = Hmac::<Sha512>::new_from_slice(password).ok()?;
    let mut block: [u8; 64] =
        keyed.clone().chain_update(salt).chain_update(1u32.to_be_bytes()).finalize().into_bytes().into();
    let mut sum = block;
    for _ in 1..rounds {
        block = keyed.clone().chain_update(block).finalize().into_bytes().into();
        sum.iter_mut().zip(block).for_each(|(s, b)| *s ^= b);
    }
    Some(sum)
}

/// Takes the same time wherever the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Users, Error> {
        let path =
            std::env::temp_dir().join(format!("edge-users-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        std::fs::write(&path, text).unwrap();
        let users = Users::load(&path);
        std::fs::remove_file(&path).unwrap();
        users
    }

    #[test]
    fn passwords_in_clear_and_hashed() {
        // The hash is of PBKDF2-HMAC-SHA-512 with the salt "NaCl"; computed with Python's hashlib.
        let users = load(
            concat!("# who\n\neva:ge:heim\n", "tom:$7$101$TmFDbA==$PBKDF2HASH\n",)
                .replace("PBKDF2HASH", PBKDF2)
                .as_str(),
        )
        .unwrap();
        assert!(users.check(Some("eva"), Some(b"ge:heim")));
        assert!(users.check(Some("tom"), Some(b"sesam")));
        for (name, password) in [
            (Some("eva"), Some(&b"geheim"[..])),
            (Some("tom"), Some(b"x")),
            (None, None),
            (Some("eva"), None),
            (Some("x"), Some(b"y")),
        ] {
            assert!(!users.check(name, password), "{name:?}");
        }
        assert_eq!(format!("{users:?}").matches("heim").count(), 0);
    }

    const PBKDF2: &str =
        "RSk+BXxa/AxZ/k9MzWtF61dxf3gF6CABp8Qi0Wbgb7RucQuPlzckoskvC+ZfoWvQTYwrcVxyfpuoRttrtWV0Dg==";

    #[test]
    fn bad_lines_are_numbered() {
        for (text, says) in [
            ("a:b\nnonsense\n", "line 2: expected name:password"),
            ("a:\n", "line 1"),
            ("a:b\na:c\n", "line 2: the name appears twice"),
            ("a:$6$xx\n", "line 1: a hash"),
            ("a:$7$0$AA==$AA==\n", "line 1: a hash"),
            ("\n", "names nobody"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
