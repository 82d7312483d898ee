//! The commands beside the daemon. They ask the daemon over its control socket; without one, `history` and `verify` look
//! at the folder, and `retry` works on it, as `recover` does.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use edge::cli::pico_args::Arguments;
use edge::cli::{EX_DATAERR, EX_IOERR, EX_PROTOCOL, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE, Failure};
use edge::text::bytes;
use serde_json::{Value, json};

use crate::config::Raw;
use crate::install::{self, GenId, Limits, Look, Recovered, Store};
use crate::ledger::Ledger;
use crate::retry;
use crate::status::{self, outcome_json, span};

/// It was rolled back.
const ROLLED_BACK: u8 = 1;
/// What is installed is damaged.
const DAMAGED: u8 = EX_DATAERR;
/// Not now.
const NOT_NOW: u8 = EX_TEMPFAIL;
/// What the server has is refused.
const REFUSED: u8 = EX_PROTOCOL;
/// Between two looks at the daemon.
const LOOK: Duration = Duration::from_millis(200);

/// Runs a command.
///
/// # Errors
/// With its exit code.
pub fn run(name: &str, mut args: Arguments, path: &Path) -> Result<ExitCode, Failure> {
    let json = args.contains("--json");
    let (wait, force) = match name {
        "check-now" => (args.contains("--wait"), args.contains("--force")),
        _ => (false, false),
    };
    // The unit of the recovery names the folder: it must not need a configuration that may be wrong.
    let folder = |word: &std::ffi::OsStr| Ok::<_, std::convert::Infallible>(PathBuf::from(word));
    let dir = args
        .opt_value_from_os_str("--dir", folder)
        .map_err(|_| Failure::new(EX_USAGE, "--dir needs a folder"))?;
    let mut rest: Vec<String> =
        args.finish().into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let to =
        if matches!(name, "rollback" | "retry") && !rest.is_empty() { Some(rest.remove(0)) } else { None };
    if let Some(extra) = rest.first() {
        return Err(Failure::new(EX_USAGE, format!("{name}: unexpected argument {extra:?}")));
    }
    let place = match (dir, name) {
        (Some(dir), "recover" | "history" | "verify" | "retry") => Place { ctl: None, dir },
        (Some(_), _) => return Err(Failure::new(EX_USAGE, format!("{name}: --dir is not for this command"))),
        (None, _) => Place::find(path, name)?,
    };
    let out = Output { json };
    match name {
        "status" => {
            let status = place.get("/status")?;
            out.say(&status, status_text)?;
            Ok(ExitCode::SUCCESS)
        }
        "why" => {
            let why = place.get("/why")?;
            out.say(&why, why_text)?;
            Ok(ExitCode::SUCCESS)
        }
        "check-now" => place.check_now(wait, force, &out),
        "rollback" => place.roll_back(to.as_deref(), &out),
        "retry" => place.retry(to.as_deref(), &out),
        "history" => {
            out.say(&place.history()?, history_text)?;
            Ok(ExitCode::SUCCESS)
        }
        "verify" => place.verify(&out),
        "recover" => place.recover(&out),
        _ => Err(Failure::new(EX_USAGE, format!("unknown command {name:?}"))),
    }
}

struct Output {
    json: bool,
}

impl Output {
    fn say(&self, value: &Value, text: fn(&Value) -> String) -> Result<(), Failure> {
        let shown = if self.json { format!("{value:#}\n") } else { text(value) };
        match edge::cli::output::print(&shown, 0) {
            0 => Ok(()),
            code => Err(Failure::new(code, "the answer could not be written to standard output")),
        }
    }
}

/// Where daemon and folder are.
struct Place {
    /// `None`: a folder was named, and no daemon is asked.
    ctl: Option<PathBuf>,
    dir: PathBuf,
}

impl Place {
    /// Reads no more of the configuration than that; `recover` goes on with the defaults if it can't be read.
    fn find(path: &Path, command: &str) -> Result<Place, Failure> {
        let raw = match edge::config::load::<Raw>(path) {
            Ok(loaded) => loaded.raw,
            Err(error) if command == "recover" => {
                log::warn!("{}; going on with the defaults", edge::log::chain(&error));
                Raw::default()
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Place { ctl: Some(raw.ctl_socket), dir: raw.state_dir })
    }

    fn get(&self, page: &str) -> Result<Value, Failure> {
        self.ask("GET", page)
    }

    fn ask(&self, method: &str, page: &str) -> Result<Value, Failure> {
        let Some(path) = &self.ctl else {
            return Err(Failure::new(EX_USAGE, "--dir is not for what a daemon is asked"));
        };
        self.ask_over(UnixStream::connect(path).map_err(|error| self.gone(&error))?, method, page)
    }

    fn gone(&self, error: &std::io::Error) -> Failure {
        let ctl = self.ctl.as_deref().unwrap_or(Path::new("")).display();
        let hint = "is otad running (systemctl status otad), and may you open its socket?";
        Failure::new(EX_UNAVAILABLE, format!("can't ask the daemon at {ctl}: {error}; {hint}"))
    }

    /// The one question of this connection.
    fn ask_over(&self, mut stream: UnixStream, method: &str, page: &str) -> Result<Value, Failure> {
        let request = format!("{method} {page} HTTP/1.1\r\nHost: otad\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        let asked = stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .and_then(|()| stream.write_all(request.as_bytes()))
            .and_then(|()| stream.read_to_end(&mut answer));
        asked.map_err(|error| self.gone(&error))?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let value: Value = serde_json::from_str(body).unwrap_or_default();
        match head.split_whitespace().nth(1) {
            Some("200") => Ok(value),
            status => {
                let why = value["message"].as_str().map_or_else(|| body.trim().to_owned(), str::to_owned);
                let code = if status == Some("409") { NOT_NOW } else { EX_UNAVAILABLE };
                Err(Failure::new(code, why))
            }
        }
    }

    /// The status when a round that began after `round` is over.
    fn wait(&self, round: u64) -> Result<Value, Failure> {
        loop {
            std::thread::sleep(LOOK);
            let status = self.get("/status")?;
            if status["idle"] == true && status["rounds"].as_u64().is_some_and(|now| now > round) {
                return Ok(status);
            }
        }
    }

    /// What the status has under this key, when it is that number's.
    fn wait_for(&self, key: &str, number: &Value) -> Result<Value, Failure> {
        loop {
            std::thread::sleep(LOOK);
            let value = self.get("/status")?[key].clone();
            if value["number"] == *number {
                return Ok(value);
            }
        }
    }

    fn check_now(&self, wait: bool, force: bool, out: &Output) -> Result<ExitCode, Failure> {
        let before = self.get("/status")?;
        let answer = self.ask("POST", if force { "/check-now?force=1" } else { "/check-now" })?;
        if !wait {
            out.say(&answer, |_| "asking the server; `otad status` shows how it goes\n".into())?;
            return Ok(ExitCode::SUCCESS);
        }
        let after = self.wait(answer["round"].as_u64().unwrap_or(0))?;
        let news = (after["last"]["seq"] != before["last"]["seq"]).then(|| after["last"].clone());
        let ending = news.as_ref().and_then(|last| last["ending"].as_str().map(str::to_owned));
        let (code, word) =
            match (ending.as_deref(), after["state"].as_str(), after["trouble"]["kind"].as_str()) {
                (Some("committed"), ..) => (0, "updated"),
                (Some(_), ..) => (ROLLED_BACK, "rolled-back"),
                (_, Some("waiting-for-window" | "waiting-for-budget"), _) => (NOT_NOW, "waiting"),
                (_, _, Some("refused" | "no-space")) => (REFUSED, "refused"),
                (_, _, Some(_)) => (NOT_NOW, "trouble"),
                _ => (0, "no-change"),
            };
        let why = self.get("/why")?;
        let text = match word {
            "rolled-back" => after["last"]["why"].as_str(),
            "refused" | "trouble" => after["trouble"]["text"].as_str(),
            "waiting" => why["text"].as_str(),
            _ => None,
        };
        let result =
            json!({ "result": word, "text": text, "current": after["current"], "apps": why["apps"] });
        out.say(&result, checked_text)?;
        Ok(ExitCode::from(code))
    }

    fn roll_back(&self, to: Option<&str>, out: &Output) -> Result<ExitCode, Failure> {
        if let Some(to) = to.filter(|to| to.parse::<GenId>().is_err()) {
            let why =
                format!("rollback: {to:?} is no generation, such as 3-0f1e2d3c; 'otad history' names them");
            return Err(Failure::new(EX_USAGE, why));
        }
        let page = to.map_or_else(|| "/rollback".to_owned(), |to| format!("/rollback?to={to}"));
        let answer = self.ask("POST", &page)?;
        let after = self.wait(answer["round"].as_u64().unwrap_or(0))?;
        if let Some(why) = after["trouble"]["text"].as_str() {
            return Err(Failure::new(REFUSED, why.to_owned()));
        }
        out.say(&json!({ "current": after["current"] }), |value| {
            format!("rolled back: {}\n", generation_text(&value["current"]))
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// A connection to the daemon, if there is one.
    fn daemon(&self) -> Option<UnixStream> {
        UnixStream::connect(self.ctl.as_ref()?).ok()
    }

    fn look(&self) -> Result<Look, Failure> {
        Look::at(&self.dir).map_err(Failure::io)
    }

    fn history(&self) -> Result<Value, Failure> {
        if let Some(daemon) = self.daemon() {
            return self.ask_over(daemon, "GET", "/history");
        }
        Ok(json!(self.look()?.history().iter().map(outcome_json).collect::<Vec<_>>()))
    }

    fn verify(&self, out: &Output) -> Result<ExitCode, Failure> {
        let result = if let Some(daemon) = self.daemon() {
            let number = self.ask_over(daemon, "POST", "/verify")?["number"].clone();
            self.wait_for("verify", &number)?
        } else {
            match self.look()?.verify().map_err(Failure::io)? {
                Some((id, damage)) => {
                    let damage: Vec<Value> =
                        damage.iter().map(|d| json!({ "app": d.app, "why": d.why })).collect();
                    json!({ "generation": id.to_string(), "damage": damage })
                }
                None => json!({ "generation": null, "damage": [] }),
            }
        };
        if let Some(error) = result["error"].as_str() {
            return Err(Failure::new(EX_IOERR, error.to_owned()));
        }
        out.say(&result, verify_text)?;
        let good = result["damage"].as_array().is_none_or(Vec::is_empty);
        Ok(ExitCode::from(if good { 0 } else { DAMAGED }))
    }

    fn retry(&self, of: Option<&str>, out: &Output) -> Result<ExitCode, Failure> {
        let which = of.and_then(retry::named);
        if let Some(of) = of.filter(|_| which.is_none()) {
            let why = format!("retry: {of:?} is no generation, such as 3-0f1e2d3c; 'otad status' names them");
            return Err(Failure::new(EX_USAGE, why));
        }
        let result = if let Some(daemon) = self.daemon() {
            let page = of.map_or_else(|| "/retry".to_owned(), |of| format!("/retry?of={of}"));
            let number = self.ask_over(daemon, "POST", &page)?["number"].clone();
            self.wait_for("retry", &number)?
        } else {
            if !self.dir.exists() {
                let why = format!("retry: there is no {}: nothing was installed yet", self.dir.display());
                return Err(Failure::new(REFUSED, why));
            }
            let (mut store, recovery) = Store::open(&self.dir, Limits::default()).map_err(Failure::io)?;
            recovery.notes.iter().for_each(|note| log::warn!("{note}"));
            let mut ledger = Ledger::open(&self.dir).map_err(Failure::io)?;
            match retry::retry(&mut store, &mut ledger, which) {
                Ok(of) => json!({ "of": of }),
                Err(error) => json!({ "error": error }),
            }
        };
        if let Some(error) = result["error"].as_str() {
            return Err(Failure::new(REFUSED, format!("retry: {error}")));
        }
        out.say(&result["of"], |of| {
            let name = status::generation_text(&of["generation"], &of["apps"]);
            format!("{name} may be installed again: the next poll does, or `otad check-now`\n")
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn recover(&self, out: &Output) -> Result<ExitCode, Failure> {
        if !self.dir.exists() {
            out.say(&json!({ "found": "nothing" }), |_| "nothing is installed\n".into())?;
            return Ok(ExitCode::SUCCESS);
        }
        let recovery = install::recover(&self.dir).map_err(Failure::io)?;
        recovery.notes.iter().for_each(|note| log::warn!("{note}"));
        let value = match recovery.trial {
            Recovered::Nothing => json!({ "found": "nothing" }),
            Recovered::Abandoned(id) => json!({ "found": "abandoned", "generation": id.to_string() }),
            Recovered::RolledBack(id) => json!({ "found": "rolled-back", "generation": id.to_string() }),
            Recovered::Trial { to, tries } => {
                json!({ "found": "trial", "generation": to.to_string(), "tries": tries })
            }
        };
        out.say(&value, |value| {
            let id = value["generation"].as_str().unwrap_or_default();
            match value["found"].as_str() {
                Some("abandoned") => format!("the update to {id} had not begun to run: it is abandoned\n"),
                Some("rolled-back") => format!("{id} did not get well: the generation before is back\n"),
                Some("trial") => format!("{id} is on trial, start {}\n", value["tries"]),
                _ => "nothing was interrupted\n".into(),
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn text<'a>(value: &'a Value, or: &'a str) -> &'a str {
    value.as_str().unwrap_or(or)
}

fn generation_text(generation: &Value) -> String {
    if generation["id"].is_null() {
        return "nothing installed".into();
    }
    status::generation_text(&generation["id"], &generation["apps"])
}

fn status_text(status: &Value) -> String {
    let mut lines = format!("{}: {}\n", text(&status["device"], "?"), text(&status["state"], "?"));
    lines += &format!("installed: {}\n", generation_text(&status["current"]));
    if status["trial"].is_object() {
        lines += &format!("on trial:  {}\n", generation_text(&status["trial"]));
        if let Some(why) = status["health"]["why"].as_str().filter(|why| !why.is_empty()) {
            lines += &format!("           {why}\n");
        }
    }
    if let Some(previous) = status["previous"].as_str() {
        lines += &format!("before:    {previous}\n");
    }
    for held in status["quarantine"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let name = status::generation_text(&held["generation"], &held["apps"]);
        lines += &format!("not again: {name}: {}\n", text(&held["why"], "?"));
    }
    let seconds = |value: &Value| value.as_u64().map(|s| span(Duration::from_secs(s)));
    lines += &format!("server:    {}", text(&status["server"], "?"));
    if let Some(ago) = seconds(&status["last_answer_s_ago"]) {
        lines += &format!(", answered {ago} ago");
    }
    if let Some(next) = seconds(&status["next_poll_in_s"]) {
        lines += &format!(", next poll in {next}");
    }
    lines.push('\n');
    if let Some(trouble) = status["trouble"]["text"].as_str() {
        lines += &format!("trouble:   {trouble}\n");
    }
    if let Some(opens) = seconds(&status["window_opens_in_s"]) {
        lines += &format!("window:    closed, opens in {opens}\n");
    }
    if let Some(budget) = status["budget"]["bytes_per_day"].as_u64().filter(|budget| *budget > 0) {
        let spent = status["budget"]["spent"].as_u64().unwrap_or(0);
        lines += &format!("budget:    {} of {} today\n", bytes(spent), bytes(budget));
    }
    lines
}

fn apps_text(apps: &Value) -> String {
    let mut lines = String::new();
    for app in apps.as_array().map(Vec::as_slice).unwrap_or_default() {
        let installed = text(&app["installed"]["version"], "nothing");
        let offered = app["offered"]["version"].as_str().filter(|offered| *offered != installed);
        let offered = offered.map(|offered| format!(", offered {offered}")).unwrap_or_default();
        let why = app["text"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
        lines += &format!("{}: {installed}{offered}{why}\n", text(&app["app"], "?"));
    }
    lines
}

fn why_text(why: &Value) -> String {
    let mut lines = why["text"].as_str().map(|text| format!("{text}\n")).unwrap_or_default();
    lines += &apps_text(&why["apps"]);
    if lines.is_empty() {
        lines = "the server has nothing for what this device says of itself\n".into();
    }
    lines
}

fn checked_text(result: &Value) -> String {
    let detail = result["text"].as_str().map(|text| format!(": {text}")).unwrap_or_default();
    let word = text(&result["result"], "?").replace('-', " ");
    let now = generation_text(&result["current"]);
    format!("{word}{detail}\ninstalled: {now}\n{}", apps_text(&result["apps"]))
}

fn history_text(history: &Value) -> String {
    let mut lines = String::new();
    for outcome in history.as_array().map(Vec::as_slice).unwrap_or_default() {
        let generation = json!({ "id": outcome["generation"], "apps": outcome["apps"] });
        let (at, ending) = (text(&outcome["at"], "?"), text(&outcome["ending"], "?"));
        lines += &format!("{at}  {ending:<11} {}", generation_text(&generation));
        if let Some(why) = outcome["why"].as_str().filter(|why| !why.is_empty()) {
            lines += &format!(": {why}");
        }
        lines.push('\n');
    }
    if lines.is_empty() { "nothing was installed yet\n".into() } else { lines }
}

fn verify_text(result: &Value) -> String {
    let Some(id) = result["generation"].as_str() else { return "nothing is installed\n".into() };
    let damage = result["damage"].as_array().map(Vec::as_slice).unwrap_or_default();
    if damage.is_empty() {
        return format!("{id} is as it was installed\n");
    }
    let lines = damage.iter().map(|d| format!("{}: {}\n", text(&d["app"], "?"), text(&d["why"], "?")));
    lines.collect::<String>()
        + "`otad check-now` does not mend it: the next update does, whichever app it is for; or roll back\n"
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
