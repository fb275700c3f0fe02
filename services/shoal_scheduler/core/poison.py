"""Templates that fail to start wherever they are tried: found before every sandbox has used up its attempts."""

from dataclasses import dataclass, field
from typing import Final

from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_scheduler.core.state import Rollout

NODES: Final = 3
"""A template is poison when it failed on so many nodes (or on all, where there are fewer), and started on none."""
_REPORTS: Final = 3
_KEPT: Final = 1024


@dataclass(slots=True)
class _Suspect:
    nodes: dict[str, None] = field(default_factory=dict)
    reports: int = 0
    detail: str = ""


class Suspects:
    """What failed to start lately and has not started since, by tenant and snapshot."""

    def __init__(self) -> None:
        self._suspects: dict[tuple[str, str], _Suspect] = {}

    def started(self, rollout: Rollout) -> None:
        """Note that a sandbox of it started."""
        if self._suspects:
            self._suspects.pop(_key(rollout), None)

    def failed(self, rollout: Rollout, node: str, detail: str, nodes: int) -> bool:
        """Note a failed start; returns whether it is poison, in a cell of so many nodes."""
        key = _key(rollout)
        found = self._suspects.setdefault(key, _Suspect())
        found.nodes[node] = None
        found.reports += 1
        found.detail = detail
        if len(self._suspects) > _KEPT:
            del self._suspects[next(iter(self._suspects))]
        if found.reports < _REPORTS or len(found.nodes) < min(NODES, max(nodes, 1)):
            return False
        del self._suspects[key]
        return True

    @staticmethod
    def verdict(rollout: Rollout, detail: str) -> m.SandboxesClosed | None:
        """Return what is said of a rollout of a poisonous template; None where every sandbox left is ready."""
        ledger = rollout.ledger
        wanted = ranges.collect(index for index in ranges.indices(ledger.open()) if not ledger.is_ready(index))
        wanted = ranges.without(ranges.without(wanted, ledger.asleep(wanted)), rollout.closing)
        if not wanted:
            return None
        text = f"it was stopped early, because its template starts nowhere: {detail}"
        return m.SandboxesClosed(rollout.request.rollout, wanted, m.EndReason.START_FAILED, text)

    def dump(self) -> list[tuple[str, str, list[str], int, str]]:
        """Return it as data."""
        return [(*key, list(each.nodes), each.reports, each.detail) for key, each in self._suspects.items()]

    def load(self, dumped: list[tuple[str, str, list[str], int, str]]) -> None:
        """Take over what was dumped."""
        self._suspects = {
            (tenant, digest): _Suspect(dict.fromkeys(nodes), reports, detail)
            for tenant, digest, nodes, reports, detail in dumped
        }


def same_template(one: Rollout, other: Rollout) -> bool:
    """Return whether two rollouts start from the same."""
    return other.snapshot is not None and _key(one) == _key(other)


def _key(rollout: Rollout) -> tuple[str, str]:
    assert rollout.snapshot is not None
    return rollout.request.tenant, rollout.snapshot.digest
