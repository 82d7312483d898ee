//! spyglassd's frames socket against clients that do what they should not.

use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::env::{root, run, wait_for};
use e2e::scratch::Scratch;
use e2e::skip;
use e2e::spyglass::{Raw, Spyglass, frame, have_numpy, hello, message, page, python, report};
use rustix::io::Errno;
use rustix::process::Signal;

#[test]
fn wrong_clients_are_told_why_and_hung_up_on() {
    let scratch = Scratch::new("spyw");
    let (spy, port) = Spyglass::start_with_page(&scratch, "", "");
    let good = || hello("cam", (64, 48), 0, 1, 4);
    let mut broken = good();
    broken[3] = b'2';
    let long = [good(), vec![0]].concat();
    for (packet, word) in [
        (b"rubbish".to_vec(), "SPY1"),
        (broken, "version 1"),
        (long, "packet of 105 bytes"),
        (vec![0; 400], "SPY1"),
        (hello("", (64, 48), 0, 1, 4), "name"),
        (hello("../x", (64, 48), 0, 1, 4), "name"),
        (hello("cam", (0, 48), 0, 1, 4), "at least 1"),
        (hello("cam", (64, 48), 191, 1, 4), "needs 192 bytes"),
        (hello("cam", (64, 48), 0, 9, 4), "format"),
        (hello("cam", (5000, 48), 0, 1, 4), "larger than"),
        (hello("cam", (4000, 4000), u32::MAX, 1, 4), "more than memory"),
        (hello("cam", (4000, 4000), 1 << 20, 1, 4), "slot-bytes-max"),
        (frame(0, (64, 48), 0, 0), "before HELLO"),
        (message(4, &[0; 8]), "only the daemon"),
    ] {
        let client = Raw::connect(&spy);
        assert!(client.send(&packet));
        let error = client.error();
        assert!(error.contains(word), "{word}: {error}");
        assert!(client.receive().is_empty(), "it hangs up after {word}");
    }
    // After HELLO.
    for (packet, word) in [
        (frame(4, (64, 48), 0, 0), "the ring has 4 slots"),
        (frame(0, (640, 480), 0, 0), "does not fit"),
        (frame(0, (64, 48), 100, 0), "needs 192 bytes"),
        (frame(0, (0, 48), 0, 0), "at least 1"),
        (hello("other", (64, 48), 0, 1, 4), "one stream"),
    ] {
        let client = Raw::connect(&spy);
        assert!(client.send(&good()));
        assert_eq!(client.receive()[4], 2, "RING");
        assert!(client.send(&packet));
        let error = client.error();
        assert!(error.contains(word), "{word}: {error}");
        spy.wait_state("cam", "STOPPED");
        let streams: serde_json::Value = serde_json::from_str(&page(port, "streams.json")).unwrap();
        assert_eq!(streams["streams"][0]["open"], false, "after {word}: {streams}");
    }
    assert_eq!(spy.daemon.status()["streams"].as_array().unwrap().len(), 1);
    spy.daemon.check_log();
}

#[test]
fn a_client_that_never_reads_costs_only_itself() {
    let scratch = Scratch::new("spyn");
    let spy = Spyglass::start(&scratch, "", "");
    let deaf = Raw::connect(&spy);
    assert!(deaf.send(&hello("deaf", (64, 48), 0, 1, 2)));
    // Nobody watches: each slot is released at once, and the releases pile up unread until the socket has no room.
    for n in 0..600u64 {
        assert!(deaf.send(&frame((n % 2) as u32, (64, 48), 0, n)), "frame {n}");
        wait_for("the frame to be counted", Duration::from_secs(20), || {
            (spy.stream("deaf")["frames"] == n + 1).then_some(())
        });
    }
    // Others are served, and the deaf one is heard when it begins to listen.
    let other = Raw::connect(&spy);
    assert!(other.send(&hello("other", (64, 48), 0, 1, 2)));
    assert_eq!(other.receive()[4], 2);
    let mut releases = 0;
    assert_eq!(deaf.receive()[4], 2, "RING");
    while releases < 100 {
        assert_eq!(deaf.receive()[4], 4, "RELEASE");
        releases += 1;
    }
    drop((deaf, other));
    spy.wait_state("deaf", "STOPPED");
    spy.daemon.check_log();
}

#[test]
fn connections_are_bounded_and_silent_ones_go() {
    let scratch = Scratch::new("spyb");
    let mut spy = Spyglass::start(&scratch, "", "");
    let text = std::fs::read_to_string(&spy.daemon.config).unwrap();
    let text = text.replace("[web]", "producers-max = 2\nhello-timeout-ms = 5000\n[web]");
    std::fs::write(&spy.daemon.config, text).unwrap();
    spy.daemon.process().signal(Signal::HUP);
    spy.daemon.wait_log("reloading", Duration::from_secs(60));
    spy.daemon.wait_ready();
    let talks = Raw::connect(&spy);
    assert!(talks.send(&hello("cam", (64, 48), 0, 1, 2)));
    assert_eq!(talks.receive()[4], 2);
    let silent = Raw::connect(&spy);
    wait_for("a third one to be refused", Duration::from_secs(20), || {
        let third = Raw::connect(&spy);
        let packet = third.receive();
        (packet.len() == 256 && String::from_utf8_lossy(&packet).contains("producers-max")).then_some(())
    });
    assert!(silent.error().contains("no HELLO"));
    assert!(talks.send(&frame(0, (64, 48), 0, 0)), "who has a stream stays");
    assert_eq!(talks.receive()[4], 4);
    assert!(spy.daemon.term().success());
    spy.daemon.check_log();
}

#[test]
fn an_application_outlives_the_daemon_and_finds_it_again() {
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = Scratch::new("spyd");
    let mut spy = Spyglass::start(&scratch, "", "");
    let app = spy.app("cam", (320, 180), 20, 400);
    spy.wait_state("cam", "WAITING");
    let other = spy.app("other", (320, 180), 20, 400);
    spy.wait_state("other", "WAITING");
    let begun = Instant::now();
    spy.daemon.kill9();
    std::thread::sleep(Duration::from_secs(4));
    other.signal(Signal::INT);
    let other = report(other, Duration::from_secs(60));
    spy.daemon.start_ready();
    spy.wait_state("cam", "WAITING");
    // As often there as gone, whatever the machine made of its start.
    let enough = begun.elapsed().as_secs_f64() * 20.0 * 1.5;
    wait_for("frames after it", Duration::from_secs(180), || {
        (spy.stream("cam")["frames"].as_f64().unwrap() > enough).then_some(())
    });
    app.signal(Signal::INT);
    let app = report(app, Duration::from_secs(60));
    assert_eq!((&app["state"], &app["error"]), (&"STREAMING".into(), &"".into()), "{app}");
    let (sent, frames) = (app["sent"].as_f64().unwrap(), app["frames"].as_f64().unwrap());
    assert!(sent > frames * 0.5 && sent < frames, "{app}");
    // The other one ended while it was gone, which it was for most of its frames: were there a wait in each, then these
    // would be few, or half of all would be slow. A machine that is busy with other tests holds up some of them.
    let (dropped, sent) = (other["dropped"].as_f64().unwrap(), other["sent"].as_f64().unwrap());
    assert!(dropped > sent && dropped > 20.0, "put waits for a daemon that is gone: {other}");
    assert!(other["put_ms_p50"].as_f64().unwrap() < 50.0, "put waits for a daemon that is gone: {other}");
    spy.daemon.check_log();
}

fn check_client(python: &str, mode: &[&str]) {
    let scratch = Scratch::new("spyc");
    let mut command = Command::new(python);
    command.arg(root().join("tests/spyglass_client.py")).arg(scratch.path()).args(mode);
    run(command.env("PYTHONDONTWRITEBYTECODE", "1"));
}

#[test]
fn the_python_client_fills_slots_and_takes_the_references_calls() {
    let Some(python) = python() else {
        skip!("python3 with numpy is not installed (make deps)");
    };
    check_client(python, &[]);
}

#[test]
fn the_python_client_needs_no_numpy() {
    check_client("python3", &["bare"]);
}

/// The daemon hears of the end before it hears of the beginning: it doesn't take the same application for another one.
#[test]
fn a_second_start_of_the_python_client_goes_on_at_once() {
    let scratch = Scratch::new("spys");
    let spy = Spyglass::start(&scratch, "", "");
    let script = "import os, sys, time\n\
        from edge_spyglass import SpyGlass\n\
        client = SpyGlass('cam', sys.argv[1])\n\
        for fps in (None, 10, 20, 30, 40):\n    \
            client.start_streaming(fps, 64, 48)\n    \
            end = time.monotonic() + 5\n    \
            while not client.put(bytes(64 * 48 * 3), 64, 48) and time.monotonic() < end: time.sleep(0.01)\n    \
            assert client.state == SpyGlass.State.STREAMING and not client.error, client.error\n";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(spy.socket()).env("PYTHONDONTWRITEBYTECODE", "1");
    run(command.env("PYTHONPATH", root().join("bins/spyglassd/python")));
    spy.daemon.check_log();
}

/// What reads the frames and what encodes them leaves the CPU to the application, however the daemon was started.
#[test]
fn every_thread_stands_behind_the_application() {
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = Scratch::new("spyn");
    let spy = Spyglass::start(
        &scratch,
        "",
        &format!("[[stream]]\nname = \"cam\"\n[stream.record]\ndir = {:?}", scratch.path()),
    );
    let _app = spy.app("cam", (320, 180), 15, 60);
    spy.wait_state("cam", "STREAMING");
    // After the name in parentheses, the first of these is the state, field 3: nice is field 19, the policy field 41.
    // None for a thread that has just ended.
    let of = |path: std::path::PathBuf| {
        let stat = match std::fs::read_to_string(path) {
            Ok(stat) => stat,
            Err(gone) if gone.kind() == ErrorKind::NotFound => return None,
            Err(gone) if gone.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return None,
            Err(error) => panic!("{error}"),
        };
        let fields: Vec<String> =
            stat.rsplit(')').next().unwrap().split_whitespace().map(str::to_owned).collect();
        Some((fields[16].clone(), fields[38].clone()))
    };
    // A priority that somebody chose stays: perhaps that of these tests.
    let ours = of("/proc/self/stat".into()).unwrap().0;
    let nice = if ours == "0" { "5".to_owned() } else { ours };
    let tasks = std::fs::read_dir(format!("/proc/{}/task", spy.daemon.process().pid())).unwrap();
    let found: Vec<_> = tasks.filter_map(|task| of(task.unwrap().path().join("stat"))).collect();
    assert!(found.len() >= 3, "the loop and the encoder's threads: {found:?}");
    assert!(found.iter().all(|task| *task == (nice.clone(), "3".to_owned())), "SCHED_BATCH is 3: {found:?}");
}

/// In a container whose programs were started from outside it, the session's number is 0 within.
#[test]
fn it_runs_in_a_session_from_outside_its_container() {
    let unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let probe = Command::new(unshare[0]).args(&unshare[1..]).arg("true").stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        skip!("no namespaces may be made here");
    }
    let scratch = Scratch::new("spyn");
    let mut spy = Spyglass::new(&scratch, "", "[[stream]]\nname = \"cam\"");
    spy.daemon.wrap(&unshare).start_ready();
    assert_eq!(spy.stream("cam")["name"], "cam");
}
