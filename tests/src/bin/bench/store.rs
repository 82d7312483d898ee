//! `s3put` beside `rclone copy` and `aws s3 cp --recursive`: 1000 objects of 50 KB into the same server.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::aws::{self, S3};
use e2e::config::{End, S3put};
use e2e::daemon::Daemon;
use e2e::process::Usage;
use e2e::publisher::{self, Plan, Publisher};
use e2e::scratch::{self, Scratch};
use e2e::table::Table;
use e2e::{env, net};

use crate::{Verdict, scaled};

const LEN: usize = 50 * 1024;

pub fn run(verdicts: &mut Vec<Verdict>) {
    let n = scaled(1000);
    println!("\ns3put beside other uploaders: {n} objects of 50 KB into s3s-fs on this machine\n");
    let mut table = Table::new(&["", "objects/s", "CPU s", "peak MB", "ratio"]);
    let scratch = Scratch::new("bench");
    let folder = scratch.dir("files");
    for i in 0..n {
        std::fs::write(folder.join(format!("{i:05}.bin")), publisher::payload(i, LEN)).unwrap();
    }
    let mut rclone_rate = 0.0;
    for name in
        ["rclone copy", "aws s3 cp --recursive", "s3put (MQTT in, fdatasync, PUT)", "s3put (from its spool)"]
    {
        let scratch = Scratch::new("bench");
        let Some(s3) = S3::s3s(&scratch, "bench") else {
            return println!("skipped: store: s3s-fs is not built");
        };
        let (seconds, usage) = match name {
            "rclone copy" => peer(&s3, rclone(&s3, &folder)),
            "aws s3 cp --recursive" => {
                let mut command = s3.aws(&["s3", "cp", "--recursive", "--quiet"]);
                command.arg(&folder).arg("s3://bench/");
                peer(&s3, command)
            }
            "s3put (from its spool)" => s3put(&scratch, &s3, n, true),
            _ => s3put(&scratch, &s3, n, false),
        };
        let rate = n as f64 / seconds;
        if name.starts_with("rclone") {
            rclone_rate = rate;
        }
        let (cpu, peak) = (usage.cpu_ms as f64 / 1000.0, usage.rss_peak_kb as f64 / 1024.0);
        let ratio = rate / rclone_rate;
        table.row(&[
            name.into(),
            format!("{rate:.0}"),
            format!("{cpu:.2}"),
            format!("{peak:.1}"),
            format!("{ratio:.2}"),
        ]);
        if name.starts_with("s3put (MQTT") {
            verdicts.push(Verdict {
                what: "s3put objects/s / rclone".into(),
                found: ratio,
                target: 1.0,
                more: true,
                unit: "x",
            });
            verdicts.push(Verdict {
                what: "s3put peak memory".into(),
                found: peak,
                target: 16.0,
                more: false,
                unit: "MB",
            });
        }
    }
    println!("{}", table.text());
}

fn rclone(s3: &S3, folder: &std::path::Path) -> Command {
    let mut command = Command::new("rclone");
    command.args(["copy", "--config", "/dev/null"]).arg(folder).arg(":s3:bench");
    command.args(["--s3-provider", "Other", "--s3-endpoint", &s3.endpoint(), "--s3-force-path-style"]);
    command.args([
        "--s3-access-key-id",
        aws::KEY_ID,
        "--s3-secret-access-key",
        aws::SECRET,
        "--s3-region",
        aws::REGION,
    ]);
    command.args(["--s3-no-check-bucket"]).env_remove("AWS_CA_BUNDLE");
    command
}

/// Runs a peer to its end; how long it took, and what it used (looked at every few ms).
fn peer(s3: &S3, mut command: Command) -> (f64, Usage) {
    let start = Instant::now();
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("the peer is installed");
    let mut usage = Usage::default();
    loop {
        let now = Usage::of(child.id());
        // A zombie has no memory to tell of.
        if now.rss_peak_kb > 0 {
            usage = now;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?}: {status}");
            break;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    let seconds = start.elapsed().as_secs_f64();
    assert!(stored(s3) >= scaled(1000) as usize, "the peer stored everything");
    (seconds, usage)
}

fn stored(s3: &S3) -> usize {
    let is_object = |p: &std::path::PathBuf| {
        let name = p.file_name().unwrap().to_string_lossy().into_owned();
        !name.starts_with('.') && !name.ends_with(".json")
    };
    scratch::files(&s3.root.join("bench")).iter().filter(|p| is_object(p)).count()
}

/// Messages arrive over MQTT while they are stored; or wait in the spool before the clock starts.
fn s3put(scratch: &Scratch, s3: &S3, n: u64, spooled: bool) -> (f64, Usage) {
    let port = net::free_port();
    let proxy = e2e::proxy::Proxy::start(s3.port);
    let endpoint = if spooled { format!("http://127.0.0.1:{}", proxy.port) } else { s3.endpoint() };
    proxy.refuse(spooled);
    let mut daemon =
        Daemon::new(scratch, "s3put", "s3put", &S3put::to_s3(End::Listen(port), "bench", &endpoint).toml());
    daemon.env("AWS_ACCESS_KEY_ID", aws::KEY_ID).env("AWS_SECRET_ACCESS_KEY", aws::SECRET);
    daemon.start_ready();
    let plan = Plan { window: 100, payload_len: LEN, ..Plan::new(port, "bench", 1, n) };
    let mut start = Instant::now();
    let mut publisher = Publisher::start(plan);
    let mut before = 0;
    if spooled {
        publisher.wait_done(Duration::from_secs(60));
        daemon.kill9();
        proxy.refuse(false);
        before = stored(s3) as u64;
        start = Instant::now();
        daemon.start_ready();
    }
    // Its own count is cheap to ask for; what is really there is looked at when the clock has stopped.
    env::wait_for("all objects stored", Duration::from_secs(120), || {
        (daemon.metric("s3put_stored_total") as u64 >= n - before).then_some(())
    });
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(stored(s3) as u64, n, "every object is there");
    (seconds * n as f64 / (n - before) as f64, daemon.usage())
}
