"""The snapshot catalogue's core: who waits for which template. Looking at a source happens at the edge (Inspect)."""

from collections.abc import Sequence

import msgspec

from shoal.machine.core import Cause, Effect, Inspect, LawBrokenError, Publish
from shoal.wire import subjects
from shoal.wire.messages import AnyMessage, ResolveTemplate, TemplateInspected, TemplateResolved, Tick


class SnapshotCore:
    """Asks the edge once for each template however many wait, and answers every asker."""

    state_version = 1

    def __init__(self) -> None:
        self._askers: dict[str, dict[tuple[int, str], None]] = {}  # in the order they asked

    def handle(self, message: AnyMessage, cause: Cause) -> Sequence[Effect]:
        """Fold one message. Raises LawBrokenError, having changed nothing."""
        match message:
            case ResolveTemplate(cell=cell, tenant=tenant, template=template):
                if not 0 <= cell < 10_000:
                    raise LawBrokenError(f"{cell} is not a cell number from 0 to 9999")
                known = template in self._askers
                self._askers.setdefault(template, {})[(cell, tenant)] = None
                return () if known else (Inspect(template),)
            case TemplateInspected(template=template, snapshot=snapshot, error=error):
                return [
                    Publish(subjects.rollout_system(cell), TemplateResolved(tenant, template, snapshot, error))
                    for cell, tenant in self._askers.pop(template, {})
                ]
            case Tick():
                return ()
        raise LawBrokenError(f"the snapshot catalogue has no use for {type(message).__name__}")

    def wake_at_ms(self) -> int | None:
        """Return None: nothing here waits for time to pass."""
        return None

    def outstanding(self) -> Sequence[Effect]:
        """Return the templates asked about and not yet looked at."""
        return [Inspect(template) for template in self._askers]

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        return msgspec.msgpack.encode([(template, list(askers)) for template, askers in self._askers.items()])

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        askers = msgspec.msgpack.decode(state, type=list[tuple[str, list[tuple[int, str]]]])
        self._askers = {template: dict.fromkeys(waiting) for template, waiting in askers}

    def check(self) -> None:
        """Assert that somebody waits for each template being looked at."""
        assert all(self._askers.values())
