"""When and where a rollout's sandboxes start: the options, and from them what is published, checked."""

from collections.abc import Mapping
from typing import TypedDict

import msgspec

from shoal.client.choices import OnPreempted
from shoal.client.errors import BadRequest
from shoal.wire import messages
from shoal.wire.messages import RolloutSpec


class Scheduling(TypedDict, total=False):
    """What `Cluster.rollout`, `submit` and `map` take beside what runs.

    gang: all sandboxes start together, or none; min_ready: the first so many do, and the others follow. retries: how
    often a sandbox that the platform failed is started again, elsewhere (as max_attempts less 1). start_within ("30s"):
    what has no room by then is not started, and ends as not_started. lifetime ("10m"): of each sandbox, from its
    readiness, however long it waited; then it ends as timed_out. labels: of the nodes to run on. spread_over ("zone"):
    a label; as many sandboxes on the nodes of each of its values. on_preempted: what becomes of a sandbox that has to
    make room for a higher priority: "hibernate" (where its driver keeps memory, else it stays), "restart" or "never".
    hedge: start elsewhere, too, what takes much longer to start than the others.
    """

    gang: bool
    min_ready: int
    retries: int
    start_within: float | str
    lifetime: float | str
    labels: Mapping[str, str]
    spread_over: str
    on_preempted: OnPreempted
    hedge: bool


def scheduled(spec: RolloutSpec, options: Scheduling) -> RolloutSpec:
    """Return the spec with these options. Raises BadRequest for what can be known to be wrong beforehand."""
    from shoal.client.requests import mapping, milliseconds, text, truth, whole_number

    for name in options:
        if name not in Scheduling.__annotations__:
            raise BadRequest(name, f"there is no such option; there are {', '.join(Scheduling.__annotations__)}")
    gang = truth(options.get("gang", False), "gang")
    if gang and options.get("min_ready"):
        raise BadRequest("min_ready", "give gang (all together) or min_ready (the first so many), not both")
    labels = dict(mapping(options.get("labels"), "labels", "{'zone': 'a'}"))
    for label, value in labels.items():
        if not isinstance(label, str) or not isinstance(value, str) or not label or not value:
            raise BadRequest("labels", f"{label!r}: {value!r} is no label; write {{'zone': 'a'}}")
        text(label, "labels", "a label, such as 'zone'"), text(value, "labels", "a label's value, such as 'a'")
    how = options.get("on_preempted", messages.OnPreempted.HIBERNATE)
    if how not in tuple(messages.OnPreempted):
        raise BadRequest("on_preempted", f"{how!r} is no policy; write 'hibernate', 'restart' or 'never'")
    attempts = spec.max_attempts
    if "retries" in options:
        attempts = whole_number(options["retries"], "retries", 0, 254) + 1
    return msgspec.structs.replace(
        spec,
        max_attempts=attempts,
        min_ready=spec.n if gang else whole_number(options.get("min_ready", 0), "min_ready", 0, spec.n),
        start_within_ms=milliseconds(options.get("start_within"), "start_within"),
        lifetime_ms=milliseconds(options.get("lifetime"), "lifetime"),
        labels=tuple(sorted(labels.items())),
        spread_over=text(options.get("spread_over", ""), "spread_over", "a label, such as 'zone'"),
        on_preempted=messages.OnPreempted(how),
        hedge=truth(options.get("hedge", True), "hedge"),
    )
