//! Byte queues between a protocol and a socket: contiguous, appended at the end, consumed at the front.
//!
//! They give memory back: a buffer that held one large packet does not stay large. They have no bound of their own;
//! who fills them checks `len`.

/// A buffer that empties keeps at most this capacity, in bytes.
const KEEP: usize = 64 << 10;

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            self.bytes.shrink_to(KEEP);
        }
    }

    /// Moves what is left to the front once more than half is spent, so that the cost is constant per byte.
    fn compact(&mut self) {
        if self.start > 4096 && self.start * 2 > self.bytes.len() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}

/// Bytes to be written.
#[derive(Debug, Default)]
pub struct OutBuf(Queue);

impl OutBuf {
    /// Bytes waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where an encoder appends. It must not touch what is there already.
    pub fn vec(&mut self) -> &mut Vec<u8> {
        self.0.compact();
        &mut self.0.bytes
    }

    /// What waits, oldest first.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes.get(self.0.start..).unwrap_or_default()
    }

    /// Drops the first `count` bytes: they were written.
    pub fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.consume(usize::MAX - self.0.start);
    }
}

/// Bytes that were read.
#[derive(Debug, Default)]
pub struct InBuf(Queue);

impl InBuf {
    /// Bytes not consumed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All was consumed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a reader appends.
    pub fn vec(&mut self) -> &mut Vec<u8> {
        self.0.compact();
        &mut self.0.bytes
    }

    /// What was read and not consumed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes.get(self.0.start..).unwrap_or_default()
    }

    /// Drops the first `count` bytes: they were understood.
    pub fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.consume(usize::MAX - self.0.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_a_queue_and_gives_memory_back() {
        let mut rng = fastrand::Rng::with_seed(5);
        let (mut buf, mut model) = (OutBuf::default(), Vec::new());
        for _ in 0..5000 {
            let add: Vec<u8> = (0..rng.usize(..3000)).map(|_| rng.u8(..)).collect();
            buf.vec().extend_from_slice(&add);
            model.extend_from_slice(&add);
            let take = rng.usize(..=model.len().min(3500));
            buf.consume(take);
            model.drain(..take);
            assert_eq!(buf.bytes(), model);
            assert_eq!(buf.len(), model.len());
        }
        buf.vec().resize(10 << 20, 0);
        buf.clear();
        assert!(buf.is_empty() && buf.0.bytes.capacity() <= KEEP);
    }
}
