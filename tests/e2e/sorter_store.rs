//! Pictures and panoramas of sorterd on their way to S3: an answer never waits for it, and nothing is lost when it is away.
//! And on its own disk: how many bytes of them there are, and who may read them.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use e2e::aws::S3;
use e2e::env::wait_for;
use e2e::proxy::Proxy;
use e2e::scratch::Scratch;
use e2e::sorter::{Sorter, after_headers, draw, have_arm, headers};
use e2e::{need, skip};
use serde_json::json;

const BUCKET: &str = "arms";
const LONG: Duration = e2e::sorter::PANORAMA;

fn configured(scratch: &Scratch, endpoint: &str) -> Sorter {
    let more = format!(
        "[upload]\nmode = \"aws-dev\"\nto = \"s3://{BUCKET}\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\n"
    );
    let mut sorter = Sorter::new(scratch, &more);
    sorter.daemon.env("AWS_ACCESS_KEY_ID", e2e::aws::KEY_ID).env("AWS_SECRET_ACCESS_KEY", e2e::aws::SECRET);
    sorter.daemon.env("AWS_EC2_METADATA_DISABLED", "true");
    sorter
}

fn wait_keys(s3: &S3, wanted: &[String]) {
    wait_for(&format!("{} objects in S3", wanted.len()), LONG, || {
        std::thread::sleep(Duration::from_millis(300));
        let keys = s3.keys(BUCKET);
        wanted.iter().all(|key| keys.contains(key)).then_some(())
    });
}

#[test]
fn a_session_ends_up_in_s3() {
    need!("aws");
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sors3");
    let Some(s3) = S3::s3s(&scratch, BUCKET) else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let mut sorter = configured(&scratch, &s3.endpoint());
    sorter.daemon.start_ready();
    sorter.play_well("sort", &["--session", "s12", "--after", "--stitch"]);
    let drawn = draw(&scratch, "sort");
    let mut wanted: Vec<String> = Vec::new();
    for (image, _) in &drawn {
        wanted.extend([format!("arm1/s12/{image}"), format!("arm1/s12/after_{image}")]);
    }
    wanted.extend(["original_stitch.jpg", "after_stitch.jpg"].map(|name| format!("arm1/s12/{name}")));
    wait_keys(&s3, &wanted);
    wanted.sort();
    assert_eq!(s3.keys(BUCKET), wanted, "nothing else is there");
    let copy = scratch.dir("copy");
    s3.fetch_all(BUCKET, &copy);
    for (image, picture) in &drawn {
        for name in [image.clone(), format!("after_{image}")] {
            assert!(&std::fs::read(copy.join("arm1/s12").join(&name)).unwrap() == picture, "{name}");
        }
    }
    assert!(s3.head(BUCKET, &wanted[0])["ContentType"].as_str().is_some_and(|t| t == "image/jpeg"));
    sorter.daemon.check_log();
    assert!(sorter.daemon.term().success());
}

/// S3 is away, then silent; the daemon is killed meanwhile. Answers come as ever, and in the end all is there.
#[test]
fn s3_away_then_silent_then_back() {
    need!("aws");
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sors3a");
    let Some(s3) = S3::s3s(&scratch, BUCKET) else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let proxy = Proxy::start(s3.port);
    proxy.refuse(true);
    let mut sorter = configured(&scratch, &format!("http://127.0.0.1:{}", proxy.port));
    sorter.daemon.start_ready();
    let drawn = draw(&scratch, "single");
    let mut wanted = Vec::new();
    let mut send = |sorter: &Sorter, session: &str| {
        let begun = Instant::now();
        for n in 0..5 {
            assert_eq!(sorter.send(&headers(session, &format!("{n}.jpg")), &drawn[0].1), json!(true));
            wanted.push(format!("arm1/{session}/{n}.jpg"));
        }
        begun.elapsed()
    };
    let away = send(&sorter, "away");
    sorter.daemon.kill9();
    proxy.refuse(false);
    proxy.stall(true);
    sorter.daemon.start_ready();
    let silent = send(&sorter, "silent");
    sorter.daemon.kill9();
    sorter.daemon.start_ready();
    assert!(s3.keys(BUCKET).is_empty());
    proxy.stall(false);
    proxy.cut();
    send(&sorter, "back");
    wait_keys(&s3, &wanted);
    for (what, took) in [("away", away), ("silent", silent)] {
        assert!(took < Duration::from_secs(40), "nobody waits for S3: {what}: {took:?}");
    }
    sorter.daemon.check_log();
}

/// `local`: nothing leaves the machine, whatever else is configured.
#[test]
fn local_keeps_everything_here() {
    need!("aws");
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sorloc");
    let Some(s3) = S3::s3s(&scratch, BUCKET) else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let mut sorter = configured(&scratch, &s3.endpoint());
    let text = std::fs::read_to_string(&sorter.daemon.config).unwrap();
    std::fs::write(&sorter.daemon.config, text.replace("aws-dev", "local")).unwrap();
    sorter.daemon.start_ready();
    sorter.play_well("two", &["--after", "--stitch"]);
    assert!(sorter.kept().iter().any(|name| name == "arm1/s1/1500.jpg"), "{:?}", sorter.kept());
    assert!(sorter.daemon.term().success());
    assert!(s3.keys(BUCKET).is_empty());
}

/// Bytes of the pictures there are, by looking.
fn bytes_kept(sorter: &Sorter) -> u64 {
    let top = sorter.daemon.dir.join("state/pictures");
    sorter
        .kept()
        .iter()
        .filter_map(|name| std::fs::metadata(top.join(name)).ok())
        .map(|meta| meta.len())
        .sum()
}

#[test]
fn pictures_on_disk_are_counted_at_once_and_kept_below_their_bound() {
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    const BOUND: u64 = 1 << 20;
    let scratch = Scratch::new("sorbnd");
    let sorter = Sorter::start(&scratch, "[pictures]\nbytes-max = \"1 MiB\"\n");
    let (_, picture) = draw(&scratch, "single").remove(0);
    let size = picture.len() as u64;
    let told = || sorter.daemon.status()["pictures_bytes"].as_u64().unwrap();
    for n in 1..=3 {
        assert_eq!(sorter.send(&headers("s0", &format!("{n}.jpg")), &picture), json!(true));
        assert_eq!(
            sorter.send(&after_headers("s0", "1.jpg"), &picture),
            json!(true),
            "each time the same one"
        );
        assert_eq!((told(), bytes_kept(&sorter)), ((n + 1) * size, (n + 1) * size));
    }
    assert_eq!(sorter.daemon.metric("sorterd_pictures_bytes"), (4 * size) as f64);
    // Fewer than those after which it would look anyway.
    let count = BOUND / size + 25;
    assert!(count < 57, "a picture has {size} bytes");
    for n in 1..=count {
        assert_eq!(sorter.send(&headers(&format!("s{n}"), "1500.jpg"), &picture), json!(true));
        assert!(bytes_kept(&sorter) <= BOUND + 12 * size, "{} after {n}", bytes_kept(&sorter));
    }
    wait_for("no more than the bound", Duration::from_secs(60), || {
        (told() <= BOUND && told() == bytes_kept(&sorter)).then_some(())
    });
    let kept = sorter.kept();
    assert!(!kept.iter().any(|name| name.starts_with("arm1/s0/")), "the oldest session goes: {kept:?}");
    assert!(kept.contains(&format!("arm1/s{count}/1500.jpg")), "{kept:?}");
    sorter.daemon.check_log();
}

/// Run by hand, where nobody has set a umask for it.
#[test]
fn what_is_kept_is_not_for_everybody() {
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    for umask in ["0", "022"] {
        let scratch = Scratch::new("sormode");
        let mut sorter = Sorter::new(&scratch, "");
        sorter.daemon.wrap(&["sh", "-c", &format!("umask {umask}; exec \"$@\""), "sh"]).start_ready();
        sorter.play_well("two", &["--after"]);
        let (mut files, mut folders) = (0, 0);
        let mut look = vec![sorter.daemon.dir.join("state")];
        while let Some(folder) = look.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                // A temporary file may have got its name in this moment.
                let Ok(meta) = entry.metadata() else { continue };
                let path = entry.path();
                let mode = meta.permissions().mode() & 0o777;
                if meta.is_dir() {
                    assert_eq!(mode, 0o750, "{path:?}: {mode:o}");
                    folders += 1;
                    look.push(path);
                } else {
                    assert_eq!(mode, 0o640, "{path:?}: {mode:o}");
                    files += 1;
                }
            }
        }
        assert!(files >= 11 && folders >= 3, "ten pictures and a database: {files} files, {folders} folders");
        sorter.daemon.check_log();
    }
}
