"""The runtime's floor: the same sandboxes by bare loops, as many at a time as each likes best, and through Shoal."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import shoal
from shoal.cli.exits import Failure
from shoal_loadtest.floor import whole
from shoal_loadtest.floor.bare import Bubblewrap, Missing, Runc, Runsc
from shoal_loadtest.floor.ends import ends
from shoal_loadtest.floor.fabric import mark, span
from shoal_loadtest.floor.figures import Row, percentile
from shoal_loadtest.floor.forks import ForkLoop
from shoal_loadtest.floor.loops import (
    CONCURRENCIES,
    Loop,
    ProgramLoop,
    RestoredLoop,
    ShoalLoop,
    Unit,
    burst,
    turn,
    zygote,
)

PART: Final = "runtime"
AT_ONCE: Final = (1, 32)
"""The concurrencies at which the first command is timed: as one sandbox ends, the next begins."""
BURST: Final = 32
"""How many are asked for at the same moment, and timed: the next burst begins when all have ended."""
_BURSTS: Final = f"bursts of {BURST}"
_FIRSTS: Final = {at_once: f"{at_once} at a time" for at_once in AT_ONCE}
RATE: Final = "sandboxes a second"
_SHOAL: Final = "Shoal"


@dataclass(frozen=True, slots=True)
class Kind:
    """One isolation, the bare loops beside it, and how many sandboxes a turn of each has.

    `against`: what all is compared with, the first of them that can be had here.
    """

    case: str
    driver: str
    against: tuple[str, ...]
    loops: Callable[[], Sequence[Loop]]
    restored: bool = False
    share: float = 1.0


KINDS: Final = (
    Kind(
        "zygote", "zygote", ("driver",),
        lambda: (zygote(), ForkLoop(), ProgramLoop(Bubblewrap()), ProgramLoop(Runc())),
    ),
    Kind(
        "gvisor, restored", "gvisor", ("driver", "runsc restore"),
        lambda: (RestoredLoop(), ProgramLoop(Runsc(restored=True))), restored=True, share=1 / 8,
    ),
)  # fmt: skip


@dataclass(slots=True)
class Found:
    """What came of one side, round by round. `note` says at which concurrency it was best, or why it is missing."""

    rates: list[float] = field(default_factory=list)
    firsts: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    best: int = 1

    def add(self, how: str, first_ms: Sequence[float]) -> None:
        """Take in one turn's first commands."""
        self.firsts.setdefault(how, []).append(percentile(first_ms, 0.5))


class Runtime:
    """Takes turns for one isolation."""

    def __init__(self, kind: Kind, count: int, say: Callable[[str], None]) -> None:
        """`count`: sandboxes in a turn; an isolation that is slow has its share of them."""
        self._kind = kind
        self._count = max(int(count * kind.share), AT_ONCE[-1])
        self._few = max(int(count * kind.share / 4), 8)
        self._say = say
        self._found: dict[str, Found] = {}

    async def run(self, place: Path, rounds: int) -> list[Row]:
        """Search the best concurrency of each, then take turns; returns the rows."""
        async with contextlib.AsyncExitStack() as stack:
            loops = []
            for loop in self._kind.loops():
                found = self._found[loop.name] = Found()
                try:
                    own = place / self._kind.driver / loop.name.replace(" ", "-")
                    own.mkdir(parents=True)
                    stack.push_async_callback(loop.close)
                    self._say(f"{self._kind.case}: {loop.name}, which concurrency is best")
                    await loop.open(own)
                    found.best = await self._search(loop)
                    found.note = f"best with {found.best} at a time"
                    loops.append(loop)
                except (Missing, OSError) as error:
                    found.note = str(error)
            self._found[_SHOAL] = Found()
            for number in range(rounds):
                for loop in loops:
                    self._say(f"{self._kind.case}: {loop.name}, round {number + 1} of {rounds}")
                    try:
                        await self._turns(loop, f"{number}")
                    except Missing as error:
                        self._found[loop.name].note += f"; {error}"
                if not loops:
                    self._found[_SHOAL].note = "there is nothing to compare it with"
                    break
                self._say(f"{self._kind.case}: Shoal, round {number + 1} of {rounds}")
                try:
                    await self._whole(number)
                except (Missing, Failure) as error:
                    self._found[_SHOAL].note = str(error)
        return self._rows()

    async def _search(self, loop: Loop) -> int:
        """Return the concurrency with the most sandboxes a second, of those at which all of them start."""
        best, most = 1, 0.0
        for at_once in CONCURRENCIES:
            try:
                found = await turn(loop.unit, f"search-{at_once}", max(self._few, at_once), at_once)
            except Missing:
                if at_once == 1:
                    raise
                break
            if found.a_second > most:
                best, most = at_once, found.a_second
        return best

    async def _turns(self, loop: Loop, stem: str) -> None:
        found = self._found[loop.name]
        found.rates.append((await turn(loop.unit, f"{stem}-best", self._count, found.best)).a_second)
        await self._first(found, loop.unit, stem, lambda name: burst(loop.unit, name, BURST))

    async def _first(
        self, found: Found, unit: Unit, stem: str, many: Callable[[str], Awaitable[Sequence[float]]]
    ) -> None:
        """Time first commands in each way. `many` has one burst through, of a name, and returns its ms."""
        for at_once, how in _FIRSTS.items():
            count = self._few if at_once == 1 else self._count
            found.add(how, (await turn(unit, f"{stem}-at-{at_once}", count, at_once)).first_ms)
        bursts = range(max(self._count // BURST, 1))
        found.add(_BURSTS, [ms for number in bursts for ms in await many(f"{stem}-burst-{number}")])

    async def _whole(self, number: int) -> None:
        found = self._found[_SHOAL]
        async with (
            whole.up(self._kind.driver) as system,
            shoal.connect(system.url) as cluster,
            ends(system.url) as ended,
        ):
            start = await self._start(cluster)
            loop = ShoalLoop(cluster, start, self._kind.driver, ended)
            await loop.group(self._few)  # the others have had their search by now
            since = await mark(system.url)
            await loop.group(self._count)
            took = await span(system.url, since, self._count)
            found.rates.append(took.sandboxes / took.seconds)
            await self._first(found, loop.unit, f"{number}", lambda _: loop.burst(BURST))

    async def _start(self, cluster: shoal.Cluster) -> str | shoal.Snapshot:
        """Return what sandboxes start from: the host, or one whose memory is kept."""
        if not self._kind.restored:
            return "host"
        async with cluster.rollout("host", 1, isolation=self._kind.driver) as rollout:
            async for sandbox in rollout.ready():
                return await sandbox.snapshot(memory=True)
        raise Missing("there was no sandbox to keep the memory of")

    def _rows(self) -> list[Row]:
        rows = []
        other = next((side for side in self._kind.against if self._found[side].rates), "")
        for side, found in self._found.items():
            against = "" if side == other else other
            rows.append(
                Row(PART, self._kind.case, side, RATE, "1/s", tuple(found.rates), against, note=found.note)
            )  # fmt: skip
            for how in (*_FIRSTS.values(), _BURSTS):
                values = tuple(found.firsts.get(how, ()))
                rows.append(Row(PART, self._kind.case, side, f"first command p50, {how}", "ms", values, against))
        return rows
