"""Sandboxes that nobody is given: one of a kind is started and kept, and others of its kind start from that.

An agent's start is mostly that of its Python, in a kernel where each system call and each new page costs several times
as much: 0.3 s of processor time with all of it, where a start from what was kept takes 0.17. Keeping one takes as much
as four of them save.
"""

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from shoal.wire.messages import Snapshot
from shoal_executor.drivers.inhabited import sizes
from shoal_executor.drivers.protocol import DriverError, StartSpec

WORTH: Final = 4
"""When so many of a kind were asked for, one is kept: what is asked for less often costs no more than it did."""
KEPT: Final = 32
"""Kinds on a node; those asked for longest ago are let go first. One takes some 8 MB of disk."""
_PATIENCE_S: Final = 2.0
"""Keeping one takes 0.6 s on an idle node; whoever waited longer than this starts without."""

log = structlog.get_logger()

_Kind = tuple[Snapshot, int]


@dataclass(slots=True)
class _One:
    place: Path
    asked: int = 0
    ready: bool = False
    awaited: bool = False
    making: asyncio.Task[None] | None = None


class Fresh:
    """Has `keep` start one of a kind and keep its checkpoint in a directory that it makes.

    `many`: as many as start at a time. So many of them, one by one on all cores, are up no sooner than from one that is
    kept first, and all that come after them later.
    """

    def __init__(self, place: Path, keep: Callable[[StartSpec, Path], Awaitable[None]], many: int) -> None:
        self._place = place
        self._keep = keep
        self._many = max(many, WORTH)
        self._kinds: OrderedDict[_Kind, _One] = OrderedDict()
        self._making: set[asyncio.Task[None]] = set()
        self._count = 0

    def asked(self, spec: StartSpec, sandboxes: int) -> None:
        """Note that so many are to start; when that is worth it, have one kept meanwhile."""
        if spec.snapshot.memory is not None:
            return
        kind = _kind_of(spec)
        one = self._kinds.get(kind)
        if one is None:
            self._count += 1
            one = self._kinds[kind] = _One(self._place / f"{self._count}")
        self._kinds.move_to_end(kind)
        one.asked += sandboxes
        if one.asked >= WORTH and one.making is None:
            one.making = asyncio.create_task(self._make(one, spec))
            self._making.add(one.making)
            one.making.add_done_callback(self._making.discard)
        one.awaited = one.awaited or sandboxes >= self._many
        while len(self._kinds) > KEPT:
            self._let_go(self._kinds.popitem(last=False)[1])

    def image(self, spec: StartSpec) -> Path | None:
        """Return the checkpoint that such a sandbox starts from, if there is one by now."""
        one = None if spec.snapshot.memory is not None else self._kinds.get(_kind_of(spec))
        return one.place if one is not None and one.ready else None

    async def awaited(self, spec: StartSpec) -> Path | None:
        """As `image`, but where many were asked for and one is being kept, that is awaited for a while."""
        one = self._kinds.get(_kind_of(spec))
        if one is not None and one.awaited and one.making in self._making:
            await asyncio.wait([one.making], timeout=_PATIENCE_S)
        return self.image(spec)

    def useless(self, spec: StartSpec) -> None:
        """A sandbox did not start from its kind's: no other will."""
        one = self._kinds.get(_kind_of(spec))
        if one is not None and one.ready:
            one.ready = False
            shutil.rmtree(one.place, ignore_errors=True)

    async def close(self) -> None:
        """Give up what is being made, and have nothing any more."""
        making = list(self._making)
        for task in making:
            if not task.cancelling():  # a second time would break off what it clears away
                task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
        self._kinds.clear()

    async def _make(self, one: _One, spec: StartSpec) -> None:
        try:
            await self._keep(spec, one.place)
        except (DriverError, OSError, TimeoutError) as error:
            log.warning("sandboxes start slower than they could", snapshot=spec.snapshot.digest[:12], why=str(error))
            shutil.rmtree(one.place, ignore_errors=True)
        else:
            one.ready = True

    def _let_go(self, one: _One) -> None:
        if one.making is not None and not one.making.done():
            one.making.add_done_callback(lambda _: shutil.rmtree(one.place, ignore_errors=True))
            one.making.cancel()
        else:
            shutil.rmtree(one.place, ignore_errors=True)


def _kind_of(spec: StartSpec) -> _Kind:
    """Return what must be the same: what is on the disk, and what is mounted beside it.

    All of the snapshot, for its digest may be anybody's word.
    """
    return spec.snapshot, sizes(spec.resources)[1]
