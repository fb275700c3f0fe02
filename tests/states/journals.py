"""What happened to an executor, as its journal has it, and what a process that goes on from there says.

`python tests/states/journals.py` writes golden/journal-VERSION.json where it is missing.
"""

import asyncio
import base64
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Final, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

from shoal.runtime.steady import SteadyPublisher
from shoal.wire import messages as m
from shoal_executor.service.journal import (
    VERSION,
    Answered,
    AnyRecord,
    Began,
    Exited,
    Expired,
    Failed,
    Gone,
    JobsDone,
    Journal,
    Returned,
    Slept,
    Stored,
    Took,
    Up,
)
from shoal_executor.service.known import Known
from states.make_golden import GOLDEN
from states.stories import HOST, KEPT, LAYERED

_OFFER: Final = (m.NodeSpec("n1", 16, 64 * 1024**3),)
_AGENTS: Final = ("agents", 0, "n1")
_JOBS: Final = ("jobs", 1, "n1")
_OTHER: Final = ("other", 0, "n1")
_RESULT: Final = m.CommandResult(0, b"42\n")


def began(version: int = VERSION) -> Began:
    """Return how the executor of the story offers itself."""
    return Began("e1", 0, "boot-1", "machine-1", "zygote", _OFFER, version)


def _order(
    rollout: str, attempt: int, indices: m.Ranges, snapshot: m.Snapshot = HOST, jobs: tuple[m.Command, ...] = (),
    ready_by_ms: int = 0,
) -> m.StartSandboxes:  # fmt: skip
    head = ("boot-1", "n1", rollout, "acme", "train-7", 0, attempt, indices, snapshot, m.Resources())
    return m.StartSandboxes(*head, jobs, (), (), "", 1_700_003_600_000, ready_by_ms=ready_by_ms)


def _run(id: str, index: int, attempt: int = 0) -> m.RunCommand:
    return m.RunCommand(id, "acme", "train-7", 0, "agents", index, attempt, m.Command(line="make"))


_DONE: Final = m.CommandFinished("c1", "agents", 0, 0, m.Command(line="make"), _RESULT)
RECORDS: Final[tuple[AnyRecord, ...]] = (
    Took(1, _order("agents", 0, ((0, 4),), LAYERED), 1_700_000_000_000),
    Up(_AGENTS, ((0, 3),), 1_700_000_000_100),
    Failed(_AGENTS, ((3, 1),), "no room on the disk"),
    Took(2, _run("c1", 0), 1_700_000_000_200),
    Answered(0, "acme", "train-7", _DONE),
    Stored(2),
    Took(3, _run("c1", 0), 1_700_000_000_300),
    Took(4, _run("c2", 1), 1_700_000_000_400),
    Took(5, _run("c3", 9), 1_700_000_000_500),
    Took(6, _order("jobs", 1, ((0, 3),), jobs=(m.Command(line="true"),)), 1_700_000_000_600),
    Up(_JOBS, ((0, 3),), 1_700_000_000_700),
    JobsDone(_JOBS, (m.SandboxResult(0, _RESULT, 700), m.SandboxResult(1, _RESULT, 800))),
    Gone(_JOBS, ((0, 2),)),
    Returned("agents", 0, 0, KEPT),
    Slept(_AGENTS, 2, KEPT),
    Gone(_AGENTS, ((2, 1),)),
    Took(7, _order("other", 0, ((0, 3),), ready_by_ms=1_700_001_800_000), 1_700_000_000_800),
    Up(_OTHER, ((0, 2),), 1_700_000_000_900),
    Exited(_OTHER, 0, m.EndReason.OUT_OF_MEMORY, "of 256 MiB"),
    Took(8, m.DestroySandboxes("boot-1", "other", ((1, 1),), m.EndReason.RELEASED), 1_700_000_001_000),
    Took(9, m.PreemptSandboxes("boot-1", "jobs", 1, ((2, 1),), m.OnPreempted.RESTART), 1_700_000_001_100),
    Expired(_OTHER),
)


def said(known: Known) -> list[list[object]]:
    """Return what the broker is not known to have: numbers, subjects and payloads."""
    return [[number, subject, payload.hex()] for number, subject, payload in known.outgoing.unstored]


def going_on(directory: Path, version: int = VERSION) -> tuple[Known, bool]:
    """Return a process that reads the journal in a directory, and whether it continues the one before it."""
    nobody = cast(SteadyPublisher, None)  # nothing is published before it is told to
    known = Known(nobody, began(version), Journal(directory))
    return known, known.recover()


async def golden() -> str:
    """Return the golden file of a journal as it is now."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        known, _ = going_on(directory)
        known.begin_at(0)
        for record in RECORDS:
            if isinstance(record, Stored):
                known.reports.flush()  # as it is written down before it is put into messages
                assert known._journal is not None
                known._journal.append(record)
            else:
                known.happened(record)
        data = (directory / "journal").read_bytes()
        known.close(forget=False)
        known, continued = going_on(directory)
        assert continued
        known.close(forget=False)
        state = base64.b85encode(zlib.compress(data, 9)).decode()
        return json.dumps({"journal": state, "said": said(known)}, indent=1) + "\n"


def main() -> int:
    """Write it if it is not there yet."""
    path = GOLDEN / f"journal-{VERSION}.json"
    if not path.exists():
        path.write_text(asyncio.run(golden()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
