#!/bin/sh
# Starts the face pipeline of this device: mosquitto (when mqfwd subscribes to one here), mqfwd, s3put, faced.
#
#   CLOUD_MQTT_HOST=broker.example.org CLOUD_MQTT_PORT=1883 nx_launcher.sh [program ...]
#
# Where systemd runs and the units are installed it starts those; else it starts plain processes with a pid
# file and a log each, in /run/edge (root) or $XDG_RUNTIME_DIR/edge. What runs already is left alone.
# nx_stopper.sh stops what this started.
#
# Environment:
#   CLOUD_MQTT_HOST, CLOUD_MQTT_PORT  the cloud broker; they override [cloud] of mqfwd.toml
#   EDGE_CONF_DIR  folder with <program>.toml (/etc/edge)
#   EDGE_BIN_DIR   folder with the programs (the one this script is in, else the PATH)
#   EDGE_RUN_DIR   folder for pid files and logs
#   EDGE_BROKER    "no": never start mosquitto
set -eu
CONF=${EDGE_CONF_DIR:-/etc/edge}
READY_S=20

say() { printf 'nx_launcher: %s\n' "$*"; }
die() { printf 'nx_launcher: %s\n' "$*" >&2; exit 1; }

# With the words of the person's own environment: a port that is no number would be found late, by mqfwd.
case ${CLOUD_MQTT_PORT-1} in
'' | *[!0-9]*) die "CLOUD_MQTT_PORT is '$CLOUD_MQTT_PORT'; a port number such as 1883 is expected" ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
program() {
    if [ -n "${EDGE_BIN_DIR-}" ]; then echo "$EDGE_BIN_DIR/$1"
    elif [ -x "$here/$1" ]; then echo "$here/$1"
    else command -v "$1" || :
    fi
}

# Without arguments: every program that is installed and configured. Receivers start before senders.
if [ $# -eq 0 ]; then
    for name in s3put mqfwd faced; do
        [ ! -x "$(program $name)" ] || [ ! -f "$CONF/$name.toml" ] || set -- "$@" $name
    done
    [ $# -gt 0 ] || die "none of faced, mqfwd, s3put is installed with its $CONF/<program>.toml (make install)"
fi

with_systemd() {
    [ -d /run/systemd/system ] && [ -z "${EDGE_RUN_DIR-}${EDGE_CONF_DIR-}${EDGE_BIN_DIR-}" ] || return 1
    for name in "$@"; do systemctl cat "$name.service" >/dev/null 2>&1 || return 1; done
}

# A key of a program's configuration in force: setting PROGRAM TABLE KEY (TABLE empty for the top).
setting() {
    "$(program "$1")" --config "$CONF/$1.toml" --print-config 2>/dev/null |
        awk -v table="$2" -v key="$3" '
            /^\[/ { now = $0; gsub(/[][]/, "", now); next }
            now == table && $1 == key { sub(/^[^=]*= */, ""); gsub(/"/, ""); print; exit }'
}

# True when mqfwd is wanted and takes its messages from a broker on this machine.
wants_broker() {
    [ "${EDGE_BROKER-}" != no ] || return 1
    case " $* " in *" mqfwd "*) ;; *) return 1 ;; esac
    [ "$(setting mqfwd local mode)" = subscribe ] || return 1
    case $(setting mqfwd local host) in localhost | 127.* | ::1) ;; *) return 1 ;; esac
}

# Whether some process listens on this TCP port, from /proc (state 0A), so that no tool is needed.
listening() {
    hex=$(printf '%04X' "$1")
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v p=":$hex" '$4 == "0A" && $2 ~ p "$" { f = 1 } END { exit !f }'
}

start_units() {
    # The units read this file if it is there (EnvironmentFile=-/run/edge/cloud.env).
    mkdir -p /run/edge
    before=$(cat /run/edge/cloud.env 2>/dev/null || :)
    {
        [ -z "${CLOUD_MQTT_HOST-}" ] || printf 'CLOUD_MQTT_HOST=%s\n' "$CLOUD_MQTT_HOST"
        [ -z "${CLOUD_MQTT_PORT-}" ] || printf 'CLOUD_MQTT_PORT=%s\n' "$CLOUD_MQTT_PORT"
    } >/run/edge/cloud.env.new
    mv /run/edge/cloud.env.new /run/edge/cloud.env
    if wants_broker "$@" && ! listening "$(setting mqfwd local port)" && systemctl cat mosquitto.service >/dev/null 2>&1; then
        systemctl start mosquitto.service
        say "mosquitto: started"
    fi
    # A forwarder that runs with another cloud broker than the one asked for would be a surprise.
    if [ "$before" != "$(cat /run/edge/cloud.env)" ] && systemctl is-active --quiet mqfwd.service; then
        systemctl stop mqfwd.service
    fi
    for name in "$@"; do
        systemctl start "$name.service" || die "$name did not start; see: journalctl -u $name -n 20"
        say "$name: $(systemctl is-active "$name.service")"
    done
}

run_dir() {
    if [ -n "${EDGE_RUN_DIR-}" ]; then echo "$EDGE_RUN_DIR"
    elif [ "$(id -u)" = 0 ]; then echo /run/edge
    else echo "${XDG_RUNTIME_DIR:-/tmp/edge-$(id -u)}/edge"
    fi
}

# Start time of a process in clock ticks since boot: with the pid it names a process for good.
born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# alive NAME: prints the pid when the process of its pid file still is that process.
alive() {
    [ -f "$RUN/$1.pid" ] || return 1
    read -r pid birth <"$RUN/$1.pid" || return 1
    [ -n "$birth" ] && [ "$(born "$pid")" = "$birth" ] && echo "$pid"
}

# spawn NAME COMMAND...: in a session of its own, so that a closed terminal does not end it.
spawn() {
    name=$1; shift
    [ ! -f "$RUN/$name.log" ] || mv -f "$RUN/$name.log" "$RUN/$name.log.1"
    setsid "$@" >"$RUN/$name.log" 2>&1 </dev/null &
    pid=$!
    echo "$pid $(born "$pid")" >"$RUN/$name.pid"
}

fail() {
    rm -f "$RUN/$1.pid"
    sed 's/^<[0-7]>//; s/^/    /' "$RUN/$1.log" | tail -n 12 >&2
    die "$1 $2; its log is $RUN/$1.log"
}

start_broker() {
    port=$(setting mqfwd local port)
    if listening "$port"; then return 0; fi
    mosquitto=$(command -v mosquitto || ls /usr/sbin/mosquitto 2>/dev/null || :)
    [ -n "$mosquitto" ] || die "mqfwd.toml wants a broker on port $port and there is none: install mosquitto, or set [local] mode = \"listen\""
    mkdir -p "$RUN/mosquitto"
    # As root mosquitto becomes the user "mosquitto": the folder for its queue must be that user's.
    [ "$(id -u)" != 0 ] || chown mosquitto "$RUN/mosquitto" 2>/dev/null || :
    printf 'listener %s 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\nautosave_interval 60\nmax_queued_messages 0\n' \
        "$port" "$RUN/mosquitto" >"$RUN/mosquitto.conf"
    spawn mosquitto "$mosquitto" -c "$RUN/mosquitto.conf"
    wait_until mosquitto listening "$port"
    say "mosquitto: started on port $port (pid $(alive mosquitto))"
}

# wait_until NAME CONDITION...: or says why the process ended.
wait_until() {
    what=$1; shift
    tries=$((READY_S * 10))
    until "$@"; do
        alive "$what" >/dev/null || fail "$what" "ended"
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "$what" "is not ready after $READY_S s"
        sleep 0.1
    done
}

start_processes() {
    RUN=$(run_dir)
    mkdir -p "$RUN" || die "can't make $RUN; set EDGE_RUN_DIR to a folder of yours"
    ! wants_broker "$@" || start_broker
    for name in "$@"; do
        if pid=$(alive "$name"); then say "$name: runs already (pid $pid)"; continue; fi
        binary=$(program "$name")
        [ -x "$binary" ] || die "$name is not installed (make install BINS=\"$*\")"
        # The configuration's own words about what is wrong with it go to the terminal.
        "$binary" --config "$CONF/$name.toml" --check >/dev/null || die "$name was not started: its configuration is wrong (above)"
        socket=$(setting "$name" '' ctl-socket)
        # systemd makes these folders for the units; here nobody else does.
        [ -z "$socket" ] || mkdir -p "$(dirname "$socket")"
        [ -z "$socket" ] || rm -f "$socket"
        spawn "$name" "$binary" --config "$CONF/$name.toml"
        if [ -n "$socket" ]; then wait_until "$name" test -S "$socket"; fi
        # A port in use or a folder without permission shows within a moment.
        sleep 0.2
        alive "$name" >/dev/null || fail "$name" "ended at once"
        say "$name: started (pid $(alive "$name"), log $RUN/$name.log)"
    done
}

if with_systemd "$@"; then start_units "$@"; else start_processes "$@"; fi
