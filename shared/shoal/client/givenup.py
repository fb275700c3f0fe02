"""Steps that a trainer gave up: `asyncio.wait_for`, `asyncio.timeout`, `task.cancel()` around an operation.

In a run that is resumed that is a part of what happened. It is told to the log when the trainer goes on: before the
next step of the connection, the next rollout, a release. A trainer that is ended (Ctrl-C, an error that ends it) asks
for nothing any more, so that what it had under way stays open for the one after it.

Whoever asks for such a step again after a restart gets no answer: it is to be given up once more, as the first time.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Final

from shoal.wire import subjects
from shoal.wire.messages import StepGivenUp, StepsGivenUp

if TYPE_CHECKING:
    from shoal.client.link import Link
    from shoal.client.rollout import Rollout
    from shoal.client.sandbox import Sandbox

logger = logging.getLogger("shoal.client")

_TOGETHER: Final = 1000
"""Steps in one message."""
_SPARE_S: Final = 30.0
"""How much longer than the first time it may take, at least, until a step is given up again."""
_LOOK_S: Final = 1.0

Recorded = dict[tuple[str, int], StepGivenUp]
"""What was given up in one sandbox, by id and turn: of several attempts, the latest."""


class GivenUp:
    """What was given up in a connection, and not told yet."""

    def __init__(self, link: "Link") -> None:
        self._link = link
        self._untold: dict[tuple[str, str], list[StepGivenUp]] = {}  # by subject and rollout
        self._telling = asyncio.Lock()

    def note(self, rollout: "Rollout", step: StepGivenUp) -> None:
        """Note that nobody waits for a step any more."""
        subject = subjects.rollout_request(rollout.cell, rollout.tenant, rollout.run)
        self._untold.setdefault((subject, rollout.id), []).append(step)

    async def tell(self) -> None:
        """Have the log know of all of it: its trainer goes on. Raises a ShoalError; then it is told the next time."""
        if not self._untold:
            return
        async with self._telling:
            while self._untold:
                (subject, rollout), steps = next(iter(self._untold.items()))
                now = tuple(steps[:_TOGETHER])
                message = StepsGivenUp(rollout, now)
                await self._link.publish(subject, message, f"{rollout}:given-up:{secrets.token_hex(8)}")
                del steps[: len(now)]
                if not steps:
                    del self._untold[subject, rollout]


@asynccontextmanager
async def asking(sandbox: "Sandbox", id: str | None) -> AsyncGenerator[str, None]:
    """Give the id of what is asked next, once it may be asked, and note where its trainer does not wait for its end.

    Raises BadRequest, NotConnected, and what `GivenUp.tell` does.
    """
    rollout, steps = sandbox.rollout, sandbox.steps
    rollout.link.check()
    name = await steps.id(id, sandbox.story)
    if rollout.policy is None:
        yield name
        return
    turn = steps.turn(name, again=id is not None)
    again: StepGivenUp | None = None
    try:
        await rollout.link.given_up.tell()
        again = _before(sandbox, name, turn)
        if again is not None:
            await _until_given_up(sandbox, again, live=rollout.policy.diverged == "live")
        yield name
    except asyncio.CancelledError:
        if again is None:
            after_ms = round((monotonic() - sandbox.since_s) * 1000)
            rollout.link.given_up.note(rollout, StepGivenUp(sandbox.index, sandbox.attempt, name, turn, after_ms))
        raise


def _before(sandbox: "Sandbox", id: str, turn: int) -> StepGivenUp | None:
    """Return how it was given up before, if it was, and that is behind the present sandbox."""
    known = sandbox.steps.given_up.pop((id, turn), None)
    if known is None or sandbox.rollout.record is None:
        return None
    story = sandbox.rollout.record.story(sandbox.index)
    counts = story.counts(f"{sandbox.name}:{id}", story.last(sandbox.attempt), known.attempt)
    return known if counts else None


async def _until_given_up(sandbox: "Sandbox", before: StepGivenUp, *, live: bool) -> None:
    """Wait until it is given up again; `live`: or that has taken much longer than the first time."""
    spare_s = max(_SPARE_S, before.after_ms / 2000)
    late_s = before.after_ms / 1000 + spare_s
    while True:
        waited_s = monotonic() - sandbox.since_s
        if waited_s >= late_s:
            if live:
                return
            logger.warning(
                "step %s of sandbox %s waits to be given up: its trainer gave it up (asyncio.wait_for, asyncio.timeout,"
                " task.cancel()) %.0f s after it had the sandbox, and this one has not within %.0f s; do that again,"
                " give the step another id=, or resume with diverged='live' to take what came of it",
                before.id, sandbox.name, before.after_ms / 1000, waited_s,
            )  # fmt: skip
            late_s = 2 * waited_s
        await asyncio.sleep(_LOOK_S)
        sandbox.rollout.link.check()
