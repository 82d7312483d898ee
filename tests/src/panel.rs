//! A control panel that writes down what it is told: `POST /log/` with form fields, as Python's `HTTPHandler` sends them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::env::wait_for;

/// One request: its line, headers (names in lower case) and form fields.
#[derive(Clone, Debug)]
pub struct Post {
    /// `POST /log/ HTTP/1.1`
    pub line: String,
    /// Header lines.
    pub headers: BTreeMap<String, String>,
    /// Decoded form fields.
    pub fields: BTreeMap<String, String>,
}

impl Post {
    /// A field; empty when it was not sent.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// A value out of `args`, the text of a Python dict of strings and numbers; empty when it is not there.
    pub fn arg(&self, name: &str) -> String {
        let args = self.field("args");
        let inner = args.strip_prefix('{').and_then(|a| a.strip_suffix('}'));
        let inner = inner.unwrap_or_else(|| panic!("args is no dict: {args:?}"));
        let pairs = inner.split(", ").filter_map(|pair| pair.split_once(": "));
        let mut found = pairs.filter(|(key, _)| key.trim_matches('\'') == name);
        found.next().map(|(_, value)| value.trim_matches('\'').to_owned()).unwrap_or_default()
    }
}

/// A running panel.
pub struct Panel {
    /// Its port.
    pub port: u16,
    posts: Arc<Mutex<Vec<Post>>>,
    delay_ms: Arc<AtomicU64>,
}

impl Panel {
    /// Listens on a free port.
    pub fn start() -> Panel {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (posts, delay_ms) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let panel = Panel { port, posts, delay_ms };
        let (posts, delay_ms) = (Arc::clone(&panel.posts), Arc::clone(&panel.delay_ms));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (posts, delay_ms) = (Arc::clone(&posts), Arc::clone(&delay_ms));
                std::thread::spawn(move || serve(stream, &posts, &delay_ms));
            }
        });
        panel
    }

    /// `127.0.0.1:port`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How long it takes over each answer from now on.
    pub fn slow(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// All it was told.
    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    /// Waits until it was told something of which this is true.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Post) -> bool) -> Post {
        wait_for(what, Duration::from_secs(30), || self.posts().into_iter().find(|post| wanted(post)))
    }
}

fn serve(stream: TcpStream, posts: &Mutex<Vec<Post>>, delay_ms: &AtomicU64) {
    let mut writing = stream.try_clone().unwrap();
    let mut reading = BufReader::new(stream);
    while let Some(post) = read(&mut reading) {
        std::thread::sleep(Duration::from_millis(delay_ms.load(Ordering::Relaxed)));
        posts.lock().unwrap().push(post);
        if writing.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK").is_err() {
            return;
        }
    }
}

fn read(from: &mut BufReader<TcpStream>) -> Option<Post> {
    let mut line = String::new();
    from.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        from.read_line(&mut header).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
    from.read_exact(&mut body).ok()?;
    let text = String::from_utf8(body).unwrap();
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    let fields = pairs.map(|(name, value)| (decode(name), decode(value))).collect();
    Some(Post { line: line.trim_end().to_owned(), headers, fields })
}

/// Percent and plus.
fn decode(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_is_written_down_as_it_was_meant() {
        let panel = Panel::start();
        let mut stream = TcpStream::connect(crate::net::local(panel.port)).unwrap();
        let body = "msg=a+b%2Bc%C3%A4&args=%7B%27arm_id%27%3A+%27arm1%27%2C+%27bm_id%27%3A+2%7D";
        write!(stream, "POST /log/ HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let post = panel.wait("the post", |_| true);
        assert_eq!((post.line.as_str(), post.field("msg")), ("POST /log/ HTTP/1.1", "a b+cä"));
        assert_eq!(
            (post.arg("arm_id"), post.arg("bm_id"), post.arg("x")),
            ("arm1".into(), "2".into(), String::new())
        );
    }
}
