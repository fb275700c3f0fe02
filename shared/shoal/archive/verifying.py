"""Whether an archive is as it was written: every block's digest, what is in it, and that each file follows the last.

The chain shows any change made to a part of an archive. Whoever can write can make all of it anew from some block on:
against that, a digest that was noted elsewhere (`Verdict.digest`) must be found in the chain again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.archive.frames import TRAILER, Frame
from shoal.archive.looking import Found, look
from shoal.archive.records import Missing, Part
from shoal.archive.series import Series
from shoal.archive.source import ArchiveError


@dataclass(slots=True)
class Verdict:
    """What was found. `trouble`: why it is not whole, else empty; all else is of the part that is good.

    `first_segment`: above 1 where the first files of a series are not there (0: it is none).
    `open_end`: the last file of several has no end yet, which is as it should be. `totals`: what there is of each
    stream; `good_in`, `good_to`: in which file, up to which byte. `digest` vouches for all of it; `known`: whether the
    digest that was asked for is in the chain (None: none was).
    """

    trouble: str = ""
    unfinished: bool = False
    open_end: bool = False
    files: int = 0
    first_segment: int = 0
    size: int = 0
    messages: int = 0
    newest_ms: int = 0
    totals: dict[str, Part] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    states: int = 0
    good_in: str = ""
    good_to: int = 0
    digest: bytes = b""
    known: bool | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.trouble


def _quiet(_: str, __: int, ___: int) -> None:
    return


async def verify(
    series: Series, anchor: bytes | None = None, *, tell: Callable[[str, int, int], None] = _quiet
) -> Verdict:
    """Look at every byte of an archive, up to the first that is wrong.

    `anchor`: a digest that this archive had when it was shorter. `tell` gets a file's name, up to which byte it was
    looked at, and how many it has. Raises ArchiveError where it cannot be read at all.
    """
    await series.refresh()
    verdict = Verdict(known=None if anchor is None else False)

    name, size = "", 0

    def each(frame: Frame) -> None:
        tell(name, frame.end, size)
        if frame.digest == anchor:
            verdict.known = True

    before: Found | None = None
    for number in range(len(series)):
        source = series.source(number)
        name, size = source.name, await source.size()
        found = await look(source, deep=True, each=each)
        if found.header is None and not _may_be_begun(series, number, found):
            verdict.trouble = str(found.trouble)
            break
        if before is not None and found.header is not None and (problem := _not_after(found, before)):
            verdict.trouble = f"{source.name} {problem}"
            break
        if before is None and found.header is not None:
            verdict.first_segment = found.header.segment
            if anchor is not None and found.header.previous == anchor:
                verdict.known = True
        _count(verdict, source.name, found)
        if found.trouble is not None:
            if found.trouble.unfinished and series.several and number == len(series) - 1:
                verdict.open_end = True
            else:
                verdict.trouble, verdict.unfinished = str(found.trouble), found.trouble.unfinished
            break
        before = found
    if verdict.whole and verdict.known is False:
        verdict.trouble = f"{series.name} does not go on from the digest given: it was made anew, or cut off"
    return verdict


def _may_be_begun(series: Series, number: int, found: Found) -> bool:
    """Return whether a file without a header is one that somebody is just beginning to write."""
    trouble = found.trouble
    return series.several and 0 < number == len(series) - 1 and trouble is not None and trouble.unfinished


def _not_after(found: Found, before: Found) -> str:
    """Return what is wrong with a file that should follow another; nothing where nothing is."""
    assert found.header is not None
    assert before.header is not None
    if found.header.segment != before.header.segment + 1:
        return f"is number {found.header.segment} of its series behind number {before.header.segment}"
    if found.header.previous != before.digest:
        return "does not follow the file before it: one of the two was altered, or is of something else"
    if dict(found.header.positions) != before.account.positions:
        return "does not begin where the file before it ends"
    return ""


def _count(verdict: Verdict, name: str, found: Found) -> None:
    account = found.account
    verdict.files += 1
    verdict.size += found.end + (TRAILER if found.closed else 0)
    verdict.newest_ms = max(verdict.newest_ms, account.newest_ms)
    verdict.good_in, verdict.good_to, verdict.digest = name, found.end, found.digest
    verdict.missing += account.missing
    verdict.states += len(account.saved)
    for stream, part in account.totals.items():
        known = verdict.totals.get(stream)
        verdict.totals[stream] = part if known is None else known.joined(part)
        verdict.messages += part.count


def anchor_of(text: str) -> bytes:
    """Return a digest as people write it. Raises ArchiveError."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise ArchiveError(f"{text!r} is not a digest: 64 hexadecimal digits, as `shoal archive verify` prints them")
    return found
