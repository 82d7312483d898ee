//! The log of the application, followed in a thread of its own over a connection of its own.
//!
//! Invariant: a new connection goes on behind the last line that was handed over: nothing is lost or doubled, and where
//! the device has lost lines it says so. Never: prints.

use std::{thread::sleep, time::Duration};

use serde_json::Value;

use super::Tell;
use crate::client::{Client, Error, Request, Target};

/// The device sends an empty line every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Between attempts to connect, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the follower has to say.
#[derive(Debug)]
pub enum Told {
    /// A line of the log, or a gap.
    Entry(Value),
    /// The log is followed (again).
    Connected,
    /// It is not, for now.
    Lost(String),
}

/// Follows from behind `position` ("E.N"), until nobody listens any more.
pub(super) fn run(target: &Target, mut position: Option<String>, tell: &Tell<Told>) {
    let mut pause = PAUSE_MIN;
    loop {
        let cause = match stream(target, &mut position, tell, &mut pause) {
            Ok(false) => return,
            Ok(true) => "the device ended the log".to_owned(),
            Err(error) => edge::log::chain(&error),
        };
        if !tell.send(Told::Lost(cause)) {
            return;
        }
        sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One connection. `false`: nobody listens.
fn stream(
    target: &Target,
    position: &mut Option<String>,
    tell: &Tell<Told>,
    pause: &mut Duration,
) -> Result<bool, Error> {
    let path = match position {
        Some(position) => format!("/application/logs?follow=1&since={position}"),
        None => "/application/logs?follow=1&tail=0".to_owned(),
    };
    let request = Request::new("GET", &path).silence_max(SILENCE_MAX);
    let mut lines = Client::connect(target)?.into_lines(request)?;
    *pause = PAUSE_MIN;
    if !tell.send(Told::Connected) {
        return Ok(false);
    }
    while let Some(line) = lines.next_line()? {
        let entry: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| serde_json::json!({ "line": line }));
        if let Some(at) = entry.get("seq").or(entry.get("next")).and_then(Value::as_str) {
            *position = Some(at.to_owned());
        }
        if !tell.send(Told::Entry(entry)) {
            return Ok(false);
        }
    }
    Ok(true)
}
