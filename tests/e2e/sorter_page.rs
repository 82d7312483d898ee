//! sorterd's page in a real browser: the list, a session with its boxes, what changes while one looks, light and dark.

use std::path::Path;
use std::time::Duration;

use e2e::env::wait_for;
use e2e::scratch::Scratch;
use e2e::sorter::{Sorter, draw, have_arm, headers};
use e2e::{need, skip};
use serde_json::{Value, json};

use crate::chromium::Browser;

const LONG: Duration = e2e::sorter::PANORAMA;

fn wait_value(browser: &mut Browser, what: &str, expression: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, LONG, || Some(browser.value(expression)).filter(&wanted))
}

fn text(browser: &mut Browser) -> String {
    browser.value("document.body ? document.body.innerText : ''").as_str().unwrap_or_default().to_owned()
}

fn open(browser: &mut Browser, sorter: &Sorter, path: &str) {
    browser.call("Page.navigate", json!({ "url": format!("http://{}{path}", sorter.host()) }));
    wait_value(browser, "the page", "document.getElementById('state')?.textContent", |state| state == "live");
}

/// EDGE_KEEP names a folder for screenshots.
fn keep(browser: &mut Browser, name: &str) {
    let shot = browser.screenshot();
    assert!(shot.starts_with(b"\x89PNG") && shot.len() > 10_000, "{name}: {} bytes", shot.len());
    if let Some(folder) = std::env::var_os("EDGE_KEEP") {
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), shot).unwrap();
    }
}

fn scheme(browser: &mut Browser, name: &str) -> Value {
    let features = json!([{ "name": "prefers-color-scheme", "value": name }]);
    browser.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    browser.value("getComputedStyle(document.body).backgroundColor")
}

/// What the page ran into: violations of its policy, errors, failed requests.
const TROUBLE: &str = "addEventListener('securitypolicyviolation', (e) => (window.trouble ??= []).push(e.blockedURI + ' ' \
                       + e.violatedDirective)); addEventListener('error', (e) => (window.trouble ??= []).push(String(\
                       e.message || e.target.src)), true)";

#[test]
fn a_session_in_a_browser() {
    need!("chromium", "mkfifo");
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sorpage");
    let sorter = Sorter::start(&scratch, "");
    let mut browser = Browser::open(scratch.path(), "about:blank");
    browser.call("Page.enable", json!({}));
    browser.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": TROUBLE }));
    open(&mut browser, &sorter, "/sessions");
    assert!(text(&mut browser).contains("No arm has sent a picture yet"), "{}", text(&mut browser));
    // What happens while one looks appears by itself.
    let report = sorter.play_well("sort", &["--session", "s12", "--after", "--stitch"]);
    wait_value(
        &mut browser,
        "the session in the list",
        "document.querySelectorAll('tbody tr').length",
        |n| *n == 1,
    );
    keep(&mut browser, "sorterd-list");
    open(&mut browser, &sorter, "/sessions/arm1/s12");
    let drawn = "[...document.querySelectorAll('.stage img')].filter((i) => i.complete && i.naturalWidth === 640).length";
    browser.value("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; })");
    wait_value(&mut browser, "six pictures and six afterwards", drawn, |n| *n == 12);
    let rows = browser.value("document.querySelectorAll('tbody tr').length");
    assert_eq!(rows, report["commands"].as_array().unwrap().len());
    check_boxes(&mut browser, &sorter);
    wait_value(&mut browser, "both panoramas", "document.querySelectorAll('.panorama img').length", |n| {
        *n == 2
    });
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        json!({ "width": 1200, "height": 1900, "deviceScaleFactor": 1, "mobile": false }),
    );
    let light = scheme(&mut browser, "light");
    keep(&mut browser, "sorterd-light");
    assert_ne!(light, scheme(&mut browser, "dark"), "dark is another colour");
    keep(&mut browser, "sorterd-dark");
    // A telephone: nothing sticks out at the side.
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        json!({ "width": 390, "height": 1400, "deviceScaleFactor": 1, "mobile": true }),
    );
    keep(&mut browser, "sorterd-narrow");
    let wide = browser.value("document.documentElement.scrollWidth");
    assert!(wide.as_u64().unwrap() <= 390, "{wide} pixels wide");
    assert_eq!(browser.value("window.trouble ?? []"), json!([]));
    sorter.daemon.check_log();
}

/// Each box of the daemon's is drawn where it is, in the colour of its group.
fn check_boxes(browser: &mut Browser, sorter: &Sorter) {
    let shown = browser.value(
        "[...document.querySelectorAll('.stage svg')].flatMap((svg) => [...svg.querySelectorAll('.box')].map((g) => { \
         const r = g.querySelector('.over'); return [...['x', 'y', 'width', 'height'].map((k) => Number(r.getAttribute(k))), \
         getComputedStyle(r).stroke]; }))",
    );
    let shown = shown.as_array().unwrap().clone();
    let session = sorter.session("arm1", "s12");
    let objects: Vec<Value> = session["images"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|i| {
            let mut objects = i["objects"].as_array().unwrap().clone();
            objects.sort_by_key(|object| object["class"] == 0);
            objects
        })
        .collect();
    assert!(
        objects.len() > 15 && objects.len() == shown.len(),
        "{} boxes, {} drawn",
        objects.len(),
        shown.len()
    );
    let mut colours = std::collections::BTreeMap::new();
    for (object, drawn) in objects.iter().zip(&shown) {
        let at = |n: usize| object["box"][n].as_f64().unwrap();
        let wanted = [at(0), at(1), at(2) - at(0), at(3) - at(1)];
        assert!((0..4).all(|n| drawn[n].as_f64() == Some(wanted[n])), "{object} is drawn at {drawn}");
        assert!(object["group"].is_u64(), "{object}");
        let colour = colours.entry(object["group"].to_string()).or_insert_with(|| drawn[4].clone());
        assert_eq!(*colour, drawn[4], "one group, one colour");
    }
    let different: std::collections::BTreeSet<String> = colours.values().map(ToString::to_string).collect();
    assert_eq!(different.len(), 3, "{colours:?}");
}

/// The daemon goes away while one looks, and comes back: the page says so, then shows what is new.
#[test]
fn the_page_lives_through_a_restart() {
    need!("chromium", "mkfifo");
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sorpager");
    let mut sorter = Sorter::start(&scratch, "");
    let drawn = draw(&scratch, "two");
    assert_eq!(sorter.send(&headers("s1", &drawn[0].0), &drawn[0].1), json!(true));
    let mut browser = Browser::open(scratch.path(), "about:blank");
    open(&mut browser, &sorter, "/sessions/arm1/s1");
    let pictures = "document.querySelectorAll('.stage').length";
    wait_value(&mut browser, "one picture", pictures, |n| *n == 1);
    assert!(text(&mut browser).contains("Nobody has asked for the commands yet"));
    assert!(sorter.daemon.term().success());
    let state = "document.getElementById('state').textContent";
    wait_value(&mut browser, "what is wrong", state, |s| {
        s.as_str().is_some_and(|s| s.contains("Not connected"))
    });
    sorter.daemon.start_ready();
    assert_eq!(sorter.send(&headers("s1", &drawn[1].0), &drawn[1].1), json!(true));
    wait_value(&mut browser, "two pictures", pictures, |n| *n == 2);
    // A session that is not there, and one whose name is markup.
    for path in ["/sessions/arm1/none", "/sessions/arm1/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E"] {
        browser.call("Page.navigate", json!({ "url": format!("http://{}{path}", sorter.host()) }));
        let said = "(document.body?.innerText ?? '')";
        wait_value(&mut browser, "a clear answer", said, |t| {
            let text = t.as_str().unwrap_or_default().to_lowercase();
            text.contains("no such session") || text.contains("not found") || text.contains("expected")
        });
        assert_eq!(browser.value("document.querySelectorAll('img').length"), 0);
    }
}
