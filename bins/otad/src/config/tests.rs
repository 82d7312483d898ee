//! Tests of the configuration.

use super::*;

fn load(text: &str) -> Result<Config, String> {
    let path = std::env::temp_dir().join(format!("otad-config-{}-{}", std::process::id(), fastrand::u64(..)));
    std::fs::write(&path, format!("device-file = \"/nonexistent\"\n{text}")).unwrap();
    let result = Config::load(&path).map_err(|e| e.to_string());
    std::fs::remove_file(&path).unwrap();
    result
}

const BASE: &str = "server = \"http://depot.example:8080/ota\"\nrequire-signature = false\n";

#[test]
fn the_least_that_is_needed() {
    let config = load(&format!("{BASE}[app.scoreboard]\nunit = \"scoreboard.service\"\n")).unwrap();
    assert_eq!(config.policy.interval, Duration::from_secs(3600));
    assert_eq!(config.app("ScoreBoard").unwrap().unit, "scoreboard.service");
    assert!(config.app("other").is_none());
    let warnings = config.warnings().join("\n");
    assert!(warnings.contains("require-signature") && warnings.contains("plain HTTP"), "{warnings}");
}

#[test]
fn mistakes_name_their_key() {
    let error = load("server = \"http://x\"\n").unwrap_err();
    assert!(error.contains("public-keys") && error.contains("depotd keygen"), "{error}");
    for (text, word) in [
        ("server = \"updates.example.com\"\nrequire-signature = false", ":2:10: server"),
        ("server = \"ftp://x\"\nrequire-signature = false", "server"),
        ("server = \"http://x\"\npublic-keys = [\"/nonexistent.pub\"]", "/nonexistent.pub"),
        ("server = \"http://x\"\nrequire-signature = false\nstate-dir = \"x\"", "state-dir"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(word), "{text}: {error}");
    }
    for (text, word) in [
        ("[poll]\ninterval-s = 0", "poll.interval-s"),
        ("[poll]\nretry-max-s = 1", "retry-max-s"),
        ("[app.a]\nmode = \"0777\"", "app.a.mode"),
        ("[app.a]\nkind = \"handler\"", "app.a.handler"),
        ("[app.a]\nhandler = [\"/bin/x\"]", "app.a.handler"),
        ("[app.a]\nunit = \"a b.service\"", "app.a.unit"),
        ("[app.a]\nunit = \"-H.service\"", "app.a.unit"),
        ("[app.a]\npre-install = [\"x\"]", "app.a.pre-install"),
        ("[app.a]\n[app.A]", "twice"),
        ("[app.\"a/b\"]", "name"),
        ("[app.a]\nkind = \"zip\"", "handler"),
        ("[[window]]\nfrom = \"25:00\"\nto = \"02:00\"", "window[0].from"),
        ("[[window]]\nfrom = \"01:00\"\nto = \"02:00\"\ndays = [\"x\"]", "window[0].days"),
        ("[limits]\nkeep-generations = 1", "keep-generations"),
        ("[health]\ncommand = [\"true\"]", "health.command"),
        ("nothing = 1", "nothing"),
    ] {
        let error = load(&format!("{BASE}{text}")).unwrap_err();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn the_example_holds_every_default() {
    let text = include_str!("../../../../etc/otad.toml");
    let path = Path::new("otad.toml");
    let raw = config::parse::<Raw>(path, text.to_owned()).unwrap().raw;
    let expected = Raw { server: raw.server.clone(), public_keys: raw.public_keys.clone(), ..Raw::default() };
    assert_eq!(raw, expected);
}
