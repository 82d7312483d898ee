#!/bin/bash
# Tests that need systemd, where this machine does not run it: systemd as PID 1 of a chroot, in namespaces of its own.
#
#   sudo tests/systemd-check.sh ROOT [FILTER]
#
# ROOT is a Debian tree with systemd (see chroot-check.sh); the programs and tests are those of target/debug, already built.
# Needs a cgroup v1 hierarchy name=systemd or cgroup v2. Everything ends with the script.
set -eu
ROOT=$(realpath "$1") FILTER=${2:-ota_units} MAIN=$(realpath "$(dirname "$0")/..")
[ -x "$ROOT/lib/systemd/systemd" ] || { echo "$ROOT has no systemd: mmdebstrap --include=systemd,systemd-sysv bookworm $ROOT" >&2; exit 1; }
TEST=$(find "$MAIN/target/debug/deps" -maxdepth 1 -name 'e2e-*' -type f -perm -u+x -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2)
[ -n "$TEST" ] || { echo "build the tests first: cargo test -p e2e --no-run" >&2; exit 1; }

# The body of the namespaces' first process.
# shellcheck disable=SC2016
BODY='
set -e
mount --make-rprivate /
mount -t proc proc "$ROOT/proc"
mount -t tmpfs tmpfs "$ROOT/run"
mkdir -p "$ROOT/run/lock" "$ROOT/mnt/main"
mount --bind "$MAIN" "$ROOT/mnt/main"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t sysfs sysfs "$ROOT/sys"
    mount -t cgroup2 cgroup "$ROOT/sys/fs/cgroup"
else
    mount -t tmpfs tmpfs "$ROOT/sys"
    mkdir -p "$ROOT/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$ROOT/sys/fs/cgroup/systemd"
fi
mount --bind /dev "$ROOT/dev"
exec chroot "$ROOT" /usr/bin/env -i container=check PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target
'
GROUP=/sys/fs/cgroup/systemd
[ -d "$GROUP" ] || GROUP=/sys/fs/cgroup
GROUP=$GROUP/edge-check-$$
mkdir "$GROUP"
# A process of the group, so that the group is the root of the namespace's own view.
(
    echo "$BASHPID" >"$GROUP/cgroup.procs"
    exec env ROOT="$ROOT" MAIN="$MAIN" unshare --mount --pid --fork --kill-child --ipc --uts --cgroup sh -c "$BODY"
) &
HOLDER=$!
finish() {
    kill -9 "$HOLDER" 2>/dev/null || true
    wait "$HOLDER" 2>/dev/null || true
    for _ in 1 2 3 4 5; do
        find "$GROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$GROUP" ] || break
        sleep 0.5
    done
}
trap finish EXIT
inside() {
    nsenter -t "$PID" --mount --pid --ipc --uts --cgroup -r -w /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root EDGE_BIN_DIR=/mnt/main/target/debug EDGE_TOOLS=/mnt/main/target/tools "$@"
}
for _ in $(seq 60); do
    PID=$(pgrep -P "$HOLDER" | head -n 1) || PID=
    [ -n "$PID" ] && inside systemctl is-active -q basic.target 2>/dev/null && break
    sleep 0.5
done
inside sh -c "cd /mnt/main/tests && exec '/mnt/main/${TEST#"$MAIN"/}' $FILTER --nocapture"
