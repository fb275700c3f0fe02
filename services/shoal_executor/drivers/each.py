"""One command in each of many sandboxes, by a driver that has nothing better than to run them side by side."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from shoal.wire.messages import Command, CommandResult
from shoal_executor.drivers.protocol import Ran

Run = Callable[[str, Command], Awaitable[CommandResult]]


async def side_by_side(run: Run, commands: Sequence[tuple[str, Command]]) -> AsyncIterator[Sequence[Ran]]:
    """Yield what came of each command, in order of completion; what is under way ends with the caller."""
    finished: asyncio.Queue[Ran] = asyncio.Queue()

    async def one(name: str, command: Command) -> None:
        try:
            finished.put_nowait(Ran(name, await run(name, command)))
        except Exception as error:
            finished.put_nowait(Ran(name, error))

    tasks = [asyncio.create_task(one(name, command)) for name, command in commands]
    try:
        left = len(tasks)
        while left:
            ran = [await finished.get(), *(finished.get_nowait() for _ in range(finished.qsize()))]
            left -= len(ran)
            yield ran
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
