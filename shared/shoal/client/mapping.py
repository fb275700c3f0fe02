"""Many commands, each in a sandbox of its own: divided into as many rollouts as their size takes."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from shoal.client import requests
from shoal.client.errors import BadRequest
from shoal.client.requests import CommandLike, encode_command, milliseconds, split
from shoal.client.results import SandboxOutcome
from shoal.client.rollout import Rollout
from shoal.wire.codec import encode
from shoal.wire.messages import Command, RolloutSpec, RolloutSubmitted


def commands_of(commands: Sequence[CommandLike], timeout: float | str | None) -> tuple[Command, ...]:
    """Return the commands as they travel. Raises BadRequest."""
    if isinstance(commands, str):
        raise BadRequest("commands", "it is one str; write a list with one command for each sandbox")
    if not isinstance(commands, Iterable):
        raise BadRequest("commands", f"{commands!r} is no list with one command for each sandbox")
    milliseconds(timeout, "command_timeout")
    return requests.commands_of(commands, timeout)


async def each(
    given: Sequence[Command],
    spec_of: Callable[[int, Sequence[Command]], RolloutSpec],
    base: RolloutSubmitted,
    start: Callable[[RolloutSpec], Awaitable[Rollout]],
) -> list[SandboxOutcome]:
    """Run them all, and return how each ended, in their order; `base` is the request of the first alone.

    The `index` of an outcome is its command's place in all of them. Where one cannot be started, what was
    started is released.
    """
    rest = "files" if base.spec.files else "env"
    parts = split(given, len(encode(base)) - len(encode_command(given[0])), rest)
    specs = [spec_of(count, _shared(given[first : first + count])) for first, count in parts]
    rollouts: list[Rollout] = []
    outcomes: list[SandboxOutcome | None] = [None] * len(given)

    async def collect(rollout: Rollout, first: int) -> None:
        async for outcome in rollout.outcomes():
            position = first + outcome.index
            outcomes[position] = msgspec.structs.replace(outcome, index=position)

    try:
        for spec in specs:
            rollouts.append(await start(spec))  # noqa: PERF401 - what has started is released
        await _all(*(collect(rollout, first) for rollout, (first, _) in zip(rollouts, parts, strict=True)))
    except BaseException:
        await asyncio.gather(*(rollout.release() for rollout in rollouts), return_exceptions=True)
        raise
    return [outcome for outcome in outcomes if outcome is not None]


def _shared(commands: Sequence[Command]) -> Sequence[Command]:
    """One command that all run travels once."""
    return commands[:1] if all(one == commands[0] for one in commands) else commands


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
