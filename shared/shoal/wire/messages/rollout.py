"""The rollout log: what trainers ask, what executors and placement report, what the scheduler says and has to know."""

from shoal.wire.bounds import Integer
from shoal.wire.messages.base import Message
from shoal.wire.values import CommandResult, EndReason, Limits, Pool, Ranges, RolloutSpec, Snapshot, Value

# --- requests by trainers


class RolloutSubmitted(Message, frozen=True):
    """A trainer asks for a rollout. `key`: what it is called within its run, where its id follows from that."""

    rollout: str
    tenant: str
    run: str
    spec: RolloutSpec
    key: str = ""


class RolloutReleased(Message, frozen=True):
    """A trainer has no more use for these sandboxes of its rollout; no indices: for none of them."""

    rollout: str
    indices: Ranges = ()


class RolloutCancelled(Message, frozen=True):
    """Somebody wants this rollout to stop, whatever it is doing."""

    rollout: str
    by: str = ""


class SandboxesWanted(Message, frozen=True):
    """A trainer has a use again for these sandboxes, which sleep: wake them."""

    rollout: str
    indices: Ranges


class StepGivenUp(Value, frozen=True):
    """A step of a run that can be resumed, for whose end its trainer did not wait.

    `id` as the trainer has it; `turn`: the how-manieth asking of that id it was, 1 for the first. `attempt` was the
    sandbox's; `after_ms`: how long its trainer had the handle then.
    """

    index: Integer
    attempt: Integer
    id: str
    turn: Integer = 1
    after_ms: Integer = 0


class StepsGivenUp(Message, frozen=True):
    """A trainer gave these steps up, and went on: said before the first thing that it asks for after that."""

    rollout: str
    steps: tuple[StepGivenUp, ...]


# --- reports by executors and placement


class SandboxesReady(Message, frozen=True):
    """These sandboxes run and take commands, at the named executor.

    `digest`: of the snapshot that first attempts began as; what later ones are says `SandboxesBegan`.
    """

    rollout: str
    attempt: Integer
    indices: Ranges
    node: str
    executor: str
    isolation: str
    digest: str = ""


class SandboxResult(Value, frozen=True):
    """One sandbox's command is done. `run_us`: from the sandbox's readiness to its command's end, in microseconds."""

    index: Integer
    result: CommandResult
    run_us: Integer


class SandboxesFinished(Message, frozen=True):
    """These sandboxes ran the command that travelled with their rollout, and are gone."""

    rollout: str
    attempt: Integer
    node: str
    executor: str
    isolation: str
    results: tuple[SandboxResult, ...]


class SandboxesEnded(Message, frozen=True):
    """These sandboxes ended without a result, or never started. `detail` is for people."""

    rollout: str
    attempt: Integer
    indices: Ranges
    node: str
    reason: EndReason
    detail: str = ""


class SandboxSaved(Message, frozen=True):
    """What a sandbox goes on from, should it be lost: taken after its first `commands` commands and file writes.

    `steps`: the numbers of all that was done in this attempt when it was taken; the rest was not, or not to its end.
    """

    rollout: str
    attempt: Integer
    index: Integer
    snapshot: Snapshot
    commands: Integer = 0
    steps: Ranges = ()


class SandboxSlept(Message, frozen=True):
    """A sandbox was put to sleep: all of it is in the snapshot, and it occupies no slot until it is wanted.

    `preempted`: nobody wanted that but the scheduler, which wakes it when there is room.
    """

    rollout: str
    attempt: Integer
    index: Integer
    node: str
    snapshot: Snapshot
    preempted: bool = False


# --- what the scheduler says


class RolloutQueued(Message, frozen=True):
    """A rollout was admitted and waits: `waiting` of its sandboxes, behind `ahead` of others, because of `reason`.

    `start_ms`: when the last of them may be given to a node, going by how fast room came free lately; 0: unknown.
    """

    rollout: str
    ahead: Integer
    waiting: Integer
    reason: str
    start_ms: Integer = 0


class RolloutDispatched(Message, frozen=True):
    """All sandboxes of a rollout were handed to placement for the first time."""

    rollout: str
    snapshot: Snapshot


class RolloutRejected(Message, frozen=True):
    """A rollout was not admitted. `code` is for programs, `detail` says what would be right.

    `retry_after_ms`: when it may be, asked again under another id; 0: not as it is.
    """

    rollout: str
    code: str
    detail: str
    retry_after_ms: Integer = 0


class SandboxesHedged(Message, frozen=True):
    """These sandboxes take long to start: the attempt `hedge` of them starts elsewhere, and the first one ready counts.

    Counts from where it is in the log, for the scheduler, too.
    """

    rollout: str
    attempt: Integer
    hedge: Integer
    indices: Ranges


class SandboxesClosed(Message, frozen=True):
    """The scheduler gives these sandboxes up. Counts from where it is in the log, for the scheduler, too."""

    rollout: str
    indices: Ranges
    reason: EndReason
    detail: str


class RolloutConcluded(Message, frozen=True):
    """Every sandbox of a rollout has ended. `counts` holds how many for which reason.

    When the rollout's time was up, `not_started` are those that waited for room and never ran, `deadline` those that
    were there for less than half of that time; the others timed out.
    """

    rollout: str
    counts: tuple[tuple[EndReason, Integer], ...]
    reason: str  # finished, released, cancelled or timed_out
    not_started: Ranges = ()
    deadline: Ranges = ()


# --- what the scheduler must know


class TemplateResolved(Message, frozen=True):
    """A template's name stands for this snapshot now, or `error` says why it stands for nothing."""

    tenant: str
    template: str
    snapshot: Snapshot | None
    error: str = ""


class CellCapacity(Message, frozen=True):
    """How many sandboxes the cell's living nodes hold at most, and which isolations they offer; `pools` says more."""

    slots: Integer
    nodes: Integer
    isolations: tuple[str, ...]
    pools: tuple[Pool, ...] = ()


class TenantAdded(Message, frozen=True):
    """A tenant exists from now on. Before the first is named, whoever comes is welcome; after that, only the named."""

    tenant: str


class TenantRemoved(Message, frozen=True):
    """A tenant exists no longer; its rollouts that were admitted go on."""

    tenant: str


class TenantSet(Message, frozen=True):
    """What a tenant may have, from now on."""

    tenant: str
    limits: Limits


class TenantLimited(Message, frozen=True):
    """What a tenant may have in the whole cluster, from now on: each cell begins with an equal part of it.

    Of two, the one with the higher `version` counts, in whatever order they come.
    """

    tenant: str
    limits: Limits
    version: Integer


class QuotaWanted(Message, frozen=True):
    """Another cell's scheduler could use more of its part of a tenant's limits; none of anything: no longer.

    Of the same cell the one with the highest `number` counts. `amounts`: sandboxes, bytes of memory, thousandths of a
    cpu, thousandths of starts a second. `claim_ms`: since when it is wanted, later where that cell has its equal part
    already; who has claimed first is served first.
    """

    cell: Integer
    number: Integer
    tenant: str
    version: Integer
    amounts: tuple[Integer, Integer, Integer, Integer]
    claim_ms: Integer


class QuotaLent(Message, frozen=True):
    """Another cell's scheduler gives a piece of its part of a tenant's limits away, for good, under a `number`."""

    cell: Integer
    number: Integer
    tenant: str
    version: Integer
    amounts: tuple[Integer, Integer, Integer, Integer]


class RoomWanted(Message, frozen=True):
    """Another cell's scheduler wants room for `spec.n` sandboxes of a tenant's run, of which it has none.

    `number` counts what that cell wants of this one. `spec` says what they take and where they can be; the first
    `min_ready` of them together.
    """

    cell: Integer
    number: Integer
    tenant: str
    run: str
    spec: RolloutSpec


class RoomLent(Message, frozen=True):
    """A cell has room for these of the sandboxes that were asked for: each index is a ticket for one, once."""

    cell: Integer
    number: Integer
    tickets: Ranges


class RoomReturned(Message, frozen=True):
    """A cell has no use any more for these tickets (none: for any of them), whether they were given out or not.

    `declined`: there was no room for them after all.
    """

    cell: Integer
    number: Integer
    tickets: Ranges = ()
    declined: bool = False


class SettingsChanged(Message, frozen=True):
    """How a partition decides from now on: its policies and bounds by name, as its configuration says.

    Said to a scheduler or to placement, in its own log, so that whoever folds that log decides the same.
    """

    settings: tuple[tuple[str, str], ...]


class Tick(Message, frozen=True):
    """Time passes: published when a core has asked to be woken and nothing else came."""

    due_ms: Integer
