"""A rollout submitted, and followed from before that."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from shoal.client.errors import ShoalError, Timeout
from shoal.client.fold import RolloutFold
from shoal.client.link import Link
from shoal.client.rollout import Rollout
from shoal.wire import subjects
from shoal.wire.messages import RolloutSpec, RolloutSubmitted

FIRST_WORD_S: Final = 2.0
"""How long it is waited for the cluster's first word of a rollout."""

Start = Callable[[RolloutSpec, str, str], Awaitable[Rollout]]
"""Starts another rollout: a spec, its run, and what it is called there."""


async def submit(link: Link, request: RolloutSubmitted, payload: bytes) -> None:
    """Have the cluster take a request; asked again, it takes it as the same. Raises a ShoalError."""
    subject = subjects.rollout_request(subjects.cell_of(request.rollout, link.cells), request.tenant, request.run)
    await link.publish(subject, payload, f"{request.rollout}:submitted")


async def begin(
    link: Link, request: RolloutSubmitted, payload: bytes, start: Start, first_word_s: float | None
) -> Rollout:
    """Submit a rollout and return it. Raises a ShoalError."""
    id, tenant, run, spec = request.rollout, request.tenant, request.run, request.spec
    cell = subjects.cell_of(id, link.cells)
    # Followed before it is submitted: nothing said of it can be missed.
    following = [link.follow_rollouts(cell, tenant, run)]
    if not spec.commands:
        following.append(link.follow_answers(cell, tenant, run))
    await asyncio.gather(*following)
    rollout = Rollout(link, RolloutFold(id, tenant, run, spec), start)
    link.rollouts[id] = rollout
    try:
        await submit(link, request, payload)
        if first_word_s is not None:
            await rollout.first_word(first_word_s)
    except Timeout:
        raise  # it may have been stored after all; unheard, it ends with its own timeout
    except ShoalError:
        link.rollouts.pop(id, None)
        raise
    except asyncio.CancelledError:
        await asyncio.shield(rollout.release())  # nobody will
        raise
    return rollout
