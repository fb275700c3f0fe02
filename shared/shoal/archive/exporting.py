"""Exporting: what a history holds at one moment becomes a file, which is gone on with if that was interrupted."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from shoal.archive.account import Account
from shoal.archive.archived import ArchiveHistory
from shoal.archive.frames import TRAILER
from shoal.archive.joined import Joined
from shoal.archive.looking import Found
from shoal.archive.places import LocalFile
from shoal.archive.planning import partitions_of, plan_of
from shoal.archive.reader import ArchiveFile
from shoal.archive.records import FORMAT, Header, Missing, Request
from shoal.archive.selecting import Selection
from shoal.archive.source import ArchiveError, History
from shoal.archive.writer import Writer
from shoal.wire import VERSION, streams

EVERYTHING: Final = Request()
_TELL_EVERY: Final = 2048  # messages


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an export is: in messages looked at, of how many; what was written, in bytes; which stream it is at."""

    done: int
    of: int
    written: int
    stream: str


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that is whole. `size` in bytes; `digest` vouches for all of it.

    `resumed`: a part of it was there already; `complete`: all of it was.
    """

    messages: int
    size: int
    digest: bytes
    missing: tuple[Missing, ...]
    resumed: bool
    complete: bool


def _quiet(_: Progress) -> None:
    return


async def export(
    history: History,
    path: Path,
    request: Request = EVERYTHING,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    tell: Callable[[Progress], None] = _quiet,
) -> Exported:
    """Write what `request` asks for into a file; what of it a run before this one has written, stays.

    `since_ms`, `until_ms`: what `request.since` and `request.until` mean now; a file that was begun keeps to what they
    meant then. Raises ArchiveError, BusError; then what was written stays, and the next run goes on from there.
    """
    cluster = (await history.values(streams.CLUSTER_BUCKET)).get(streams.ID_KEY, b"").decode()
    writer = await _begun(history, path, request, cluster)
    resumed = writer is not None
    if isinstance(writer, Found):
        return _exported(writer.account, writer.end + TRAILER, writer.digest, resumed=True, complete=True)
    if writer is None:
        writer = Writer.create(path, await _header(history, request, cluster, since_ms, until_ms))
    try:
        await _Export(history, writer, tell, whole=not await _partial(history)).run()
    finally:
        writer.close()
    return _exported(writer.account, writer.written, writer.digest, resumed=resumed, complete=False)


def _exported(account: Account, size: int, digest: bytes, *, resumed: bool, complete: bool) -> Exported:
    messages = sum(total.count for total in account.totals.values())
    return Exported(messages, size, digest, tuple(account.missing), resumed, complete)


async def _begun(history: History, path: Path, request: Request, cluster: str) -> Writer | Found | None:
    """Return what an earlier run has begun, or completed; None where there is nothing. Raises ArchiveError."""

    if not await asyncio.to_thread(path.exists):
        return None

    async def may_cut(found: Found) -> bool:
        header = found.header
        assert header is not None
        if header.request != request or header.cluster != cluster or header.series:
            what = "of another cluster" if header.cluster != cluster else "of something else"
            raise ArchiveError(f"{path} is an archive {what}; choose another name, or move it away")
        return not found.altered or await _nothing_lost(history, header, found)

    found = await Writer.resume(path, may_cut)
    return None if found.header is None else found


async def _nothing_lost(history: History, header: Header, found: Found) -> bool:
    """Return whether a history still has all that is behind the good part of an altered file."""
    for name, (after, last) in header.plan.items():
        at = max(after, found.account.positions.get(name, 0))
        there = await history.bounds(name)
        if at < last and not (there.first <= at + 1 and last <= there.last):
            return False
    # States come before all messages. A broker keeps only the newest, so those that were here are not got again.
    return not found.lost_states and bool(found.footer or found.account.blocks or header.partial)


async def _header(
    history: History, request: Request, cluster: str, since_ms: int | None, until_ms: int | None
) -> Header:
    return Header(
        format=FORMAT,
        wire=VERSION,
        made_by=f"shoal {version('shoal')}",
        made_ms=time.time_ns() // 1_000_000,
        cluster=cluster,
        values={streams.CLUSTER_BUCKET: await history.values(streams.CLUSTER_BUCKET)},
        request=request,
        since_ms=since_ms,
        until_ms=until_ms,
        partial=bool(request.run or request.tenant) or await _partial(history),
        plan=await plan_of(history, request, since_ms, until_ms),
    )


async def _partial(history: History) -> bool:
    return isinstance(history, ArchiveHistory | Joined) and await history.partial()


class _Export:
    """One run of an export. `whole`: the history leaves nothing out, and a gap in it is one."""

    def __init__(self, history: History, writer: Writer, tell: Callable[[Progress], None], *, whole: bool) -> None:
        self._history = history
        self._whole = whole
        self._writer = writer
        self._tell = tell
        self._plan = writer.header.plan
        request = writer.header.request
        self._selection = Selection(request.tenant, request.run)
        self._of = sum(last - after for after, last in self._plan.values())
        self._done = 0

    async def run(self) -> None:
        """Write what is not there yet, and the end."""
        if not self._writer.header.partial and not self._writer.account.blocks:
            await self._states()
        if not self._selection.everything:
            await self._remember()
        for stream, (after, last) in self._plan.items():
            await self._stream(stream, max(after, self._writer.position(stream)), last)
            self._done += last - after
        self._writer.finish()
        self._tell(Progress(self._of, self._of, self._writer.written, ""))

    async def _states(self) -> None:
        """Write the states within what is exported: whoever rebuilds a state begins with one of them."""
        saved = [entry.summary.saved for entry in self._writer.account.saved]
        there = {(each.partition, each.sequence) for each in saved if each is not None}
        for partition in await partitions_of(self._history):
            async with aclosing(self._history.states(partition)) as states:
                async for state in states:
                    after, last = self._plan.get(state.stream, (0, -1))
                    if after <= state.sequence <= last and (partition, state.sequence) not in there:
                        self._writer.checkpoint(state)

    async def _remember(self) -> None:
        """Learn again which rollouts are wanted, from what an earlier run has written."""
        file = await ArchiveFile.open(LocalFile(self._writer.path), damaged=True)
        for stream in self._writer.account.totals:
            async with aclosing(file.read(stream)) as found:
                async for delivery in found:
                    self._selection.wants(delivery)

    async def _stream(self, stream: str, after: int, last: int) -> None:
        """Write a stream's messages after a sequence, up to the last."""
        if after >= last:
            return
        at, begun, writer = after, self._plan[stream][0], self._writer
        async with aclosing(self._history.read(stream, after=after, until=last)) as found:
            async for delivery in found:
                if self._whole and delivery.sequence > at + 1:
                    writer.miss(stream, at + 1, delivery.sequence - 1)
                at = delivery.sequence
                if self._selection.wants(delivery):
                    writer.append(stream, delivery)
                if at % _TELL_EVERY == 0:
                    self._tell(Progress(self._done + at - begun, self._of, writer.written, stream))
        if self._whole and at < last:
            writer.miss(stream, at + 1, last)
