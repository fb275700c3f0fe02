#!/bin/sh
# Writes dev.lock: one version and its hashes for every package that pyproject.toml leads to, on every platform and every
# Python from 3.11, without a word on where it was fetched from (docs/adr/0004). Run by `make lock`.
set -eu
cd "$(dirname "$0")/.."
uv=$(command -v uv || command -v .venv/bin/uv) || {
    echo "lock: uv is missing; install it, for example with '.venv/bin/python -m pip install uv', then this again" >&2
    exit 1
}
echo "== lock: resolving pyproject.toml"
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
    --no-header --all-extras --group dev pyproject.toml -o requirements/dev.lock
if grep -n '://' requirements/dev.lock; then
    echo "lock: the lock names a host (above); it must not" >&2
    exit 1
fi
echo "== lock: requirements/dev.lock holds $(grep -c '^[a-z0-9]' requirements/dev.lock) packages"
