# shellcheck shell=bash
# In the virtual device, sourced by ota.sh and ota_powercut.sh: depotd and otad as installed, two apps with units of
# their own, and a way to publish.
#
# `ticker` and `board` are scripts that say their version and go on; the units are as ARCHITECTURE and
# edge-apps.target ask for.
HOST=/mnt/host
STATE=/var/lib/edge/otad

# shellcheck disable=SC2317  # called where this is sourced
ota_install() { # STABLE_S
    ip link set lo up
    tar -C / -xf $HOST/root.tar
    systemd-sysusers
    systemd-tmpfiles --create /usr/lib/tmpfiles.d/edge.conf /usr/lib/tmpfiles.d/edge-otad.conf
    mkdir -p /srv/publisher
    (cd /srv/publisher && depotd keygen --out release)
    install -m 0644 /srv/publisher/release.pub /etc/edge/otad/
    install -m 0644 /srv/publisher/release.pub /etc/edge/
    # A release is seen by the very next poll.
    sed -i 's/^listen = .*/listen = "127.0.0.1:8080"/; s/^check-ms = .*/check-ms = 0/; s/^public-keys = .*/public-keys = ["release.pub"]/' \
        /etc/edge/depotd.toml
    printf 'id = "cam-1"\n[attributes]\ncpu-arch = "armv8"\n"attr.gamer" = "prod"\n' >/etc/edge/device.toml
    cat >/etc/edge/otad.toml <<T
server = "http://127.0.0.1:8080"
public-keys = ["/etc/edge/otad/release.pub"]
[health]
active-within-s = 20
stable-s = $1
[app.ticker]
unit = "ticker.service"
post-install = ["/bin/sh", "-c", "env | grep ^OTAD_ >$STATE/hook.env; id -u >>$STATE/hook.env"]
[app.board]
kind = "tar"
unit = "board.service"
T
    local app
    for app in ticker board; do
        cat >/etc/systemd/system/$app.service <<T
[Unit]
Description=The app $app, installed by otad
PartOf=edge-apps.target
After=edge-otad-recover.service
[Service]
ExecStart=$STATE/current/$app/$app
Restart=on-failure
RestartSec=0.3
DynamicUser=yes
[Install]
WantedBy=edge-apps.target
T
    done
    systemctl daemon-reload
    systemctl -q enable edge-otad-recover.service edge-apps.target ticker.service board.service
    systemctl start depotd
}

# publish VERSION [WORD]: both apps; WORD breaks the ticker: "broken" ends at once, "fragile" after two seconds.
# shellcheck disable=SC2317
ota_publish() {
    local dir=/srv/publisher
    {
        printf '#!/bin/sh\necho "ticker %s runs"\n' "$1"
        case ${2-} in
        broken) echo 'exit 1' ;;
        fragile) echo 'sleep 2; exit 1' ;;
        esac
        echo 'exec sleep infinity'
    } >$dir/ticker
    ota_release ticker "$1"
    [ "${3-}" = alone ] || ota_publish_board "$1"
}
# shellcheck disable=SC2317
ota_publish_board() {
    local dir=/srv/publisher
    mkdir -p $dir/board.d/share
    printf '#!/bin/sh\necho "board %s runs"\nexec sleep infinity\n' "$1" >$dir/board.d/board
    echo "$1" >$dir/board.d/share/version
    chmod 755 $dir/board.d/board
    tar -C $dir/board.d -czf $dir/board .
    ota_release board "$1"
}
# shellcheck disable=SC2317
ota_release() {
    # The commands of depotd write as its user.
    (cd /srv/publisher && chown -R edge-depotd . && runuser -u edge-depotd -- depotd -c /etc/edge/depotd.toml publish \
        "$1" --app "$1" --version "$2" --env prod --attr gamer --key release.key >/dev/null)
}
# The version that is installed, as the files of both apps say it: "7 7".
# shellcheck disable=SC2317
ota_files() {
    echo "$(sed -n 's/^echo "ticker \(.*\) runs"$/\1/p' $STATE/current/ticker/ticker)" \
        "$(cat $STATE/current/board/share/version)"
}
# The version that runs, as the units' processes said it, the newest line of each.
# shellcheck disable=SC2317
ota_running() {
    local app
    for app in ticker board; do
        journalctl -b -u $app -o cat --no-pager | sed -n "s/^$app \(.*\) runs\$/\1/p" | tail -n 1
    done | tr '\n' ' ' | sed 's/ $//'
}
