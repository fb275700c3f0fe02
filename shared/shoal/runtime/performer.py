"""Effects that are more than a message: carried out until they succeed, and answered through the log."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

import structlog

from shoal.bus.ending import end
from shoal.bus.protocol import Bus
from shoal.machine.core import Publish, Task
from shoal.runtime.dead import FIRST_PAUSE_S, LONGEST_PAUSE_S, store
from shoal.wire.codec import encode

log = structlog.get_logger()

Perform = Callable[[Task], Awaitable[Sequence[Publish]]]
"""Does what a task asks and returns what to publish about it. Its errors are tried again."""


class Performer:
    """Performs the effects of one partition, each in a task of its own."""

    def __init__(self, bus: Bus, name: str, perform: Perform | None) -> None:
        self._bus = bus
        self._name = name
        self._perform = perform
        self._tasks: dict[asyncio.Task[None], None] = {}  # in their order

    def start(self, effect: Task, id: str) -> None:
        """Begin. Raises TypeError for a core that asks for what its shell was not given."""
        if self._perform is None:
            raise TypeError(f"{self._name} cannot perform {effect}: it was given nothing to perform it with")
        task = asyncio.create_task(self._performed(self._perform, effect, id), name=f"{self._name} performs {id}")
        self._tasks[task] = None
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))

    async def _performed(self, perform: Perform, effect: Task, id: str) -> None:
        pause = FIRST_PAUSE_S
        while True:
            try:
                answers = await perform(effect)
                break
            except Exception:
                log.exception("an effect failed and is tried again", reader=self._name, effect=str(effect))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
        # The world may have changed since somebody looked at it before, us or another, and what is outstanding has the
        # same numbers each time that somebody begins to lead: no answer is ever a copy of another performance's.
        nonce = uuid4().hex
        for number, answer in enumerate(answers):
            await store(self._bus, answer.subject, encode(answer.message), f"{id}:{nonce}:{number}")

    async def stop(self) -> None:
        """Give up what is under way: the core still counts it as outstanding."""
        await end(*self._tasks)
