"""What a sandbox's agent remembers of commands by their key: one that was seen is not run again."""

import shlex
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.commands import Call

REMEMBERED: Final = 65_536
"""How many keys whose results were settled are remembered, and how many that were given up."""


_SHOWN: Final = 60
"""Characters of a command that are told to who waited for its end."""


class Recall:
    """Commands under way, and the results that nobody has settled yet. Commands without a key are only under way."""

    def __init__(self) -> None:
        self.under_way: dict[Call, None] = {}
        self._calls: dict[str, Call] = {}
        self._results: dict[str, CommandResult] = {}
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._given_up: OrderedDict[str, None] = OrderedDict()  # those of which nothing was run

    def known(self, key: str) -> Call | CommandResult | None:
        """Return the command under way with this key, or its result."""
        return self._calls.get(key) or self._results.get(key)

    @property
    def finished(self) -> tuple[str, ...]:
        """The keys of the results that nobody has settled yet."""
        return tuple(self._results)

    def never(self, asked: frames.Run) -> frames.Settled | frames.NotRun | None:
        """Return why it is not to be run: its result was settled, or it was given up; None where it is."""
        if asked.key in self._settled:
            return frames.Settled(asked.id)
        return frames.NotRun(asked.id) if asked.key in self._given_up else None

    def rest(self, asked: frames.Rest) -> frames.Piece | frames.Settled:
        """Return a piece of what a command wrote that has ended."""
        result = self._results.get(asked.key)
        if result is None:
            return frames.Settled(asked.id)
        wrote = result.stdout if asked.channel == 1 else result.stderr
        end = asked.offset + min(asked.limit, frames.IN_FRAME)
        return frames.Piece(asked.id, wrote[asked.offset : end], len(wrote), end >= len(wrote))

    def begin(self, call: Call) -> None:
        """Note that a command runs, or waits for the session."""
        self.under_way[call] = None
        if call.key:
            self._calls[call.key] = call

    def finish(self, call: Call, result: CommandResult) -> None:
        """Note its result, kept until it is settled."""
        self.under_way.pop(call, None)
        if call.key:
            self._calls.pop(call.key, None)
            self._results[call.key] = result

    def forget(self, call: Call) -> None:
        """Note that nothing was run of it, and nothing will be."""
        self.under_way.pop(call, None)
        self._calls.pop(call.key, None)

    def give_up(self, key: str) -> None:
        """Note that a command which is not under way is never to be run, if it was not."""
        if self.known(key) is None and key not in self._settled:
            _note(self._given_up, key)

    def settle(self, keys: Iterable[str]) -> None:
        """Forget these results, though not that there were any."""
        for key in keys:
            if self._results.pop(key, None) is not None:
                _note(self._settled, key)


def _note(keys: OrderedDict[str, None], key: str) -> None:
    keys[key] = None
    if len(keys) > REMEMBERED:
        keys.popitem(last=False)


def not_run(id: int, before: Call | None, seconds: float) -> frames.NotRun:
    """Return what is told of a command of which nothing was run, because of the one before it if there is one."""
    if before is None:
        return frames.NotRun(id)
    command = before.command
    lines = (command.line or command.python or shlex.join(command.argv)).strip().splitlines()
    return frames.NotRun(id, before.key, lines[0][:_SHOWN] if lines else "", seconds)


def told(id: int, result: CommandResult) -> frames.Done:
    """Return what is told of a result: of what is large, the beginning."""
    sizes = len(result.stdout), len(result.stderr)
    if max(sizes) > frames.IN_FRAME:
        out, err = result.stdout[: frames.IN_FRAME], result.stderr[: frames.IN_FRAME]
        result = msgspec.structs.replace(result, stdout=out, stderr=err)
    return frames.Done(id, result, sizes)
