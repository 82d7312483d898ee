//! The way out: which record is sent next, under which packet id, in what form.
//!
//! Owns: nothing; the methods of [`Outlet`] that publish. Invariants: records go out in the order of the queue, those
//! that wait for the journal hold back those behind them; QoS 2 is published only after its packet id is durable.

use std::time::Instant;

use edge::mqtt::{Message, PeerLimits, PublishError, Qos};
use edge::spool::{Delivery, OutState, Record};

use super::{Flight, Flow, HOP, Now, Outlet, Peer, Queue, Ready};

impl<T: Copy + Ord> Outlet<T> {
    /// Sends what the window, the journal and the output buffer allow.
    pub fn pump<Q: Queue<Ticket = T>>(
        &mut self,
        queue: &mut Q,
        peer: &mut impl Peer,
        now: Now,
    ) -> Result<(), Q::Error> {
        let Some(limits) = self.limits else { return Ok(()) };
        let durable = queue.durable();
        while let Some((ticket, pid)) = self.releases.front().copied()
            && ticket <= durable
            && peer.pubrel(pid).is_ok()
        {
            self.releases.pop_front();
        }
        while self.waiting.front().is_some_and(|(ticket, _)| *ticket <= durable)
            && let Some((ticket, ready)) = self.waiting.pop_front()
        {
            if let Some(back) = self.transmit(ready, limits, queue, peer, now)? {
                self.waiting.push_front((ticket, back));
                return Ok(());
            }
        }
        if let Some(ready) = self.stash.take()
            && let Some(back) = self.transmit(ready, limits, queue, peer, now)?
        {
            self.stash = Some(back);
            return Ok(());
        }
        while self.flights.len() + self.waiting.len() < self.window(limits, now.mono) {
            let delivery = match self.retry.pop_front() {
                Some((seq, pid)) => {
                    let outbound = pid.map(|pid| (pid, OutState::Published));
                    match queue.fetch(seq)? {
                        Some(record) => Delivery { record, again: true, outbound },
                        None => continue,
                    }
                }
                None => match queue.next()? {
                    Some(delivery) => delivery,
                    None => break,
                },
            };
            if self.offer(delivery, limits, queue, peer, now)? == Flow::Stop {
                break;
            }
        }
        Ok(())
    }

    fn window(&self, limits: PeerLimits, now: Instant) -> usize {
        match &self.hold {
            Some(hold) if now < hold.until => 0,
            Some(_) => 1,
            // Alone, so that it is known which message ends the connection.
            None if self.suspect.is_some_and(|(_, count)| count >= 2) => 1,
            None => self.settings.window.min(usize::from(limits.receive_maximum)),
        }
    }

    /// Decides QoS and packet id of the next record, and sends it or puts it where it waits.
    fn offer<Q: Queue<Ticket = T>>(
        &mut self,
        delivery: Delivery,
        limits: PeerLimits,
        queue: &mut Q,
        peer: &mut impl Peer,
        now: Now,
    ) -> Result<Flow, Q::Error> {
        let Delivery { record, outbound, .. } = delivery;
        let seq = record.seq;
        match outbound {
            Some((pid, OutState::Received)) => {
                self.flights.insert(pid, Flight { seq, qos: Qos::ExactlyOnce });
                self.sent.push_back((now.mono, pid, seq));
                // The journal's entry may be younger than its last commit: as with a fresh PUBREC, it goes first.
                self.releases.push_back((queue.written(), pid));
                return Ok(Flow::Go);
            }
            Some((pid, OutState::Published)) => {
                let ready = Ready { record, pid: Some(pid), qos: Qos::ExactlyOnce, dup: true };
                self.waiting.push_back((queue.written(), ready));
                return Ok(Flow::Go);
            }
            None => {}
        }
        if expired(&record, now.unix_ms) {
            self.counters.expired += 1;
            queue.ack(seq);
            if let Some(pid) = self.kept.remove(&seq) {
                peer.release_pid(pid);
            }
            return Ok(Flow::Go);
        }
        let Some((_, route_qos)) = self.routes.target(&record.message.topic) else {
            let reason = format!("no [[route]] takes the topic {:?} any more", record.message.topic);
            self.bury(seq, &reason, queue, now)?;
            return Ok(Flow::Go);
        };
        let qos = record.message.qos.min(route_qos);
        if qos > Qos::AtMostOnce && limits.max_qos == Qos::AtMostOnce {
            self.retry.push_front((seq, None));
            self.pause("the next hop takes QoS 0 only, which would lose messages".into(), true, now.mono);
            return Ok(Flow::Stop);
        }
        let qos = qos.min(limits.max_qos);
        if qos == Qos::AtMostOnce {
            return self.send_in_order(
                Ready { record, pid: None, qos, dup: false },
                limits,
                queue,
                peer,
                now,
            );
        }
        let kept = self.kept.remove(&seq);
        let Some(pid) = kept.or_else(|| peer.acquire_pid()) else {
            self.retry.push_front((seq, None));
            return Ok(Flow::Stop);
        };
        let ready = Ready { record, pid: Some(pid), qos, dup: kept.is_some() };
        if qos == Qos::ExactlyOnce {
            let ticket = queue.out_published(seq, pid)?;
            self.waiting.push_back((ticket, Ready { dup: false, ..ready }));
            return Ok(Flow::Go);
        }
        self.send_in_order(ready, limits, queue, peer, now)
    }

    fn send_in_order<Q: Queue<Ticket = T>>(
        &mut self,
        ready: Ready,
        limits: PeerLimits,
        queue: &mut Q,
        peer: &mut impl Peer,
        now: Now,
    ) -> Result<Flow, Q::Error> {
        if let Some((ticket, _)) = self.waiting.back() {
            self.waiting.push_back((*ticket, ready));
            return Ok(Flow::Go);
        }
        self.stash = self.transmit(ready, limits, queue, peer, now)?;
        Ok(if self.stash.is_some() { Flow::Stop } else { Flow::Go })
    }

    /// Puts a message into the output buffer. Gives it back where there is no room.
    fn transmit<Q: Queue<Ticket = T>>(
        &mut self,
        ready: Ready,
        limits: PeerLimits,
        queue: &mut Q,
        peer: &mut impl Peer,
        now: Now,
    ) -> Result<Option<Ready>, Q::Error> {
        let seq = ready.record.seq;
        let outcome = match self.outgoing(&ready, limits, now.unix_ms) {
            Ok(message) => peer.publish(ready.pid, ready.dup, &message).map_err(|error| match error {
                PublishError::BufferFull | PublishError::WindowFull(_) | PublishError::NotConnected => None,
                error => Some(error.to_string()),
            }),
            Err(reason) => Err(Some(reason)),
        };
        match outcome {
            Ok(()) => {
                self.counters.sent += 1;
                self.counters.resent += u64::from(ready.dup);
                match ready.pid {
                    Some(pid) => {
                        self.flights.insert(pid, Flight { seq, qos: ready.qos });
                        self.sent.push_back((now.mono, pid, seq));
                    }
                    None => {
                        queue.ack(seq);
                        self.counters.acked += 1;
                    }
                }
                Ok(None)
            }
            Err(None) => Ok(Some(ready)),
            Err(Some(reason)) => {
                if let Some(pid) = ready.pid {
                    self.retire(pid, ready.qos, peer);
                }
                self.bury(seq, &reason, queue, now)?;
                Ok(None)
            }
        }
    }

    /// The message as the next hop gets it: renamed, with what is left of its expiry, and marked with `origin` and `seq`
    /// unless a hop before us did that.
    fn outgoing(&self, ready: &Ready, limits: PeerLimits, unix_ms: u64) -> Result<Message, String> {
        let stored = &ready.record.message;
        let topic = match self.routes.target(&stored.topic) {
            Some((Ok(topic), _)) => topic,
            Some((Err(error), _)) => return Err(error.to_string()),
            None => return Err(format!("no [[route]] takes the topic {:?} any more", stored.topic)),
        };
        let mut properties = stored.properties.clone();
        if let Some(expiry_s) = properties.expiry_s {
            let age_s = unix_ms.saturating_sub(ready.record.received_ms) / 1000;
            // A resend must not be refused for its age: at least a second is left.
            properties.expiry_s =
                Some(expiry_s.saturating_sub(u32::try_from(age_s).unwrap_or(u32::MAX)).max(1));
        }
        let marked = |name: &str| properties.user.iter().any(|(key, _)| key == name);
        if ready.record.is_durable() && !(marked("origin") && marked("seq")) {
            properties.user.push(("origin".into(), self.settings.origin.clone()));
            properties.user.push(("seq".into(), ready.record.seq.to_string()));
        }
        properties.user.push((HOP.into(), self.settings.hop.clone()));
        let retain = stored.retain && limits.retain;
        Ok(Message { topic, payload: stored.payload.clone(), qos: ready.qos, retain, properties })
    }
}

fn expired(record: &Record, unix_ms: u64) -> bool {
    let age_ms = unix_ms.saturating_sub(record.received_ms);
    record.message.properties.expiry_s.is_some_and(|expiry_s| age_ms >= u64::from(expiry_s) * 1000)
}
