"""One sandbox, seen from the driver: its link, its limits, the fork server it came from, and who waits for what."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from shoal.wire.messages import CommandResult, EndReason, InputFile, Resources
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.protocol import DriverError
from shoal_executor.drivers.zygote.cgroups import Group, Groups
from shoal_executor.drivers.zygote.forkserver import ForkServer

UP_S: Final = 30.0
"""How long a sandbox may take to come up, or to end."""
_SHM: Final = 64 * 1024**2


@dataclass(slots=True)
class Sandbox:
    """See the module. `oom_kills`: how many of the kills that its group counts have been told of."""

    name: str
    link: Link
    group: Group
    zygote: ForkServer
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: EndReason | None = None
    oom_kills: int = 0
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

    async def killed(self) -> None:
        """Kill until its end is told: an order is lost where the fork server's socket is full."""
        async with asyncio.timeout(UP_S):
            while not self.ended.is_set():
                self.zygote.kill(self.name)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.ended.wait(), 0.5)


def sizes(limits: Resources) -> tuple[int, int]:
    """Return the sizes of a sandbox's disk and of its /dev/shm: both are memory, and must fit into it with room left,

    so that a full disk is an error to the program that fills it and not the sandbox's end.
    """
    shm = min(_SHM, limits.memory // 8)
    return max(min(limits.disk, limits.memory // 2), 1 << 20), max(shm, 1 << 16)


def why(groups: Groups, group: Group, told: str) -> tuple[EndReason, str]:
    """Return why a sandbox ended in the executor's absence; `told`: what is known through a living fork server."""
    if groups.oom_kills(group) > groups.told_oom_kills(group):
        return EndReason.OUT_OF_MEMORY, "it exceeded its memory while its executor was away"
    if told:
        return EndReason.DIED, told
    return EndReason.NODE_LOST, "its fork server ended"


async def put(link: Link, file: InputFile) -> None:
    """Write an input file. Raises DriverError."""
    answer = await link.ask(lambda id: frames.Write(id, file.path, file.data, 0, file.mode))
    if not isinstance(answer, frames.Wrote):
        detail = answer.detail if isinstance(answer, frames.Failed) else "the sandbox ended"
        raise DriverError(f"input file {file.path}: {detail}")
