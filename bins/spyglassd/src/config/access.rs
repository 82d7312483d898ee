//! Who may watch: the password file, and where outputs may listen.
//!
//! Owns: the users. Invariants: an output listens elsewhere than on the loopback addresses only with a password file, or
//! when the file says that anybody may watch; a password is never shown. Never: opens a socket.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use edge::config::Secret;

/// Most users.
const USERS_MAX: usize = 256;
/// Largest password file, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Names and passwords.
#[derive(Debug, Clone)]
pub struct Users(Vec<(String, Secret)>);

impl Users {
    /// Reads lines `user:password`; blank lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// In words, without any password.
    pub fn load(name: &Path) -> Result<Users, String> {
        use std::io::Read as _;
        let path = edge::config::secret_path(name);
        let mut text = String::new();
        std::fs::File::open(&path)
            .and_then(|f| f.take(FILE_BYTES_MAX).read_to_string(&mut text))
            .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        Users::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
    }

    fn parse(text: &str) -> Result<Users, String> {
        let mut users: Vec<(String, Secret)> = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = || format!("line {}: expected user:password", n + 1);
            let (user, password) = line.split_once(':').ok_or_else(wrong)?;
            if user.is_empty() || password.is_empty() || user.chars().any(char::is_control) {
                return Err(wrong());
            }
            if users.iter().any(|(known, _)| known == user) {
                return Err(format!("line {}: the user {user:?} is there twice", n + 1));
            }
            users.push((user.to_owned(), Secret::new(password.to_owned())));
        }
        match users.len() {
            0 => Err("expected at least one line user:password".to_owned()),
            n if n > USERS_MAX => Err(format!("{n} users: expected at most {USERS_MAX}")),
            _ => Ok(Users(users)),
        }
    }

    /// Whether this is a user's password. Takes the same time whatever is wrong with it.
    #[must_use]
    pub fn check(&self, user: &str, password: &str) -> bool {
        let mut good = false;
        for (name, secret) in &self.0 {
            let same = same(name.as_bytes(), user.as_bytes())
                & same(secret.expose().as_bytes(), password.as_bytes());
            good |= same;
        }
        good
    }

    /// All of them, for a server that checks by itself.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(user, secret)| (user.as_str(), secret))
    }
}

/// Compares without an early end; the length may be learned.
fn same(ours: &[u8], theirs: &[u8]) -> bool {
    let differ = ours.iter().zip(theirs.iter()).fold(0u8, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(differ) == 0 && ours.len() == theirs.len()
}

/// An address to listen on, `host:port`; checked against what [`Users`] allow.
///
/// # Errors
/// What was expected, in words.
pub fn listen(text: &str, guarded: bool) -> Result<SocketAddr, String> {
    let mut found =
        text.to_socket_addrs().map_err(|e| format!("expected address:port, found {text:?} ({e})"))?;
    let address = found.next().ok_or_else(|| format!("expected address:port, found {text:?}"))?;
    if !is_loopback(address.ip()) && !guarded {
        return Err(format!(
            "listening on {address} lets everybody who reaches it watch: set access.password-file, or say \
             access.allow-anonymous = true if that is meant"
        ));
    }
    Ok(address)
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_and_checked() {
        let users = Users::parse("# who\n\nanna:a:b\nbert: x \n").unwrap();
        assert!(users.check("anna", "a:b") && users.check("bert", " x"));
        for (user, password) in [("anna", "a"), ("anna", "a:bc"), ("ann", "a:b"), ("bert", "a:b"), ("", "")] {
            assert!(!users.check(user, password), "{user} {password}");
        }
        assert!(!format!("{users:?}").contains("a:b"));
        for (text, word) in
            [("", "at least one"), ("anna\n", "line 1"), ("a:b\na:c", "twice"), (":x", "line 1")]
        {
            let error = Users::parse(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn elsewhere_than_here_needs_a_guard() {
        assert!(listen("127.0.0.1:0", false).is_ok() && listen("[::1]:1", false).is_ok());
        for address in ["0.0.0.0:8554", "[::]:8554", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            assert!(listen(address, false).unwrap_err().contains("allow-anonymous"));
            assert!(listen(address, true).is_ok());
        }
        assert!(listen("8554", true).unwrap_err().contains("address:port"));
    }
}
