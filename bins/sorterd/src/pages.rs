//! What people see: the pages of a browser and the JSON behind them. No I/O.

use std::time::Duration;

use edge::http::Response;
use edge::http::uri::percent_decode;
use serde_json::{Value, json};

use crate::db::SessionRow;
use crate::message::{ImageName, Session};
use crate::plan::Shot;
use crate::workers::Look;

/// Sessions on the page.
pub const SESSIONS_MAX: u32 = 200;

const PAGE: &str = include_str!("web/page.html");
const STYLE: &str = include_str!("web/page.css");
const SCRIPT: &str = include_str!("web/page.js");

/// What is under a path.
#[derive(Debug)]
pub enum Page {
    /// How the daemon is.
    Health,
    /// Something that is always the same.
    Fixed(Response),
    /// Something to look up.
    Look(Look),
    Nothing,
}

/// The page under `path`.
#[must_use]
pub fn find(path: &str) -> Page {
    let fixed = |content_type: &str, body: &str| Page::Fixed(safe(Response::new(200, content_type, body)));
    let parts: Option<Vec<String>> = path
        .strip_prefix('/')
        .unwrap_or(path)
        .split('/')
        .map(|part| percent_decode(part).and_then(|bytes| String::from_utf8(bytes).ok()))
        .collect();
    let parts = parts.unwrap_or_default();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts[..] {
        [""] => Page::Health,
        ["page.css"] => fixed("text/css; charset=utf-8", STYLE),
        ["page.js"] => fixed("text/javascript; charset=utf-8", SCRIPT),
        ["sessions"] => fixed("text/html; charset=utf-8", PAGE),
        ["api", "sessions"] => Page::Look(Look::Sessions),
        ["sessions", arm, session] if Session::new(arm, session).is_ok() => {
            fixed("text/html; charset=utf-8", PAGE)
        }
        ["api", "sessions", arm, session] => {
            Session::new(arm, session).map_or(Page::Nothing, |s| Page::Look(Look::Session(s)))
        }
        ["pictures", arm, session, name] => Session::new(arm, session)
            .map_or(Page::Nothing, |s| Page::Look(Look::Picture(s, name.to_owned()))),
        _ => Page::Nothing,
    }
}

/// Nothing is fetched from elsewhere, nothing is run that came with data, nobody else's page frames or shows it.
#[must_use]
pub fn safe(response: Response) -> Response {
    response
        .with(
            "Content-Security-Policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        .with("X-Content-Type-Options", "nosniff")
        .with("Referrer-Policy", "no-referrer")
        .with("Cross-Origin-Resource-Policy", "same-origin")
        .with("Cache-Control", "no-cache")
}

/// `GET /`: whether the database answers, since when it runs, how many messages are worked on or wait.
#[must_use]
pub fn health(well: bool, uptime: Duration, queue: usize) -> Response {
    let value = json!({
        "status": if well { "ok" } else { "failing" },
        "why": (!well).then_some("the database does not answer; see the log"),
        "name": "sorterd",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": uptime.as_secs(),
        "queue": queue,
        "page": "/sessions",
    });
    safe(Response::json(if well { 200 } else { 503 }, &value))
}

/// `GET /api/sessions`
#[must_use]
pub fn sessions(rows: &[SessionRow]) -> Value {
    let one = |row: &SessionRow| {
        json!({
            "arm": row.arm, "session": row.session, "images": row.images, "objects": row.objects,
            "updated_ms": row.updated_ms,
        })
    };
    json!({ "sessions": rows.iter().map(one).collect::<Vec<_>>() })
}

/// `GET /api/sessions/<arm>/<session>`
#[must_use]
pub fn session(
    session: &Session,
    shots: &[Shot],
    answer: Option<&str>,
    after: &[ImageName],
    panoramas: &[&str],
) -> Value {
    let answer: Value = answer.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
    let image = |shot: &Shot| {
        let objects: Vec<Value> = shot
            .objects
            .iter()
            .map(|(id, found)| {
                let known = &answer["objects"][id.to_string()];
                json!({
                    "id": id, "class": found.class, "score": found.score,
                    "box": [found.x1, found.y1, found.x2, found.y2],
                    "group": known["group"], "servo": known["servo"],
                })
            })
            .collect();
        let (width, height) = shot.size;
        json!({ "image": shot.name.file(), "width": width, "height": height, "after": false, "objects": objects })
    };
    let afterwards = |name: &ImageName| json!({ "image": name.after_file(), "width": null, "height": null, "after": true, "objects": [] });
    let images: Vec<Value> = shots.iter().map(image).chain(after.iter().map(afterwards)).collect();
    let containers = if answer["containers"].is_array() { answer["containers"].clone() } else { json!([]) };
    json!({
        "arm": session.arm, "session": session.session, "images": images, "containers": containers,
        "commands": answer["commands"], "panoramas": panoramas,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::found::Found;

    #[test]
    fn paths_lead_where_names_are_safe() {
        assert!(matches!(find("/"), Page::Health));
        assert!(matches!(find("/sessions/arm/s1"), Page::Fixed(_)));
        assert!(matches!(find("/api/sessions/arm/s%31"), Page::Look(Look::Session(s)) if s.session == "s1"));
        assert!(
            matches!(find("/pictures/arm/s1/1500.jpg"), Page::Look(Look::Picture(_, n)) if n == "1500.jpg")
        );
        for bad in [
            "/x",
            "/sessions/../s1",
            "/sessions/arm",
            "/api/sessions/a%2Fb/s1",
            "/pictures/..%2f..%2fetc/s1/x",
            "/%ff",
            "//",
        ] {
            assert!(matches!(find(bad), Page::Nothing), "{bad}");
        }
    }

    #[test]
    fn a_session_with_and_without_an_answer() {
        let session_name = Session::new("arm", "s1").unwrap();
        let found = Found { class: 0, score: 0.5, x1: 1, y1: 2, x2: 3, y2: 4 };
        let shots = [Shot { name: ImageName(1500), size: (40, 30), sha256: None, objects: vec![(7, found)] }];
        let bare = session(&session_name, &shots, None, &[], &[]);
        assert_eq!(bare["commands"], Value::Null);
        assert_eq!(bare["images"][0]["objects"][0]["group"], Value::Null);
        let answer = r#"{"commands":[[[1.0,2.0],[3.0,4.0]]],"containers":[{"servo":[3.0,4.0],"group":0}],
                         "objects":{"7":{"group":0,"servo":[1.0,2.0]}}}"#;
        let full = session(&session_name, &shots, Some(answer), &[ImageName(9)], &["original_stitch.jpg"]);
        assert_eq!(full["images"][0]["objects"][0]["servo"], json!([1.0, 2.0]));
        assert_eq!(full["images"][1]["image"], "after_9.jpg");
        assert_eq!(full["containers"][0]["group"], 0);
    }
}
