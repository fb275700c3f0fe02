"""The placement log: what the scheduler wants placed, what executors say of their nodes, and slots that came free."""

from shoal.wire.bounds import Integer, Number
from shoal.wire.messages.base import Message
from shoal.wire.values import EndReason, NodeSpec, OnPreempted, Ranges, RolloutSpec, Snapshot


class PlaceRequested(Message, frozen=True):
    """The scheduler wants these sandboxes placed.

    `spec.commands` is empty, has one entry, or one for each of `indices` in order. `deadline_ms` is their rollout's
    end; `avoid` names nodes that failed them; `together`: all are placed at once, or none; `ready_by_ms`: see
    `StartSandboxes`.
    """

    rollout: str
    tenant: str
    run: str
    cell: Integer
    attempt: Integer
    indices: Ranges
    spec: RolloutSpec
    snapshot: Snapshot
    deadline_ms: Integer
    avoid: tuple[str, ...] = ()
    together: bool = False
    ready_by_ms: Integer = 0


class ReleaseRequested(Message, frozen=True):
    """The scheduler wants these sandboxes gone (no indices: all of the rollout), placed or still waiting.

    `attempt`: only that one of them; -1: whichever.
    """

    rollout: str
    indices: Ranges
    reason: EndReason
    attempt: Integer = -1


class PreemptRequested(Message, frozen=True):
    """The scheduler wants the room of these sandboxes for others; `how` they make room, hibernate or restart."""

    rollout: str
    attempt: Integer
    indices: Ranges
    how: OnPreempted


class NodeDrained(Message, frozen=True):
    """Somebody wants a node empty: nothing is placed there until it is `drained` no longer.

    `hibernate`: what runs there is put to sleep where it can be, and wakes elsewhere; else it is waited for.
    """

    node: str
    drained: bool
    hibernate: bool = False


class ExecutorJoined(Message, frozen=True):
    """An executor offers these nodes. A new `boot` means that everything it held under an older one is lost."""

    executor: str
    boot: str
    isolation: str
    nodes: tuple[NodeSpec, ...]
    starts_per_s: Number = 100.0
    unenforced: tuple[str, ...] = ()  # limits this executor cannot enforce, for people


class ExecutorBeat(Message, frozen=True):
    """An executor lives. `live` sandboxes, and `starting` more in its queue; what it started tells how fast it is."""

    executor: str
    boot: str
    live: Integer = 0
    starting: Integer = 0
    started: Integer = 0  # sandboxes started in this boot, and
    busy_ms: Integer = 0  # how long there was something to start


class ExecutorHolds(Message, frozen=True):
    """An executor has these blobs at hand, the most recently used first; those it does not name, it would fetch."""

    executor: str
    boot: str
    blobs: tuple[str, ...]


class PrefetchSnapshot(Message, frozen=True):
    """Make starts from this snapshot fast before anybody asks for one: said to placement, and by it to executors.

    Its seal is for this tenant.
    """

    snapshot: Snapshot
    tenant: str = ""


class ExecutorLeft(Message, frozen=True):
    """An executor stops on purpose; what it held is gone."""

    executor: str
    boot: str


class SlotsReleased(Message, frozen=True):
    """These sandboxes no longer occupy their node."""

    executor: str
    boot: str
    node: str
    rollout: str
    attempt: Integer
    indices: Ranges
