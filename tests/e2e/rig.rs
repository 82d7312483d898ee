//! The rig itself, without any daemon: an account that can't find fault proves nothing.

use std::time::{Duration, Instant};

use e2e::broker::Broker;
use e2e::env::wait_for;
use e2e::mqtt::Version;
use e2e::proxy::Proxy;
use e2e::publisher::{self, Plan, Publisher};
use e2e::scratch::Scratch;
use e2e::subscriber::{Account, Subscriber};
use e2e::{need, net, picture, skip};

const SOON: Duration = Duration::from_secs(60);

/// A broker that says who subscribes, for [`wait_subscribed`].
pub fn telling_broker(scratch: &Scratch, name: &str) -> Broker {
    Broker::start_with(scratch, name, net::free_port(), "max_queued_messages 0\nlog_type subscribe\n")
}

/// Waits until the client's subscription stands by the broker's own word: a client that is connected has yet to ask for it.
pub fn wait_subscribed(broker: &Broker, client: &str) {
    let told = format!(": {client} ");
    wait_for(&format!("the subscription of {client}"), SOON, || {
        broker.process().lines.contain(&told).then_some(())
    });
}

/// Publisher -> proxy -> mosquitto -> mosquitto_sub, the proxy cutting: the account balances.
#[test]
fn publisher_and_subscriber_agree_through_cuts() {
    need!("mosquitto", "mosquitto_sub");
    for (qos, version) in [(1, Version::V311), (1, Version::V5), (2, Version::V311), (2, Version::V5)] {
        let scratch = Scratch::new("rig");
        let broker = Broker::start(&scratch, "b");
        let proxy = Proxy::start(broker.port);
        let subscriber = Subscriber::start(broker.port, "t/#", "sub");
        let plan = Plan { version, rate: 4000, ..Plan::new(proxy.port, "pub", qos, 3000) };
        // The last ones are kept back until it has been cut off often enough.
        let mut publisher = Publisher::start_limited(plan, 2500);
        let (begun, mut cuts) = (Instant::now(), 0);
        while cuts < 8 || publisher.reconnects() < 3 {
            assert!(begun.elapsed() < SOON, "{cuts} cuts were not felt");
            std::thread::sleep(Duration::from_millis(60));
            proxy.cut();
            cuts += 1;
        }
        publisher.limit(3000);
        publisher.wait_done(SOON);
        let got = subscriber.wait_distinct(3000, SOON);
        let account = Account::of(&publisher.acked_numbers(), &got);
        assert_eq!(account.distinct, 3000);
        account.check(qos == 2);
        if version == Version::V5 {
            assert_eq!(got[0].user.get("n").map(String::as_str), Some("0"));
            assert_eq!(got[0].content_type.as_deref(), Some("text/plain"));
        }
    }
}

/// The account finds loss, duplicates, wrong order and damage.
#[test]
fn account_finds_what_is_wrong() {
    let got = |numbers: &[u64]| -> Vec<_> { numbers.iter().map(|n| arrived(*n)).collect() };
    assert_eq!(Account::of(&[0, 3, 6], &got(&[0, 6])).lost, [3]);
    assert_eq!(Account::of(&[0, 3], &got(&[0, 3, 0])).duplicates.len(), 1);
    assert_eq!(Account::of(&[0, 3, 6], &got(&[0, 6, 3])).out_of_order, [3]);
    let mut damaged = got(&[0]);
    damaged[0].payload.replace_range(20..21, "~");
    assert_eq!(Account::of(&[], &damaged).damaged, 1);
}

fn arrived(n: u64) -> e2e::subscriber::Got {
    let payload = String::from_utf8(publisher::payload(n, 64)).unwrap();
    let topic = "t/a".to_owned();
    let at = std::time::Instant::now();
    e2e::subscriber::Got {
        topic,
        qos: 1,
        payload,
        content_type: None,
        user: Default::default(),
        expiry_s: None,
        at,
    }
}

/// The photograph comes from its package, and a video can be made of it.
#[test]
fn pictures_can_be_made() {
    need!("ffmpeg", "python3");
    let photo = match picture::astronaut() {
        Ok(photo) => photo,
        Err(why) => skip!("the photograph can't be fetched: {why}"),
    };
    let scratch = Scratch::new("pictures");
    picture::stills(&photo, &scratch.join("stills"), 2);
    picture::video(&photo, &scratch.join("v.mp4"), 2);
    assert!(scratch.join("stills/001.jpg").metadata().unwrap().len() > 10_000);
    assert!(scratch.join("v.mp4").metadata().unwrap().len() > 20_000);
}
