#!/bin/bash
# In the virtual device: sideloadd as installed, under systemd, with its own command line. Run by `run.sh sideload`.
# Prints what it sees, with the uptime in brackets; ends with the number of expectations that failed.
set -u
# shellcheck source=tests/device/common.sh disable=SC1091
. /mnt/host/common.sh
# shellcheck disable=SC2317
shows() { sideload logs | grep -q "$1"; }
# shellcheck disable=SC2317
is_down() { [ "$(systemctl is-active sideloadd)" = inactive ]; }
# The processes of the application: all of the unit's but sideloadd.
app_pids() { grep -vx "$(main_pid sideloadd)" "/sys/fs/cgroup$(systemctl show sideloadd -P ControlGroup)/cgroup.procs" 2>/dev/null; }
# shellcheck disable=SC2317
no_app() { [ -z "$(app_pids)" ]; }

say "install"
ip link set lo up
install_root
[ ! -f /usr/lib/tmpfiles.d/edge-sideloadd.conf ] || systemd-tmpfiles --create /usr/lib/tmpfiles.d/edge-sideloadd.conf
ROOT=/opt/aws/panorama/storage/sideloaded
id edge-sideloadd
ls -ld $ROOT

say "without keys it does not start, and says why"
systemctl start sideloadd
expect "it ended with 78" same "$(systemctl show sideloadd -P ExecMainStatus)" 78
journalctl -u sideloadd -o cat --no-pager -n 7
systemctl reset-failed sideloadd
systemctl stop sideloadd

say "keys"
mkdir -p /srv/dev/src
cd /srv/dev || exit 1
expect "sideload keys" sideload keys
ls
expect "the folder for keys is there" same "$(stat -c %a:%U:%G /etc/edge/sideloadd)" 750:root:edge-sideloadd
for f in sideloading_server.cert.pem sideloading_server.key.pem sideloading_client.cert.pem; do
    install -m 0640 -g edge-sideloadd "$f" /etc/edge/sideloadd/
done
printf 'addr = "127.0.0.1"\nsrc-top = "src"\n' >sideload.toml
cat >src/main.py <<'P'
import os, signal, time
print("version 1 in", os.getcwd(), "as", os.getuid(), "secrets", [k for k in os.environ if k in ("NOTIFY_SOCKET", "LISTEN_FDS", "CREDENTIALS_DIRECTORY")])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
while True: time.sleep(1)
P
sed 's/version 1/version 2/' src/main.py >/tmp/main2.py

say "the service"
t0=$(date +%s%N)
expect "it starts" systemctl start sideloadd
systemctl is-active -q sideloadd || { journalctl -u sideloadd -o cat --no-pager -n 9; exit 1; }
echo "ready after $((($(date +%s%N) - t0) / 1000000)) ms: $(systemctl show sideloadd -P StatusText)"
expect "doctor finds that there is nothing to run" sh -c 'sideload doctor | grep -q "^fail  entry point"'
expect "sync" sideload sync
expect "doctor is content" sideload doctor
sideload doctor
expect "the file is the user's" same "$(stat -c %U $ROOT/main.py)" edge-sideloadd
expect "run-app" sideload run-app
expect "a line arrives" soon shows "version 1 in $ROOT as $(id -u edge-sideloadd) secrets \[\]"
expect "and in the journal" soon sh -c 'journalctl -u sideloadd -o cat | grep -q "version 1"'
expect "run-app twice is refused" no sideload run-app
echo "processes: $(app_pids | wc -l)"
expect "first process and orphan" same "$(app_pids | wc -l)" 2
t0=$(date +%s%N)
expect "kill-app" sideload kill-app
echo "kill-app of one that ignores TERM took $((($(date +%s%N) - t0) / 1000000)) ms"
expect "nothing of it is left" no_app
expect "killing nothing is refused" no sideload kill-app
cp /tmp/main2.py src/main.py
expect "sync and restart" sh -c 'sideload sync && sideload restart'
expect "the new version runs" soon shows "version 2"
sideload status
sideload list-files

say "kill -9 of sideloadd"
app=$(app_pids | head -n 1)
systemctl kill --kill-whom=main -s KILL sideloadd
expect "systemd starts it again" soon sh -c "systemctl is-active -q sideloadd && sideload status"
expect "by one restart" same "$(systemctl show sideloadd -P NRestarts)" 1
expect "the application went with it" test ! -e "/proc/$app"
expect "no process of it is left" no_app
expect "the tree is as it was" cmp /tmp/main2.py $ROOT/main.py
expect "nothing to do for a sync" sideload sync
expect "run-app again" sideload run-app
expect "it runs" soon shows "version 2"
expect "reload" systemctl reload sideloadd
sleep 1
expect "the application is left alone by a reload" same "$(app_pids | wc -l)" 2

say "stop"
t0=$(date +%s%N)
systemctl stop sideloadd
echo "stop took $((($(date +%s%N) - t0) / 1000000)) ms"
expect "no process is left" same "$(pgrep -u edge-sideloadd | wc -l)" 0
expect "it ended well" same "$(systemctl show sideloadd -P Result)" success

say "socket activation"
sed -i 's/^idle-exit-s = .*/idle-exit-s = 2/' /etc/edge/sideloadd.toml
expect "the socket" systemctl start sideloadd.socket
expect "nobody runs yet" is_down
expect "a client wakes it" sideload status
expect "it is active" systemctl is-active -q sideloadd
expect "run-app" sideload run-app
sleep 6
expect "it stays while the application runs" systemctl is-active -q sideloadd
expect "kill-app" sideload kill-app
expect "it goes when it is not needed" soon is_down
expect "it ended with 0" same "$(systemctl show sideloadd -P ExecMainStatus)" 0
expect "a client wakes it again" sideload list-files
systemctl stop sideloadd.socket sideloadd

say "production"
sed -i 's/^enable-sideloading = .*/enable-sideloading = false/; s/^run-app-immediately = .*/run-app-immediately = true/' /etc/edge/sideloadd.toml
mkdir -p /panorama
echo 'echo the installed one; exec sleep 1000' >/panorama/main.sh
expect "it starts" systemctl start sideloadd
expect "it runs the installed application" soon sh -c 'journalctl -u sideloadd -o cat | grep -q "the installed one"'
expect "nothing listens" no sh -c 'ss -ltn | grep -q :8123'
expect "a client finds nobody" no sideload status
systemctl stop sideloadd
systemd-analyze security sideloadd.service --no-pager | tail -n 1

say "logs with a warning"
journalctl -u sideloadd -p warning -o cat --no-pager | sort | uniq -c | sort -rn | head -n 12
journalctl -u sideloadd -o cat --no-pager >/mnt/out/sideloadd.journal
say "failed expectations: $FAILED"
exit "$((FAILED > 0))"
