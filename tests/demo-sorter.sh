#!/bin/sh
# `make demo-sorter`: an arm that sees drawn scenes, what sorterd tells it to do, and what would be right.
#
# Real sorterd on a free port of this machine's loopback, in a folder of its own that is removed at the end. Stays for the
# page until Ctrl-C; with CI=1, or after DEMO_S seconds, it ends by itself.
set -eu
cd "$(dirname "$0")/.."
BIN=$(cd "${EDGE_BIN_DIR:-target/release}" && pwd)
PYTHON=${EDGE_TOOLS:-$PWD/target/tools}/arm/bin/python
[ -x "$PYTHON" ] || { echo "demo-sorter: the arm's Python is not there: etc/tools.sh arm" >&2; exit 1; }
export PYTHONDONTWRITEBYTECODE=1
DIR=$(mktemp -d)
PID=

# shellcheck disable=SC2317  # called by the trap
clean() {
    trap - EXIT INT TERM
    [ -z "$PID" ] || kill "$PID" 2>/dev/null || :
    wait 2>/dev/null || :
    rm -rf "$DIR"
}
trap clean EXIT
trap 'exit 130' INT TERM

PORT=${PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
cat >"$DIR/sorterd.toml" <<TOML
listen = "127.0.0.1:$PORT"
ctl-socket = "$DIR/ctl.sock"
state-dir = "$DIR/state"
TOML
mkdir "$DIR/state"
# What is set for a real arm is not meant for this one.
env -u PG_CONN -u CONTROL_PANEL_HOST -u MODE "$BIN/sorterd" --config "$DIR/sorterd.toml" 2>"$DIR/log" &
PID=$!
n=0
until curl -fs -o "$DIR/health" "http://127.0.0.1:$PORT/"; do
    n=$((n + 1))
    if [ $n -ge 100 ] || ! kill -0 "$PID" 2>/dev/null; then cat "$DIR/log" >&2; exit 1; fi
    sleep 0.1
done

for scene in sort excess; do
    echo
    "$PYTHON" tests/sorter_arm.py play "127.0.0.1:$PORT" "$scene" --session "$scene" --seed "${SEED:-1}" --after --stitch --show ||
        { cat "$DIR/log" >&2; exit 1; }
done
echo
echo "page:    http://127.0.0.1:$PORT/sessions"
echo "status:  curl --unix-socket $DIR/ctl.sock http://x/status"
[ "${CI-}" != 1 ] || exit 0
echo "end:     Ctrl-C"
[ -z "${DEMO_S-}" ] || { sleep "$DEMO_S"; exit 0; }
wait "$PID"
