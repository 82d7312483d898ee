//! `depotd serve`: the requests of the reference with curl, tags, ranges, bundles made once, peers that misbehave.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::daemon::Daemon;
use e2e::scratch::Scratch;
use e2e::{env, net};
use serde_json::Value;

/// The server with the demo data, ready.
struct Depot {
    daemon: Daemon,
    port: u16,
    scratch: Scratch,
}

/// An answer.
struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.split_once(": ").is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(|line| of(line)).and_then(|line| line.split_once(": ")).map(|(_, v)| v)
    }
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Depot {
    fn new(name: &str, size: u64, more: &str) -> Depot {
        let scratch = Scratch::new(name);
        let port = net::free_port();
        let toml = format!(
            "listen = \"127.0.0.1:{port}\"\nctl-socket = \"{{dir}}/ctl.sock\"\ndrain-ms = 3000\n\
             [catalog]\nat = \"sqlite:{{dir}}/catalog.db\"\n[store]\nat = \"dir:{{dir}}\"\n{more}"
        );
        let toml = if more.contains("[bundle]") { toml } else { format!("{toml}[bundle]\n") };
        let toml = toml.replace("[bundle]\n", "[bundle]\ndir = \"{dir}/cache\"\nfree-min = 0\n");
        let mut daemon = Daemon::new(&scratch, "depotd", "depot", &toml);
        depotd(&daemon.config, &["sample", "--size", &size.to_string()]);
        daemon.start_ready();
        Depot { daemon, port, scratch }
    }

    /// Stops it, and starts it with this instead of that in its configuration.
    fn reconfigure(&mut self, that: &str, this: &str) {
        let toml = std::fs::read_to_string(&self.daemon.config).unwrap();
        assert!(toml.contains(that), "{toml}");
        std::fs::write(&self.daemon.config, toml.replace(that, this)).unwrap();
        self.daemon.term();
        self.daemon.start_ready();
    }

    /// By curl.
    fn get(&self, path: &str, arguments: &[&str]) -> Got {
        let (head, body) = (self.scratch.join("head"), self.scratch.join("body"));
        std::fs::write(&body, "").unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "120", "-D"]).arg(&head).arg("-o").arg(&body).args(arguments);
        env::run(curl.arg(format!("http://127.0.0.1:{}{path}", self.port)));
        let head = std::fs::read_to_string(&head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Got { status, head, body: std::fs::read(&body).unwrap() }
    }

    fn etags(&self, path: &str, tags: &str) -> Got {
        self.get(path, &["-H", &format!("If-None-Match: {tags}")])
    }

    fn details(&self, query: &str) -> Value {
        self.get(&format!("/package?{query}&payloadType=metadataOnly"), &[]).json()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(net::local(self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// What is counted of bundles once none is being made: its last byte is sent before it is on disk, and counted after.
    fn bundles(&self) -> Value {
        let settled = || Some(self.daemon.status()["bundles"].clone()).filter(|b| b["making"] == 0);
        env::wait_for("the bundles to be on disk", Duration::from_secs(20), settled)
    }

    fn cached(&self) -> Vec<(String, u64)> {
        let entries = std::fs::read_dir(self.daemon.dir.join("cache")).unwrap();
        let entries = entries.map(|e| e.unwrap());
        entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().unwrap().len())).collect()
    }
}

fn depotd(config: &Path, arguments: &[&str]) -> String {
    env::run(Command::new(env::bin("depotd")).arg("--config").arg(config).args(arguments))
}

/// Names and contents in a tar.gz, in order, by tar.
fn unpack(scratch: &Scratch, bundle: &[u8]) -> Vec<(String, Vec<u8>)> {
    let path = scratch.write("bundle.tar.gz", bundle);
    let names = env::run(Command::new("tar").arg("tzf").arg(&path));
    let content = |name: &str| Command::new("tar").arg("xzOf").arg(&path).arg(name).output().unwrap().stdout;
    names.lines().map(|name| (name.to_owned(), content(name))).collect()
}

fn md5(details: &Value, app: &str) -> String {
    details[app]["md5"].as_str().unwrap().to_owned()
}

const OS: &str = "/package?cpuArch=armv8";
const ALL: &str = "/package?cpuArch=armv8&attrGamer=prod&attrCellular=prod";

#[test]
fn the_requests_of_the_reference_give_what_it_shows() {
    let depot = Depot::new("depot-reference", 65_536, "");
    let os = depot.get(OS, &[]);
    assert_eq!((os.status, os.header("content-type")), (200, Some("application/x-gzip")));
    let disposition = "attachment; filename=\"ota-package.tar.gz\"";
    assert_eq!(os.header("content-disposition"), Some(disposition));
    assert_eq!(os.header("cache-control"), Some("max-age=100"));
    assert_eq!(os.header("content-encoding"), None);
    let names = |got: &Got| -> Vec<String> {
        unpack(&depot.scratch, &got.body).into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names(&os), ["os_armv8_1.1.0", "package_details.json"]);
    let beta = depot.get("/package?cpuArch=armv8&os=beta", &[]);
    assert_eq!(names(&beta)[1], "package_details.json");
    assert!(names(&beta)[0].starts_with("os_armv8_1.2"), "{:?}", names(&beta));
    let gamer = depot.get("/package?cpuArch=armv8&attrGamer=prod", &[]);
    let want = ["os_armv8_1.1.0", "scoreboard_1.0.0", "videoStreamer_0.0.1", "package_details.json"];
    assert_eq!(names(&gamer), want);
    let all = depot.get(ALL, &[]);
    let want =
        ["modemFW_1.0", "os_armv8_1.1.0", "scoreboard_1.0.0", "videoStreamer_0.0.1", "package_details.json"];
    assert_eq!(names(&all), want);
    for (path, apps) in [(OS, 1), (&format!("{OS}&os=beta"), 1), (&format!("{OS}&attrGamer=prod"), 3)] {
        let metadata = depot.get(&format!("{path}&payloadType=metadataOnly"), &[]);
        assert_eq!((metadata.status, metadata.header("content-type")), (200, Some("application/json")));
        assert_eq!(metadata.json().as_object().unwrap().len(), apps, "{path}");
        assert_eq!(metadata.json()["os_armv8"]["status_code"], 200);
    }

    // What the device has is left out.
    let details = depot.details("cpuArch=armv8&attrGamer=prod&attrCellular=prod");
    let without = depot.etags(ALL, &md5(&details, "os_armv8"));
    let files = unpack(&depot.scratch, &without.body);
    assert_eq!(files.len(), 4);
    let told: Value = serde_json::from_slice(&files[3].1).unwrap();
    let status = |app: &str| told[app]["status_code"].as_u64().unwrap();
    assert_eq!([status("os_armv8"), status("scoreboard"), status("modemFW")], [304, 200, 200]);
    assert_eq!(told["videoStreamer"]["latestVersion"], "0.0.1");
    // The JSON of the reference, entry by entry; what is new in it stands beside.
    let shown = depot.etags(&format!("{ALL}&payloadType=metadataOnly"), &md5(&details, "os_armv8"));
    assert_eq!((shown.status, shown.header("cache-control")), (200, Some("max-age=100")));
    assert_eq!(shown.json(), told, "the details alone are those of the bundle");
    for (app, version, code) in [
        ("os_armv8", "1.1.0", 304),
        ("scoreboard", "1.0.0", 200),
        ("videoStreamer", "0.0.1", 200),
        ("modemFW", "1.0", 200),
    ] {
        let entry = &shown.json()[app];
        assert_eq!(
            (entry["latestVersion"].as_str(), entry["status_code"].as_u64()),
            (Some(version), Some(code))
        );
        assert!(entry["url"].as_str().is_some_and(|url| !url.is_empty()), "{entry}");
    }
    assert_eq!(shown.json().as_object().unwrap().len(), 4);
    let apps = ["os_armv8", "scoreboard", "videoStreamer", "modemFW"];
    let sums: Vec<String> = apps.iter().map(|app| md5(&details, app)).collect();
    for path in [ALL.to_owned(), format!("{ALL}&payloadType=metadataOnly")] {
        let got = depot.etags(&path, &format!("{},", sums.join(",")));
        assert_eq!((got.status, got.body.len(), got.header("cache-control")), (304, 0, Some("max-age=100")));
    }
    depot.daemon.check_log();
}

#[test]
fn errors_methods_and_the_health_check() {
    let depot = Depot::new("depot-errors", 1000, "");
    for (path, status, why) in [
        ("/package", 400, "Missing cpuArch query param"),
        ("/package?cpuArch=armv8&payloadType=zip", 400, "Invalid payloadType param"),
        ("/package?cpuArch=mips", 404, "No deployment package found"),
        ("/package?cpuArch=x&attr%27%20OR%20%271%27%3D%271=prod", 404, "No deployment package found"),
        ("/package?cpuArch=x&attr%25=prod&%22%3B--=prod", 404, "No deployment package found"),
        ("/blob/00", 404, "No such content"),
    ] {
        let got = depot.get(path, &[]);
        assert_eq!((got.status, got.json()["error"].as_str()), (status, Some(why)), "{path}");
        assert_eq!(got.header("cache-control"), Some("no-store"), "{path}");
    }
    assert_eq!(depot.get("/other", &[]).status, 404);
    let post = depot.get(OS, &["-X", "POST"]);
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(depot.get("/", &[]).status, 200);
    for path in ["/", OS, "/package?cpuArch=armv8&payloadType=metadataOnly", "/package"] {
        let (head, get) = (depot.get(path, &["-I"]), depot.get(path, &[]));
        assert_eq!((head.status, head.header("content-type")), (get.status, get.header("content-type")));
    }
    let mut stream = depot.connect();
    stream.write_all(b"HEAD /other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404") && answer.ends_with("\r\n\r\n"), "{answer}");
    depot.daemon.check_log();
}

#[test]
fn tags_in_every_form() {
    let depot = Depot::new("depot-tags", 1000, "");
    let details = depot.details("cpuArch=armv8&attrGamer=prod");
    let (a, b, c) = (md5(&details, "os_armv8"), md5(&details, "scoreboard"), md5(&details, "videoStreamer"));
    let path = "/package?attrGAMER=PROD&cpuarch=ARMV8";
    for tags in [
        format!("{a},{b},{c}"),
        format!("\"{c}\", \"{b}\" ,\"{a}\""),
        format!("W/\"{a}\",W/{b},,{c},{c}"),
        format!("{} {} {}", a.to_uppercase(), b, c),
        "*".to_owned(),
    ] {
        assert_eq!(depot.etags(path, &tags).status, 304, "{tags}");
    }
    for tags in [format!("{a},{b}"), String::from("\"x\""), a[1..].to_owned()] {
        assert_eq!(depot.etags(path, &tags).status, 200, "{tags}");
    }
    // What we gave ourselves, as a CDN asks.
    for path in [path.to_owned(), format!("{path}&payloadType=metadataOnly")] {
        let tag = depot.get(&path, &[]).header("etag").unwrap().to_owned();
        assert_eq!(depot.etags(&path, &tag).status, 304, "{path}");
    }
}

#[test]
fn content_by_its_sum_whole_and_in_parts() {
    let depot = Depot::new("depot-blob", 1_000_003, "");
    let details = depot.details("cpuArch=armv8");
    let path = details["os_armv8"]["download"].as_str().unwrap().to_owned();
    let tag = format!("\"{}\"", path.trim_start_matches("/blob/"));
    let whole = depot.get(&path, &[]);
    assert_eq!((whole.status, whole.body.len(), whole.header("etag")), (200, 1_000_003, Some(tag.as_str())));
    assert_eq!(whole.header("cache-control"), Some("public, max-age=31536000, immutable"));
    let part = |range: &str, more: &[&str]| {
        depot.get(&path, &[&["-H", &format!("Range: bytes={range}")], more].concat())
    };
    for (range, from, to) in [("0-0", 0, 1), ("999999-", 999_999, 1_000_003), ("-7", 999_996, 1_000_003)] {
        let got = part(range, &[]);
        assert_eq!(got.status, 206, "{range}");
        assert!(got.body == whole.body[from..to], "{range}");
        let want = format!("bytes {from}-{}/1000003", to - 1);
        assert_eq!(got.header("content-range"), Some(want.as_str()));
    }
    let beyond = part("1000003-", &[]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */1000003")));
    assert_eq!(part("0-1,5-6", &[]).status, 200);
    assert_eq!(part("5-6", &["-H", &format!("If-Range: {tag}")]).status, 206);
    assert_eq!(part("5-6", &["-H", "If-Range: \"other\""]).status, 200);
    assert_eq!(depot.etags(&path, &format!("W/{tag}")).status, 304);
    let head = depot.get(&path, &["-I"]);
    assert_eq!((head.status, head.header("content-length")), (200, Some("1000003")));

    // What no live or paused release has is not there, seconds after it was retired.
    depotd(&depot.daemon.config, &["pause", "os_armv8", "--env", "prod"]);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!((depot.get(&path, &[]).status, depot.get(OS, &[]).status), (200, 404));
    depotd(&depot.daemon.config, &["retire", "os_armv8", "--env", "prod", "--version", "1.1.0"]);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(depot.get(&path, &[]).status, 404);
    depot.daemon.check_log();
}

#[test]
fn a_bundle_is_made_once_and_is_the_same_after_a_restart() {
    let mut depot = Depot::new("depot-once", 8 << 20, "");
    let first = std::thread::scope(|scope| {
        let ask = |n: usize| {
            let order = ["cpuArch=armv8&attrGamer=prod", "attrgamer=PROD&CPUARCH=armv8"][n % 2];
            let mut stream = depot.connect();
            write!(stream, "GET /package?{order} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            scope.spawn(move || {
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                body(&answer)
            })
        };
        let asked: Vec<_> = (0..16).map(ask).collect();
        let all: Vec<Vec<u8>> = asked.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(all.iter().all(|one| *one == all[0]), "all got the same bytes");
        all.into_iter().next().unwrap()
    });
    let bundles = depot.bundles();
    let shared = bundles["joins"].as_u64().unwrap() + bundles["hits"].as_u64().unwrap();
    assert_eq!((bundles["made"].as_u64(), shared), (Some(1), 15), "{bundles}");
    assert_eq!(unpack(&depot.scratch, &first).len(), 4);
    let path = "/package?cpuArch=armv8&attrGamer=prod";
    assert!(depot.get(path, &[]).body == first);
    depot.daemon.kill9();
    depot.daemon.start_ready();
    let kept = depot.get(path, &[]);
    assert!(kept.body == first && kept.header("content-length").is_some(), "from the disk");
    depot.daemon.term();
    std::fs::remove_dir_all(depot.daemon.dir.join("cache")).unwrap();
    depot.daemon.start_ready();
    assert!(depot.get(path, &[]).body == first, "made again, the same bytes");
    assert_eq!(depot.bundles()["made"], 1);
}

/// The body of an answer that ends with the connection, chunked or not.
fn body(answer: &[u8]) -> Vec<u8> {
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let (head, mut rest) = (String::from_utf8_lossy(&answer[..at]), &answer[at + 4..]);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    if !head.contains("chunked") {
        return rest.to_vec();
    }
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").expect("the end of a chunk's line");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
}

#[test]
fn killed_while_it_makes_a_bundle_it_serves_no_half_one() {
    let mut depot = Depot::new("depot-half", 24 << 20, "");
    let mut stream = depot.connect();
    stream.write_all(b"GET /package?cpuArch=armv8&attrGamer=prod HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let half =
        |depot: &Depot| depot.cached().iter().any(|(name, size)| name.starts_with(".new-") && *size > 0);
    env::wait_for("a bundle under way", Duration::from_secs(20), || half(&depot).then_some(()));
    depot.daemon.kill9();
    assert!(half(&depot));
    depot.daemon.start_ready();
    assert!(!half(&depot), "what was half is gone");
    let got = depot.get("/package?cpuArch=armv8&attrGamer=prod", &[]);
    assert_eq!(unpack(&depot.scratch, &got.body).len(), 4);
}

#[test]
fn bad_peers_hold_nobody_up() {
    let depot = Depot::new("depot-peers", 4 << 20, "[limits]\nconnections-max = 64\nwrite-ms = 2000\n");
    let details = depot.details("cpuArch=armv8");
    let path = details["os_armv8"]["download"].as_str().unwrap().to_owned();
    let mut bad = Vec::new();
    for n in 0..60 {
        let mut stream = depot.connect();
        match n % 4 {
            0 => {}
            1 => stream.write_all(b"GET /package?cpuArch=ar").unwrap(),
            2 => write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap(),
            _ => drop(stream.write_all(&[0xff; 3000])),
        }
        bad.push(stream);
    }
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(depot.get(&format!("{OS}&payloadType=metadataOnly"), &[]).status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // Whoever does not read is dropped after write-ms.
    let few = || (depot.daemon.status()["connections"].as_u64() < Some(40)).then_some(());
    env::wait_for("the silent readers to be dropped", Duration::from_secs(20), few);
    drop(bad);
}

#[test]
fn the_cache_stays_within_its_bounds() {
    let bundle = "[bundle]\nbytes-max = \"3 MiB\"\nfiles-max = 4\nlevel = 1\n";
    let depot = Depot::new("depot-bounds", 700_000, bundle);
    let details = depot.details("cpuArch=armv8&attrGamer=prod&attrCellular=prod");
    for app in ["os_armv8", "scoreboard", "videoStreamer", "modemFW"] {
        // Two at once have no room: until the first is on disk, all that it might have needed is set aside for it.
        assert_eq!(depot.etags(ALL, &md5(&details, app)).status, 200, "{app}");
        depot.bundles();
        assert_eq!(depot.get(OS, &[]).status, 200);
        depot.bundles();
        let files: Vec<_> = depot.cached().into_iter().filter(|(name, _)| !name.starts_with('.')).collect();
        assert!(files.len() <= 4 && files.iter().map(|f| f.1).sum::<u64>() <= 3 << 20, "{files:?}");
    }
    drop(depot);
    // Larger than all of it, and no space on the disk.
    let small = Depot::new("depot-large", 2 << 20, "[bundle]\nbytes-max = \"1 MiB\"\n");
    let got = small.get(OS, &[]);
    assert_eq!((got.status, got.header("cache-control")), (507, Some("no-store")));
    drop(small);
    let mut full = Depot::new("depot-full", 1000, "");
    full.reconfigure("free-min = 0", "free-min = \"1000000 GiB\"");
    let got = full.get(OS, &[]);
    assert_eq!((got.status, got.header("retry-after").is_some()), (503, true));
    assert_eq!(full.get(&format!("{OS}&payloadType=metadataOnly"), &[]).status, 200);
}

#[test]
fn it_says_what_it_does_and_stops_when_answers_are_out() {
    let mut depot = Depot::new("depot-status", 6 << 20, "");
    depot.reconfigure("drain-ms = 3000", "drain-ms = 30000");
    for n in 0..100 {
        depot.get(&format!("{OS}&payloadType=metadataOnly&x-gen={}-abc", n % 3), &[]);
    }
    let metrics = depot.daemon.metrics();
    assert!(metrics.contains("depotd_polls_total{outcome=\"metadata\"} 100"), "{metrics}");
    assert!(metrics.contains("depotd_generation_polls_total{generation=\"0-abc\"} 34"), "{metrics}");
    assert!(metrics.contains("depotd_answers_total{from=\"catalog\"} 1"), "x-gen is no part of the question");
    assert!(metrics.contains("depotd_newest_poll_age_seconds"));
    // An answer under way is sent to its end.
    let mut stream = depot.connect();
    stream.write_all(b"GET /package?cpuArch=armv8 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let mut rest = first.to_vec();
        stream.read_to_end(&mut rest).unwrap();
        body(&rest)
    });
    depot.daemon.process().signal(rustix::process::Signal::TERM);
    assert!(depot.daemon.wait_exit(Duration::from_secs(40)).success());
    assert_eq!(unpack(&depot.scratch, &reader.join().unwrap()).len(), 2);
}
