#!/bin/sh
# `make demo-spyglass`: an application with a moving test pattern, and where to watch it. Ends with Ctrl-C, or after
# SECONDS_MAX seconds.
set -eu
cd "$(dirname "$0")/.."
BIN=$(cd "${EDGE_BIN_DIR:-target/release}" && pwd)
DIR=$(mktemp -d)
PIDS=

# shellcheck disable=SC2317  # called by the trap
clean() {
    trap - EXIT INT TERM
    for pid in $PIDS; do kill "$pid" 2>/dev/null || :; done
    wait 2>/dev/null || :
    rm -rf "$DIR"
}
trap clean EXIT
# Ctrl-C is how it is meant to end.
trap 'exit 0' INT
trap 'exit 143' TERM

cat >"$DIR/spyglassd.toml" <<TOML
ctl-socket = "$DIR/ctl.sock"
cache-dir = "$DIR"
[frames]
socket = "$DIR/frames.sock"
[web]
listen = "127.0.0.1:${WEB_PORT:-8555}"
[rtsp]
listen = "127.0.0.1:${PORT:-8554}"
TOML
"$BIN/spyglassd" --config "$DIR/spyglassd.toml" 2>"$DIR/log" &
PIDS=$!
n=0
until [ -S "$DIR/frames.sock" ]; do
    n=$((n + 1))
    if [ $n -ge 100 ] || ! kill -0 "$PIDS" 2>/dev/null; then
        sed 's/^<[0-9]>//' "$DIR/log" >&2
        echo "If a port is taken: PORT=8654 WEB_PORT=8655 make demo-spyglass" >&2
        exit 1
    fi
    sleep 0.1
done
"$BIN/examples/produce" "$DIR/frames.sock" pattern "$((${SECONDS_MAX:-600} * 30))" &
PIDS="$PIDS $!"
echo "watch:   ffplay -fflags nobuffer rtsp://127.0.0.1:${PORT:-8554}/pattern"
echo "page:    http://127.0.0.1:${WEB_PORT:-8555}/"
echo "status:  curl --unix-socket $DIR/ctl.sock http://x/status"
echo "end:     Ctrl-C"
wait "${PIDS##* }"
