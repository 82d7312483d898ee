#!/bin/sh
# `cargo deny`: licences, duplicates and sources always; advisories where their database can be fetched.
set -eu
cd "$(dirname "$0")/.."
PATH="$HOME/.cargo/bin:${EDGE_TOOLS:-$PWD/target/tools}/bin:$PATH"
cargo deny --version >/dev/null 2>&1 || { echo "skipped: deny: cargo-deny is not installed (etc/tools.sh deny)"; exit 0; }
cargo deny check --hide-inclusion-graph licenses bans sources
said=$(cargo deny check --hide-inclusion-graph advisories 2>&1) && { echo "$said"; exit 0; }
case $said in
*"failed to fetch advisory database"*) echo "skipped: deny advisories: their database can't be fetched from here" ;;
*) echo "$said"; exit 1 ;;
esac
