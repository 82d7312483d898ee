#!/bin/sh
# Builds and runs every fuzz target of tests/fuzz (libFuzzer) for FUZZ_S seconds each (default 20).
#
#   tests/fuzz.sh [target ...]
#
# Needs neither nightly nor cargo-fuzz: coverage is a code generation option of every rustc, and safe Rust
# has little use for the address sanitizer. A crash leaves its input in tests/fuzz/artifacts; give it to
# the same binary to see it again. Ends with one line a target: "ok fuzz::NAME" or "FAILED fuzz::NAME".
set -eu
cd "$(dirname "$0")/fuzz"
SECONDS_EACH=${FUZZ_S:-20}
PATH="$HOME/.cargo/bin:$PATH"
TARGET_DIR=${FUZZ_TARGET_DIR:-$PWD/target}
HOST=$(rustc -vV | sed -n 's/^host: //p')
# shellcheck disable=SC2046  # names without blanks
[ $# -gt 0 ] || set -- $(sed -n '/^\[\[bin\]\]/,/^$/s/^name *= *"\(.*\)"/\1/p' Cargo.toml)
[ $# -gt 0 ] || { echo "fuzz: no targets in tests/fuzz/Cargo.toml" >&2; exit 1; }

# With --target these flags are for the fuzzed code only, not for build scripts.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
RUSTFLAGS="$RUSTFLAGS -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
RUSTFLAGS="$RUSTFLAGS -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
export RUSTFLAGS CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
cargo build -q --locked --release --target "$HOST" --target-dir "$TARGET_DIR"

status=0
for name in "$@"; do
    # What it learns goes below target/; corpus/ holds the seeds that are committed.
    mkdir -p "$TARGET_DIR/corpus/$name" "corpus/$name" "artifacts/$name"
    if "$TARGET_DIR/$HOST/release/$name" "$TARGET_DIR/corpus/$name" "corpus/$name" -artifact_prefix="artifacts/$name/" \
        -max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=2048 -verbosity=0 >"artifacts/$name.log" 2>&1; then
        echo "ok   fuzz::$name"
    else
        tail -n 30 "artifacts/$name.log"
        echo "FAILED fuzz::$name (input in tests/fuzz/artifacts/$name)"
        status=1
    fi
done
exit $status
