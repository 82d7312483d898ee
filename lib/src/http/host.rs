//! Whom a request is addressed to: whether its `Host` is one of the server's own names.
//!
//! A page of a stranger can give its own name the address of a server that only this machine or its network reaches, and
//! then reads that server as if it were its own (DNS rebinding). The browser still says the stranger's name in `Host`, and
//! that can't be done with an address in place of a name. Invariant: a name is known exactly or not at all; nothing is ever
//! looked up. Never: judges a request of a program that says no `Host`, for a browser always does.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Request, Response};

/// Whether the request is addressed to an address, to `localhost` or to one of `names` ([`check`] says what they look
/// like). Ports, upper case and a dot at the end make no difference. HTTP/1.0 without `Host` is addressed to nobody, and
/// passes.
#[must_use]
pub fn is_own<S: AsRef<str>>(request: &Request, names: &[S]) -> bool {
    request.header("host").is_none_or(|host| is_ours(host, names))
}

fn is_ours<S: AsRef<str>>(host: &str, names: &[S]) -> bool {
    let host = host.trim();
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split_once(']').filter(|(_, port)| port.is_empty() || is_port(port));
        return address.is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    }
    let end = host.find(':').unwrap_or(host.len());
    let (name, port) = host.split_at(end);
    let name = name.strip_suffix('.').unwrap_or(name);
    (port.is_empty() || is_port(port))
        && (name.parse::<Ipv4Addr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || names.iter().any(|own| own.as_ref().eq_ignore_ascii_case(name)))
}

/// `:` and digits; none of them mean the scheme's own port (RFC 3986 section 3.2.3).
fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

/// This machine's name as the kernel has it, its first part, and that with `.local` (mDNS).
#[must_use]
pub fn of_machine() -> Vec<String> {
    from_node(&rustix::system::uname().nodename().to_string_lossy())
}

fn from_node(node: &str) -> Vec<String> {
    let node = node.strip_suffix('.').unwrap_or(node);
    let first = node.split('.').next().unwrap_or_default();
    let names = [node.to_owned(), first.to_owned(), format!("{first}.local")];
    if first.is_empty() { Vec::new() } else { names.into() }
}

/// Checks names that a person gave: letters, digits, `-`, `_` and dots between them, at most 253 bytes; no port, no address.
///
/// # Errors
/// What is wrong, for people.
pub fn check<S: AsRef<str>>(names: &[S]) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let good = |name: &str| {
        name.len() <= 253 && name.split('.').all(|part| !part.is_empty() && part.bytes().all(plain))
    };
    match names.iter().map(AsRef::as_ref).find(|name| !good(name)) {
        None => Ok(()),
        Some(name) => Err(format!(
            "expected names of this machine without port, such as \"device.example.org\", found {name:?} (addresses and \
             localhost need not be named)"
        )),
    }
}

/// The answer to a request that is not ours; `key` is where names are added to the configuration.
#[must_use]
pub fn refusal(key: &str) -> Response {
    let why = format!(
        "the name in Host is not one of this server's; ask it by its address or as localhost, or add the name to {key} in \
         its configuration"
    );
    Response::text(403, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [&str; 0] = [];

    #[test]
    fn addresses_and_localhost_are_anybodys() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8555",
            "10.0.0.7:80",
            "192.168.1.4:",
            "[::1]",
            "[::1]:8555",
            "[FE80::1]:6000",
            "localhost",
            "LocalHost:8555",
            "localhost.",
            "localhost.:8555",
            " localhost:1 ",
        ] {
            assert!(is_ours(host, &NONE), "{host:?}");
        }
    }

    #[test]
    fn names_of_strangers_are_not() {
        for host in [
            "",
            ":8555",
            ".",
            "evil.example",
            "evil.example:8555",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.evil.example",
            "127.0.0.1:8555.evil.example",
            "127.0.0.1:8555:1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "localhost:80x",
            "localhost..",
            "localhost:80@evil.example",
            "::1",
            "[::1",
            "[::1]evil.example",
            "[::1]:8x",
            "[evil.example]",
            "[127.0.0.1]",
            "[]",
            "local host",
        ] {
            assert!(!is_ours(host, &NONE), "{host:?}");
            assert!(!is_ours(host, &["device"]), "{host:?}");
        }
    }

    #[test]
    fn names_that_were_given_are_taken_whole() {
        let names = ["device", "Cam.Example.org"];
        for host in ["device", "DEVICE:6000", "device.", "cam.example.ORG:1", "cam.example.org.:1"] {
            assert!(is_ours(host, &names), "{host:?}");
        }
        for host in
            ["device.evil.example", "evildevice", "example.org", "x.cam.example.org", "device:", "devic"]
        {
            assert_eq!(is_ours(host, &names), host == "device:", "{host:?}");
        }
        assert_eq!(from_node("box.site.example"), ["box.site.example", "box", "box.local"]);
        assert_eq!(from_node("box"), ["box", "box", "box.local"]);
        assert!(from_node("").is_empty() && from_node(".").is_empty());
        assert!(!of_machine().iter().any(|name| name.is_empty() || name.starts_with('.')));
    }

    #[test]
    fn requests_without_a_host_pass() {
        let asked = |head: &[u8]| {
            let now = std::time::Instant::now();
            let mut conn = crate::http::Conn::new(crate::http::Limits::default(), now);
            conn.received(head, now);
            match conn.next(now) {
                Some(crate::http::ConnEvent::Head(request)) => is_own(&request, &["device"]),
                other => panic!("{other:?}"),
            }
        };
        assert!(asked(b"GET / HTTP/1.0\r\n\r\n"));
        assert!(asked(b"GET / HTTP/1.1\r\nHost: Device:80\r\n\r\n"));
        assert!(!asked(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"));
        assert!(!asked(b"GET / HTTP/1.1\r\nHost:\r\n\r\n"));
    }

    #[test]
    fn names_of_the_configuration_are_names() {
        assert_eq!(check(&["device", "a-b_c.example.org", "10.0.0.7"]), Ok(()));
        for bad in
            ["", ".", "a.", "a..b", "a b", "device:80", "http://device", "*", "[::1]", "ü", &"a".repeat(254)]
        {
            assert!(check(&[bad]).is_err_and(|why| why.contains(&format!("{bad:?}"))), "{bad}");
        }
        let answer = refusal("[web] hosts");
        assert_eq!(answer.status, 403);
        assert!(String::from_utf8_lossy(&answer.body).contains("add the name to [web] hosts in"));
    }
}
