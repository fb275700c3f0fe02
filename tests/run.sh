#!/bin/sh
# Runs pytest with a temporary directory of its own, so that nothing stays behind: not a file, not a mount. Where a test
# failed, the directory is kept and named. Arguments go to pytest. Run by `make test`.
#
# A worker a core, four at most: half of the tests' time is waiting for brokers and sandboxes. So a test looks for what it
# left in places of its own; that the machine as a whole has nothing more than before is looked at here, at the end.
set -u
cd "$(dirname "$0")/.."
machine() { # what is mounted where, and the control groups of Shoal's executors
    cut -d' ' -f2,3 /proc/self/mounts
    find /sys/fs/cgroup -maxdepth 6 -type d -name 'shoal-*' 2>/dev/null
}
before=$(machine)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/shoal-test.XXXXXX") || exit 1
TMPDIR=$tmp .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
status=$?
# What is still mounted there is not ours to delete: it could be a way to the machine's own files.
if grep -F " $tmp/" /proc/self/mountinfo; then
    echo "tests: these mounts were left behind in $tmp (above)" >&2
    exit 1
fi
if machine | grep -vxF "$before"; then
    echo "tests: these mounts and control groups (above) were not there before" >&2
    status=1
fi
if [ $status -eq 0 ]; then
    rm -rf "$tmp"
else
    echo "tests: what the tests wrote is in $tmp" >&2
fi
exit $status
