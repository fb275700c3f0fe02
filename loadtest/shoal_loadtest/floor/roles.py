"""Shoal's services without anything they decide: what each says when it hears something, and nothing else.

The messages are Shoal's own, as many, as large and in the same streams as those of a run on nodes that have room:
`tests/integration/test_loadtest_floor.py` counts both. What a role remembers is how many reports of a group it has
seen.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from shoal.client.requests import rollout_spec
from shoal.machine import ranges
from shoal.wire import messages as m, streams, subjects
from shoal_loadtest.floor.work import Lifecycle, Work

EXECUTOR: Final = "local"
TENANT: Final = "default"
RUN: Final = "default"
BOOT: Final = "d163929c7285ced1"
_DEADLINE_MS: Final = 1_795_622_531_892
_HOST: Final = m.Snapshot("host", "host")
_NOTHING: Final[tuple[()]] = ()


class Said(NamedTuple):
    """A message, and where it goes."""

    subject: str
    message: m.AnyMessage


Handler = Callable[[m.AnyMessage], "Iterator[Said]"]

ROLLOUT_REQUEST: Final = subjects.rollout_request(0, TENANT, RUN)
ROLLOUT_SANDBOX: Final = subjects.rollout_sandbox(0, TENANT, RUN)
ROLLOUT_OUTCOME: Final = subjects.rollout_outcome(0, TENANT, RUN)
PLACEMENT_REQUEST: Final = subjects.placement_request(0)
PLACEMENT_RELEASE: Final = subjects.placement_release(0)
CONTROL: Final = subjects.executor_control(EXECUTOR)
ROLLOUT_LOG: Final = streams.rollout(0).name
PLACEMENT_LOG: Final = streams.placement(0).name
EXECUTOR_LOG: Final = streams.executor(EXECUTOR).name
INBOXES: Final = {"scheduler": ROLLOUT_LOG, "placement": PLACEMENT_LOG, "executor": EXECUTOR_LOG}
"""The services of the chain, and the stream that each reads."""


def request(rollout: str, work: Work) -> Said:
    """Return a trainer's request for one group."""
    spec = rollout_spec("host", work.group, command="true" if work.lifecycle is Lifecycle.JOB else None)
    return Said(ROLLOUT_REQUEST, m.RolloutSubmitted(rollout, TENANT, RUN, spec))


def released(rollout: str, work: Work) -> Said:
    """Return a trainer's word that it is done with a group."""
    return Said(ROLLOUT_REQUEST, m.RolloutReleased(rollout, ranges.whole(work.group)))


def scheduler(work: Work) -> Handler:
    """Hand on every request and every release; conclude what was released, or has run."""
    finished: dict[str, int] = {}

    def concluded(rollout: str, n: int, reason: m.EndReason, why: str) -> Said:
        return Said(ROLLOUT_OUTCOME, m.RolloutConcluded(rollout, ((reason, n),), why))

    def hear(message: m.AnyMessage) -> Iterator[Said]:
        match message:
            case m.RolloutSubmitted(rollout=rollout, tenant=tenant, run=run, spec=spec):
                indices = ranges.whole(spec.n)
                wanted = m.PlaceRequested(rollout, tenant, run, 0, 0, indices, spec, _HOST, _DEADLINE_MS)
                yield Said(PLACEMENT_REQUEST, wanted)
                yield Said(ROLLOUT_OUTCOME, m.RolloutDispatched(rollout, _HOST))
            case m.RolloutReleased(rollout=rollout, indices=indices):
                yield Said(PLACEMENT_REQUEST, m.ReleaseRequested(rollout, _NOTHING, m.EndReason.RELEASED))
                yield concluded(rollout, ranges.count(indices), m.EndReason.RELEASED, "released")
            case m.SandboxesFinished(rollout=rollout, results=results):
                count = finished.pop(rollout, 0) + len(results)
                if count < work.group:
                    finished[rollout] = count
                else:
                    yield concluded(rollout, count, m.EndReason.SUCCEEDED, "finished")

    return hear


def placement(work: Work) -> Handler:
    """Divide every group over nodes, one after the other."""
    nodes = 0

    def hear(message: m.AnyMessage) -> Iterator[Said]:
        nonlocal nodes
        match message:
            case m.PlaceRequested(rollout=rollout, spec=spec):
                for first in range(0, spec.n, work.batch):
                    node = f"{EXECUTOR}-{nodes % 1000}"
                    nodes += 1
                    indices = ((first, min(work.batch, spec.n - first)),)
                    yield Said(
                        CONTROL,
                        m.StartSandboxes(
                            BOOT, node, rollout, message.tenant, message.run, 0, 0, indices, message.snapshot,
                            spec.resources, spec.commands, spec.files, spec.env, spec.user, message.deadline_ms,
                        ),
                    )  # fmt: skip
            case m.ReleaseRequested(rollout=rollout, indices=indices, reason=reason):
                yield Said(CONTROL, m.DestroySandboxes(BOOT, rollout, indices, reason))

    return hear


def executor(work: Work) -> Handler:
    """Report everything as started at once, and as gone."""
    held: dict[str, list[tuple[str, m.Ranges]]] = {}
    result = m.CommandResult(0, b"simulated: true\n", duration_us=0)

    def hear(message: m.AnyMessage) -> Iterator[Said]:
        match message:
            case m.StartSandboxes(node=node, rollout=rollout, indices=indices):
                yield Said(ROLLOUT_SANDBOX, m.SandboxesReady(rollout, 0, indices, node, EXECUTOR, "simulated"))
                if not message.commands:
                    held.setdefault(rollout, []).append((node, indices))
                    return
                results = tuple(m.SandboxResult(index, result, 16) for index in ranges.indices(indices))
                finished = m.SandboxesFinished(rollout, 0, node, EXECUTOR, "simulated", results)
                yield Said(ROLLOUT_SANDBOX, finished)
                yield Said(PLACEMENT_RELEASE, m.SlotsReleased(EXECUTOR, BOOT, node, rollout, 0, indices))
            case m.DestroySandboxes(rollout=rollout):
                for node, indices in held.pop(rollout, ()):
                    yield Said(PLACEMENT_RELEASE, m.SlotsReleased(EXECUTOR, BOOT, node, rollout, 0, indices))

    return hear


ROLES: Final[dict[str, Callable[[Work], Handler]]] = {
    "scheduler": scheduler,
    "placement": placement,
    "executor": executor,
}
