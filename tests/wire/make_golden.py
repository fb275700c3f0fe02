"""Adds the bytes of new specimens to golden.json: `python tests/wire/make_golden.py`.

What is there stays. Where a specimen's bytes have become different because a field was appended, the bytes it had move
to earlier.json: they are read for ever. Where the bytes it had mean something else now, the contract was broken:
nothing is written, and the exit status is 1. `--drop NAME...` removes entries whose message was withdrawn in a release
that says so.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from shoal.wire import codec
from shoal.wire.messages import AnyMessage
from wire.samples import SAMPLES

GOLDEN = Path(__file__).with_name("golden.json")
EARLIER = Path(__file__).with_name("earlier.json")


def merge(golden: dict[str, str], fresh: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the golden bytes with what is new, and the names whose bytes differ from what is kept."""
    changed = [name for name, text in fresh.items() if golden.get(name, text) != text]
    return dict(sorted((fresh | golden).items())), changed


def still_means(text: str, message: AnyMessage) -> bool:
    """Return whether the bytes a specimen had are read as that specimen still."""
    try:
        return codec.decode(bytes.fromhex(text)) == message
    except codec.UndecodableError:
        return False


def main() -> int:
    """Bring golden.json up to date, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drop", nargs="+", default=[], metavar="NAME", help="entries to remove")
    drop = parser.parse_args().drop
    golden: dict[str, str] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    kept = {name: text for name, text in golden.items() if name not in drop}
    earlier: dict[str, list[str]] = json.loads(EARLIER.read_text()) if EARLIER.exists() else {}
    for name, message in SAMPLES.items():
        if name in kept and kept[name] != codec.encode(message).hex() and still_means(kept[name], message):
            earlier.setdefault(name, []).append(kept.pop(name))
    merged, changed = merge(kept, {name: codec.encode(message).hex() for name, message in SAMPLES.items()})
    if changed:
        sys.stderr.write("these messages have other bytes than before, nothing written: " + ", ".join(changed) + "\n")
        return 1
    EARLIER.write_text(json.dumps(dict(sorted(earlier.items())), indent=1) + "\n")
    GOLDEN.write_text(json.dumps(merged, indent=1) + "\n")
    sys.stdout.write(f"{len(merged)} entries, {len(merged.keys() - golden.keys())} new\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
