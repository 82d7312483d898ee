//! demo/out/index.html: the stored faces with what is known of each. One file, no script, no network.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::objects::Object;
use crate::pipeline::{Counts, Pipeline};

const STYLE: &str = "
:root { color-scheme: light dark; --bg: #f6f5f2; --card: #fff; --ink: #1d1d1b; --soft: #6b6a65; --line: #e2e0da; --mark: #0b6e4f }
@media (prefers-color-scheme: dark) { :root { --bg: #161615; --card: #20201e; --ink: #ecebe6; --soft: #a09e97; --line: #34332f; --mark: #57c79d } }
* { box-sizing: border-box }
body { margin: 0; padding: 2.5rem clamp(1rem, 4vw, 4rem); background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; font-weight: 650; margin: 0 0 .3rem }
p { color: var(--soft); margin: 0 0 1.6rem; max-width: 70ch }
.flow { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: 1.8rem }
.flow div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 1.1rem; min-width: 8.5rem }
.flow b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; color: var(--mark) }
.flow span { color: var(--soft); font-size: .85rem }
.faces { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden }
figure img { display: block; width: 100%; height: 250px; object-fit: contain; background: #000 }
figcaption { padding: .8rem 1rem 1rem }
figcaption strong { margin-right: .6rem } time { color: var(--soft); font-size: .8rem; font-variant-numeric: tabular-nums }
dl { margin-top: .5rem !important } summary { cursor: pointer; color: var(--soft); font-size: .83rem; margin-top: .5rem }
dl { display: grid; grid-template-columns: auto 1fr; gap: .05rem .8rem; margin: 0; font-size: .83rem }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem; overflow-x: auto; font-size: .82rem; margin-top: 2rem }
";

/// What is shown at once, in this order, where it is known; everything else is folded away.
const FIRST: [&str; 7] = ["score", "score-raw", "detector", "bbox", "frame", "track-frames", "location"];

pub fn html(pipeline: &Pipeline, counts: &Counts, objects: &[Object], table: &str) -> String {
    let mut faces: Vec<&Object> = objects.iter().collect();
    // The walk first: it has the more interesting faces.
    faces.sort_by_key(|o| (std::cmp::Reverse(value(o, "camera")), value(o, "time")));
    let cards: String = faces.iter().map(|o| card(o)).collect();
    let steps = [
        (counts.frames, "frames read"),
        (counts.faces, "faces detected"),
        (counts.published, "published by faced"),
        (counts.forwarded, "forwarded by mqfwd"),
        (objects.len() as u64, "stored by s3put"),
    ];
    let steps: String =
        steps.iter().map(|(n, what)| format!("<div><b>{n}</b><span>{what}</span></div>")).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Faces</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>{STYLE}</style></head>\n\
         <body><h1>{} faces</h1>\n<p>Found by faced, carried by mqfwd, stored by s3put ({}). Each picture is one stored object; what is written beside it travelled with it.</p>\n\
         <section class=\"flow\">{steps}</section>\n<section class=\"faces\">{cards}</section>\n<pre>{}</pre></body></html>\n",
        objects.len(),
        escape(&pipeline.description()),
        escape(table)
    )
}

fn value(object: &Object, name: &str) -> String {
    object.meta.get(name).cloned().unwrap_or_default()
}

fn card(object: &Object) -> String {
    let source = format!("data:{};base64,{}", object.content_type, STANDARD.encode(&object.bytes));
    let row = |name: &str, value: &str| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    let mut rows = String::new();
    for name in FIRST {
        if let Some(value) = object.meta.get(name) {
            rows += &row(name, value);
        }
    }
    if let Some(ms) = object.latency_ms {
        rows += &row("to object", &format!("{ms:.0} ms"));
    }
    let all: String = object.meta.iter().map(|(name, value)| row(name, value)).collect();
    let (camera, time) = (escape(&value(object, "camera")), escape(&value(object, "time")));
    format!(
        "<figure><img alt=\"face from {camera}\" src=\"{source}\"><figcaption><strong>{camera}</strong><time>{time}</time>\
         <dl>{rows}</dl><details><summary>{} bytes, all metadata</summary><dl>{all}</dl></details></figcaption></figure>\n",
        object.bytes.len()
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
