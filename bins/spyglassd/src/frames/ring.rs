//! The memory that an application and this daemon share, and whose each of its slots is.
//!
//! The daemon makes the memory and seals its size, so that a client can never shrink it under GStreamer's feet. A slot
//! is the client's until it says FRAME, then ours until the last user of its bytes lets go ([`SlotBytes`] is dropped, on
//! whatever thread), which sends RELEASE at once. One file holds all slots: one descriptor, one mapping on either side,
//! made once; nothing is mapped, copied or allocated per frame.
//! Owns: the memory file, its mapping, the slots' owners. Invariants: a slot is in use at most once; a RELEASE that the
//! socket had no room for is owed and sent when it has; after [`Ring::retire`] none is sent. Never: reads a pixel.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge::sys::SharedMap;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::wire::Message;

/// Most slots: one bit each.
pub const SLOTS_MAX: u32 = 32;

/// The memory of one stream.
#[derive(Debug)]
pub struct Ring {
    socket: Arc<OwnedFd>,
    file: OwnedFd,
    map: SharedMap,
    slots: u32,
    slot_bytes: usize,
    owners: Mutex<Owners>,
}

/// A bit a slot.
#[derive(Debug, Default)]
struct Owners {
    /// Ours.
    busy: u32,
    /// The client's again, and it was not told yet.
    owed: u32,
    retired: bool,
}

/// Why a slot can't be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// There is none of this number.
    #[error("slot {0}: the ring has {1} slots")]
    Number(u32, u32),
    /// It was not released.
    #[error("slot {0}: it was not released yet")]
    Busy(u32),
    /// The picture is larger than the slot.
    #[error("a picture of {0} bytes does not fit into a slot of {1} bytes; say HELLO again for larger slots")]
    Small(usize, usize),
}

impl Ring {
    /// `slots` slots (1 to [`SLOTS_MAX`]) of `slot_bytes` bytes for the client behind `socket`.
    ///
    /// # Errors
    /// What the system says: no memory, no descriptor.
    pub fn new(slots: u32, slot_bytes: usize, socket: Arc<OwnedFd>) -> io::Result<Arc<Ring>> {
        let slots = slots.clamp(1, SLOTS_MAX);
        let bytes = slot_bytes
            .checked_mul(slots as usize)
            .ok_or_else(|| io::Error::other("the slots are larger than memory can be"))?;
        let file = rustix::fs::memfd_create("spyglassd", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let map = SharedMap::new(&file, bytes)?;
        Ok(Arc::new(Ring { socket, file, map, slots, slot_bytes, owners: Mutex::default() }))
    }

    /// Tells the client about the memory, with its descriptor.
    ///
    /// # Errors
    /// What `sendmsg(2)` says; the client then has no ring.
    pub fn announce(&self) -> io::Result<()> {
        let packet = Message::Ring { slots: self.slots, slot_bytes: self.slot_bytes as u64 }.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [self.file.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&packet)], &mut control, flags)?;
        Ok(())
    }

    /// Bytes of each slot.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Slots that hold frames which are not done with.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.owners().busy.count_ones()
    }

    /// Takes slot `slot`, which holds a picture of `bytes` bytes.
    ///
    /// # Errors
    /// [`SlotError`]; the client broke the protocol.
    pub fn claim(self: &Arc<Self>, slot: u32, bytes: usize) -> Result<SlotBytes, SlotError> {
        if slot >= self.slots {
            return Err(SlotError::Number(slot, self.slots));
        }
        if bytes > self.slot_bytes {
            return Err(SlotError::Small(bytes, self.slot_bytes));
        }
        let mut owners = self.owners();
        if owners.busy & (1 << slot) != 0 {
            return Err(SlotError::Busy(slot));
        }
        owners.busy |= 1 << slot;
        // A client that does not read what it is told may use a slot whose release is still owed to it: it is not,
        // any more.
        owners.owed &= !(1 << slot);
        drop(owners);
        Ok(SlotBytes { ring: Arc::clone(self), slot, bytes })
    }

    /// Sends the releases that are owed, as far as the socket has room.
    pub fn flush(&self) {
        self.send_owed(&mut self.owners());
    }

    /// The client is gone or has another ring: nothing more is sent.
    pub fn retire(&self) {
        self.owners().retired = true;
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, slot: u32) {
        let mut owners = self.owners();
        owners.busy &= !(1 << slot);
        owners.owed |= 1 << slot;
        self.send_owed(&mut owners);
    }

    fn send_owed(&self, owners: &mut Owners) {
        while owners.owed != 0 && !owners.retired {
            let slot = owners.owed.trailing_zeros();
            let packet = Message::Release { slot }.encode();
            match rustix::net::send(&self.socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) => owners.owed &= !(1 << slot),
                Err(rustix::io::Errno::INTR) => {}
                // No room: the loop comes back when there is. A client that is gone is noticed by the loop, too.
                Err(_) => return,
            }
        }
    }
}

/// A frame's bytes in their slot. Dropping it gives the slot back.
#[derive(Debug)]
pub struct SlotBytes {
    ring: Arc<Ring>,
    slot: u32,
    bytes: usize,
}

impl AsRef<[u8]> for SlotBytes {
    fn as_ref(&self) -> &[u8] {
        // `claim` checked that it lies inside.
        self.ring.map.bytes(self.slot as usize * self.ring.slot_bytes, self.bytes).unwrap_or_default()
    }
}

impl Drop for SlotBytes {
    fn drop(&mut self) {
        self.ring.release(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (Arc<OwnedFd>, OwnedFd) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Arc::new(ours), theirs)
    }

    fn next(socket: &OwnedFd) -> Option<Message> {
        let mut packet = [0u8; 256];
        let (_, len) = rustix::net::recv(socket, &mut packet[..], RecvFlags::empty()).ok()?;
        Some(Message::decode(&packet[..len]).unwrap())
    }

    #[test]
    fn a_slot_is_ours_until_its_bytes_are_dropped() {
        let (ours, theirs) = pair();
        let ring = Ring::new(2, 100, ours).unwrap();
        ring.announce().unwrap();
        assert_eq!(next(&theirs), Some(Message::Ring { slots: 2, slot_bytes: 100 }));
        let bytes = ring.claim(1, 60).unwrap();
        assert_eq!((bytes.as_ref().len(), ring.in_use()), (60, 1));
        assert_eq!(ring.claim(1, 60).unwrap_err(), SlotError::Busy(1));
        assert_eq!(ring.claim(2, 60).unwrap_err(), SlotError::Number(2, 2));
        assert_eq!(ring.claim(0, 101).unwrap_err(), SlotError::Small(101, 100));
        assert_eq!(next(&theirs), None);
        std::thread::spawn(move || drop(bytes)).join().unwrap();
        assert_eq!(next(&theirs), Some(Message::Release { slot: 1 }));
        let bytes = ring.claim(1, 100).unwrap();
        ring.retire();
        drop(bytes);
        assert_eq!(next(&theirs), None);
    }

    #[test]
    fn the_memory_can_neither_shrink_nor_grow() {
        let ring = Ring::new(1, 4096, pair().0).unwrap();
        assert!(rustix::fs::ftruncate(&ring.file, 0).is_err());
        assert!(rustix::fs::ftruncate(&ring.file, 8192).is_err());
        assert!(rustix::fs::fcntl_add_seals(&ring.file, SealFlags::WRITE).is_err());
    }

    #[test]
    fn releases_that_found_no_room_are_sent_later() {
        let (ours, theirs) = pair();
        let ring = Ring::new(4, 10, ours).unwrap();
        let mut told = 0;
        // A client that uses a slot again and again and never reads.
        for _ in 0..20_000 {
            drop(ring.claim(3, 1).unwrap());
        }
        assert_eq!(ring.owners().owed, 1 << 3, "the queue is full");
        while next(&theirs).is_some() {
            told += 1;
        }
        assert!(told > 0 && told < 20_000);
        ring.flush();
        assert_eq!(next(&theirs), Some(Message::Release { slot: 3 }));
        assert_eq!((next(&theirs), ring.owners().owed), (None, 0));
    }
}
