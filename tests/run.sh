#!/bin/sh
# Builds the daemons, runs every test of the workspace and adds up what came out.
#
#   tests/run.sh [arguments for cargo test, e.g. -p e2e relay::]
#
# Without arguments: all tests, then each fuzz target for FUZZ_S (5) seconds, which counts as a test, too.
# The full output is kept in target/test.log; here come test names, failures and skips. A test that
# can't run on this machine prints "skipped: name: why" and is counted as skipped, not as passed.
# The last line is "N passed, F failed, M skipped".
set -eu
cd "$(dirname "$0")/.."
LOG=${CARGO_TARGET_DIR:-target}/test.log
export EDGE_BIN_DIR="${EDGE_BIN_DIR:-$PWD/${CARGO_TARGET_DIR:-target}/debug}"
export EDGE_TOOLS="${EDGE_TOOLS:-$PWD/target/tools}"
# Models and clips that are not part of the project; tests that want them are skipped without.
[ ! -d ../shared/data ] || export EDGE_TEST_DATA="${EDGE_TEST_DATA:-$PWD/../shared/data}" EDGE_DATA="${EDGE_DATA:-$PWD/../shared/data}"
CARGO=${CARGO:-cargo}
PATH="$HOME/.cargo/bin:$PATH"
mkdir -p "$(dirname "$LOG")"

"$CARGO" build --workspace --bins
FUZZ=no
if [ $# -eq 0 ]; then
    set -- --workspace
    [ ! -f tests/fuzz/Cargo.toml ] || FUZZ=yes
fi
# What only a build with OpenCV has is tested after everything else: its spyglassd takes the place of the usual one.
# sorterd is named for the features of the opencv crate alone: those of the whole workspace, or it is built anew.
privacy() {
    "$CARGO" test --no-fail-fast -p spyglassd -p sorterd --features spyglassd/privacy "$@"
}
tests() {
    rc=0
    "$CARGO" test --no-fail-fast "$@" -- --show-output || rc=$?
    if [ "$*" = --workspace ]; then
        privacy --lib -- --show-output privacy:: || rc=$?
        privacy --test privacy -- --show-output || rc=$?
    fi
    return $rc
}
{ rc=0; tests "$@" 2>&1 || rc=$?; echo "exit status $rc"; } | tee "$LOG" | awk '
    # Output of passed tests is in the log; of failed ones it is wanted here.
    /^successes:$/ { quiet = 1 }
    /^failures:$/ { quiet = 0 }
    /^test result:/ { quiet = 0 }
    /^skipped: / { print; next }
    /^     Running |^   Doc-tests |^exit status/ { next }
    /^test .* \.\.\. ok$/ { sub(/^test /, "ok   "); sub(/ \.\.\. ok$/, ""); print; next }
    !quiet && !/^$/ && !/^running [0-9]+ test/ && !/^test result: ok/ { print }'

if [ $FUZZ = yes ]; then
    { rc=0; FUZZ_S=${FUZZ_S:-5} tests/fuzz.sh 2>&1 || rc=$?; echo "fuzz status $rc"; } | tee -a "$LOG" | grep -v '^fuzz status' || :
fi

# A binary that never reached its "test result" line (it crashed, or did not compile) is a failure too.
exec awk '
    /^test result:/ {
        for (i = 1; i < NF; i++) {
            if ($(i + 1) == "passed;") passed += $i
            if ($(i + 1) == "failed;") failed += $i
            if ($(i + 1) == "ignored;") ignored += $i
        }
    }
    /^skipped: / && !seen[$0]++ { skipped++ }
    /^ok   fuzz::/ { passed++ }
    /^FAILED fuzz::/ { failed++; fuzz_failed = 1 }
    /^exit status / { status = $3 }
    /^fuzz status / { fuzz = $3 }
    END {
        if (fuzz != 0 && !fuzz_failed) { print "tests/fuzz.sh ended with status " fuzz " (see above)"; failed++ }
        if (status != 0 && failed == 0) { print "cargo test ended with status " status " (see above)"; failed = 1 }
        printf "%d passed, %d failed, %d skipped\n", passed - skipped, failed, skipped + ignored
        exit failed > 0
    }' "$LOG"
