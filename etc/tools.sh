#!/bin/sh
# Builds what the tests and the demo need and no distribution has, once, into target/tools (or $EDGE_TOOLS).
#
#   etc/tools.sh s3s moto        s3s-fs built from its Rust crate (about 4 minutes), moto[server] in a Python venv
#   etc/tools.sh arm             a Python venv with what tests/sorter_arm.py draws and talks with
#   etc/tools.sh onnx            the onnx package in a Python venv, for tests/sorter_models.py
#   etc/tools.sh watchexec       watchexec from its Rust crate (about 3 minutes), for `make bench`
#   etc/tools.sh deny            cargo-deny, for `make check` (about 5 minutes), unless cargo has it already
#
# s3s-fs checks SigV4 and keeps objects in a folder; moto answers NoSuchBucket and checks digests.
# With CI=1 a failure here is an error; otherwise the tests that need a tool say so and are skipped.
set -eu
cd "$(dirname "$0")/.."
TOOLS=${EDGE_TOOLS:-$PWD/target/tools}
S3S_VERSION=0.14.1
WATCHEXEC_VERSION=2.3.2
PATH="$HOME/.cargo/bin:$PATH"
mkdir -p "$TOOLS"

s3s() {
    [ ! -x "$TOOLS/bin/s3s-fs" ] || return 0
    echo "tools: building s3s-fs $S3S_VERSION (once, some minutes)" >&2
    # Newer ones want a newer rustc than the workspace does.
    CARGO_TARGET_DIR="$TOOLS/build" cargo install -q s3s-fs --version "$S3S_VERSION" --locked \
        --features binary --root "$TOOLS"
    rm -rf "$TOOLS/build"
}

watchexec() {
    [ ! -x "$TOOLS/bin/watchexec" ] || return 0
    echo "tools: building watchexec $WATCHEXEC_VERSION (once, some minutes)" >&2
    # Its own release profile optimises over all crates at once, which takes four times as long and changes nothing
    # that a save could notice.
    CARGO_TARGET_DIR="$TOOLS/build" CARGO_PROFILE_RELEASE_LTO=false CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install -q watchexec-cli --version "$WATCHEXEC_VERSION" --locked --root "$TOOLS"
    rm -rf "$TOOLS/build"
}

moto() {
    [ ! -x "$TOOLS/moto/bin/moto_server" ] || return 0
    echo "tools: installing moto[server] into a venv (once)" >&2
    rm -rf "$TOOLS/moto"
    python3 -m venv "$TOOLS/moto"
    "$TOOLS/moto/bin/pip" install -q --disable-pip-version-check 'moto[server]>=5,<6'
}

arm() {
    [ ! -e "$TOOLS/arm/done" ] || return 0
    echo "tools: installing websocket-client, numpy and Pillow into a venv (once)" >&2
    rm -rf "$TOOLS/arm"
    python3 -m venv "$TOOLS/arm"
    "$TOOLS/arm/bin/pip" install -q --disable-pip-version-check 'websocket-client>=1.6,<2' numpy 'Pillow>=9'
    : >"$TOOLS/arm/done"
}

onnx() {
    [ ! -e "$TOOLS/onnx/done" ] || return 0
    echo "tools: installing onnx into a venv (once)" >&2
    rm -rf "$TOOLS/onnx"
    python3 -m venv "$TOOLS/onnx"
    "$TOOLS/onnx/bin/pip" install -q --disable-pip-version-check 'onnx>=1.14,<2' numpy
    : >"$TOOLS/onnx/done"
}

deny() {
    ! cargo deny --version >/dev/null 2>&1 || return 0
    [ ! -x "$TOOLS/bin/cargo-deny" ] || return 0
    echo "tools: building cargo-deny (once, some minutes)" >&2
    CARGO_TARGET_DIR="$TOOLS/build" cargo install -q cargo-deny --locked --root "$TOOLS"
    rm -rf "$TOOLS/build"
}

status=0
failed() { status=1; echo "tools: $1 could not be made; see above" >&2; }
for tool in "$@"; do
    case $tool in
    s3s) s3s || failed s3s-fs ;;
    moto) moto || failed 'moto[server]' ;;
    arm) arm || failed 'the venv of sorter_arm.py' ;;
    onnx) onnx || failed 'the venv of sorter_models.py' ;;
    watchexec) watchexec || failed watchexec ;;
    deny) deny || failed cargo-deny ;;
    *) echo "tools: no such tool: $tool (s3s, moto, arm, onnx, watchexec, deny)" >&2; exit 64 ;;
    esac
done
[ "${CI-}" = 1 ] || exit 0
exit $status
