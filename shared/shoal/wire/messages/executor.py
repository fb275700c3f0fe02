"""An executor's inbox: what the system tells it (control), and what trainers want done in their sandboxes."""

from shoal.wire.bounds import Integer
from shoal.wire.messages.base import Message
from shoal.wire.values import Blob, Command, EndReason, FileOp, InputFile, OnPreempted, Ranges, Resources, Snapshot

# --- control


class StartSandboxes(Message, frozen=True):
    """Start these sandboxes on a node. `commands` is empty, has one entry, or one for each index in order.

    `deadline_ms` is their rollout's end, by the broker's clock. What is ready by `ready_by_ms` has at least half of its
    rollout's time, and times out at the end; what is ready later ends as `deadline`. 0: nobody said; it times out.
    """

    boot: str
    node: str
    rollout: str
    tenant: str
    run: str
    cell: Integer
    attempt: Integer
    indices: Ranges
    snapshot: Snapshot
    resources: Resources
    commands: tuple[Command, ...]
    files: tuple[InputFile, ...]
    env: tuple[tuple[str, str], ...]
    user: str
    deadline_ms: Integer
    checkpoint_every_ms: Integer = 0
    checkpoint_commands: Integer = 0
    idle_after_ms: Integer = 0
    lifetime_ms: Integer = 0
    ready_by_ms: Integer = 0


class DestroySandboxes(Message, frozen=True):
    """End these sandboxes (no indices: all of the rollout on this executor). `attempt`: of that one only; -1: any."""

    boot: str
    rollout: str
    indices: Ranges
    reason: EndReason
    attempt: Integer = -1


class PreemptSandboxes(Message, frozen=True):
    """Make room: these sandboxes go to sleep as soon as no command is under way in them, or are ended."""

    boot: str
    rollout: str
    attempt: Integer
    indices: Ranges
    how: OnPreempted


class ExecutorDismissed(Message, frozen=True):
    """All nodes of this executor are drained and empty: it leaves the cluster until one of them is not."""

    boot: str


class ExecutorReplaced(Message, frozen=True):
    """Another boot has joined under this executor's name: what it holds was given up, and it ends for good."""

    boot: str


# --- commands by trainers


class RunCommand(Message, frozen=True):
    """Run a command in a live sandbox. `id` is the trainer's; seen again, the recorded result is returned.

    What is not `idempotent` is told to the trajectory before it is begun.
    """

    id: str
    tenant: str
    run: str
    cell: Integer
    rollout: str
    index: Integer
    attempt: Integer
    command: Command
    stream: bool = False  # publish output as it comes, too
    idempotent: bool = True


class WriteFile(Message, frozen=True):
    """Write a piece of a file at `offset`, and make missing directories.

    Offset 0 creates or truncates the file; -1 creates it, or appends to it, once for an id.
    """

    id: str
    tenant: str
    run: str
    cell: Integer
    rollout: str
    index: Integer
    attempt: Integer
    path: str
    data: bytes
    offset: Integer = 0
    mode: Integer = 0o644
    idempotent: bool = True


class ReadFile(Message, frozen=True):
    """Read at most `limit` bytes of a file from `offset`."""

    id: str
    tenant: str
    run: str
    cell: Integer
    rollout: str
    index: Integer
    attempt: Integer
    path: str
    offset: Integer = 0
    limit: Integer = 256 * 1024


class ManageFile(Message, frozen=True):
    """Look at files, or change which there are. `to` is what a file is renamed to.

    `recursive`: remove a directory with all that is in it.
    """

    id: str
    tenant: str
    run: str
    cell: Integer
    rollout: str
    index: Integer
    attempt: Integer
    op: FileOp
    path: str
    to: str = ""
    recursive: bool = False
    idempotent: bool = True


class TakeSnapshot(Message, frozen=True):
    """Keep a live sandbox as it is now, under `name` unless that is empty; the sandbox goes on.

    `memory`: "yes" (refused where the driver cannot), "no", or "" for wherever the driver can.
    """

    id: str
    tenant: str
    run: str
    cell: Integer
    rollout: str
    index: Integer
    attempt: Integer
    name: str = ""
    memory: str = ""


class RollBack(Message, frozen=True):
    """Make a live sandbox what this snapshot holds; what happened in it since is gone."""

    id: str
    tenant: str
    run: str
    cell: Integer
    rollout: str
    index: Integer
    attempt: Integer
    snapshot: Snapshot


class Hibernate(Message, frozen=True):
    """Put a live sandbox to sleep, with all it has in memory; the next command wakes it."""

    id: str
    tenant: str
    run: str
    cell: Integer
    rollout: str
    index: Integer
    attempt: Integer


class GiveUp(Message, frozen=True):
    """Nobody waits for the command with this id any more: it is killed, and one that has not begun never is.

    Has no answer of its own; the command's says so. Whatever is known of no such command, or has its answer, stays.
    """

    id: str
    tenant: str
    run: str
    cell: Integer
    rollout: str
    index: Integer
    attempt: Integer


class ReadBlob(Message, frozen=True):
    """Read at most `limit` bytes from `offset` of an output that was kept as a blob; of no sandbox in particular.

    Any executor with the cluster's blob store can answer, to the tenant whose output it was.
    """

    id: str
    tenant: str
    run: str
    cell: Integer
    blob: Blob
    offset: Integer
    limit: Integer
