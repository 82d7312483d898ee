//! The 65535 packet ids of one direction: which are taken, and the next free one.

/// Which of the 65535 packet ids are taken.
#[derive(Debug)]
pub(crate) struct Pids {
    bits: Box<[u64; 1024]>,
    taken: u32,
    last: u16,
}

impl Default for Pids {
    fn default() -> Pids {
        // Id 0 does not exist.
        let mut bits = Box::new([0; 1024]);
        bits[0] = 1;
        Pids { bits, taken: 0, last: 0 }
    }
}

impl Pids {
    pub(crate) fn is_taken(&self, pid: u16) -> bool {
        self.bits[usize::from(pid >> 6)] & (1 << (pid & 63)) != 0
    }

    /// The next free id, round robin, so that a late answer does not meet a new message.
    pub(crate) fn acquire(&mut self) -> Option<u16> {
        if self.taken == 65_535 {
            return None;
        }
        let mut pid = self.last;
        loop {
            pid = pid.wrapping_add(1);
            if self.reserve(pid) {
                self.last = pid;
                return Some(pid);
            }
        }
    }

    pub(crate) fn reserve(&mut self, pid: u16) -> bool {
        let free = !self.is_taken(pid);
        if free {
            self.bits[usize::from(pid >> 6)] |= 1 << (pid & 63);
            self.taken += 1;
        }
        free
    }

    pub(crate) fn release(&mut self, pid: u16) {
        if pid != 0 && self.is_taken(pid) {
            self.bits[usize::from(pid >> 6)] &= !(1 << (pid & 63));
            self.taken -= 1;
        }
    }
}
