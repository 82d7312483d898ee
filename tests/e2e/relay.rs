//! `mqfwd` between two real brokers, or behind its own port, while it is killed and its connections
//! are cut: nothing acknowledged is lost, order holds, and QoS 2 means once.

use std::time::{Duration, Instant};

use e2e::broker::Broker;
use e2e::config::{End, Mqfwd};
use e2e::daemon::Daemon;
use e2e::env::seed;
use e2e::mqtt::Version;
use e2e::proxy::Proxy;
use e2e::publisher::{Plan, Publisher};
use e2e::scratch::Scratch;
use e2e::subscriber::{Account, Got, Subscriber};
use e2e::{need, net};

const KILLS: u32 = 50;
const LONG: Duration = Duration::from_secs(60);

/// Two brokers, two proxies, `mqfwd` between them, a subscriber at the far end.
pub struct Line {
    pub scratch: Scratch,
    pub local: Option<Broker>,
    pub local_proxy: Proxy,
    pub _cloud: Broker,
    pub cloud_proxy: Proxy,
    pub mqfwd: Daemon,
    pub subscriber: Subscriber,
    /// Where the publisher connects.
    pub publish_port: u16,
}

impl Line {
    /// Everything but the daemon is running. `change` may adapt its configuration.
    pub fn new(name: &str, listen: bool, qos: u8, change: impl FnOnce(&mut Mqfwd)) -> Line {
        let scratch = Scratch::new(name);
        let cloud = Broker::start(&scratch, "cloud");
        let cloud_proxy = Proxy::start(cloud.port);
        let (local, local_proxy, end, publish_port);
        if listen {
            // The proxy is between the publisher and the port.
            let port = net::free_port();
            (local, local_proxy, end) = (None, Proxy::start(port), End::Listen(port));
            publish_port = local_proxy.port;
        } else {
            // The proxy is between the broker and mqfwd; the publisher is at the broker.
            let broker = Broker::start(&scratch, "local");
            publish_port = broker.port;
            local_proxy = Proxy::start(broker.port);
            (local, end) = (Some(broker), End::Broker(local_proxy.port));
        }
        let mut config = Mqfwd::new(end, cloud_proxy.port, qos);
        change(&mut config);
        let mqfwd = Daemon::new(&scratch, "mqfwd", "mqfwd", &config.toml());
        let subscriber = Subscriber::start(cloud.port, "up/#", "far-end");
        Line { scratch, local, local_proxy, _cloud: cloud, cloud_proxy, mqfwd, subscriber, publish_port }
    }

    /// Starts the daemon and waits until its subscription stands, so that what is published is for it.
    pub fn start(&mut self) {
        self.mqfwd.start_ready();
        if self.local.is_some() {
            self.wait_subscribed();
        }
    }

    /// By mqfwd's own count: the messages it has stored since its start (new ones, not those sent again), and the
    /// packet ids it holds because their PUBREL has not come.
    fn stored(&self) -> (u64, u64) {
        let status = self.mqfwd.try_status().unwrap_or_default();
        let spool = |key: &str| status["lanes"]["out"]["spool"][key].as_u64();
        (spool("stored").unwrap_or(0), spool("held-ids").unwrap_or(u64::MAX))
    }

    fn wait_subscribed(&self) {
        let local = self.local.as_ref().unwrap();
        let mut n = 0;
        e2e::env::wait_for("mqfwd's subscription at the local broker", LONG, || {
            n += 1;
            let port = local.port.to_string();
            let text = format!("probe {n}");
            let mut probe = std::process::Command::new("mosquitto_pub");
            e2e::env::run(probe.args([
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-t",
                "t/probe",
                "-q",
                "0",
                "-m",
                &text,
            ]));
            std::thread::sleep(Duration::from_millis(30));
            let seen = self.subscriber.got().iter().any(|g| g.topic == "up/probe");
            seen.then_some(())
        });
    }
}

/// What has arrived once `n` different messages have, or once nothing has for a minute. Not for ever: what goes round in
/// circles arrives again and again.
fn wait_arrived(subscriber: &Subscriber, n: usize) -> Vec<Got> {
    for _ in 0..9 {
        let (before, begun) = (subscriber.count(), Instant::now());
        let got = subscriber.wait_distinct(n, LONG);
        if begun.elapsed() < LONG || got.len() == before {
            return got;
        }
    }
    subscriber.got()
}

struct Storm {
    listen: bool,
    qos: u8,
    version: Version,
}

fn storm(name: &str, case: &Storm) {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut line = Line::new(name, case.listen, case.qos, |c| {
        c.version = if case.version == Version::V5 { "5" } else { "3.1.1" };
        // Small segments, so that kills fall into their making and their end, too.
        c.more = "[spool]\nsegment-bytes = \"256 KiB\"\nmax-bytes = \"64 MiB\"\n".into();
    });
    line.start();
    let plan = Plan::new(line.publish_port, "camera", case.qos, 400_000);
    // Fewer where the broker's handshakes are waited for after each fault: see `settle`.
    let rate = if case.qos == 2 && !case.listen { 500 } else { 1500 };
    let mut publisher = Publisher::start(Plan { version: case.version, rate, ..plan });
    let (mut kills, mut cuts, mut before, mut stored) = (0, 0, 0, 0);
    while kills < KILLS {
        std::thread::sleep(Duration::from_millis(rng.u64(5..160)));
        let fault = rng.u8(0..4);
        if fault != 0 && case.qos == 2 && !case.listen {
            settle(&line, stored);
        }
        match fault {
            0 => line.cloud_proxy.cut(),
            1 => {
                line.local_proxy.cut();
                stored = line.stored().0;
            }
            _ => {
                line.mqfwd.kill9();
                line.mqfwd.start_ready();
                stored = 0;
                kills += 1;
            }
        }
        cuts += 1;
        if kills == KILLS / 2 && before == 0 {
            before = publisher.acked();
            assert!(before > 0, "messages are acknowledged while it storms");
        }
    }
    assert!(publisher.acked() > before, "messages are acknowledged while it storms");
    publisher.finish();
    publisher.wait_done(LONG);
    let acked = publisher.acked_numbers();
    let got = wait_arrived(&line.subscriber, acked.len());
    // A duplicate that is under way still counts.
    std::thread::sleep(Duration::from_millis(500));
    let got = if got.len() == line.subscriber.count() { got } else { line.subscriber.got() };
    let got: Vec<_> = got.into_iter().filter(|g| g.topic != "up/probe").collect();
    println!(
        "{name}: {kills} kills, {} cuts, {} acknowledged, {} arrived",
        cuts - kills,
        acked.len(),
        got.len()
    );
    Account::of(&acked, &got).check(case.qos == 2);
    line.mqfwd.check_log();
    assert!(line.mqfwd.term().success(), "it drains and ends well");
}

/// Lets the local broker bring its open handshakes to an end before its connection goes again.
///
/// mosquitto 2.0.11 forgets how far a handshake is when the connection ends while a PUBREL that it sends for
/// the second time is unanswered: it then sends the PUBLISH again, long after its PUBREC. That is a duplicate
/// of its own making, which no receiver can tell from a new message. After a reconnect it also sends all that
/// it has queued at once, whatever its bound of 20 in flight; then it brings these handshakes to an end one by
/// one, which takes long where the machine is busy.
fn settle(line: &Line, stored: u64) {
    let settled = || {
        let (now, held) = line.stored();
        (now > stored + 45 && held <= 40).then_some(())
    };
    e2e::env::wait_for("new messages and few open handshakes after the last fault", LONG * 2, settled);
}

#[test]
fn storm_broker_qos1() {
    need!("mosquitto", "mosquitto_sub");
    storm("rb1", &Storm { listen: false, qos: 1, version: Version::V5 });
}

#[test]
fn storm_broker_qos2() {
    need!("mosquitto", "mosquitto_sub");
    storm("rb2", &Storm { listen: false, qos: 2, version: Version::V5 });
}

#[test]
fn storm_ingest_qos1() {
    need!("mosquitto", "mosquitto_sub");
    storm("ri1", &Storm { listen: true, qos: 1, version: Version::V5 });
}

#[test]
fn storm_ingest_qos2() {
    need!("mosquitto", "mosquitto_sub");
    storm("ri2", &Storm { listen: true, qos: 2, version: Version::V5 });
}

#[test]
fn storm_broker_qos2_mqtt311() {
    need!("mosquitto", "mosquitto_sub");
    storm("rb3", &Storm { listen: false, qos: 2, version: Version::V311 });
}

#[test]
fn storm_ingest_qos1_mqtt311() {
    need!("mosquitto", "mosquitto_sub");
    storm("ri3", &Storm { listen: true, qos: 1, version: Version::V311 });
}

/// The cloud is away for the whole run, the daemon is killed in the middle, then the cloud is back.
#[test]
fn cloud_away_and_back() {
    need!("mosquitto", "mosquitto_sub");
    for listen in [false, true] {
        let mut line = Line::new("away", listen, 1, |_| {});
        line.start();
        line.cloud_proxy.refuse(true);
        let mut publisher = Publisher::start(Plan::new(line.publish_port, "camera", 1, 6000));
        e2e::env::wait_for("half of it acknowledged", LONG, || (publisher.acked() > 3000).then_some(()));
        line.mqfwd.kill9();
        line.mqfwd.start_ready();
        publisher.wait_done(LONG);
        assert!(line.subscriber.got().iter().all(|g| g.topic == "up/probe"), "the cloud was away");
        line.cloud_proxy.refuse(false);
        let got = line.subscriber.wait_distinct(6000, LONG);
        let got: Vec<_> = got.into_iter().filter(|g| g.topic != "up/probe").collect();
        let account = Account::of(&publisher.acked_numbers(), &got);
        account.check(false);
        assert_eq!(account.distinct, 6000);
        line.mqfwd.check_log();
    }
}

/// What a message carries arrives with it: content type, user properties, and where it came from.
#[test]
fn properties_pass_through() {
    need!("mosquitto", "mosquitto_sub");
    for listen in [false, true] {
        let mut line = Line::new("props", listen, 1, |_| {});
        line.start();
        let mut publisher = Publisher::start(Plan::new(line.publish_port, "camera", 1, 30));
        publisher.wait_done(LONG);
        let got = line.subscriber.wait_distinct(30, LONG);
        let got: Vec<_> = got.into_iter().filter(|g| g.topic != "up/probe").collect();
        assert_eq!(got.len(), 30);
        let mut sequences = Vec::new();
        for (n, message) in got.iter().enumerate() {
            assert_eq!(message.content_type.as_deref(), Some("text/plain"));
            assert_eq!(message.user["n"], n.to_string());
            assert!(!message.user["origin"].is_empty(), "{:?}", message.user);
            sequences.push(message.user["seq"].parse::<u64>().expect("seq is a number"));
        }
        assert!(sequences.windows(2).all(|w| w[0] < w[1]), "seq rises: {sequences:?}");
    }
}

/// A peer that is connected but silent is noticed, and the messages go out over a new connection.
#[test]
fn a_stalled_connection_is_given_up() {
    need!("mosquitto", "mosquitto_sub");
    let mut line = Line::new("stall", true, 1, |c| c.more = String::new());
    let text = std::fs::read_to_string(&line.mqfwd.config).unwrap();
    let text = text.replace("[cloud]\n", "[cloud]\nkeep-alive-s = 2\nping-timeout-ms = 1000\n");
    std::fs::write(&line.mqfwd.config, text).unwrap();
    line.start();
    line.cloud_proxy.stall(true);
    let mut publisher = Publisher::start(Plan::new(line.publish_port, "camera", 1, 500));
    publisher.wait_done(LONG);
    let before = line.cloud_proxy.accepted();
    e2e::env::wait_for("a new connection", LONG, || (line.cloud_proxy.accepted() > before).then_some(()));
    line.cloud_proxy.stall(false);
    let got = line.subscriber.wait_distinct(500, LONG);
    Account::of(&publisher.acked_numbers(), &got).check(false);
}
