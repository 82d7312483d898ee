//! The fragments that are not known to be stored yet, oldest first, within a bound of bytes in memory and another on
//! disk.
//!
//! When memory is full, closed fragments go to the [`Store`] (newest first, since the oldest is sent next); when that is
//! full or absent, the oldest fragments are dropped and counted, but never the open one and never the one that is being
//! sent (half a fragment would break the stream for the receiver): those two may exceed the bound.
//! Invariants: `seq` grows from front to back; the byte counts are those of the fragments.

use std::collections::VecDeque;

use super::fragment::{End, Fragment};

/// Where fragments can lie beside memory.
pub trait Store {
    /// Keeps a fragment.
    ///
    /// # Errors
    /// In words; the fragment then stays in memory.
    fn write(&mut self, fragment: &Fragment) -> Result<(), String>;
    /// Its blocks.
    ///
    /// # Errors
    /// In words; the fragment is lost then.
    fn read(&mut self, seq: u64) -> Result<Vec<u8>, String>;
    /// Forgets it.
    fn remove(&mut self, seq: u64);
}

/// A fragment and where it lies.
#[derive(Debug)]
pub struct Entry {
    /// Its `blocks` are empty while it is on disk.
    pub fragment: Fragment,
    /// Bytes of its blocks on disk; `None`: it is in memory.
    pub on_disk: Option<usize>,
    /// How often the service has refused it.
    pub refusals: u32,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.on_disk.unwrap_or(self.fragment.blocks.len())
    }
}

/// Bounds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// In memory.
    pub memory: usize,
    /// On disk.
    pub disk: u64,
}

/// The ring. `None` for a store: memory only.
pub struct Ring {
    entries: VecDeque<Entry>,
    bounds: Bounds,
    memory: usize,
    disk: u64,
    store: Option<Box<dyn Store + Send>>,
    next_seq: u64,
    dropped: u64,
    trouble: Option<String>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("entries", &self.entries.len())
            .field("memory", &self.memory)
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring that holds what a former run left in the store, oldest first.
    pub fn new(bounds: Bounds, store: Option<Box<dyn Store + Send>>, left: Vec<(Fragment, usize)>) -> Ring {
        let next_seq = left.iter().map(|(f, _)| f.seq + 1).max().unwrap_or(0);
        let disk = left.iter().map(|(_, bytes)| *bytes as u64).sum();
        let entry = |(fragment, bytes)| Entry { fragment, on_disk: Some(bytes), refusals: 0 };
        let entries = left.into_iter().map(entry).collect();
        Ring { entries, bounds, memory: 0, disk, store, next_seq, dropped: 0, trouble: None }
    }

    /// The number of the next fragment.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The highest run's number.
    pub fn last_run(&self) -> Option<u64> {
        self.entries.iter().map(|entry| entry.fragment.run.id).max()
    }

    /// Adds the newest.
    pub fn push(&mut self, fragment: Fragment) {
        self.next_seq = fragment.seq + 1;
        self.memory += fragment.blocks.len();
        self.entries.push_back(Entry { fragment, on_disk: None, refusals: 0 });
    }

    /// The open fragment.
    pub fn open(&mut self) -> Option<&mut Fragment> {
        self.entries.back_mut().map(|e| &mut e.fragment).filter(|f| f.end == End::Open)
    }

    /// Whether the newest fragment is open.
    pub fn is_open(&self) -> bool {
        self.entries.back().is_some_and(|entry| entry.fragment.end == End::Open)
    }

    /// The open fragment has grown by so many bytes.
    pub fn grown(&mut self, bytes: usize) {
        self.memory += bytes;
    }

    /// One by its number.
    pub fn get(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(self.position(seq)?)
    }

    /// One by its number.
    pub fn get_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        let at = self.position(seq)?;
        self.entries.get_mut(at)
    }

    fn position(&self, seq: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&seq, |e| e.fragment.seq).ok()
    }

    /// The oldest from `seq` on.
    pub fn from(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(self.entries.partition_point(|e| e.fragment.seq < seq))
    }

    /// Makes sure that the fragment's blocks are in memory. One that can't be read is dropped: `false`.
    pub fn load(&mut self, seq: u64) -> bool {
        let Some(at) = self.position(seq) else { return false };
        let Some(bytes) = self.entries[at].on_disk else { return true };
        let Some(store) = &mut self.store else { return false };
        match store.read(seq) {
            Ok(blocks) => {
                store.remove(seq);
                self.disk -= bytes as u64;
                self.memory += blocks.len();
                let entry = &mut self.entries[at];
                (entry.fragment.blocks, entry.on_disk) = (blocks, None);
                true
            }
            Err(why) => {
                self.trouble = Some(why);
                self.drop_one(seq);
                false
            }
        }
    }

    /// Forgets a fragment: it is stored, or refused.
    pub fn remove(&mut self, seq: u64) -> Option<Entry> {
        let entry = self.entries.remove(self.position(seq)?)?;
        match entry.on_disk {
            Some(bytes) => {
                self.disk -= bytes as u64;
                if let Some(store) = &mut self.store {
                    store.remove(seq);
                }
            }
            None => self.memory -= entry.fragment.blocks.len(),
        }
        Some(entry)
    }

    /// Keeps the bounds. `sending` is the fragment that is half sent.
    pub fn trim(&mut self, sending: Option<u64>) {
        let movable = |e: &Entry| e.fragment.end != End::Open && Some(e.fragment.seq) != sending;
        while self.memory > self.bounds.memory {
            let fits = |e: &Entry| e.on_disk.is_none() && movable(e) && e.bytes() as u64 <= self.bounds.disk;
            let newest = self.entries.iter().rposition(fits).filter(|_| self.store.is_some());
            if newest.is_some_and(|at| self.spill(at)) {
                continue;
            }
            // Dropping one on disk makes room there, for one that can move.
            let oldest =
                self.entries.iter().find(|e| movable(e) && (newest.is_some() || e.on_disk.is_none()));
            let Some(seq) = oldest.map(|e| e.fragment.seq) else { break };
            self.drop_one(seq);
        }
        while self.disk > self.bounds.disk {
            let oldest = self.entries.iter().find(|e| e.on_disk.is_some()).map(|e| e.fragment.seq);
            let Some(seq) = oldest else { break };
            self.drop_one(seq);
        }
    }

    fn drop_one(&mut self, seq: u64) {
        self.remove(seq);
        self.dropped += 1;
    }

    /// Moves one to the store, if there is room.
    fn spill(&mut self, at: usize) -> bool {
        let Some(entry) = self.entries.get_mut(at) else { return false };
        let bytes = entry.bytes();
        let Some(store) = self.store.as_mut().filter(|_| self.disk + bytes as u64 <= self.bounds.disk) else {
            return false;
        };
        if let Err(why) = store.write(&entry.fragment) {
            self.trouble = Some(why);
            return false;
        }
        entry.fragment.blocks = Vec::new();
        entry.on_disk = Some(bytes);
        self.memory -= bytes;
        self.disk += bytes as u64;
        true
    }

    /// Moves the closed fragments to the store, for the next start, as far as there is room. Without one, nothing happens.
    pub fn save(&mut self) {
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            if entry.on_disk.is_none() && entry.fragment.end != End::Open && !self.spill(at) {
                return;
            }
        }
    }

    /// Fragments there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes in memory and on disk.
    pub fn bytes(&self) -> (usize, u64) {
        (self.memory, self.disk)
    }

    /// Fragments that were dropped for want of room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What went wrong with the store since it was last asked.
    pub fn take_trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use super::super::fragment::Run;
    use super::*;
    use crate::h264::{Header, Sps};

    #[derive(Default, Clone)]
    struct Disk(Arc<Mutex<BTreeMap<u64, Vec<u8>>>>);

    impl Store for Disk {
        fn write(&mut self, fragment: &Fragment) -> Result<(), String> {
            self.0.lock().unwrap().insert(fragment.seq, fragment.blocks.clone());
            Ok(())
        }
        fn read(&mut self, seq: u64) -> Result<Vec<u8>, String> {
            self.0.lock().unwrap().get(&seq).cloned().ok_or("gone".into())
        }
        fn remove(&mut self, seq: u64) {
            self.0.lock().unwrap().remove(&seq);
        }
    }

    fn fragment(seq: u64, bytes: usize, end: End) -> Fragment {
        let sps = Sps {
            profile: 66,
            constraints: 0,
            level: 30,
            width: 16,
            height: 16,
            chroma_format: 1,
            bit_depth_luma: 8,
            bit_depth_chroma: 8,
        };
        let header = Header { sps_nal: vec![0x67], pps_nal: vec![0x68], sps };
        let run = Arc::new(Run { id: 0, header });
        Fragment { seq, run, start_ms: seq, length_ms: 0, frames: 1, blocks: vec![seq as u8; bytes], end }
    }

    fn seqs(ring: &Ring) -> Vec<(u64, bool)> {
        ring.entries.iter().map(|e| (e.fragment.seq, e.on_disk.is_some())).collect()
    }

    #[test]
    fn the_oldest_go_but_neither_the_open_one_nor_the_one_being_sent() {
        let mut ring = Ring::new(Bounds { memory: 30, disk: 0 }, None, Vec::new());
        for seq in 0..5 {
            ring.push(fragment(seq, 10, End::Next));
        }
        ring.push(fragment(5, 10, End::Open));
        ring.trim(Some(0));
        assert_eq!(seqs(&ring), [(0, false), (4, false), (5, false)]);
        assert_eq!((ring.dropped(), ring.bytes()), (3, (30, 0)));
        ring.open().unwrap().blocks.resize(60, 0);
        ring.grown(50);
        ring.trim(Some(0));
        assert_eq!((seqs(&ring), ring.bytes()), (vec![(0, false), (5, false)], (70, 0)));
        assert_eq!(ring.from(1).unwrap().fragment.seq, 5);
        assert!(ring.get(4).is_none() && ring.remove(4).is_none());
    }

    #[test]
    fn what_memory_does_not_hold_goes_to_disk_and_comes_back() {
        let disk = Disk::default();
        let bounds = Bounds { memory: 30, disk: 40 };
        let mut ring = Ring::new(bounds, Some(Box::new(disk.clone())), Vec::new());
        for seq in 0..7 {
            ring.push(fragment(seq, 10, End::Next));
            ring.trim(Some(0));
        }
        let there = |ring: &Ring| {
            seqs(ring)
                .iter()
                .map(|(s, d)| format!("{s}{}", if *d { "d" } else { "" }))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(there(&ring), "0 1 2 3d 4d 5d 6d");
        for seq in 7..12 {
            ring.push(fragment(seq, 10, End::Next));
            ring.trim(Some(0));
            assert!(ring.bytes().0 <= 30 && ring.bytes().1 <= 40, "{ring:?}");
        }
        // The oldest are gone, whether they lay in memory or on disk; the one being sent is not.
        assert_eq!((ring.dropped(), ring.len()), (5, 7));
        assert_eq!(seqs(&ring).iter().map(|(s, _)| *s).collect::<Vec<_>>(), [0, 6, 7, 8, 9, 10, 11]);
        let on_disk =
            |ring: &Ring| seqs(ring).iter().filter(|(_, d)| *d).map(|(s, _)| *s).collect::<Vec<_>>();
        assert_eq!(on_disk(&ring), disk.0.lock().unwrap().keys().copied().collect::<Vec<_>>());
        let (first, second) = (on_disk(&ring)[0], on_disk(&ring)[1]);
        assert!(ring.load(first) && ring.get(first).unwrap().fragment.blocks == vec![first as u8; 10]);
        ring.remove(first);
        disk.0.lock().unwrap().remove(&second);
        assert!(!ring.load(second), "one that can't be read is dropped");
        assert_eq!((ring.take_trouble().as_deref(), ring.dropped()), (Some("gone"), 6));
        ring.remove(0);
        ring.save();
        assert_eq!(on_disk(&ring).len() as u64, ring.bytes().1 / 10);
    }
}
