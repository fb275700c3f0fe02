"""One load generator: goes through the phases it is told to, and says once a second how things are."""

import asyncio
import contextlib
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from shoal.bus.ending import end
from shoal.bus.protocol import Bus, BusError, Stored
from shoal.client.requests import Resources, rollout_spec
from shoal.machine import ranges
from shoal.wire import streams, subjects
from shoal.wire.codec import UndecodableError, decode, encode
from shoal.wire.messages import AnyMessage, Ranges, RolloutReleased, RolloutSpec, RolloutSubmitted
from shoal_loadtest.load.arrivals import Split, moments
from shoal_loadtest.load.book import Book, Entry, Tally
from shoal_loadtest.load.commanding import Commanding
from shoal_loadtest.load.pacing import Cutting, begun, paced
from shoal_loadtest.load.trace import Request, replayed, requests
from shoal_loadtest.load.words import Finished, Go, PhaseEnded, Pulse, Said, Trouble
from shoal_loadtest.scenario.model import Closed, Phase, Scenario, Shape, Trace

_BATCH: Final = 512
_TROUBLES: Final = 5
Handle = Callable[[AnyMessage, int, int], None]


class Generator:
    """Asks for what a scenario says and folds what comes. `say` takes each word for whoever measures."""

    def __init__(
        self, bus: Bus, cells: int, scenario: Scenario, run: str, split: Split, say: Callable[[Said], None]
    ) -> None:
        self._bus = bus
        self._cells = cells
        self._scenario = scenario
        self._run = run
        self._split = split
        self._say = say
        self._tenants = [tenant.name for tenant in scenario.tenants]
        self._shares = [tenant.share for tenant in scenario.tenants]
        self._book = book = Book(len(self._tenants))
        self._commanding = Commanding(bus, book, self._tenants, run, self._cell_of)
        book.on_ready, book.on_settled = self._ready, self._settled
        book.on_gone, book.on_concluded = self._gone, self._concluded
        self._commanding.on_idle = self._idle
        self._staying: deque[Entry] = deque()
        self._staying_count = 0
        self._readers: list[asyncio.Task[None]] = []
        self._room = asyncio.Event()
        self._heard_ns = time.monotonic_ns()
        self._tally = Tally(0)
        self._phase: Phase | None = None
        self._through = 0
        self._living = 0
        self._specs: dict[tuple[int, int], RolloutSpec] = {}
        self._life = random.Random(f"life/{scenario.seed}/{split.part}")
        self._prefix = f"r{secrets.token_hex(4)}{split.part:02d}"
        self._numbers = 0
        self._troubles = 0
        self._traces: dict[int, list[Request]] = {}
        self.cutting = Cutting()

    # --- following

    async def open(self) -> None:
        """Follow the run's reports in every cell, and its answers where there are commands. Raises BadValueError."""
        for number, phase in enumerate(self._scenario.phases):
            if isinstance(phase.arrival, Trace):
                self._traces[number] = await requests(phase.arrival)
        for cell in range(self._cells):
            await self._follow(
                streams.rollout(cell).name, subjects.rollout_filter(cell, "*", self._run), self._book.take
            )
            if self._scenario.uses_commands:
                for tenant in self._tenants:
                    only = subjects.trajectory(cell, tenant, self._run)
                    await self._follow(streams.trajectory(cell).name, only, self._commanding.take)
        for task in self._readers:
            task.add_done_callback(self._reader_ended)

    async def _follow(self, stream: str, only: str, handle: Handle) -> None:
        reader = await self._bus.reader(stream, after=None, filters=[only])

        async def follow() -> None:
            try:
                while True:
                    batch = await reader.batch(_BATCH)
                    now = self._heard_ns = time.monotonic_ns()
                    for delivery in batch:
                        handle(decode(delivery.payload), delivery.time_ms, now)
                    if len(batch) == _BATCH:
                        await asyncio.sleep(0)
            finally:
                with contextlib.suppress(BusError):
                    await reader.close()

        self._readers.append(asyncio.create_task(follow(), name=f"follow {only}"))

    def _reader_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            kind = "cannot be decoded" if isinstance(error, UndecodableError) else "broke off"
            self._say(Trouble(f"what the cluster says {kind}: {error}", fatal=True))

    async def close(self) -> None:
        """Stop following."""
        await end(*self._readers)

    # --- phases

    async def phase(self, go: Go) -> None:
        """Go through one phase, and say what came of it."""
        phase = self._phase = self._scenario.phases[go.phase]
        shape = phase.rollout
        tally = self._tally = Tally(go.phase, stays=bool(shape.until) and not shape.command)
        waited = self._book.waits.seconds(time.monotonic_ns())
        working = []
        if phase.arrival is not None:
            working.append(asyncio.create_task(self._arrive(phase, tally, go), name="arrivals"))
        if phase.commands is not None:
            asking = self._commanding.run(
                phase, phase.commands, tally, go.at_ns, go.command_rate, self._split, self.cutting
            )
            working.append(asyncio.create_task(asking, name="commands"))
        self._heard_ns = time.monotonic_ns()

        def missing() -> int:
            return tally.open + (self._commanding.under_way if shape.first_command and shape.until else 0)

        stuck = await self._finished(working, missing, lambda: missing() - self._living)
        waited = self._book.waits.seconds(time.monotonic_ns()) - waited
        first, last = tally.first_ns, tally.last_ns
        self._say(
            PhaseEnded(
                go.phase, dict(tally.counts), dict(tally.reasons), tally.latencies.encoded(), first, last,
                tally.first_command_ns, tally.last_command_ns, dict(tally.moments), stuck, waited,
            )
        )  # fmt: skip

    async def _finished(
        self, working: "list[asyncio.Task[None]]", missing: Callable[[], int], awaited: Callable[[], int]
    ) -> int:
        """Wait until these are done and nothing is missing; returns how much is when nothing is heard any more."""
        patience_ns = int(self._scenario.patience * 1e9)
        try:
            while True:
                busy = any(not task.done() for task in working)
                if not busy and (not missing() or self.cutting.cut):
                    break
                if not awaited() and not self._commanding.under_way:
                    self._heard_ns = time.monotonic_ns()  # there is nothing to be heard of
                elif time.monotonic_ns() - self._heard_ns > patience_ns:
                    self._say(Trouble(f"nothing was heard for {self._scenario.patience:g} s; giving this up"))
                    return missing() + self._commanding.under_way
                self._room.clear()
                await self.cutting.wait(self._room, 0.05)
            return 0
        finally:
            done = [task for task in working if task.done()]
            await end(*(task for task in working if not task.done()))
            for task in done:
                task.result()

    async def _arrive(self, phase: Phase, tally: Tally, go: Go) -> None:
        assert phase.arrival is not None
        rng = random.Random(f"{self._scenario.seed}/{phase.name}/{self._split.part}")
        until_ns = go.at_ns + int(phase.seconds * 1e9) if phase.seconds else None
        left = self._split.share(phase.sandboxes) if phase.sandboxes is not None else None
        size = phase.rollout.size
        if isinstance(phase.arrival, Closed):
            await begun(go.at_ns, self.cutting)
            most = max(self._split.share(phase.arrival.outstanding), 1)
            while (left is None or left > 0) and not self.cutting.cut:
                now = time.monotonic_ns()
                if until_ns is not None and now >= until_ns:
                    return
                if tally.open < most:
                    n = size.count(rng) if left is None else min(size.count(rng), left)
                    left = None if left is None else left - n
                    self._submit(phase, tally, n, now, rng)
                    if tally.counts["rollouts"] % 16 == 0:
                        await asyncio.sleep(0)
                    continue
                self._room.clear()
                await self.cutting.wait(self._room, 0.25)
            return
        sizes: deque[int] = deque()
        if isinstance(phase.arrival, Trace):
            offsets, sizes = replayed(self._traces[go.phase], phase.arrival.speed, self._split)
        else:
            offsets = moments(phase.arrival, go.rate, size.mean, float(phase.seconds or 0), rng, self._split)
        async for intended_ns in paced(offsets, go.at_ns, until_ns, self.cutting):
            if left is not None and left <= 0:
                return
            n = sizes.popleft() if sizes else size.count(rng)
            n = n if left is None else min(n, left)
            left = None if left is None else left - n
            self._submit(phase, tally, n, intended_ns, rng)

    # --- asking

    def _submit(self, phase: Phase, tally: Tally, n: int, intended_ns: int, rng: random.Random) -> None:
        spec = self._specs.get((tally.number, n))
        if spec is None:
            spec = self._specs[tally.number, n] = _spec(phase.rollout, n, bool(self._scenario.faults))
        (tenant,) = rng.choices(range(len(self._tenants)), self._shares) if len(self._tenants) > 1 else (0,)
        self._numbers += 1
        name = f"{self._prefix}{self._numbers:06d}"
        places = self._scenario.uses_commands and not spec.commands
        entry = Entry(name, tenant, spec, tally, intended_ns, places)
        self._book.open(entry, time.monotonic_ns())
        message = RolloutSubmitted(name, self._tenants[tenant], self._run, spec)
        stored = self._bus.publish(self._request(entry), encode(message), f"{name}:submitted")
        stored.add_done_callback(lambda done: self._published(entry, done))

    def _published(self, entry: Entry, done: "asyncio.Future[Stored]") -> None:
        error = None if done.cancelled() else done.exception()
        if error is None:
            return
        entry.tally.counts["not_published"] += entry.n
        self._troubles += 1
        if self._troubles <= _TROUBLES:
            self._say(Trouble(f"a request could not be published: {error}"))

    def _release(self, entry: Entry) -> None:
        if entry.released or entry.id not in self._book.entries:
            return
        entry.released = True
        self._commanding.withdraw(entry)
        message = RolloutReleased(entry.id, ranges.whole(entry.n))
        stored = self._bus.publish(self._request(entry), encode(message), f"{entry.id}:released")
        stored.add_done_callback(lambda done: self._published(entry, done))

    def _lived(self, entry: Entry) -> None:
        self._living -= entry.n
        self._release(entry)

    def _request(self, entry: Entry) -> str:
        return subjects.rollout_request(self._cell_of(entry.id), self._tenants[entry.tenant], self._run)

    def _cell_of(self, rollout: str) -> int:
        return subjects.cell_of(rollout, self._cells)

    # --- what the book tells

    def _ready(self, entry: Entry, indices: Ranges) -> None:
        line = self._scenario.phases[entry.tally.number].rollout.first_command
        if line and not entry.released:
            self._commanding.first(entry, indices, line)

    def _settled(self, entry: Entry) -> None:
        self._room.set()
        phase = self._scenario.phases[entry.tally.number]
        shape = phase.rollout
        if shape.command:
            return
        if not shape.until:
            if not entry.busy:
                self._live(entry, shape)
            return
        self._staying.append(entry)
        self._staying_count += entry.n
        if entry.places is not None:
            self._commanding.offer(entry)
        while phase.live is not None and self._staying_count > self._split.share(phase.live) and self._staying:
            oldest = self._staying.popleft()
            self._staying_count -= oldest.n
            self._commanding.withdraw(oldest)
            oldest.leaving = True
            if not oldest.busy:
                self._release(oldest)

    def _idle(self, entry: Entry) -> None:
        """Go on with a rollout in which no command is under way any more."""
        shape = self._scenario.phases[entry.tally.number].rollout
        if entry.leaving:
            self._release(entry)
        elif entry.settled and not shape.until:
            self._live(entry, shape)

    def _live(self, entry: Entry, shape: Shape) -> None:
        """Let a rollout's sandboxes live as long as they are to, then give them back."""
        life = shape.life.one(self._life)
        if life and not self.cutting.cut:
            self._living += entry.n
            asyncio.get_running_loop().call_later(life, self._lived, entry)
        else:
            self._release(entry)

    def _gone(self, entry: Entry, reason: str) -> None:
        if self._commanding.under_way:
            self._commanding.gone(entry, reason)

    def _concluded(self, entry: Entry) -> None:
        self._room.set()
        self._through += entry.n
        self._commanding.withdraw(entry)
        if entry.tally.stays and not entry.released:
            with contextlib.suppress(ValueError):
                self._staying.remove(entry)
                self._staying_count -= entry.n

    # --- telling

    def pulse(self) -> None:
        """Say how things are."""
        book, tally = self._book, self._tally
        recent = tally.recent.encoded()
        tally.recent.clear()
        now = time.monotonic_ns()
        in_flight = sum(e.n - e.ready - e.ended if not e.settled else 0 for e in book.entries.values())
        self._say(
            Pulse(
                tally.number, book.audit["asked"], book.ready, self._through, self._commanding.done, book.failed,
                book.live, max(in_flight, 0), book.waiting, book.waits.seconds(now), recent,
            )
        )  # fmt: skip

    async def finish(self) -> None:
        """Give everything back, wait for the last word on all of it, and say what it adds up to."""
        self.cutting = Cutting()
        for entry in list(self._book.entries.values()):
            self._release(entry)
        self._heard_ns = time.monotonic_ns()
        await self._finished([], lambda: self._book.missing, lambda: self._book.missing)
        audit = self._book.audit
        audit["lost"] = self._book.missing
        refusals = {f"command: {code}": count for code, count in self._commanding.refusals.items()}
        self._say(Finished(dict(audit), refusals))


def _spec(shape: Shape, n: int, faults: bool) -> RolloutSpec:
    """Return what is asked for; where processes are killed on purpose, all of it is to survive that."""
    attempts = max(shape.max_attempts, 50) if faults else shape.max_attempts
    return rollout_spec(
        shape.template, n, timeout=float(shape.timeout), resources=Resources(memory=shape.memory),
        command=shape.command or None, on_lost=shape.on_lost or ("restart" if faults else None),
        max_attempts=attempts, isolation=shape.isolation,
    )  # fmt: skip
