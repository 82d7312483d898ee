//! The progress of a long transfer, as one line on stderr that is drawn over itself.
//!
//! Owns: when to draw and what. Invariants: nothing is drawn in the first half second, more often than ten times a
//! second, where stderr is no terminal, or with `--json`; the line is gone at the end.
//! Never: reads a clock outside [`Bar`].

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use edge::text;

use crate::output;

/// A transfer shorter than this shows nothing.
const QUIET: Duration = Duration::from_millis(500);
/// Between two drawings.
const EVERY: Duration = Duration::from_millis(100);
/// Blocks of the bar.
const WIDTH: u64 = 24;

/// How far a transfer is; decides, but does not draw.
#[derive(Debug)]
struct Meter {
    what: &'static str,
    done: u64,
    total: u64,
    began: Instant,
    drawn: Option<Instant>,
    /// Draw although a line was drawn just now.
    due: bool,
}

impl Meter {
    fn new(what: &'static str, total: u64, now: Instant) -> Meter {
        Meter { what, done: 0, total, began: now, drawn: None, due: false }
    }

    /// All is done, and the next line is due at once.
    fn finish(&mut self) {
        self.done = self.total;
        self.due = true;
    }

    /// The line to draw, if it is time.
    fn line(&mut self, now: Instant) -> Option<String> {
        let since_begin = now.saturating_duration_since(self.began);
        let due = self.due || self.drawn.is_none_or(|last| now.saturating_duration_since(last) >= EVERY);
        if since_begin < QUIET || !due || self.total == 0 {
            return None;
        }
        (self.drawn, self.due) = (Some(now), false);
        let done = self.done.min(self.total);
        // Of u128, since bytes times 100 may be more than 64 bits hold.
        let share =
            |of: u64| u64::try_from(u128::from(done) * u128::from(of) / u128::from(self.total)).unwrap_or(of);
        let filled = share(WIDTH);
        let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '.' }).collect();
        let rate = done as f64 / since_begin.as_secs_f64();
        let left = match rate {
            rate if rate >= 1.0 => {
                let ms = (self.total - done) as f64 / rate * 1000.0;
                format!("{} left", output::duration((ms.ceil() as u64).max(1000)))
            }
            _ => "stalled".to_owned(),
        };
        let left = if done == self.total { "waiting for the device".to_owned() } else { left };
        Some(format!(
            "{} {:>3} % [{bar}] {} of {}  {}/s  {left}",
            self.what,
            share(100),
            text::bytes(done),
            text::bytes(self.total),
            text::bytes(rate as u64),
        ))
    }
}

/// The line on stderr.
#[derive(Debug)]
pub struct Bar {
    shown: bool,
    meter: Option<Meter>,
}

impl Bar {
    /// Draws if stderr is a terminal, and not with `--json`.
    #[must_use]
    pub fn new(as_json: bool) -> Bar {
        Bar { shown: !as_json && std::io::stderr().is_terminal(), meter: None }
    }

    /// A part begins: `what` is one word (`sending`), `total` its bytes.
    pub fn start(&mut self, what: &'static str, total: u64) {
        self.end();
        self.meter = Some(Meter::new(what, total, Instant::now()));
    }

    /// So many bytes of it are done.
    pub fn set(&mut self, done: u64) {
        if let Some(meter) = &mut self.meter {
            meter.done = done;
        }
        self.draw();
    }

    /// So many more bytes of it are done.
    pub fn add(&mut self, bytes: u64) {
        if let Some(meter) = &mut self.meter {
            meter.done = meter.done.saturating_add(bytes);
        }
        self.draw();
    }

    /// Takes the line away.
    pub fn end(&mut self) {
        if self.meter.take().is_some_and(|meter| meter.drawn.is_some()) {
            // A terminal that has gone is not worth an error.
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn draw(&mut self) {
        if !self.shown {
            return;
        }
        if let Some(line) = self.meter.as_mut().and_then(|meter| meter.line(Instant::now())) {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r{line}\x1b[K").and_then(|()| stderr.flush());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}

impl crate::scan::Watcher for Bar {
    fn hashing(&mut self, done: u64, total: u64) {
        if !self.meter.as_ref().is_some_and(|meter| meter.what == "reading" && meter.total == total) {
            self.start("reading", total);
        }
        self.set(done);
    }
}

impl crate::sync::Progress for Bar {
    fn begin(&mut self, _files: usize, bytes: u64) {
        self.start("sending", bytes);
    }

    fn sent(&mut self, bytes: u64) {
        self.add(bytes);
    }

    fn committing(&mut self) {
        if let Some(meter) = &mut self.meter {
            meter.finish();
        }
        self.draw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_share_bytes_rate_and_time_left() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut meter = Meter::new("sending", 100 << 20, start);
        meter.done = 10 << 20;
        assert_eq!(meter.line(at(499)), None, "nothing in the first half second");
        meter.done = 25 << 20;
        let line = meter.line(at(1000)).unwrap();
        assert_eq!(line, "sending  25 % [######..................] 25.0 MB of 100 MB  25.0 MB/s  3 s left");
        assert!(line.len() < 100);
        assert_eq!(meter.line(at(1050)), None, "not more than ten times a second");
        meter.finish();
        let line = meter.line(at(1060)).unwrap();
        assert!(line.starts_with("sending 100 % [########################]"), "{line}");
        assert!(line.ends_with("waiting for the device"), "{line}");
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        assert_eq!(Meter::new("x", 0, start).line(later), None);
        assert!(Meter::new("x", 10, start).line(later).unwrap().ends_with("stalled"));
        let mut huge = Meter { done: u64::MAX, ..Meter::new("x", u64::MAX, start) };
        assert!(huge.line(later).unwrap().contains("100 %"));
        let mut more = Meter { done: 20, ..Meter::new("x", 10, start) };
        assert!(more.line(later).unwrap().contains("100 %"));
    }
}
