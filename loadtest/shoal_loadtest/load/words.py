"""What a load generator and whoever measures say to each other: one JSON object a line."""

from typing import Any

import msgspec


class Word(msgspec.Struct, frozen=True, tag_field="word", forbid_unknown_fields=True):
    """One line."""


# --- to a generator


class Begin(Word, frozen=True, tag="begin"):
    """Connect, and get ready. It is the `part`th `of` so many; `run` is what its rollouts' run begins with."""

    url: str
    run: str
    document: dict[str, Any]
    scale: float
    part: int
    of: int


class Go(Word, frozen=True, tag="go"):
    """Begin with a phase, at this moment of the monotonic clock; rates of all generators together, 0 where none."""

    phase: int
    at_ns: int
    rate: float = 0.0
    command_rate: float = 0.0


class Cut(Word, frozen=True, tag="cut"):
    """Ask for nothing more, and give back what there is: somebody wants an end."""


class Finish(Word, frozen=True, tag="finish"):
    """Give everything back, wait until all of it has concluded, and tell what it adds up to."""


# --- by a generator


class Connected(Word, frozen=True, tag="connected"):
    """It can begin."""

    cells: int


class Pulse(Word, frozen=True, tag="pulse"):
    """How things are: sums since the beginning, what is now, and the latencies of the time since the last one."""

    phase: int
    asked: int
    ready: int
    through: int
    commands: int
    failed: int
    live: int
    in_flight: int
    waiting: int
    gpu_seconds: float
    latencies: dict[str, str] = {}


class PhaseEnded(Word, frozen=True, tag="phase_ended"):
    """A phase is over. `moments`: in which tenth of a second how many were through, or ready where they stay."""

    phase: int
    counts: dict[str, int]
    reasons: dict[str, int]
    latencies: dict[str, str]
    first_ns: int
    last_ns: int
    first_command_ns: int
    last_command_ns: int
    moments: dict[int, int]
    stuck: int
    gpu_seconds: float


class Finished(Word, frozen=True, tag="finished"):
    """All is over."""

    audit: dict[str, int]
    reasons: dict[str, int]


class Trouble(Word, frozen=True, tag="trouble"):
    """A sentence for people; `fatal`: nothing more comes."""

    text: str
    fatal: bool = False


Told = Begin | Go | Cut | Finish
Said = Connected | Pulse | PhaseEnded | Finished | Trouble
