//! Tests of the configuration.

use super::*;

fn load(text: &str) -> Result<Config, String> {
    let path =
        std::env::temp_dir().join(format!("sideloadd-config-{}-{}", std::process::id(), fastrand::u64(..)));
    std::fs::write(&path, text).unwrap();
    let result = Config::load(&path).map_err(|e| e.to_string());
    std::fs::remove_file(&path).unwrap();
    result
}

#[test]
fn production_needs_no_keys() {
    let config =
        load("enable-sideloading = false\nrun-app-immediately = true\nroot = \"/nonexistent/x\"\n").unwrap();
    assert!(config.secured.is_none() && config.raw.run_app_immediately);
    assert_eq!(config.warnings(), Vec::<String>::new());
}

#[test]
fn missing_keys_say_how_to_make_them() {
    let error = load("[tls]\ncert-file = \"/nonexistent/cert.pem\"\n").unwrap_err();
    assert!(error.contains("tls.cert-file") && error.contains("sideload keys"), "{error}");
}

#[test]
fn mistakes() {
    for (text, word) in [
        ("root = \"here\"", "absolute"),
        ("root = \"/\"", "absolute"),
        ("entrypoints = []", "at least one"),
        ("entrypoints = [\"../main.py\"]", "below root"),
        ("listen = \"8123\"", "address and a port"),
        ("[limits]\nwindow = \"1 KiB\"", "64 KiB"),
        ("[app]\nrestart = \"sometimes\"", "on-failure"),
        ("[app]\nbackoff-min-ms = 60000", "backoff-max-ms"),
        ("[app.env]\n\"A=B\" = \"x\"", "variable"),
        ("[app.interpreters]\npy = []", "list"),
        ("[tls]\nclient-pins = []", "at least one"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn certificates_are_announced_a_week_before_their_end() {
    let facts = |not_after| Facts { sha256_hex: "ab".repeat(32), not_before: 1000, not_after };
    let said = |now, end| expiring(&[facts(end)], &[facts(i64::MAX)], now).join("\n");
    let day = 86_400;
    assert_eq!(said(2000, 2000 + 7 * day), "");
    assert!(said(2000, 2000 + 7 * day - 1).contains("expires in 6 days 23 hours"));
    assert!(said(2000, 1999).contains("has expired"));
    assert!(said(999, 99_999_999).contains("not valid yet"));
}
