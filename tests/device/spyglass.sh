#!/bin/bash
# In the virtual device: spyglassd's installed unit under systemd, fed by the installed Python client, watched with curl.
# Run by `run.sh spyglass`. Prints what it sees; ends with the number of expectations that failed.
# Functions are called by expect.
# shellcheck disable=SC2317
set -u
# shellcheck source=tests/device/common.sh disable=SC1091
. /mnt/host/common.sh
ctl() { curl -s --max-time 5 --unix-socket /run/edge/spyglassd/ctl.sock "http://x/$1"; }
is_jpeg() { [ "$(head -c 2 "$1" | od -An -tx1 | tr -d ' ')" = ffd8 ]; }
picture() { curl -s --max-time 20 -o "$1" http://127.0.0.1:8555/gate.jpg; }
state() { ctl status | tr -d '\n' | sed -n 's/.*"name": "gate".*"state": "\([A-Z]*\)".*/\1/p'; }
wait_state() { for _ in $(seq 300); do [ "$(state)" = "$1" ] && return 0; sleep 0.2; done; return 1; }

say "install"
install_root
expect "spyglassd --check of the installed file" spyglassd --check
expect "the unit is in order" systemd-analyze verify spyglassd.service
systemd-analyze security --no-pager spyglassd.service | tail -n 1

say "start"
systemctl start spyglassd
echo "start exits $?; $(systemctl show spyglassd -P StatusText)"
expect "spyglassd is active" systemctl is-active -q spyglassd
expect "it runs as its own user" has "$(ps -o user= -p "$(main_pid spyglassd)")" edge-spy
stat -c '%a %U %G %n' /run/edge/spyglassd/frames.sock

# An application with a user of its own. With the group edge it may stream, without it may not.
useradd -r -G edge app
useradd -r other
cat >/tmp/app.py <<'PY'
import sys, time
from edge_spyglass import SpyGlass
width, height = 320, 180
spyglass = SpyGlass("gate")
spyglass.start_streaming(10, width, height)
begun, n = time.monotonic(), 0
while time.monotonic() - begun < float(sys.argv[1]):
    row = bytes((x * 2 + n) & 255 for x in range(width * 3))
    spyglass.put(row * height, width, height)
    n += 1
    time.sleep(0.1)
print("sent", spyglass.sent, "dropped", spyglass.dropped, spyglass.state, spyglass.error, flush=True)
PY
say "frames"
runuser -u other -- python3 /tmp/app.py 3 >/tmp/other.log 2>&1
cat /tmp/other.log
expect "a user outside the group edge is refused" has "$(cat /tmp/other.log)" "sent 0"
runuser -u app -- python3 /tmp/app.py 120 >/tmp/app.log 2>&1 &
APP=$!
expect "the stream waits for a viewer" wait_state WAITING
picture /tmp/first.jpg
expect "a picture" is_jpeg /tmp/first.jpg
sleep 1
picture /tmp/second.jpg
expect "another one, since the application moves it" no cmp -s /tmp/first.jpg /tmp/second.jpg
curl -s --max-time 8 -o /tmp/live.mp4 http://127.0.0.1:8555/gate.mp4
expect "live H.264 ($(stat -c %s /tmp/live.mp4) bytes in 8 s)" grep -qc moof /tmp/live.mp4
exec 3<>/dev/tcp/127.0.0.1/8554
printf 'DESCRIBE rtsp://127.0.0.1:8554/gate RTSP/1.0\r\nCSeq: 1\r\n\r\n' >&3
timeout 15 cat <&3 >/tmp/sdp
exec 3>&-
expect "RTSP describes it" has "$(cat /tmp/sdp)" H264
systemctl status spyglassd --no-pager -n 0 | grep -E 'Active|Status|Memory|Tasks'

say "restart"
systemctl restart spyglassd
expect "spyglassd is active again" systemctl is-active -q spyglassd
expect "the application is back by itself" wait_state WAITING
picture /tmp/third.jpg
expect "a picture after the restart" is_jpeg /tmp/third.jpg
say "crash"
kill -9 "$(main_pid spyglassd)"
sleep 1
expect "systemd has started it again" becomes_active spyglassd
expect "the application is back once more" wait_state WAITING
picture /tmp/fourth.jpg
expect "a picture after the crash" is_jpeg /tmp/fourth.jpg

say "a wrong file"
cp /etc/edge/spyglassd.toml /tmp/good.toml
printf '\n[rtsp]\nlisten = "0.0.0.0:8554"\n' >>/etc/edge/spyglassd.toml
systemctl reload spyglassd
sleep 1
expect "a reload with a wrong file keeps the old one" systemctl is-active -q spyglassd
systemctl restart spyglassd
sleep 3
expect "a start with it ends, once" has "$(systemctl show spyglassd -P ExecMainStatus)" 78
expect "and is not tried again" systemctl is-failed -q spyglassd
cp /tmp/good.toml /etc/edge/spyglassd.toml
systemctl start spyglassd
expect "with the right one it runs" systemctl is-active -q spyglassd
kill $APP
wait $APP
systemctl stop spyglassd
expect "the sockets are gone" no test -e /run/edge/spyglassd/frames.sock

say "its log"
journalctl -u spyglassd --no-pager -o cat | tail -n 40
expect "nothing panicked" no sh -c 'journalctl -u spyglassd --no-pager -o cat | grep -q "panicked at"'
cp /tmp/*.jpg /mnt/out/ 2>/dev/null
say "$FAILED expectations failed"
exit "$FAILED"
