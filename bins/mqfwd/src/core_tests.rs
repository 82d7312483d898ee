//! The outlet's rules in exact situations, on the models of the simulation.

use std::sync::Arc;

use super::sim::{LIMITS, ModelQueue, Wire, at, routes, settings};
use super::*;

/// An outlet that is connected, with `n` QoS 1 messages, after the first pump.
fn sending(n: usize, settings: Settings) -> (Outlet<u64>, ModelQueue, Wire, Now) {
    let mut queue = ModelQueue::default();
    (0..n).for_each(|_| queue.add("t", Qos::AtLeastOnce));
    let mut wire = Wire { room: 100, ..Wire::default() };
    let mut outlet = Outlet::new(settings, routes(), &queue, &mut wire);
    let now = at(Instant::now(), 1000);
    outlet.connected(true, LIMITS, &mut queue, &mut wire).unwrap();
    outlet.pump(&mut queue, &mut wire, now).unwrap();
    (outlet, queue, wire, now)
}

#[test]
fn a_message_that_ends_every_connection_is_isolated_and_buried_alone() {
    let (mut outlet, mut queue, mut wire, now) = sending(10, settings());
    for n in 1..=5 {
        assert_eq!(outlet.in_flight(), if n <= 2 { 10 } else { 1 }, "connection {n}");
        outlet.disconnected(DisconnectKind::Closed, &mut queue, &mut wire, now).unwrap();
        outlet.connected(true, LIMITS, &mut queue, &mut wire).unwrap();
        outlet.pump(&mut queue, &mut wire, now).unwrap();
    }
    assert_eq!(queue.dead.len(), 1);
    assert!(queue.dead[0].1.contains("closed 5 connections in a row"), "{:?}", queue.dead);
    assert_eq!(outlet.in_flight(), 9, "the others go on");
}

#[test]
fn a_connection_that_just_breaks_buries_nothing() {
    let (mut outlet, mut queue, mut wire, now) = sending(3, settings());
    for _ in 0..50 {
        outlet.disconnected(DisconnectKind::Timeout, &mut queue, &mut wire, now).unwrap();
        outlet.connected(true, LIMITS, &mut queue, &mut wire).unwrap();
        outlet.pump(&mut queue, &mut wire, now).unwrap();
    }
    assert!(queue.dead.is_empty() && outlet.suspect().is_none());
}

#[test]
fn refusals_wait_hold_or_bury_by_their_reason() {
    let (mut outlet, mut queue, mut wire, now) = sending(4, settings());
    outlet.puback(1, 0x90, &mut queue, &mut wire, now).unwrap();
    assert_eq!(queue.dead[0].1, "the next hop refused it: topic name invalid (0x90)".to_owned());
    assert!(outlet.held().is_none());
    outlet.puback(2, 0x87, &mut queue, &mut wire, now).unwrap();
    assert!(outlet.held().is_some_and(|hold| hold.alarm));
    outlet.puback(3, 0x97, &mut queue, &mut wire, now).unwrap();
    assert!(outlet.held().is_some_and(|hold| !hold.alarm && hold.why.contains("0x97")));
    outlet.puback(4, 0x00, &mut queue, &mut wire, now).unwrap();
    let sent = wire.sent.len();
    outlet.puback(4, 0x00, &mut queue, &mut wire, now).unwrap();
    queue.add("t", Qos::AtLeastOnce);
    outlet.hold = Some(Hold {
        why: "x".into(),
        until: now.mono + Duration::from_secs(1),
        alarm: true,
        delay: Duration::from_secs(1),
    });
    outlet.pump(&mut queue, &mut wire, now).unwrap();
    assert_eq!(wire.sent.len(), sent, "nothing goes out while held");
    let later = Now { mono: now.mono + Duration::from_secs(1), ..now };
    outlet.pump(&mut queue, &mut wire, later).unwrap();
    assert_eq!(wire.sent.len(), sent + 1, "one probe");
    assert_eq!(
        wire.sent.last().unwrap().2.payload,
        2u64.to_be_bytes(),
        "the probe is the one that was refused"
    );
}

#[test]
fn the_window_is_the_smaller_of_ours_and_the_peers() {
    let (outlet, ..) = sending(40, settings());
    assert_eq!(outlet.in_flight(), 16);
    let (mut outlet, mut queue, mut wire, now) = sending(0, settings());
    (0..40).for_each(|_| queue.add("t", Qos::AtLeastOnce));
    outlet.connected(true, PeerLimits { receive_maximum: 3, ..LIMITS }, &mut queue, &mut wire).unwrap();
    outlet.pump(&mut queue, &mut wire, now).unwrap();
    assert_eq!(outlet.in_flight(), 3);
}

#[test]
fn the_oldest_unacknowledged_message_asks_for_a_new_connection() {
    let (mut outlet, mut queue, mut wire, now) = sending(2, settings());
    let later = |s| now.mono + Duration::from_secs(s);
    assert_eq!(outlet.deadline(), Some(later(30)));
    assert_eq!(outlet.timer(later(29)), None);
    outlet.puback(1, 0, &mut queue, &mut wire, now).unwrap();
    let why = outlet.timer(later(30)).unwrap();
    assert_eq!(why, "message 2 is not acknowledged after 30 s");
    outlet.puback(2, 0, &mut queue, &mut wire, now).unwrap();
    assert_eq!(outlet.timer(later(60)), None);
    assert_eq!(outlet.deadline(), None);
}

#[test]
fn a_resend_keeps_id_and_order_and_says_dup() {
    let (mut outlet, mut queue, mut wire, now) = sending(3, settings());
    outlet.puback(2, 0, &mut queue, &mut wire, now).unwrap();
    outlet.disconnected(DisconnectKind::Timeout, &mut queue, &mut wire, now).unwrap();
    wire.sent.clear();
    outlet.connected(true, LIMITS, &mut queue, &mut wire).unwrap();
    outlet.pump(&mut queue, &mut wire, now).unwrap();
    let sent: Vec<_> = wire.sent.iter().map(|(pid, dup, message)| (*pid, *dup, message.payload[7])).collect();
    assert_eq!(sent, [(Some(1), true, 1), (Some(3), true, 3)]);
}

#[test]
fn a_message_is_renamed_marked_and_aged() {
    let mut queue = ModelQueue::default();
    queue.add("t", Qos::AtLeastOnce);
    Arc::get_mut(&mut queue.records[0]).unwrap().message.properties.expiry_s = Some(1500);
    queue.add("t", Qos::AtLeastOnce);
    Arc::get_mut(&mut queue.records[1]).unwrap().message.properties.expiry_s = Some(999);
    let mut wire = Wire { room: 100, ..Wire::default() };
    let mut outlet = Outlet::new(settings(), routes(), &queue, &mut wire);
    outlet.connected(true, LIMITS, &mut queue, &mut wire).unwrap();
    outlet.pump(&mut queue, &mut wire, at(Instant::now(), 1000)).unwrap();
    let (_, _, message) = &wire.sent[0];
    assert_eq!(message.topic, "up/t");
    assert_eq!(message.properties.expiry_s, Some(500));
    let user: Vec<_> = message.properties.user.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(user, [("origin", "dev/1"), ("seq", "1"), ("hop", "dev/h")]);
    assert_eq!((wire.sent.len(), outlet.counters.expired), (1, 1), "the second one is too old");
    assert!(queue.acked.contains(&2));
}
