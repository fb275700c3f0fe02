"""Sandboxes that were started for somebody who may not get them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shoal.client.errors import ShoalError

if TYPE_CHECKING:
    from shoal.client.rollout import Rollout


@asynccontextmanager
async def released_unless_given(rollout: "Rollout", *given_by: type[ShoalError]) -> AsyncIterator[None]:
    """Release a rollout when anything is raised, but for the errors that hand it over.

    In a run that is resumed it stays: whoever asks for the same again gets it.
    """
    try:
        yield
    except given_by:
        raise
    except BaseException as error:
        if rollout.policy is None:
            try:
                await asyncio.shield(rollout.release())
            except ShoalError as trouble:
                error.add_note(f"rollout {rollout.id}, which was started for this, is not released: {trouble}")
        raise
