"""The peers: what each is, where it runs, and what Shoal it is compared with."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a unit of work is."""

    TASKS = "no-op units"
    SANDBOXES = "sandboxes"


@dataclass(frozen=True, slots=True)
class Entry:
    """One peer. `environment`: its lock's name; empty where it runs beside Shoal. `module` is its worker's.

    `share`: of the units that are asked for, for what would take too long. `durable`: whether work that was accepted
    survives a crash of everything. `isolated`: what keeps units apart from the machine. `against`: the Shoal that it is
    compared with.
    """

    name: str
    kind: Kind
    module: str
    environment: str = ""
    arguments: tuple[str, ...] = ()
    durable: str = "no"
    isolated: str = "no"
    share: float = 1.0
    against: str = ""
    program: str = ""
    package: str = ""

    def units(self, n: int) -> int:
        """Return how many units it has in a turn."""
        return max(int(n * self.share), 1)

    def missing(self) -> str:
        """Return why it cannot run here, as far as that can be seen beforehand; empty where it can."""
        if self.program and shutil.which(self.program) is None:
            return f"{self.program} is not installed: apt install {self.package or self.program}"
        return ""


_SIMULATED: Final = "Shoal, simulated"
_ZYGOTE: Final = "Shoal, zygote"
_GVISOR: Final = "Shoal, gvisor"
_RESTORED: Final = "Shoal, gvisor restored"
_DISK: Final = "yes, on disk"

PEERS: Final = (
    Entry(_SIMULATED, Kind.TASKS, "shoal_rollouts", arguments=("simulated",), durable=_DISK),
    Entry("Ray tasks", Kind.TASKS, "ray_tasks", "ray", against=_SIMULATED),
    Entry("Dask distributed", Kind.TASKS, "dask_futures", "dask", against=_SIMULATED),
    Entry(
        "Celery, Redis in memory", Kind.TASKS, "celery_redis", "celery", ("no",), share=0.2, against=_SIMULATED,
        program="redis-server",
    ),
    Entry(
        "Celery, Redis appendonly", Kind.TASKS, "celery_redis", "celery", ("yes",), durable=_DISK, share=0.2,
        against=_SIMULATED, program="redis-server",
    ),
    Entry(
        "taskiq on NATS JetStream", Kind.TASKS, "taskiq_jetstream", "taskiq", durable=_DISK, share=0.03,
        against=_SIMULATED,
    ),
    Entry(
        "FastStream on NATS JetStream", Kind.TASKS, "faststream_jetstream", "faststream", durable=_DISK,
        against=_SIMULATED,
    ),
    Entry(_ZYGOTE, Kind.SANDBOXES, "shoal_rollouts", arguments=("zygote",), durable=_DISK, isolated="namespaces"),
    Entry(
        _GVISOR, Kind.SANDBOXES, "shoal_rollouts", arguments=("gvisor",), durable=_DISK, isolated="own kernel",
        share=0.25, program="runsc",
    ),
    Entry(
        _RESTORED, Kind.SANDBOXES, "shoal_rollouts", arguments=("gvisor-restored",), durable=_DISK,
        isolated="own kernel", share=0.25, program="runsc",
    ),
    Entry("Ray actors", Kind.SANDBOXES, "ray_actors", "ray", share=0.25, against=_ZYGOTE),
    Entry(
        "threads over bwrap", Kind.SANDBOXES, "programs", arguments=("bwrap",), isolated="namespaces",
        against=_ZYGOTE, program="bwrap", package="bubblewrap",
    ),
    Entry(
        "threads over runc", Kind.SANDBOXES, "programs", arguments=("runc",), isolated="namespaces, limits",
        against=_ZYGOTE, program="runc",
    ),
    Entry(
        "SWE-ReX, local", Kind.SANDBOXES, "swerex_local", "swerex", share=0.25, against=_ZYGOTE,
    ),
    Entry(
        "threads over runsc run", Kind.SANDBOXES, "programs", arguments=("runsc",), isolated="own kernel", share=0.25,
        against=_GVISOR, program="runsc",
    ),
    Entry(
        "threads over runsc restore", Kind.SANDBOXES, "programs", arguments=("runsc-restore",), isolated="own kernel",
        share=0.25, against=_RESTORED, program="runsc",
    ),
)  # fmt: skip


def chosen(words: Sequence[str]) -> list[Entry]:
    """Return the peers whose name has one of these words in it, and the Shoals they are compared with; all for none."""
    if not words:
        return list(PEERS)
    found = [entry for entry in PEERS if any(word.lower() in entry.name.lower() for word in words)]
    wanted = {entry.name for entry in found} | {entry.against for entry in found}
    return [entry for entry in PEERS if entry.name in wanted]


def line_of(entry: Entry, python: str = "") -> list[str]:
    """Return the command of a peer's worker, run by this interpreter, or by the one that runs this."""
    return [python or sys.executable, "-m", f"shoal_loadtest.peers.workers.{entry.module}"]
