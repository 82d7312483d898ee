//! Connection strings: `postgresql://user:password@host:port/database?sslmode=…`, as libpq reads them.
//!
//! Invariants: nothing here that is shown (`Debug`, [`Address::name`], an error) has the password in it, nor any part of
//! a string that could not be understood, since that may be a password that was not encoded.

use std::path::PathBuf;
use std::time::Duration;

use edge::config::Secret;
use edge::http::uri::percent_decode;

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or an IP address (without brackets), by TCP.
    Net(String),
    /// The folder of a Unix socket.
    Socket(PathBuf),
}

/// Whether the connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server can; it may be anybody.
    #[default]
    Prefer,
    /// Always; it may be anybody, unless there is a CA file.
    Require,
    /// Always, with a server that proves its name by a certificate.
    VerifyFull,
}

/// What a connection string says, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub password: Option<Secret>,
    pub database: String,
    pub ssl: SslMode,
    /// `sslrootcert`: the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// `connect_timeout`
    pub connect_timeout: Option<Duration>,
    pub application: String,
}

impl Address {
    /// Reads a connection string.
    ///
    /// # Errors
    /// In words: what was expected. Never says what was found.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.trim();
        let rest = rest.strip_prefix("postgresql://").or_else(|| rest.strip_prefix("postgres://"));
        let rest = rest.ok_or("expected postgresql://user:password@host:port/database")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // The login ends at the last @, so that one within a password does no harm.
        let (login, place) = match rest.rfind('@') {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => ("", rest),
        };
        let (host, database) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = split_port(host)?;
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(decode(password, "password")?)),
            None => (login, None),
        };
        let mut address = Self {
            host: Host::Net(String::new()),
            port: 5432,
            user: decode(user, "user")?,
            password: password.filter(|p| !p.is_empty()).map(Secret::new),
            database: decode(database, "database")?,
            ssl: SslMode::default(),
            ca_file: None,
            connect_timeout: None,
            application: "sorterd".into(),
        };
        address.set("host", decode(host, "host")?)?;
        address.set("port", port.to_owned())?;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or("expected key=value after the ?, joined by &")?;
            address.set(key, decode(value, "value after the ?")?)?;
        }
        address.defaults()
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "host" if value.is_empty() => {}
            "host" if value.contains(',') => {
                return Err("expected one host; lists of hosts are not supported".into());
            }
            "host" if value.starts_with('/') => self.host = Host::Socket(value.into()),
            "host" => {
                let bare = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(&value);
                self.host = Host::Net(bare.to_owned());
            }
            "port" if value.is_empty() => {}
            "port" => {
                self.port = value.parse().ok().filter(|p| *p > 0).ok_or("expected a port from 1 to 65535")?;
            }
            "user" => self.user = value,
            "password" => self.password = Some(Secret::new(value)),
            "dbname" => self.database = value,
            "application_name" => self.application = value,
            "sslrootcert" => {
                self.ca_file = Some(value.into()).filter(|v: &PathBuf| !v.as_os_str().is_empty())
            }
            "sslmode" => {
                self.ssl = match value.as_str() {
                    "disable" => SslMode::Disable,
                    "prefer" => SslMode::Prefer,
                    "require" => SslMode::Require,
                    "verify-full" => SslMode::VerifyFull,
                    _ => return Err("expected sslmode=disable, prefer, require or verify-full".into()),
                }
            }
            "connect_timeout" => {
                let seconds = value.parse().ok().filter(|s| (1..=600).contains(s));
                let seconds = seconds.ok_or("expected connect_timeout=1 to 600 (seconds)")?;
                self.connect_timeout = Some(Duration::from_secs(seconds));
            }
            // A key may be the end of a password with a question mark in it.
            _ => {
                return Err("expected only host, port, user, password, dbname, application_name, sslmode, sslrootcert and \
                            connect_timeout after the ? (a ? in a password is written %3F)"
                    .into());
            }
        }
        Ok(())
    }

    fn defaults(mut self) -> Result<Self, String> {
        if self.host == Host::Net(String::new()) {
            self.host = Host::Net("localhost".into());
        }
        if self.user.is_empty() {
            return Err("expected a user: postgresql://user:password@host:port/database".into());
        }
        if self.database.is_empty() {
            self.database.clone_from(&self.user);
        }
        let secret = self.password.as_ref().map_or("", Secret::expose);
        if [&self.user, &self.database, &self.application, secret].iter().any(|text| text.contains('\0')) {
            return Err("expected no NUL character".into());
        }
        Ok(self)
    }

    /// For messages: everything but the password.
    pub fn name(&self) -> String {
        let Self { user, database, port, .. } = self;
        match &self.host {
            Host::Net(host) if host.contains(':') => {
                format!("postgresql://{user}@[{host}]:{port}/{database}")
            }
            Host::Net(host) => format!("postgresql://{user}@{host}:{port}/{database}"),
            Host::Socket(folder) => format!("postgresql://{user}@{}:{port}/{database}", folder.display()),
        }
    }
}

/// Host and port (or nothing) of an authority.
fn split_port(text: &str) -> Result<(&str, &str), String> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or("expected a ] behind the IPv6 address")?;
        let (host, port) = text.split_at(end + 1);
        return match port.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if port.is_empty() => Ok((host, "")),
            None => Err("expected : and a port behind the IPv6 address".into()),
        };
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            Err("expected an IPv6 address in brackets: [::1]:5432".into())
        }
        Some((host, port)) => Ok((host, port)),
        None => Ok((text, "")),
    }
}

fn decode(text: &str, what: &str) -> Result<String, String> {
    let bytes = percent_decode(text)
        .ok_or_else(|| format!("expected %XX for what is encoded in the {what} (a % itself is %25)"))?;
    String::from_utf8(bytes).map_err(|_| format!("expected UTF-8 in the {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn the_originals_form_and_the_defaults() {
        let a = parse("postgresql://postgres:my%40p%3Aa%2Fss@db.example.com:5433/sorterbot\n");
        assert_eq!((a.host.clone(), a.port), (Host::Net("db.example.com".into()), 5433));
        assert_eq!((a.user.as_str(), a.database.as_str(), a.ssl), ("postgres", "sorterbot", SslMode::Prefer));
        assert_eq!(a.password.as_ref().unwrap().expose(), "my@p:a/ss");
        assert_eq!(a.name(), "postgresql://postgres@db.example.com:5433/sorterbot");
        let a = parse("postgres://u@");
        assert_eq!((a.host, a.port, a.database.as_str()), (Host::Net("localhost".into()), 5432, "u"));
        assert!(a.password.is_none());
        assert_eq!(parse("postgresql://u:p@ss@h/d").password.unwrap().expose(), "p@ss");
    }

    #[test]
    fn addresses_sockets_and_parameters() {
        assert_eq!(parse("postgresql://u@[::1]:6000/d").name(), "postgresql://u@[::1]:6000/d");
        assert_eq!(parse("postgresql://u@[fe80::1]").host, Host::Net("fe80::1".into()));
        let socket = Host::Socket("/var/run/postgresql".into());
        assert_eq!(parse("postgresql://u@%2Fvar%2Frun%2Fpostgresql/d").host, socket);
        let a = parse("postgresql:///d?host=/var/run/postgresql&user=u&password=x%26y&port=6");
        assert_eq!((a.host.clone(), a.port, a.user.as_str()), (socket, 6, "u"));
        assert_eq!(a.password.as_ref().unwrap().expose(), "x&y");
        let a = parse(
            "postgresql://u@h/d?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=7&application_name=a%20b",
        );
        assert_eq!((a.ssl, a.ca_file), (SslMode::VerifyFull, Some("/ca.pem".into())));
        assert_eq!((a.connect_timeout, a.application.as_str()), (Some(Duration::from_secs(7)), "a b"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for text in [
            "",
            "hunter2",
            "mysql://u:hunter2@h/d",
            "postgresql://:hunter2@h/d",
            "postgresql://u:hunter2@h:port/d",
            "postgresql://u:hunter2@h:0/d",
            "postgresql://u:hunter2@h:70000/d",
            "postgresql://u:hunter2@a,b/d",
            "postgresql://u:hunter2@::1/d",
            "postgresql://u:hunter2@[::1/d",
            "postgresql://u:hunter2@[::1]x/d",
            "postgresql://u:hunter2%@h/d",
            "postgresql://u:hunter2%ff@h/d",
            "postgresql://u:hunter2%00@h/d",
            "postgresql://u:what?hunter2=@h/d",
            "postgresql://u:what?hunter2@h/d",
            "postgresql://u:hunter2@h/d?sslmode=hunter2",
            "postgresql://u@h/d?sslmode=verify-ca",
            "postgresql://u@h/d?connect_timeout=hunter2",
        ] {
            let why = Address::parse(text).unwrap_err();
            assert!(why.starts_with("expected") && !why.contains("hunter2"), "{text}: {why}");
        }
        let a = parse("postgresql://u:hunter2@h/d?password=hunter2");
        assert!(!format!("{a:?} {}", a.name()).contains("hunter2"));
    }

    #[test]
    fn any_text_is_an_address_or_a_refusal() {
        let mut rng = fastrand::Rng::with_seed(4);
        let parts = [
            "postgresql://",
            "u",
            ":",
            "@",
            "/",
            "?",
            "&",
            "=",
            "%",
            "%4",
            "[",
            "]",
            "host",
            "port",
            "ü",
            ",",
        ];
        for _ in 0..20_000 {
            let text: String = (0..rng.usize(1..14)).map(|_| *rng.choice(&parts).unwrap()).collect();
            let _ = Address::parse(&format!("postgresql://{text}"));
            let _ = Address::parse(&text);
        }
    }
}
