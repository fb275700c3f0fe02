"""What the log says became of a rollout, counted: nothing lost, nothing doubled."""

from collections import Counter
from contextlib import aclosing

from shoal.bus.protocol import Bus
from shoal.client.feed import history
from shoal.machine import ranges
from shoal.wire import streams
from shoal.wire.codec import decode
from shoal.wire.messages import (
    CommandFinished,
    EndReason,
    PlaceRequested,
    Ranges,
    RolloutConcluded,
    SandboxesEnded,
    SandboxesFinished,
    SlotsReleased,
    StartSandboxes,
)


class Account:
    """How often each sandbox of one rollout was asked for, started, ended and cleared away, as the streams have it."""

    def __init__(self, rollout: str) -> None:
        self.rollout = rollout
        self.placed: Counter[int] = Counter()
        self.started: Counter[int] = Counter()
        self.finished: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.counts: list[dict[EndReason, int]] = []
        self.cleared: Counter[int] = Counter()
        self.answers: Counter[str] = Counter()

    async def read(self, bus: Bus, executor: str = "local", cell: int = 0) -> "Account":
        """Count what the streams of a cell keep."""
        for stream in (streams.rollout(cell), streams.placement(cell), streams.executor(executor),
                       streams.trajectory(cell)):  # fmt: skip
            async with aclosing(history(bus, stream.name)) as found:
                async for delivery in found:
                    self._count(decode(delivery.payload))
        return self

    def _count(self, message: object) -> None:
        if getattr(message, "rollout", "") != self.rollout:
            return
        match message:
            case PlaceRequested(indices=indices):
                _add(self.placed, indices)
            case StartSandboxes(indices=indices):
                _add(self.started, indices)
            case SandboxesFinished(results=results):
                self.finished.update(result.index for result in results)
            case SandboxesEnded(indices=indices):
                _add(self.ended, indices)
            case RolloutConcluded(counts=counts):
                self.counts.append(dict(counts))
            case SlotsReleased(indices=indices):
                _add(self.cleared, indices)
            case CommandFinished(id=id):
                self.answers[id] += 1
            case _:
                pass

    def check_jobs(self, n: int) -> None:
        """Assert that each of n sandboxes ran its job exactly once, in one start."""
        once = Counter(range(n))
        assert self.placed == self.started == self.finished == self.cleared == once
        assert not self.ended

    def check_released(self, n: int, commands: int) -> None:
        """Assert that each of n sandboxes was started once, answered so many commands once, and was released."""
        once = Counter(range(n))
        assert self.placed == self.started == self.cleared == once
        assert self.counts == [{EndReason.RELEASED: n}]
        assert not self.ended
        assert not self.finished
        assert (len(self.answers), set(self.answers.values())) == (n * commands, {1})


def _add(counter: "Counter[int]", indices: Ranges) -> None:
    counter.update(ranges.indices(indices))
