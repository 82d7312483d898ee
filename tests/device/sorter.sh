#!/bin/bash
# In the virtual device: sorterd's installed unit under systemd, played against by an arm (sorter_client.py) with drawn
# pictures. Run by `run.sh sorter`. Prints what it sees; ends with the number of expectations that failed.
# Functions are called by expect.
# shellcheck disable=SC2317
set -u
# shellcheck source=tests/device/common.sh disable=SC1091
. /mnt/host/common.sh
DRAWN=$HOST/drawn
ctl() { curl -s --max-time 5 --unix-socket /run/edge/sorterd/ctl.sock "http://x/$1"; }
arm() { python3 "$HOST/sorter_client.py" "$@"; }
page() { curl -s --max-time 20 -f -o "$2" "http://127.0.0.1:6000$1"; }
is_jpeg() { [ "$(head -c 2 "$1" | od -An -tx1 | tr -d ' ')" = ffd8 ]; }
log_has() { journalctl -u sorterd --no-pager -o cat | grep -q "$1"; }
restarts() { systemctl show sorterd -P NRestarts; }

say "install"
ip link set lo up
install_root
id edge-sorterd
expect "sorterd --check of the installed file" sorterd --check
expect "the unit is in order" systemd-analyze verify sorterd.service
expect "its exposure is 2.0 at most" exposed_at_most sorterd.service 2.0
tail -n 1 /tmp/expect.out

say "start"
t0=$(date +%s%N)
systemctl start sorterd
echo "start exits $?, ready after $((($(date +%s%N) - t0) / 1000000)) ms; $(systemctl show sorterd -P StatusText)"
expect "sorterd is active" systemctl is-active -q sorterd
expect "it runs as its own user" has "$(ps -o user= -p "$(main_pid sorterd)")" edge-sor
expect "health" page / /tmp/health
cat /tmp/health
stat -c '%a %U %G %n' /run/edge/sorterd/ctl.sock /var/lib/edge/sorterd

say "a session"
expect "all pictures are taken" arm send "$DRAWN" s1
expect "the commands are those that were drawn" arm ask "$DRAWN" s1 /tmp/s1.json
tail -n 1 /tmp/expect.out
expect "its page" page /sessions/arm1/s1 /tmp/page
expect "its data" page /api/sessions/arm1/s1 /tmp/data
expect "a panorama" soon page /pictures/arm1/s1/original_stitch.jpg /tmp/panorama.jpg
expect "which is a JPEG" is_jpeg /tmp/panorama.jpg
expect "/status" has "$(ctl status)" '"commands": *1'
systemctl status sorterd --no-pager -n 0 | grep -E 'Active|Status|Memory|Tasks'

say "reload"
pid=$(main_pid sorterd)
expect "a reload" systemctl reload sorterd
expect "health after it" soon page / /tmp/health
expect "it is the same process" same "$(main_pid sorterd)" "$pid"
expect "the same commands" arm ask "$DRAWN" s1 /tmp/again.json
expect "to the last digit" cmp /tmp/s1.json /tmp/again.json

say "crash"
expect "a part of another session" arm send "$DRAWN" s2 0 3
before=$(restarts)
kill -9 "$(main_pid sorterd)"
sleep 1
expect "systemd has started it again" becomes_active sorterd
expect "by one restart" same "$(restarts)" $((before + 1))
expect "the rest of the session" arm send "$DRAWN" s2 3
expect "the commands of all of it" arm ask "$DRAWN" s2 /tmp/s2.json
expect "are those of a session without a crash" cmp /tmp/s1.json /tmp/s2.json

say "a wrong file"
cp /etc/edge/sorterd.toml /tmp/good.toml
sed -i '1i wrong-key = 1' /etc/edge/sorterd.toml
systemctl reload sorterd
sleep 1
expect "a reload with it keeps the old one" page / /tmp/health
expect "and says so" log_has "the old configuration stays in force"
systemctl restart sorterd
sleep 3
expect "a start with it ends with 78" same "$(systemctl show sorterd -P ExecMainStatus)" 78
expect "and is not tried again" systemctl is-failed -q sorterd
expect "the log has file, line and key" log_has "/etc/edge/sorterd.toml:1:.*wrong-key"
journalctl -u sorterd --no-pager -o cat | grep -m 1 "sorterd.toml:1:"
cp /tmp/good.toml /etc/edge/sorterd.toml
systemctl reset-failed sorterd
systemctl start sorterd
expect "with the right one it runs" systemctl is-active -q sorterd
expect "and knows the session" arm ask "$DRAWN" s1 /tmp/again.json
expect "as it was" cmp /tmp/s1.json /tmp/again.json

say "stop"
t0=$(date +%s%N)
systemctl stop sorterd
echo "stop took $((($(date +%s%N) - t0) / 1000000)) ms"
expect "it ended well" same "$(systemctl show sorterd -P Result)" success
expect "no process is left" same "$(pgrep -u edge-sorterd | wc -l)" 0

say "its log"
journalctl -u sorterd --no-pager -o cat | tail -n 40
expect "nothing panicked" no log_has "panicked at"
cp /tmp/panorama.jpg /tmp/*.json /mnt/out/ 2>/dev/null
say "$FAILED expectations failed"
exit "$FAILED"
