"""Ends of which a driver tells when nothing can follow from them yet: they are kept until something can."""

from collections.abc import Callable

import structlog

from shoal.machine import ranges
from shoal.wire.messages import EndReason
from shoal_executor.core import ExecutorCore, Key, Phase
from shoal_executor.core.names import parse
from shoal_executor.service.journal import AnyRecord, Exited, Failed, Up

Why = tuple[EndReason, str]

log = structlog.get_logger()


class Exits:
    """See the module. `happened` is called with those that follow now."""

    def __init__(self, happened: Callable[[AnyRecord], None]) -> None:
        self._happened = happened
        self._core: ExecutorCore | None = None
        self._before: dict[str, Why] = {}
        self._early: dict[Key, dict[int, Why]] = {}

    def told(self, name: str, reason: EndReason, detail: str) -> None:
        """A sandbox ended and nobody asked for it."""
        if self._core is None:
            self._before[name] = (reason, detail)
            return
        rollout, index, attempt = parse(name)
        key = self._core.find(rollout, index, attempt)
        if key is None:
            return
        log.warning("a sandbox ended by itself", sandbox=name, reason=reason, detail=detail)
        if self._core.groups[key].phase(index) is Phase.STARTING:  # the word that it is up is on its way
            self._early.setdefault(key, {})[index] = (reason, detail)
        else:
            self._happened(Exited(key, index, reason, detail))

    def before(self, name: str) -> Why | None:
        """Return why one of an earlier process has ended; None where nothing was told."""
        return self._before.get(name)

    def go(self, core: ExecutorCore) -> None:
        """From now on ends follow as they are told."""
        self._core = core
        self._before.clear()

    def outcome(self, record: Up | Failed) -> None:
        """The word came of how these started: those that are up and have ended meanwhile end now."""
        early = self._early.get(record.group)
        if early is None:
            return
        for index in [index for index in early if ranges.holds(record.indices, index)]:
            reason, detail = early.pop(index)
            if isinstance(record, Up):
                self._happened(Exited(record.group, index, reason, detail))
        if not early:
            self._early.pop(record.group, None)
