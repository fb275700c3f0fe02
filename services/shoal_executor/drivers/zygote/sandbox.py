"""One sandbox of this driver: it came from a fork server, which ends it."""

import asyncio
import contextlib
from dataclasses import dataclass

from shoal.wire.messages import EndReason
from shoal_executor.drivers.cgroups import Group, Groups
from shoal_executor.drivers.inhabited import UP_S, Inhabited
from shoal_executor.drivers.zygote.forkserver import ForkServer


@dataclass(slots=True, kw_only=True)
class Sandbox(Inhabited):
    """See the module."""

    zygote: ForkServer

    async def killed(self) -> None:
        """Kill until its end is told: an order is lost where the fork server's socket is full."""
        try:
            async with asyncio.timeout(UP_S):
                while not self.ended.is_set():
                    self.zygote.kill(self.name)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.ended.wait(), 0.5)
        except TimeoutError:
            raise TimeoutError(self.zygote.silent(UP_S)) from None


def why(groups: Groups, group: Group, told: str) -> tuple[EndReason, str]:
    """Return why a sandbox ended in the executor's absence; `told`: what is known through a living fork server."""
    if groups.oom_kills(group) > groups.told_oom_kills(group)[0]:
        return EndReason.OUT_OF_MEMORY, "it exceeded its memory while its executor was away"
    if told:
        return EndReason.DIED, told
    return EndReason.NODE_LOST, "its fork server ended"
