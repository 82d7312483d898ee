//! `make demo-ota` as a test: the real `depotd` and `otad`, from publishing to running, a broken release rolled back by
//! itself and not tried again, the mended one taken.

use std::process::Command;

use e2e::env::{self, root};

#[test]
fn an_update_switches_a_broken_one_goes_back_and_the_mended_one_is_taken() {
    let bins = env::bin("otad").parent().unwrap().to_owned();
    let output = Command::new(root().join("tests/demo-ota.sh")).env("EDGE_BIN_DIR", bins).output().unwrap();
    let (said, trouble) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{trouble}");
    let rolled_back = "rolled back: hello.service is failed";
    for (text, times) in [(rolled_back, 1), ("hello from version 2.0", 2), ("hello from version 3.1", 1)] {
        assert_eq!(said.matches(text).count(), times, "{text}: {said}");
    }
    assert!(said.contains("Done: published, switched, rolled back, mended."), "{said}");
}
