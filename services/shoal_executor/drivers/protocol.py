"""What an executor asks of a driver. Every driver inherits `tests/conformance/drivers.py`.

A driver touches the machine and knows nothing of rollouts, messages or the broker. Sandboxes are known to it by name.
"""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from shoal.wire.messages import (
    Blob,
    Command,
    CommandResult,
    EndReason,
    FileEntry,
    FileOp,
    InputFile,
    Resources,
    Snapshot,
)


class DriverError(Exception):
    """The driver could not do what was asked; the text is one sentence for people."""


class BadInputError(DriverError):
    """What came with the order to start a sandbox cannot be used, wherever it is started: a file, or code."""


def why_not_started(error: Exception) -> EndReason:
    """Return as what a start has failed."""
    return EndReason.BAD_INPUT if isinstance(error, BadInputError) else EndReason.START_FAILED


class IsolationFailedError(DriverError):
    """The driver's self-test found that it cannot isolate here. It must not serve."""


class NoSuchSandboxError(DriverError):
    """No live sandbox has this name. `reason` says why it ended, where that is known."""

    def __init__(self, name: str, reason: EndReason | None = None) -> None:
        super().__init__(f"no live sandbox {name}" + (f": it {reason}" if reason else ""))
        self.name = name
        self.reason = reason


class NotEndedError(DriverError):
    """These sandboxes could not be ended, so something of each may be left; of all others that were asked, nothing."""

    def __init__(self, names: Collection[str], why: object) -> None:
        super().__init__(f"{len(names)} could not be ended, {min(names)} for one: {why}")
        self.names = frozenset(names)
        self.why = why


class UnsupportedError(DriverError):
    """This driver cannot do what was asked, ever or with the runtime it found; the text says what could."""


class SettledError(DriverError):
    """A command was run before, and its result was settled: the sandbox has it no longer."""


class NotRunError(DriverError):
    """Nothing was run of a command, nor will be: it was given up, or waited too long for its turn behind another."""


class SandboxFileError(DriverError):
    """A file inside the sandbox cannot be read or written as asked: absent, a directory, no space, no permission."""


@dataclass(frozen=True, slots=True)
class DriverReport:
    """What a driver found when it opened. `unenforced` names limits it cannot enforce here, each with the reason.

    `starts_at_once`: how many sandboxes it starts at a time while others wait; 0 if none waits for another.
    """

    unenforced: tuple[str, ...] = ()
    starts_per_s: float = 100.0
    starts_at_once: int = 0


class StartSpec(msgspec.Struct, frozen=True):
    """What sandboxes start with. `env` is every command's default."""

    snapshot: Snapshot
    resources: Resources = Resources()
    files: tuple[InputFile, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""  # whom commands run as by default: a name or uid of the image; empty is root inside


class Started(msgspec.Struct, frozen=True):
    """Sandboxes take commands."""

    names: Sequence[str]


class StartFailed(msgspec.Struct, frozen=True):
    """A sandbox could not be started, as `start_failed` or `bad_input`; nothing of it is left."""

    name: str
    detail: str
    reason: EndReason = EndReason.START_FAILED


Ran = tuple[int, CommandResult | Exception]
"""What came of a command: in the how-manieth of the sandboxes that were asked, and what it returned, or why not."""


@dataclass(frozen=True, slots=True)
class FileChunk:
    """A piece of a file, and the whole file's size."""

    data: bytes
    size: int
    eof: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at files has found, by name; `more`: the directory has more than that."""

    entries: tuple[FileEntry, ...] = ()
    more: bool = False


@dataclass(frozen=True, slots=True)
class Captured:
    """What was kept of a sandbox, as files for whoever asked to store and remove.

    `layer`: an EROFS file of what it had written on top of what it started from, with deletions as overlayfs has them.
    `memory`: everything its processes had, in a form that only the same isolation understands; None where it was not
    kept. `stood_us`: how long its processes stood still, in microseconds. `finished`: the ids of the commands that had
    come to their end by then, and were not settled; of the others under way nobody can say how far they were.
    """

    layer: Path
    memory: Path | None
    stood_us: int
    finished: tuple[str, ...] = ()


class Disks(Protocol):
    """Where a driver gets the bytes of snapshots from."""

    async def path_of(self, blob: Blob) -> Path:
        """Return a local file with exactly this content, fetched once however many ask. Raises DriverError.

        The file may be unlinked later, never changed: open or mount it soon.
        """
        ...


OutputSink = Callable[[int, bytes], None]
"""Called with channel (1 stdout, 2 stderr) and data as a command writes, up to its output limit."""

ExitSink = Callable[[str, EndReason, str], None]
"""Called with name, reason and detail, once, when a sandbox ends by itself.

The reason is DIED, OUT_OF_MEMORY, OUT_OF_PROCESSES or NODE_LOST.
"""


class Driver(Protocol):
    """One way to isolate. All methods are safe to call concurrently; a cancelled call leaves nothing behind."""

    @property
    def isolation(self) -> str:
        """The name users choose it by."""
        ...

    @property
    def keeps_memory(self) -> bool:
        """Whether `capture` can keep what a sandbox has in memory; settled when `open` has returned."""
        ...

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        """Test that isolation works here and make ready, with what an earlier process of this node left behind.

        `keep` names sandboxes of it that are wanted still. Those that live are adopted: `list` names them, and they
        take commands. For each of the others `on_exit` is called before this returns. Whatever is not kept is ended
        and removed. Raises IsolationFailedError where a sandbox could reach what it must not.
        """
        ...

    async def prepare(self, snapshot: Snapshot) -> None:
        """Make starts from this snapshot fast: mount, unpack, warm. Once per snapshot, however many ask at once.

        Raises DriverError when the snapshot is unusable here.
        """
        ...

    def warming(self, snapshot: Snapshot) -> bool:
        """Return whether the snapshot's `warm` code runs at this moment, and starts from it wait for that."""
        ...

    def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        """Start a sandbox of each name, which are unique among all that this driver ever started.

        Yields outcomes as they come, each name in one of them. Bounds its own parallelism.
        """
        ...

    async def run(
        self, name: str, command: Command, output: OutputSink | None = None, *, id: str = ""
    ) -> CommandResult:
        """Run a command to its end, its timeout, or the sandbox's end (then NoSuchSandboxError with the reason).

        With an `id` that the sandbox has seen, whichever process of this node asked, nothing is run: what came of it is
        returned, and waited for while it runs. SettledError when that was settled; NotRunError where nothing was run
        of it, because it was given up before it was begun, or another command had the shell, or the interpreter, for 20
        s longer than this one may take.

        Commands share files and background processes with all others of the sandbox and may overlap, but session
        commands queue. A program that does not exist is a result (exit code 127 and a line on stderr), not an error.
        A timed-out command's whole process group is killed; background processes of earlier commands live on. Where
        `command.python` is given it runs in the sandbox's one interpreter, which is the template's warm one where it
        has one: what it prints and the repr of a last expression are stdout, a traceback is stderr with exit code 1.
        """
        ...

    def run_each(
        self, names: Sequence[str], commands: Sequence[Command], *, id: str = ""
    ) -> AsyncIterator[Sequence[Ran]]:
        """Run a command in each of these sandboxes, as `run` does; yields outcomes as they come, several at once.

        `commands`: one for all of them, or one for each.
        """
        ...

    async def capture(self, name: str, directory: Path, *, memory: bool, hold: bool = False) -> Captured:
        """Keep a live sandbox as it is at one moment, as files in an existing directory; it goes on afterwards.

        While it is captured all its processes stand still; its commands under way go on afterwards. With `hold`
        nothing of it goes on until `go_on`, or `destroy`, which loses nothing then: what was captured is all of it.
        Raises UnsupportedError, also where something would be lost with `hold`, and DriverError (a full disk, for
        one): the sandbox then goes on as if nothing had been asked, and nothing is left in the directory.
        """
        ...

    async def go_on(self, name: str) -> None:
        """Let a sandbox go on that was held when it was captured; what was captured may be gone by then.

        Raises DriverError when it cannot: it has ended then, and `on_exit` tells.
        """
        ...

    def give_up(self, name: str, id: str) -> None:
        """Nobody wants the command with this id any more: end it as if its time were up; `run` returns as ever.

        One that has not begun never will; one that came to its end stays as it is.
        """
        ...

    def settle(self, name: str, ids: Sequence[str]) -> None:
        """The results with these ids are kept elsewhere: the sandbox may forget them, though not that they were."""
        ...

    async def write_file(
        self, name: str, path: str, data: bytes, *, offset: int = 0, mode: int = 0o644, id: str = ""
    ) -> int:
        """Write at offset (0 truncates or creates, APPEND appends; directories are made). Returns the file's size.

        What is appended with an `id` that the sandbox has seen is not appended again. Raises SandboxFileError.
        """
        ...

    async def read_file(self, name: str, path: str, *, offset: int = 0, limit: int = 262_144) -> FileChunk:
        """Read a piece. Raises SandboxFileError."""
        ...

    async def manage_files(
        self, name: str, op: FileOp, path: str, *, to: str = "", recursive: bool = False, id: str = ""
    ) -> Found:
        """Look at files, or change which there are. Raises SandboxFileError.

        A listing is of links themselves, and has the first some thousands of what is there; stat follows links, and
        finds nothing where nothing is. Directories are made with those above them, also for what is renamed; one that
        is there already is as good. What is removed must be there, and a directory empty unless `recursive`. A change
        with an `id` that the sandbox has seen is not made again: the answer is that of the first time.
        """
        ...

    async def destroy(self, names: Sequence[str]) -> None:
        """End these sandboxes with all their processes, mounts and limits; returns when nothing is left of them.

        Names that are not live are ignored. Raises NotEndedError when all others have ended; those may be asked for
        again.
        """
        ...

    def stands(self, name: str) -> bool:
        """Return whether the files that a live sandbox was started upon are still there. Raises NoSuchSandboxError.

        Where they are not, a start makes them anew for itself, and a command that fails ends its sandbox (node_lost).
        """
        ...

    async def list(self) -> list[str]:
        """Names of the live sandboxes."""
        ...

    async def close(self) -> None:
        """End every sandbox and leave nothing on the machine."""
        ...
