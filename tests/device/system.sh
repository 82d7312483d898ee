#!/bin/bash
# In the virtual device: the installed units under systemd, from a camera to files. Run by `run.sh system`.
# Prints what it sees, with the uptime in brackets; ends with the number of expectations that failed.
set -u
# shellcheck source=tests/device/common.sh disable=SC1091
. /mnt/host/common.sh
ctl() { curl -s --max-time 5 --unix-socket "/run/edge/$1/ctl.sock" "http://x/$2"; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }
timed_start() {
    local t0
    t0=$(now_ms)
    systemctl start "$1"
    echo "$1: start exits $?, ready after $(($(now_ms) - t0)) ms; $(systemctl show "$1" -P StatusText)"
}
# Called by expect.
# shellcheck disable=SC2317
start_failed() { ! systemctl start "$1"; }
objects() { find /var/lib/edge/s3put/objects -type f ! -name '*.json' ! -name '.*' 2>/dev/null | wc -l; }
# Voluntary and involuntary switches of all threads: an idle process makes one each time it wakes.
switches() { cat "/proc/$1"/task/*/status | awk '/ctxt_switches/ { n += $2 } END { print n }'; }

# CPU time of a process so far, in ms (100 ticks a second).
cpu_ms() { awk '{ print ($14 + $15) * 10 }' "/proc/$1/stat"; }

say "install"
install_root
id edge-faced edge-mqfwd edge-s3put
for d in faced mqfwd s3put; do expect "$d --check of the installed file" "$d" --check; done
mkdir -p /srv/pics /etc/edge
find "$HOST" -maxdepth 1 \( -name '*.png' -o -name '*.jpg' \) -exec cp {} /srv/pics/ \;
chmod -R a+rX /srv/pics
modprobe vivid node_types=0x1 input_types=0 num_inputs=1
cat >/etc/edge/faced.toml <<'T'
[[camera]]
name = "pics"
source = "images:/srv/pics"
[[camera]]
name = "cam"
source = "v4l:/dev/video0"
width = 320
height = 180
T
sed -i 's/^port = 1883$/port = 1884/' /etc/edge/s3put.toml
for port in 1883 1884; do
    printf 'listener %s 127.0.0.1\nallow_anonymous true\n' $port >/tmp/broker-$port.conf
    mosquitto -c /tmp/broker-$port.conf >/tmp/broker-$port.log 2>&1 &
    eval "BROKER_$port=\$!"
done
sleep 1

say "start"
for d in s3put mqfwd faced; do timed_start $d; done
sleep 15
for d in faced mqfwd s3put; do
    systemctl status $d --no-pager -n 0 | grep -E 'Active|Status|Memory|Tasks'
    expect "$d is active" systemctl is-active -q $d
    expect "$d answers /status" ctl $d status
done
n=$(objects)
expect "objects appear end to end ($n)" at_least "$n" 1
find /var/lib/edge/s3put/objects -type f | head -4
first=$(find /var/lib/edge/s3put/objects -type f -name '*.json' | head -n 1)
echo "sidecar: $(tr -d '\n' <"$first" | cut -c1-900)"
object=${first%.json}
expect "the sidecar's sha256 is the object's" same "$(sed -n 's/.*"sha256": *"\([0-9a-f]*\)".*/\1/p' "$first")" "$(sha256sum <"$object" | cut -d' ' -f1)"
expect "an object is a JPEG" same "$(head -c 3 "$object" | od -An -tx1 | tr -d ' ')" ffd8ff
for d in faced mqfwd s3put; do ctl $d status >/mnt/out/status-$d.json; done

say "reload"
pid=$(main_pid mqfwd)
echo "CPU so far: mqfwd $(cpu_ms "$pid") ms, s3put $(cpu_ms "$(main_pid s3put)") ms"
for d in mqfwd s3put faced; do expect "reload of $d" systemctl reload $d; done
sleep 3
expect "mqfwd is the same process after reload" same "$pid" "$(main_pid mqfwd)"
for d in mqfwd s3put faced; do
    expect "$d is active after reload" systemctl is-active -q $d
    echo "$d: $(systemctl show $d -P StatusText)"
done
before=$(objects)
mosquitto_pub -p 1883 -t faces -q 1 -m "after the reload"
sleep 3
expect "a message passes after the reload" at_least "$(objects)" $((before + 1))

echo "CPU so far: mqfwd $(cpu_ms "$pid") ms, s3put $(cpu_ms "$(main_pid s3put)") ms"

say "a bad file at reload is refused and the old one stays"
cp /etc/edge/mqfwd.toml /tmp/mqfwd.good
sed -i 's/^host = /hots = /' /etc/edge/mqfwd.toml
systemctl reload mqfwd
sleep 1
expect "mqfwd is active after a bad reload" systemctl is-active -q mqfwd
journalctl -u mqfwd -o cat --no-pager -n 3

say "a bad file at start"
cp /tmp/mqfwd.good /etc/edge/mqfwd.toml
for d in mqfwd s3put faced; do
    systemctl stop $d
    cp /etc/edge/$d.toml /tmp/$d.good
    printf '\n[nonsense]\nkey = 1\n' >>/etc/edge/$d.toml
    expect "$d does not start" start_failed $d
    sleep 7
    expect "$d ended with 78" same "$(systemctl show $d -P ExecMainStatus)" 78
    systemctl show $d -p ActiveState -p SubState -p NRestarts -p Result -p ExecMainStatus | tr '\n' ' '
    echo
    expect "$d was not started again" same "$(systemctl show $d -P NRestarts)" 0
    expect "$d failed for good" systemctl is-failed -q $d
    journalctl -u $d -o cat --no-pager -n 6
    systemctl stop $d
    systemctl reset-failed $d 2>/dev/null
    cp /tmp/$d.good /etc/edge/$d.toml
done

say "a crash is restarted"
systemctl start mqfwd
# Not SEGV: the Rust run-time takes the first one that is merely sent for a false alarm.
systemctl kill -s KILL mqfwd
sleep 5
expect "mqfwd is back after a crash" systemctl is-active -q mqfwd
expect "by one restart" same "$(systemctl show mqfwd -P NRestarts)" 1

say "a hung process is restarted by its watchdog"
for d in mqfwd s3put faced; do
    mkdir -p /run/systemd/system/$d.service.d
    printf '[Service]\nWatchdogSec=6\n' >/run/systemd/system/$d.service.d/watchdog.conf
done
systemctl daemon-reload
systemctl restart mqfwd s3put faced
sleep 20
for d in mqfwd s3put faced; do
    expect "$d feeds its watchdog" same "$(systemctl show $d -P NRestarts)" 0
    kill -STOP "$(main_pid $d)"
done
sleep 15
for d in mqfwd s3put faced; do
    expect "$d was restarted once" same "$(systemctl show $d -P NRestarts)" 1
    expect "$d is active" systemctl is-active -q $d
    rm -r /run/systemd/system/$d.service.d
done
systemctl daemon-reload

say "nx_launcher.sh and nx_stopper.sh"
t0=$(now_ms)
nx_stopper.sh
echo "took $(($(now_ms) - t0)) ms"
for d in faced mqfwd s3put; do expect "$d is stopped" same "$(systemctl is-active $d)" inactive; done
mosquitto -p 1885 >/dev/null 2>&1 &
sleep 1
timeout 60 mosquitto_sub -p 1885 -t tst011235 -C 1 >/tmp/at-1885 &
CLOUD_MQTT_HOST=localhost CLOUD_MQTT_PORT=1885 nx_launcher.sh
expect "launcher's broker is in force" grep -q 'CLOUD_MQTT_PORT=1885' /run/edge/cloud.env
sleep 2
mosquitto_pub -p 1883 -t faces -q 1 -m "through the launcher"
sleep 3
expect "a message reaches the launcher's cloud broker" test -s /tmp/at-1885
nx_launcher.sh mqfwd
echo "cloud.env now: $(tr '\n' ' ' </run/edge/cloud.env)"
nx_stopper.sh faced

say "idle"
sleep 5
for d in mqfwd s3put; do eval "B_$d=\$(cpu_ms \"\$(main_pid $d)\")"; done
for d in mqfwd s3put; do eval "A_$d=\$(switches \"\$(main_pid \$d)\")"; done
sleep 60
for d in mqfwd s3put; do
    a=A_$d
    b=B_$d
    pid=$(main_pid $d)
    echo "$d idle: $(($(switches "$pid") - ${!a})) wake-ups and $(($(cpu_ms "$pid") - ${!b})) ms of CPU in 60 s, $(awk '/VmRSS|RssAnon/ { printf "%s %s kB ", $1, $2 }' "/proc/$pid/status") threads $(find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l)"
done

say "exposure"
for d in faced mqfwd s3put; do
    line=$(systemd-analyze security $d.service --no-pager | tail -n 1)
    echo "$line"
    expect "$d at most 2.0" awk -v l="$line" 'BEGIN { sub(/.*: /, "", l); exit !(l + 0 > 0 && l + 0 <= 2.0) }'
done

say "mosquitto away for mqfwd and back"
kill "$BROKER_1883"
sleep 3
systemctl show mqfwd -P StatusText
mosquitto -c /tmp/broker-1883.conf >/dev/null 2>&1 &
sleep 8
systemctl show mqfwd -P StatusText

say "uninstall"
t0=$(now_ms)
/mnt/host/src/etc/install.sh uninstall
echo "took $(($(now_ms) - t0)) ms"
expect "edited s3put.toml is kept" test -f /etc/edge/s3put.toml
expect "edited faced.toml is kept" test -f /etc/edge/faced.toml
expect "unedited mqfwd.toml is gone" test ! -e /etc/edge/mqfwd.toml
for d in faced mqfwd s3put; do
    expect "$d binary is gone" test ! -e /usr/bin/$d
    expect "$d is not running" test -z "$(pgrep -x $d)"
done
find /usr /etc -path '*edge*' -newer "$HOST/root.tar" 2>/dev/null | grep -vE '/(proc|sys)/' | head
ls -l /var/lib/edge

say "logs with a warning"
for d in faced mqfwd s3put; do journalctl -u $d -p warning -o cat --no-pager | sort | uniq -c | sort -rn | head -n 8; done
journalctl -u mqfwd -o cat --no-pager >/mnt/out/mqfwd.journal
journalctl -u s3put -o cat --no-pager >/mnt/out/s3put.journal
journalctl -u faced -o cat --no-pager >/mnt/out/faced.journal
say "failed expectations: $FAILED"
exit "$((FAILED > 0))"
