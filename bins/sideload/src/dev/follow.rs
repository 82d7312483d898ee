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
        // A line that was cut in its middle comes again with the next connection.
        let Ok(entry) = serde_json::from_str::<Value>(&line) else {
            log::debug!("no entry of a log: {line}");
            continue;
        };
        if let Some(at) = entry.get("seq").or(entry.get("next")).and_then(Value::as_str) {
            *position = Some(at.to_owned());
        }
        if !tell.send(Told::Entry(entry)) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc::sync_channel};

    use mio::{Poll, Token, Waker};

    use super::*;
    use crate::client::testing::Server;

    #[test]
    fn a_new_connection_goes_on_behind_the_last_line() {
        const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";
        let server = Server::start("follow", 3, |peer, number| {
            let asked = peer.request().unwrap().line;
            let since = ["since=7.1 ", "since=7.3 ", "since=9.1 "][number];
            assert!(asked.contains("follow=1&") && asked.contains(since), "{asked}");
            match number {
                // The second line is cut in its middle: it comes once more.
                0 => peer.send(format!("{OK}{{\"seq\":\"7.2\"}}\n\n{{\"seq\":\"7.3\"}}\n{{\"seq\":\"7.")),
                1 => peer.send(format!(
                    "{OK}{{\"gap\":0,\"restarted\":true,\"next\":\"9.0\"}}\n{{\"seq\":\"9.1\"}}\n"
                )),
                _ => {
                    peer.send(format!("{OK}{{\"seq\":\"9.2\"}}\n"));
                    peer.head();
                }
            }
        });
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let (sender, told) = sync_channel(4);
        let target = server.target.clone();
        let follower = std::thread::spawn(move || run(&target, Some("7.1".into()), &Tell { sender, waker }));
        let mut seqs = Vec::new();
        let mut lost = 0;
        while seqs.len() < 5 {
            match told.recv_timeout(Duration::from_secs(20)).unwrap() {
                Told::Entry(entry) => {
                    let at = entry.get("seq").or(entry.get("next")).and_then(Value::as_str);
                    seqs.push(at.unwrap().to_owned());
                }
                Told::Lost(_) => lost += 1,
                Told::Connected => {}
            }
        }
        assert_eq!((seqs, lost), (["7.2", "7.3", "9.0", "9.1", "9.2"].map(String::from).to_vec(), 2));
        drop(told);
        drop(follower);
        drop(server);
    }
}
