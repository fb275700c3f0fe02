"""What a tenant may say, and where: on subjects that have its name in them, what a client says, and of itself only.

The broker holds each tenant to such subjects, and a message's type and what it says its sender chose. All other
subjects are for services and operators.
"""

from typing import Final

from shoal.wire.messages import (
    AnyMessage,
    BuildTemplate,
    ListSnapshots,
    PinSnapshot,
    PrefetchSnapshot,
    RemoveSnapshot,
    RolloutCancelled,
    RolloutReleased,
    RolloutSubmitted,
    SandboxesWanted,
    StepsGivenUp,
)
from shoal.wire.subjects import SYSTEM

_SAID: Final = {
    ("rollout", "request"): (RolloutSubmitted, RolloutReleased, RolloutCancelled, SandboxesWanted, StepsGivenUp),
    ("snapshot", "request"): (BuildTemplate, ListSnapshots, PinSnapshot, RemoveSnapshot),
    ("placement", "prefetch"): (PrefetchSnapshot,),
}
"""Of which log, as what kind."""
_KINDS: Final = (".request", ".prefetch")
_TENANT_AT: Final = {"rollout": 3, "snapshot": 2, "placement": 3}


def unspeakable(subject: str, message: AnyMessage) -> str:
    """Return why this may not be said there, for a dead letter; "" where it may."""
    if not subject.endswith(_KINDS):
        return ""  # by far the most of what is folded
    parts = subject.split(".")
    said = _SAID.get((parts[1], parts[-1])) if len(parts) > 3 else None
    if said is None or (at := _TENANT_AT[parts[1]]) >= len(parts) - 1 or parts[at] == SYSTEM:
        return ""  # a subject of services alone
    if type(message) not in said:
        right = ", ".join(sorted(kind.__name__ for kind in said))
        return f"a {type(message).__name__} is not said on {subject!r}, where a tenant speaks: that has {right}"
    if (tenant := getattr(message, "tenant", parts[at])) != parts[at]:
        return f"tenant: {tenant!r} does not speak on {subject!r}"
    return ""
