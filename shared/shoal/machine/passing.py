"""Messages that every fold of a log leaves out, because its core fails on them each time it comes to them.

A core that raises anything but `LawBrokenError` may be half changed, so its state is thrown away. What it failed on is
noted. Where the same code, on a state that was rebuilt since, fails on the same message once more, the message is
*passed over*: from then on whoever folds the log leaves it out, whatever the version, for what was said since then was
said without it. One record for each partition, in the cluster's bucket, holds both; what is archived has that bucket.
"""

import hashlib
from typing import Final

import msgspec

MOST_AN_HOUR: Final = 3
"""So many messages are passed over within an hour, of one partition, and no more."""
MOST: Final = 10
"""So many messages one version passes over, of one partition: one that fails on more is broken, not its messages."""
_HOUR_MS: Final = 3_600_000
_DIGEST: Final = 16


class Failure(msgspec.Struct, frozen=True):
    """On which message a core failed: its sequence, and what tells it from any other that ever has this sequence.

    `why`: the error's type and place, and no more, for it is read by all who may read the bucket. `version`: of the
    code. `at_ms`: when it failed, or was passed over, by the clock of whoever says so.
    """

    sequence: int
    digest: str
    why: str
    version: str
    at_ms: int

    def same(self, other: "Failure | None") -> bool:
        """Return whether the same code failed on the same message."""
        mine = (self.sequence, self.digest, self.version)
        return other is not None and mine == (other.sequence, other.digest, other.version)


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a partition: the last failure that was `noted`, and the messages that are `passed` over.

    `epoch`: under which lease the note was last looked at; a new leader's word changes the record in any case.
    """

    noted: Failure | None = None
    epoch: int = 0
    passed: tuple[Failure, ...] = ()


def digest_of(subject: str, payload: bytes, time_ms: int, id: str) -> str:
    """Return what tells a message from another with its sequence: a log that lost its end uses sequences again."""
    found = hashlib.blake2b(f"{subject}\0{id}\0{time_ms}\0".encode(), digest_size=_DIGEST)
    found.update(payload)
    return found.hexdigest()


def why_of(error: Exception) -> str:
    """Return an error's type and where it was raised: such as `KeyError at shoal_placement/core/placing.py:93`."""
    at = error.__traceback__
    if at is None:
        return type(error).__name__
    while at.tb_next is not None:
        at = at.tb_next
    place = "/".join(at.tb_frame.f_code.co_filename.split("/")[-3:])
    return f"{type(error).__name__} at {place}:{at.tb_lineno}"


def unheeded(record: Record, version: str, now_ms: int) -> str:
    """Return why no more of a partition's messages are passed over, or "" where one more may be."""
    lately = sum(now_ms - each.at_ms < _HOUR_MS for each in record.passed)
    if lately >= MOST_AN_HOUR:
        return f"{lately} of its messages were passed over within an hour"
    by_this = sum(each.version == version for each in record.passed)
    return f"this version has passed over {by_this} of its messages" if by_this >= MOST else ""


def passing(record: Record, failure: Failure) -> Record:
    """Return the record with a message passed over. Another with its sequence is no more in the log."""
    others = tuple(each for each in record.passed if each.sequence != failure.sequence)
    return Record(passed=(*others, failure))


def encoded(record: Record) -> bytes:
    """Return a record as it is stored."""
    return msgspec.json.encode(record)


def decoded(value: bytes | None, partition: str) -> Record:
    """Return a stored record. Raises ValueError: who does not know what is passed over can fold nothing."""
    try:
        return msgspec.json.decode(value, type=Record) if value is not None else Record()
    except msgspec.DecodeError as error:
        raise ValueError(f"what is passed over of the log of {partition} cannot be read: {error}") from error


class PassedOver(dict[int, Failure]):
    """The messages of one log that are left out of its folds, by sequence."""

    def learn(self, record: Record) -> list[Failure]:
        """Take over what is passed over; return what was not known yet."""
        new = [each for each in record.passed if self.get(each.sequence) != each]
        self.update((each.sequence, each) for each in new)
        return new

    def reason(self, sequence: int, subject: str, payload: bytes, time_ms: int, id: str) -> str:
        """Return why a message is left out; "" where it is not."""
        found = self.get(sequence)
        if found is None or found.digest != digest_of(subject, payload, time_ms, id):
            return ""
        return f"passed over: the core failed on it, and again from a state built anew ({found.why}; {found.version})"
