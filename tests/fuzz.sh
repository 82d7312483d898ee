#!/bin/sh
# Runs every fuzz target of tests/fuzz for FUZZ_S seconds each (default 20).
# Needs a nightly toolchain and cargo-fuzz; says so by name where they are missing.
set -eu
cd "$(dirname "$0")/fuzz"
SECONDS_EACH=${FUZZ_S:-20}
PATH="$HOME/.cargo/bin:$PATH"
for need in "cargo +nightly --version" "cargo fuzz --version"; do
    # shellcheck disable=SC2086  # a command and its arguments
    $need >/dev/null 2>&1 || { echo "skipped: fuzz: '$need' does not work here (rustup toolchain install nightly; cargo install cargo-fuzz)"; exit 0; }
done
for target in $(cargo +nightly fuzz list); do
    echo "fuzz: $target, $SECONDS_EACH s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=1024 -print_final_stats=0
done
