//! `make demo`: the whole face pipeline on this machine, on real pictures, with one command.
//!
//!   cameras -> faced -> edge broker -> mqfwd -> cloud broker -> s3put -> folder or S3
//!
//! Environment: STORE=dir|s3, SOURCE=(a faced source, a file, a folder, an RTSP address), BROKER=none (then
//! faced sends to mqfwd's own port, and mqfwd to that of s3put), DEMO_S=seconds for a source without an end.
//! Leaves demo/out/index.html and demo/out/objects. Ctrl-C ends it early, shows what there is and cleans up.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod objects;
mod page;
mod pipeline;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::env;
use e2e::table::{Table, percentile, thousands};

use objects::Object;
use pipeline::{Counts, Pipeline};

/// What the person asked for.
pub struct Wish {
    pub s3: bool,
    pub source: Option<String>,
    pub brokers: bool,
}

fn main() -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).expect("signals can be taken");
    }
    // Ctrl-C is for us alone: the daemons are ended in their turn, after they were asked for their figures.
    e2e::process::own_groups();
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let wish = Wish {
        s3: match var("STORE").as_deref() {
            None | Some("dir") => false,
            Some("s3") => true,
            Some(other) => return wrong(&format!("STORE is dir or s3, not {other:?}")),
        },
        source: var("SOURCE"),
        brokers: match var("BROKER").as_deref() {
            None | Some("mosquitto") => true,
            Some("none") => false,
            Some(other) => return wrong(&format!("BROKER is mosquitto or none, not {other:?}")),
        },
    };
    let seconds = match var("DEMO_S").map(|text| text.parse()) {
        None => 30,
        Some(Ok(seconds)) => seconds,
        Some(Err(_)) => return wrong("DEMO_S is a number of seconds"),
    };
    run(&wish, &stop, Duration::from_secs(seconds))
}

fn wrong(message: &str) -> ExitCode {
    eprintln!("demo: {message}");
    ExitCode::from(64)
}

fn run(wish: &Wish, stop: &AtomicBool, endless: Duration) -> ExitCode {
    let out = env::root().join("demo/out");
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&out).expect("demo/out can be made");
    let mut pipeline = match Pipeline::start(wish, &out, stop) {
        Ok(pipeline) => pipeline,
        Err(why) => return wrong(&why),
    };
    println!("{}\n", pipeline.picture());
    let counts = watch(&mut pipeline, stop, endless);
    let objects = pipeline.objects();
    let table = report(&pipeline, &counts, &objects);
    println!("\n{table}");
    let page = out.join("index.html");
    std::fs::write(&page, page::html(&pipeline, &counts, &objects, &table)).expect("demo/out can be written");
    pipeline.end();
    println!("faces with their metadata: {}", page.display());
    println!("objects:                   {}", pipeline.store_name());
    if objects.is_empty() && !stop.load(Ordering::Relaxed) {
        eprintln!("demo: no face came through; what the daemons said:\n{}", pipeline.logs());
        return ExitCode::FAILURE;
    }
    if counts.stored < counts.published && !stop.load(Ordering::Relaxed) {
        eprintln!(
            "demo: {} of {} faces are stored; what the daemons said:\n{}",
            counts.stored,
            counts.published,
            pipeline.logs()
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Shows progress until the sources have ended and all is stored, or somebody stops it.
fn watch(pipeline: &mut Pipeline, stop: &AtomicBool, endless: Duration) -> Counts {
    let start = Instant::now();
    let terminal = std::io::stdout().is_terminal();
    let mut counts = Counts::default();
    let (mut settled, mut shown) = (None::<Instant>, Instant::now());
    loop {
        pipeline.look(&mut counts);
        let line = format!(
            "{:5.1} s   frames {}   faces {}   published {}   forwarded {}   stored {}",
            start.elapsed().as_secs_f64(),
            thousands(counts.frames),
            thousands(counts.faces),
            counts.published,
            counts.forwarded,
            counts.stored
        );
        if terminal {
            print!("\r{line} ");
            let _ = std::io::stdout().flush();
        } else if shown.elapsed() > Duration::from_secs(5) {
            println!("{line}");
            shown = Instant::now();
        }
        // Ctrl-C ends the cameras, too: what they saw until then is still brought home.
        let ended = stop.load(Ordering::Relaxed)
            || pipeline.ended()
            || (pipeline.endless && start.elapsed() > endless);
        if ended && !pipeline.stopped {
            // What is still being followed is published now, and everything drains.
            pipeline.stop_cameras();
        }
        let quiet = pipeline.stopped && counts.stored >= counts.published;
        settled = if quiet { settled.or(Some(Instant::now())) } else { None };
        let patience = pipeline.stopped_at.is_some_and(|at| at.elapsed() > Duration::from_secs(15));
        if settled.is_some_and(|at| at.elapsed() > Duration::from_millis(800))
            || patience
            || stop.load(Ordering::Relaxed)
        {
            println!("\r{line} ");
            return counts;
        }
        if let Some(name) = pipeline.dead() {
            println!("\ndemo: {name} ended by itself");
            return counts;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn report(pipeline: &Pipeline, counts: &Counts, objects: &[Object]) -> String {
    let mut table = Table::new(&["", "", ""]);
    if counts.frames == 0 {
        return "nothing was read\n".to_owned();
    }
    let mut row = |what: &str, value: String, remark: &str| table.row(&[what.into(), value, remark.into()]);
    row("frames read", thousands(counts.frames), "");
    row("faces detected", thousands(counts.faces), "in single frames");
    row("published", thousands(counts.published), "best crop of each face");
    row("forwarded", thousands(counts.forwarded), "");
    row("stored", thousands(objects.len() as u64), "");
    let mut total: Vec<f64> = objects.iter().filter_map(|o| o.latency_ms).collect();
    let ms = |values: &mut Vec<f64>, p| format!("{:.0} ms", percentile(values, p));
    if !total.is_empty() {
        row("camera to object, p50", ms(&mut total, 50.0), "frame taken -> stored");
        row("camera to object, p95", ms(&mut total, 95.0), "");
    }
    let mut after: Vec<f64> = objects.iter().filter_map(|o| o.after_choice_ms).collect();
    if !after.is_empty() {
        row("  of it on the way, p50", ms(&mut after, 50.0), "published -> stored");
        row("  of it on the way, p95", ms(&mut after, 95.0), "");
    }
    for (name, usage, seconds) in pipeline.usage() {
        let cpu = usage.cpu_ms as f64 / 10.0 / seconds;
        let memory = format!("{:.1} MB", usage.rss_peak_kb as f64 / 1024.0);
        row(&name, memory, &format!("{cpu:.1} % of a core"));
    }
    // The head is empty: the rule above the first row is all that it gives.
    table.text().lines().skip(1).collect::<Vec<_>>().join("\n") + "\n"
}
