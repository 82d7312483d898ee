//! The peer of `sorterd` in measurements: a bare loop over the same detector and vectorizer with nothing around them.
//!
//! `detect ROUNDS SECONDS [MODEL BATCH] -- FILE.jpg ...` decodes and searches each file ROUNDS times, then makes vectors of
//! the items for SECONDS (with the ONNX model, if one is named), and prints one line of JSON.
#![forbid(unsafe_code)]

use std::error::Error;
use std::time::{Duration, Instant};

use edge::config;
use serde::{Deserialize, Serialize};
use sorterd::config::vision::{DetectorTable, VectorizerTable};
use sorterd::vision::{self, Detector, Picture, Vectorizer};

type Fallible<T> = Result<T, Box<dyn Error>>;

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Raw {
    detector: DetectorTable,
    vectorizer: VectorizerTable,
}

fn main() -> Fallible<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: detect ROUNDS SECONDS [MODEL BATCH] -- FILE.jpg ...";
    let mut parts = args.splitn(2, |a| a == "--");
    let (Some(numbers), Some(files)) = (parts.next(), parts.next()) else { return Err(usage.into()) };
    let (rounds, seconds, toml) = match numbers {
        [rounds, seconds] => (rounds, seconds, String::new()),
        [rounds, seconds, model, batch] => {
            (rounds, seconds, format!("[vectorizer]\nkind = \"onnx\"\nmodel = {model:?}\nbatch = {batch}\n"))
        }
        _ => return Err(usage.into()),
    };
    let loaded = config::parse::<Raw>("detect".as_ref(), toml)?;
    vision::threads(1);
    let mut detector = Detector::open(&loaded.raw.detector.check(&loaded)?)?;
    let mut vectorizer = Vectorizer::open(&loaded.raw.vectorizer.check(&loaded)?)?;
    let files = files.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    let before = cpu();
    let (mut decoding, mut took, mut items) = (Duration::ZERO, Vec::new(), Vec::new());
    for round in 0..rounds.parse::<usize>()? {
        for file in &files {
            let begun = Instant::now();
            let picture = Picture::decode(file, 1 << 26)?;
            decoding += begun.elapsed();
            let found = detector.detect(&picture)?;
            took.push(begun.elapsed());
            if round == 0 {
                for item in found.iter().filter(|f| f.is_item()) {
                    items.push(picture.crop(item)?);
                }
            }
        }
    }
    let cpu = cpu().saturating_sub(before);
    let (begun, length) = (Instant::now(), Duration::from_secs_f64(seconds.parse()?));
    let mut vectors = 0;
    while !items.is_empty() && begun.elapsed() < length {
        vectors += vectorizer.vectors(&items)?.len();
    }
    let vectors_per_s = vectors as f64 / begun.elapsed().as_secs_f64().max(1e-9);
    let count = took.len().max(1) as f64;
    let all: Duration = took.iter().sum();
    took.sort();
    let p95 = took.get(took.len() * 95 / 100).copied().unwrap_or_default();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!(
        "{{\"pictures\": {count}, \"items\": {}, \"cpu_ms\": {:.3}, \"decode_ms\": {:.2}, \"detect_ms\": {:.2}, \"p95_ms\": {:.2}, \
         \"pictures_per_s\": {:.1}, \"vectors_per_s\": {vectors_per_s:.1}}}",
        items.len(),
        ms(cpu) / count,
        ms(decoding) / count,
        ms(all - decoding) / count,
        ms(p95),
        count / all.as_secs_f64().max(1e-9),
    );
    Ok(())
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
