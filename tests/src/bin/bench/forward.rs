//! `mqfwd` beside mosquitto's own bridge: the same publisher, local broker, cloud broker and far end.
//!
//! 50 ms round trip: `tc netem` on the loopback of a network namespace of our own where the kernel has it
//! (checked by measuring), else the rig's delaying proxy.

use std::process::Command;
use std::time::{Duration, Instant};

use e2e::broker::Broker;
use e2e::config::{End, Mqfwd};
use e2e::counter::Counter;
use e2e::daemon::Daemon;
use e2e::net;
use e2e::proxy::Proxy;
use e2e::publisher::{Plan, Publisher};
use e2e::scratch::Scratch;
use e2e::table::{Table, thousands};

use crate::{Verdict, scaled};

/// With its default queue of 1000 the bridge drops what is above it: no more than this is under way.
const UNDER_WAY: u64 = 800;
const LONG: Duration = Duration::from_secs(240);
/// The cloud's broker takes as much at once as a server in a cloud does. With mosquitto's default it announces a
/// Receive Maximum of 20, which mqfwd keeps to (at 50 ms that is 400 msg/s) and the bridge does not.
const CLOUD: &str = "max_queued_messages 0\nmax_inflight_messages 0\n";
/// Nothing arrived for so long: nothing more will.
const STUCK: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Relay {
    Bridge,
    DurableBridge,
    Mqfwd,
    MqfwdIngest,
}

struct Figures {
    rate: f64,
    cpu_us: f64,
    peak_mb: f64,
    lost: u64,
}

pub fn run(verdicts: &mut Vec<Verdict>) {
    println!(
        "\nmqfwd beside mosquitto's bridge (QoS 1; CPU and memory: everything on the device's side).\n\
         The cloud's mosquitto takes any number in flight (max_inflight_messages 0), all other settings are the defaults."
    );
    println!(
        "50 ms round trip by {}\n",
        if netem(None) { "tc netem" } else { "the rig's delaying proxy (this kernel has no netem)" }
    );
    let mut table =
        Table::new(&["device -> cloud", "payload", "RTT", "msg/s", "CPU us/msg", "peak MB", "lost", "ratio"]);
    for (len, rtt_ms, n) in
        [(1024, 0, 30_000), (1024, 50, 20_000), (50 * 1024, 0, 3000), (50 * 1024, 50, 2000)]
    {
        let mut bridge_rate = 0.0;
        for relay in [Relay::Bridge, Relay::DurableBridge, Relay::Mqfwd, Relay::MqfwdIngest] {
            // Saving everything at each message is hundreds of times slower: fewer will do.
            let n = if relay == Relay::DurableBridge { n / 15 } else { n };
            let f = measure(relay, len, rtt_ms, scaled(n));
            eprintln!("  {len} bytes, {rtt_ms} ms: {:.0} msg/s", f.rate);
            if relay == Relay::Bridge {
                bridge_rate = f.rate;
            }
            let ratio = f.rate / bridge_rate;
            let name = match relay {
                Relay::Bridge => "mosquitto bridge, defaults",
                Relay::DurableBridge => "mosquitto bridge, autosave every message",
                Relay::Mqfwd => "mosquitto + mqfwd (fdatasync)",
                Relay::MqfwdIngest => "mqfwd ingest port (fdatasync)",
            };
            let size = if len == 1024 { "1 KB" } else { "50 KB" };
            let rate = thousands(f.rate as u64);
            let (cpu, peak) = (format!("{:.0}", f.cpu_us), format!("{:.1}", f.peak_mb));
            table.row(&[
                name.into(),
                size.into(),
                format!("{rtt_ms} ms"),
                rate,
                cpu,
                peak,
                f.lost.to_string(),
                format!("{ratio:.2}"),
            ]);
            let what = |text: &str| format!("mqfwd {size}, {rtt_ms} ms: {text}");
            if relay == Relay::Mqfwd {
                verdicts.push(Verdict {
                    what: what("rate / bridge"),
                    found: ratio,
                    target: 1.0,
                    more: true,
                    unit: "x",
                });
            }
            if relay == Relay::MqfwdIngest {
                verdicts.push(Verdict {
                    what: what("peak memory"),
                    found: f.peak_mb,
                    target: 16.0,
                    more: false,
                    unit: "MB",
                });
            }
        }
    }
    println!("{}", table.text());
}

fn measure(relay: Relay, len: usize, rtt_ms: u64, n: u64) -> Figures {
    let scratch = Scratch::new("bench");
    let cloud = Broker::start_with(&scratch, "cloud", net::free_port(), CLOUD);
    let delayed = if rtt_ms > 0 && netem(Some(cloud.port)) { None } else { Some(Proxy::start(cloud.port)) };
    let cloud_port = match &delayed {
        Some(proxy) if rtt_ms > 0 => {
            proxy.delay(Duration::from_millis(rtt_ms / 2));
            proxy.port
        }
        _ => cloud.port,
    };
    let counter = Counter::start(cloud.port, "up/#");
    let local_port = net::free_port();
    let bridge = format!(
        "connection up\naddress 127.0.0.1:{cloud_port}\ntopic # out 1 t/ up/\ncleansession false\nbridge_protocol_version mqttv50\nrestart_timeout 1\n"
    );
    let local = match relay {
        Relay::Bridge => Some(bridge),
        Relay::DurableBridge => Some(format!("{bridge}autosave_on_changes true\nautosave_interval 1\n")),
        Relay::Mqfwd => Some(String::new()),
        Relay::MqfwdIngest => None,
    };
    let local = local.map(|more| Broker::start_with(&scratch, "local", local_port, &more));
    let mut mqfwd = None;
    if matches!(relay, Relay::Mqfwd | Relay::MqfwdIngest) {
        let end = if local.is_some() { End::Broker(local_port) } else { End::Listen(local_port) };
        let mut daemon = Daemon::new(&scratch, "mqfwd", "mqfwd", &Mqfwd::new(end, cloud_port, 1).toml());
        daemon.start_ready();
        mqfwd = Some(daemon);
    }
    warm_up(local_port, &counter);

    let cpu = |mqfwd: &Option<Daemon>| {
        let broker = local.as_ref().map_or(0, |b| b.process().usage().cpu_ms);
        broker + mqfwd.as_ref().map_or(0, |d| d.usage().cpu_ms)
    };
    let (cpu_before, base) = (cpu(&mqfwd), counter.count());
    let start = Instant::now();
    let plan = Plan { window: 500, payload_len: len, ..Plan::new(local_port, "bench", 1, n) };
    let publisher = Publisher::start_limited(plan, UNDER_WAY);
    let mut last = (start, base);
    while counter.count() - base < n {
        publisher.limit(counter.count() - base + UNDER_WAY);
        if counter.count() > last.1 {
            last = (Instant::now(), counter.count());
        }
        // What it dropped (mosquitto says so in its log) never comes; the rate is that of what came.
        if last.0.elapsed() > STUCK && publisher.acked() == n {
            break;
        }
        assert!(start.elapsed() < LONG, "only {} of {n} arrived", counter.count() - base);
        std::thread::sleep(Duration::from_micros(500));
    }
    let arrived = counter.count() - base;
    let took = if arrived < n { last.0 - start } else { start.elapsed() }.as_secs_f64();
    let cpu_ms = cpu(&mqfwd) - cpu_before;
    let broker_peak = local.as_ref().map_or(0, |b| b.process().usage().rss_peak_kb);
    // The target is about mqfwd itself; what it needs a broker for is the broker's.
    let peak = if let Some(daemon) = &mqfwd { daemon.usage().rss_peak_kb } else { broker_peak };
    let cpu_us = cpu_ms as f64 * 1000.0 / n as f64;
    Figures { rate: arrived as f64 / took, cpu_us, peak_mb: peak as f64 / 1024.0, lost: n - arrived }
}

/// Sends until something arrives: connections and subscriptions stand then.
fn warm_up(port: u16, counter: &Counter) {
    let start = Instant::now();
    while counter.count() < 10 {
        let mut probe = Publisher::start(Plan { payload_len: 100, ..Plan::new(port, "warm-up", 1, 10) });
        probe.wait_done(Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(300));
        assert!(start.elapsed() < Duration::from_secs(30), "nothing arrives at the far end");
    }
    std::thread::sleep(Duration::from_millis(700));
}

/// Delays the loopback traffic of one port by 25 ms each way, if we are in a network namespace of our own
/// and the kernel has netem. Without a port: whether that is so.
fn netem(port: Option<u16>) -> bool {
    if std::env::var_os("BENCH_NETNS").is_none() {
        return false;
    }
    let tc = |line: &str| {
        let mut command = Command::new("tc");
        command.args(line.split_whitespace()).stderr(std::process::Stdio::null());
        command.status().is_ok_and(|s| s.success())
    };
    // Starting over leaves no rule for a port of an earlier measurement.
    tc("qdisc del dev lo root");
    let mut good = tc("qdisc add dev lo root handle 1: prio bands 4 priomap 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1")
        && tc("qdisc add dev lo parent 1:4 handle 40: netem delay 25ms limit 100000");
    if let Some(port) = port {
        for side in ["dport", "sport"] {
            let rule = format!(
                "filter add dev lo parent 1:0 protocol ip u32 match ip {side} {port} 0xffff flowid 1:4"
            );
            good = good && tc(&rule);
        }
        let start = Instant::now();
        good = good
            && std::net::TcpStream::connect(net::local(port)).is_ok()
            && start.elapsed() > Duration::from_millis(45);
    }
    if !good || port.is_none() {
        tc("qdisc del dev lo root");
    }
    good
}
