"""Simulated nodes: the executor's real core around sandboxes that are but an entry, and the truth about them."""

from collections import Counter
from dataclasses import dataclass

from shoal.machine import ranges
from shoal.testing.log import Broker
from shoal.testing.world import LawViolatedError, World
from shoal.wire import messages as m, subjects
from shoal.wire.streams import stream_of
from shoal_executor import core as x

Sandbox = tuple[str, int, int]
"""rollout, index, attempt"""

BEAT_MS = 3000


@dataclass(slots=True)
class Truth:
    """What really happened, whoever says what."""

    running: dict[Sandbox, str]
    started: Counter[Sandbox]
    results: dict[Sandbox, int]
    """exit codes"""
    kept: dict[Sandbox, str]
    """digests of what sandboxes that slept must wake from"""


class SimExecutor:
    """One executor with its nodes. Its core outlives a restart, as the journal makes the real one's."""

    def __init__(
        self, world: World, broker: Broker, name: str, cell: int, nodes: tuple[m.NodeSpec, ...], truth: Truth
    ) -> None:
        self.world = world
        self.broker = broker
        self.name = name
        self.cell = cell
        self.nodes = nodes
        self.truth = truth
        self.boots = 0
        self.beating = True
        self.core = x.ExecutorCore(f"{name}b0")
        self._position = 0
        self._sent = 0
        self._outbox_ms: dict[str, int] = {}
        self._untold = 0
        self._kept_back: list[m.SlotsReleased] = []
        self._away_until = 0
        self._waiting: list[tuple[str, x.Key, int, int]] = []
        self._mine: dict[Sandbox, m.NodeSpec] = {}
        self._memory: dict[Sandbox, int] = {}
        self._log = broker.log(f"SHOAL_EXECUTOR_{name}")
        self._log.readers.append(self._woken)
        self._join()
        self._beat()

    @property
    def sandboxes(self) -> list[Sandbox]:
        """What runs here."""
        return list(self._mine)

    def was_away(self, since_ms: int) -> bool:
        """Whether it was away, or starting something slowly, in the last so many ms."""
        return self.world.now_ms - self._away_until < since_ms

    # --- saying

    def _say(self, subject: str, message: m.AnyMessage, *, tells: bool = False) -> None:
        """Send in a moment, unless the machine is lost before. Each stream has its turn of its own."""
        self._sent += 1
        self._untold += tells
        world, stream = self.world, stream_of(subject)
        leaves = max(self._outbox_ms.get(stream, 0), world.now_ms + world.random.choice((0, 1, 5, 1500)))
        self._outbox_ms[stream] = leaves
        id = f"{self.name}:{self.core.boot}:{self._sent}"
        world.after(leaves - world.now_ms, self._emit, self.core.boot, subject, message, id, tells)

    def _emit(self, boot: str, subject: str, message: m.AnyMessage, id: str, tells: bool) -> None:
        if boot != self.core.boot:
            return
        stored_ms = self.broker.publish(self.name, subject, message, id)
        if tells:
            self.world.after(stored_ms - self.world.now_ms, self._told, boot)

    def _told(self, boot: str) -> None:
        if boot != self.core.boot:
            return
        self._untold -= 1
        if not self._untold:
            for released in self._kept_back:
                self._give_back(released)
            self._kept_back.clear()

    def _join(self) -> None:
        joined = m.ExecutorJoined(self.name, self.core.boot, "zygote", self.nodes, 50.0)
        self._say(subjects.placement_node(self.cell), joined)

    def _beat(self) -> None:
        world, faults = self.world, self.broker.faults
        if not self.beating:
            return
        if world.now_ms >= self._away_until:
            self._join()
            if world.chance(faults.node_silence):
                self._go_away(12_000 + world.random.randint(0, 8000))
            elif world.chance(faults.node_restart):
                self._go_away(world.random.randint(100, 5000))
            elif world.chance(faults.node_loss):
                self._lose()
        world.after(BEAT_MS, self._beat)

    def _go_away(self, duration_ms: int) -> None:
        """Nothing is read or said for a while; sandboxes go on."""
        self.world.tell(f"{self.name} is away for {duration_ms} ms")
        self._away_until = self.world.now_ms + duration_ms
        self.world.after(duration_ms, self._back)

    def _back(self) -> None:
        if self.world.now_ms < self._away_until:
            return
        self.world.tell(f"{self.name} is back")
        self._join()
        waiting, self._waiting = self._waiting, []
        for happened in waiting:
            self._happened(*happened)
        self._woken()

    def _lose(self) -> None:
        """The machine starts anew: nothing is left, and the next boot begins with what comes from now on."""
        self.world.tell(f"{self.name} loses everything")
        for sandbox in list(self._mine):
            self._end(sandbox)
        self._waiting.clear()
        self.boots += 1
        self.core = x.ExecutorCore(f"{self.name}b{self.boots}")
        self._position = len(self._log.entries)
        self._sent = self._untold = 0
        self._kept_back.clear()
        self._join()

    # --- hearing

    def _woken(self) -> None:
        self.world.after(self.world.random.randint(1, 5), self._read)

    def _read(self) -> None:
        if self.world.now_ms < self._away_until:
            return
        while self._position < len(self._log.entries):
            message = self._log.entries[self._position].message
            self._position += 1
            match message:
                case m.StartSandboxes():
                    if message.boot == self.core.boot:
                        delay = message.deadline_ms + 2000 - self.world.now_ms
                        key = (message.rollout, message.attempt, message.node)
                        self.world.after(delay, self._later, self.core.boot, "expire", key)
                    self._apply(self.core.start(message))
                case m.DestroySandboxes():
                    self._apply(self.core.destroy(message))
                case m.PreemptSandboxes():
                    self._apply(self.core.preempt(message))
                case m.RunCommand():
                    self._apply(self.core.command(message))

    # --- what happens to sandboxes

    def _later(self, boot: str, what: str, key: x.Key, index: int = 0, code: int = 0) -> None:
        """Something happened to a sandbox; an executor that is away hears of it when it is back."""
        if boot != self.core.boot:
            return
        if self.world.now_ms < self._away_until:
            self._waiting.append((what, key, index, code))
        else:
            self._happened(what, key, index, code)

    def _happened(self, what: str, key: x.Key, index: int, code: int) -> None:
        core = self.core
        if what == "up":
            self._apply(core.started(key, ((index, 1),)))
            idle_ms = core.groups[key].order.idle_after_ms if key in core.groups else 0
            if idle_ms:
                self.world.after(idle_ms, self._later, core.boot, "idle", key, index)
        elif what in ("idle", "preempted"):
            kept = m.Snapshot(f"kept-{key[0]}-{index}-{key[1]}", "host")
            self._apply(core.slept(key, index, kept, preempted=what == "preempted"))
        elif what == "failed":
            self._apply(core.start_failed(key, ((index, 1),), "it would not"))
        elif what == "done":
            self._apply(core.jobs_done(key, [m.SandboxResult(index, m.CommandResult(code), 1)]))
        elif what == "exited":
            self._apply(core.exited(key, index, m.EndReason.DIED, "killed"))
        elif what == "destroyed":
            self._end((key[0], index, key[1]))
            self._apply(core.destroyed(key, ((index, 1),)))
        else:
            self._apply(core.expire(key))
        core.check()

    def _apply(self, effects: list[x.Effect]) -> None:
        world, faults = self.world, self.broker.faults
        for effect in effects:
            match effect:
                case x.Start(group=key, order=order, indices=indices):
                    for index in ranges.indices(indices):
                        delay = world.random.randint(1, 50) * (100 if world.chance(faults.slow_start) else 1)
                        kept = self.truth.kept.get((key[0], index, key[1]), order.snapshot.digest)
                        if order.snapshot.digest != kept:
                            raise LawViolatedError(f"{key}:{index} wakes from {order.snapshot.digest} and not {kept}")
                        world.after(delay, self._start, self.core.boot, key, index, order.resources.memory)
                case x.RunJobs(group=key, indices=indices, commands=commands):
                    given = commands * ranges.count(indices) if len(commands) == 1 else commands
                    for index, command in zip(ranges.indices(indices), given, strict=True):
                        sandbox = (key[0], index, key[1])
                        code = int(command.argv[0] == "false")
                        world.after(world.random.randint(1, 3000), self._finish, self.core.boot, key, sandbox, code)
                case x.Destroy(group=key, indices=indices):
                    for index in ranges.indices(indices):
                        world.after(world.random.randint(1, 50), self._later, self.core.boot, "destroyed", key, index)
                case x.LetSleep(group=key, index=index):
                    world.after(world.random.randint(1, 2000), self._later, self.core.boot, "preempted", key, index)
                case x.CarryOut(asked=asked):
                    assert isinstance(asked, m.RunCommand)
                    answer = m.CommandFinished(
                        asked.id, asked.rollout, asked.index, asked.attempt, asked.command, m.CommandResult(0)
                    )
                    self._say(subjects.trajectory(asked.cell, asked.tenant, asked.run), answer)
                case x.Refuse(asked=asked, reason=reason):
                    refused = m.CommandRefused(
                        asked.id, asked.rollout, asked.index, asked.attempt, "sandbox_gone", "", reason
                    )
                    self._say(subjects.trajectory(asked.cell, asked.tenant, asked.run), refused)
                case _:
                    self._report(effect)

    def _start(self, boot: str, key: x.Key, index: int, memory: int) -> None:
        """A sandbox is there now, or could not be made; checked against the node as it is, not as placement thinks."""
        world, faults = self.world, self.broker.faults
        if boot != self.core.boot:
            return
        if world.chance(faults.start_failure):
            self._later(boot, "failed", key, index)
            return
        sandbox = (key[0], index, key[1])
        node = next(node for node in self.nodes if node.node == key[2])
        self.truth.started[sandbox] += 1
        if self.truth.started[sandbox] > 1:
            raise LawViolatedError(f"sandbox {sandbox} was started twice")
        self._mine[sandbox] = node
        self._memory[sandbox] = memory
        self.truth.running[sandbox] = node.node
        here = [each for each, place in self._mine.items() if place is node]
        if len(here) > node.slots or sum(self._memory[each] for each in here) > node.memory:
            raise LawViolatedError(f"node {node.node} of {node.slots} slots holds {len(here)} sandboxes")
        if world.chance(faults.death):
            world.after(world.random.randint(1, 2000), self._die, boot, key, sandbox)
        self._later(boot, "up", key, index)

    def _finish(self, boot: str, key: x.Key, sandbox: Sandbox, code: int) -> None:
        if boot == self.core.boot and sandbox in self._mine:
            self.truth.results[sandbox] = code
            self._later(boot, "done", key, sandbox[1], code)

    def _die(self, boot: str, key: x.Key, sandbox: Sandbox) -> None:
        if boot == self.core.boot and sandbox in self._mine and sandbox not in self.truth.results:
            self._later(boot, "exited", key, sandbox[1])

    def _end(self, sandbox: Sandbox) -> None:
        if self._mine.pop(sandbox, None) is not None:
            del self._memory[sandbox]
            del self.truth.running[sandbox]

    def _report(self, effect: x.Effect) -> None:
        match effect:
            case x.ReportReady(group=(rollout, attempt, node), order=order, indices=indices, job=job):
                if not job or indices[0][0] % 2:
                    ready = m.SandboxesReady(rollout, attempt, indices, node, self.name, "zygote")
                    self._say(subjects.rollout_sandbox(order.cell, order.tenant, order.run), ready)
            case x.ReportFinished(group=(rollout, attempt, node), order=order, results=results):
                finished = m.SandboxesFinished(rollout, attempt, node, self.name, "zygote", results)
                self._say(subjects.rollout_sandbox(order.cell, order.tenant, order.run), finished, tells=True)
            case x.ReportEnded(group=(rollout, attempt, node), order=order, indices=indices, reason=reason):
                ended = m.SandboxesEnded(rollout, attempt, indices, node, reason)
                self._say(subjects.rollout_sandbox(order.cell, order.tenant, order.run), ended, tells=True)
            case x.ReportSlept(
                group=(rollout, attempt, node), order=order, index=index, snapshot=snapshot, preempted=preempted
            ):
                slept = m.SandboxSlept(rollout, attempt, index, node, snapshot, preempted)
                self._say(subjects.rollout_sandbox(order.cell, order.tenant, order.run), slept, tells=True)
            case x.ReportReleased(group=(rollout, attempt, node), indices=indices):
                released = m.SlotsReleased(self.name, self.core.boot, node, rollout, attempt, indices)
                self._release(released)

    def _release(self, released: m.SlotsReleased) -> None:
        """Give slots back, once what became of their sandboxes is known."""
        if self._untold:
            self._kept_back.append(released)
        else:
            self._give_back(released)

    def _give_back(self, released: m.SlotsReleased) -> None:
        self._say(subjects.placement_release(self.cell), released)
