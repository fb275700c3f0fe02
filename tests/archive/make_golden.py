"""Writes the archive of this version of the wire: `python tests/archive/make_golden.py`.

`golden/wire-<version>.shoal` holds every specimen of that version's messages, each in the stream it belongs to, and
`golden/wire-<version>.json` what they are. What is there stays for ever: an archive is only added, when the version
(`shoal.wire.VERSION`) is a new one. It is one whenever a message or a field was added.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from archive.made import header
from shoal.archive.writer import Writer
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint
from shoal.wire import VERSION, streams, subjects
from shoal.wire.codec import encode
from shoal.wire.messages import AnyMessage
from wire.samples import SAMPLES

GOLDEN = Path(__file__).with_name("golden")
BEGAN_MS = 1_700_000_000_000
SUBJECTS = {
    "rollout": subjects.rollout_request(0, "t", "r"),
    "placement": subjects.placement_request(0),
    "executor": subjects.executor_control("e"),
    "trajectory": subjects.trajectory(0, "t", "r"),
    "snapshot": subjects.snapshot("t", "request"),
    "dead": subjects.dead("SHOAL_SNAPSHOT"),
}


def subject_of(message: AnyMessage) -> str:
    """Return a subject of the log that a message is declared for."""
    return SUBJECTS[type(message).__module__.rpartition(".")[2]]


def expected(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what an archive holds, by stream."""
    found: dict[str, list[dict[str, Any]]] = json.loads(path.with_suffix(".json").read_text())
    return found


def write(path: Path) -> None:
    """Write the archive of now, and what is in it."""
    writer = Writer.create(path, header(wire=VERSION, cluster="golden", values={"SHOAL_CLUSTER": {"cells": b"1"}}))
    writer.checkpoint(Checkpoint("scheduler.0", 1, "SHOAL_ROLLOUT_0", 1, BEGAN_MS, b"state"))
    held: dict[str, list[dict[str, Any]]] = {}
    for number, (name, message) in enumerate(sorted(SAMPLES.items())):
        subject = subject_of(message)
        stream = streams.stream_of(subject)
        known = held.setdefault(stream, [])
        payload = encode(message)
        delivery = Delivery(subject, payload, len(known) + 1, BEGAN_MS + number * 10, f"SHOAL_X:{number}:{number % 3}")
        writer.append(stream, delivery)
        known.append(
            {"name": name, "type": type(message).__name__, "subject": subject, "time_ms": delivery.time_ms,
             "id": delivery.id, "payload": payload.hex()}
        )  # fmt: skip
    writer.finish()
    path.with_suffix(".json").write_text(json.dumps(held, indent=1) + "\n")


def main() -> int:
    """Add this version's archive, unless it is there."""
    path = GOLDEN / f"wire-{VERSION}.shoal"
    if path.exists():
        sys.stderr.write(f"{path.name} is there already; a changed wire has a new shoal.wire.VERSION\n")
        return 1
    write(path)
    sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
