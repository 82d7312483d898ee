//! `run-app`, `kill-app`, `restart`, `rollback`: what the device does with the application.

use std::time::Duration;

use serde_json::Value;

use super::{ask, connect, number, text};
use crate::client::Request;
use crate::config::Settings;
use crate::output::{Failure, Reply, count};

/// Stopping takes its time: TERM, some seconds, KILL; and old commits may have to be laid out again.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// `run-app`
pub fn run(settings: &Settings) -> Result<Reply, Failure> {
    let answer = ask(settings, "POST", "/application").map_err(with_hint)?;
    Ok(Reply::line(started(&answer), answer))
}

/// `kill-app`
pub fn kill(settings: &Settings) -> Result<Reply, Failure> {
    let request = Request::new("DELETE", "/application").silence_max(SILENCE_MAX);
    let answer = connect(settings)?.request(request)?.json().map_err(|e| with_hint(e.into()))?;
    let line = match text(&answer, "exit") {
        "" => "stopped".to_owned(),
        exit => format!("stopped ({exit})"),
    };
    Ok(Reply::line(line, answer))
}

/// `restart`
pub fn restart(settings: &Settings) -> Result<Reply, Failure> {
    let request = Request::new("POST", "/application?restart=1").silence_max(SILENCE_MAX);
    let answer = connect(settings)?.request(request)?.json().map_err(|e| with_hint(e.into()))?;
    Ok(Reply::line(format!("re{}", started(&answer)), answer))
}

/// `rollback`
pub fn rollback(settings: &Settings, to: Option<u64>, restart: bool) -> Result<Reply, Failure> {
    let mut query: Vec<String> = to.map(|to| format!("to={to}")).into_iter().collect();
    query.extend(restart.then(|| "restart=1".to_owned()));
    let mark = if query.is_empty() { "" } else { "?" };
    let path = format!("/rollback{mark}{}", query.join("&"));
    let request = Request::new("POST", &path).silence_max(SILENCE_MAX);
    let answer = connect(settings)?
        .request(request)?
        .json()
        .map_err(|error| Failure::from(error).or_fix("`sideload status` lists the commits that are kept"))?;
    let mut line = format!(
        "commit {}: the files of commit {} again, {} changed, {} deleted",
        number(&answer, "commit"),
        number(&answer, "restored"),
        count(number(&answer, "changed"), "file"),
        number(&answer, "deleted"),
    );
    if restart {
        line = format!("{line}\nre{}", started(app_of(&answer)));
    } else {
        line.push_str("\nthe application still runs the other files: `sideload restart`");
    }
    Ok(Reply::line(line, answer))
}

/// "started …" of an answer that describes the application.
pub fn started(app: &Value) -> String {
    let mut line = "started".to_owned();
    if let Some(entry) = app.get("entrypoint").and_then(Value::as_str) {
        line = format!("{line} {entry}");
    }
    if let Some(pid) = app.get("pid").and_then(Value::as_u64) {
        line = format!("{line} (pid {pid})");
    }
    line
}

/// The application in an answer about something else: under "app", or its fields beside the others.
pub fn app_of(answer: &Value) -> &Value {
    answer.get("app").unwrap_or(answer)
}

/// What to do when the application is not as the command expects it.
fn with_hint(failure: Failure) -> Failure {
    let cause = failure.cause.to_lowercase();
    if cause.contains("entry point") || cause.contains("entrypoint") {
        failure.or_fix("send one: `sideload sync` a folder with main.py or main.sh at its top")
    } else if cause.contains("already") || cause.contains("is running") {
        failure.or_fix("`sideload restart` stops it first")
    } else if cause.contains("not running") {
        failure.or_fix("`sideload run-app` starts it; `sideload logs` shows what it said last")
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_become_lines() {
        assert_eq!(started(&json!({})), "started");
        let app = json!({ "entrypoint": "/app/main.py", "pid": 7 });
        assert_eq!(started(&app), "started /app/main.py (pid 7)");
        assert_eq!(started(app_of(&json!({ "commit": 3, "app": app }))), "started /app/main.py (pid 7)");
    }

    #[test]
    fn refusals_get_a_fix() {
        let fix = |cause: &str| with_hint(Failure::new(1, cause)).fix.unwrap_or_default();
        assert!(fix("the application is already running (pid 4)").contains("sideload restart"));
        assert!(fix("the application is not running").contains("run-app"));
        assert!(fix("no entry point: looked for /a/main.sh, /a/main.py").contains("sideload sync"));
        assert_eq!(fix("the disk is full"), "");
    }
}
