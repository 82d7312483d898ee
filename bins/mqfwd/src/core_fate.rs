//! What becomes of a message: acknowledged, refused, held, or buried in `dead-letter/`.
//!
//! Owns: nothing; the methods of [`Outlet`] that take the next hop's answers. Invariant: a record is acknowledged in the
//! queue only when the next hop has it, or when it lies in `dead-letter/`.

use std::time::Instant;

use edge::mqtt::{Qos, reason_text};
use edge::spool::Seq;

use super::{Flight, Hold, Now, Outlet, Peer, Queue};

impl<T: Copy + Ord> Outlet<T> {
    /// Puts a record into `dead-letter/`. `false`: that failed, and it will be tried again after a pause.
    pub(super) fn bury<Q: Queue<Ticket = T>>(
        &mut self,
        seq: Seq,
        reason: &str,
        queue: &mut Q,
        now: Now,
    ) -> Result<bool, Q::Error> {
        if queue.dead_letter(seq, reason, now.unix_ms)? {
            log::warn!("message {seq} goes to dead-letter/: {reason}");
            self.counters.dead += 1;
            return Ok(true);
        }
        self.retry.push_back((seq, None));
        self.pause(format!("message {seq} can't be stored in dead-letter/ ({reason})"), true, now.mono);
        Ok(false)
    }

    /// The exchange under this id will not be finished.
    pub(super) fn retire(&mut self, pid: u16, qos: Qos, peer: &mut impl Peer) {
        match qos {
            Qos::ExactlyOnce => self.spent.push(pid),
            Qos::AtMostOnce | Qos::AtLeastOnce => peer.release_pid(pid),
        }
    }

    pub(super) fn pause(&mut self, why: String, alarm: bool, now: Instant) {
        let (min, max) = self.settings.hold;
        let delay = self.hold.as_ref().map_or(min, |hold| (hold.delay * 2).min(max));
        self.hold = Some(Hold { why, until: now + delay, alarm, delay });
    }

    /// PUBACK.
    pub fn puback<Q: Queue<Ticket = T>>(
        &mut self,
        pid: u16,
        reason: u8,
        queue: &mut Q,
        peer: &mut impl Peer,
        now: Now,
    ) -> Result<(), Q::Error> {
        let Some(flight) = self.flights.remove(&pid) else { return Ok(()) };
        if reason >= 0x80 {
            return self.refused(flight, pid, reason, queue, peer, now);
        }
        queue.ack(flight.seq);
        self.progress();
        Ok(())
    }

    /// PUBREC. The PUBREL follows when the journal has it.
    pub fn pubrec<Q: Queue<Ticket = T>>(
        &mut self,
        pid: u16,
        reason: u8,
        queue: &mut Q,
        peer: &mut impl Peer,
        now: Now,
    ) -> Result<(), Q::Error> {
        if reason >= 0x80 {
            let Some(flight) = self.flights.remove(&pid) else { return Ok(()) };
            return self.refused(flight, pid, reason, queue, peer, now);
        }
        match queue.out_received(pid)? {
            Some(ticket) => self.releases.push_back((ticket, pid)),
            // An exchange that nobody here knows: end it, so that the peer can forget it.
            None => drop(peer.pubrel(pid)),
        }
        self.suspect = None;
        self.progressed = true;
        Ok(())
    }

    /// PUBCOMP.
    pub fn pubcomp<Q: Queue<Ticket = T>>(&mut self, pid: u16, queue: &mut Q) -> Result<(), Q::Error> {
        self.flights.remove(&pid);
        if queue.out_done(pid)?.is_some() {
            self.progress();
        }
        Ok(())
    }

    fn progress(&mut self) {
        self.counters.acked += 1;
        self.progressed = true;
        self.suspect = None;
        self.hold = None;
        self.forget_finished();
    }

    /// The next hop refused one message, whose packet id is free thereby.
    fn refused<Q: Queue<Ticket = T>>(
        &mut self,
        flight: Flight,
        pid: u16,
        reason: u8,
        queue: &mut Q,
        peer: &mut impl Peer,
        now: Now,
    ) -> Result<(), Q::Error> {
        self.progressed = true;
        let text = format!("{} (0x{reason:02x})", reason_text(reason));
        let (why, alarm) = match reason {
            // Quota exceeded: it will have room again.
            0x97 => (format!("the next hop asks to wait: {text}"), false),
            // Not authorized: somebody must change its rules; until then nothing is thrown away.
            0x87 => (format!("the next hop does not let us publish: {text}"), true),
            // Packet identifier in use: the message is good.
            0x91 => (format!("the next hop mixes up packet ids: {text}"), false),
            _ => {
                self.bury(flight.seq, &format!("the next hop refused it: {text}"), queue, now)?;
                return Ok(());
            }
        };
        let journaled = flight.qos == Qos::ExactlyOnce && peer.reserve_pid(pid);
        self.retry.push_back((flight.seq, journaled.then_some(pid)));
        self.pause(why, alarm, now.mono);
        Ok(())
    }
}
