#!/bin/sh
# Runs the tests (or another command) in a fresh, minimal Debian 12: does it work from nothing?
#
#   sudo tests/chroot-check.sh [command ...]         default: .ci/run
#
#   SUITE=bookworm   another release of the archive
#   RUST=host        bring the host's Rust toolchain and crate cache along, where rustup can't be reached
#   TOOLS=host       bring target/tools (s3s-fs, moto) along, to save their building
#   ROOT=dir         keep the root there and use it again (else a temporary one, removed at the end)
#
# The host's apt and pip configuration, certificates and name resolution are taken along. Not part of
# `make test`: it needs root, mmdebstrap and half an hour.
set -eu
cd "$(dirname "$0")/.."
HERE=$PWD
SUITE=${SUITE:-bookworm}
[ "$(id -u)" = 0 ] || { echo "chroot-check: needs root" >&2; exit 77; }
command -v mmdebstrap >/dev/null || { echo "chroot-check: mmdebstrap is not installed" >&2; exit 77; }
[ $# -gt 0 ] || set -- .ci/run

KEEP=${ROOT-}
ROOT=${ROOT:-$(mktemp -d)}
# shellcheck disable=SC2317  # called by the trap
clean() {
    # Lazily: something in there may still be ending.
    for m in dev/pts dev proc sys; do umount -l "$ROOT/$m" 2>/dev/null || :; done
    # Never follow a mount that is still there into the host.
    [ -n "$KEEP" ] || rm -rf --one-file-system "$ROOT"
}
trap clean EXIT
trap 'exit 130' INT TERM

if [ ! -d "$ROOT/etc/apt" ]; then
    echo "chroot-check: making a minimal $SUITE in $ROOT"
    mmdebstrap -q --variant=minbase --include=ca-certificates,make,git "$SUITE" "$ROOT"
fi
for path in etc/resolv.conf etc/hosts etc/pip.conf etc/ssl/certs etc/apt/apt.conf.d/99artifact-registry; do
    [ -e "/$path" ] || continue
    mkdir -p "$ROOT/$(dirname "$path")"
    cp -aLf "/$path" "$ROOT/$(dirname "$path")/" 2>/dev/null || :
done
mount -t proc proc "$ROOT/proc"
mount --rbind /sys "$ROOT/sys" && mount --make-rslave "$ROOT/sys"
mount --bind /dev "$ROOT/dev"
mount --bind /dev/pts "$ROOT/dev/pts"

mkdir -p "$ROOT/src"
# What a clone would hold, with what is not committed yet; new to cargo, in a root that is used again.
git ls-files -co --exclude-standard | while read -r file; do [ ! -e "$file" ] || echo "$file"; done |
    tar -cf - -T - | tar -xmf - -C "$ROOT/src"
(cd "$ROOT/src" && git init -q . && git add -A) >/dev/null 2>&1 || :
INNER=$ROOT/root
if [ "${RUST-}" = host ]; then
    mkdir -p "$INNER/.cargo/bin" "$INNER/.rustup/toolchains"
    toolchain=$(dirname "$(dirname "$(rustup which cargo)")")
    [ -d "$INNER/.rustup/toolchains/stable" ] || cp -a "$toolchain" "$INNER/.rustup/toolchains/stable"
    for tool in cargo rustc rustdoc rustfmt cargo-fmt cargo-clippy clippy-driver; do
        ln -sf "../../.rustup/toolchains/stable/bin/$tool" "$INNER/.cargo/bin/$tool"
    done
    [ -d "$INNER/.cargo/registry" ] || cp -a "$HOME/.cargo/registry" "$INNER/.cargo/" 2>/dev/null || :
    [ ! -f "$HOME/.cargo/config.toml" ] || cp "$HOME/.cargo/config.toml" "$INNER/.cargo/"
fi
if [ "${TOOLS-}" = host ] && [ -d "${EDGE_TOOLS:-$HERE/target/tools}" ]; then
    mkdir -p "$ROOT/src/target/tools"
    # The venv of moto names its own path and Python, so it is made anew.
    cp -a "${EDGE_TOOLS:-$HERE/target/tools}/bin" "$ROOT/src/target/tools/"
fi

start=$(date +%s)
status=0
# shellcheck disable=SC2046  # the pip settings are words without blanks
chroot "$ROOT" /usr/bin/env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    $(env | grep -E '^PIP_(CERT|DEFAULT_TIMEOUT|INDEX_URL)=' || :) \
    sh -c 'cd /src && exec "$@"' _ "$@" || status=$?
echo "chroot-check: '$*' ended with $status after $(($(date +%s) - start)) s"
exit $status
