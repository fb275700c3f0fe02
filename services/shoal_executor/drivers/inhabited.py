"""What the drivers have in common that run real commands: sandboxes whose first process is an agent."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Generic, TypeVar

import msgspec

from shoal import host
from shoal.wire.messages import Command, CommandResult, EndReason, FileOp, InputFile, Resources
from shoal.wire.values import APPEND
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.cgroups import Group, Groups
from shoal_executor.drivers.each import side_by_side
from shoal_executor.drivers.ground import GONE, Ground
from shoal_executor.drivers.protocol import (
    BadInputError,
    DriverError,
    ExitSink,
    FileChunk,
    Found,
    NoSuchSandboxError,
    NotEndedError,
    NotRunError,
    OutputSink,
    Ran,
    SandboxFileError,
    SettledError,
    Started,
    StartFailed,
    StartSpec,
    why_not_started,
)

UP_S: Final = 30.0
"""How long a sandbox may take to come up, or to end."""
_SHM: Final = 64 * 1024**2
_PIECE: Final = 1024**2
_REMOVING_S: Final = 45.0
"""For how long a directory is removed: somebody may fill it meanwhile, and its trainer waits for a minute."""


@dataclass(slots=True)
class Inhabited(ABC):
    """One sandbox, seen from its driver: its link, its limits, and who waits for what.

    `ground`: the directory it was started upon, where that is known and there is one.
    `oom_kills`: how many of the kills that its group counts have been told of; `oom_commands`: of which commands' ends,
    as long as those are not settled.
    """

    name: str
    link: Link
    group: Group
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: EndReason | None = None
    oom_kills: int = 0
    oom_commands: set[str] = field(default_factory=set)
    ground: Ground | None = None
    _runs: "dict[str, asyncio.Future[CommandResult]]" = field(default_factory=dict)

    async def once(self, id: str, run: Callable[[], Awaitable[CommandResult]]) -> CommandResult:
        """Run, or wait with whoever asked under this id before: what becomes of theirs is the answer to both.

        When their waiting is cancelled it is asked again, which runs nothing twice: the agent knows the id.
        """
        while (known := self._runs.get(id)) is not None:
            await asyncio.wait([known])
            if not known.cancelled():
                return known.result()
        coming: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
        self._runs[id] = coming
        try:
            result = await run()
        except asyncio.CancelledError:
            coming.cancel()
            raise
        except Exception as error:
            coming.set_exception(error)
            coming.exception()  # perhaps nobody else waits
            raise
        else:
            coming.set_result(result)
            return result
        finally:
            del self._runs[id]

    @property
    def fault(self) -> str:
        """What its kernel failed of, where it has one of its own that did."""
        return ""

    @abstractmethod
    async def killed(self) -> None:
        """End it, and wait until it has: then `ended` is set. Raises TimeoutError after `UP_S`."""


_Answer = TypeVar("_Answer", bound=frames.Tell)
_Kind = TypeVar("_Kind", bound=Inhabited)


class AgentDriver(ABC, Generic[_Kind]):
    """Starts many at a time, and has their agents do what is asked. `parallel` bounds the starts under way."""

    def __init__(self, groups: Groups, parallel: int) -> None:
        self._groups = groups
        self._starts_at_once = parallel
        self._parallel = asyncio.Semaphore(parallel)
        self._live: dict[str, _Kind] = {}
        self._starting: dict[str, _Kind] = {}
        self._ending: dict[str, _Kind] = {}
        self._ends: dict[str, asyncio.Task[None]] = {}  # of those of `_ending` that somebody ends now
        self._on_exit: ExitSink = lambda *_: None
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def _start(self, name: str, spec: StartSpec) -> None:
        """Start one, and have it in `_live`. Raises DriverError, OSError, TimeoutError, having left nothing."""

    @abstractmethod
    async def _end(self, sandbox: _Kind) -> None:
        """End one of `_ending`, leave nothing of it, and take it out of there. What fails here may be tried again."""

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        """Start all of them, so many at a time; yields each as it is up."""
        outcomes: asyncio.Queue[Started | StartFailed] = asyncio.Queue()

        async def one(name: str) -> None:
            try:
                async with self._parallel:
                    await self._start(name, spec)
            except (DriverError, OSError, TimeoutError) as error:
                outcomes.put_nowait(StartFailed(name, str(error) or type(error).__name__, why_not_started(error)))
            else:
                outcomes.put_nowait(Started((name,)))

        tasks = [asyncio.create_task(one(name)) for name in names]
        try:
            for _ in tasks:
                yield await outcomes.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            unseen = [outcomes.get_nowait() for _ in range(outcomes.qsize())]
            await self.destroy([name for outcome in unseen if isinstance(outcome, Started) for name in outcome.names])

    def run_each(
        self, names: Sequence[str], commands: Sequence[Command], *, id: str = ""
    ) -> AsyncIterator[Sequence[Ran]]:
        """Run them side by side."""
        return side_by_side(partial(self.run, id=id), names, commands)

    async def run(
        self, name: str, command: Command, output: OutputSink | None = None, *, id: str = ""
    ) -> CommandResult:
        """Have the agent run a command."""
        sandbox = self._get(name)
        if not id:
            return await self._run(sandbox, command, output, id)
        return await sandbox.once(id, lambda: self._run(sandbox, command, output, id))

    def give_up(self, name: str, id: str) -> None:
        """Have the agent end a command."""
        if (sandbox := self._live.get(name)) is not None:
            sandbox.link.say(frames.GiveUp(0, id))

    def settle(self, name: str, ids: Sequence[str]) -> None:
        """Tell the agent that it need not keep these results."""
        sandbox = self._live.get(name)
        if sandbox is None:
            return
        sandbox.link.say(frames.Settle(0, tuple(ids)))
        if not sandbox.oom_commands.isdisjoint(ids):
            sandbox.oom_commands.difference_update(ids)
            self._groups.tell_oom_kills(sandbox.group, sandbox.oom_kills, sandbox.oom_commands)

    async def _run(self, sandbox: _Kind, command: Command, output: OutputSink | None, id: str) -> CommandResult:
        limit = command.output_limit
        answer = await self._ask(
            sandbox, frames.Done, lambda number: frames.Run(number, command, output is not None, id), output, limit
        )
        result = answer.result
        wrote = [
            await self._whole(sandbox, id, channel, data, size, limit)
            for channel, data, size in zip((1, 2), (result.stdout, result.stderr), answer.sizes, strict=True)
        ]
        result = msgspec.structs.replace(result, stdout=wrote[0], stderr=wrote[1])
        if result.exit_code and sandbox.ground is not None and not sandbox.ground.stands():
            if sandbox.wanted is None:  # no program may be there any more: that it failed says nothing of the command
                sandbox.wanted = EndReason.NODE_LOST
                self._on_exit(sandbox.name, sandbox.wanted, GONE)
            raise NoSuchSandboxError(sandbox.name, sandbox.wanted)
        if result.exit_code and (kills := self._groups.oom_kills(sandbox.group)) > sandbox.oom_kills:
            sandbox.oom_kills = kills
            sandbox.oom_commands.update([id] if id else [])
            self._groups.tell_oom_kills(sandbox.group, kills, sandbox.oom_commands)
            return msgspec.structs.replace(result, out_of_memory=True)
        if id in sandbox.oom_commands:  # and it was told before, perhaps by a process that noted it nowhere
            return msgspec.structs.replace(result, out_of_memory=True)
        return result

    async def _whole(self, sandbox: _Kind, id: str, channel: int, data: bytes, size: int, limit: int) -> bytes:
        """Return all of what a command wrote, of which the beginning came with its end."""
        pieces, done = [data], len(data)
        while done < size <= limit:
            ask = partial(frames.Rest, key=id, channel=channel, offset=done, limit=frames.IN_FRAME)
            piece = await self._ask(sandbox, frames.Piece, ask)
            pieces.append(piece.data)
            done += len(piece.data)
            if not piece.data:
                break
        if done != size or size > limit:  # only a tampered agent says so
            await sandbox.killed()
            raise NoSuchSandboxError(sandbox.name, sandbox.wanted)
        return b"".join(pieces)

    async def write_file(
        self, name: str, path: str, data: bytes, *, offset: int = 0, mode: int = 0o644, id: str = ""
    ) -> int:
        """Have the agent write a piece of a file, in smaller pieces where it is large."""
        sandbox = self._get(name)
        size = 0
        for start in range(0, max(len(data), 1), _PIECE):
            appended = offset == APPEND  # the rest may be written twice
            piece = partial(
                frames.Write, path=path, data=data[start : start + _PIECE], mode=mode,
                offset=APPEND if appended else offset + start, key=f"{id}+{start}" if appended and id else "",
            )  # fmt: skip
            answer = await self._ask(sandbox, frames.Wrote, piece)
            size = answer.size
        return size

    async def read_file(self, name: str, path: str, *, offset: int = 0, limit: int = 262_144) -> FileChunk:
        """Have the agent read a piece of a file."""
        answer = await self._ask(self._get(name), frames.Piece, lambda id: frames.Read(id, path, offset, limit))
        return FileChunk(answer.data, answer.size, answer.eof)

    async def manage_files(
        self, name: str, op: FileOp, path: str, *, to: str = "", recursive: bool = False, id: str = ""
    ) -> Found:
        """Have the agent do it; of what takes long, one piece after the other."""
        sandbox = self._get(name)
        ask = partial(frames.Manage, op=op, path=path, to=to, recursive=recursive, key=id if op.changes else "")
        answer = await self._ask(sandbox, frames.Managed, ask)
        until = asyncio.get_running_loop().time() + _REMOVING_S
        while op.changes and answer.more:
            if asyncio.get_running_loop().time() > until:
                raise SandboxFileError(f"{path}: not all of it is removed after {_REMOVING_S:g} s; use `rm -r`")
            answer = await self._ask(sandbox, frames.Managed, partial(ask, going_on=True))
        return Found(answer.entries, answer.more)

    async def destroy(self, names: Sequence[str]) -> None:
        """End these with all their processes, and wait until nothing is left."""
        # Tasks of their own: a caller who loses patience, or one that cannot end, must not leave the others behind.
        ends = {name: end for name in names if (end := self._end_of(name)) is not None}
        came = await asyncio.shield(asyncio.gather(*ends.values(), return_exceptions=True))
        errors = {name: error for name, error in zip(ends, came, strict=True) if error is not None}
        if errors:
            why = next(iter(errors.values()))
            raise NotEndedError(errors, why) from why

    def _end_of(self, name: str) -> "asyncio.Task[None] | None":
        """Return the end of a sandbox that is under way, or begin it; None where there is none."""
        if name in self._ends:
            return self._ends[name]
        sandbox = self._live.pop(name, None) or self._ending.get(name)  # the latter: it could not be ended before
        if sandbox is None:
            return None
        sandbox.wanted = sandbox.wanted or EndReason.RELEASED  # of one that died, only what is left is ended
        self._ending[name] = sandbox
        end = self._ends[name] = asyncio.create_task(self._end(sandbox))
        self._tasks.add(end)
        end.add_done_callback(self._tasks.discard)
        end.add_done_callback(lambda _: self._ends.pop(name))
        return end

    async def list(self) -> list[str]:
        """Names of the live sandboxes."""
        return list(self._live)

    def stands(self, name: str) -> bool:
        """Return whether what it was started upon is still there."""
        ground = self._get(name).ground
        return ground is None or ground.stands()

    # ---

    def _get(self, name: str) -> _Kind:
        try:
            return self._live[name]
        except KeyError:
            raise NoSuchSandboxError(name) from None

    def _gone(self, sandbox: _Kind) -> None:
        """Tell the executor of an end nobody asked for."""
        if sandbox.name not in self._live or sandbox.wanted is not None:
            return
        detail = "its first process ended"
        sandbox.wanted = EndReason.DIED
        if self._groups.oom_kills(sandbox.group) > sandbox.oom_kills:
            sandbox.wanted, detail = EndReason.OUT_OF_MEMORY, "its first process was killed"
        elif sandbox.fault and self._groups.refused_processes(sandbox.group):
            sandbox.wanted = EndReason.OUT_OF_PROCESSES
        if sandbox.fault:
            detail = f"its kernel failed: {sandbox.fault}"
        self._on_exit(sandbox.name, sandbox.wanted, detail)

    async def _ask(
        self,
        sandbox: _Kind,
        expected: type[_Answer],
        make: Callable[[int], frames.Ask],
        output: OutputSink | None = None,
        limit: int = 0,
    ) -> _Answer:
        answer = await sandbox.link.ask(make, output, limit)
        if answer is None:  # it ended, or broke the rules of its link: then it ends now
            await sandbox.killed()
            raise NoSuchSandboxError(sandbox.name, sandbox.wanted)
        if isinstance(answer, frames.Failed):
            raise SandboxFileError(answer.detail)
        if isinstance(answer, frames.Settled):
            raise SettledError("it was run before, and its answer is gone: it was settled")
        if isinstance(answer, frames.NotRun):
            raise NotRunError(_why_not_run(answer))
        if not isinstance(answer, expected):  # only a tampered agent answers something else
            await sandbox.killed()
            raise NoSuchSandboxError(sandbox.name, sandbox.wanted)
        return answer


def _why_not_run(told: frames.NotRun) -> str:
    if not told.what:
        return "it was given up before it began; nothing of it was run"
    holder = f"command {told.before.partition(':')[2] or '(without an id)'}, {told.what!r},"
    return f"it waited {told.seconds:.0f} s for its turn, which {holder} still has; nothing of this one was run"


def starts_at_once(parallel: int | None, *, a_core: int) -> int:
    """Return how many starts are under way at a time: what was asked for, or so many a core."""
    return parallel or a_core * host.cores()


def sizes(limits: Resources) -> tuple[int, int]:
    """Return the sizes of a sandbox's disk and of its /dev/shm: both are memory, and must fit into it with room left,

    so that a full disk is an error to the program that fills it and not the sandbox's end.
    """
    shm = min(_SHM, limits.memory // 8)
    return max(min(limits.disk, limits.memory // 2), 1 << 20), max(shm, 1 << 16)


async def put(link: Link, file: InputFile) -> None:
    """Write an input file. Raises BadInputError where it cannot be written, DriverError."""
    answer = await link.ask(lambda id: frames.Write(id, file.path, file.data, 0, file.mode))
    if not isinstance(answer, frames.Wrote):
        if isinstance(answer, frames.Failed):
            raise BadInputError(f"input file {file.path}: {answer.detail}")
        raise DriverError(f"input file {file.path}: the sandbox ended")
