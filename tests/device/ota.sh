#!/bin/bash
# In the virtual device: depotd publishes, otad installs, under the real systemd. Run by `run.sh ota`.
# Prints what it sees, with the uptime in brackets; ends with 1 if an expectation failed.
set -u
# shellcheck source=tests/device/common.sh disable=SC1091
. /mnt/host/common.sh
# shellcheck source=tests/device/ota_common.sh disable=SC1091
. /mnt/host/ota_common.sh
# Called by expect.
# shellcheck disable=SC2317
runs() {
    local now
    now=$(ota_running)
    [ "$now" = "$1" ] || { echo "runs: $now, files: $(ota_files)"; false; }
}
# shellcheck disable=SC2317
journal() { journalctl -b -u otad -u edge-otad-recover -u ticker -u board -u depotd -o short-monotonic --no-pager >/mnt/out/ota.journal; }
trap journal EXIT
# Checks until the word is this one: the server sees a release a moment after it was published.
# shellcheck disable=SC2317
check() {
    local word
    for _ in $(seq 20); do
        word=$(otad check-now --wait --json | sed -n 's/^ *"result": "\(.*\)",*$/\1/p')
        [ "$word" = "$1" ] && return 0
        [ "$word" = no-change ] || break
        sleep 0.5
    done
    echo "$word"
    otad why
    false
}
mark() { systemctl show "$1" -P InvocationID; }
why() { otad why --json | tr -d ' ",' | grep -A14 "^app:$1\$" | sed -n 's/^why://p'; }
# shellcheck disable=SC2317
state_is() { otad status --json | grep -q "\"state\": \"$1\""; }

say "install"
ota_install 3
expect "the folder for keys is there" same "$(stat -c %a:%U:%G /etc/edge/otad)" 755:root:root
expect "depotd serves" systemctl is-active -q depotd
expect "the first release is published" ota_publish 1
expect "otad starts" systemctl start otad
systemctl is-active -q otad || { journalctl -u otad -o cat --no-pager -n 9; exit 1; }
expect "recovery is a part of it" same "$(systemctl show edge-otad-recover -P Result)" success

say "publish, switch"
expect "the first release is installed" check updated
expect "both apps run" soon runs "1 1"
otad status
expect "the hook knows what it is called for" grep -qx OTAD_ACTION=post-install "$STATE/hook.env"
expect "the hook runs as root" sh -c "tail -n 1 $STATE/hook.env | grep -qx 0"
BOARD=$(mark board) TICKER=$(mark ticker)
ota_publish 2 good alone
expect "a release of one app is installed" check updated
expect "it runs" soon runs "2 1"
expect "the other app was left alone" same "$(mark board)" "$BOARD"
expect "this one was restarted" sh -c "[ '$(mark ticker)' != '$TICKER' ]"

say "one that does not start"
ota_publish 3 broken
expect "it is rolled back" check rolled-back
expect "both apps are back" same "$(ota_files)" "2 1"
expect "and run" soon runs "2 1"
expect "the ticker is active" systemctl is-active -q ticker
TICKER=$(mark ticker)
expect "it is not tried again" check no-change
expect "no unit was touched by that" same "$(mark ticker)" "$TICKER"
# Two apps had changed: nobody knows which one was to blame, so the set is barred.
expect "why says so" same "$(why ticker)" quarantined
expect "and knows" sh -c "otad history | tail -n 1 | grep -q 'rolled-back.*ticker.service is'"

say "one that starts, and does not stay"
ota_publish 4 fragile alone
expect "it is rolled back" check rolled-back
otad history | tail -n 1
expect "because it was started again" sh -c "otad history | tail -n 1 | grep -Eq 'started again|is (failed|activating)'"
expect "what ran runs" soon runs "2 1"

say "the mended one"
ota_publish 5
expect "it is installed" check updated
expect "both run" soon runs "5 5"
expect "it is as it was installed" otad verify

say "kill -9 of otad in the middle of a trial"
ota_publish 6
sed -i 's/^stable-s = .*/stable-s = 10/' /etc/edge/otad.toml
expect "reload" systemctl reload otad
sleep 2
otad check-now
expect "on trial" soon state_is watching-health
expect "it runs meanwhile" soon runs "6 6"
BEFORE=$(systemctl show otad -P NRestarts)
systemctl kill --kill-whom=main -s KILL otad
expect "systemd starts it again" soon sh -c "[ \$(systemctl show otad -P NRestarts) -gt $BEFORE ] && otad status"
expect "the trial goes on" soon state_is watching-health
expect "the start is counted once" sh -c 'journalctl -u otad -o cat | grep -q "6-.* is on trial, start 1: going on"'
expect "and is committed" soon sh -c 'otad history | tail -n 1 | grep -q "committed .*ticker 6"'
expect "both run" soon runs "6 6"

say "a stop in the middle of a trial"
ota_publish 7
sleep 2
otad check-now
expect "on trial" soon state_is watching-health
systemctl stop otad
expect "it ended well" same "$(systemctl show otad -P Result)" success
expect "the apps are not otad's" soon runs "7 7"
expect "recovery counts it" sh -c 'systemctl restart edge-otad-recover && journalctl -u edge-otad-recover -o cat | grep -q "is on trial, start 1"'
systemctl start otad
expect "it is committed" soon sh -c 'otad history | tail -n 1 | grep -q "committed .*ticker 7"'
expect "and otad has nothing more to do" soon state_is idle

say "by hand"
expect "rollback" otad rollback
expect "what was before runs" soon runs "6 6"
expect "it is not taken again" check no-change
ota_publish 8
expect "a newer one is" check updated
expect "both run" soon runs "8 8"

say "damage"
echo '# x' >>"$STATE"/current/ticker/ticker
expect "verify finds it" sh -c 'otad verify | grep -q "ticker: its content was changed"'

say "what systemd thinks"
systemd-analyze security otad.service edge-otad-recover.service depotd.service --no-pager | tail -n 3
systemctl status otad --no-pager -n 0 | grep -E 'Active|Status|Memory|Tasks'
journalctl -u otad -u edge-otad-recover -p warning -o cat --no-pager | sort | uniq -c | sort -rn | head -n 12
expect "stop" systemctl stop otad
expect "it ended well" same "$(systemctl show otad -P Result)" success
expect "the apps go on" systemctl is-active -q ticker board
say "failed expectations: $FAILED"
exit "$((FAILED > 0))"
