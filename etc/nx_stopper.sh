#!/bin/sh
# Stops what nx_launcher.sh started, senders first, so that what is under way is still taken.
#
#   nx_stopper.sh [program ...]
#
# Where systemd runs the units it stops those; else the plain processes named by pid files. A process is
# stopped only if it still is the one that was started (pid and start time), never by its name.
# EDGE_RUN_DIR names the folder with the pid files, as for nx_launcher.sh.
set -eu
# Longer than a daemon takes to drain.
STOP_S=30

say() { printf 'nx_stopper: %s\n' "$*"; }
[ $# -gt 0 ] || set -- faced mqfwd s3put mosquitto

run_dir() {
    if [ -n "${EDGE_RUN_DIR-}" ]; then echo "$EDGE_RUN_DIR"
    elif [ "$(id -u)" = 0 ]; then echo /run/edge
    else echo "${XDG_RUNTIME_DIR:-/tmp/edge-$(id -u)}/edge"
    fi
}

born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# Gone, or gone but for being waited for by a parent that is not us.
gone() { [ "$(born "$1")" != "$2" ] || grep -q '^State:.[ZX]' "/proc/$1/status" 2>/dev/null; }

stop_process() {
    file=$RUN/$1.pid
    [ -f "$file" ] || return 0
    read -r pid birth <"$file" || { rm -f "$file"; return 0; }
    if gone "$pid" "$birth"; then
        say "$1: had ended by itself; its log is $RUN/$1.log"
        rm -f "$file"
        return 0
    fi
    kill -TERM "$pid"
    tries=$((STOP_S * 10))
    until gone "$pid" "$birth"; do
        tries=$((tries - 1))
        if [ $tries -eq 0 ]; then
            say "$1: did not end within $STOP_S s; killed (nothing acknowledged is lost by that)"
            kill -KILL "$pid" 2>/dev/null || :
            break
        fi
        sleep 0.1
    done
    rm -f "$file"
    say "$1: stopped"
}

RUN=$(run_dir)
for name in "$@"; do
    stop_process "$name"
    # The system's mosquitto is not ours to stop: other programs may use it.
    [ "$name" != mosquitto ] || continue
    if [ -d /run/systemd/system ] && [ -z "${EDGE_RUN_DIR-}" ] && systemctl is-active --quiet "$name.service" 2>/dev/null; then
        systemctl stop "$name.service"
        say "$name: stopped"
    fi
done
