# shellcheck shell=bash
# In the virtual device, sourced by the scripts that run.sh starts there: what is printed and counted, and a few words for
# expectations. A script ends with `exit "$FAILED"`.
# Functions and variables are for those who source this.
# shellcheck disable=SC2034,SC2317
HOST=/mnt/host
FAILED=0
say() { echo "== $* [$(cut -d' ' -f1 /proc/uptime)]"; }
expect() { # WHAT COMMAND...
    local what=$1
    shift
    if "$@" >/tmp/expect.out 2>&1; then echo "ok    $what"; else
        echo "WRONG $what: $* ($(tail -n 3 /tmp/expect.out | tr '\n' ' '))"
        FAILED=$((FAILED + 1))
    fi
}
no() { ! "$@"; }
same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; false; }; }
has() { printf '%s' "$1" | grep -q "$2"; }
at_least() { [ "$1" -ge "$2" ]; }
# Within 30 s.
soon() { for _ in $(seq 150); do "$@" && return 0; sleep 0.2; done; "$@"; }
main_pid() { systemctl show "$1" -P MainPID; }
becomes_active() { soon systemctl is-active -q "$1"; }
# What `make install` put into run.sh's tar, and what a package's scripts would do after it.
install_root() {
    tar -C / -xf $HOST/root.tar
    systemd-sysusers
    systemd-tmpfiles --create /usr/lib/tmpfiles.d/edge.conf
    systemctl daemon-reload
}
# Says the exposure of a unit as systemd counts it; fails above the bound.
exposed_at_most() { # UNIT BOUND
    local level
    level=$(systemd-analyze security --no-pager "$1" | tail -n 1 | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
    echo "exposure of $1: $level" >&2
    awk -v level="$level" -v bound="$2" 'BEGIN { exit !(level != "" && level + 0 <= bound) }'
}
