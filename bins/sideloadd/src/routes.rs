//! From a request's head to what it asks for. Pure: it looks at nothing but the head.
//!
//! Invariants: a path that gets through is a [`RelPath`]; whatever is refused here has a status, a message for a person,
//! and no side effect. Never: answers, reads a body.

use edge::http::{Body, Request, Response, uri};
use edge::sync::RelPath;
use serde_json::{Value, json};

use crate::naive_time;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// All files under the root.
    ListFiles,
    /// A file's content.
    GetFile(RelPath),
    /// A file to be written.
    PutFile {
        /// Where.
        path: RelPath,
        /// Bytes that will come.
        size: u64,
        /// Its time, ns since 1970.
        mtime_ns: Option<i64>,
        /// Its permission bits.
        mode: Option<u32>,
    },
    /// A file to be removed.
    DeleteFile(RelPath),
    /// Run the application; `restart`: also if it runs.
    Run {
        /// Stop it first if it runs.
        restart: bool,
    },
    /// A signal for the application.
    Signal(Named),
    /// Stop the application.
    Kill,
    /// The application's output.
    Logs {
        /// Go on when the end is reached.
        follow: bool,
        /// After which position; not parsed yet.
        since: Option<String>,
        /// Only so many of the last lines.
        tail: Option<usize>,
    },
    /// All that the daemon knows of itself.
    Status,
    /// The commit in force and those before it.
    SyncInfo,
    /// A manifest comes.
    SyncBegin {
        /// Also when more than half of the files are deleted by it.
        force: bool,
    },
    /// Chunk lists come.
    SyncChunks(u64),
    /// Content comes.
    SyncData(u64),
    /// Put what was sent into force.
    SyncCommit {
        /// Which sync.
        sync: u64,
        /// Restart the application with it.
        restart: bool,
    },
    /// Forget a sync.
    SyncAbandon(u64),
    /// Back to an earlier commit.
    Rollback {
        /// Which; the one before the one in force if not given.
        to: Option<u64>,
        /// Restart the application with it.
        restart: bool,
    },
}

/// A signal that may be sent to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Without `SIG`.
    pub name: &'static str,
    /// As the kernel knows it.
    pub signal: rustix::process::Signal,
}

/// Those that make sense from outside; stopping has a command of its own that waits for the end.
pub const SIGNALS: [Named; 6] = [
    Named { name: "HUP", signal: rustix::process::Signal::HUP },
    Named { name: "INT", signal: rustix::process::Signal::INT },
    Named { name: "QUIT", signal: rustix::process::Signal::QUIT },
    Named { name: "TERM", signal: rustix::process::Signal::TERM },
    Named { name: "USR1", signal: rustix::process::Signal::USR1 },
    Named { name: "USR2", signal: rustix::process::Signal::USR2 },
];

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 400 and above.
    pub status: u16,
    /// For the person at the other end.
    pub message: String,
    /// The methods that would do, with 405.
    pub allow: &'static str,
    /// More fields of the answer.
    pub details: Vec<(&'static str, Value)>,
}

impl Refusal {
    /// With a status and a message.
    pub fn new(status: u16, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), allow: "", details: Vec::new() }
    }

    /// Another sync is in the way: the answer has `"busy": true`, by which a client knows that waiting helps.
    pub fn busy(status: u16, message: impl Into<String>) -> Refusal {
        Refusal { details: vec![("busy", true.into())], ..Refusal::new(status, message) }
    }

    /// The answer.
    pub fn response(&self) -> Response {
        let mut body = json!({ "message": self.message });
        for (name, value) in &self.details {
            body[*name] = value.clone();
        }
        let response = Response::json(self.status, &body);
        if self.allow.is_empty() { response } else { response.with("Allow", self.allow) }
    }
}

type Routed = Result<Route, Refusal>;

/// What `request` asks for.
///
/// # Errors
/// 400, 404, 405, 411 with a message.
pub fn route(request: &Request) -> Routed {
    let query = Query(uri::query(request.query()));
    let path = request.path();
    // GET's answer to HEAD: the codec leaves out the body.
    let method = if request.method == "HEAD" { "GET" } else { request.method.as_str() };
    if let Some(name) = path.strip_prefix("/files/") {
        return file(method, name, request);
    }
    if let Some(rest) = path.strip_prefix("/sync/") {
        return sync(method, rest, &query);
    }
    match (path, method) {
        ("/files", "GET") => Ok(Route::ListFiles),
        ("/application", "POST") => Ok(Route::Run { restart: query.flag("restart")? }),
        ("/application", "DELETE") => Ok(Route::Kill),
        ("/application/signal", "POST") => signal(&query),
        ("/application/logs", "GET") => Ok(Route::Logs {
            follow: query.flag("follow")?,
            since: query.get("since").map(str::to_owned),
            tail: query.number("tail")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        }),
        ("/status", "GET") => Ok(Route::Status),
        ("/sync", "GET") => Ok(Route::SyncInfo),
        ("/sync", "POST") => Ok(Route::SyncBegin { force: query.flag("force")? }),
        ("/rollback", "POST") => {
            Ok(Route::Rollback { to: query.number("to")?, restart: query.flag("restart")? })
        }
        ("/files" | "/status" | "/application/logs", _) => Err(not_allowed(method, "GET, HEAD")),
        ("/application", _) => Err(not_allowed(method, "POST, DELETE")),
        ("/application/signal" | "/rollback", _) => Err(not_allowed(method, "POST")),
        ("/sync", _) => Err(not_allowed(method, "GET, HEAD, POST")),
        _ => Err(Refusal::new(
            404,
            "there are /files, /application, /application/signal, /application/logs, /status, /sync and /rollback",
        )),
    }
}

fn not_allowed(method: &str, allow: &'static str) -> Refusal {
    Refusal { allow, ..Refusal::new(405, format!("{method} is not for this resource; it takes {allow}")) }
}

fn file(method: &str, name: &str, request: &Request) -> Routed {
    if !matches!(method, "GET" | "PUT" | "DELETE") {
        return Err(not_allowed(method, "GET, HEAD, PUT, DELETE"));
    }
    let bad = |why: String| Refusal::new(400, why);
    let bytes =
        uri::percent_decode(name).ok_or_else(|| bad("the path is not percent-encoded well".into()))?;
    let text = String::from_utf8(bytes).map_err(|_| bad("the path is no UTF-8".into()))?;
    let path = RelPath::new(&text).map_err(|refusal| bad(refusal.to_string()))?;
    match method {
        "GET" => Ok(Route::GetFile(path)),
        "DELETE" => Ok(Route::DeleteFile(path)),
        _ => {
            let mtime_ns =
                match request.header("mtime") {
                    None => None,
                    Some(text) => Some(naive_time::parse(text.trim()).ok_or_else(|| {
                        bad(format!("the header mtime is {text:?}; {}", naive_time::EXPECTED))
                    })?),
                };
            let mode = match request.header("mode") {
                None => None,
                Some(text) => Some(
                    u32::from_str_radix(text.trim(), 8).ok().filter(|m| *m <= 0o777).ok_or_else(|| {
                        bad(format!(
                            "the header mode is {text:?}; expected octal permission bits such as 755"
                        ))
                    })?,
                ),
            };
            let size = match request.body {
                Body::Length(size) => size,
                Body::None | Body::Chunked => {
                    return Err(Refusal::new(411, "a file is sent with its Content-Length"));
                }
            };
            Ok(Route::PutFile { path, size, mtime_ns, mode })
        }
    }
}

fn sync(method: &str, rest: &str, query: &Query) -> Routed {
    let (id, what) = rest.split_once('/').unwrap_or((rest, ""));
    let unknown =
        || Refusal::new(404, "there are /sync/<id>, /sync/<id>/chunks, /sync/<id>/data, /sync/<id>/commit");
    let sync = id.parse::<u64>().map_err(|_| unknown())?;
    match (what, method) {
        ("chunks", "POST") => Ok(Route::SyncChunks(sync)),
        ("data", "POST") => Ok(Route::SyncData(sync)),
        ("commit", "POST") => Ok(Route::SyncCommit { sync, restart: query.flag("restart")? }),
        ("", "DELETE") => Ok(Route::SyncAbandon(sync)),
        ("chunks" | "data" | "commit", _) => Err(not_allowed(method, "POST")),
        ("", _) => Err(not_allowed(method, "DELETE")),
        _ => Err(unknown()),
    }
}

fn signal(query: &Query) -> Routed {
    let name = query.get("name").unwrap_or_default();
    let plain = name.strip_prefix("SIG").unwrap_or(name);
    SIGNALS.into_iter().find(|s| s.name == plain).map(Route::Signal).ok_or_else(|| {
        let names = SIGNALS.map(|s| s.name).join(", ");
        Refusal::new(400, format!("name={name}: expected one of {names}; DELETE /application stops it"))
    })
}

struct Query(Vec<(String, String)>);

impl Query {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// `?name`, `?name=1` and `?name=true` are true.
    fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.get(name) {
            None | Some("0" | "false") => Ok(false),
            Some("" | "1" | "true") => Ok(true),
            Some(other) => Err(Refusal::new(400, format!("{name}={other}: expected 0 or 1"))),
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number =
            text.parse().map_err(|_| Refusal::new(400, format!("{name}={text}: expected a number")))?;
        Ok(Some(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request {
        let length = headers.iter().find(|(n, _)| *n == "Content-Length").map(|(_, v)| v.parse().unwrap());
        Request {
            method: method.into(),
            target: target.into(),
            minor: 1,
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect(),
            body: length.map_or(Body::None, Body::Length),
            keep_alive: true,
            expect_continue: false,
        }
    }

    fn status(method: &str, target: &str, headers: &[(&str, &str)]) -> u16 {
        route(&request(method, target, headers)).map_or_else(|refusal| refusal.status, |_| 200)
    }

    #[test]
    fn files_are_decoded_before_they_are_judged() {
        let path = RelPath::new("a b/ü.py").unwrap();
        let found = route(&request("GET", "/files/a%20b%2F%C3%BC.py?x=1", &[])).unwrap();
        assert_eq!(found, Route::GetFile(path.clone()));
        let headers = [("Content-Length", "3"), ("mtime", "2026-11-24T14:46:57"), ("mode", "0755")];
        let put = route(&request("PUT", "/files/a%20b/%c3%bc.py", &headers)).unwrap();
        let mtime_ns = Some(1_795_531_617_000_000_000);
        assert_eq!(put, Route::PutFile { path, size: 3, mtime_ns, mode: Some(0o755) });
        for bad in [
            "/files/",
            "/files//etc/passwd",
            "/files/%2Fetc/passwd",
            "/files/..%2fx",
            "/files/a/../b",
            "/files/a%00b",
            "/files/a%5cb",
            "/files/%ff",
            "/files/%zz",
            "/files/.sideloadd/lock",
        ] {
            for method in ["GET", "DELETE", "PUT"] {
                assert_eq!(status(method, bad, &[("Content-Length", "1")]), 400, "{method} {bad}");
            }
        }
        assert_eq!(status("PUT", "/files/a", &[]), 411);
        assert_eq!(status("PUT", "/files/a", &[("Content-Length", "0")]), 200);
        assert_eq!(
            status("PUT", "/files/a", &[("Content-Length", "1"), ("mtime", "2026-11-24T14:46:57Z")]),
            400
        );
        assert_eq!(status("PUT", "/files/a", &[("Content-Length", "1"), ("mode", "rwx")]), 400);
    }

    #[test]
    fn wrong_methods_and_resources_are_told_apart() {
        for (method, target, expected) in [
            ("POST", "/files", 405),
            ("POST", "/files/x", 405),
            ("GET", "/application", 405),
            ("PATCH", "/sync/5/data", 405),
            ("POST", "/sync/5", 405),
            ("POST", "/sync/x/data", 404),
            ("POST", "/sync/5/x", 404),
            ("GET", "/", 404),
            ("BREW", "/status", 405),
            ("HEAD", "/files", 200),
            ("POST", "/sync?force=2", 400),
            ("POST", "/rollback?to=last", 400),
            ("POST", "/application/signal?name=KILL", 400),
            ("POST", "/application/signal?name=SIGHUP", 200),
            ("POST", "/sync/18446744073709551615/commit?restart=1", 200),
        ] {
            assert_eq!(status(method, target, &[]), expected, "{method} {target}");
        }
        let refusal = route(&request("PUT", "/status", &[])).unwrap_err();
        assert!(String::from_utf8(refusal.response().body).unwrap().contains("message"));
        assert_eq!(refusal.allow, "GET, HEAD");
    }
}
