#!/bin/sh
# Makes .venv: exactly the packages of dev.lock, each checked against its hash, and this checkout, editable.
# Run by `make setup`. PYTHON names the interpreter (default python3).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

say() { printf '== setup: %s\n' "$*"; }
stop() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}
# Installs Debian packages where that is possible and allowed: on a system with apt, as root.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing $* through apt"
    export DEBIAN_FRONTEND=noninteractive
    # One repository of many that has expired fails an update; the others, and the lists from before, are still there.
    apt-get update -qq || say "apt-get update failed: trying with the package lists that are there"
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
can_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
has_seccomp() { "$python" -c 'import ctypes; ctypes.CDLL("libseccomp.so.2")' 2>/dev/null; }

command -v "$python" >/dev/null ||
    stop "there is no $python; install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "Shoal needs Python 3.11 or newer and $python is $("$python" -V 2>&1 | cut -d' ' -f2); name another: make setup PYTHON=/path/to/python3.11"

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    can_venv || { apt_install python3-venv && can_venv; } ||
        stop "$python cannot make virtual environments; run 'apt-get install python3-venv' as root, then this again"
    say "making .venv with $("$python" -V 2>&1)"
    rm -rf .venv
    "$python" -m venv .venv
fi

has_seccomp || { apt_install libseccomp2 && has_seccomp; } ||
    stop "libseccomp is missing, which isolates sandboxes; run 'apt-get install libseccomp2' as root, then this again"

# Snapshots of live sandboxes are EROFS files; all else works without.
command -v mkfs.erofs >/dev/null || apt_install erofs-utils ||
    say "mkfs.erofs is missing: no snapshots until 'apt-get install erofs-utils' is run as root"

# Isolation gvisor; the other kinds work without.
command -v runsc >/dev/null || apt_install runsc ||
    say "runsc is missing: no isolation gvisor until 'apt-get install runsc' is run as root"

# No cache: nothing is written outside this checkout.
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps "$@"; }
say "installing the packages of requirements/dev.lock"
install --require-hashes -r requirements/dev.lock
say "installing this checkout, editable"
install --no-build-isolation -e .
say "done"
