"""Which of the states that services save are worth archiving: enough, so that any moment is near to one."""

from collections.abc import Sequence
from typing import Final

from shoal.archive.records import Entry
from shoal.machine.checkpoint import Generation

EVERY_MESSAGES: Final = 50_000
"""Two seconds of folding, about: what rebuilding a state takes at most beyond loading one."""
EVERY_MS: Final = 600_000


def due(saved: Sequence[Entry], partition: str, generation: Generation) -> bool:
    """Return whether to archive a state, going by those that this file has; each file has at least one."""
    known = [entry.summary.saved for entry in saved]
    ours = [each for each in known if each is not None and each.partition == partition]
    if not ours:
        return True
    last = max(ours, key=lambda each: each.sequence)
    messages, ms = generation.sequence - last.sequence, generation.time_ms - last.time_ms
    return messages > 0 and (messages >= EVERY_MESSAGES or ms >= EVERY_MS)
