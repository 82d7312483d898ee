//! The one line a save: `saved app.py -> 3 files, 4.00 KB -> restarted -> first line after 180 ms`. Pure.
//!
//! Invariant: it is written once per save: when the first line of the new process has come, or its time is over.

use std::{
    collections::VecDeque,
    path::Path,
    time::{Duration, Instant},
};

use super::{debounce::Batch, push::Effect};
use crate::{output, sync};

/// So long a restarted application is waited for, to print something.
const FIRST_LINE_MAX: Duration = Duration::from_secs(3);
/// Lines whose time of arrival is remembered: the first one may come before the answer to the commit.
const ARRIVALS_MAX: usize = 1024;

/// A position "E.N" of the log.
pub(super) type Position = (u64, u64);

/// Waits for the first line of a new process.
#[derive(Debug, Default)]
pub struct Reporter {
    arrivals: VecDeque<(Position, Instant)>,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    text: String,
    since: Instant,
    behind: Position,
    until: Instant,
}

/// Reads "E.N".
pub(super) fn position(text: &str) -> Option<Position> {
    let (epoch, number) = text.split_once('.')?;
    Some((epoch.parse().ok()?, number.parse().ok()?))
}

impl Reporter {
    /// A sync ended well: the line, or `None` when it waits for the first line of the log.
    pub fn done(
        &mut self,
        top: &Path,
        batch: &Batch,
        report: &sync::Report,
        effect: &Effect,
        now: Instant,
    ) -> Option<String> {
        let mut text = format!("{} -> {}", subject(top, batch), amount(report));
        match effect {
            Effect::Unchanged => {}
            Effect::None => text.push_str(" -> running"),
            Effect::Signalled(name) => text.push_str(&format!(" -> SIG{name} after {}", since(batch, now))),
            Effect::Restarted(log) => {
                text.push_str(" -> restarted");
                let Some(behind) = log.as_deref().and_then(position) else { return Some(text) };
                if let Some((_, at)) = self.arrivals.iter().find(|(seq, _)| is_behind(*seq, behind)) {
                    text.push_str(&format!(" -> first line after {}", since(batch, *at)));
                    return Some(text);
                }
                self.waiting =
                    Some(Waiting { text, since: batch.since, behind, until: now + FIRST_LINE_MAX });
                return None;
            }
        }
        Some(text)
    }

    /// The application printed a line: what to print before it.
    pub fn line(&mut self, seq: &str, now: Instant) -> Option<String> {
        let seq = position(seq)?;
        if self.arrivals.len() == ARRIVALS_MAX {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back((seq, now));
        let Waiting { text, since, .. } = self.waiting.take_if(|waiting| is_behind(seq, waiting.behind))?;
        let ms = now.saturating_duration_since(since).as_millis() as u64;
        Some(format!("{text} -> first line after {}", output::duration(ms)))
    }

    /// When [`Reporter::give_up`] has something to say.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.until)
    }

    /// The line of a save whose process prints nothing, once its time is over, or at once for a further save.
    pub fn give_up(&mut self, now: Option<Instant>) -> Option<String> {
        let waiting = self.waiting.take_if(|waiting| now.is_none_or(|now| now >= waiting.until))?;
        Some(format!("{} -> no line yet", waiting.text))
    }
}

fn is_behind(seq: Position, behind: Position) -> bool {
    seq.0 == behind.0 && seq.1 > behind.1
}

fn since(batch: &Batch, at: Instant) -> String {
    output::duration(at.saturating_duration_since(batch.since).as_millis() as u64)
}

/// `saved app.py`, `saved app.py and 2 more`.
pub fn subject(top: &Path, batch: &Batch) -> String {
    let saved = if batch.saved.is_empty() { &batch.carried } else { &batch.saved };
    let Some(mut paths) = saved.paths() else { return "all files".into() };
    let Some(first) = paths.next() else { return "once more".into() };
    let name = output::visible(&first.strip_prefix(top).unwrap_or(first).display().to_string());
    match paths.count() {
        0 => format!("saved {name}"),
        more => format!("saved {name} and {more} more"),
    }
}

fn amount(report: &sync::Report) -> String {
    if report.unchanged {
        return "nothing changed".into();
    }
    let mut text = output::count(report.changed, "file");
    if report.deleted > 0 {
        text.push_str(&format!(", {} deleted", report.deleted));
    }
    format!("{text}, {}", edge::text::bytes(report.content_bytes))
}

#[cfg(test)]
mod tests {
    use super::{super::debounce::Changes, *};

    #[test]
    fn one_line_a_save() {
        let t0 = Instant::now();
        let ms = Duration::from_millis;
        let top = Path::new("/app");
        let batch =
            Batch { saved: Changes::one("/app/app.py".into()), carried: Changes::default(), since: t0 };
        let report = sync::Report { changed: 3, content_bytes: 4096, ..sync::Report::default() };
        let mut reporter = Reporter::default();
        let restarted = Effect::Restarted(Some("7.9".into()));
        assert_eq!(reporter.done(top, &batch, &report, &restarted, t0 + ms(90)), None);
        assert_eq!(reporter.line("7.9", t0 + ms(100)), None);
        let expected = "saved app.py -> 3 files, 4.00 KB -> restarted -> first line after 180 ms";
        assert_eq!(reporter.line("7.10", t0 + ms(180)).as_deref(), Some(expected));
        assert_eq!(reporter.line("7.11", t0 + ms(181)), None);
        // The line was faster than the answer.
        let restarted = Effect::Restarted(Some("7.10".into()));
        let said = reporter.done(top, &batch, &report, &restarted, t0 + ms(190)).unwrap();
        assert!(said.ends_with("first line after 181 ms"), "{said}");
        // It prints nothing.
        let restarted = Effect::Restarted(Some("7.11".into()));
        assert_eq!(reporter.done(top, &batch, &report, &restarted, t0 + ms(200)), None);
        assert_eq!(reporter.give_up(Some(t0 + ms(201))), None);
        let late = reporter.deadline().unwrap();
        assert!(reporter.give_up(Some(late)).unwrap().ends_with("restarted -> no line yet"));
        let report = sync::Report { unchanged: true, ..sync::Report::default() };
        let said = reporter.done(top, &batch, &report, &Effect::Unchanged, t0).unwrap();
        assert_eq!(said, "saved app.py -> nothing changed");
    }
}
