"""Replicas of a pure core over one log: leaders and standbys, crashes, pauses, checkpoints, as the real shell has them.

Follows `shoal.runtime.shell`: a replica folds in order; a leader sends what follows and writes its position when that
is stored; a standby keeps what follows from messages beyond the leader's position; whoever takes over sends it. What is
compared here is what the real thing promises: whoever folds the same messages, from whichever checkpoint, has the same
state and wants the same.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from shoal.machine.core import Cause, Core, Effect, LawBrokenError, Publish, Task, effect_id
from shoal.testing.log import Broker, Log
from shoal.testing.world import LawViolatedError, World
from shoal.wire.messages import DeadLetter, Tick
from shoal.wire.streams import stream_of

LEASE_MS: Final = 2000
_READ: Final = 16

Answer = Callable[[Task], Sequence[Publish]]


class Partition:
    """A log with its replicas, and what is stored about it: who leads, how far it is done, its checkpoints.

    `make` returns a fresh core, `answer` what comes of a task. `watch` is called after each fold by the leader.
    """

    def __init__(
        self,
        world: World,
        broker: Broker,
        name: str,
        stream: str,
        make: Callable[[], Core],
        *,
        replicas: int = 1,
        tick_subject: str | None = None,
        answer: Answer | None = None,
        replica: "type[Replica] | None" = None,
    ) -> None:
        self.world = world
        self.broker = broker
        self.name = name
        self.log: Log = broker.log(stream)
        self.make = make
        self.tick_subject = tick_subject
        self.answer = answer
        self.owner: Replica | None = None
        self.epoch = 0
        self.position = 0
        self.renewed_ms = world.now_ms
        self.checkpoints: list[tuple[int, bytes]] = []
        self.dead = 0
        self._wants: list[tuple[Effect, ...]] = []  # of each message, as whoever folded it first wanted
        self._dumps: dict[int, bytes] = {}
        kind = replica or Replica
        self.replicas = [kind(self, f"{name}#{number}") for number in range(replicas)]
        for each in self.replicas:
            each.start()

    def wanted(self, sequence: int, effects: tuple[Effect, ...]) -> None:
        """Compare what follows from a message with what followed from it before."""
        if sequence > len(self._wants):
            self._wants.append(effects)
        elif self._wants[sequence - 1] != effects:
            raise LawViolatedError(
                f"{self.name}: message {sequence} was answered with {self._wants[sequence - 1]}, and now with {effects}"
            )

    def dumped(self, sequence: int, state: bytes) -> None:
        """Compare a state with what it was before at the same place."""
        if self._dumps.setdefault(sequence, state) != state:
            raise LawViolatedError(f"{self.name}: two states after message {sequence}")

    def cause(self, sequence: int) -> Cause:
        """Return what follows from a message has as its cause."""
        return Cause(self.log.name, sequence, self.log.entries[sequence - 1].time_ms)

    def check_stored(self) -> None:
        """Check that everything that follows from what is done with was stored."""
        for sequence, effects in enumerate(self._wants[: self.position], 1):
            for number, effect in enumerate(effects):
                id = effect_id(self.cause(sequence), number)
                if isinstance(effect, Publish) and not self.broker.log(stream_of(effect.subject)).knows(id):
                    raise LawViolatedError(f"{self.name}: {id} was never stored: {effect.message}")

    def replay(self) -> Core:
        """Fold the whole log anew and compare; returns the core."""
        core = self.make()
        for entry in self.log.entries:
            try:
                effects = tuple(core.handle(entry.message, Cause(self.log.name, entry.sequence, entry.time_ms)))
            except LawBrokenError as error:
                effects = error.answers
            self.wanted(entry.sequence, effects)
        self.dumped(len(self.log.entries), core.dump())
        return core


class Replica:
    """One process of a partition."""

    def __init__(self, partition: Partition, name: str) -> None:
        self.partition = partition
        self.name = name
        self.core = partition.make()
        self.position = 0
        self.up = False
        self.paused_until = 0
        self.thinks_it_leads = False
        self._life = 0
        self._epoch = 0
        self._held: deque[tuple[int, tuple[Effect, ...]]] = deque()
        self._reading = False
        self._outbox_ms = 0
        self._ticking = 0
        self._repeats = 0
        partition.log.readers.append(self._woken)

    # --- life

    def start(self) -> None:
        """Load some checkpoint that is stored, and go on from there."""
        partition = self.partition
        self._life += 1
        self.up = True
        self.core, self.position = partition.make(), 0
        self._held.clear()
        self.thinks_it_leads = self._reading = False
        self._ticking = 0
        usable = [None, *partition.checkpoints]
        chosen = partition.world.random.choice(usable)
        if chosen is not None:
            self.position, state = chosen
            self.core.load(state)
            partition.dumped(self.position, self.core.dump())
        partition.world.tell(f"{self.name} starts from {self.position}")
        self._woken()
        self._look(self._life)

    def crash(self) -> None:
        """Die, and come back in a while."""
        world = self.partition.world
        world.tell(f"{self.name} crashes at {self.position}")
        self.up = False
        self._life += 1
        world.after(world.random.randint(10, 3000), self.start)

    def pause(self) -> None:
        """Stop for longer than the lease."""
        world = self.partition.world
        self.paused_until = world.now_ms + LEASE_MS + world.random.randint(1, 4000)
        world.tell(f"{self.name} pauses at {self.position} for {self.paused_until - world.now_ms} ms")

    # --- folding

    def _woken(self) -> None:
        if self.up and not self._reading:
            self._reading = True
            world = self.partition.world
            delay = world.random.randint(1, 10)
            world.after(max(delay, self.paused_until - world.now_ms), self._read, self._life)

    def _read(self, life: int) -> None:
        if life != self._life:
            return
        partition, world = self.partition, self.partition.world
        if world.now_ms < self.paused_until:
            world.after(self.paused_until - world.now_ms, self._read, life)
            return
        self._reading = False
        for entry in partition.log.entries[self.position : self.position + world.random.randint(1, _READ)]:
            self._fold(entry.sequence)
            if entry.sequence > partition.position and world.chance(partition.broker.faults.crash):
                self.crash()
                return
            if world.chance(partition.broker.faults.pause):
                self.pause()
                break
        if self.thinks_it_leads:
            self._send_held()
        if self.position < len(partition.log.entries):
            self._woken()
        self._tick_later()

    def _fold(self, sequence: int) -> None:
        partition = self.partition
        entry = partition.log.entries[sequence - 1]
        self.position = sequence
        try:
            effects = tuple(self.core.handle(entry.message, Cause(partition.log.name, sequence, entry.time_ms)))
        except LawBrokenError as error:
            effects = error.answers
            partition.dead += 1
            if isinstance(entry.message, DeadLetter):
                raise LawViolatedError("a dead letter was put aside") from error
        self.core.check()
        partition.wanted(sequence, effects)
        if sequence > partition.position:
            self._held.append((sequence, effects))

    def _send_held(self) -> None:
        """Hand what follows from messages to the outbox, which sends it in a moment unless the process dies before."""
        world = self.partition.world
        if not self._held:
            return
        batch = list(self._held)
        self._held.clear()
        dump = self.core.dump() if world.chance(0.1) else None
        self._outbox_ms = max(self._outbox_ms, world.now_ms + world.random.choice((0, 1, 1, 5, 300)))
        delay = self._outbox_ms - world.now_ms
        world.after(delay, self._emit, self._life, self._epoch, batch, self.position, dump)

    def _emit(
        self, life: int, epoch: int, batch: list[tuple[int, tuple[Effect, ...]]], position: int, dump: bytes | None
    ) -> None:
        """Send, and write the position when all of it is stored."""
        partition, world = self.partition, self.partition.world
        if life != self._life:
            return  # it died with the process
        stored_ms = world.now_ms
        for sequence, effects in batch:
            for number, effect in enumerate(effects):
                id = effect_id(partition.cause(sequence), number)
                stored_ms = max(stored_ms, self._send(effect, id))
        world.after(stored_ms - world.now_ms, self._stored, life, epoch, position, dump)

    def _send(self, effect: Effect, id: str) -> int:
        partition, world = self.partition, self.partition.world
        if isinstance(effect, Publish):
            return partition.broker.publish(self.name, effect.subject, effect.message, id)
        assert partition.answer is not None
        for number, answer in enumerate(partition.answer(effect)):
            again = f"{id}:{self.name}:{self._life}:{number}"
            world.after(world.random.randint(1, 100), self._answer, self._life, answer, again)
        return world.now_ms

    def _answer(self, life: int, answer: Publish, id: str) -> None:
        if life == self._life:  # what a dead process was about to say, nobody hears
            self.partition.broker.publish(self.name, answer.subject, answer.message, id)

    def _stored(self, life: int, epoch: int, position: int, dump: bytes | None) -> None:
        """All effects up to there are stored: write it down, if the lease is still ours."""
        partition = self.partition
        if life != self._life or partition.world.now_ms < self.paused_until:
            return
        if partition.owner is not self or partition.epoch != epoch:
            self.thinks_it_leads = False
            return
        partition.position = max(partition.position, position)
        partition.renewed_ms = partition.world.now_ms
        if dump is not None:
            partition.dumped(position, dump)
            partition.checkpoints.append((position, dump))

    # --- leading

    def _look(self, life: int) -> None:
        """Look at the lease, as standby or as leader."""
        partition, world = self.partition, self.partition.world
        if life != self._life:
            return
        world.after(LEASE_MS // 4, self._look, life)
        if world.now_ms < self.paused_until:
            return
        if partition.owner is self and self.thinks_it_leads:
            partition.renewed_ms = world.now_ms
            return
        if self.thinks_it_leads and partition.owner is not self:
            self.thinks_it_leads = False  # its renewal failed
        while self._held and self._held[0][0] <= partition.position:
            self._held.popleft()
        caught_up = self.position >= partition.position
        if caught_up and (partition.owner is None or world.now_ms - partition.renewed_ms >= LEASE_MS):
            partition.owner, partition.renewed_ms = self, world.now_ms
            partition.epoch += 1
            self._epoch = partition.epoch
            self.thinks_it_leads = True
            world.tell(f"{self.name} leads from {partition.position}, at {self.position}")
            for number, effect in enumerate(self.core.outstanding()):
                self._send(effect, f"{partition.log.name}:outstanding:{number}:{self._epoch}")
            self._held = deque(
                (sequence, tuple(each for each in effects if isinstance(each, Publish)))
                for sequence, effects in self._held
            )
            self._send_held()
            self._ticking = 0
            self._tick_later()

    def _tick_later(self) -> None:
        partition, world = self.partition, self.partition.world
        due = self.core.wake_at_ms()
        if not self.thinks_it_leads or partition.tick_subject is None or due is None:
            return
        if due != self._ticking:
            self._ticking, self._repeats = due, 0
            late = world.random.choice((0, 0, 5, 500))
            world.after(due - world.now_ms + late, self._tick, self._life, due)

    def _tick(self, life: int, due: int) -> None:
        partition, world = self.partition, self.partition.world
        if life != self._life or not self.thinks_it_leads or self.core.wake_at_ms() != due:
            return
        if world.now_ms < self.paused_until:
            world.after(self.paused_until - world.now_ms, self._tick, life, due)
            return
        assert partition.tick_subject is not None
        id = f"tick:{partition.log.name}:{due}" + (f":{self.name}:{self._repeats}" if self._repeats else "")
        self._repeats += 1
        partition.broker.publish(self.name, partition.tick_subject, Tick(due), id)
        world.after(1000, self._tick, life, due)
