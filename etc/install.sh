#!/bin/sh
# Puts the daemons where the system expects them, and takes them away again.
#
#   etc/install.sh install|uninstall       usually through `make install` and `make uninstall`
#
#   DESTDIR=     staging folder put before every path (then systemd is left alone)
#   PREFIX=/usr  binaries in PREFIX/bin, units in PREFIX/lib/systemd/system
#   BINS=        which programs: "faced mqfwd s3put sideloadd sideload otad depotd spyglassd sorterd"
#   BUILT=       folder with the built binaries: target/release
#   PURGE=1      uninstall also removes edited configuration
#
# Configuration is treated as dpkg treats it: a file that was edited is never overwritten; what this
# version would have installed is put beside it as .new. PREFIX/share/edge/manifest records every
# installed file with its sha256, which is how "edited" is told from "old".
set -eu
cd "$(dirname "$0")/.."
DESTDIR=${DESTDIR-}; PREFIX=${PREFIX:-/usr}; BINS=${BINS:-faced mqfwd s3put sideloadd sideload otad depotd spyglassd sorterd}; BUILT=${BUILT:-target/release}
CONF=/etc/edge
SHARE=$PREFIX/share/edge
MANIFEST=$DESTDIR$SHARE/manifest
NEXT=$MANIFEST.next

say() { printf '%s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }
sum() { sha256sum "$1" | cut -d' ' -f1; }
recorded() { [ ! -f "$MANIFEST" ] || sed -n "s|^\([0-9a-f]*\) $1\$|\1|p" "$MANIFEST" | tail -n 1; }

# record SUM PATH: replaces the path's line, so that installing twice leaves one.
record() {
    { [ ! -f "$MANIFEST" ] || grep -v " $2\$" "$MANIFEST" || :; printf '%s %s\n' "$1" "$2"; } >"$NEXT"
    mv "$NEXT" "$MANIFEST"
}

# put MODE SOURCE PATH: written beside and renamed, so that a running daemon keeps its old binary whole.
put() {
    mkdir -p "$DESTDIR$(dirname "$3")"
    install -m "$1" "$2" "$DESTDIR$3.edge-tmp"
    mv -f "$DESTDIR$3.edge-tmp" "$DESTDIR$3"
    record "$(sum "$DESTDIR$3")" "$3"
}

# unit SOURCE PATH: the units say /usr/bin; another PREFIX is written in.
unit() {
    sed "s|/usr/bin/|$PREFIX/bin/|g" "$1" >"$NEXT.unit"
    put 644 "$NEXT.unit" "$2"
    rm -f "$NEXT.unit"
}

conffile() {
    new=$1; path=$2; there=$DESTDIR$path
    shipped=$(sum "$new"); before=$(recorded "$path")
    mkdir -p "$(dirname "$there")"
    if [ ! -e "$there" ] || [ "$(sum "$there")" = "$before" ]; then
        install -m 644 "$new" "$there.edge-tmp"
        mv -f "$there.edge-tmp" "$there"
        rm -f "$there.new"
    elif [ "$(sum "$there")" != "$shipped" ] && [ "$before" != "$shipped" ]; then
        install -m 644 "$new" "$there.new"
        say "kept $path (edited here); this version's is $path.new"
    elif [ "$(sum "$there")" != "$shipped" ]; then
        say "kept $path (edited here)"
    fi
    record "$shipped" "$path"
}

do_install() {
    for b in $BINS; do
        [ -x "$BUILT/$b" ] || die "$BUILT/$b is not built; run: make build BINS=\"$BINS\""
    done
    mkdir -p "$DESTDIR$SHARE"
    for b in $BINS; do
        put 755 "$BUILT/$b" "$PREFIX/bin/$b"
        [ ! -f "etc/$b.toml" ] || conffile "etc/$b.toml" "$CONF/$b.toml"
        for kind in service socket; do
            [ ! -f "systemd/$b.$kind" ] || unit "systemd/$b.$kind" "$PREFIX/lib/systemd/system/$b.$kind"
        done
        # What belongs to one program beside its own unit, such as edge-otad-recover.service.
        for extra in systemd/edge-"$b"-*.service; do
            [ ! -f "$extra" ] || unit "$extra" "$PREFIX/lib/systemd/system/$(basename "$extra")"
        done
        [ ! -f "systemd/tmpfiles.d/$b.conf" ] ||
            put 644 "systemd/tmpfiles.d/$b.conf" "$PREFIX/lib/tmpfiles.d/edge-$b.conf"
        # What an application imports: where Python looks, and where a person finds it who copies it into a container.
        for module in bins/"$b"/python/*.py; do
            [ -f "$module" ] || continue
            put 644 "$module" "$PREFIX/lib/python3/dist-packages/$(basename "$module")"
            put 644 "$module" "$SHARE/python/$(basename "$module")"
        done
    done
    conffile etc/device.toml "$CONF/device.toml"
    for target in systemd/*.target; do
        unit "$target" "$PREFIX/lib/systemd/system/$(basename "$target")"
    done
    put 644 systemd/sysusers.d/edge.conf "$PREFIX/lib/sysusers.d/edge.conf"
    put 644 systemd/tmpfiles.d/edge.conf "$PREFIX/lib/tmpfiles.d/edge.conf"
    put 755 etc/nx_launcher.sh "$PREFIX/bin/nx_launcher.sh"
    put 755 etc/nx_stopper.sh "$PREFIX/bin/nx_stopper.sh"
    [ -z "$DESTDIR" ] || return 0
    command -v systemd-sysusers >/dev/null && systemd-sysusers "$PREFIX/lib/sysusers.d/edge.conf"
    command -v systemd-tmpfiles >/dev/null && systemd-tmpfiles --create "$PREFIX"/lib/tmpfiles.d/edge*.conf
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    say "installed: $BINS"
    units=
    for b in $BINS; do [ ! -f "systemd/$b.service" ] || units="$units $b"; done
    [ -z "$units" ] || say "next: edit $CONF/*.toml, then: systemctl start$units   (or: nx_launcher.sh)"
}

# prune PATH: removes the folder and its parents as far as they are empty, never DESTDIR itself.
prune() { (cd "${DESTDIR:-/}" && rmdir -p "./${1#/}" 2>/dev/null) || :; }

# Everything the manifest names, except configuration that was edited.
do_uninstall() {
    [ -f "$MANIFEST" ] || die "nothing installed under $DESTDIR$PREFIX ($MANIFEST is not there)"
    if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
        for b in $BINS; do
            systemctl disable --now --quiet "$b.socket" 2>/dev/null || :
            systemctl disable --now --quiet "$b.service" 2>/dev/null || :
        done
    fi
    while read -r was path; do
        there=$DESTDIR$path
        case $path in
        "$CONF"/*)
            rm -f "$there.new"
            if [ -e "$there" ] && [ "$(sum "$there")" != "$was" ] && [ "${PURGE-}" != 1 ]; then
                say "kept $path (edited here)"
                continue
            fi ;;
        esac
        rm -f "$there"
        # Folders that only this install filled go too; a shared one is not empty and stays.
        prune "$(dirname "$path")"
    done <"$MANIFEST"
    rm -f "$MANIFEST"
    prune "$SHARE"
    [ -n "$DESTDIR" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
    [ -n "$DESTDIR" ] || say "state in /var/lib/edge and the users edge-* are kept"
}

case ${1-} in
install) do_install ;;
uninstall) do_uninstall ;;
*) die "usage: etc/install.sh install|uninstall" ;;
esac
