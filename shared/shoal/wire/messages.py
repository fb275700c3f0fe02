"""Every message of Shoal, as data.

A message is encoded as a MessagePack array whose first element is its type's name: compact, readable without types, and
open at the end (a new field is appended with a default). Times are milliseconds since the epoch, by the broker's clock;
durations say their unit in their name. Groups of sandboxes travel as index ranges, never one message each.
"""

from typing import Final

import msgspec

from shoal.wire.values import (
    Blob as Blob,
    Command as Command,
    CommandResult as CommandResult,
    EndReason as EndReason,
    InputFile as InputFile,
    Isolation as Isolation,
    Limits as Limits,
    NodeSpec as NodeSpec,
    OnLost as OnLost,
    OnPreempted as OnPreempted,
    Pool as Pool,
    Ranges as Ranges,
    Recipe as Recipe,
    Resources as Resources,
    RolloutSpec as RolloutSpec,
    Room as Room,
    Snapshot as Snapshot,
    SnapshotEntry as SnapshotEntry,
    Value as Value,
)


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One message on a subject."""


# --- the rollout log: requests by trainers


class RolloutSubmitted(Message, frozen=True):
    """A trainer asks for a rollout."""

    rollout: str
    tenant: str
    run: str
    spec: RolloutSpec


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


# --- the rollout log: reports by executors and placement


class SandboxesReady(Message, frozen=True):
    """These sandboxes run and take commands, at the named executor."""

    rollout: str
    attempt: int
    indices: Ranges
    node: str
    executor: str
    isolation: str


class SandboxResult(Value, frozen=True):
    """One sandbox's command is done. `run_us`: from the sandbox's readiness to its command's end, in microseconds."""

    index: int
    result: CommandResult
    run_us: int


class SandboxesFinished(Message, frozen=True):
    """These sandboxes ran the command that travelled with their rollout, and are gone."""

    rollout: str
    attempt: int
    node: str
    executor: str
    isolation: str
    results: tuple[SandboxResult, ...]


class SandboxesEnded(Message, frozen=True):
    """These sandboxes ended without a result, or never started. `detail` is for people."""

    rollout: str
    attempt: int
    indices: Ranges
    node: str
    reason: EndReason
    detail: str = ""


class SandboxSaved(Message, frozen=True):
    """What a sandbox goes on from, should it be lost: taken after its first `commands` commands and file writes."""

    rollout: str
    attempt: int
    index: int
    snapshot: Snapshot
    commands: int = 0


class SandboxSlept(Message, frozen=True):
    """A sandbox was put to sleep: all of it is in the snapshot, and it occupies no slot until it is wanted.

    `preempted`: nobody wanted that but the scheduler, which wakes it when there is room.
    """

    rollout: str
    attempt: int
    index: int
    node: str
    snapshot: Snapshot
    preempted: bool = False


# --- the rollout log: what the scheduler says


class RolloutQueued(Message, frozen=True):
    """A rollout was admitted and waits: `waiting` of its sandboxes, behind `ahead` of others, because of `reason`.

    `start_ms`: when the last of them may be given to a node, going by how fast room came free lately; 0: unknown.
    """

    rollout: str
    ahead: int
    waiting: int
    reason: str
    start_ms: int = 0


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
    retry_after_ms: int = 0


class SandboxesHedged(Message, frozen=True):
    """These sandboxes take long to start: the attempt `hedge` of them starts elsewhere, and the first one ready counts.

    Counts from where it is in the log, for the scheduler, too.
    """

    rollout: str
    attempt: int
    hedge: int
    indices: Ranges


class SandboxesClosed(Message, frozen=True):
    """The scheduler gives these sandboxes up. Counts from where it is in the log, for the scheduler, too."""

    rollout: str
    indices: Ranges
    reason: EndReason
    detail: str


class RolloutConcluded(Message, frozen=True):
    """Every sandbox of a rollout has ended. `counts` holds how many for which reason."""

    rollout: str
    counts: tuple[tuple[EndReason, int], ...]
    reason: str  # finished, released, cancelled or timed_out


# --- the rollout log: what the scheduler must know


class TemplateResolved(Message, frozen=True):
    """A template's name stands for this snapshot now, or `error` says why it stands for nothing."""

    tenant: str
    template: str
    snapshot: Snapshot | None
    error: str = ""


class CellCapacity(Message, frozen=True):
    """How many sandboxes the cell's living nodes hold at most, and which isolations they offer; `pools` says more."""

    slots: int
    nodes: int
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


class Tick(Message, frozen=True):
    """Time passes: published when a core has asked to be woken and nothing else came."""

    due_ms: int


# --- the placement log


class PlaceRequested(Message, frozen=True):
    """The scheduler wants these sandboxes placed.

    `spec.commands` is empty, has one entry, or one for each of `indices` in order. `deadline_ms` is their rollout's
    end; `avoid` names nodes that failed them; `together`: all are placed at once, or none.
    """

    rollout: str
    tenant: str
    run: str
    cell: int
    attempt: int
    indices: Ranges
    spec: RolloutSpec
    snapshot: Snapshot
    deadline_ms: int
    avoid: tuple[str, ...] = ()
    together: bool = False


class ReleaseRequested(Message, frozen=True):
    """The scheduler wants these sandboxes gone (no indices: all of the rollout), placed or still waiting.

    `attempt`: only that one of them; -1: whichever.
    """

    rollout: str
    indices: Ranges
    reason: EndReason
    attempt: int = -1


class PreemptRequested(Message, frozen=True):
    """The scheduler wants the room of these sandboxes for others; `how` they make room, hibernate or restart."""

    rollout: str
    attempt: int
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
    starts_per_s: float = 100.0
    unenforced: tuple[str, ...] = ()  # limits this executor cannot enforce, for people


class ExecutorBeat(Message, frozen=True):
    """An executor lives. `live` sandboxes, and `starting` more in its queue; what it started tells how fast it is."""

    executor: str
    boot: str
    live: int = 0
    starting: int = 0
    started: int = 0  # sandboxes started in this boot, and
    busy_ms: int = 0  # how long there was something to start


class ExecutorHolds(Message, frozen=True):
    """An executor has these blobs at hand, the most recently used first; those it does not name, it would fetch."""

    executor: str
    boot: str
    blobs: tuple[str, ...]


class PrefetchSnapshot(Message, frozen=True):
    """Make starts from this snapshot fast before anybody asks for one: said to placement, and by it to executors."""

    snapshot: Snapshot


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
    attempt: int
    indices: Ranges


# --- an executor's inbox: control


class StartSandboxes(Message, frozen=True):
    """Start these sandboxes on a node. `commands` is empty, has one entry, or one for each index in order."""

    boot: str
    node: str
    rollout: str
    tenant: str
    run: str
    cell: int
    attempt: int
    indices: Ranges
    snapshot: Snapshot
    resources: Resources
    commands: tuple[Command, ...]
    files: tuple[InputFile, ...]
    env: tuple[tuple[str, str], ...]
    user: str
    deadline_ms: int
    checkpoint_every_ms: int = 0
    checkpoint_commands: int = 0
    idle_after_ms: int = 0
    lifetime_ms: int = 0


class DestroySandboxes(Message, frozen=True):
    """End these sandboxes (no indices: all of the rollout on this executor). `attempt`: of that one only; -1: any."""

    boot: str
    rollout: str
    indices: Ranges
    reason: EndReason
    attempt: int = -1


class PreemptSandboxes(Message, frozen=True):
    """Make room: these sandboxes go to sleep as soon as no command is under way in them, or are ended."""

    boot: str
    rollout: str
    attempt: int
    indices: Ranges
    how: OnPreempted


# --- an executor's inbox: commands by trainers


class RunCommand(Message, frozen=True):
    """Run a command in a live sandbox. `id` is the trainer's; seen again, the recorded result is returned."""

    id: str
    tenant: str
    run: str
    cell: int
    rollout: str
    index: int
    attempt: int
    command: Command
    stream: bool = False  # publish output as it comes, too


class WriteFile(Message, frozen=True):
    """Write a piece of a file at `offset`; offset 0 creates or truncates it, and makes missing directories."""

    id: str
    tenant: str
    run: str
    cell: int
    rollout: str
    index: int
    attempt: int
    path: str
    data: bytes
    offset: int = 0
    mode: int = 0o644


class ReadFile(Message, frozen=True):
    """Read at most `limit` bytes of a file from `offset`."""

    id: str
    tenant: str
    run: str
    cell: int
    rollout: str
    index: int
    attempt: int
    path: str
    offset: int = 0
    limit: int = 256 * 1024


class TakeSnapshot(Message, frozen=True):
    """Keep a live sandbox as it is now, under `name` unless that is empty; the sandbox goes on.

    `memory`: "yes" (refused where the driver cannot), "no", or "" for wherever the driver can.
    """

    id: str
    tenant: str
    run: str
    cell: int
    rollout: str
    index: int
    attempt: int
    name: str = ""
    memory: str = ""


class RollBack(Message, frozen=True):
    """Make a live sandbox what this snapshot holds; what happened in it since is gone."""

    id: str
    tenant: str
    run: str
    cell: int
    rollout: str
    index: int
    attempt: int
    snapshot: Snapshot


class Hibernate(Message, frozen=True):
    """Put a live sandbox to sleep, with all it has in memory; the next command wakes it."""

    id: str
    tenant: str
    run: str
    cell: int
    rollout: str
    index: int
    attempt: int


# --- the trajectory


class CommandOutput(Message, frozen=True):
    """A piece of a streamed command's output. `channel` is 1 for stdout, 2 for stderr; `part` counts from 0."""

    id: str
    rollout: str
    index: int
    part: int
    channel: int
    data: bytes


class CommandFinished(Message, frozen=True):
    """A command ended by itself or by its limits. `command` is kept, so that the trajectory tells the whole story."""

    id: str
    rollout: str
    index: int
    attempt: int
    command: Command
    result: CommandResult


class FileWritten(Message, frozen=True):
    """A piece of a file was written."""

    id: str
    rollout: str
    index: int
    attempt: int
    path: str
    size: int  # of the whole file, in bytes


class FileRead(Message, frozen=True):
    """A piece of a file was read; `eof` when nothing follows."""

    id: str
    rollout: str
    index: int
    attempt: int
    path: str
    data: bytes
    size: int
    eof: bool


class SnapshotTaken(Message, frozen=True):
    """A live sandbox was kept as it was. `took_us`: how long it stood still for it, in microseconds."""

    id: str
    rollout: str
    index: int
    attempt: int
    snapshot: Snapshot
    name: str = ""
    took_us: int = 0


class RolledBack(Message, frozen=True):
    """A sandbox is again what the snapshot with this digest holds."""

    id: str
    rollout: str
    index: int
    attempt: int
    digest: str


class Hibernated(Message, frozen=True):
    """A sandbox sleeps, and occupies nothing; the snapshot with this digest is all of it."""

    id: str
    rollout: str
    index: int
    attempt: int
    digest: str


class CommandRefused(Message, frozen=True):
    """A command, file operation or snapshot was not carried out.

    `code` is `sandbox_gone` (with the reason it ended, where known), `file_error`, `bad_request`, `unsupported` (by
    the sandbox's driver), `snapshot_failed`, `rolled_back` (while it ran), `asleep` (wake it, and ask again: nothing
    was carried out), `busy` (it cannot sleep while a command is under way) or `answer_gone` (it was carried out before,
    and the trajectory has its result).
    """

    id: str
    rollout: str
    index: int
    attempt: int
    code: str
    detail: str
    reason: EndReason | None = None


# --- the snapshot log


class ResolveTemplate(Message, frozen=True):
    """A scheduler asks what a template's name stands for."""

    cell: int
    tenant: str
    template: str


class TemplateInspected(Message, frozen=True):
    """The snapshot service looked at a template's source and found this."""

    template: str
    snapshot: Snapshot | None
    error: str = ""


class SnapshotAdded(Message, frozen=True):
    """A snapshot was taken and all its bytes are stored. `origin` is the sandbox's name; `name` may be empty.

    Its own rollout may need it until `until_ms`. One that is `automatic` takes the place of the one before it of the
    same sandbox.
    """

    tenant: str
    snapshot: Snapshot
    name: str = ""
    origin: str = ""
    until_ms: int = 0
    automatic: bool = False


class SnapshotHeld(Message, frozen=True):
    """A rollout starts sandboxes from this snapshot, until that moment at the latest."""

    tenant: str
    digest: str
    rollout: str
    until_ms: int


class SnapshotLetGo(Message, frozen=True):
    """A rollout is over."""

    tenant: str
    rollout: str


class BuildTemplate(Message, frozen=True):
    """A client wants a template made and called so."""

    id: str
    tenant: str
    name: str
    recipe: Recipe


class BuildBegun(Message, frozen=True):
    """A template is being made for whoever asked under this id; others may wait for the same build."""

    id: str
    key: str


class BuildProgress(Message, frozen=True):
    """How far a build is. `step` is what it does, `line` the last it had to say."""

    key: str
    step: str
    line: str = ""


class TemplateMade(Message, frozen=True):
    """The snapshot service made a template, or could not: `error` then has the failing command's output."""

    key: str
    snapshot: Snapshot | None
    error: str = ""


class TemplateBuilt(Message, frozen=True):
    """What came of a wish for a template. `cached`: it was there already."""

    id: str
    name: str
    snapshot: Snapshot | None
    error: str = ""
    cached: bool = False


class ListSnapshots(Message, frozen=True):
    """A client wants to see its tenant's snapshots."""

    id: str
    tenant: str


class SnapshotsListed(Message, frozen=True):
    """A part of a tenant's snapshots; `more` follow."""

    id: str
    entries: tuple[SnapshotEntry, ...]
    more: bool = False


class PinSnapshot(Message, frozen=True):
    """Keep a snapshot, named by its name or digest, for good; or no longer."""

    id: str
    tenant: str
    snapshot: str
    pinned: bool = True


class RemoveSnapshot(Message, frozen=True):
    """A snapshot, named by its name or digest, is of no use any more: its names go, and it when nothing needs it."""

    id: str
    tenant: str
    snapshot: str


class SnapshotChanged(Message, frozen=True):
    """A wish about a snapshot was fulfilled, or `error` says why not. `needed`: why it is kept nevertheless."""

    id: str
    digest: str
    error: str = ""
    needed: str = ""


class BlobsCollected(Message, frozen=True):
    """These blobs are in the store no longer, or somebody has put them there anew."""

    digests: tuple[str, ...]


# --- dead letters


DEAD_PAYLOAD_KEPT: Final = 256 * 1024
"""Bytes of a dead message's payload that its dead letter keeps, so that the letter itself can be stored."""


class DeadLetter(Message, frozen=True):
    """A message nobody could use, kept with where it came from and why it was given up.

    `size`: bytes of the whole payload, of which at most `DEAD_PAYLOAD_KEPT` are here; 0 where its writer did not say.
    """

    stream: str
    sequence: int
    subject: str
    reader: str
    reason: str
    payload: bytes
    size: int = 0

    @property
    def whole(self) -> bool:
        """Whether the payload is all of it, as far as the letter tells."""
        return len(self.payload) == self.size or (not self.size and len(self.payload) < DEAD_PAYLOAD_KEPT)


AnyMessage = (
    RolloutSubmitted | RolloutReleased | RolloutCancelled | SandboxesWanted
    | SandboxesReady | SandboxesFinished | SandboxesEnded | SandboxSaved | SandboxSlept
    | RolloutQueued | RolloutDispatched | RolloutRejected | RolloutConcluded | SandboxesHedged | SandboxesClosed
    | TemplateResolved | CellCapacity | TenantAdded | TenantRemoved | TenantSet | Tick
    | PlaceRequested | ReleaseRequested | PreemptRequested | NodeDrained | ExecutorJoined | ExecutorBeat | ExecutorHolds
    | ExecutorLeft | SlotsReleased | PrefetchSnapshot
    | StartSandboxes | DestroySandboxes | PreemptSandboxes | RunCommand | WriteFile | ReadFile | TakeSnapshot | RollBack
    | Hibernate | CommandOutput | CommandFinished | FileWritten | FileRead | SnapshotTaken | RolledBack | Hibernated
    | CommandRefused
    | ResolveTemplate | TemplateInspected | SnapshotAdded | SnapshotHeld | SnapshotLetGo
    | BuildTemplate | BuildBegun | BuildProgress | TemplateMade | TemplateBuilt
    | ListSnapshots | SnapshotsListed | PinSnapshot | RemoveSnapshot | SnapshotChanged | BlobsCollected
    | DeadLetter
)  # fmt: skip
