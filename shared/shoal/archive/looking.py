"""Reading a file's blocks from the first to the last, to see how far it is good."""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from shoal.archive import blocks, frames, records, sections
from shoal.archive.account import Account
from shoal.archive.frames import FOOTER, Bytes, Frame
from shoal.archive.records import Entry, Footer, Header, Summary
from shoal.archive.source import DamagedError
from shoal.machine.checkpoint import UnusableCheckpointError, unseal_any


@dataclass(slots=True)
class Found:
    """What a file was found to hold. `end`: up to where it is good; `digest` vouches for that.

    `closed`: its footer is there, and nothing else behind it; `trouble`: why it is not good to its end, or has none.
    `footer`: what an altered file's end, where that is good, says of all that was in it.
    """

    header: Header | None
    account: Account
    end: int
    digest: bytes
    closed: bool = False
    trouble: DamagedError | None = None
    footer: Footer | None = None

    @property
    def altered(self) -> bool:
        """Whether something may be behind the good part, and not only nothing yet."""
        return self.trouble is not None and not self.trouble.unfinished

    @property
    def lost_states(self) -> bool:
        """Whether states are behind the good part, as far as that is known."""
        return self.footer is not None and len(self.footer.saved) > len(self.account.saved)


async def look(source: Bytes, *, deep: bool = False, each: Callable[[Frame], None] | None = None) -> Found:
    """Read a file's blocks from the first to where it is good no longer; `deep`: unpack all of them, too.

    `each` gets every good block. Raises ArchiveError where it cannot be read at all.
    """
    found = Found(None, Account(), 0, frames.FIRST)
    footer: Frame | None = None
    try:
        async with aclosing(frames.scan(source)) as scanned:
            async for frame in scanned:
                _take(source.name, found, frame, deep)
                if each is not None:
                    each(frame)
                if frame.kind == FOOTER:
                    footer = frame
                else:
                    found.end, found.digest = frame.end, frame.digest
    except DamagedError as error:
        found.trouble = error
        if found.altered:
            found.footer = await _footer_of(source)
        return found
    if footer is None:
        text = f"{source.name} has no end: it is still being written, was interrupted, or was cut off"
        found.trouble = DamagedError(text, unfinished=True)
        return found
    last = frames.trailer(footer.offset)
    behind = await source.read(footer.end, len(last) + 1)
    if behind == last:
        found.closed, found.end, found.digest = True, footer.end, footer.digest
    else:
        unfinished = last.startswith(behind)
        text = "it ends before its last bytes" if unfinished else "something else than its end follows"
        found.trouble = DamagedError(f"{source.name}: at byte {footer.end} {text}", unfinished=unfinished)
    return found


async def _footer_of(source: Bytes) -> Footer | None:
    frame = await frames.footer_of(source, await source.size())
    try:
        return None if frame is None else blocks.body_of(frame, Footer)
    except DamagedError:
        return None


def _take(name: str, found: Found, frame: Frame, deep: bool) -> None:
    """Count one block more in. Raises DamagedError, and ArchiveError for a newer format."""
    if found.header is None:
        found.header = blocks.header_of(frame, name)
        found.account = Account.after(found.header)
        return
    account = found.account
    summary = blocks.summary_of(frame)
    if frame.kind == records.INDEX:
        if blocks.body_of(frame, tuple[Entry, ...]) != tuple(account.entries):
            raise DamagedError(f"{name}: at byte {frame.offset} an index names other blocks than there are")
        account.index(frame.offset, frame.size)
    elif frame.kind == FOOTER:
        if blocks.body_of(frame, Footer) != account.footer(frame.offset):
            raise DamagedError(f"{name}: at byte {frame.offset} the footer tells of something else than there is")
    else:
        if deep:
            check(frame, summary)
        account.add(Entry(frame.offset, frame.size, frame.kind, summary))


def check(frame: Frame, summary: Summary) -> None:
    """Raise DamagedError unless a block holds what its summary says, to the last message."""
    if frame.kind == records.MESSAGES:
        raws = blocks.body_of(frame, tuple[msgspec.Raw, ...])
        messages = [(s.stream, list(sections.unpack(s))) for s in map(blocks.section_of, raws)]
        if blocks.pack_messages(messages)[1] != summary.parts:
            raise DamagedError("a block holds other messages than it says")
    elif frame.kind == records.CHECKPOINT:
        try:
            unseal_any(blocks.bytes_of(frame))
        except UnusableCheckpointError as error:
            raise DamagedError(f"a checkpoint is unusable: {error}") from error
    else:
        blocks.bytes_of(frame)
