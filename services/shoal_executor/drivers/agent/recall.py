"""What a sandbox's agent remembers of commands by their key: one that was seen is not run again."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.commands import Call

REMEMBERED: Final = 65_536
"""How many keys whose results were settled are remembered."""


class Recall:
    """Commands under way, and the results that nobody has settled yet. Commands without a key are only under way."""

    def __init__(self) -> None:
        self.under_way: dict[Call, None] = {}
        self._calls: dict[str, Call] = {}
        self._results: dict[str, CommandResult] = {}
        self._settled: OrderedDict[str, None] = OrderedDict()

    def known(self, key: str) -> Call | CommandResult | None:
        """Return the command under way with this key, or its result."""
        return self._calls.get(key) or self._results.get(key)

    @property
    def finished(self) -> tuple[str, ...]:
        """The keys of the results that nobody has settled yet."""
        return tuple(self._results)

    def settled(self, key: str) -> bool:
        """Return whether it was run, and its result settled."""
        return key in self._settled

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

    def settle(self, keys: Iterable[str]) -> None:
        """Forget these results, though not that there were any."""
        for key in keys:
            if self._results.pop(key, None) is not None:
                self._settled[key] = None
                if len(self._settled) > REMEMBERED:
                    self._settled.popitem(last=False)


def told(id: int, result: CommandResult) -> frames.Done:
    """Return what is told of a result: of what is large, the beginning."""
    sizes = len(result.stdout), len(result.stderr)
    if max(sizes) > frames.IN_FRAME:
        out, err = result.stdout[: frames.IN_FRAME], result.stderr[: frames.IN_FRAME]
        result = msgspec.structs.replace(result, stdout=out, stderr=err)
    return frames.Done(id, result, sizes)
