"""The laws of a core.

1. State is a fold: it changes only in `handle`, only by what the message and its `Cause` say. No clock, no
   randomness, no I/O, no logging, no iteration over unordered sets.
2. Effects are returned, never performed. Their ids derive from their cause, so that a second replica, or the same
   one after a crash, produces the same ids and the broker drops the copies.
3. A message delivered twice, or late, changes nothing the second time.
4. A message that breaks a law of the core raises `LawBrokenError` *and changes nothing*; the shell keeps it as a dead
   letter and goes on.
5. `dump` is the whole state: a core that loads it goes on exactly as the one it came from, byte for byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from shoal.machine.versions import Upgrade
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import AnyMessage, Recipe, Snapshot
from shoal.wire.speaking import unspeakable


class LawBrokenError(Exception):
    """A message that makes no sense to this core; the text says why. `answers` tell whoever sent it."""

    def __init__(self, reason: str, *answers: "Publish") -> None:
        super().__init__(reason)
        self.answers = answers


class Cause(msgspec.Struct, frozen=True, gc=False):
    """The delivery an effect came from: its stream, its sequence there, and the broker's time of it in ms."""

    stream: str
    sequence: int
    time_ms: int


class Publish(msgspec.Struct, frozen=True):
    """An effect: put this message on this subject."""

    subject: str
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Inspect:
    """An effect at the snapshot service's edge: look at a template's source; the answer returns through the log."""

    template: str


@dataclass(frozen=True, slots=True)
class Make:
    """An effect at the snapshot service's edge: make this template; the answer returns through the log.

    `base` is what was found at the recipe's source, for `tenant`.
    """

    key: str
    tenant: str
    recipe: Recipe
    base: Snapshot


@dataclass(frozen=True, slots=True)
class Collect:
    """An effect at the snapshot service's edge: these blobs are nobody's any more; the answer comes through the log."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seal:
    """An effect at the snapshot service's edge, which has the key: look whether these have the right seals.

    Each is a tenant, a digest, and the seal it has, if any. Those that are wrong return through the log.
    """

    sealed: tuple[tuple[str, str, str], ...]


Task = Inspect | Make | Collect | Seal
"""What is performed, and not only published."""

Effect = Publish | Task


class Core(Protocol):
    """A deterministic state machine over one ordered log."""

    state_version: int
    """Changes whenever `dump` means something else than before; then `upgrades` says what the earlier one meant."""

    upgrades: Mapping[int, Upgrade]
    """By the version that each begins with, one after another, how an earlier state becomes one of this version."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Its policies and bounds by name: part of its state, changed by `SettingsChanged` alone."""
        ...

    def handle(self, message: AnyMessage, cause: Cause) -> Sequence[Effect]:
        """Fold one message and return what follows from it. Raises LawBrokenError, having changed nothing."""
        ...

    def wake_at_ms(self) -> int | None:
        """Return when a Tick is due (broker's time, ms), or None while nothing waits for time to pass."""
        ...

    def outstanding(self) -> Sequence[Effect]:
        """Return effects other than Publish whose answer has not come: performed anew after a recovery."""
        ...

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        ...

    def load(self, state: bytes) -> None:
        """Take over a dumped state of this version, into a core that has handled nothing.

        Raises ValueError, having changed nothing.
        """
        ...

    def check(self) -> None:
        """Assert the core's invariants; tests call it after every step."""
        ...


def respond(core: Core, subject: str, payload: bytes, cause: Cause) -> tuple[Sequence[Effect], str]:
    """Fold one message as it is in the log; return what follows, and why nobody can use it, where that is so.

    What a tenant may not say is not folded: the broker lets it use only subjects of its own (`shoal.wire.speaking`).
    """
    try:
        message = decode(payload)
        refused = unspeakable(subject, message)
        return ((), refused) if refused else (core.handle(message, cause), "")
    except UndecodableError as error:
        return (), str(error)
    except LawBrokenError as error:
        return error.answers, str(error)


def effect_id(cause: Cause, number: int) -> str:
    """Return the id of a cause's number-th effect: what it came from, readable in the log.

    The time is in it because a log that lost its end uses its sequences again: what follows from a new message there
    must be no copy of what followed from the lost one.
    """
    return f"{cause.stream}:{cause.sequence}:{cause.time_ms}:{number}"


def cause_of(id: str) -> tuple[str, int, int] | None:
    """Return the stream and the sequence of the message that an effect came from, and its number; None for other ids.

    Recordings of earlier versions have ids without a time.
    """
    stream, *rest = id.split(":")
    if not stream.startswith("SHOAL_") or len(rest) not in (2, 3) or not all(map(_is_number, rest)):
        return None
    return stream, int(rest[0]), int(rest[-1])


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal()
