#!/bin/sh
# Checks systemd units: `systemd-analyze verify` is silent, and `security` gives at most 2.0 (4.5 for those that run
# other people's programs).
#
#   tests/units.sh systemd/*.service systemd/*.socket systemd/*.target
#
# The units name /usr/bin/<daemon>, which need not be installed here: they are verified in a scratch
# root that has an empty program at every path they execute.
set -eu
# Tenths.
limit() { case $1 in sideloadd.service | otad.service) echo 45 ;; *) echo 20 ;; esac; }
ROOT=$(mktemp -d)
trap 'rm -rf "$ROOT"' EXIT INT TERM
command -v systemd-analyze >/dev/null || { echo "skipped: units: systemd-analyze is not installed"; exit 0; }
mkdir -p "$ROOT/units" "$ROOT/bin"
status=0

for unit in "$@"; do
    # verify insists that the program exists: the copy says /bin/true in its place.
    sed 's|/usr/bin/[a-z0-9_]*\( \{0,1\}\)|/bin/true\1|' "$unit" >"$ROOT/units/$(basename "$unit")"
done
for unit in "$@"; do
    name=$(basename "$unit")
    said=$(systemd-analyze verify --man=no "$ROOT/units/$name" 2>&1 | grep -F "$name" || :)
    if [ -n "$said" ]; then printf '%s: systemd-analyze verify says:\n%s\n' "$unit" "$said"; status=1; fi
    case $name in *.service) ;; *) continue ;; esac
    score=$(systemd-analyze security --offline=true --no-pager "$ROOT/units/$name" 2>/dev/null |
        sed -n 's/.*Overall exposure level for [^:]*: \([0-9]*\)\.\([0-9]\).*/\1\2/p')
    if [ -z "$score" ]; then
        echo "skipped: units: this systemd-analyze can't score unit files (--offline needs systemd 250)"
    elif [ "$score" -gt "$(limit "$name")" ]; then
        echo "$unit: exposure ${score%?}.${score#"${score%?}"}, too much (systemd-analyze security --offline=true $unit)"
        status=1
    else
        echo "$unit: verified, exposure ${score%?}.${score#"${score%?}"}"
    fi
done
exit $status
