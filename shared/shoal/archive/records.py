"""What the blocks of an archive hold. `docs/architecture.md` has the whole picture.

    H  the first: what it is an archive of
    D  messages, by stream, as columns (`shoal.archive.sections`)
    C  one state of a partition, sealed (`shoal.machine.checkpoint`)
    V  how the cluster was set up, from then on
    I  where the blocks since the last of these are, and what they hold
    F  the last: what there is altogether, and where the I are

Each has a summary, which says what is in it without unpacking it.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

FORMAT: Final = 1
"""Of what is here and in `frames` and `sections`. A newer one is not read; every older one is."""
HEADER, MESSAGES, CHECKPOINT, VALUES, INDEX = b"H", b"D", b"C", b"V", b"I"


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What somebody wanted archived, in their words; times as they wrote them."""

    since: str = ""
    until: str = ""
    run: str = ""
    tenant: str = ""
    cell: int | None = None
    origin: str = ""
    """The archive it was taken from, and not a live cluster."""


class Header(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a file is an archive of.

    `wire`: the version of the messages; `cluster`, `values`: which cluster it is of, and how it was set up, by bucket;
    times in ms since the epoch. An export has a `plan`: for each stream the sequence after which it begins, and the
    last; `partial`: within that, only what `request.run` or `request.tenant` names. A file of a series has a `segment`,
    from 1, the digest of the one before it (`previous`), up to where earlier ones had each stream
    (`positions`), and the time of the newest message in them (`newest_ms`).
    """

    format: int
    wire: int
    made_by: str
    made_ms: int
    cluster: str = ""
    values: Mapping[str, Mapping[str, bytes]] = {}
    request: Request = Request()
    since_ms: int | None = None
    until_ms: int | None = None
    partial: bool = False
    plan: Mapping[str, tuple[int, int]] = {}
    series: str = ""
    segment: int = 0
    previous: bytes = b""
    positions: Mapping[str, int] = {}
    newest_ms: int = 0


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Some messages of a stream: the first and last sequence, how many, the bytes of their payloads, their times."""

    stream: str
    first: int
    last: int
    count: int
    bytes: int
    first_ms: int
    last_ms: int

    def joined(self, later: "Part") -> "Part":
        """Return this and what comes later as one."""
        return Part(
            self.stream, self.first, later.last, self.count + later.count, self.bytes + later.bytes, self.first_ms,
            max(self.last_ms, later.last_ms),
        )  # fmt: skip


class Saved(msgspec.Struct, frozen=True, array_like=True):
    """A state: whose, in which language (`state_version`), after which message. `bytes`: sealed, before compression."""

    partition: str
    version: int
    stream: str
    sequence: int
    time_ms: int
    bytes: int


class Missing(msgspec.Struct, frozen=True, array_like=True):
    """Messages that the broker did not keep any more when it was their turn."""

    stream: str
    first: int
    last: int


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """What is in a block: of each of its sections, in order, what it holds; or a state, or the buckets of values."""

    parts: tuple[Part, ...] = ()
    missing: tuple[Missing, ...] = ()
    saved: Saved | None = None
    buckets: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A block, for whoever looks for what it holds."""

    offset: int
    size: int
    kind: bytes
    summary: Summary


class Group(msgspec.Struct, frozen=True, array_like=True):
    """An index block, for whoever looks for what the blocks before it hold: all parts of a stream made one."""

    offset: int
    size: int
    parts: tuple[Part, ...]


class Footer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What there is in a file altogether.

    `positions`: up to where it and those before it in its series have each stream, `newest_ms`: the time of the newest
    message in any of them. `packed`: bytes before the footer; `blocks` with messages.
    """

    totals: tuple[Part, ...]
    missing: tuple[Missing, ...] = ()
    saved: tuple[Entry, ...] = ()
    values: tuple[Entry, ...] = ()
    groups: tuple[Group, ...] = ()
    positions: Mapping[str, int] = {}
    newest_ms: int = 0
    blocks: int = 0
    packed: int = 0
