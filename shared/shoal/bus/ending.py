"""Ending tasks that may swallow their cancellation."""

import asyncio
from typing import Any, Final

_AGAIN_S: Final = 0.1


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait until they have ended, whatever they raise.

    Once is not enough: `asyncio.wait_for` of Python 3.11 loses a cancellation that meets its result, and nats-py
    swallows one that meets a flush.
    """
    left = list(dict.fromkeys(tasks))  # in their order, so that what is simulated repeats itself
    while left:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_AGAIN_S)
        left = [task for task in left if not task.done()]
    for task in tasks:
        if not task.cancelled():
            task.exception()
