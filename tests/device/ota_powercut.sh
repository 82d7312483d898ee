#!/bin/bash
# In the virtual device: updates without a pause, and the power goes. Run by run.sh through `vm powercut`.
#
# First boot (VM_PHASE=write): releases of both apps one after the other, most of the time on trial; every commit that
# otad reports is written through to the host. Second boot (VM_PHASE=check): the apps' units were started by systemd
# behind edge-otad-recover; both must run the same release, the one that `current` names, never one older than the last
# that was reported; then otad goes on with what it finds, and takes one more.
set -u
# shellcheck source=tests/device/ota_common.sh disable=SC1091
. /mnt/host/ota_common.sh
OUT=/mnt/out/ota-$VM_ROUND
mkdir -p "$OUT"
word() { sed -n 's/^ *"result": "\(.*\)",*$/\1/p'; }
wait_for() { for _ in $(seq 150); do "$@" && return 0; sleep 0.2; done; "$@"; }
runs() { [ "$(ota_running)" = "$1" ]; }
complain() { echo "WRONG $*"; FAILED=1; }

case $VM_PHASE in
write)
    ota_install 4
    # What the package manager wrote is on disk on any real device; what otad writes is its own affair.
    sync
    systemctl start otad || { journalctl -u otad -o cat | tail; exit 9; }
    for n in $(seq 1000); do
        ota_publish "$n"
        until result=$(otad check-now --wait --json | word) && [ "$result" != no-change ]; do sleep 0.2; done
        [ "$result" = updated ] || { echo "release $n: $result"; otad why; journalctl -u otad -o cat | tail -n 20; exit 8; }
        echo "$n" >>"$OUT/committed"
        [ "$n" -gt 1 ] || touch /mnt/out/arm
    done
    exit 8
    ;;
check)
    FAILED=0
    dmesg | grep -iE 'recovery|orphan|EXT4-fs (error|warning)' | tail -n 3
    committed=$(tail -n 1 "$OUT/committed" 2>/dev/null || echo 0)
    recovered=$(journalctl -b -u edge-otad-recover -o cat --no-pager | grep -vE '^(Starting|Finished|Started)' | tr '\n' ';')
    files=$(ota_files)
    for app in ticker board; do wait_for systemctl is-active -q $app || complain "$app is not active"; done
    # A unit may have been started before its first line is in the journal.
    sleep 1
    running=$(ota_running)
    echo "committed: $committed, files: $files, running: $running, recovery: $recovered"
    [ "$(systemctl show edge-otad-recover -P Result)" = success ] || complain "the recovery: $(systemctl status edge-otad-recover --no-pager -n 5)"
    recovery=$(systemctl show edge-otad-recover -P ExecMainExitTimestampMonotonic)
    for app in ticker board; do
        started=$(systemctl show $app -P ExecMainStartTimestampMonotonic)
        [ "$started" -ge "$recovery" ] || complain "$app started at $started, before the recovery ended at $recovery"
    done
    read -r a b <<<"$files"
    [ "$a" = "$b" ] || complain "two releases at once: $files"
    [ "$running" = "$files" ] || complain "what runs ($running) is not what is installed ($files)"
    { [ "${a:-0}" -ge "$committed" ] && [ "$a" -le $((committed + 1)) ]; } || complain "$a is installed, and $committed was committed"
    otad verify --dir "$STATE" >"$OUT/verify" || complain "verify: $(cat "$OUT/verify")"
    # The depot is another device in life: what it lost here is not what this is about.
    ip link set lo up
    systemctl is-active -q depotd || systemctl start depotd || complain "depotd"
    systemctl start otad || complain "otad does not start: $(journalctl -b -u otad -o cat --no-pager | tail -n 5)"
    wait_for sh -c 'otad status --json | grep -q "\"idle\": true"' || complain "otad is not idle: $(otad status)"
    otad history | tail -n 2
    ota_publish 2000
    for _ in $(seq 10); do
        result=$(otad check-now --wait --json | word)
        [ "$result" = no-change ] || break
        sleep 0.5
    done
    [ "$result" = updated ] || complain "the next release: $result: $(otad why)"
    wait_for runs '2000 2000' || complain "$(ota_running) runs"
    journalctl -b -u otad -u edge-otad-recover -u ticker -u board -u depotd -o short-monotonic --no-pager >"$OUT/journal"
    [ $FAILED = 0 ] || tail -n 40 "$OUT/journal"
    exit $FAILED
    ;;
esac
