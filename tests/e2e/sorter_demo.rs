//! `make demo-sorter` as a test: it ends by itself, all commands are right, and it tells where the page was.

use std::process::Command;

use e2e::env::{self, root};
use e2e::skip;
use e2e::sorter::have_arm;

#[test]
fn the_demo_sorts_and_says_so() {
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let bins = env::bin("sorterd").parent().unwrap().to_owned();
    let mut demo = Command::new(root().join("tests/demo-sorter.sh"));
    let output = demo.env("EDGE_BIN_DIR", bins).env("CI", "1").output().unwrap();
    let (said, trouble) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{trouble}");
    assert_eq!(said.matches("all of it right").count(), 2, "{said}");
    assert_eq!(said.matches("  -> ").count(), 8 + 2, "a line for each command: {said}");
    assert!(said.contains("/sessions") && !said.contains("NOT RIGHT"), "{said}");
}
