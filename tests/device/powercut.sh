#!/bin/bash
# In the virtual device: what mqfwd and s3put acknowledged survives a power cut. Run by run.sh through `vm powercut`.
#
# First boot (VM_PHASE=write): the daemon, started from its installed unit, is the durable port; a publisher writes every
# acknowledged number through to the host. Second boot (VM_PHASE=check): everything it acknowledged must come out.
#
#   DAEMON=mqfwd  next hop away in even rounds (all stays in the spool), present in odd ones (segments come and go)
#   DAEMON=s3put  target is a folder
#
# Numbers differ between rounds, so that with --same-disk stale bytes of re-used files would show.
set -u
HOST=/mnt/host
OUT=/mnt/out/$DAEMON-$VM_ROUND
LOAD="python3 $HOST/load.py"
STATE=/var/lib/edge/$DAEMON
mkdir -p "$OUT"

install_all() {
    tar -C / -xf "$HOST/root.tar"
    systemd-sysusers
    systemd-tmpfiles --create /usr/lib/tmpfiles.d/edge.conf
    systemctl daemon-reload
    if [ "$DAEMON" = mqfwd ]; then
        cat >/etc/edge/mqfwd.toml <<'T'
[local]
mode = "listen"
[local.listen]
address = "127.0.0.1:1883"
[cloud]
host = "127.0.0.1"
port = 1884
reconnect-min-ms = 100
reconnect-max-ms = 1000
[[route]]
from = "faces"
to = "tst011235"
[spool]
segment-bytes = "1 MiB"
max-record-bytes = "64 KiB"
max-bytes = "256 MiB"
T
    else
        cat >/etc/edge/s3put.toml <<'T'
[source]
mode = "listen"
topics = ["faces"]
[source.listen]
address = "127.0.0.1:1883"
[target]
to = "dir:/var/lib/edge/s3put/objects"
[spool]
segment-bytes = "1 MiB"
max-record-bytes = "64 KiB"
max-bytes = "256 MiB"
T
    fi
    "/usr/bin/$DAEMON" --check || exit 9
}

status() { curl -s --max-time 5 --unix-socket "/run/edge/$DAEMON/ctl.sock" http://x/status; }

# Until two looks 2 s apart find the same number of lines and the daemon says its spool is empty.
drained() {
    local before=-1 now tries
    for tries in $(seq 60); do
        sleep 2
        now=$(cat "$OUT"/arrived.* 2>/dev/null | wc -l; find "$STATE/objects" -type f 2>/dev/null | wc -l)
        if [ "$now" = "$before" ] && [ "$tries" -gt 2 ]; then return 0; fi
        before=$now
    done
    echo "still moving after 120 s"
    return 1
}

case $VM_PHASE in
write)
    install_all
    # What the package manager wrote is on disk on any real device; what the daemon writes is its own affair.
    sync
    if [ "$DAEMON" = mqfwd ] && [ $((VM_ROUND % 2)) = 1 ]; then $LOAD sink 1884 "$OUT/arrived.1" & fi
    systemctl start "$DAEMON" || { journalctl -u "$DAEMON" -o cat | tail; exit 9; }
    $LOAD publish 127.0.0.1:1883 faces "$OUT/acked" $((VM_ROUND * 1000000)) &
    until [ -s "$OUT/acked" ]; do sleep 0.1; done
    touch /mnt/out/arm
    wait -n
    echo "the publisher or the next hop ended before the cut"
    journalctl -u "$DAEMON" -o cat | tail
    exit 8
    ;;
check)
    dmesg | grep -iE 'recovery|orphan|EXT4-fs (error|warning)' | tail -n 5
    tar -C "$(dirname "$STATE")" -cf "$OUT/state.tar" "$DAEMON" || exit 7
    echo "state: $(find "$STATE" -type f ! -path '*/objects/*' -printf '%P=%s ')"
    failed=0
    # Before the daemon runs again: an object is there whole or not at all.
    if [ "$DAEMON" = s3put ]; then echo "before the start:"; $LOAD objects "$STATE/objects" "$OUT/before" || failed=1; fi
    [ "$DAEMON" != mqfwd ] || $LOAD sink 1884 "$OUT/arrived.2" &
    t0=$(date +%s%N)
    systemctl start "$DAEMON" || { journalctl -u "$DAEMON" -o cat | tail -n 20; exit 6; }
    echo "ready after $((($(date +%s%N) - t0) / 1000000)) ms"
    drained || failed=1
    status >"$OUT/status.json"
    systemctl status "$DAEMON" --no-pager -n 0 | grep -E 'Active|Status'
    if [ "$DAEMON" = s3put ]; then $LOAD objects "$STATE/objects" "$OUT/arrived.2" || failed=1; fi
    $LOAD compare "$OUT/acked" "$OUT/arrived.1" "$OUT/arrived.2" || failed=1
    journalctl -b -u "$DAEMON" -o cat --no-pager >"$OUT/journal"
    # A torn tail, which was never acknowledged, is kept there as …-cut.bin; that is no fault.
    aside=$(find "$STATE" -type f \( -path '*/quarantine/*' ! -name '*-cut.bin' -o -path '*/dead-letter/*' \))
    grep -E 'segments,|torn' "$OUT/journal"
    if [ -n "$aside" ]; then
        printf 'quarantine or dead-letter is not empty:\n%s\n' "$aside"
        failed=1
    fi
    if [ $failed = 0 ]; then rm -f "$OUT/state.tar"; else tail -n 20 "$OUT/journal"; fi
    exit $failed
    ;;
esac
