"""A driver without processes: latencies and failures from a seeded distribution, thousands of nodes in one process.

What happens to a sandbox depends on the seed and the sandbox's name only, so a load test can be repeated. Whatever it
returns says "simulated", so that nobody takes it for real.
"""

import asyncio
import hashlib
import math
import statistics
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from shoal.wire.messages import Command, CommandResult, EndReason, FileOp, Isolation, Snapshot
from shoal_executor.drivers.crowd import Crowd, Sandbox
from shoal_executor.drivers.each import paired, side_by_side
from shoal_executor.drivers.kept import cut
from shoal_executor.drivers.protocol import (
    Captured,
    DriverError,
    DriverReport,
    ExitSink,
    FileChunk,
    Found,
    NoSuchSandboxError,
    NotRunError,
    OutputSink,
    Ran,
    SettledError,
    Started,
    StartFailed,
    StartSpec,
    UnsupportedError,
)
from shoal_executor.drivers.tree import Tree

_NORMAL: Final = statistics.NormalDist()


@dataclass(frozen=True, slots=True)
class Profile:
    """Latencies are log-normal: a median in ms and the spread of the logarithm. Rates are probabilities per event."""

    seed: int = 0
    start_ms: float = 0.0
    start_spread: float = 0.5
    command_ms: float = 0.0
    command_spread: float = 0.5
    start_failure_rate: float = 0.0
    command_failure_rate: float = 0.0
    starts_per_s: float = 25_000.0


class SimulatedDriver:
    """See the module. Files are kept in memory within the sandbox's disk limit; commands return a line, no effect."""

    isolation = Isolation.SIMULATED.value
    keeps_memory = False

    def __init__(self, profile: Profile | None = None) -> None:
        self._profile = profile or Profile()
        self._live = Crowd()
        self._ends: dict[str, dict[str, asyncio.Event]] = {}  # by sandbox, of the commands that take time

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        """Nothing to test, and nothing is enforced; what an earlier process simulated ended with it."""
        for name in keep:
            on_exit(name, EndReason.NODE_LOST, "simulated sandboxes end with their executor")
        nothing = tuple(f"{limit} (no process is limited: simulated)" for limit in ("memory", "cpu", "pids"))
        return DriverReport(unenforced=nothing, starts_per_s=self._profile.starts_per_s)

    async def prepare(self, snapshot: Snapshot) -> None:
        """Every snapshot is at hand."""

    def warming(self, snapshot: Snapshot) -> bool:
        """No code is run."""
        return False

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        """Yield each outcome after its drawn latency; those without latency at once."""
        profile = self._profile
        if not profile.start_ms and not profile.start_failure_rate:
            self._begin(names, spec)
            yield Started(names)
            return
        queue: list[tuple[float, str, bool]] = []
        for name in names:
            fails = bool(profile.start_failure_rate) and self._draw(name, "fails") < profile.start_failure_rate
            queue.append((self._latency(name, "start", profile.start_ms, profile.start_spread), name, fails))
        queue.sort(key=lambda entry: entry[0])
        loop = asyncio.get_running_loop()
        began = loop.time()
        for latency, name, fails in queue:
            remaining = began + latency - loop.time()
            if remaining > 0:
                await asyncio.sleep(remaining)
            if fails:
                yield StartFailed(name, "simulated start failure")
            else:
                self._begin((name,), spec)
                yield Started((name,))

    def _begin(self, names: Sequence[str], spec: StartSpec) -> None:
        self._live.add(names, spec.resources.disk)
        for name in names if spec.files else ():
            self._get(name).files = Tree(spec.resources.disk, spec.files)

    async def run(
        self, name: str, command: Command, output: OutputSink | None = None, *, id: str = ""
    ) -> CommandResult:
        """Return a line that says what would have run, after its drawn latency."""
        sandbox = self._get(name)
        if not id:
            return await self._run(name, sandbox, command, output, id)
        while id in sandbox.results:
            known = sandbox.results[id]
            if known is None:
                raise SettledError(f"the answer to {id} is gone: it was settled")
            if isinstance(known, CommandResult):
                return known
            await asyncio.wait([known])
            if not known.cancelled():
                return known.result()
        if id in sandbox.given_up:
            raise NotRunError("it was given up before it began; nothing of it was run")
        if not self._profile.command_ms:  # nobody can ask for it meanwhile
            result = sandbox.results[id] = await self._run(name, sandbox, command, output, id)
            return result
        coming: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
        sandbox.results[id] = coming
        try:
            result = await self._run(name, sandbox, command, output, id)
        except BaseException as error:
            del sandbox.results[id]
            if isinstance(error, Exception):
                coming.set_exception(error)
                coming.exception()  # perhaps nobody else waits
            else:
                coming.cancel()
            raise
        coming.set_result(result)
        sandbox.results[id] = result
        return result

    async def run_each(
        self, names: Sequence[str], commands: Sequence[Command], *, id: str = ""
    ) -> AsyncIterator[Sequence[Ran]]:
        """Say of each what would have run; where commands take no time, of all at once."""
        profile = self._profile
        if profile.command_ms:
            async for some in side_by_side(partial(self.run, id=id), names, commands):
                yield some
            return
        if id and len(commands) == 1 and not profile.command_failure_rate:  # nothing of it is of one sandbox alone
            result = _result(commands[0], output=None)
            if self._live.ran(names, id, result):
                yield list(enumerate([result] * len(names)))
                return
        found: list[Ran] = []
        for at, (name, command) in enumerate(paired(names, commands)):
            try:
                found.append((at, await self.run(name, command, id=id)))
            except DriverError as error:
                found.append((at, error))
        yield found

    def give_up(self, name: str, id: str) -> None:
        """End its latency."""
        sandbox = self._live.get(name)
        if sandbox is None:
            return
        if id not in sandbox.results or isinstance(sandbox.results[id], asyncio.Future):
            sandbox.given_up.add(id)
        if (ended := self._ends.get(name, {}).get(id)) is not None:
            ended.set()

    def settle(self, name: str, ids: Sequence[str]) -> None:
        """Forget these results."""
        sandbox = self._live.get(name)
        results = sandbox.results if sandbox is not None else {}
        for id in ids:
            if isinstance(results.get(id), CommandResult):
                results[id] = None

    async def _run(
        self, name: str, sandbox: Sandbox, command: Command, output: OutputSink | None, id: str
    ) -> CommandResult:
        sandbox.commands += 1
        profile = self._profile
        key = f"{name}/{sandbox.commands}"
        latency = self._latency(key, "command", profile.command_ms, profile.command_spread)
        timed_out = bool(command.timeout_ms) and latency * 1000 > command.timeout_ms
        if latency:
            ended = self._ends.setdefault(name, {})[id or key] = asyncio.Event()
            try:
                async with asyncio.timeout(min(latency, command.timeout_ms / 1000) if timed_out else latency):
                    await ended.wait()
            except TimeoutError:
                pass
            finally:
                self._ends.get(name, {}).pop(id or key, None)
        self._get(name)
        if id in sandbox.given_up:
            return _result(command, output, 137, 0, given_up=True)
        failed = profile.command_failure_rate and self._draw(key, "exit") < profile.command_failure_rate
        code = 137 if timed_out else int(bool(failed))
        return _result(command, output, code, int(latency * 1e6), timed_out=timed_out)

    async def write_file(
        self, name: str, path: str, data: bytes, *, offset: int = 0, mode: int = 0o644, id: str = ""
    ) -> int:
        """Keep the bytes within the sandbox's disk limit."""
        return self._files(name).write(path, data, offset, mode, id)

    async def read_file(self, name: str, path: str, *, offset: int = 0, limit: int = 262_144) -> FileChunk:
        """Return bytes written before."""
        return self._files(name).read(path, offset, limit)

    async def manage_files(
        self, name: str, op: FileOp, path: str, *, to: str = "", recursive: bool = False, id: str = ""
    ) -> Found:
        """Look at what was written before, or change it."""
        return self._files(name).manage(op, path, to, id, recursive=recursive)

    def _files(self, name: str) -> Tree:
        sandbox = self._get(name)
        if sandbox.files is None:
            sandbox.files = Tree(sandbox.disk)
        return sandbox.files

    async def capture(self, name: str, directory: Path, *, memory: bool, hold: bool = False) -> Captured:
        """Nothing here has a disk or a memory that could be started from."""
        self._get(name)
        raise UnsupportedError("simulated sandboxes have nothing to keep: use isolation zygote")

    async def go_on(self, name: str) -> None:
        """Nothing here was ever held."""

    async def destroy(self, names: Sequence[str]) -> None:
        """Forget these sandboxes; commands in them end with NoSuchSandboxError."""
        self._live.remove(names)
        for name in names if self._ends else ():
            for ended in self._ends.pop(name, {}).values():
                ended.set()

    def stands(self, name: str) -> bool:
        """There is nothing that could go."""
        return True

    async def list(self) -> list[str]:
        """Names of the live sandboxes."""
        return self._live.names()

    async def close(self) -> None:
        """Forget everything."""
        await self.destroy(self._live.names())

    def _get(self, name: str) -> Sandbox:
        sandbox = self._live.get(name)
        if sandbox is None:
            raise NoSuchSandboxError(name, EndReason.RELEASED)
        return sandbox

    def _draw(self, key: str, what: str) -> float:
        digest = hashlib.blake2b(f"{self._profile.seed}/{what}/{key}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest) + 0.5) / 2**64

    def _latency(self, key: str, what: str, median_ms: float, spread: float) -> float:
        if not median_ms:
            return 0.0
        return median_ms / 1000 * math.exp(spread * _NORMAL.inv_cdf(self._draw(key, what)))


def _result(
    command: Command,
    output: OutputSink | None,
    code: int = 0,
    duration_us: int = 0,
    *,
    timed_out: bool = False,
    given_up: bool = False,
) -> CommandResult:
    stdout = f"simulated: {command.line or ' '.join(command.argv)}\n".encode()
    if output:
        output(1, stdout[: command.output_limit])
    if len(stdout) <= command.output_limit:
        return CommandResult(code, stdout, duration_us=duration_us, timed_out=timed_out, given_up=given_up)
    kept = cut(stdout, command.output_limit)
    return CommandResult(
        code,
        kept.content,
        b"",
        duration_us,
        timed_out,
        stdout_dropped=kept.dropped,
        stdout_tail=kept.tail,
        given_up=given_up,
    )
