//! `logs`: what the application printed, and what the daemon did with it; follows across a lost connection.
//!
//! Invariant: the position behind the last line that was shown is where a new connection begins: no line twice, and a
//! gap is shown where the device's ring has lost lines.

use std::time::Duration;

use serde_json::Value;

use super::{ask, number, text};
use crate::client::{Client, Error, Request};
use crate::config::Settings;
use crate::output::{self, Failure, Reply, visible};

/// The device sends an empty line every 15 s: a connection that says less is dead.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Between two attempts to connect again, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// From where on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Since {
    /// A position "E.N" of the device.
    Position(String),
    /// Lines of the last so many seconds, by the device's clock.
    Seconds(u64),
}

/// `logs`
pub fn run(
    settings: &Settings,
    follow: bool,
    since: Option<&str>,
    tail: Option<u64>,
    as_json: bool,
) -> Result<Reply, Failure> {
    let target = settings.target()?;
    let since = since.map(since_of).transpose()?;
    let mut shown = Shown {
        position: match &since {
            Some(Since::Position(position)) => Some(position.clone()),
            _ => None,
        },
        not_before: match since {
            Some(Since::Seconds(ago)) => {
                let device_ms = number(&ask(settings, "GET", "/status")?, "now_ms");
                Some(timestamp(device_ms.saturating_sub(ago * 1000)))
            }
            _ => None,
        },
        tail,
        as_json,
        closed: false,
    };
    let mut pause = PAUSE_MIN;
    let mut connected = false;
    loop {
        let result = Client::connect(&target).and_then(|client| {
            pause = PAUSE_MIN;
            stream(client, follow, &mut shown, &mut connected)
        });
        match result {
            Ok(()) if shown.closed || !follow => return Ok(Reply::nothing()),
            Err(error) if !follow || !connected || !is_worth_waiting(&error) => return Err(error.into()),
            Ok(()) => eprintln!("-- the device ended the log; trying again"),
            Err(error) => eprintln!("-- {}; trying again", visible(&edge::log::chain(&error))),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What is on the screen, and so where to go on.
struct Shown {
    position: Option<String>,
    not_before: Option<String>,
    tail: Option<u64>,
    as_json: bool,
    /// The reader of our output has gone.
    closed: bool,
}

impl Shown {
    /// Path and query of the next request.
    fn path(&self, follow: bool) -> String {
        let mut query = Vec::new();
        if follow {
            query.push("follow=1".to_owned());
        }
        if let Some(position) = &self.position {
            query.push(format!("since={position}"));
        } else if let Some(tail) = self.tail {
            query.push(format!("tail={tail}"));
        }
        let mark = if query.is_empty() { "" } else { "?" };
        format!("/application/logs{mark}{}", query.join("&"))
    }

    /// Takes one line of the stream; the text to print, if any.
    fn take(&mut self, raw: &str) -> Option<String> {
        let entry: Value = serde_json::from_str(raw).unwrap_or_else(|_| serde_json::json!({ "line": raw }));
        if let Some(position) = entry.get("seq").and_then(Value::as_str) {
            self.position = Some(position.to_owned());
        } else if let Some(next) = entry.get("next").and_then(Value::as_str) {
            self.position = before(next);
        }
        let time = text(&entry, "time");
        // Both are ISO times in UTC: as texts they compare as the moments do.
        if self.not_before.as_ref().is_some_and(|limit| !time.is_empty() && time < limit.as_str()) {
            return None;
        }
        Some(if self.as_json { format!("{entry}\n") } else { format!("{}\n", line(&entry)) })
    }
}

fn stream(client: Client, follow: bool, shown: &mut Shown, connected: &mut bool) -> Result<(), Error> {
    let path = shown.path(follow);
    let mut lines = client.into_lines(Request::new("GET", &path).silence_max(SILENCE_MAX))?;
    *connected = true;
    while let Some(raw) = lines.next_line()? {
        if let Some(text) = shown.take(&raw) {
            use std::io::Write as _;
            let mut out = std::io::stdout().lock();
            if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                shown.closed = true;
                return Ok(());
            }
        }
    }
    Ok(())
}

fn is_worth_waiting(error: &Error) -> bool {
    error.is_lost_connection() || matches!(error, Error::Connect { .. } | Error::Resolve { .. })
}

/// The position just before `next`, for the device gives what comes after the position it is asked for.
fn before(next: &str) -> Option<String> {
    let (epoch, number) = next.split_once('.')?;
    let number: u64 = number.parse().ok()?;
    Some(format!("{epoch}.{}", number.saturating_sub(1)))
}

/// One entry of the log as people read it: `14:46:57.123 | text`, with `!` for stderr and `*` for what the daemon did.
#[must_use]
pub fn line(entry: &Value) -> String {
    if let Some(gap) = entry.get("gap") {
        let restarted = entry.get("restarted").and_then(Value::as_bool) == Some(true);
        let what = match gap.as_u64().filter(|_| !restarted) {
            Some(lost) => format!("{} lost: the device keeps only the newest", output::count(lost, "line")),
            None => "sideloadd was restarted; lines from before may be lost".to_owned(),
        };
        return format!("{:13}~ {what}", "");
    }
    let time = text(entry, "time");
    let clock = time.split_once('T').map_or(time, |(_, clock)| clock).trim_end_matches('Z');
    let mark = match text(entry, "stream") {
        "stderr" => '!',
        "agent" => '*',
        _ => '|',
    };
    let more = if entry.get("partial").and_then(Value::as_bool) == Some(true) { " \\" } else { "" };
    format!("{clock:<12.12} {mark} {}{more}", visible(text(entry, "line")))
}

fn since_of(given: &str) -> Result<Since, Failure> {
    let wrong = || {
        Failure::usage(format!("--since takes 30s, 10m, 2h, 1d or a position EPOCH.N, not {given:?}"))
            .fix("`sideload logs --json` shows the position of each line as \"seq\"")
    };
    if let Some((epoch, number)) = given.split_once('.') {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        return if digits(epoch) && digits(number) {
            Ok(Since::Position(given.into()))
        } else {
            Err(wrong())
        };
    }
    let unit = match given.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = given[..given.len() - 1].parse().map_err(|_| wrong())?;
    Ok(Since::Seconds(number.saturating_mul(unit).min(10 * 365 * 86_400)))
}

/// As the device writes times, so that texts can be compared.
fn timestamp(unix_ms: u64) -> String {
    output::moment(unix_ms).replace(' ', "T").trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_short_and_harmless() {
        let entry =
            json!({ "seq": "1.2", "time": "2026-11-24T14:46:57.123Z", "stream": "stdout", "line": "hi" });
        assert_eq!(line(&entry), "14:46:57.123 | hi");
        let entry = json!({ "time": "2026-11-24T14:46:57.1Z", "stream": "stderr", "line": "\u{1b}[2J", "partial": true });
        assert_eq!(line(&entry), "14:46:57.1   ! \u{fffd}[2J \\");
        assert!(line(&json!({ "gap": 3, "next": "1.9" })).contains("~ 3 lines lost"));
        for restarted in
            [json!({ "gap": null, "next": "1.9" }), json!({ "gap": 0, "restarted": true, "next": "1.9" })]
        {
            assert!(line(&restarted).contains("~ sideloadd was restarted"));
        }
        assert_eq!(line(&json!({})), "             | ");
    }

    #[test]
    fn the_next_request_begins_behind_the_last_line() {
        let mut shown =
            Shown { position: None, not_before: None, tail: Some(5), as_json: false, closed: false };
        assert_eq!(shown.path(true), "/application/logs?follow=1&tail=5");
        shown
            .take(r#"{"seq":"77.4","time":"2026-11-24T14:46:57.123Z","stream":"stdout","line":"x"}"#)
            .unwrap();
        assert_eq!(shown.path(true), "/application/logs?follow=1&since=77.4");
        shown.take(r#"{"gap":3,"next":"77.9"}"#).unwrap();
        assert_eq!(shown.path(false), "/application/logs?since=77.8");
        shown.not_before = Some(timestamp(1_795_531_617_000));
        assert_eq!(shown.take(r#"{"seq":"77.10","time":"2026-11-24T14:46:56.999Z","line":"x"}"#), None);
        assert!(shown.take(r#"{"seq":"77.11","time":"2026-11-24T14:46:57.000Z","line":"x"}"#).is_some());
        assert!(shown.take("no json").unwrap().ends_with("| no json\n"));
    }

    #[test]
    fn since_is_a_time_ago_or_a_position() {
        assert_eq!(since_of("5m").unwrap(), Since::Seconds(300));
        assert_eq!(since_of("1732459.12").unwrap(), Since::Position("1732459.12".into()));
        for wrong in ["", "5", "m", "-5m", "1.x", "1.", "5é", "yesterday"] {
            assert_eq!(since_of(wrong).unwrap_err().code, 64, "{wrong}");
        }
    }
}
