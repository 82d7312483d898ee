#!/bin/sh
# Installs what building, testing or the demo needs, from the distribution's own packages.
#
#   etc/deps.sh build|test|demo|bench|check ...      BINS="mqfwd s3put" leaves OpenCV and GStreamer out;
#                                                    FEATURES=privacy: spyglassd needs OpenCV, too
#
# Debian 12 and Ubuntu 22.04 (and later). Asks dpkg first, so that a run with everything in place costs
# a moment, needs no root and no network. Rust comes through rustup, and only when there is no cargo
# or it is older than the workspace's rust-version.
set -eu
cd "$(dirname "$0")/.."
BINS=${BINS-faced mqfwd s3put sideloadd sideload otad depotd spyglassd sorterd}
NAME=deps

say() { printf '%s: %s\n' "$NAME" "$*" >&2; }
die() { say "$*"; exit 1; }

wants() { case " $BINS " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# libopencv-dev would bring 1 GB; these bring what is linked. The linker is shown the stitching library for all, and only
# sorterd links it.
opencv() {
    echo pkg-config g++ clang libclang-dev linux-libc-dev
    echo libopencv-core-dev libopencv-imgproc-dev libopencv-objdetect-dev libopencv-dnn-dev libopencv-stitching-dev opencv-data
}

packages() {
    case $1 in
    build)
        # ring and SQLite compile C; the rest of the pure daemons is Rust.
        echo gcc libc6-dev make git curl ca-certificates
        if wants faced; then
            opencv
            echo libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
            echo gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-libav
        fi
        wants sorterd && opencv
        if wants spyglassd; then
            echo pkg-config libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev libgstrtspserver-1.0-dev
            echo gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly
            case " ${FEATURES-} " in *" privacy "*) opencv ;; esac
        fi ;;
    test)
        # strace injects EIO into fdatasync and kills at a system call; systemd has systemd-analyze.
        echo mosquitto mosquitto-clients awscli ffmpeg strace systemd procps util-linux
        echo python3 python3-venv python3-pip python3-paho-mqtt shellcheck openssl curl minisign
        # The test suite compiles every crate, whatever BINS names.
        echo postgresql libgstrtspserver-1.0-dev mkvtoolnix chromium python3-botocore python3-numpy gstreamer1.0-tools
        wants faced && echo gstreamer1.0-tools gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly ;;
    demo) echo mosquitto ffmpeg python3 python3-venv python3-pip curl opencv-data unzip ;;
    bench)
        echo mosquitto rclone awscli iproute2 strace ffmpeg
        echo rsync openssh-client openssh-server openssl python3 python3-venv
        echo nginx-light wrk curl tar ;;
    check) echo shellcheck systemd ;;
    *) die "no such purpose: $1 (build, test, demo, bench, check)" ;;
    esac
    return 0
}

install_packages() {
    command -v dpkg-query >/dev/null || die "this is not Debian or Ubuntu: install by hand the equivalents of: $*"
    # 'ii' = installed; a name dpkg has never heard of prints nothing on stdout.
    have=" $(dpkg-query -W -f '${db:Status-Abbrev} ${binary:Package}\n' "$@" 2>/dev/null |
        sed -n 's/^ii *\([^: ]*\).*/\1/p' | tr '\n' ' ') "
    missing=
    for p in "$@"; do
        case "$have" in *" $p "*) ;; *) missing="$missing $p" ;; esac
    done
    [ -n "$missing" ] || return 0
    as_root=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "missing packages, and neither root nor sudo to install them:$missing"
        as_root=sudo
    fi
    say "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    case "$missing " in *" openssh-server "*)
        # The bench starts an sshd of its own on a free port; nobody asked for one on port 22.
        if command -v systemctl >/dev/null && $as_root systemctl mask ssh.service ssh.socket >/dev/null 2>&1; then
            say "ssh.service and ssh.socket are masked: 'systemctl unmask ssh.service' if you want them"
        fi ;;
    esac
    # The brokers of tests and demo are started by them on free ports; a freshly installed system
    # mosquitto is left as the distribution set it up.
    log=$(mktemp)
    apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1; }
    apt update || say "apt-get update failed; trying with the lists that are here"
    # shellcheck disable=SC2086  # a list of package names, to be split
    apt install --no-install-recommends $missing || { tail -n 20 "$log" >&2; die "apt-get could not install:$missing"; }
    rm -f "$log"
}

# True when version $1 is at least $2.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

install_rust() {
    want=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1)
    if command -v cargo >/dev/null; then
        have=$(cargo --version 2>/dev/null | cut -d' ' -f2)
        [ -n "$have" ] && at_least "$have" "$want" && return 0
        say "cargo ${have:-(broken)} is older than $want, which this workspace needs"
    fi
    if command -v rustup >/dev/null; then
        say "updating Rust through rustup"
        rustup toolchain install stable --profile minimal -c clippy -c rustfmt && rustup default stable && return 0
    fi
    say "installing Rust through rustup into ~/.cargo (https://rustup.rs)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y -q --no-modify-path --profile minimal -c clippy -c rustfmt ||
        die "rustup failed; install Rust >= $want by hand (https://rustup.rs) and run this again"
}

[ $# -gt 0 ] || die "usage: etc/deps.sh build|test|demo|bench|check ..."
PATH="$HOME/.cargo/bin:$PATH"
list=
for purpose in "$@"; do list="$list $(packages "$purpose" | tr '\n' ' ')"; done
# shellcheck disable=SC2046,SC2086  # names without blanks, to be split
set -- $(printf '%s\n' $list | sort -u)
install_packages "$@"
install_rust
