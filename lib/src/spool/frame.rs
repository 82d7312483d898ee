//! Bytes of the files: the file header and the frame. Pure functions, no I/O.
//!
//! Owns the layout described in the module documentation of `spool`. A frame names its own place and its file's salt,
//! so stale bytes of a re-used file, a frame copied into somebody's payload, and a frame moved elsewhere are all
//! rejected.

/// Newest format known here.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a file header; the first frame follows.
pub(crate) const FILE_HEADER: u64 = 64;
/// Bytes of a frame header; the body follows.
pub(crate) const FRAME_HEADER: u64 = 48;
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"EdFr");

/// Which kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Segment,
    Journal,
}

impl FileKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            FileKind::Segment => b"EDGESPL\n",
            FileKind::Journal => b"EDGEJNL\n",
        }
    }
}

/// A place in the log: segment index (or journal generation) and byte offset in that file. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Pos(pub u64);

impl Pos {
    pub(crate) fn new(index: u32, offset: u64) -> Pos {
        // Offsets stay below 2^32: a segment is at most 1 GiB plus one frame, see SpoolConfig::check.
        Pos(u64::from(index) << 32 | (offset & 0xffff_ffff))
    }
    pub(crate) fn index(self) -> u32 {
        (self.0 >> 32) as u32
    }
    pub(crate) fn offset(self) -> u64 {
        self.0 & 0xffff_ffff
    }
}

/// First 64 bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub kind: FileKind,
    pub index: u32,
    pub salt: u64,
    pub id: u64,
    pub first_seq: u64,
    pub durable: Pos,
    /// Number of the first record that was not durable when the file was begun.
    pub durable_seq: u64,
}

/// What the first bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderRead {
    Good(FileHeader),
    /// A valid header of a later format.
    Future(u32),
    /// Nothing was ever written there.
    Blank,
    Damaged,
}

impl FileHeader {
    pub(crate) fn encode(&self) -> [u8; FILE_HEADER as usize] {
        let mut b = [0u8; FILE_HEADER as usize];
        b[0..8].copy_from_slice(self.kind.magic());
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[12..16].copy_from_slice(&self.index.to_le_bytes());
        b[16..24].copy_from_slice(&self.salt.to_le_bytes());
        b[24..32].copy_from_slice(&self.id.to_le_bytes());
        b[32..40].copy_from_slice(&self.first_seq.to_le_bytes());
        b[40..48].copy_from_slice(&self.durable.0.to_le_bytes());
        b[48..56].copy_from_slice(&self.durable_seq.to_le_bytes());
        let crc = crc32c::crc32c(&b[..60]);
        b[60..64].copy_from_slice(&crc.to_le_bytes());
        b
    }

    pub(crate) fn decode(kind: FileKind, bytes: &[u8]) -> HeaderRead {
        if bytes.iter().take(FILE_HEADER as usize).all(|b| *b == 0) {
            return HeaderRead::Blank;
        }
        let Some(b) = bytes.first_chunk::<{ FILE_HEADER as usize }>() else { return HeaderRead::Damaged };
        if crc32c::crc32c(&b[..60]) != u32_at(b, 60) || &b[0..8] != kind.magic() {
            return HeaderRead::Damaged;
        }
        let version = u32_at(b, 8);
        if version > VERSION {
            return HeaderRead::Future(version);
        }
        HeaderRead::Good(FileHeader {
            kind,
            index: u32_at(b, 12),
            salt: u64_at(b, 16),
            id: u64_at(b, 24),
            first_seq: u64_at(b, 32),
            durable: Pos(u64_at(b, 40)),
            durable_seq: u64_at(b, 48),
        })
    }
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A message (segments).
    Message = 1,
    /// Nothing but its `durable` (segments and journal).
    Marker = 2,
    /// The segment ends here, the next one follows.
    End = 3,
    Cursor = 16,
    Held = 17,
    Released = 18,
    HeldClear = 19,
    Published = 20,
    Received = 21,
    Done = 22,
    OutClear = 23,
    Acked = 24,
    SnapshotEnd = 25,
}

impl Kind {
    fn from_u8(v: u8) -> Option<Kind> {
        Some(match v {
            1 => Kind::Message,
            2 => Kind::Marker,
            3 => Kind::End,
            16 => Kind::Cursor,
            17 => Kind::Held,
            18 => Kind::Released,
            19 => Kind::HeldClear,
            20 => Kind::Published,
            21 => Kind::Received,
            22 => Kind::Done,
            23 => Kind::OutClear,
            24 => Kind::Acked,
            25 => Kind::SnapshotEnd,
            _ => return None,
        })
    }
}

/// Header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub salt: u64,
    /// Everything before this place was on disk when the frame was written.
    pub durable: Pos,
    pub seq: u64,
    /// How many records right before `seq` were not durable then.
    pub behind: u32,
    pub len: u32,
    pub body_crc: u32,
    pub kind: Kind,
    pub flags: u8,
}

impl Frame {
    pub(crate) fn encode(&self, at: Pos) -> [u8; FRAME_HEADER as usize] {
        let mut b = [0u8; FRAME_HEADER as usize];
        b[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        b[8..16].copy_from_slice(&self.salt.to_le_bytes());
        b[16..24].copy_from_slice(&self.durable.0.to_le_bytes());
        b[24..32].copy_from_slice(&self.seq.to_le_bytes());
        b[32..36].copy_from_slice(&self.len.to_le_bytes());
        b[36..40].copy_from_slice(&self.body_crc.to_le_bytes());
        b[40] = self.kind as u8;
        b[41] = self.flags;
        b[44..48].copy_from_slice(&self.behind.to_le_bytes());
        let crc = header_crc(&b, at);
        b[4..8].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// The header, if these bytes are one that was written for this place. Says nothing about the body.
    pub(crate) fn decode(bytes: &[u8], at: Pos) -> Option<Frame> {
        let b = bytes.first_chunk::<{ FRAME_HEADER as usize }>()?;
        if u32_at(b, 0) != FRAME_MAGIC || u32_at(b, 4) != header_crc(b, at) {
            return None;
        }
        Some(Frame {
            salt: u64_at(b, 8),
            durable: Pos(u64_at(b, 16)),
            seq: u64_at(b, 24),
            behind: u32_at(b, 44),
            len: u32_at(b, 32),
            body_crc: u32_at(b, 36),
            kind: Kind::from_u8(b[40])?,
            flags: b[41],
        })
    }
}

/// Whether these bytes begin like a frame (to tell a torn one from nothing).
pub(crate) fn looks_like_frame(bytes: &[u8]) -> bool {
    bytes.first_chunk::<4>() == Some(&FRAME_MAGIC.to_le_bytes())
}

/// Bytes a frame with this body takes: header and body, up to the next multiple of eight.
pub(crate) fn framed(body: u64) -> u64 {
    (FRAME_HEADER + body).next_multiple_of(8)
}

fn header_crc(b: &[u8; FRAME_HEADER as usize], at: Pos) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&b[8..]), &at.0.to_le_bytes())
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|s| s.first_chunk()).map_or(0, |c| u32::from_le_bytes(*c))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|s| s.first_chunk()).map_or(0, |c| u64::from_le_bytes(*c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_valid_only_in_its_place_and_unchanged() {
        let f = Frame {
            salt: 7,
            durable: Pos::new(1, 64),
            seq: 9,
            behind: 4,
            len: 3,
            body_crc: 5,
            kind: Kind::Message,
            flags: 2,
        };
        let at = Pos::new(3, 4096);
        let b = f.encode(at);
        assert_eq!(Frame::decode(&b, at), Some(f));
        assert_eq!(Frame::decode(&b, Pos::new(3, 4104)), None);
        for i in 0..b.len() {
            for bit in 0..8 {
                let mut bad = b;
                bad[i] ^= 1 << bit;
                assert_eq!(Frame::decode(&bad, at), None, "byte {i} bit {bit}");
            }
        }
        for cut in 0..b.len() {
            assert_eq!(Frame::decode(&b[..cut], at), None);
        }
    }

    #[test]
    fn file_headers_tell_blank_damaged_and_future() {
        let h = FileHeader {
            kind: FileKind::Segment,
            index: 3,
            salt: 1,
            id: 2,
            first_seq: 4,
            durable: Pos::new(2, 100),
            durable_seq: 3,
        };
        let b = h.encode();
        assert_eq!(FileHeader::decode(FileKind::Segment, &b), HeaderRead::Good(h));
        assert_eq!(FileHeader::decode(FileKind::Journal, &b), HeaderRead::Damaged);
        assert_eq!(FileHeader::decode(FileKind::Segment, &[0; 64]), HeaderRead::Blank);
        assert_eq!(FileHeader::decode(FileKind::Segment, &[]), HeaderRead::Blank);
        let mut bad = b;
        bad[20] ^= 1;
        assert_eq!(FileHeader::decode(FileKind::Segment, &bad), HeaderRead::Damaged);
        let mut newer = b;
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer[..60]);
        newer[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(FileHeader::decode(FileKind::Segment, &newer), HeaderRead::Future(2));
    }
}
