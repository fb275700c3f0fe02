"""Calls in threads that nobody leaves behind."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


async def to_its_end(call: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs) -> _Result:
    """Call it in a thread.

    A caller who is cancelled meanwhile is so when the thread is done: else it would work on behind whoever clears up.
    """
    calling = asyncio.create_task(asyncio.to_thread(call, *given, **named))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        while not calling.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([calling])
        calling.exception()  # it is of no interest now
        raise
