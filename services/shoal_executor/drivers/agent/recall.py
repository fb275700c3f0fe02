"""What a sandbox's agent remembers of commands by their key: one that was seen is not run again."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from shoal.wire.values import CommandResult
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

    def settled(self, key: str) -> bool:
        """Return whether it was run, and its result settled."""
        return key in self._settled

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

    def settle(self, keys: Iterable[str]) -> None:
        """Forget these results, though not that there were any."""
        for key in keys:
            if self._results.pop(key, None) is not None:
                self._settled[key] = None
                if len(self._settled) > REMEMBERED:
                    self._settled.popitem(last=False)
