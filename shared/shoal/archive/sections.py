"""Messages of one stream as columns: what repeats itself from message to message stands side by side, and packs well.

An id such as `SHOAL_ROLLOUT_0:1234:0` is a shape (`SHOAL_ROLLOUT_0`, number, number) and its numbers, each as the
difference from the one before it of that shape; so are times. Any id is kept exactly.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from shoal.archive.source import DamagedError
from shoal.bus.protocol import Delivery
from shoal.machine import ranges
from shoal.wire.messages import Ranges

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
Shape = tuple[str | None, ...]
"""An id's parts, None for each that is a number."""


class Section(msgspec.Struct, frozen=True, array_like=True):
    """Some messages of one stream, in order. `subjects`, `shapes` list what there is, `subject`, `shape` which it was.

    `numbers` has for each shape, for each number in it, that number of all messages of the shape, as differences.
    """

    stream: str
    sequences: Ranges
    times: list[int]
    subjects: list[str]
    subject: list[int]
    shapes: list[Shape]
    shape: list[int]
    numbers: list[list[list[int]]]
    payloads: list[bytes]


def pack(stream: str, messages: Sequence[Delivery]) -> Section:
    """Return these messages of one stream as columns."""
    subjects: dict[str, int] = {}
    shapes: dict[Shape, int] = {}
    numbers: list[list[list[int]]] = []
    before: list[list[int]] = []
    times: list[int] = []
    subject: list[int] = []
    shape: list[int] = []
    last_ms = 0
    for message in messages:
        times.append(message.time_ms - last_ms)
        last_ms = message.time_ms
        subject.append(subjects.setdefault(message.subject, len(subjects)))
        form, found = _taken_apart(message.id)
        which = shapes.setdefault(form, len(shapes))
        shape.append(which)
        if which == len(numbers):
            numbers.append([[] for _ in found])
            before.append([0] * len(found))
        for at, number in enumerate(found):
            numbers[which][at].append(number - before[which][at])
        before[which] = found
    sequences = ranges.collect(message.sequence for message in messages)
    payloads = [message.payload for message in messages]
    return Section(stream, sequences, times, list(subjects), subject, list(shapes), shape, numbers, payloads)


def unpack(section: Section) -> Iterator[Delivery]:
    """Yield the messages of a section. Raises DamagedError where its columns do not fit each other."""
    columns = [[iter(column) for column in shape] for shape in section.numbers]
    before = [[0] * len(shape) for shape in section.numbers]
    time_ms = 0
    parts = zip(section.times, section.subject, section.shape, section.payloads, strict=True)
    try:
        for sequence, (step_ms, subject, shape, payload) in zip(ranges.indices(section.sequences), parts, strict=True):
            time_ms += step_ms
            last = before[shape]
            for at, column in enumerate(columns[shape]):
                last[at] += next(column)
            found = iter(last)
            id = ":".join(str(next(found)) if part is None else part for part in section.shapes[shape])
            yield Delivery(section.subjects[subject], payload, sequence, time_ms, id)
    except (IndexError, ValueError, StopIteration) as error:
        raise DamagedError(f"a block's columns of {section.stream} do not fit each other") from error


def _taken_apart(id: str) -> tuple[Shape, list[int]]:
    """Return an id's shape and the numbers in it; only what is written as a number is always comes back the same."""
    form: list[str | None] = []
    found: list[int] = []
    for part in id.split(":"):
        if _NUMBER.fullmatch(part):
            form.append(None)
            found.append(int(part))
        else:
            form.append(part)
    return tuple(form), found
