#!/bin/sh
# Runs pytest with a temporary directory of its own, so that nothing stays behind: not a file, not a mount. Where a test
# failed, the directory is kept and named. Arguments go to pytest. Run by `make test`.
#
# A worker a core, four at most: half of the tests' time is waiting for brokers and sandboxes.
set -u
cd "$(dirname "$0")/.."
tmp=$(mktemp -d "${TMPDIR:-/tmp}/shoal-test.XXXXXX") || exit 1
TMPDIR=$tmp .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
status=$?
# What is still mounted there is not ours to delete: it could be a way to the machine's own files.
if grep -F " $tmp/" /proc/self/mountinfo; then
    echo "tests: these mounts were left behind in $tmp (above)" >&2
    exit 1
fi
if [ $status -eq 0 ]; then
    rm -rf "$tmp"
else
    echo "tests: what the tests wrote is in $tmp" >&2
fi
exit $status
