#!/bin/bash
# Tests that need a whole device: the installed units under systemd, and power cuts. Not part of `make test`.
#
#   VM=path/to/vm IMG=path/to/device.img tests/device/run.sh system
#   VM=… IMG=… tests/device/run.sh sideload
#   VM=… IMG=… tests/device/run.sh ota
#   VM=… IMG=… tests/device/run.sh spyglass
#   VM=… IMG=… tests/device/run.sh sorter
#   VM=… IMG=… tests/device/run.sh powercut mqfwd|s3put|sideload|ota [options of `vm powercut`, such as -n 6 --seed 3 --hostile]
#
# VM is a tool with the verbs `run IMG SCRIPT DIR` (a throw-away boot with DIR at /mnt/host, and DIR/out, written through,
# at /mnt/out) and `powercut IMG SCRIPT DIR` (boot, cut, boot again). IMG is a Debian image with mosquitto, mosquitto-clients,
# curl, python3-minimal (python3 for `spyglass` and `sorter`), v4l-utils and the run-time packages of the daemons. DEVICE_DIR is the folder
# shared with the guest (default: a new one in TMPDIR, kept). PICTURE is an image file with a face, for `system`. Needs release
# binaries (make build).
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${VM:?the tool for virtual devices}" "${IMG:?the image of the device}"
DIR=${DEVICE_DIR:-$(mktemp -d)}
mkdir -p "$DIR/out"
ROOT=$(mktemp -d)
trap 'rm -rf "$ROOT"' EXIT
verb=${1:-}
shift || :
# BUILT=target/debug is good enough for these.
if [ "$verb" = sideload ] || [ "$verb ${1-}" = "powercut sideload" ]; then
    BINS="sideloadd sideload" DESTDIR="$ROOT" PREFIX=/usr etc/install.sh install
elif [ "$verb" = ota ] || [ "$verb ${1-}" = "powercut ota" ]; then
    BINS="otad depotd" DESTDIR="$ROOT" PREFIX=/usr etc/install.sh install
elif [ "$verb" = spyglass ]; then
    BINS=spyglassd DESTDIR="$ROOT" PREFIX=/usr etc/install.sh install
elif [ "$verb" = sorter ]; then
    BINS=sorterd DESTDIR="$ROOT" PREFIX=/usr etc/install.sh install
else
    make --no-print-directory install DESTDIR="$ROOT" PREFIX=/usr
fi
# Without ".": the mode of the scratch folder would become that of the guest's "/".
tar -C "$ROOT" --owner=0 --group=0 -cf "$DIR/root.tar" etc usr
cp tests/device/*.py tests/device/*.sh "$DIR/"
echo "results: $DIR/out"

case $verb in
system)
    mkdir -p "$DIR/src"
    cp -r etc systemd "$DIR/src/"
    cp "${PICTURE:?a picture with a face}" "$DIR/"
    "$VM" run -t 600 "$IMG" tests/device/system.sh "$DIR"
    ;;
sideload)
    "$VM" run -t 400 "$IMG" tests/device/sideload.sh "$DIR"
    ;;
ota)
    "$VM" run -t 900 "$IMG" tests/device/ota.sh "$DIR"
    ;;
spyglass)
    "$VM" run -t 600 "$IMG" tests/device/spyglass.sh "$DIR"
    ;;
sorter)
    # The guest has no library that draws: etc/tools.sh arm is the host's.
    mkdir -p "$DIR/drawn"
    "${EDGE_TOOLS:-target/tools}/arm/bin/python" tests/sorter_arm.py draw sort "$DIR/drawn" >"$DIR/drawn/scene.json"
    "$VM" run -t 900 "$IMG" tests/device/sorter.sh "$DIR"
    ;;
powercut)
    daemon=${1:?mqfwd, s3put, sideload or ota}
    shift
    if [ "$daemon" = sideload ]; then
        cp tests/device/sideload_powercut.sh "$DIR/check.sh"
        "$VM" powercut -t 240 --arm --min 0.5 --max 25 "$@" "$IMG" tests/device/sideload_powercut.sh "$DIR"
        exit
    fi
    if [ "$daemon" = ota ]; then
        cp tests/device/ota_powercut.sh "$DIR/check.sh"
        "$VM" powercut -t 300 --arm --min 0.5 --max 25 "$@" "$IMG" tests/device/ota_powercut.sh "$DIR"
        exit
    fi
    cp tests/device/powercut.sh "$DIR/check.sh"
    "$VM" powercut -t 240 --arm --min 0.5 --max 8 -e DAEMON="$daemon" "$@" "$IMG" tests/device/powercut.sh "$DIR"
    ;;
*)
    sed -n '2,15s/^# \{0,1\}//p' "$0"
    exit 64
    ;;
esac
