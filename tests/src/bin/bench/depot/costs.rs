//! What a million polls cost behind a CDN, worked out from the sizes of depotd's answers: the table of its `CDN.md`.

use std::process::Command;

use e2e::env;
use e2e::scratch::Scratch;
use e2e::table::{Table, thousands};

/// Dollars for a million HTTPS requests, and for 10^9 bytes out of the CDN: the highest tier of the price list that the
/// original's own estimate goes by.
const MILLION_REQUESTS: f64 = 1.0;
const GIGABYTE: f64 = 0.085;
/// What a CDN adds to each answer in headers of its own, about.
const CDN_HEADERS: u64 = 300;

/// `all` is the question; a device that has everything sends `tags`.
pub fn run(scratch: &Scratch, base: &str, all: &str, tags: &str) {
    let metadata = format!("{base}{all}&payloadType=metadataOnly");
    let body = scratch.join("body");
    let polls = [
        ("everything there", sizes(&metadata, Some(tags), &body)),
        ("metadata only", sizes(&metadata, None, &body)),
        ("metadata only, compressed", compressed(&metadata, &body)),
        ("all four files", sizes(&format!("{base}{all}"), None, &body)),
    ];
    println!(
        "A million polls of a device with four apps of 10 MB, behind a CDN (its {CDN_HEADERS} bytes of headers included)\n"
    );
    let mut table =
        Table::new(&["poll", "status", "header", "body", "GB", "requests", "transfer", "together"]);
    for (poll, (status, header, body)) in polls {
        // A million answers of n bytes are n / 1000 GB.
        let gigabytes = (header + body + CDN_HEADERS) as f64 / 1000.0;
        let transfer = gigabytes * GIGABYTE;
        table.row(&[
            poll.into(),
            status,
            thousands(header),
            thousands(body),
            if gigabytes < 100.0 { format!("{gigabytes:.2}") } else { thousands(gigabytes.round() as u64) },
            format!("${MILLION_REQUESTS:.2}"),
            format!("${transfer:.2}"),
            format!("${:.2}", MILLION_REQUESTS + transfer),
        ]);
    }
    println!("{}", table.text());
}

/// Status, bytes of the head, bytes of the body: as curl counts them.
fn sizes(url: &str, tags: Option<&str>, into: &std::path::Path) -> (String, u64, u64) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-w", "%{http_code} %{size_header} %{size_download}", "-o"]).arg(into);
    if let Some(tags) = tags {
        curl.arg("-H").arg(format!("If-None-Match: {tags}"));
    }
    let said = env::run(curl.arg(url));
    let numbers: Vec<u64> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
    (numbers[0].to_string(), numbers[1], numbers[2])
}

/// As a CDN would send it to a client that takes gzip.
fn compressed(url: &str, into: &std::path::Path) -> (String, u64, u64) {
    let (status, header, _) = sizes(url, None, into);
    env::run(Command::new("gzip").args(["-n", "-f", "-6"]).arg(into));
    (status, header, into.with_extension("gz").metadata().unwrap().len())
}
