//! House style, checked over every file that git knows: headers, lengths, and what does not belong in
//! a committed file. What it finds it names with file and line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

/// Lines a file may have; between 500 and this only with a `//! Long because` line in its header.
const FILE_LINES_MAX: usize = 500;
/// Lines a function may have, its signature and closing brace included.
const FUNCTION_LINES_MAX: usize = 70;

fn tracked(suffixes: &[&str]) -> Vec<(String, String)> {
    let root = e2e::env::root();
    let listed = e2e::env::run(Command::new("git").arg("-C").arg(&root).args([
        "ls-files",
        "-co",
        "--exclude-standard",
    ]));
    let wanted = |name: &&str| suffixes.iter().any(|s| name.ends_with(s)) && root.join(name).exists();
    listed.lines().filter(wanted).map(|name| (name.to_owned(), read(&root.join(name)))).collect()
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{} places:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_rust_file_says_what_it_is() {
    let bad = tracked(&[".rs"]).into_iter().filter(|(_, text)| {
        !text.lines().find(|l| !l.starts_with("#![") && !l.is_empty()).is_some_and(|l| l.starts_with("//!"))
    });
    report(&bad.map(|(name, _)| format!("{name}:1: no //! header")).collect::<Vec<_>>());
}

#[test]
fn files_are_rooms_one_can_know() {
    let long = tracked(&[".rs", ".sh"]).into_iter().filter(|(_, text)| {
        text.lines().count() > FILE_LINES_MAX
            && !text.lines().take(30).any(|l| l.starts_with("//! Long because"))
    });
    report(&long.map(|(name, text)| format!("{name}: {} lines", text.lines().count())).collect::<Vec<_>>());
}

#[test]
fn functions_fit_a_screen() {
    let mut problems = Vec::new();
    for (name, text) in tracked(&[".rs"]) {
        let mut open: Option<(usize, String, usize)> = None;
        for (i, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match &open {
                // rustfmt puts the closing brace below the first letter of the signature.
                Some((start, what, depth)) if line.trim_end() == format!("{}}}", " ".repeat(*depth)) => {
                    let length = i - start + 1;
                    if length > FUNCTION_LINES_MAX {
                        problems.push(format!("{name}:{}: {what} has {length} lines", start + 1));
                    }
                    open = None;
                }
                Some(_) => {}
                None if is_function(line) => open = Some((i, line.trim().to_owned(), indent)),
                None => {}
            }
            // A signature without a body, or a body on one line.
            if open.as_ref().is_some_and(|(start, ..)| *start == i)
                && (line.ends_with(';') || line.ends_with('}'))
            {
                open = None;
            }
        }
    }
    report(&problems);
}

fn is_function(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|w| {
        w.starts_with("pub") || matches!(*w, "const" | "unsafe" | "async" | "extern" | "\"C\"")
    });
    words.next() == Some("fn")
}

#[test]
fn nothing_of_this_machine_or_of_history() {
    // Put together here, so that this file does not find itself.
    let paths = [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat(), ["/ho", "me/"].concat()];
    let mut problems = Vec::new();
    for (name, text) in
        tracked(&[".rs", ".sh", ".toml", ".md", ".service", ".conf", "Makefile", ".ci/run", ".c", ".py"])
    {
        for (i, line) in text.lines().enumerate() {
            let at = || format!("{name}:{}: {}", i + 1, line.trim());
            if paths.iter().any(|path| line.contains(path.as_str())) {
                problems.push(format!("{} (a path of somebody's machine)", at()));
            }
            let comment = line.find("//").or_else(|| line.find("# ")).map(|start| &line[start..]);
            if comment.is_some_and(names_an_issue) {
                problems.push(format!("{} (an issue number in a comment)", at()));
            }
            let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
            if comment.is_some_and(|c| marks.iter().any(|mark| c.contains(&format!(" {mark}")))) {
                problems.push(format!("{} (unfinished)", at()));
            }
        }
    }
    report(&problems);
}

fn names_an_issue(comment: &str) -> bool {
    let lower = comment.to_lowercase();
    ["issue #", "issue ", "fixes #", "closes #", "pr #"].iter().any(|mark| {
        lower
            .split(mark)
            .skip(1)
            .any(|rest| rest.trim_start_matches('#').starts_with(|c: char| c.is_ascii_digit()))
    })
}

#[test]
fn daemons_forbid_unsafe_code() {
    let bad = tracked(&["src/main.rs", "src/lib.rs"]).into_iter().filter(|(name, text)| {
        (name.starts_with("bins/") || name.starts_with("tests/src"))
            && !text.contains("#![forbid(unsafe_code)]")
    });
    report(&bad.map(|(name, _)| format!("{name}: no #![forbid(unsafe_code)]")).collect::<Vec<_>>());
    let outside = tracked(&[".rs"]).into_iter().filter(|(name, text)| {
        let code = text.lines().any(|l| l.trim_start().starts_with("unsafe ") || l.contains("= unsafe {"));
        name.starts_with("lib/") && name != "lib/src/sys.rs" && code
    });
    report(&outside.map(|(name, _)| format!("{name}: unsafe code outside sys.rs")).collect::<Vec<_>>());
}

#[test]
fn every_toml_key_has_a_comment_above_it() {
    let mut problems = Vec::new();
    for (name, text) in tracked(&[".toml"]).into_iter().filter(|(name, _)| name.starts_with("etc/")) {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            // A key in force, or one shown commented out as `#key = value`.
            let shown = line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line);
            let key = shown.split_once('=').map(|(key, _)| key.trim());
            let is_key = key.is_some_and(|k| {
                !k.is_empty() && k.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
            });
            // Several keys in a row may share the comment above the first.
            let above = lines[..i].iter().rev().take_while(|l| !l.is_empty()).any(|l| l.starts_with("# "));
            if is_key && !above {
                problems.push(format!("{name}:{}: {line}", i + 1));
            }
        }
    }
    report(&problems);
}
