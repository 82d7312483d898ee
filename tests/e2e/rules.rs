//! `mqfwd`'s rules between real brokers: what can't be delivered, what may not be, both directions, loops, reload.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use e2e::broker::Broker;
use e2e::config::{End, Mqfwd};
use e2e::daemon::Daemon;
use e2e::env::{run, wait_for};
use e2e::need;
use e2e::scratch::{Scratch, files};
use e2e::subscriber::{Got, Subscriber};

use crate::rig::{telling_broker, wait_subscribed};

const LONG: Duration = Duration::from_secs(60);

fn publish(port: u16, topic: &str, text: &str, more: &[&str]) {
    let port = port.to_string();
    let base = ["-h", "127.0.0.1", "-p", &port, "-V", "5", "-q", "1", "-t", topic, "-m", text];
    run(Command::new("mosquitto_pub").args(base).args(more));
}

/// Waits until the daemon is connected on both sides of a lane.
fn wait_up(daemon: &Daemon, lane: &str) {
    wait_for("both connections", LONG, || {
        let status = daemon.try_status()?;
        let lane = &status["lanes"][lane];
        (lane["source"]["up"] == true && lane["next-hop"]["up"] == true).then_some(())
    });
}

fn wait_payloads(subscriber: &Subscriber, wanted: &[&str]) -> Vec<Got> {
    wait_for(&format!("{wanted:?}"), LONG, || {
        let got = subscriber.got();
        wanted.iter().all(|text| got.iter().any(|g| g.payload == *text)).then_some(got)
    })
}

fn dead_letters(daemon: &Daemon) -> Vec<PathBuf> {
    files(&daemon.dir).into_iter().filter(|path| path.to_string_lossy().contains("dead-letter")).collect()
}

/// Local and cloud broker with `mqfwd` between them, up.
fn between(scratch: &Scratch, cloud: &Broker, change: impl FnOnce(&mut Mqfwd)) -> (Broker, Daemon) {
    let local = telling_broker(scratch, "local");
    let mut config = Mqfwd::new(End::Broker(local.port), cloud.port, 1);
    change(&mut config);
    let mut daemon = Daemon::new(scratch, "mqfwd", "mqfwd", &config.toml());
    daemon.start_ready();
    wait_up(&daemon, "out");
    wait_subscribed(&local, "rig-down");
    (local, daemon)
}

#[test]
fn a_message_too_large_for_the_next_hop_is_a_dead_letter_and_the_rest_goes_on() {
    need!("mosquitto", "mosquitto_sub");
    let scratch = Scratch::new("too-large");
    let cloud = Broker::start_with(&scratch, "cloud", e2e::net::free_port(), "max_packet_size 2000\n");
    let far = Subscriber::start(cloud.port, "up/#", "far");
    let (local, daemon) = between(&scratch, &cloud, |_| {});
    publish(local.port, "t/a", "before", &[]);
    publish(local.port, "t/a", &"x".repeat(3000), &[]);
    publish(local.port, "t/a", "after", &[]);
    wait_payloads(&far, &["before", "after"]);
    assert_eq!(far.count(), 2);
    let letters = wait_for("the dead letter", LONG, || {
        let found = dead_letters(&daemon);
        (!found.is_empty()).then_some(found)
    });
    let text = std::fs::read_to_string(&letters[0]).unwrap();
    assert!(
        text.contains("the server takes at most 2000") && text.contains(&"x".repeat(3000)),
        "{text:.300}"
    );
    assert_eq!(daemon.metric("mqfwd_dead_letters_total"), 1.0);
}

#[test]
fn not_authorized_holds_everything_raises_an_alarm_and_ends_when_the_rule_changes() {
    need!("mosquitto", "mosquitto_sub");
    let scratch = Scratch::new("acl");
    let rules = scratch.write("acl", "topic read #\n");
    let more = format!("acl_file {}\n", rules.display());
    let mut cloud = Broker::start_with(&scratch, "cloud", e2e::net::free_port(), &more);
    let (local, daemon) = between(&scratch, &cloud, |c| c.more = "[forward]\nhold-max-s = 2\n".into());
    for n in 0..20 {
        publish(local.port, "t/a", &format!("held {n}"), &[]);
    }
    let hold = wait_for("the alarm", LONG, || {
        let hold = daemon.try_status()?["lanes"]["out"]["next-hop"]["hold"].clone();
        hold.is_object().then_some(hold)
    });
    assert_eq!(hold["alarm"], true, "{hold}");
    assert!(hold["why"].as_str().unwrap().contains("not authorized (0x87)"), "{hold}");
    assert!(dead_letters(&daemon).is_empty(), "nothing is thrown away");
    scratch.write("acl", "topic readwrite #\n");
    cloud.restart();
    let far = Subscriber::start(cloud.port, "up/#", "far");
    let wanted: Vec<String> = (0..20).map(|n| format!("held {n}")).collect();
    wait_payloads(&far, &wanted.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(daemon.status()["lanes"]["out"]["next-hop"]["hold"], serde_json::Value::Null);
}

#[test]
fn both_directions_with_the_same_topics_do_not_go_round_in_circles() {
    need!("mosquitto", "mosquitto_sub");
    let scratch = Scratch::new("circle");
    let cloud = telling_broker(&scratch, "cloud");
    let more = "[[route]]\nfrom = \"c/#\"\nto = \"{topic}\"\n\n[[route]]\nfrom = \"c/#\"\nto = \"{topic}\"\ndirection = \"in\"\n";
    let (local, daemon) = between(&scratch, &cloud, |c| c.more = more.into());
    wait_up(&daemon, "in");
    wait_subscribed(&cloud, "rig-up-in");
    let (near, far) =
        (Subscriber::start(local.port, "c/#", "near"), Subscriber::start(cloud.port, "c/#", "far"));
    for n in 0..10 {
        publish(local.port, "c/out", &format!("out {n}"), &[]);
        publish(cloud.port, "c/in", &format!("in {n}"), &[]);
    }
    let wanted: Vec<String> = (0..10).flat_map(|n| [format!("out {n}"), format!("in {n}")]).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    wait_payloads(&near, &wanted);
    wait_payloads(&far, &wanted);
    // What came over would be sent back now.
    wait_for("the loops to be noticed", LONG, || {
        let status = daemon.try_status()?;
        let loops = |lane: &str| status["lanes"][lane]["gate"]["loops"].as_u64().unwrap_or(0);
        (loops("out") == 10 && loops("in") == 10).then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((near.count(), far.count()), (20, 20), "every message once on each side");
}

#[test]
fn circles_that_mqtt_311_could_not_stop_are_refused() {
    let scratch = Scratch::new("circle311");
    let mut config = Mqfwd::new(End::Broker(1), 2, 1);
    config.version = "3.1.1";
    config.more = "[[route]]\nfrom = \"up/#\"\nto = \"t/{tail}\"\ndirection = \"in\"\n".into();
    let daemon = Daemon::new(&scratch, "mqfwd", "mqfwd", &config.toml());
    let output = daemon.command(&["--check"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("route[1].from") && text.contains("round in circles"), "{text}");
}

#[test]
fn a_reload_takes_the_new_routes_and_a_bad_file_changes_nothing() {
    need!("mosquitto", "mosquitto_sub");
    let scratch = Scratch::new("reload");
    let cloud = Broker::start(&scratch, "cloud");
    let far = Subscriber::start(cloud.port, "#", "far");
    let (local, mut daemon) = between(&scratch, &cloud, |_| {});
    publish(local.port, "t/a", "one", &[]);
    wait_payloads(&far, &["one"]);
    let good = std::fs::read_to_string(&daemon.config).unwrap();

    std::fs::write(&daemon.config, good.replace("[cloud]", "[cloud]\nprot = 1")).unwrap();
    daemon.process().signal(rustix::process::Signal::HUP);
    daemon.wait_log("the old configuration stays", LONG);
    assert!(daemon.lines.contain("did you mean `port`?"), "{}", daemon.lines.tail(5));
    publish(local.port, "t/a", "two", &[]);
    wait_payloads(&far, &["two"]);

    std::fs::write(&daemon.config, good.replace("up/{tail}", "new/{tail}")).unwrap();
    daemon.process().signal(rustix::process::Signal::HUP);
    daemon.wait_log("reloading", LONG);
    wait_up(&daemon, "out");
    publish(local.port, "t/a", "three", &[]);
    let got = wait_payloads(&far, &["three"]);
    let topics: Vec<&str> = got.iter().map(|g| g.topic.as_str()).collect();
    assert_eq!(topics, ["up/a", "up/a", "new/a"]);
    assert!(daemon.term().success());
}

#[test]
fn expiry_is_decremented_in_the_queue_and_what_expired_is_not_sent() {
    need!("mosquitto", "mosquitto_sub");
    let scratch = Scratch::new("expiry");
    let mut cloud = Broker::start(&scratch, "cloud");
    let (local, daemon) = between(&scratch, &cloud, |c| {
        c.more = "[forward]\nhold-max-s = 2\n".into();
    });
    let far = Subscriber::start(cloud.port, "up/#", "far");
    cloud.stop();
    let expires = |s: &'static str| ["-D", "publish", "message-expiry-interval", s];
    publish(local.port, "t/a", "short", &expires("1"));
    publish(local.port, "t/a", "long", &expires("1000"));
    wait_for("both stored", LONG, || (daemon.metric("mqfwd_stored_total") >= 2.0).then_some(()));
    std::thread::sleep(Duration::from_millis(2100));
    cloud.restart();
    let got = wait_payloads(&far, &["long"]);
    assert_eq!(got.len(), 1, "the other one is too old: {got:?}");
    assert!((1..=998).contains(&got[0].expiry_s.unwrap()), "{:?}", got[0].expiry_s);
    assert_eq!(daemon.metric("mqfwd_expired_total"), 1.0);
}

#[test]
fn tls_with_a_pin_and_a_password_from_a_file() {
    need!("mosquitto", "mosquitto_sub", "openssl", "mosquitto_passwd");
    let scratch = Scratch::new("tls");
    let (key, cert) = (scratch.join("key.pem"), scratch.join("cert.pem"));
    let subject =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    run(Command::new("openssl")
        .args(subject)
        .args(["-subj", "/CN=cloud", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert));
    let users = scratch.join("users");
    run(Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&users).args(["fleet", "hunter2"]));
    let tls_port = e2e::net::free_port();
    let more = format!(
        "listener {tls_port} 127.0.0.1\ncertfile {}\nkeyfile {}\npassword_file {}\n",
        cert.display(),
        key.display(),
        users.display()
    );
    // Who gives no name may come in (the subscriber of the test), who gives one must know the password.
    let plain = e2e::net::free_port();
    let cloud = Broker::start_with(&scratch, "cloud", plain, &more);
    let password = scratch.write("password", "hunter2\n");
    let far = Subscriber::start(cloud.port, "up/#", "far");
    let local = telling_broker(&scratch, "local");
    let toml = Mqfwd::new(End::Broker(local.port), tls_port, 1).toml();
    let tls = format!(
        "username = \"fleet\"\npassword-file = \"{}\"\n[cloud.tls]\npin-file = \"{}\"\n\n[[route]]",
        password.display(),
        cert.display()
    );
    let mut daemon = Daemon::new(&scratch, "mqfwd", "mqfwd", &toml.replacen("[[route]]", &tls, 1));
    daemon.start_ready();
    wait_up(&daemon, "out");
    wait_subscribed(&local, "rig-down");
    publish(local.port, "t/a", "over tls", &[]);
    wait_payloads(&far, &["over tls"]);
    assert!(!daemon.lines.contain("hunter2"));

    std::fs::write(&password, "wrong\n").unwrap();
    daemon.process().signal(rustix::process::Signal::HUP);
    daemon.wait_log("ot authorized", LONG);
    publish(local.port, "t/a", "waits", &[]);
    std::fs::write(&password, "hunter2\n").unwrap();
    daemon.process().signal(rustix::process::Signal::HUP);
    wait_payloads(&far, &["waits"]);
}
