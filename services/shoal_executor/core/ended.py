"""Why sandboxes ended that were here, so that a late command learns why it is refused, and nothing is started twice."""

from collections import OrderedDict
from typing import Final

from shoal.machine import ranges
from shoal.wire.messages import EndReason, Ranges

REMEMBERED_ENDS: Final = 65_536
"""How many ended sandboxes are remembered, of the rollouts that ended something last."""

_Reasons = dict[EndReason | None, int]


class Ended:
    """Reasons by rollout and attempt; None is the reason of one that sleeps."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int], _Reasons] = OrderedDict()
        self._count = 0

    def of(self, rollout: str, attempt: int) -> int:
        """Return which sandboxes of an attempt have ended."""
        ended = 0
        for bits in self._known.get((rollout, attempt), {}).values():
            ended |= bits
        return ended

    def reason(self, rollout: str, index: int, attempt: int) -> tuple[bool, EndReason | None]:
        """Return whether a sandbox is known to have ended, and why."""
        for reason, bits in self._known.get((rollout, attempt), {}).items():
            if bits >> index & 1:
                return True, reason
        return False, None

    def add(self, rollout: str, attempt: int, bits: int, reason: EndReason | None) -> None:
        """Remember why these ended; the longest known are forgotten where it becomes too many."""
        reasons = self._known.setdefault((rollout, attempt), {})
        reasons[reason] = reasons.get(reason, 0) | bits
        self._count += bits.bit_count()
        while self._count > REMEMBERED_ENDS and len(self._known) > 1:
            _, dropped = self._known.popitem(last=False)
            self._count -= sum(each.bit_count() for each in dropped.values())

    def dump(self) -> list[tuple[str, int, list[tuple[EndReason | None, Ranges]]]]:
        """Return all of it, the oldest first."""
        return [
            (rollout, attempt, [(reason, ranges.unmask(bits)) for reason, bits in reasons.items()])
            for (rollout, attempt), reasons in self._known.items()
        ]

    def load(self, dumped: list[tuple[str, int, list[tuple[EndReason | None, Ranges]]]]) -> None:
        """Take over what was dumped, into one that knows nothing."""
        for rollout, attempt, reasons in dumped:
            for reason, indices in reasons:
                self.add(rollout, attempt, ranges.mask(indices), reason)

    def check(self) -> None:
        """Assert that nothing is counted wrongly."""
        assert self._count == sum(bits.bit_count() for reasons in self._known.values() for bits in reasons.values())
