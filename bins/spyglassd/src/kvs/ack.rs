//! The acknowledgements of PutMedia: JSON objects one after the other on the answer's body, a few for each fragment.
//!
//! Owns the bytes of an object that has not ended yet, at most [`OBJECT_BYTES_MAX`]. Never panics on input; after an
//! error it refuses everything, since where the next object begins is unknown.

use serde_json::Value;

/// Longest object that is taken, in bytes. They have about 150.
pub const OBJECT_BYTES_MAX: usize = 8 * 1024;
/// Deepest nesting.
const DEPTH_MAX: usize = 8;

/// What happened to a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It begins to arrive.
    Buffering,
    /// It has arrived.
    Received,
    /// It is stored: it need not be kept here any more.
    Persisted,
    /// It is not, or the connection is in trouble.
    Error {
        /// Such as 4006; 0 where none is given.
        id: u32,
        /// Such as `INVALID_MKV_DATA`; may be empty.
        code: String,
    },
    /// Nothing has arrived for a while.
    Idle,
    /// Something newer than this program.
    Unknown(String),
}

/// One acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// What it says.
    pub kind: Kind,
    /// The time of the fragment's cluster, as it was sent on this connection, in milliseconds.
    pub timecode_ms: Option<u64>,
    /// The service's name for the fragment; may be empty.
    pub number: String,
}

/// Why the answer can't be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Bytes where an object should begin.
    #[error("the acknowledgements are no JSON objects")]
    NotAnObject,
    /// Longer or deeper than any acknowledgement.
    #[error("an acknowledgement is longer than {OBJECT_BYTES_MAX} bytes, or nested too deep")]
    TooLong,
    /// An object that is no acknowledgement.
    #[error("an acknowledgement has no EventType, or is damaged")]
    Damaged,
}

/// Reads acknowledgements from pieces of any size.
#[derive(Debug, Default)]
pub struct Parser {
    object: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
    failed: Option<Error>,
}

impl Parser {
    /// Takes a piece; complete acknowledgements go to `out`.
    ///
    /// # Errors
    /// [`Error`]; what came before it in the piece is in `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<Ack>) -> Result<(), Error> {
        for byte in bytes {
            if let Some(error) = self.failed {
                return Err(error);
            }
            match self.step(*byte) {
                Ok(None) => {}
                Ok(Some(ack)) => out.push(ack),
                Err(error) => self.failed = Some(error),
            }
        }
        self.failed.map_or(Ok(()), Err)
    }

    fn step(&mut self, byte: u8) -> Result<Option<Ack>, Error> {
        if self.depth == 0 {
            return match byte {
                b' ' | b'\t' | b'\r' | b'\n' => Ok(None),
                b'{' => {
                    self.object.clear();
                    self.object.push(byte);
                    self.depth = 1;
                    Ok(None)
                }
                _ => Err(Error::NotAnObject),
            };
        }
        if self.object.len() >= OBJECT_BYTES_MAX {
            return Err(Error::TooLong);
        }
        self.object.push(byte);
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(None);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        if self.depth > DEPTH_MAX {
            return Err(Error::TooLong);
        }
        if self.depth == 0 { read(&self.object).map(Some) } else { Ok(None) }
    }
}

/// One object. The API reference shows it inside `"Acknowledgement"`, the service sends it bare; both are taken.
fn read(object: &[u8]) -> Result<Ack, Error> {
    let value: Value = serde_json::from_slice(object).map_err(|_| Error::Damaged)?;
    let value = value.get("Acknowledgement").unwrap_or(&value);
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(128).collect::<String>();
    let number = |key: &str| match value.get(key) {
        Some(Value::String(digits)) => digits.parse().ok(),
        Some(number) => number.as_u64(),
        None => None,
    };
    let kind = match text("EventType") {
        "" => return Err(Error::Damaged),
        "BUFFERING" => Kind::Buffering,
        "RECEIVED" => Kind::Received,
        "PERSISTED" => Kind::Persisted,
        "IDLE" => Kind::Idle,
        "ERROR" => Kind::Error {
            id: number("ErrorId").and_then(|id| u32::try_from(id).ok()).unwrap_or(0),
            code: short(text("ErrorCode")),
        },
        other => Kind::Unknown(short(other)),
    };
    let fragment = match value.get("FragmentNumber") {
        Some(Value::Number(number)) => number.to_string(),
        _ => short(text("FragmentNumber")),
    };
    Ok(Ack { kind, timecode_ms: number("FragmentTimecode"), number: fragment })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        r#"{"EventType":"BUFFERING","FragmentTimecode":1700000000000,"FragmentNumber":"91343852333181369458873"}"#,
        "\r\n",
        r#"{"EventType":"PERSISTED","FragmentTimecode":12,"FragmentNumber":"9","Odd":"}{\"\\"}"#,
        r#"{"Acknowledgement":{"EventType":"ERROR","FragmentTimecode":"7","ErrorId":"4006","ErrorCode":"INVALID_MKV_DATA"}}"#,
        r#" {"EventType":"IDLE"}{"EventType":"NEW","FragmentNumber":5}"#,
    );

    fn all(pieces: &[&[u8]]) -> (Vec<Ack>, Result<(), Error>) {
        let (mut parser, mut out, mut result) = (Parser::default(), Vec::new(), Ok(()));
        for piece in pieces {
            result = parser.feed(piece, &mut out);
        }
        (out, result)
    }

    #[test]
    fn objects_are_found_however_they_are_cut() {
        let (whole, result) = all(&[STREAM.as_bytes()]);
        assert_eq!(result, Ok(()));
        let kinds: Vec<_> = whole.iter().map(|a| (&a.kind, a.timecode_ms)).collect();
        let invalid = Kind::Error { id: 4006, code: "INVALID_MKV_DATA".into() };
        assert_eq!(
            kinds,
            [
                (&Kind::Buffering, Some(1_700_000_000_000)),
                (&Kind::Persisted, Some(12)),
                (&invalid, Some(7)),
                (&Kind::Idle, None),
                (&Kind::Unknown("NEW".into()), None),
            ]
        );
        assert_eq!((whole[0].number.as_str(), whole[4].number.as_str()), ("91343852333181369458873", "5"));
        for cut in 0..STREAM.len() {
            let (a, b) = STREAM.as_bytes().split_at(cut);
            assert_eq!(all(&[a, b]), (whole.clone(), Ok(())), "{cut}");
        }
        let single: Vec<&[u8]> = STREAM.as_bytes().chunks(1).collect();
        assert_eq!(all(&single).0, whole);
    }

    #[test]
    fn what_is_no_acknowledgement_ends_it_for_good() {
        let endless = [b"{\"".as_slice(), &[b'a'; OBJECT_BYTES_MAX]].concat();
        for (bytes, error) in [
            (&b"<html>"[..], Error::NotAnObject),
            (b"{}", Error::Damaged),
            (b"{\"EventType\":7}", Error::Damaged),
            (b"{\"EventType\":\"IDLE\",}", Error::Damaged),
            (b"{\"a\":[[[[[[[[[[", Error::TooLong),
            (&endless, Error::TooLong),
        ] {
            let (out, result) = all(&[bytes, b"{\"EventType\":\"IDLE\"}"]);
            assert_eq!((out.len(), result), (0, Err(error)), "{}", String::from_utf8_lossy(bytes));
        }
    }
}
