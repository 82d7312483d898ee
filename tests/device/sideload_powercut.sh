#!/bin/bash
# In the virtual device: syncs without a pause, and the power goes. Run by run.sh through `vm powercut`.
#
# First boot (VM_PHASE=write): tree after tree of the same files, each holding the number of its tree, some of them renamed
# from tree to tree; every commit that was acknowledged is written through to the host. Second boot (VM_PHASE=check): once
# sideloadd is ready the files are all of one tree, no older than the last one acknowledged; then it takes one more.
set -u
HOST=/mnt/host
OUT=/mnt/out/sideload-$VM_ROUND
ROOT=/opt/aws/panorama/storage/sideloaded
SRC=/srv/dev/src
FAILED=0
mkdir -p "$OUT"
complain() { echo "WRONG $*"; FAILED=1; }

# Tree number $1: 60 small files, one of 3 MiB that differs in a line, one whose name changes, one that comes and goes.
tree() {
    local n=$1 i
    mkdir -p $SRC/lib
    for i in $(seq 60); do echo "$n of file $i" >"$SRC/lib/f$i.txt"; done
    head -c 3145728 /srv/dev/noise >$SRC/big.bin
    printf '%-16s' "$n" | dd of=$SRC/big.bin bs=16 seek=70000 conv=notrunc status=none
    rm -f $SRC/name-*.txt
    echo "always the same" >"$SRC/name-$n.txt"
    if [ $((n % 2)) = 0 ]; then echo "$n" >$SRC/even.txt; else rm -f $SRC/even.txt; fi
}

# The numbers that the files on the device hold, each once.
numbers() {
    cat $ROOT/lib/f*.txt | cut -d' ' -f1 | sort -u
    dd if=$ROOT/big.bin bs=16 skip=70000 count=1 status=none | tr -d ' '
    echo
    for name in "$ROOT"/name-*.txt; do basename "$name" .txt | cut -d- -f2; done
}

case $VM_PHASE in
write)
    ip link set lo up
    tar -C / -xf $HOST/root.tar
    systemd-sysusers
    systemd-tmpfiles --create
    systemctl daemon-reload
    mkdir -p $SRC
    cd /srv/dev || exit 9
    sideload keys >/dev/null || exit 9
    for f in sideloading_server.cert.pem sideloading_server.key.pem sideloading_client.cert.pem; do
        install -m 0640 -g edge-sideloadd "$f" /etc/edge/sideloadd/
    done
    printf 'addr = "127.0.0.1"\nsrc-top = "src"\n' >sideload.toml
    head -c 3145728 /dev/urandom >noise
    # What the package manager wrote is on disk on any real device; what sideloadd writes is its own affair.
    sync
    systemctl start sideloadd || { journalctl -u sideloadd -o cat | tail; exit 9; }
    for n in $(seq 10000); do
        tree "$n"
        sideload sync >/tmp/said 2>&1 || { echo "tree $n: $(cat /tmp/said)"; journalctl -u sideloadd -o cat | tail; exit 8; }
        echo "$n" >>"$OUT/committed"
        [ "$n" -gt 2 ] || touch /mnt/out/arm
    done
    exit 8
    ;;
check)
    dmesg | grep -iE 'recovery|orphan|EXT4-fs (error|warning)' | tail -n 3
    committed=$(tail -n 1 "$OUT/committed" 2>/dev/null || echo 0)
    ip link set lo up
    systemctl start sideloadd || complain "sideloadd does not start: $(journalctl -b -u sideloadd -o cat --no-pager | tail -n 9)"
    found=$(numbers | sort -u | tr '\n' ' ')
    echo "committed: $committed, found: $found$(journalctl -b -u sideloadd -o cat --no-pager | grep -iE 'finish|journal|recover|undo' | tr '\n' ';')"
    read -r n rest <<<"$found"
    [ -z "$rest" ] || complain "more than one tree: $found"
    { [ "${n:-0}" -ge "$committed" ] && [ "$n" -le $((committed + 1)) ]; } || complain "tree ${n:-none}, and $committed was committed"
    [ "$(find $ROOT/lib -name 'f*.txt' | wc -l)" = 60 ] || complain "files are missing"
    [ "$(cat $ROOT/even.txt 2>/dev/null)" = "$([ $((n % 2)) = 1 ] || echo "$n")" ] || complain "even.txt: $(cat $ROOT/even.txt)"
    # The developer's host is another machine in life: what it lost here is not what this is about.
    cd /srv/dev || exit 7
    [ "$(stat -c %s noise 2>/dev/null)" = 3145728 ] || head -c 3145728 /dev/urandom >noise
    find src -type f -delete
    tree 20001
    sideload sync >"$OUT/sync" 2>&1 || complain "the next sync: $(cat "$OUT/sync")"
    [ "$(numbers | sort -u)" = 20001 ] || complain "after it: $(numbers | sort -u | tr '\n' ' ')"
    diff -r -x .sideloadd src $ROOT >"$OUT/diff" || complain "the trees differ: $(head -n 5 "$OUT/diff")"
    journalctl -b -u sideloadd -o short-monotonic --no-pager >"$OUT/journal"
    [ $FAILED = 0 ] || tail -n 30 "$OUT/journal"
    exit $FAILED
    ;;
esac
