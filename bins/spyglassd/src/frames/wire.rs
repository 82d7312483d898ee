//! The messages between an application and this daemon, version 1. `README.md` of this crate documents every byte.
//!
//! A message is one packet of a `SOCK_SEQPACKET` Unix socket: a header of 8 bytes (magic, type, length) and a body of a
//! fixed size, all numbers little-endian. Owns: the codec. Invariants: what decodes encodes to the same bytes again; a
//! packet with any field out of its range is an error, never a panic. Never: looks at a picture, knows a descriptor.

use super::geometry::Format;

/// `SPY` and the version.
pub const MAGIC: [u8; 4] = *b"SPY1";
/// The longest message, in bytes.
pub const BYTES_MAX: usize = 256;
/// Bytes of the field that holds a stream's name.
pub const NAME_BYTES: usize = 64;
/// Bytes of the field that holds an error's text.
pub const TEXT_BYTES: usize = 240;
/// `pts_ns` of a frame whose time is that of its arrival.
pub const PTS_NOW: u64 = u64::MAX;

const HEADER: usize = 8;
const HELLO: (u16, usize) = (1, 104);
const RING: (u16, usize) = (2, 32);
const FRAME: (u16, usize) = (3, 40);
const RELEASE: (u16, usize) = (4, 16);
const ERROR: (u16, usize) = (5, 256);

/// What an application says first, and again when its pictures no longer fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The stream: 1 to 64 letters, digits, `-`, `_`, `.`; not beginning with `.`.
    pub name: String,
    /// Pixels, at least 1.
    pub width: u32,
    /// Pixels, at least 1.
    pub height: u32,
    /// Bytes from one row of the first plane to the next; 0 = packed.
    pub stride: u32,
    /// How pixels lie.
    pub format: Format,
    /// Frames a second as a fraction; a numerator of 0 = unknown, then the denominator is 0 or more.
    pub fps: (u32, u32),
    /// Slots wished for; 0 = as many as the daemon likes.
    pub slots: u32,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Application to daemon: begins a stream.
    Hello(Hello),
    /// Daemon to application, with the memory's descriptor: here is room for frames.
    Ring {
        /// How many.
        slots: u32,
        /// Bytes of each; slot n begins at n times this.
        slot_bytes: u64,
    },
    /// Application to daemon: this slot holds a frame. It belongs to the daemon until it is released.
    Frame(Frame),
    /// Daemon to application: this slot may be written again.
    Release {
        /// Which.
        slot: u32,
    },
    /// Daemon to application, before it hangs up: why.
    Error {
        /// For people, at most [`TEXT_BYTES`] bytes; longer is cut.
        text: String,
    },
}

/// A frame that lies in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Which slot.
    pub slot: u32,
    /// Pixels, at least 1.
    pub width: u32,
    /// Pixels, at least 1.
    pub height: u32,
    /// As in [`Hello`].
    pub stride: u32,
    /// On any clock that never goes back, in nanoseconds; [`PTS_NOW`] = the time of arrival.
    pub pts_ns: u64,
    /// Frames of this connection that found no free slot, so far.
    pub dropped: u64,
}

/// Why a packet is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It has no header of this protocol.
    #[error("{0} bytes that don't begin with SPY1: expected protocol version 1")]
    Magic(usize),
    /// Type and length do not fit.
    #[error("a message of type {kind} and length {says} in a packet of {bytes} bytes")]
    Length {
        /// The type in the header.
        kind: u16,
        /// The length in the header.
        says: u16,
        /// The length of the packet.
        bytes: usize,
    },
    /// A field is out of its range.
    #[error("{field}: expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What may stand there.
        expected: &'static str,
    },
}

const fn field(field: &'static str, expected: &'static str) -> WireError {
    WireError::Field { field, expected }
}

/// Whether `name` may be a stream's. It becomes a part of addresses and file names.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= NAME_BYTES && !name.starts_with('.') && name.chars().all(allowed)
}

impl Message {
    /// Reads a packet.
    ///
    /// # Errors
    /// [`WireError`]; whoever sent it does not speak this protocol.
    pub fn decode(packet: &[u8]) -> Result<Message, WireError> {
        let body = match packet {
            [a, b, c, d, body @ ..] if [*a, *b, *c, *d] == MAGIC && body.len() >= 4 => body,
            _ => return Err(WireError::Magic(packet.len())),
        };
        let kind = u16::from_le_bytes([body[0], body[1]]);
        let says = u16::from_le_bytes([body[2], body[3]]);
        let wrong = WireError::Length { kind, says, bytes: packet.len() };
        let known = [HELLO, RING, FRAME, RELEASE, ERROR].into_iter().find(|(k, _)| *k == kind);
        if known.is_none_or(|(_, bytes)| bytes != packet.len() || usize::from(says) != bytes) {
            return Err(wrong);
        }
        let mut body = Reader(&packet[HEADER..]);
        match kind {
            k if k == HELLO.0 => hello(&mut body).map(Message::Hello),
            k if k == RING.0 => {
                let (slots, _) = (body.u32(), body.zero()?);
                Ok(Message::Ring { slots, slot_bytes: body.u64() }).and_then(|m| body.zero_u64().map(|()| m))
            }
            k if k == FRAME.0 => frame(&mut body).map(Message::Frame),
            k if k == RELEASE.0 => {
                let slot = body.u32();
                body.zero()?;
                Ok(Message::Release { slot })
            }
            _ => Ok(Message::Error { text: body.text(TEXT_BYTES)? }),
        }
    }

    /// The packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, bytes) = match self {
            Message::Hello(_) => HELLO,
            Message::Ring { .. } => RING,
            Message::Frame(_) => FRAME,
            Message::Release { .. } => RELEASE,
            Message::Error { .. } => ERROR,
        };
        let mut packet = Vec::with_capacity(bytes);
        packet.extend_from_slice(&MAGIC);
        packet.extend_from_slice(&kind.to_le_bytes());
        // The longest message is 256 bytes long.
        packet.extend_from_slice(&(bytes as u16).to_le_bytes());
        let words = |packet: &mut Vec<u8>, words: &[u32]| {
            words.iter().for_each(|word| packet.extend_from_slice(&word.to_le_bytes()));
        };
        match self {
            Message::Hello(h) => {
                let format = h.format.number();
                let fields = [h.width, h.height, h.stride, format, h.fps.0, h.fps.1, h.slots, 0];
                words(&mut packet, &fields);
                packet.extend_from_slice(&h.name.as_bytes()[..h.name.len().min(NAME_BYTES)]);
            }
            Message::Ring { slots, slot_bytes } => {
                words(&mut packet, &[*slots, 0]);
                packet.extend_from_slice(&slot_bytes.to_le_bytes());
            }
            Message::Frame(f) => {
                words(&mut packet, &[f.slot, f.width, f.height, f.stride]);
                packet.extend_from_slice(&f.pts_ns.to_le_bytes());
                packet.extend_from_slice(&f.dropped.to_le_bytes());
            }
            Message::Release { slot } => words(&mut packet, &[*slot]),
            Message::Error { text } => {
                let mut end = text.len().min(TEXT_BYTES);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                packet.extend(text[..end].bytes().map(|b| if b == 0 { b' ' } else { b }));
            }
        }
        packet.resize(bytes, 0);
        packet
    }
}

fn hello(body: &mut Reader<'_>) -> Result<Hello, WireError> {
    let (width, height, stride) = (body.u32(), body.u32(), body.u32());
    if width == 0 || height == 0 {
        return Err(field("width and height", "at least 1 pixel each"));
    }
    let format = Format::from_number(body.u32())
        .ok_or(field("format", "1 BGR, 2 RGB, 3 BGRA, 4 GRAY8, 5 NV12 or 6 I420"))?;
    let fps = (body.u32(), body.u32());
    if fps.0 != 0 && (fps.1 == 0 || u64::from(fps.0) > 1000 * u64::from(fps.1) || fps.0 > i32::MAX as u32) {
        return Err(field("fps", "0/0, or a fraction of at most 1000 frames a second"));
    }
    let slots = body.u32();
    body.zero()?;
    let name = body.text(NAME_BYTES)?;
    if !is_name(&name) {
        return Err(field("name", "1 to 64 letters, digits, '-', '_' or '.', and no '.' at its beginning"));
    }
    Ok(Hello { name, width, height, stride, format, fps, slots })
}

fn frame(body: &mut Reader<'_>) -> Result<Frame, WireError> {
    let (slot, width, height, stride) = (body.u32(), body.u32(), body.u32(), body.u32());
    if width == 0 || height == 0 {
        return Err(field("width and height", "at least 1 pixel each"));
    }
    Ok(Frame { slot, width, height, stride, pts_ns: body.u64(), dropped: body.u64() })
}

/// The rest of a body whose length was checked against its type.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, tail) = self.0.split_first_chunk::<N>().map_or(([0; N], &[][..]), |(h, t)| (*h, t));
        self.0 = tail;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn zero(&mut self) -> Result<(), WireError> {
        if self.u32() == 0 { Ok(()) } else { Err(field("reserved", "0")) }
    }

    fn zero_u64(&mut self) -> Result<(), WireError> {
        if self.u64() == 0 { Ok(()) } else { Err(field("reserved", "0")) }
    }

    /// `len` bytes of UTF-8, padded with zeros.
    fn text(&mut self, len: usize) -> Result<String, WireError> {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        if bytes[end..].iter().chain(rest).any(|b| *b != 0) {
            return Err(field("text", "nothing but zeros after its end"));
        }
        String::from_utf8(bytes[..end].to_vec()).map_err(|_| field("text", "UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            name: "cam-1".to_owned(),
            width: 1280,
            height: 720,
            stride: 3840,
            format: Format::Bgr,
            fps: (30_000, 1001),
            slots: 4,
        }
    }

    #[test]
    fn every_message_comes_back() {
        let frame = Frame { slot: 3, width: 5, height: 7, stride: 16, pts_ns: u64::MAX, dropped: 1 << 40 };
        for message in [
            Message::Hello(hello()),
            Message::Hello(Hello { name: "n".repeat(64), fps: (0, 0), ..hello() }),
            Message::Ring { slots: 4, slot_bytes: 1 << 33 },
            Message::Frame(frame),
            Message::Release { slot: 7 },
            Message::Error { text: "größer".to_owned() },
        ] {
            let packet = message.encode();
            assert!(packet.len() <= BYTES_MAX);
            assert_eq!(Message::decode(&packet).unwrap(), message);
            for cut in 0..packet.len() {
                assert!(Message::decode(&packet[..cut]).is_err());
            }
            assert!(Message::decode(&[&packet[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn bytes_lie_where_the_readme_says() {
        let packet = Message::Hello(hello()).encode();
        assert_eq!((&packet[..8], packet.len()), (&b"SPY1\x01\x00\x68\x00"[..], 104));
        assert_eq!(packet[8..12], 1280u32.to_le_bytes());
        assert_eq!(packet[20..24], 1u32.to_le_bytes());
        assert_eq!(&packet[40..46], b"cam-1\0");
        let frame = Frame { slot: 1, width: 2, height: 3, stride: 4, pts_ns: 5, dropped: 6 };
        let packet = Message::Frame(frame).encode();
        assert_eq!(
            (packet[24..32].to_vec(), packet[32..40].to_vec()),
            ((5u64.to_le_bytes().to_vec()), 6u64.to_le_bytes().to_vec())
        );
    }

    #[test]
    fn fields_out_of_range_are_named() {
        let broken = |at: usize, bytes: &[u8]| {
            let mut packet = Message::Hello(hello()).encode();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            Message::decode(&packet).unwrap_err().to_string()
        };
        for (at, bytes, word) in [
            (0, &b"SPY2"[..], "version 1"),
            (4, &[9, 0], "type 9"),
            (6, &[1, 0], "length 1"),
            (8, &[0; 4], "width"),
            (20, &[7], "format"),
            (28, &[0; 4], "fps"),
            (24, &[255; 4], "fps"),
            (36, &[1], "reserved"),
            (40, b"..", "name"),
            (40, b"a/b", "name"),
            (40, &[0xff], "UTF-8"),
            (41, b"\0x", "zeros"),
        ] {
            let error = broken(at, bytes);
            assert!(error.contains(word), "{at}: {error}");
        }
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let text = "ü".repeat(200);
        let Message::Error { text } = Message::decode(&Message::Error { text }.encode()).unwrap() else {
            panic!("another message");
        };
        assert_eq!(text, "ü".repeat(120));
    }
}
