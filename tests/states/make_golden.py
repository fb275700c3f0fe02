"""Keeps the present version of each core's state as golden: `python tests/states/make_golden.py`.

golden/CORE-VERSION.json holds what happened before, the state that came of it, and what is asked afterwards. A file
that is there stays: a state of that version may be in some cluster. Only where none is, its file may be deleted and
made anew. The script runs with an earlier version's code, too: copy this directory there.
"""

import base64
import json
import sys
import zlib
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from shoal.machine.core import Cause, Core
from shoal.wire.codec import encode
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_snapshot.core.snapshot import SnapshotCore
from states.stories import PLACEMENT, SCHEDULER, SNAPSHOT, Story

GOLDEN: Final = Path(__file__).with_name("golden")
STORIES: Final = {"scheduler": SCHEDULER, "placement": PLACEMENT, "snapshot": SNAPSHOT}


def make(name: str) -> Core:
    """Return a core that has handled nothing, of the first of three cells."""
    if name == "scheduler":
        return SchedulerCore(0, cells=3)
    return PlacementCore(0) if name == "placement" else SnapshotCore()


def _hex(story: Story) -> list[list[object]]:
    return [[time_ms, encode(message).hex()] for time_ms, message in story]


def golden(name: str) -> str:
    """Return the golden file of a core as it is now."""
    before, after = STORIES[name]
    core = make(name)
    for sequence, (time_ms, message) in enumerate(before, 1):
        core.handle(message, Cause("GOLDEN", sequence, time_ms))
        core.check()
    state = base64.b85encode(zlib.compress(core.dump(), 9)).decode()
    return json.dumps({"before": _hex(before), "state": state, "after": _hex(after)}, indent=1) + "\n"


def main() -> int:
    """Write what is not there yet."""
    made = 0
    for name in STORIES:
        path = GOLDEN / f"{name}-{make(name).state_version}.json"
        if not path.exists():
            path.write_text(golden(name))
            made += 1
    sys.stdout.write(f"{made} made\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
