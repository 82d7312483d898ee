//! When the shelf is tidied: at the start, when pictures are beyond their bound, and now and then, for what others put into
//! the folder or took out of it. No I/O.
//!
//! Invariants: one tidying at a time; one that can't help (a single session beyond the bound, a folder that can't be read)
//! is not done again before another picture came.

/// Pictures between two looks at how much there really is.
const EVERY: u32 = 64;

/// The decisions.
#[derive(Debug)]
pub struct Tidy {
    bytes_max: u64,
    /// Pictures that came since the last one began.
    since: u32,
    /// One is under way.
    busy: bool,
    /// The last one did not fail.
    well: bool,
}

impl Tidy {
    /// With the bound of bytes; the first tidying is under way.
    #[must_use]
    pub fn started(bytes_max: u64) -> Self {
        Self { bytes_max, since: 0, busy: true, well: true }
    }

    /// So many pictures came, and `bytes` are kept now. Whether to tidy.
    pub fn came(&mut self, pictures: u32, bytes: u64) -> bool {
        self.since = self.since.saturating_add(pictures);
        self.is_due(bytes)
    }

    /// A tidying is done, or failed; `bytes` are kept now. Whether to tidy again.
    pub fn done(&mut self, well: bool, bytes: u64) -> bool {
        self.busy = false;
        self.well = well;
        self.is_due(bytes)
    }

    fn is_due(&mut self, bytes: u64) -> bool {
        // Where the last one failed, the log is not to be filled with the same failure for each picture.
        let beyond = self.since > 0 && self.well && bytes > self.bytes_max;
        let due = !self.busy && (beyond || self.since >= EVERY);
        if due {
            self.busy = true;
            self.since = 0;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_and_the_number_of_pictures_count() {
        let mut tidy = Tidy::started(1000);
        assert!(!tidy.came(1, 5000), "the first one is under way");
        assert!(tidy.done(true, 1001), "a picture came meanwhile");
        assert!(!tidy.done(true, 5000), "it can't help, and none came since");
        assert!(!tidy.came(1, 1000), "up to the bound");
        assert!(tidy.came(1, 1001) && !tidy.came(1, 1002), "one at a time");
        assert!(!tidy.done(true, 900));
        assert!(!tidy.came(EVERY - 2, 900) && tidy.came(1, 900), "with the one that came meanwhile");
    }

    #[test]
    fn a_failure_is_not_tried_again_by_each_picture() {
        let mut tidy = Tidy::started(1000);
        assert!(!tidy.done(true, 0));
        assert!(tidy.came(1, 2000));
        assert!(!tidy.done(false, 2000));
        for _ in 1..EVERY {
            assert!(!tidy.came(1, 2000));
        }
        assert!(tidy.came(1, 2000), "but now and then");
        assert!(!tidy.done(true, 2000));
        assert!(tidy.came(1, 2000));
    }
}
