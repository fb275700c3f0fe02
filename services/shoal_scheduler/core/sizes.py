"""Whether the broker takes what starts a rollout's sandboxes: looked at before any is started.

A request that came through may still be too large on its way on: the snapshot travels with it, and what is to be warm
in that once more. Nobody would hear of a message that no stream took, and the sandboxes would wait for their deadline.
"""

from typing import Final

import msgspec

from shoal.machine.core import Publish
from shoal.wire import messages as m
from shoal.wire.codec import encode
from shoal_scheduler.core.dispatch import Part, placements
from shoal_scheduler.core.state import Rollout

MESSAGE_BYTES: Final = 1024**2
"""What a broker takes by default, headers and payload together."""
_SPARE: Final = 16 * 1024
"""What else may come to it: its id, an executor's and a node's name, later the nodes to avoid."""
_RANGE: Final = 7
"""Bytes of one range of indices, at most."""
_ADVICE: Final = {
    "commands": "ask for fewer of them at once, or for shorter ones that read files of a template",
    "files": "put large files into a template",
    "env": "make it shorter, or put it into a file of a template",
    "labels": "use fewer",
    "warm": "make it shorter, it travels twice: let it import what is in a template",
    "template": "use one with less warm code and fewer layers",
}


def too_large(cell: int, rollout: Rollout, most: int) -> tuple[str, str] | None:
    """Return the code and the sentence of why a rollout's sandboxes cannot be started, or None.

    `most`: bytes of one message. The rollout has its snapshot, and nothing of it was given out.
    """
    if not rollout.fresh:
        return None  # all were given up while it was not known what they start from
    (place,) = placements(cell, Part(rollout, cell, 0, rollout.fresh, (), rollout.gathering))
    size = len(encode(place.message)) + _SPARE
    spec = rollout.request.spec
    if len(spec.commands) <= 1:  # else there are fewer of them in a part that is in pieces, and each is larger than one
        size += _RANGE * (spec.n // 2)
    if size <= most:
        return None
    field = _largest(place)
    sentence = f"starting its sandboxes takes a message of up to {size} bytes, and the broker takes {most}"
    return "bad_request", f"{field}: {sentence}; {_ADVICE[field]}"


def _largest(place: Publish) -> str:
    """Return which field of a request takes most of the message it led to."""
    assert isinstance(place.message, m.PlaceRequested)
    spec, snapshot = place.message.spec, place.message.snapshot
    if spec.warm:
        snapshot = msgspec.structs.replace(snapshot, warm="")
    parts = {
        "commands": spec.commands, "files": spec.files, "env": spec.env, "labels": spec.labels,
        "warm": (spec.warm, spec.warm), "template": snapshot,
    }  # fmt: skip
    return max(parts, key=lambda field: len(msgspec.msgpack.encode(parts[field])))
