//! The application's output: lines with sequence numbers in a ring that is bounded in bytes.
//!
//! A position is `EPOCH.N`: the epoch is this run of the daemon (Unix ms of its start), N counts its lines from 1. Who
//! asks for what comes after a position gets each line once; where lines are gone, or the epoch is another, a gap is
//! marked. Invariants: numbers have no holes within the ring; a line is at most [`LINE_BYTES_MAX`], a longer one is cut
//! and marked `partial`. Never: interprets a line.

use std::collections::VecDeque;
use std::fmt;

use serde_json::json;

/// Longest line, in bytes; what is longer is cut into several.
pub const LINE_BYTES_MAX: usize = 8 * 1024;

/// What a line costs beside its text, in bytes.
const OVERHEAD: usize = 64;

/// Which output a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The daemon: starts, exits, roll-backs.
    Agent,
}

impl Stream {
    /// As it is called in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
            Stream::Agent => "agent",
        }
    }
}

/// The last line that somebody has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The daemon's run.
    pub epoch: u64,
    /// The line; 0 is before the first.
    pub line: u64,
}

impl Position {
    /// Reads `EPOCH.N`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Position> {
        let (epoch, line) = text.split_once('.')?;
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        Some(Position { epoch: number(epoch)?, line: number(line)? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.line)
    }
}

#[derive(Debug)]
struct Line {
    time_ms: u64,
    stream: Stream,
    text: String,
    partial: bool,
}

/// A piece of the log for a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// JSON objects, a line each; empty when there is nothing new.
    pub ndjson: Vec<u8>,
    /// What the reader has seen then.
    pub next: Position,
}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    epoch: u64,
    bytes_max: usize,
    bytes: usize,
    lines: VecDeque<Line>,
    /// The number of the newest line.
    last: u64,
    /// Beginnings of lines, for each stream.
    open: [Vec<u8>; 3],
}

impl Ring {
    /// An empty ring of at most `bytes_max` bytes. `epoch`: when the daemon started, Unix ms.
    #[must_use]
    pub fn new(bytes_max: usize, epoch: u64) -> Ring {
        Ring { epoch, bytes_max, bytes: 0, lines: VecDeque::new(), last: 0, open: Default::default() }
    }

    /// The newest line.
    #[must_use]
    pub fn end(&self) -> Position {
        Position { epoch: self.epoch, line: self.last }
    }

    /// Output arrived. Each line that is complete now goes to `each`, too.
    pub fn feed(&mut self, stream: Stream, bytes: &[u8], now_ms: u64, each: &mut dyn FnMut(&str)) {
        let mut open = std::mem::take(&mut self.open[stream as usize]);
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let mut rest = text;
            while open.len() + rest.len() > LINE_BYTES_MAX {
                let (now, later) = rest.split_at(LINE_BYTES_MAX - open.len());
                open.extend_from_slice(now);
                rest = later;
                let cut = char_floor(&open);
                self.push(stream, &open[..cut], true, now_ms, each);
                open.drain(..cut);
            }
            open.extend_from_slice(rest);
            if ends {
                let text = open.strip_suffix(b"\r").unwrap_or(&open);
                self.push(stream, text, false, now_ms, each);
                open.clear();
            }
        }
        self.open[stream as usize] = open;
    }

    /// The stream has ended: what there is of its last line is a line.
    pub fn close(&mut self, stream: Stream, now_ms: u64, each: &mut dyn FnMut(&str)) {
        let open = std::mem::take(&mut self.open[stream as usize]);
        if !open.is_empty() {
            self.push(stream, &open, true, now_ms, each);
        }
    }

    /// A sentence of the daemon.
    pub fn note(&mut self, text: &str, now_ms: u64) {
        self.push(Stream::Agent, text.as_bytes(), false, now_ms, &mut |_| {});
    }

    fn push(&mut self, stream: Stream, text: &[u8], partial: bool, time_ms: u64, each: &mut dyn FnMut(&str)) {
        let text = String::from_utf8_lossy(text).into_owned();
        each(&text);
        self.bytes += text.len() + OVERHEAD;
        self.last += 1;
        self.lines.push_back(Line { time_ms, stream, text, partial });
        while self.bytes > self.bytes_max && self.lines.len() > 1 {
            if let Some(old) = self.lines.pop_front() {
                self.bytes -= old.text.len() + OVERHEAD;
            }
        }
    }

    /// The number of the oldest line that is kept; one more than the newest if there is none.
    fn first(&self) -> u64 {
        self.last + 1 - self.lines.len() as u64
    }

    /// Where a reader begins who wants only the last `count` lines.
    #[must_use]
    pub fn tail(&self, count: usize) -> Position {
        let line = self.last.saturating_sub(count as u64).max(self.first() - 1);
        Position { epoch: self.epoch, line }
    }

    /// What comes after `since` (without one: all that is kept), about `budget` bytes at most and one line at the least.
    #[must_use]
    pub fn read(&self, since: Option<Position>, budget: usize) -> Piece {
        let mut out = Vec::new();
        let oldest = self.first();
        let mut seen = match since {
            None => oldest - 1,
            Some(since) if since.epoch == self.epoch && since.line <= self.last => {
                if since.line + 1 < oldest {
                    self.gap(&mut out, Some(oldest - 1 - since.line), oldest);
                    oldest - 1
                } else {
                    since.line
                }
            }
            // Another run of the daemon: what it wrote after that line is gone with it.
            Some(_) => {
                self.gap(&mut out, None, oldest);
                oldest - 1
            }
        };
        // The ring holds as many lines as fit into memory.
        let skip = usize::try_from(seen + 1 - oldest).unwrap_or(usize::MAX);
        for line in self.lines.iter().skip(skip) {
            if out.len() >= budget && !out.is_empty() {
                break;
            }
            seen += 1;
            let seq = Position { epoch: self.epoch, line: seen }.to_string();
            let time = edge::clock::rfc3339_ms(line.time_ms);
            let mut object =
                json!({"seq": seq, "time": time, "stream": line.stream.name(), "line": line.text});
            if line.partial {
                object["partial"] = json!(true);
            }
            out.extend_from_slice(object.to_string().as_bytes());
            out.push(b'\n');
        }
        Piece { ndjson: out, next: Position { epoch: self.epoch, line: seen } }
    }

    /// `lost`: how many; of another run nobody knows, and `restarted` says so.
    fn gap(&self, out: &mut Vec<u8>, lost: Option<u64>, next: u64) {
        let next = Position { epoch: self.epoch, line: next }.to_string();
        let object = match lost {
            Some(lost) => json!({"gap": lost, "next": next}),
            None => json!({"gap": 0, "restarted": true, "next": next}),
        };
        out.extend_from_slice(object.to_string().as_bytes());
        out.push(b'\n');
    }
}

/// Where to cut `bytes` so that no UTF-8 character at the end is split; all of it if that is not UTF-8.
fn char_floor(bytes: &[u8]) -> usize {
    let first = bytes.iter().rposition(|b| b & 0xc0 != 0x80).unwrap_or(0);
    let length = match bytes.get(first) {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return bytes.len(),
    };
    if bytes.len() - first < length && first > 0 { first } else { bytes.len() }
}

/// What [`pump`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pumped {
    /// So many bytes were read.
    pub bytes: usize,
    /// The pipe is empty for now, or has ended; otherwise the budget is used up.
    pub dry: bool,
    /// Nobody has the other end any more.
    pub ended: bool,
}

/// Reads a non-blocking pipe into the ring: until it is empty, it ends, or about `budget` bytes were read.
///
/// # Errors
/// What `read(2)` says, except that it would block.
pub fn pump(
    pipe: &mut impl std::io::Read,
    stream: Stream,
    ring: &mut Ring,
    budget: usize,
    now_ms: u64,
    each: &mut dyn FnMut(&str),
) -> std::io::Result<Pumped> {
    let mut buffer = [0; 16 * 1024];
    let mut pumped = Pumped { bytes: 0, dry: false, ended: false };
    while pumped.bytes < budget {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(Pumped { dry: true, ended: true, ..pumped }),
            Ok(n) => {
                pumped.bytes += n;
                ring.feed(stream, &buffer[..n], now_ms, each);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Ok(Pumped { dry: true, ..pumped });
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pumped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(piece: &Piece) -> Vec<serde_json::Value> {
        piece
            .ndjson
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect()
    }

    fn feed(ring: &mut Ring, bytes: &[u8]) {
        ring.feed(Stream::Stdout, bytes, 1_700_000_000_123, &mut |_| {});
    }

    #[test]
    fn lines_are_put_together_and_numbered() {
        let mut ring = Ring::new(10_000, 7);
        let mut heard = Vec::new();
        ring.feed(Stream::Stdout, b"one\ntw", 1_700_000_000_123, &mut |l| heard.push(l.to_owned()));
        ring.feed(Stream::Stderr, b"oops\r\n", 5, &mut |l| heard.push(l.to_owned()));
        ring.feed(Stream::Stdout, b"o\nlast", 6, &mut |l| heard.push(l.to_owned()));
        ring.close(Stream::Stdout, 7, &mut |l| heard.push(l.to_owned()));
        assert_eq!(heard, ["one", "oops", "two", "last"]);
        let piece = ring.read(None, 1 << 20);
        let got = objects(&piece);
        assert_eq!(
            got[0],
            json!({"seq": "7.1", "time": "2023-11-14T22:13:20.123Z", "stream": "stdout", "line": "one"})
        );
        assert_eq!(got[1]["stream"], "stderr");
        assert_eq!((got[3]["line"].as_str(), got[3]["partial"].as_bool()), (Some("last"), Some(true)));
        assert_eq!(piece.next, Position { epoch: 7, line: 4 });
        assert_eq!(objects(&ring.read(Some(Position { epoch: 7, line: 2 }), 1 << 20)).len(), 2);
        assert!(ring.read(Some(piece.next), 1 << 20).ndjson.is_empty());
        assert_eq!(objects(&ring.read(Some(ring.tail(1)), 1 << 20))[0]["line"], "last");
    }

    #[test]
    fn nothing_is_doubled_or_lost_without_a_word() {
        let mut ring = Ring::new(4_000, 9);
        let (mut seen, mut next, mut total) = (0u64, None, 0u64);
        let mut rng = fastrand::Rng::with_seed(3);
        for round in 0..400 {
            for _ in 0..rng.usize(..40) {
                total += 1;
                feed(&mut ring, format!("{total}\n").as_bytes());
            }
            if round % 3 == 0 {
                let piece = ring.read(next, rng.usize(1..3000));
                for object in objects(&piece) {
                    match object.get("gap") {
                        Some(lost) => seen += lost.as_u64().unwrap(),
                        None => {
                            seen += 1;
                            assert_eq!(object["line"], seen.to_string());
                        }
                    }
                }
                // Before anything was kept there is nothing to be after.
                if next.is_none() && piece.ndjson.is_empty() {
                    continue;
                }
                if next.is_none() {
                    next = Some(piece.next);
                    continue;
                }
                next = Some(piece.next);
                assert_eq!(seen, piece.next.line);
            }
            assert!(ring.bytes <= 4_000);
        }
    }

    #[test]
    fn no_character_is_split() {
        let mut ring = Ring::new(1 << 20, 1);
        for (lead, sign) in [(1, "é"), (2, "€"), (1, "€"), (3, "𝄞"), (1, "𝄞"), (0, "x")] {
            let text = format!("{}{}", "-".repeat(lead), sign.repeat(LINE_BYTES_MAX));
            let from = ring.end();
            // Whatever the pieces are that it arrives in.
            for piece in text.as_bytes().chunks(1001) {
                feed(&mut ring, piece);
            }
            feed(&mut ring, b"\n");
            let got = objects(&ring.read(Some(from), 1 << 20));
            assert!(got.iter().all(|o| o["line"].as_str().unwrap().len() <= LINE_BYTES_MAX));
            let whole: String = got.iter().map(|o| o["line"].as_str().unwrap()).collect();
            assert_eq!(whole, text);
        }
        // What is no UTF-8 is cut all the same.
        feed(&mut ring, &[0x80; LINE_BYTES_MAX + 1]);
        feed(&mut ring, &[0xff; 3 * LINE_BYTES_MAX]);
        assert!(ring.open[0].len() <= LINE_BYTES_MAX);
    }

    #[test]
    fn another_run_is_a_gap_of_unknown_length_and_long_lines_are_cut() {
        let mut ring = Ring::new(100_000, 9);
        feed(&mut ring, &[b'x'; 20_000]);
        feed(&mut ring, b"\n\xff\n");
        let got = objects(&ring.read(Some(Position { epoch: 8, line: 3 }), 1 << 20));
        assert_eq!(got[0], json!({"gap": 0, "restarted": true, "next": "9.1"}));
        assert_eq!(got.len(), 5);
        assert_eq!(got[1]["line"].as_str().unwrap().len(), LINE_BYTES_MAX);
        assert_eq!((got[1]["partial"].as_bool(), got[3].get("partial")), (Some(true), None));
        assert_eq!(got[4]["line"], "\u{fffd}");
        for bad in ["", "1", "1.", ".1", "1.x", "+1.2", "1.2.3"] {
            assert_eq!(Position::parse(bad), None, "{bad}");
        }
        assert_eq!(Position::parse("12.34"), Some(Position { epoch: 12, line: 34 }));
    }
}
