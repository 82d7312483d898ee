#!/bin/sh
# `make demo-ota`: an update from publishing to running, then a broken one that is rolled back by itself.
#
# Real depotd, real otad, on this machine's loopback, in a folder of its own that is removed at the end (KEEP=1 keeps it).
# The app is a shell script that writes a line a second. Instead of systemd, which a demo should not touch, a few lines
# of shell stand for systemctl: restart starts the app anew, show says whether it lives.
set -eu
cd "$(dirname "$0")/.."
BIN=$(cd "${EDGE_BIN_DIR:-target/release}" && pwd)
DIR=$(mktemp -d)
PIDS=

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '  $ %s\n' "$(echo "$*" | sed "s|$BIN/||; s|$DIR/||g")"; "$@" 2>&1 | sed "s|$DIR/||g; s/^/    /"; }
die() { printf 'demo-ota: %s\n' "$*" >&2; tail -n 20 "$DIR"/*.log >&2; exit 1; }
# shellcheck disable=SC2317  # called by the trap
clean() {
    trap - EXIT INT TERM
    for pid in $PIDS $(cat "$DIR/run/hello.pid" 2>/dev/null || :); do kill "$pid" 2>/dev/null || :; done
    wait 2>/dev/null || :
    if [ "${KEEP-}" = 1 ]; then echo "kept: $DIR"; else rm -rf "$DIR"; fi
}
trap clean EXIT
trap 'exit 130' INT TERM

mkdir -p "$DIR/depot" "$DIR/state" "$DIR/run"
PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

cat >"$DIR/depotd.toml" <<EOF
listen = "127.0.0.1:$PORT"
ctl-socket = "$DIR/run/depotd.sock"
public-keys = ["$DIR/release.pub"]
[catalog]
at = "sqlite:$DIR/depot/catalog.db"
[store]
at = "dir:$DIR/depot"
[bundle]
dir = "$DIR/depot/cache"
EOF
cat >"$DIR/device.toml" <<EOF
id = "demo-cam"
[attributes]
"apps.hello" = "prod"
EOF
cat >"$DIR/otad.toml" <<EOF
server = "http://127.0.0.1:$PORT"
public-keys = ["$DIR/release.pub"]
state-dir = "$DIR/state"
ctl-socket = "$DIR/run/otad.sock"
device-file = "$DIR/device.toml"
systemctl = "$DIR/systemctl"
[health]
active-within-s = 5
stable-s = 2
[app.hello]
kind = "file"
unit = "hello.service"
EOF
cat >"$DIR/systemctl" <<EOF
#!/bin/sh
# Stands for systemctl: one service.
case \$1 in
restart)
    [ ! -f "$DIR/run/hello.pid" ] || kill "\$(cat "$DIR/run/hello.pid")" 2>/dev/null
    setsid "$DIR/state/current/hello/hello" >>"$DIR/run/hello.out" 2>&1 </dev/null &
    echo \$! >"$DIR/run/hello.pid"
    # otad ends what its programs leave in their process group: the app has to be out of it by then.
    sleep 0.3 ;;
show)
    if kill -0 "\$(cat "$DIR/run/hello.pid" 2>/dev/null || echo 0)" 2>/dev/null; then
        printf 'Type=simple\nActiveState=active\nSubState=running\nResult=success\nNRestarts=0\nInvocationID=%s\n' \\
            "\$(cat "$DIR/run/hello.pid")"
    else
        printf 'Type=simple\nActiveState=failed\nSubState=failed\nResult=exit-code\nNRestarts=0\nInvocationID=\n'
    fi ;;
esac
EOF
chmod +x "$DIR/systemctl"

# app VERSION [broken]: a program to publish.
app() {
    if [ "${2-}" = broken ]; then
        printf '#!/bin/sh\necho "hello %s: no camera?"\nexit 1\n' "$1"
    else
        printf '#!/bin/sh\nwhile :; do echo "hello from version %s"; sleep 1; done\n' "$1"
    fi >"$DIR/hello-$1"
}
# depotd looks at its catalog once a second (answers.check-ms).
publish() { run "$BIN/depotd" publish "$DIR/hello-$1" --app hello --version "$1" --env prod --key "$DIR/release.key" --config "$DIR/depotd.toml"; sleep 1.1; }
poll() { run "$BIN/otad" check-now --wait --config "$DIR/otad.toml"; }
runs() { readlink "$DIR/state/current"; sleep 1.2; tail -n 1 "$DIR/run/hello.out"; }

say "1. A key to sign releases with, and a package server"
run "$BIN/depotd" keygen --out "$DIR/release"
"$BIN/depotd" serve --config "$DIR/depotd.toml" 2>"$DIR/depotd.log" &
PIDS="$PIDS $!"
app 1.0; publish 1.0

say "2. The device asks what it should run, checks the signature, installs, looks whether it lives"
"$BIN/otad" --config "$DIR/otad.toml" 2>"$DIR/otad.log" &
PIDS="$PIDS $!"
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -S "$DIR/run/otad.sock" ] && break; sleep 0.2; done
poll
runs | grep -q 'version 1.0' || die "version 1.0 does not run"
runs | sed 's/^/    /'

say "3. The next release: one symlink switches"
app 2.0; publish 2.0; poll
runs | grep -q 'version 2.0' || die "version 2.0 does not run"
runs | sed 's/^/    /'

say "4. A broken one: it does not stay up, so the device goes back by itself and never tries it again"
app 3.0 broken; publish 3.0
poll || :
runs | grep -q 'version 2.0' || die "version 2.0 is not back"
runs | sed 's/^/    /'
poll || :
run "$BIN/otad" why --config "$DIR/otad.toml"

say "5. The mended one is another release, and is taken"
app 3.1; publish 3.1; poll
runs | grep -q 'version 3.1' || die "version 3.1 does not run"
runs | sed 's/^/    /'
run "$BIN/otad" history --config "$DIR/otad.toml"
run "$BIN/otad" status --config "$DIR/otad.toml"

say "Done: published, switched, rolled back, mended."
