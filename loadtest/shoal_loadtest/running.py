"""One go through a scenario: phase after phase, measured, with faults where they are wanted; or its end before time."""

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from shoal.bus.ending import end
from shoal.cli.exits import Failure
from shoal_loadtest.faults import Killing
from shoal_loadtest.fleet import Target
from shoal_loadtest.generators import Generators
from shoal_loadtest.load.words import Finished, Go, PhaseEnded
from shoal_loadtest.measure.logs import Logs
from shoal_loadtest.measure.roles import ROLES, SERVICES
from shoal_loadtest.measure.sampling import Row, Sampling
from shoal_loadtest.measure.summing import phase_record, run_metrics
from shoal_loadtest.report.record import PhaseRecord, RunRecord
from shoal_loadtest.scenario.model import Constant, Phase, Poisson, Scenario

_AHEAD_NS: Final = 50_000_000
"""A phase begins so much after it is told, so that all generators begin together."""
_GIVE_UP_S: Final = 20.0
_LINES: Final = 100


class Run:
    """See the module. `told` gets each row of samples, `tell` each sentence for people."""

    def __init__(
        self,
        scenario: Scenario,
        document: dict[str, Any],
        scale: float,
        target: Target,
        *,
        told: Callable[[Row], None],
        tell: Callable[[str], None],
    ) -> None:
        self._scenario = scenario
        self._document = document
        self._scale = scale
        self._target = target
        self._tell = tell
        self._troubles: list[str] = []
        self._name = f"lt-{secrets.token_hex(4)}"
        self._logs = Logs(target.url, target.cells)
        self._sampling = Sampling(self._pids, self._logs, told)
        self._sampling.gpus = scenario.trainer.gpus
        self._generators = Generators(scenario.generators, self._sampling.hear, self._trouble)
        self._memory_before = 0
        self._maximum = scenario.maximum
        self._killed: Counter[str] = Counter()
        self._faults: list[tuple[float, str]] = []
        self.phases: list[PhaseRecord] = []

    async def go(self) -> RunRecord:
        """Do all of it. Interrupted, it ends in order, and the record says so. Raises Failure."""
        finished: list[Finished] = []
        interrupted = False
        sampling: asyncio.Task[None] | None = None
        try:
            await self._logs.open()
            await self._generators.start(self._target.url, self._name, self._document, self._scale)
            await self._sampling.begin()
            self._memory_before = self._sampling.processes.memory_of(*SERVICES)
            sampling = asyncio.create_task(self._sampling.run(), name="sampling")
            sampling.add_done_callback(self._sampled)
            try:
                for number, phase in enumerate(self._scenario.phases):
                    if phase.measures_maximum and self._scenario.maximum:
                        continue
                    await self._phase(number, phase)
                finished = await self._generators.finish()
            except asyncio.CancelledError:
                interrupted = True
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()  # once is enough: what follows is the end, in order
                self._tell("stopping: what was asked for is given back")
                finished = await self._given_back()
            await self._sampling.row()
        finally:
            if sampling is not None:
                await end(sampling)
            await self._generators.stop()
            await self._logs.close()
        return self._record(finished, interrupted)

    async def _phase(self, number: int, phase: Phase) -> None:
        rate, command_rate = self._rates(phase)
        cpu = self._cpu()
        begin_s = self._sampling.since_s
        first_row = len(self._sampling.rows)
        self._sampling.phase = number
        killing = [
            Killing(fault, self._target.processes, self._tell)
            for fault in self._scenario.faults
            if not fault.phases or phase.name in fault.phases
        ]
        tasks = [asyncio.create_task(each.run(), name="faults") for each in killing]
        go = Go(number, time.monotonic_ns() + _AHEAD_NS, rate, command_rate)
        ends: list[PhaseEnded] = []
        try:
            ends = await self._generators.go(go)
        except asyncio.CancelledError:
            self._generators.cut()
            with contextlib.suppress(TimeoutError, Failure):
                async with asyncio.timeout(_GIVE_UP_S):
                    ends = await self._generators.ended()
            raise
        finally:
            await end(*tasks)
            self._note(killing)
            if ends:
                used = {role: round(spent - cpu[role], 3) for role, spent in self._cpu().items()}
                record = phase_record(
                    phase, ends, rate=rate, begin_s=begin_s, end_s=self._sampling.since_s, cpu_s=used,
                    rows=self._sampling.rows[first_row:], trainer=self._scenario.trainer,
                    memory_before=self._memory_before,
                )  # fmt: skip
                self.phases.append(record)
                if phase.measures_maximum:
                    self._maximum = record.metrics.get("sustained", 0.0)

    def _rates(self, phase: Phase) -> tuple[float, float]:
        found = []
        for process in (phase.arrival, phase.commands.arrival if phase.commands else None):
            rate = 0.0
            if isinstance(process, Constant | Poisson):
                rate = process.rate or (process.of_maximum or 0.0) * self._maximum
                if not rate:
                    self._trouble(f"phase {phase.name}: no maximum was measured; taking 1 a second")
                    rate = 1.0
            found.append(rate)
        return found[0], found[1]

    async def _given_back(self) -> list[Finished]:
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                return await self._generators.finish()
        except (TimeoutError, Failure, OSError) as error:
            self._trouble(f"not everything was given back: {error or 'no answer in time'}")
            return []

    def _record(self, finished: list[Finished], interrupted: bool) -> RunRecord:
        audit: Counter[str] = Counter()
        refusals: Counter[str] = Counter()
        for one in finished:
            audit.update(one.audit)
            refusals.update(one.reasons)
        return RunRecord(
            phases=self.phases, series=self._sampling.series(),
            metrics=run_metrics(self.phases, audit, self._maximum), audit=dict(audit),
            cpu_s={name: round(spent, 3) for name, spent in self._sampling.processes.cpu_s.items()},
            messages=self._logs.messages, stored_bytes=self._logs.stored, killed=dict(self._killed),
            faults=self._faults, refusals=dict(refusals), troubles=self._troubles, interrupted=interrupted,
        )  # fmt: skip

    def _sampled(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._trouble(f"no more samples: {error!r}")

    def _note(self, killing: list[Killing]) -> None:
        began = time.monotonic() - self._sampling.since_s
        for each in killing:
            self._killed.update(each.killed)
            self._faults += [(round(at - began, 3), name) for at, name in each.events]

    def _cpu(self) -> dict[str, float]:
        self._sampling.look()
        return {role: self._sampling.processes.cpu_of(role) for role in ROLES}

    def _pids(self) -> dict[str, int]:
        return {**self._target.processes(), **self._generators.pids}

    def _trouble(self, text: str) -> None:
        if len(self._troubles) < _LINES:
            self._troubles.append(text)
        self._tell(text)
