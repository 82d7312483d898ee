//! Reads frames out of a file whose content can be anything.
//!
//! Owns one read buffer (64 KiB, more only while a larger frame is looked at, never more than the file is long).
//! Never panics, never trusts a length before it fits into the file, and its work is linear in the file's length.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::disk::DiskFile;
use super::frame::{self, FILE_HEADER, FRAME_HEADER, Frame, Pos};

const CHUNK: usize = 64 * 1024;
const PIECE: usize = 4096;

/// What stands at an offset.
#[derive(Debug)]
pub(crate) enum Found {
    /// A whole frame; its body is `Scanner::body(range)`.
    Frame { frame: Frame, body: Range<usize>, next: u64 },
    /// Something else.
    Invalid,
    /// Nothing: the limit is reached exactly.
    End,
}

/// A file being read.
pub(crate) struct Scanner {
    file: Arc<dyn DiskFile>,
    index: u32,
    salt: Option<u64>,
    limit: u64,
    partial: bool,
    buf: Vec<u8>,
    buf_at: u64,
    /// Bytes the disk could not give back, read as zeros.
    pub unreadable: u64,
}

impl Scanner {
    /// `salt` is `None` when the file's header is lost: call [`Scanner::discover`] then.
    pub(crate) fn new(file: Arc<dyn DiskFile>, index: u32, salt: Option<u64>, limit: u64) -> Scanner {
        Scanner { file, index, salt, limit, partial: false, buf: Vec::new(), buf_at: 0, unreadable: 0 }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes from here on do not exist (yet). Nothing beyond the limit is ever buffered.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.partial = true;
        self.limit = limit;
    }

    /// Whether the file is longer than what is looked at.
    pub(crate) fn is_partial(&self) -> bool {
        self.partial
    }

    /// Looks at the whole file from now on.
    pub(crate) fn set_whole(&mut self) -> io::Result<()> {
        self.limit = self.file.len()?;
        self.partial = false;
        Ok(())
    }

    /// Body of the frame found last.
    pub(crate) fn body(&self, range: Range<usize>) -> &[u8] {
        self.buf.get(range).unwrap_or(&[])
    }

    /// The bytes `[offset, offset + len)`, shorter at the limit.
    pub(crate) fn bytes(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let range = self.fill(offset, len)?;
        Ok(&self.buf[range])
    }

    /// What stands at `offset`.
    pub(crate) fn read(&mut self, offset: u64) -> io::Result<Found> {
        if offset >= self.limit {
            return Ok(Found::End);
        }
        let at = Pos::new(self.index, offset);
        let head = self.fill(offset, FRAME_HEADER as usize)?;
        let Some(frame) = Frame::decode(&self.buf[head], at) else { return Ok(Found::Invalid) };
        if self.salt.is_some_and(|salt| salt != frame.salt) {
            return Ok(Found::Invalid);
        }
        // The padding after the last frame need not exist.
        let next = offset + frame::framed(u64::from(frame.len));
        if offset + FRAME_HEADER + u64::from(frame.len) > self.limit {
            return Ok(Found::Invalid);
        }
        let whole = self.fill(offset, FRAME_HEADER as usize + frame.len as usize)?;
        let body = whole.start + FRAME_HEADER as usize..whole.end;
        if body.len() != frame.len as usize || crc32c::crc32c(&self.buf[body.clone()]) != frame.body_crc {
            return Ok(Found::Invalid);
        }
        Ok(Found::Frame { frame, body, next })
    }

    /// The next offset after `from` where a plausible frame stands. With a known salt only frames of this file can
    /// pass the header's checksum, so each body is looked at once.
    pub(crate) fn resync(
        &mut self,
        from: u64,
        plausible: impl Fn(&Frame) -> bool,
    ) -> io::Result<Option<u64>> {
        // With an unknown salt a foreign payload can pretend to be many long frames: bound what is summed up.
        let mut budget = self.limit.saturating_mul(4);
        let mut offset = from.next_multiple_of(8).max(FILE_HEADER);
        while offset + FRAME_HEADER <= self.limit {
            let head = self.fill(offset, FRAME_HEADER as usize)?;
            if frame::looks_like_frame(&self.buf[head]) {
                if let Found::Frame { frame, .. } = self.read(offset)?
                    && plausible(&frame)
                {
                    return Ok(Some(offset));
                }
                if self.salt.is_none() {
                    let head = self.fill(offset, FRAME_HEADER as usize)?;
                    let len =
                        Frame::decode(&self.buf[head], Pos::new(self.index, offset)).map_or(0, |f| f.len);
                    let Some(left) = budget.checked_sub(u64::from(len)) else { return Ok(None) };
                    budget = left;
                }
            }
            offset += 8;
        }
        Ok(None)
    }

    /// Finds the salt out from the first frame that is whole. `false`: there is none.
    pub(crate) fn discover(&mut self, plausible: impl Fn(&Frame) -> bool) -> io::Result<bool> {
        let Some(offset) = self.resync(FILE_HEADER, plausible)? else { return Ok(false) };
        if let Found::Frame { frame, .. } = self.read(offset)? {
            self.salt = Some(frame.salt);
        }
        Ok(self.salt.is_some())
    }

    /// Makes the buffer hold these bytes and says where; shorter at the limit.
    fn fill(&mut self, offset: u64, len: usize) -> io::Result<Range<usize>> {
        let end = (offset + len as u64).min(self.limit);
        let have = self.buf_at..self.buf_at + self.buf.len() as u64;
        if offset < have.start || end > have.end || offset > have.end {
            self.load(offset, len)?;
        }
        let start = (offset - self.buf_at) as usize;
        let end = (end.max(offset) - self.buf_at) as usize;
        Ok(start.min(self.buf.len())..end.min(self.buf.len()))
    }

    fn load(&mut self, offset: u64, len: usize) -> io::Result<()> {
        let want = (len.max(CHUNK) as u64).min(self.limit.saturating_sub(offset)) as usize;
        if self.buf.capacity() > 4 * CHUNK && want <= CHUNK {
            self.buf = Vec::new();
        }
        self.buf.clear();
        self.buf.resize(want, 0);
        self.buf_at = offset;
        match self.file.read_at(&mut self.buf, offset) {
            Ok(n) => self.buf.truncate(n),
            Err(_) => self.load_pieces(offset)?,
        }
        Ok(())
    }

    /// A bad block: reads what can be read. When not even the start of the file can be, the disk is gone, and that is
    /// an error rather than damage.
    fn load_pieces(&mut self, offset: u64) -> io::Result<()> {
        let mut probe = [0u8; 8];
        self.file.read_at(&mut probe, 0)?;
        for (i, piece) in self.buf.chunks_mut(PIECE).enumerate() {
            match self.file.read_at(piece, offset + (i * PIECE) as u64) {
                Ok(n) => piece[n..].fill(0),
                Err(_) => {
                    piece.fill(0);
                    self.unreadable += piece.len() as u64;
                }
            }
        }
        Ok(())
    }
}
