"""Many sandboxes at once where a driver has one after the other, and one where it has many."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from shoal.wire.messages import Command, CommandResult
from shoal_executor.drivers.protocol import Driver, DriverError, Ran, StartFailed, StartSpec

Run = Callable[[str, Command], Awaitable[CommandResult]]
_T = TypeVar("_T")


async def start_one(driver: Driver, name: str, spec: StartSpec) -> None:
    """Have one sandbox started. Raises DriverError when it could not be."""
    outcomes = [outcome async for outcome in driver.start((name,), spec)]
    for outcome in outcomes:
        if isinstance(outcome, StartFailed):
            raise DriverError(outcome.detail)


def paired(names: Sequence[str], commands: Sequence[Command]) -> list[tuple[str, Command]]:
    """Return the command of each sandbox; one alone is for all of them."""
    given = [*commands] * len(names) if len(commands) == 1 else commands
    return list(zip(names, given, strict=True))


async def side_by_side(run: Run, names: Sequence[str], commands: Sequence[Command]) -> AsyncIterator[Sequence[Ran]]:
    """Yield what came of each command, as they come; what is under way ends with the caller."""
    finished: asyncio.Queue[Ran] = asyncio.Queue()

    async def one(at: int, name: str, command: Command) -> None:
        try:
            finished.put_nowait((at, await run(name, command)))
        except Exception as error:
            finished.put_nowait((at, error))

    tasks = [asyncio.create_task(one(at, *pair)) for at, pair in enumerate(paired(names, commands))]
    left = len(tasks)
    try:
        while left:
            ran = await some_of(finished)
            left -= len(ran)
            yield ran
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def some_of(queue: "asyncio.Queue[_T]") -> list[_T]:
    """Return all that is in a queue, and at least one."""
    return [await queue.get(), *(queue.get_nowait() for _ in range(queue.qsize()))]
