"""What messages are made of: values without a tag of their own."""

from enum import StrEnum
from typing import Final

import msgspec

from shoal.wire.bounds import Integer, Number

Ranges = tuple[tuple[Integer, Integer], ...]
"""Indices of one rollout as sorted, disjoint `(first, count)` pairs."""


class EndReason(StrEnum):
    """Why a sandbox ended. `infrastructure` separates Shoal's failures from the sandbox's own."""

    SUCCEEDED = "succeeded"  # its command exited 0
    COMMAND_FAILED = "command_failed"  # its command exited otherwise, or could not be found
    TIMED_OUT = (
        "timed_out"  # its command's time or its lifetime was up; or its rollout's, and it had at least half of it
    )
    OUT_OF_MEMORY = "out_of_memory"  # the whole sandbox exceeded its memory limit and was ended
    RELEASED = "released"  # its trainer had no more use for it
    CANCELLED = "cancelled"  # its rollout was cancelled
    DIED = "died"  # its first process ended though nobody asked: the agent inside was killed
    NODE_LOST = "node_lost"  # its node went silent, or its executor restarted without it
    START_FAILED = "start_failed"  # its node could not start it
    DISK_FULL = "disk_full"  # its command failed, and its disk was full
    PREEMPTED = "preempted"  # it made room for what goes before it, and is started again
    NOT_STARTED = "not_started"  # there was no room for it before its submit deadline, or its rollout's end
    BAD_INPUT = "bad_input"  # a file, or the code of a warm interpreter, that its trainer gave it cannot be used
    OUT_OF_PROCESSES = "out_of_processes"  # it used up its processes so that its own kernel could not go on
    DEADLINE = "deadline"  # its rollout's time was up, and most of that went by before it was there

    @property
    def infrastructure(self) -> bool:
        """True where the platform failed: never a verdict on what ran inside."""
        return self in _INFRASTRUCTURE

    @property
    def lost(self) -> bool:
        """True where the platform failed and its rollout's time is not up: such a sandbox may be started again."""
        return self.infrastructure and self is not EndReason.DEADLINE


_INFRASTRUCTURE: Final = frozenset(
    (
        EndReason.NODE_LOST, EndReason.START_FAILED, EndReason.DIED, EndReason.PREEMPTED, EndReason.NOT_STARTED,
        EndReason.DEADLINE,
    )
)  # fmt: skip


class Isolation(StrEnum):
    """How a sandbox is kept apart from its host: the driver that runs it."""

    ZYGOTE = "zygote"
    GVISOR = "gvisor"
    SIMULATED = "simulated"


class OnLost(StrEnum):
    """What becomes of a sandbox that the platform lost."""

    RESTART = "restart"  # start it again elsewhere, empty, with its command
    FAIL = "fail"  # conclude it with its reason
    RESUME = "resume"  # go on elsewhere from its last snapshot; from its start where it has none


class OnPreempted(StrEnum):
    """How a sandbox makes room for what has a higher priority."""

    HIBERNATE = "hibernate"  # put it to sleep, and wake it when there is room; one that cannot sleep is left alone
    RESTART = "restart"  # end it, and start it again, empty, with its command
    NEVER = "never"  # leave it alone


class Value(msgspec.Struct, frozen=True, array_like=True):
    """A part of a message."""


class Resources(Value, frozen=True):
    """Limits of one sandbox. memory and disk in bytes, cpu in thousandths of a core, pids as a count."""

    memory: Integer = 256 * 1024**2
    cpu_milli: Integer = 1000
    pids: Integer = 256
    disk: Integer = 128 * 1024**2


class Command(Value, frozen=True):
    """One command: `argv`, or else `line` for a shell, or `python` for the sandbox's interpreter, whose state stays.

    Timeouts in ms (0: none); output limits in bytes per stream.
    """

    argv: tuple[str, ...] = ()
    line: str = ""
    cwd: str = ""
    env: tuple[tuple[str, str], ...] = ()
    stdin: bytes = b""
    timeout_ms: Integer = 0
    output_limit: Integer = 64 * 1024
    user: str = ""
    session: bool = False  # run `line` in the sandbox's one persistent shell, whose directory and variables stay
    python: str = ""


class CommandResult(Value, frozen=True):
    """What a command did. A death by signal N is exit code 128 + N; what could not be started is 126 or 127.

    Of more than the output limit, a stream's beginning and its end are kept. `dropped` counts the bytes left out
    between them; the last `tail` bytes of what is kept come after those. A stream that is too large for a message is
    kept as a blob, of which the message has the beginning: see `shoal.wire.outputs`.
    """

    exit_code: Integer
    stdout: bytes = b""
    stderr: bytes = b""
    duration_us: Integer = 0
    timed_out: bool = False
    stdout_dropped: Integer = 0
    stderr_dropped: Integer = 0
    out_of_memory: bool = False
    disk_full: bool = False  # it failed, and there was no room left on the disk
    stdout_blob: "Blob | None" = None
    stderr_blob: "Blob | None" = None
    stdout_tail: Integer = 0
    stderr_tail: Integer = 0
    given_up: bool = False  # it was killed because nobody waited for it any more


class InputFile(Value, frozen=True):
    """A file put into each sandbox before its command."""

    path: str
    data: bytes
    mode: Integer = 0o644


APPEND: Final = -1
"""The offset of what is written to the end of a file, wherever that is."""


class FileOp(StrEnum):
    """What is done with files besides reading and writing them. The first two only look."""

    LIST = "list"
    STAT = "stat"
    REMOVE = "remove"
    MAKE_DIR = "make_dir"
    RENAME = "rename"

    @property
    def changes(self) -> bool:
        """Whether it changes the sandbox."""
        return self not in (FileOp.LIST, FileOp.STAT)


class FileEntry(Value, frozen=True):
    """A file, by its last name. `kind`: file, directory, link or other. Size in bytes, `modified_ms` since the epoch.

    In a name what is not UTF-8 is written as a backslash, x and two digits.
    """

    name: str
    kind: str
    size: Integer
    mode: Integer  # the permissions, such as 0o644
    modified_ms: Integer


class Step(Value, frozen=True):
    """Where something that was asked of a sandbox stands in its story.

    `number`: in its attempt, from 1, in the order in which they were begun; 0: it was not begun, or this was told by an
    executor of before. `asked_ms`: when the request was stored, as `sequence` of the inbox of `executor`. What is not
    `idempotent` must not be carried out twice, whatever was lost of it. `beside`: the steps that were under way when it
    was begun; all others before it had come to their end.
    """

    number: Integer = 0
    asked_ms: Integer = 0
    executor: str = ""
    sequence: Integer = 0
    idempotent: bool = True
    beside: Ranges = ()


class Blob(Value, frozen=True):
    """Content-addressed bytes: the SHA-256 of the content in hexadecimal, and how many bytes it has."""

    digest: str
    size: Integer


class Snapshot(Value, frozen=True):
    """What sandboxes start from. `digest` names its content.

    Its template: `kind` is host, dir, tar (`path` is the source, on the node) or disk, with `disks`, EROFS files, the
    lowest first; `warm` is what its interpreter ran before anything was forked from it. What a live sandbox had written
    is in `layers`, EROFS files on top, the lowest first, and what it had in memory, for the isolation it ran in, in
    `memory`; `parent` is what that sandbox started from, `template` what all of it grew from: digests.

    `seal` is the word of the cluster that it made this one for a tenant (`shoal.runtime.sealing`), outside the digest.
    """

    digest: str
    kind: str
    path: str = ""
    disks: tuple[Blob, ...] = ()
    warm: str = ""
    layers: tuple[Blob, ...] = ()
    memory: Blob | None = None
    isolation: str = ""
    parent: str = ""
    env: tuple[tuple[str, str], ...] = ()  # of the image: every command's default
    template: str = ""
    seal: str = ""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All bytes it needs."""
        return (*self.disks, *self.layers, *((self.memory,) if self.memory else ()))


class RolloutSpec(Value, frozen=True):
    """What a rollout asks for.

    `commands` is empty (sandboxes wait for their trainer), has one entry (all run it) or `n` entries (one each).
    `max_attempts` bounds how often one sandbox is started. `timeout_ms` bounds the whole rollout, what it waits
    included. The first `min_ready` sandboxes start together or not at all (`n`: a gang), the others as there is room.
    """

    template: str
    n: Integer
    commands: tuple[Command, ...] = ()
    resources: Resources = Resources()
    files: tuple[InputFile, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    timeout_ms: Integer = 3_600_000
    on_lost: OnLost = OnLost.FAIL
    max_attempts: Integer = 3
    priority: Integer = 0
    isolation: str = ""  # empty: whatever the nodes have
    checkpoint_every_ms: Integer = 0  # take a snapshot so often, by itself; 0: never
    checkpoint_commands: Integer = 0  # or after so many commands
    warm: str = ""  # Python that the sandboxes' interpreters have run already when they start
    idle_after_ms: Integer = 0  # put a sandbox to sleep that has had no command for so long; 0: never
    min_ready: Integer = 0
    start_within_ms: Integer = 0  # what has not been given to a node by then is not started; 0: it waits
    lifetime_ms: Integer = 0  # of each sandbox, from its readiness; 0: as long as the rollout
    labels: tuple[tuple[str, str], ...] = ()  # of the nodes to run on
    spread_over: str = ""  # a label of nodes: as many sandboxes on those of each value, as there is room
    on_preempted: OnPreempted = OnPreempted.HIBERNATE
    hedge: bool = True  # start elsewhere, too, what takes much longer to start than the others of its rollout


class Room(Value, frozen=True):
    """What sandboxes take, or what there is of it. memory and disk in bytes, cpu in thousandths of a core.

    Of a node's room, cpu or disk of 0 is not counted: as much as its sandboxes like.
    """

    slots: Integer = 0
    memory: Integer = 0
    cpu_milli: Integer = 0
    disk: Integer = 0


class NodeSpec(Value, frozen=True):
    """A node as its executor describes it. `memory` in bytes and `slots` are what may be reserved there.

    So are `cpu_milli` and `disk` (bytes); 0: not counted, as much as its sandboxes like.
    """

    node: str
    slots: Integer
    memory: Integer
    labels: tuple[tuple[str, str], ...] = ()
    cpu_milli: Integer = 0
    disk: Integer = 0


class Pool(Value, frozen=True):
    """The living nodes of one isolation and these labels: how many, what all have together, and the largest of each.

    Of no nodes: what is held on drained ones.
    """

    isolation: str
    labels: tuple[tuple[str, str], ...]
    nodes: Integer
    total: Room
    largest: Room


class Limits(Value, frozen=True):
    """What a tenant may have at once over the whole cluster, and its weight in the fair share; 0 is no limit.

    `starts_per_s`: sandboxes started a second, hedges among them; `waiting`: sandboxes that may wait for room.
    """

    weight: Number = 1.0
    sandboxes: Integer = 0
    memory: Integer = 0
    cpu_milli: Integer = 0
    starts_per_s: Number = 0.0
    waiting: Integer = 0


SOURCES: Final = "host, dir:/path, tar:/path, docker-archive:/path, oci:/path[:TAG], docker://NAME or template:NAME"
"""What a template can be made of, for people."""


class Recipe(Value, frozen=True):
    """How a template is made: a source, commands that are run in it one after the other, and what is kept warm.

    `source`: see SOURCES. `resources` are of the sandbox that the commands run in, each for at most `timeout_ms`. With
    an `isolation` that keeps memory, all that runs in the end is part of the template, and goes on in what starts from
    it.
    """

    source: str
    setup: tuple[str, ...] = ()
    warm: str = ""
    env: tuple[tuple[str, str], ...] = ()
    resources: Resources = Resources()
    timeout_ms: Integer = 1_800_000
    isolation: str = ""


class SnapshotEntry(Value, frozen=True):
    """A snapshot as the catalogue lists it. `origin`: the sandbox it was taken of; times in ms since the epoch.

    `held`: how many rollouts run from it. What is neither named, pinned nor held goes some time after `used_ms`.
    """

    snapshot: Snapshot
    names: tuple[str, ...]
    pinned: bool
    origin: str
    added_ms: Integer
    used_ms: Integer
    held: Integer
