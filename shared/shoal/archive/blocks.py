"""Blocks by what they hold: packed into bytes, and read again."""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from shoal.archive import frames, packing, sections
from shoal.archive.frames import Frame
from shoal.archive.records import FORMAT, HEADER, Header, Part, Summary
from shoal.archive.sections import Section
from shoal.archive.source import ArchiveError, DamagedError
from shoal.bus.protocol import Delivery

_encoder: Final = msgspec.msgpack.Encoder()
_NONE: Final = Summary()
T = TypeVar("T")


class _Format(msgspec.Struct):
    format: int


def build(kind: bytes, body: object, before: bytes, summary: Summary = _NONE) -> bytes:
    """Return a block's bytes: `body` is encoded, unless it is bytes already."""
    data = body if isinstance(body, bytes) else _encoder.encode(body)
    return frames.build(kind, packing.pack(_encoder.encode(summary)), packing.pack(data), len(data), before)


def summary_of(frame: Frame) -> Summary:
    """Return a block's summary. Raises DamagedError."""
    return _decoded(packing.unpack(frame.summary), Summary)


def body_of(frame: Frame, kind: type[T]) -> T:
    """Return what a block holds, of this type. Raises DamagedError."""
    return _decoded(bytes_of(frame), kind)


def bytes_of(frame: Frame) -> bytes:
    """Return what a block holds, unpacked. Raises DamagedError."""
    return packing.unpack(frame.body, frame.unpacked)


def header_of(frame: Frame, name: str) -> Header:
    """Return a file's header. Raises ArchiveError for one of a newer format, DamagedError."""
    if frame.kind != HEADER:
        raise DamagedError(f"{name} does not begin with a header")
    format = body_of(frame, _Format).format
    if format > FORMAT:
        raise ArchiveError(f"{name} is of format {format}, and this Shoal reads up to {FORMAT}; use a newer one")
    return body_of(frame, Header)


def pack_messages(messages: Sequence[tuple[str, Sequence[Delivery]]]) -> tuple[list[Section], tuple[Part, ...]]:
    """Return messages, by stream, as sections, and what is in them."""
    packed = [sections.pack(stream, found) for stream, found in messages]
    parts = tuple(
        Part(
            stream, found[0].sequence, found[-1].sequence, len(found), sum(len(each.payload) for each in found),
            found[0].time_ms, found[-1].time_ms,
        )
        for stream, found in messages
    )  # fmt: skip
    return packed, parts


def section_of(raw: msgspec.Raw) -> Section:
    """Return one section of a block. Raises DamagedError."""
    return _decoded(raw, Section)


def _decoded(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"a block holds something else than it should: {error}") from error
