//! What a person reads when a file is wrong.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Raw {
    name: String,
    cloud: Cloud,
    route: Vec<Route>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Cloud {
    host: String,
    port: u16,
    max_bytes: Size,
}

impl Default for Cloud {
    fn default() -> Self {
        Cloud { host: "localhost".into(), port: 1883, max_bytes: Size::mib(1) }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Route {
    from: String,
}

fn problem(text: &str) -> String {
    parse::<Raw>(Path::new("x.toml"), text.to_owned()).unwrap_err().to_string()
}

#[test]
fn every_error_names_line_column_key_and_expectation() {
    for (text, expected) in [
        (
            "[cloud]\nprot = 1\n",
            "x.toml:2:1: cloud.prot: unknown field `prot`, expected one of `host`, `port`, `max-bytes`; did you mean `port`?",
        ),
        (
            "[cloud]\nport = \"a\"\n",
            "x.toml:2:8: cloud.port: invalid type: string \"a\", expected an integer from 0 to 65535",
        ),
        (
            "[cloud]\nport = 70000\n",
            "x.toml:2:8: cloud.port: invalid value: integer `70000`, expected an integer from 0 to 65535",
        ),
        (
            "[cloud]\nmax-bytes = \"8 Mib\"\n",
            "x.toml:2:13: cloud.max-bytes: invalid value: string \"8 Mib\", expected a size such as",
        ),
        (
            "[cloud]\nmax-bytes = -1\n",
            "x.toml:2:13: cloud.max-bytes: invalid value: integer `-1`, expected a size",
        ),
        (
            "[[route]]\nfrom = \"a\"\n[[route]]\nfrom = 2\n",
            "x.toml:4:8: route[1].from: invalid type: integer `2`, expected a string",
        ),
        ("[[route]]\n", "x.toml:1:1: route[0]: missing field `from`"),
        ("name = \n", "x.toml:1:8: "),
        ("name = \"a\"\nname = \"b\"\n", "x.toml:2:1: name: duplicate key"),
        ("= 1", "x.toml:1:1: "),
    ] {
        let found = problem(text);
        assert!(found.starts_with(expected), "{text:?}\n  found    {found}\n  expected {expected}");
    }
}

#[test]
fn a_finding_of_validation_is_located_too() {
    let text =
        "name = \"x\"\n[cloud]\n  host = \"\"\n[[route]]\nfrom = \"a\"\n[[route]]\nfrom = \"b\" # second\n";
    let loaded = parse::<Raw>(Path::new("/etc/edge/x.toml"), text.into()).unwrap();
    let error = loaded.problem("cloud.host", "expected a host name, found \"\"");
    assert_eq!(error.to_string(), "/etc/edge/x.toml:3:10: cloud.host: expected a host name, found \"\"");
    assert_eq!(error.excerpt().unwrap(), "   |\n 3 |   host = \"\"\n   |          ^^\n");
    assert!(
        loaded.problem("route[1].from", "no").to_string().starts_with("/etc/edge/x.toml:7:8: route[1].from")
    );
    // A key that only has a default is located at the table around it.
    assert!(loaded.problem("cloud.port", "no").to_string().starts_with("/etc/edge/x.toml:2:2: cloud.port"));
    assert_eq!(loaded.problem("nothing", "no").to_string(), "/etc/edge/x.toml: nothing: no");
}

#[test]
fn sizes_read_and_print() {
    for (text, bytes, shown) in [
        ("4096", 4096, "4 KiB"),
        ("\"8MiB\"", 8 << 20, "8 MiB"),
        ("\"1_500 kB\"", 1_500_000, "1500000 B"),
        ("0", 0, "0 B"),
    ] {
        let loaded = parse::<Raw>(Path::new("x"), format!("[cloud]\nmax-bytes = {text}\n")).unwrap();
        assert_eq!(loaded.raw.cloud.max_bytes, Size(bytes), "{text}");
        assert_eq!(Size(bytes).to_string(), shown);
    }
}

#[test]
fn what_is_printed_reads_back() {
    let loaded = parse::<Raw>(Path::new("x"), "[cloud]\nport = 8883\n".into()).unwrap();
    let printed = to_toml(&loaded.raw);
    let again = parse::<Raw>(Path::new("x"), printed.clone()).unwrap();
    assert_eq!(again.raw.cloud.port, 8883, "{printed}");
}

#[test]
fn odd_texts_are_errors_not_panics() {
    for text in
        ["\u{0}", "a = '''", "[[[[", "a.b.c = {", "\u{feff}x", "x = 1\r", "名 = 1", "a = [[[[[[[[[[[[[[["]
    {
        let found = problem(text);
        assert!(found.starts_with("x.toml"), "{found}");
    }
}

#[test]
fn an_excerpt_shows_no_password_of_an_address() {
    for (line, shown) in [
        (r#"source = "rtsp://me:secret@cam/s""#, r#"source = "rtsp://*********@cam/s""#),
        (r#"s = ["http://a:s/e@c@h", "x://y@z"] # @"#, r#"s = ["http://*******@h", "x://*@z"] # @"#),
        ("server = 'https://depot.example/a'", "server = 'https://depot.example/a'"),
        ("mail = \"me@home\"", "mail = \"me@home\""),
    ] {
        assert_eq!(super::without_login(line), shown);
    }
}

#[test]
fn a_secret_is_one_line_and_never_shown() {
    let path = std::env::temp_dir().join(format!("edge-secret-{}", std::process::id()));
    std::fs::write(&path, "hunter2\n").unwrap();
    let secret = read_secret(&path).unwrap();
    assert_eq!(secret.expose(), "hunter2");
    assert_eq!(format!("{secret:?}"), "***");
    for bad in [&b""[..], b"\n", b"two\nlines\n", b"\xff\xfe"] {
        std::fs::write(&path, bad).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.contains("holds no secret"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(read_secret(&path).unwrap_err().to_string().starts_with("cannot read the secret in "));
}
