"""Commands in sandboxes that stay, and the first one of each: asked, awaited, timed."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shoal.bus.protocol import Bus
from shoal.machine import ranges
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import AnyMessage, Command, CommandFinished, CommandRefused, Ranges, RunCommand
from shoal_loadtest.load.arrivals import Split, moments
from shoal_loadtest.load.book import Book, Entry, Tally
from shoal_loadtest.load.pacing import Cutting, begun, paced
from shoal_loadtest.scenario.model import Closed, Commands, Kind, Phase

_US: Final = 1_000
_LOOK_S: Final = 0.01


@dataclass(slots=True, eq=False)
class _Asked:
    entry: Entry
    index: int
    attempt: int
    intended_ns: int
    tally: Tally
    first: bool


class Commanding:
    """Runs commands in what the book says is ready; `usable` are the rollouts that stay and are complete."""

    def __init__(self, bus: Bus, book: Book, tenants: list[str], run: str, cell_of: Callable[[str], int]) -> None:
        self._bus = bus
        self._book = book
        self._tenants = tenants
        self._run = run
        self._cell_of = cell_of
        self._numbers = itertools.count()
        self._pending: dict[str, _Asked] = {}
        self._room = asyncio.Event()
        self._subjects: dict[tuple[str, int], str] = {}
        self.usable: list[Entry] = []
        self.on_idle: Callable[[Entry], None] = lambda _: None
        self.done = 0
        self.refusals: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        """How many have no answer yet."""
        return len(self._pending)

    # --- which sandboxes

    def offer(self, entry: Entry) -> None:
        """A rollout stays, and all of its sandboxes take commands."""
        if entry.slot < 0:
            entry.slot = len(self.usable)
            self.usable.append(entry)

    def withdraw(self, entry: Entry) -> None:
        """A rollout does not stay any longer."""
        if entry.slot >= 0:
            last = self.usable.pop()
            if last is not entry:
                self.usable[entry.slot], last.slot = last, entry.slot
            entry.slot = -1

    # --- asking

    def first(self, entry: Entry, indices: Ranges, line: str) -> None:
        """Run this in sandboxes that have just become ready."""
        command = Command(line=line)
        for index in ranges.indices(indices):
            self._ask(entry, index, command, entry.intended_ns, entry.tally, first=True)

    async def run(
        self, phase: Phase, commands: Commands, tally: Tally, begin_ns: int, rate: float, split: Split, cutting: Cutting
    ) -> None:
        """Run a phase's commands: until there were enough of them, its time is up, or it is cut."""
        rng = random.Random(f"commands/{phase.name}/{split.part}/{tally.number}")
        weights = list(itertools.accumulate(kind.weight for kind in commands.mix))
        kinds = [_command(kind) for kind in commands.mix]
        total = None if commands.total is None else split.share(commands.total)
        seconds = float(phase.seconds or 0)
        until_ns = begin_ns + int(seconds * 1e9) if seconds else None
        asked = 0

        def one(intended_ns: int) -> bool:
            entry, index = self._choose(rng)
            if entry is None:
                return False
            (command,) = rng.choices(kinds, cum_weights=weights)
            self._ask(entry, index, command, intended_ns, tally, first=False)
            return True

        if isinstance(commands.arrival, Closed):
            await begun(begin_ns, cutting)
            most = max(split.share(commands.arrival.outstanding), 1)
            while (total is None or asked < total) and not cutting.cut:
                now = time.monotonic_ns()
                if until_ns is not None and now >= until_ns:
                    break
                if len(self._pending) < most and one(now):
                    asked += 1
                    continue
                self._room.clear()
                await cutting.wait(self._room, _LOOK_S if not self.usable else 1.0)
        else:
            offsets = moments(commands.arrival, rate, 1.0, seconds, rng, split)
            async for intended_ns in paced(offsets, begin_ns, until_ns, cutting):
                if total is not None and asked >= total:
                    break
                if one(intended_ns):
                    asked += 1
                else:
                    tally.counts["homeless"] += 1
        while self._pending and not cutting.cut:
            self._room.clear()
            await cutting.wait(self._room, 1.0)

    def _choose(self, rng: random.Random) -> tuple[Entry | None, int]:
        """Return a sandbox that takes commands, any of them as likely as another where rollouts are alike."""
        for _ in range(16):
            if not self.usable:
                break
            entry = self.usable[rng.randrange(len(self.usable))]
            index = rng.randrange(entry.n)
            if entry.ledger.is_ready(index):
                return entry, index
        return None, 0

    def _ask(self, entry: Entry, index: int, command: Command, intended_ns: int, tally: Tally, *, first: bool) -> None:
        executor = self._book.executor_of(entry, index)
        subject = self._subjects.get((executor, entry.tenant))
        if subject is None:
            subject = subjects.executor_command(executor, self._tenants[entry.tenant])
            self._subjects[executor, entry.tenant] = subject
        id = f"{self._run}-{next(self._numbers)}"
        attempt = entry.ledger.attempt(index)
        tenant = self._tenants[entry.tenant]
        message = RunCommand(id, tenant, self._run, self._cell_of(entry.id), entry.id, index, attempt, command)
        entry.busy += 1
        self._pending[id] = _Asked(entry, index, attempt, intended_ns, tally, first)
        tally.counts["commands_asked"] += 1
        tally.first_command_ns = tally.first_command_ns or intended_ns
        if not first:
            tally.note("lateness", (time.monotonic_ns() - intended_ns) / _US)
        stored = self._bus.publish(subject, encode(message), id)
        stored.add_done_callback(lambda done: self._published(id, done.cancelled() or done.exception() is not None))

    def _published(self, id: str, failed: bool) -> None:
        if failed and (asked := self._pending.pop(id, None)) is not None:
            self._refused(asked, "not_published")

    # --- answers

    def take(self, message: AnyMessage, time_ms: int, now_ns: int) -> None:
        """Take an answer from the trajectory; one to a question of nobody here, or another one, changes nothing."""
        if not isinstance(message, CommandFinished | CommandRefused):
            return
        asked = self._pending.pop(message.id, None)
        if asked is None:
            return
        if isinstance(message, CommandRefused):
            self._refused(asked, message.code)
            return
        self.done += 1
        tally = asked.tally
        us = (now_ns - asked.intended_ns) / _US
        tally.last_command_ns = now_ns
        tally.counts["commands"] += 1
        if asked.first:
            tally.note("first_command", us)
            if asked.entry.submitted_ms is not None:
                tally.latencies.add("first_command_broker", (time_ms - asked.entry.submitted_ms) * 1000)
        else:
            tally.note("command", us)
        if message.result.exit_code:
            tally.counts["commands_failed"] += 1
        self._settle(asked)

    def gone(self, entry: Entry, reason: str) -> None:
        """Give up on answers from sandboxes of a rollout that are not there any more."""
        for id, asked in list(self._pending.items()):
            if asked.entry is entry and (
                not entry.ledger.is_ready(asked.index) or entry.ledger.attempt(asked.index) != asked.attempt
            ):
                del self._pending[id]
                self._refused(asked, reason)

    def _refused(self, asked: _Asked, code: str) -> None:
        asked.tally.counts["refused"] += 1
        self.refusals[code] += 1
        self._settle(asked)

    def _settle(self, asked: _Asked) -> None:
        self._room.set()
        asked.entry.busy -= 1
        if not asked.entry.busy:
            self.on_idle(asked.entry)


def _command(kind: Kind) -> Command:
    return Command(line=kind.line, python=kind.python, session=kind.session)
