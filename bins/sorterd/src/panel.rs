//! The control panel: what the pipeline does goes there as log lines, in the form of Python's `logging.HTTPHandler`.
//!
//! Owns: the thread `sorter-panel` and a bounded queue. Invariants: nobody waits for the panel; lines arrive in order, and
//! while the panel is away they wait until the queue is full, then the newest are dropped and counted.

use std::fmt::Write as _;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use edge::log::Throttle;
use edge::retry::Backoff;

use crate::message::Session;

/// The name of the logger, as the panel knows it.
const LOGGER: &str = "SORTERBOT";
const LOG_EVERY: Duration = Duration::from_secs(60);
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the line is about; its number tells the panel how far the pipeline is (`bm_id`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Received = 2,
    Predicted = 3,
    Saving = 4,
    Written = 5,
    Uploaded = 6,
    Processed = 7,
    CommandsStarted = 8,
    BoxesRetrieved = 9,
    Stitching = 10,
    Drawn = 11,
    Stitched = 12,
    Saved = 13,
    CoordinatesDone = 14,
    Grouped = 15,
    CommandsDone = 16,
}

impl Step {
    /// The line's text.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Received => "Image received.",
            Self::Predicted => "Bounding boxes predicted.",
            Self::Saving => "Saving bounding boxes.",
            Self::Written => "Bounding boxes written to the database.",
            Self::Uploaded => "Image uploaded.",
            Self::Processed => "Image processed.",
            Self::CommandsStarted => "Command generation started.",
            Self::BoxesRetrieved => "Bounding boxes retrieved.",
            Self::Stitching => "Stitching started.",
            Self::Drawn => "Bounding boxes drawn.",
            Self::Stitched => "Images stitched.",
            Self::Saved => "Stitched image saved.",
            Self::CoordinatesDone => "Absolute coordinates calculated.",
            Self::Grouped => "Items grouped.",
            Self::CommandsDone => "Command generation finished.",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub level: log::Level,
    pub text: String,
    pub session: Session,
    /// The pulse width of a picture, `after`, `before` or `comm_gen`.
    pub kind: String,
    pub step: Option<Step>,
    /// Seconds since 1970.
    pub created: f64,
    pub at: &'static Location<'static>,
}

impl Line {
    /// The body of its request.
    #[must_use]
    pub fn form(&self) -> String {
        let mut args = format!(
            "{{'arm_id': '{}', 'session_id': '{}', 'log_type': '{}'",
            self.session.arm, self.session.session, self.kind
        );
        if let Some(step) = self.step {
            // Writing to a String can't fail.
            let _ = write!(args, ", 'bm_id': {}", step as u8);
        }
        args.push('}');
        let level = match self.level {
            log::Level::Error => "ERROR",
            log::Level::Warn => "WARNING",
            log::Level::Info => "INFO",
            _ => "DEBUG",
        };
        let fields = [
            ("name", LOGGER),
            ("levelname", level),
            ("msg", &self.text),
            ("created", &format!("{:.6}", self.created)),
            ("asctime", &asctime(self.created)),
            ("pathname", self.at.file()),
            ("lineno", &self.at.line().to_string()),
            ("args", &args),
        ];
        let pairs: Vec<String> =
            fields.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
        pairs.join("&")
    }
}

/// As Python's `logging` writes it: local time, milliseconds after a comma.
fn asctime(created: f64) -> String {
    let ms = (created * 1000.0) as i64;
    let seconds = ms.div_euclid(1000);
    let local = time::OffsetDateTime::from_unix_timestamp(seconds + edge::clock::local_offset_s(seconds));
    let Ok(t) = local else { return String::new() };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02},{:03}",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        ms.rem_euclid(1000)
    )
}

/// As Python's `urllib.parse.urlencode` does it.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(b)),
            b' ' => out.push('+'),
            // Writing to a String can't fail.
            _ => drop(write!(out, "%{b:02X}")),
        }
    }
    out
}

/// Counters that the thread and the status share.
#[derive(Debug, Default)]
pub struct Counts {
    pub sent: AtomicU64,
    pub dropped: AtomicU64,
    pub refused: AtomicU64,
}

/// The way to the panel; without a host every line is thrown away.
#[derive(Debug, Default)]
pub struct Panel {
    queue: Option<SyncSender<Line>>,
    pub counts: Arc<Counts>,
    /// Nobody waits for what is left.
    ended: Arc<AtomicBool>,
}

impl Drop for Panel {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Panel {
    /// Lines go to `http://<host>/log/`; "" for nowhere.
    ///
    /// # Errors
    /// The system has no thread.
    pub fn start(host: &str, queue_max: usize, timeout: Duration) -> std::io::Result<Self> {
        let mut panel = Self::default();
        if host.is_empty() {
            return Ok(panel);
        }
        let (queue, lines) = mpsc::sync_channel(queue_max);
        let url = if host.contains("://") {
            format!("{}/log/", host.trim_end_matches('/'))
        } else {
            format!("http://{host}/log/")
        };
        let agent = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(timeout))
            .max_idle_connections(1)
            .user_agent("sorterd")
            .build()
            .new_agent();
        let (counts, ended) = (Arc::clone(&panel.counts), Arc::clone(&panel.ended));
        let sender = Sender { url, agent, counts, ended };
        std::thread::Builder::new().name("sorter-panel".into()).spawn(move || sender.run(&lines))?;
        panel.queue = Some(queue);
        Ok(panel)
    }

    /// The pipeline has passed a step.
    #[track_caller]
    pub fn tell(&self, session: &Session, kind: &str, step: Step) {
        self.line(log::Level::Info, session, kind, step.text().to_owned(), Some(step));
    }

    /// Tells that a picture is uploaded; `key` is `<arm>/<session>/<name>`, as it was appended.
    #[track_caller]
    pub fn tell_uploaded(&self, key: &str) {
        let mut parts = key.split('/');
        if let (Some(arm), Some(session), Some(name)) = (parts.next(), parts.next(), parts.next())
            && let Ok(session) = Session::new(arm, session)
        {
            let kind = match name.strip_suffix(".jpg") {
                Some("original_stitch") => "before",
                Some(other) if other.starts_with("after_") => "after",
                Some(base) => base,
                None => name,
            };
            self.tell(&session, kind, Step::Uploaded);
        }
    }

    /// Something went wrong.
    #[track_caller]
    pub fn warn(&self, session: &Session, kind: &str, text: &str) {
        self.line(log::Level::Warn, session, kind, text.to_owned(), None);
    }

    #[track_caller]
    fn line(&self, level: log::Level, session: &Session, kind: &str, text: String, step: Option<Step>) {
        if self.queue.is_some() {
            let created = edge::clock::unix_ns() as f64 / 1e9;
            let (session, kind, at) = (session.clone(), kind.to_owned(), Location::caller());
            self.send(Line { level, text, session, kind, step, created, at });
        }
    }

    /// Hands a line on; never waits.
    fn send(&self, line: Line) {
        if let Some(queue) = &self.queue
            && queue.try_send(line).is_err()
        {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Sender {
    url: String,
    agent: ureq::Agent,
    counts: Arc<Counts>,
    ended: Arc<AtomicBool>,
}

impl Sender {
    fn run(self, lines: &Receiver<Line>) {
        let mut throttle = Throttle::new(LOG_EVERY);
        let mut backoff = Backoff::new(RETRY.0, RETRY.1, Duration::ZERO);
        let mut rng = fastrand::Rng::new();
        while let Ok(line) = lines.recv() {
            let form = line.form();
            loop {
                let sent = self
                    .agent
                    .post(&self.url)
                    .header("Content-Type", "application/x-www-form-urlencoded")
                    .send(form.as_bytes());
                let now = Instant::now();
                match sent {
                    Ok(answer) if answer.status().is_success() || answer.status().is_redirection() => {
                        backoff.connected(now);
                        self.counts.sent.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Ok(answer) => {
                        self.counts.refused.fetch_add(1, Ordering::Relaxed);
                        if let Some(held) = throttle.event(now) {
                            let status = answer.status();
                            log::warn!(
                                "the control panel answers {status} at {}; the line is dropped ({held} more since)",
                                self.url
                            );
                        }
                        break;
                    }
                    Err(error) => {
                        if let Some(held) = throttle.event(now) {
                            let why = edge::log::chain(&error);
                            log::warn!(
                                "the control panel can't be reached at {}: {why}; lines wait ({held} more since)",
                                self.url
                            );
                        }
                        // A reload has made another; this one may wait for a panel that is gone for good.
                        if self.ended.load(Ordering::Relaxed) {
                            return;
                        }
                        std::thread::sleep(backoff.next_delay(now, &mut rng));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_python_would_send() {
        let line = Line {
            level: log::Level::Warn,
            text: "50 % of \"ä\" + é/x~".into(),
            session: Session::new("arm1", "s12").unwrap(),
            kind: "1500".into(),
            step: Some(Step::Predicted),
            created: 1_600_000_000.123_456,
            at: Location::caller(),
        };
        let form = line.form();
        assert!(form.starts_with("name=SORTERBOT&levelname=WARNING&msg=50+%25+of+%22%C3%A4%22+%2B+%C3%A9%2Fx~&created=1600000000.123456&asctime=20"), "{form}");
        assert!(form.ends_with("&args=%7B%27arm_id%27%3A+%27arm1%27%2C+%27session_id%27%3A+%27s12%27%2C+%27log_type%27%3A+%271500%27%2C+%27bm_id%27%3A+3%7D"), "{form}");
        assert!(form.contains("%2C123&pathname=") && form.contains("panel.rs&lineno="), "{form}");
    }

    #[test]
    fn nobody_waits_for_a_panel_that_does_not_answer() {
        let session = Session::new("a", "b").unwrap();
        Panel::default().tell(&session, "1", Step::Received);
        // It accepts and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = silent.local_addr().unwrap().to_string();
        let panel = Panel::start(&host, 2, Duration::from_secs(60)).unwrap();
        let began = Instant::now();
        for _ in 0..10 {
            panel.tell(&session, "1", Step::Received);
        }
        assert!(began.elapsed() < Duration::from_secs(5));
        // Two wait; a third may be with the thread.
        assert!((7..=8).contains(&panel.counts.dropped.load(Ordering::Relaxed)));
    }
}
