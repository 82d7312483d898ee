//! `depotd serve`: HEAD on everything, and whether `/metrics` is what a scraper takes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use e2e::depot::Depot;
use e2e::scratch::Scratch;
use e2e::{daemon, env};

const OS: &str = "/package?cpuArch=armv8";

/// Everything that comes back until the connection is closed.
fn exchange(base: &str, requests: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(base.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(requests.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// Status, headers (names in lower case) and what follows them.
fn parse(answer: &[u8]) -> (u16, BTreeMap<String, String>, Vec<u8>) {
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head");
    let head = std::str::from_utf8(&answer[..at]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    };
    (status, lines.map(header).collect(), answer[at + 4..].to_vec())
}

#[test]
fn depotd_head_is_get_without_its_body() {
    let scratch = Scratch::new("depot-head");
    let depot = Depot::new(&scratch, "depot");
    depot.done(&["sample", "--size", "100000", "--key", "release.key"]);
    let (daemon, base) = depot.serve(&scratch, "serve", "");
    let metadata = format!("{OS}&payloadType=metadataOnly");
    let (_, _, body) =
        parse(&exchange(&base, &format!("GET {metadata} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")));
    let details: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let text = |key: &str| details["os_armv8"][key].as_str().unwrap();
    let (blob, have) = (text("download"), format!("If-None-Match: \"{}\"\r\n", text("md5")));
    let missing = format!("/blob/{}", "0".repeat(64));
    let mut statuses = BTreeSet::new();
    // The bundle first: nobody has made it. Then it is asked for, and again.
    for (path, more) in [
        (OS, ""),
        (OS, ""),
        (&metadata, ""),
        (OS, &have),
        (&metadata, &have),
        ("/package", ""),
        ("/package?cpuArch=mips", ""),
        ("/", ""),
        ("/other", ""),
        (blob, ""),
        (&missing, ""),
        ("/blob/x", ""),
    ] {
        // On one connection: were there a body, the second answer would not begin where it should.
        let head = format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
        let two = exchange(&base, &format!("{head}GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        let (status, headers, rest) = parse(&two);
        assert!(rest.starts_with(b"HTTP/1.1 200 OK\r\n"), "{path}: {}", String::from_utf8_lossy(&rest));
        let get =
            exchange(&base, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n"));
        let (get_status, mut get_headers, get_body) = parse(&get);
        get_headers.remove("connection");
        let mut headers = headers;
        for one in [&mut headers, &mut get_headers] {
            assert!(one.remove("date").is_some(), "{path}");
            if statuses.is_empty() {
                // Whether the length is known depends on how far the bundle is when its head goes out, and HEAD may
                // leave out what only the making tells (RFC 9110, 9.3.2).
                for field in ["content-length", "transfer-encoding", "accept-ranges"] {
                    one.remove(field);
                }
            }
        }
        assert_eq!((status, headers), (get_status, get_headers), "{path}");
        assert_eq!(get_body.is_empty(), status == 304, "{path}");
        statuses.insert(status);
        // What was made by the GET is on disk before it is asked for again.
        env::wait_for("nothing under way", Duration::from_secs(60), || {
            (daemon.status()["bundles"]["making"] == 0).then_some(())
        });
    }
    assert_eq!(statuses, BTreeSet::from([200, 304, 400, 404]));
    // A range is for GET alone.
    let ranged = exchange(
        &base,
        &format!("HEAD {blob} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\nConnection: close\r\n\r\n"),
    );
    let (status, headers, rest) = parse(&ranged);
    assert_eq!((status, headers["content-length"].as_str(), rest.len()), (200, "100000", 0));
    daemon.check_log();
}

/// The form of Prometheus' text, version 0.0.4, line by line. Gives the kind of each family.
fn check_page(page: &str) -> BTreeMap<String, String> {
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let (mut helped, mut seen, mut current) = (BTreeSet::new(), BTreeSet::new(), String::new());
    let is_name = |name: &str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty() && helped.insert(name.to_owned()), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helped.contains(name) && matches!(kind, "counter" | "gauge"), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            name.clone_into(&mut current);
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert_eq!(name, current, "samples stand below their TYPE");
        for label in labels.strip_suffix('}').unwrap().split("\",").filter(|label| !label.is_empty()) {
            let (key, text) = label.split_once("=\"").unwrap();
            let text = text.strip_suffix('"').unwrap_or(text);
            assert!(is_name(key) && !text.contains(['"', '\n']), "{line}");
        }
        assert!(seen.insert(series.to_owned()), "{line} stands there twice");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(value >= 0.0, "{line}");
    }
    kinds
}

#[test]
fn depotd_metrics_are_what_a_scraper_takes_and_count_right() {
    let scratch = Scratch::new("depot-metrics");
    let depot = Depot::new(&scratch, "depot");
    depot.done(&["sample", "--size", "1000", "--key", "release.key"]);
    let (daemon, base) = depot.serve(&scratch, "serve", "");
    // Before the first poll there is no newest one.
    let kinds = check_page(&daemon.metrics());
    assert!(!kinds.contains_key("depotd_newest_poll_age_seconds") && kinds.len() > 8, "{kinds:?}");
    let ask = |path: &str, more: &str| {
        parse(&exchange(&base, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n")))
    };
    let metadata = format!("{OS}&payloadType=metadataOnly");
    let details: serde_json::Value = serde_json::from_slice(&ask(&metadata, "").2).unwrap();
    let text = |key: &str| details["os_armv8"][key].as_str().unwrap();
    for _ in 0..3 {
        assert_eq!(ask(OS, &format!("If-None-Match: {}\r\n", text("md5"))).0, 304);
    }
    assert_eq!(ask(&format!("{OS}&x-gen=12-ab"), "").0, 200);
    assert_eq!(ask(&format!("{OS}&x-gen=%22%7D%0Aevil"), "").0, 200);
    assert_eq!(ask("/package", "").0, 400);
    assert_eq!(ask("/package?cpuArch=mips", "").0, 404);
    assert_eq!(ask(text("download"), "").2.len(), 1000);
    let page = daemon.metrics();
    let kinds = check_page(&page);
    assert_eq!(kinds["depotd_newest_poll_age_seconds"], "gauge");
    assert!(!page.contains("evil"), "{page}");
    let polls = |outcome: &str| {
        let line = format!("depotd_polls_total{{outcome=\"{outcome}\"}} ");
        page.lines()
            .find_map(|l| l.strip_prefix(&line)?.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("{page}"))
    };
    let outcomes = ["bundle", "metadata", "not-modified", "nothing", "refused", "failed"].map(polls);
    assert_eq!(outcomes, [2, 1, 3, 1, 1, 0], "{page}");
    assert!(page.contains("depotd_generation_polls_total{generation=\"12-ab\"} 1"), "{page}");
    assert_eq!(daemon::sum_metric(&page, "depotd_blobs_total"), 1.0);
    assert!(daemon::sum_metric(&page, "depotd_sent_bytes_total") > 3000.0);
}
