//! nx_launcher.sh and nx_stopper.sh as plain processes (no systemd asked): start, start again, the cloud
//! broker from the environment, stop, stop again.

use std::process::{Command, Output};
use std::time::Duration;

use e2e::broker::Broker;
use e2e::config::{End, Mqfwd, S3put};
use e2e::daemon::Daemon;
use e2e::env::{self, root};
use e2e::publisher::{Plan, Publisher};
use e2e::scratch::Scratch;
use e2e::subscriber::{Account, Subscriber};
use e2e::{need, net};

const LONG: Duration = Duration::from_secs(90);

struct Nx {
    scratch: Scratch,
    env: Vec<(&'static str, String)>,
}

impl Nx {
    fn script(&self, name: &str, arguments: &[&str], more: &[(&str, &str)]) -> Output {
        let mut command = Command::new(root().join("etc").join(name));
        command.args(arguments).env_remove("CLOUD_MQTT_HOST").env_remove("CLOUD_MQTT_PORT");
        command.envs(self.env.iter().map(|(k, v)| (*k, v.as_str()))).envs(more.iter().copied());
        // As started from a terminal that is closed later: nothing may hold its output open.
        command.output().unwrap()
    }

    fn pid(&self, name: &str) -> Option<u32> {
        let text = std::fs::read_to_string(self.scratch.join(&format!("run/{name}.pid"))).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Nx {
    fn drop(&mut self) {
        self.script("nx_stopper.sh", &[], &[]);
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A zombie, which waits for whoever is process 1 here, has ended.
fn alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// A folder with configurations whose cloud is a port where nobody is.
fn setup(listen: bool, local: u16) -> Nx {
    let scratch = Scratch::new("nx");
    let end = if listen { End::Listen(local) } else { End::Broker(local) };
    let nobody = net::free_port();
    for (name, toml) in [
        ("mqfwd", Mqfwd::new(end, nobody, 1).toml()),
        ("s3put", S3put::to_dir(End::Listen(net::free_port()), &scratch.dir("out")).toml()),
    ] {
        let daemon = Daemon::new(&scratch, name, name, &toml);
        std::fs::create_dir_all(scratch.join("conf")).unwrap();
        std::fs::copy(&daemon.config, scratch.join(&format!("conf/{name}.toml"))).unwrap();
    }
    let path = |p: std::path::PathBuf| p.to_string_lossy().into_owned();
    let bins = path(env::bin("mqfwd").parent().unwrap().to_path_buf());
    let env = vec![
        ("EDGE_CONF_DIR", path(scratch.join("conf"))),
        ("EDGE_RUN_DIR", path(scratch.join("run"))),
        ("EDGE_BIN_DIR", bins),
    ];
    Nx { scratch, env }
}

#[test]
fn starts_and_stops_the_pipeline_and_honours_the_environment() {
    need!("mosquitto", "mosquitto_sub", "setsid");
    let local = net::free_port();
    let nx = setup(true, local);
    let cloud = Broker::start(&nx.scratch, "cloud");
    let subscriber = Subscriber::start(cloud.port, "up/#", "far-end");
    let cloud_port = cloud.port.to_string();
    let there = [("CLOUD_MQTT_HOST", "localhost"), ("CLOUD_MQTT_PORT", cloud_port.as_str())];
    let started = nx.script("nx_launcher.sh", &[], &there);
    assert!(started.status.success(), "{}", said(&started));
    let (mqfwd, s3put) = (nx.pid("mqfwd").expect("a pid file"), nx.pid("s3put").expect("a pid file"));
    assert!(alive(mqfwd) && alive(s3put), "{}", said(&started));

    let again = nx.script("nx_launcher.sh", &[], &there);
    assert!(again.status.success() && said(&again).contains("runs already"), "{}", said(&again));
    assert_eq!((nx.pid("mqfwd"), nx.pid("s3put")), (Some(mqfwd), Some(s3put)), "nothing was started twice");

    let mut publisher = Publisher::start(Plan::new(local, "camera", 1, 50));
    publisher.wait_done(LONG);
    let got = subscriber.wait_distinct(50, LONG);
    Account::of(&publisher.acked_numbers(), &got).check(false);

    let stopped = nx.script("nx_stopper.sh", &[], &[]);
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(!alive(mqfwd) && !alive(s3put), "{}", said(&stopped));
    assert_eq!((nx.pid("mqfwd"), nx.pid("s3put")), (None, None), "no pid file is left");
    let again = nx.script("nx_stopper.sh", &[], &[]);
    assert!(again.status.success() && said(&again).trim().is_empty(), "{}", said(&again));
}

#[test]
fn starts_a_broker_when_mqfwd_wants_one_here() {
    need!("mosquitto", "setsid");
    let local = net::free_port();
    let nx = setup(false, local);
    let started = nx.script("nx_launcher.sh", &["mqfwd"], &[]);
    assert!(started.status.success() && said(&started).contains("mosquitto: started"), "{}", said(&started));
    net::wait_listening(local, "the broker", LONG);
    let broker = nx.pid("mosquitto").expect("a pid file");
    assert!(nx.script("nx_stopper.sh", &[], &[]).status.success());
    assert!(!alive(broker), "the broker we started is stopped too");
}

#[test]
fn explains_what_is_wrong() {
    need!("setsid");
    let nx = setup(true, net::free_port());
    let output = nx.script("nx_launcher.sh", &[], &[("CLOUD_MQTT_PORT", "mqtt")]);
    assert!(!output.status.success() && said(&output).contains("CLOUD_MQTT_PORT"), "{}", said(&output));
    nx.scratch.write("conf/mqfwd.toml", "[cloud]\nhots = \"x\"\n");
    let output = nx.script("nx_launcher.sh", &["mqfwd"], &[]);
    assert!(!output.status.success() && said(&output).contains("mqfwd.toml:2:"), "{}", said(&output));
    assert_eq!(nx.pid("mqfwd"), None);
    // A pid file whose process is another one by now: nobody is killed for it.
    let me = std::process::id();
    nx.scratch.write("run/mqfwd.pid", format!("{me} 1\n"));
    assert!(nx.script("nx_stopper.sh", &["mqfwd"], &[]).status.success());
    assert!(alive(me));
}
